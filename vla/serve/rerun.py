"""A rollout as a recording for the rerun viewer (rerun.io): cameras, instruction, chunks and what was carried out, on one clock."""

from __future__ import annotations

from pathlib import Path

from vla.data.recording import TIMELINE, load_rerun
from vla.normalize import dimension_names
from vla.serve.rollout import Rollout


def write_rollout(rollout: Rollout, path: Path) -> Path:
    """Writes an .rrd file. UserError without rerun."""
    rr = load_rerun()
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = rr.RecordingStream(f"vla {rollout.name}", recording_id=rollout.name)
    stream.save(path)
    names = dimension_names(rollout.robot.command)
    for request in rollout.requests:
        stream.set_time(TIMELINE, duration=request.at_s)
        for role, file in request.frames.items():
            if file.is_file():
                stream.log(role, rr.EncodedImage(contents=file.read_bytes(), media_type="image/jpeg"))
        stream.log("instruction", rr.TextLog(request.instruction))
        stream.log("policy_ms", rr.Scalars(request.policy_s * 1e3))
        for column, name in enumerate(names):
            stream.log(f"chunk/{name}", rr.Tensor(request.action_TA[:, column]))
    pieces, _ = rollout.executed()
    for times, rows in pieces:
        for column, name in enumerate(names):
            clock = rr.TimeColumn(TIMELINE, duration=times)
            rr.send_columns(f"executed/{name}", indexes=[clock], columns=rr.Scalars.columns(scalars=rows[:, column]), recording=stream)
    stream.disconnect()
    return path
