"""What was asked and answered, kept for looking at: a folder per session, written beside the serving and never in its way.

session-000001/rollout.json     format_version, embodiment by value, policy
session-000001/requests.jsonl   one line per answer: time, instruction, state, actions, executed, frames
session-000001/000001-wrist.jpg its newest picture of each camera
"""

from __future__ import annotations

import errno
import json
import queue
import shutil
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.embodiment import Embodiment
from vla.types import Observation

FORMAT_VERSION = 1
WAITING = 64
"""Answers that may wait for the disk; more are dropped, and counted: a full disk must not stop a robot."""
QUALITY = 85


@dataclass(frozen=True)
class Entry:
    """One answer. `at_s`: when its observation was made, on the server's clock. `executed`: (n, A), carried out since the answer before."""

    session: int
    at_s: float
    observation: Observation
    action_TA: np.ndarray
    policy_s: float
    total_s: float
    executed: np.ndarray | None


class Recorder:
    """`add` returns at once; a thread writes. `close` waits for what is waiting."""

    def __init__(self, folder: Path, robot: Embodiment, policy: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.robot, self.policy = folder, robot, policy
        self.dropped = 0
        self._next = 1 + max((int(path.name[8:]) for path in folder.glob("session-*") if path.name[8:].isdigit()), default=0)
        self._folders: dict[int, Path] = {}
        self._calls: Counter[int] = Counter()
        self._queue: queue.Queue[Entry | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def add(self, entry: Entry) -> None:
        """Takes an entry to be written; one too many is dropped and counted."""
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """After this, all that was taken is written."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                self._write(entry)
            except OSError:  # no space, say; serving goes on
                self.dropped += 1

    def _write(self, entry: Entry) -> None:
        import simplejpeg

        folder = self._folder(entry.session)
        self._calls[entry.session] += 1
        call = self._calls[entry.session]
        frames = {}
        for role, pixels in entry.observation.images.items():
            frames[role] = f"{call:06d}-{role}.jpg"
            (folder / frames[role]).write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[-1]), quality=QUALITY))
        row: dict[str, Any] = {
            "call": call,
            "at_s": round(entry.at_s, 4),
            "policy_s": round(entry.policy_s, 5),
            "total_s": round(entry.total_s, 5),
            "instruction": entry.observation.instruction,
            "state": entry.observation.state[-1].tolist(),
            "actions": entry.action_TA.tolist(),
            "executed": None if entry.executed is None else entry.executed.tolist(),
            "frames": frames,
        }
        line = json.dumps(row).encode() + b"\n"
        with open(folder / "requests.jsonl", "ab", buffering=0) as file:
            at = file.tell()
            if file.write(line) != len(line):  # half a line would spoil the next one too
                file.truncate(at)
                raise OSError(errno.ENOSPC, "no space left")

    def _folder(self, session: int) -> Path:
        """Sessions are numbered on from what the folder already holds. A number is a session's once its rollout.json is there."""
        if session not in self._folders:
            self._folders[session] = self._new_folder()
        return self._folders[session]

    def _new_folder(self) -> Path:
        while True:
            folder = self.folder / f"session-{self._next:06d}"
            try:
                folder.mkdir()
                break
            except FileExistsError:  # another server's, which records there too
                self._next += 1
        about = {"format_version": FORMAT_VERSION, "embodiment": self.robot.to_json(), "policy": self.policy}
        try:
            (folder / "rollout.json").write_text(json.dumps(about, indent=1))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder
