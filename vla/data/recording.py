"""A dataset as a recording for the rerun viewer (rerun.io): frames, instructions, states and actions on one clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.data.images import decode_frame
from vla.data.pictures import spread_episodes
from vla.data.reader import Dataset, StoredEpisode
from vla.embodiment import Space
from vla.errors import UserError

if TYPE_CHECKING:
    from rerun import RecordingStream

TIMELINE = "time"


def write_recording(dataset: Dataset, path: Path, episodes: int = 8) -> Path:
    """Writes an .rrd file: `<episode>/<camera>` holds the frames as stored, `<episode>/state/<field>` and `action/<field>` the numbers,
    `<episode>/instruction` and `<episode>/reasoning` the texts. UserError without rerun."""
    rr = load_rerun()
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = rr.RecordingStream(f"vla {dataset.info.name}", recording_id=f"{dataset.info.name}-{dataset.digest[:12]}")
    stream.save(path)
    for index in spread_episodes(dataset, episodes):
        _episode(rr, stream, dataset, dataset.episode(index))
    stream.disconnect()  # else the file's end waits for the interpreter's
    return path


def _episode(rr: Any, stream: RecordingStream, dataset: Dataset, episode: StoredEpisode) -> None:
    time_s = episode.time_s - episode.time_s[0]
    for camera, table in episode.cameras.items():
        for number, step in enumerate(table.step):
            data = dataset.frame(episode.index, camera, number)
            stream.set_time(TIMELINE, duration=float(time_s[step]))
            picture = rr.EncodedImage(contents=data, media_type="image/jpeg") if isinstance(data, bytes) else rr.Image(decode_frame(data))
            stream.log(f"{episode.id}/{camera}", picture)
    for what, spans in (("instruction", episode.spans), ("reasoning", episode.reasons)):
        for span in spans:
            stream.set_time(TIMELINE, duration=float(time_s[span.start]))
            stream.log(f"{episode.id}/{what}", rr.TextLog(span.text or f"(no {what})"))
    for kind, space, rows in (
        ("state", dataset.info.recorded_state, episode.state),
        ("action", dataset.info.recorded_action, episode.action),
    ):
        if space is not None and rows is not None:
            _series(rr, stream, f"{episode.id}/{kind}", space, time_s, rows)


def _series(rr: Any, stream: RecordingStream, place: str, space: Space, time_s: np.ndarray, rows: np.ndarray) -> None:
    for name, where in space.slices().items():
        clock = rr.TimeColumn(TIMELINE, duration=time_s)
        rr.send_columns(f"{place}/{name}", indexes=[clock], columns=rr.Scalars.columns(scalars=rows[:, where]), recording=stream)


def load_rerun() -> Any:
    """The library. UserError without it."""
    try:
        import rerun
    except ImportError as error:
        raise UserError("recordings need rerun, which is not installed: `pip install 'vla[show]'`") from error
    return rerun
