"""Episodes of an evaluation in progress, on disk as they end: a killed run goes on where it was.

`FILE.rows.jsonl` lies beside the result that it becomes: a line that says what the rows depend on, then a row a line. A line cut short by
the end of the process is dropped. A row depends on neither the number of episodes nor the shard, so both may differ when it goes on.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vla.errors import UserError
from vla.evaluate.result import Row, identity, read_result

SUFFIX = ".rows.jsonl"
RULES = ("suite", "seed", "image_size", "execute", "ensemble", "probe")
"""Of what an evaluation declares, what its result holds by the same name."""
MANY = 5
"""So many rows of a table that differ are told."""


def check_replaced(result: Path, facts: Mapping[str, Any]) -> None:
    """UserError where a finished result of another evaluation than `facts` lies there; one of the same may be replaced.

    What was run is compared, not the commands: results are also merged, made from Python, and of checkpoints that were trained further.
    """
    if not result.exists():
        return
    try:
        found = read_result(result)
    except UserError as error:
        raise UserError(f"{result} is no evaluation that this one could replace. Choose another --json, or remove it.") from error
    there = {key: getattr(found, key) for key in RULES}
    there |= {"tasks": {name: f"{steps} steps" for name, steps in found.max_steps.items()}, "episodes": found.episodes}
    there |= {"shard": found.shard, **{key: (found.stopping or {}).get(key) for key in ("against", "level")}}
    what = _differences({**there, "policy": identity(found.policy)}, {**dict.fromkeys(there), **json.loads(json.dumps(facts))})
    if what:
        raise UserError(f"{result} holds another evaluation ({what}). Choose another --json, or remove it.")


def discard(result: Path) -> None:
    """The result stands: its journal goes."""
    result.with_name(result.name + SUFFIX).unlink(missing_ok=True)


class Journal:
    """`rows` and `commands` by (task, episode): what an earlier run has left. `facts`: what a row depends on, JSON-able."""

    def __init__(self, result: Path, facts: Mapping[str, Any]) -> None:
        """Raises UserError if the file is of another evaluation, or is being written."""
        self.path = result.with_name(result.name + SUFFIX)
        self.rows: dict[tuple[str, int], Row] = {}
        self.commands: dict[tuple[str, int], np.ndarray] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115 - lives as long as the evaluation
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"another evaluation is writing {self.path}; give another --json") from None
        lines = self._complete_lines()
        try:
            self._read(lines, json.loads(json.dumps(facts)))
        except (UserError, KeyError, TypeError, ValueError) as error:
            self._file.close()
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path} holds no episodes of an evaluation. Delete it, or give another --json.") from error

    def add(self, row: Row, commands: np.ndarray) -> None:
        """Writes a row through to the disk."""
        self._write({"row": asdict(row), "shape": commands.shape, "commands": base64.b64encode(commands.tobytes()).decode()})

    def close(self) -> None:
        """Lets others write it."""
        self._file.close()

    def _complete_lines(self) -> list[bytes]:
        self._file.seek(0)
        whole, newline, torn = self._file.read().rpartition(b"\n")
        if torn:
            self._file.truncate(len(whole) + len(newline))
        return whole.split(b"\n") if whole else []

    def _read(self, lines: list[bytes], facts: dict[str, Any]) -> None:
        if not lines:
            self._write(facts)
            return
        found = json.loads(lines[0])
        what = _differences(found, facts)
        if what:
            raise UserError(f"{self.path} holds episodes of another evaluation ({what}). Delete it, or give another --json.")
        for line in lines[1:]:
            data = json.loads(line)
            row = Row(**data["row"])
            self.rows[row.task, row.episode] = row
            commands = np.frombuffer(base64.b64decode(data["commands"]), dtype=np.float64)
            self.commands[row.task, row.episode] = commands.reshape(data["shape"])

    def _write(self, data: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(data).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _differences(found: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In words; "" where there are none."""
    return "; ".join(_difference(key, found.get(key), value) for key, value in ours.items() if found.get(key) != value)


def _difference(what: str, found: Any, ours: Any) -> str:
    """In words; of two tables, only the rows that differ."""
    if what == "probe":
        found, ours = (each["spec"] if each else "none" for each in (found, ours))
    if not (isinstance(found, dict) and isinstance(ours, dict)):
        return f"{what} {found} against {ours}"
    keys = [key for key in {**found, **ours} if found.get(key) != ours.get(key)]
    told = [f"{what} {key} {found.get(key)} against {ours.get(key)}" for key in keys[:MANY]]
    return ", ".join([*told, *([f"and {len(keys) - MANY} more"] if len(keys) > MANY else [])])
