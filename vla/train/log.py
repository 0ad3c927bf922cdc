"""The books of a run: sums per part of the loss, per source and per embodiment, and the lines that come of them."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vla.checkpoint import writing
from vla.errors import UserError
from vla.train.engine import Update
from vla.train.ranks import Ranks
from vla.train.run import Run
from vla.types import Batch, Loss


class Books:
    """Sums and weights since the last `close`. Kept on the device; ranks are added up only when a line is written."""

    def __init__(self, sources: Iterable[str], robots: Iterable[str], ranks: Ranks) -> None:
        self.sources, self.robots, self.ranks = tuple(sources), tuple(robots), ranks
        self.parts: dict[str, Tensor] = {}
        self.scale: Mapping[str, float] = {}
        self._clear()

    def add(self, batch: Batch, loss: Loss) -> None:
        """One micro-batch of this rank."""
        self.scale = loss.scale
        for name, part in loss.parts.items():
            pair = torch.stack([part.sum.detach(), part.weight.detach()]).double()
            self.parts[name] = self.parts[name] + pair if name in self.parts else pair
        share_B2 = torch.stack([loss.sample_sum_B, loss.sample_weight_B], dim=1).double()
        self._source_S2.index_add_(0, batch.source_B, share_B2)
        self._robot_E2.index_add_(0, batch.spec.embodiment_B, share_B2)

    def count(self, update: Update, seen: Sequence[tuple[Batch, Loss]]) -> None:
        """One step. A skipped one is counted, and leaves the sums alone: one NaN would spoil them all."""
        if not update.applied:
            self._skipped += 1
            return
        self._steps += 1
        self._loss += update.loss
        for batch, loss in seen:
            self.add(batch, loss)

    def close(self) -> dict[str, Any]:
        """Collective. Means since the last time, and starts anew. What had no weight is left out."""
        names = sorted(self.parts)
        sums = torch.cat([*(self.parts[name][None] for name in names), self._source_S2, self._robot_E2])
        mean = [a / b if b > 0 else None for a, b in self.ranks.sum(sums).tolist()]
        keys = [("parts", name) for name in names]
        keys += [("sources", name) for name in self.sources] + [("embodiments", name) for name in self.robots]
        row: dict[str, Any] = {"loss": None, "skipped": self._skipped, "parts": {}, "sources": {}, "embodiments": {}}
        for (group, name), value in zip(keys, mean, strict=True):
            if value is not None:
                row[group][name] = value
        if row["parts"]:
            row["loss"] = sum(self.scale[name] * value for name, value in row["parts"].items())
        if self._steps:
            row["loss"] = self._loss / self._steps
        self._clear()
        return row

    def _clear(self) -> None:
        for name in self.parts:
            self.parts[name] = torch.zeros_like(self.parts[name])
        device = self.ranks.device
        self._source_S2 = torch.zeros(len(self.sources), 2, dtype=torch.float64, device=device)
        self._robot_E2 = torch.zeros(len(self.robots), 2, dtype=torch.float64, device=device)
        self._steps, self._loss, self._skipped = 0, 0.0, 0


class Watch:
    """Who looks on. The command line draws a progress bar; a program may collect the rows."""

    def say(self, line: str) -> None:
        """A fact for people."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A line of the log, when it is written."""

    def step(self, done: int, steps: int) -> None:
        """After each step."""


class Log:
    """`log.jsonl`: one object a line, `kind` train, validation, skip, save or resume. Only rank 0 writes.

    Lines past the step that a run resumes from are dropped first: those steps will be done again.
    """

    def __init__(self, out: Path, ranks: Ranks, start: int, run: Run, watch: Watch) -> None:
        self.watch, self._file, self._board = watch, None, None
        self._trackers: tuple[Any, ...] = ()
        if not ranks.first:
            return
        self._path, part = out / "log.jsonl", out / ".log.jsonl.partial"
        with writing(self._path):
            if self._path.is_file():
                kept = [line for line in self._path.read_text().splitlines() if _step(line) <= start] if start else []
                part.write_text("".join(f"{line}\n" for line in kept))
                part.replace(self._path)  # whatever ends the process, or is refused, what was logged is there
            self._file = self._path.open("a", buffering=1)  # a line at a time, so that a killed run leaves whole lines
        if run.tensorboard:
            self._board = _summary_writer()(str(out / "tensorboard"), purge_step=start + 1)
        self._trackers = tuple(_tracker(name, out, run) for name in run.trackers)

    def write(self, kind: str, step: int, **facts: Any) -> None:
        """One JSON line, flushed, and its numbers to tensorboard."""
        if self._file is None:
            return
        row = {"kind": kind, "step": step, **_finite(facts)}
        with writing(self._path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in _scalars(facts):
                self._board.add_scalar(f"{kind}/{name}", value, step)
        for tracker in self._trackers:
            tracker.log({f"{kind}/{name}": value for name, value in _scalars(facts)}, step=step)
        self.watch.row(row)

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # each line was flushed: what is left is what was refused, and said
                self._file.close()
        if self._board is not None:
            self._board.close()
        for tracker in self._trackers:
            tracker.finish()


def memory_mb(device: torch.device) -> dict[str, float]:
    """Of this process, in MB: resident, and on a GPU the most that was allocated since the last time."""
    with open("/proc/self/statm") as file:
        found = {"rss_mb": int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6}
    if device.type == "cuda":
        found["gpu_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        torch.cuda.reset_peak_memory_stats(device)
    return found


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # torn by a crash of the machine


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}{name}", float(value)))
    return found


def _tracker(name: str, out: Path, run: Run) -> Any:
    """A run of wandb or trackio, which share an interface: project and name are the run's and its folder's; a resumed run goes on."""
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"the run is to be followed in {name}, which is not installed ({error}): pip install {name}") from error
    # wandb finds the run that is resumed by an id, trackio by its name.
    mine = {"dir": str(out), "id": hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]} if name == "wandb" else {}
    return library.init(project=run.name, name=out.name, config=run.to_json(), resume="allow", **mine)


def _summary_writer() -> Any:
    """torch's SummaryWriter, kept from importing TensorFlow, which takes 20 s and crashes beside Mesa.

    tensorboard looks for its module `notf`, which stands in builds without TensorFlow, before it imports the real thing.
    """
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
