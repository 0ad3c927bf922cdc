"""Videos of chosen episodes, made after their outcomes are known.

The simulator is deterministic, so an episode is its seed and its commands: a few are run again with larger images. The other
episodes pay nothing for it, successes and failures both get their share, and every video is a check of that determinism.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla.evaluate.pool import ready
from vla.evaluate.result import Row
from vla.evaluate.rollouts import Rollouts

SIZE = 160
FRAMES = 30
FRAME_S = 0.1


def choose(rows: Sequence[Row], per_outcome: int) -> list[Row]:
    """The first successes and the first failures of each task. Episodes lost to a crash have nothing to show."""
    chosen = []
    for task in dict.fromkeys(row.task for row in rows):
        for success in (True, False):
            fitting = [row for row in rows if row.task == task and row.success == success and row.reason in ("success", "max_steps")]
            chosen += fitting[:per_outcome]
    return chosen


def film(rollouts: Rollouts, rows: Sequence[Row], folder: Path, workers: int) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """Writes one animated WebP per row into the folder. Returns the videos' rows, and notes on those that could not be made."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, videos, notes = deque(enumerate(rows)), [], []
    while waiting or any(process.pending for process in rollouts.processes.values()):
        for worker in range(workers):
            if waiting and not rollouts.process(worker).pending:
                index, row = waiting.popleft()
                rollouts.process(worker).send(_request(index, row), {"commands": rollouts.commands[row.task, row.episode]})
        lost = [(process, "") for process in rollouts.processes.values() if process.overdue(rollouts.timeout_s)]
        for process in ready(rollouts.processes.values(), 0.5):
            answer = process.receive()
            if answer is None:
                lost.append((process, process.close()))
                continue
            row = rows[answer[0]["slot"]]
            if answer[0]["success"] == row.success:
                videos.append(_write(folder, row, answer[1]["movie"]))
            else:
                notes.append(f"no video of {row.task} {row.episode}: run again, it ended differently; is its simulator deterministic?")
        for process, words in lost:
            words = words or f"no answer in {rollouts.timeout_s:g} s; {process.kill()}"
            notes += [f"no video of {rows[index].task} {rows[index].episode}: {words}" for index in process.pending]
            rollouts.forget(process)
    return tuple(sorted(videos, key=lambda video: (video["task"], video["episode"]))), tuple(notes)


def _request(index: int, row: Row) -> dict[str, Any]:
    stride = max(1, math.ceil(row.steps / FRAMES))
    return {"op": "replay", "slot": index, "task": row.task, "seed": row.seed, "size": SIZE, "stride": stride, "frame_s": FRAME_S}


def _write(folder: Path, row: Row, movie: np.ndarray) -> dict[str, Any]:
    name = f"{row.task}-{row.episode:03d}-{'success' if row.success else 'failure'}.webp"
    (folder / name).write_bytes(movie.tobytes())
    return {"task": row.task, "episode": row.episode, "success": row.success, "steps": row.steps, "folder": str(folder), "file": name}
