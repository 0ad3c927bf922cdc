"""Where the time of a step goes, without stopping the device to ask.

On a CPU a phase is the wall time between its ends. On a GPU kernels run after the call that asked for them, so a phase is the time
between two events on its stream; they are read once a line of the log, when all but the last have long passed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla.train.ranks import Ranks

PHASES = ("data", "forward", "backward", "optimizer", "communication")
"""What a step is made of; the rest of it is `other`. Validating and saving are timed too, and belong to no step."""
BETWEEN = ("validation", "save")
MOST_MARKS = 1000
"""Events kept before they are read, about a hundred steps: a run that writes few lines must not collect them without end."""
STRAGGLES = 1.5
"""A rank is named that needs so many times the median of all."""


class Phases:
    """Seconds per named phase since the last `take`. A phase within another counts for itself, and not for the outer one."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._open: list[str] = []
        self._marks: list[tuple[str, Any]] = []
        """(the phase that begins, when): from one mark to the next is one phase."""
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._mark(name)
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            self._mark(self._open[-1] if self._open else "other")

    def take(self) -> dict[str, float]:
        """Seconds per phase, and starts anew. On a GPU, waits for what it was asked to do so far."""
        self._mark(self._open[-1] if self._open else "other")
        if self._cuda:
            self._read()
        found, self._seconds = self._seconds, {}
        return found

    def _mark(self, name: str) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
            if len(self._marks) > MOST_MARKS:
                self._read()
            return
        now = time.perf_counter()
        if self._marks:
            before, began = self._marks[0]
            self._seconds[before] = self._seconds.get(before, 0.0) + now - began
        self._marks = [(name, now)]

    def _read(self) -> None:
        self._marks[-1][1].synchronize()
        for (name, began), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            self._seconds[name] = self._seconds.get(name, 0.0) + began.elapsed_time(ended) / 1e3
        self._marks = self._marks[-1:]


class TokenCount:
    """Tokens that went through a backbone in training: valid ones, prefix and suffix. Kept on the device until asked for."""

    def __init__(self, backbone: nn.Module, device: torch.device) -> None:
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._backbone = backbone
        self._hook = backbone.register_forward_pre_hook(self._seen, with_kwargs=True)

    def take(self) -> Tensor:
        """The count since the last time, as a float64 scalar."""
        found = self._count.double()
        self._count = torch.zeros_like(self._count)
        return found

    def close(self) -> None:
        self._hook.remove()

    def _seen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens: Any = args[0] if args else kwargs.get("tokens")
        if module.training and hasattr(tokens, "valid_BS"):
            self._count += tokens.valid_BS.sum()


@dataclass(frozen=True)
class Pace:
    """What the numbers of a lap are measured against. `flops`: of one sample forward and backward (None: not known). `peak_flops`: per
    second, of one device (None: not known). `waits`: phases in which this engine may be waiting for other ranks."""

    batch_size: int
    flops: float | None = None
    peak_flops: float | None = None
    waits: tuple[str, ...] = ("communication",)


class Clock:
    """Seconds of a run over all its starts (`total`), and what the steps since the last line were spent on (`lap`)."""

    def __init__(self, phases: Phases, before_s: float, step: int, backbone: nn.Module, ranks: Ranks) -> None:
        self.phases, self._ranks, self._before_s = phases, ranks, before_s
        self._tokens = TokenCount(backbone, ranks.device)
        self._began = self._lap_began = time.perf_counter()
        self._lap_step = step
        phases.take()

    @property
    def total(self) -> float:
        return self._before_s + time.perf_counter() - self._began

    def waiting(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items, with the time until each arrives counted as `data`."""
        while True:
            with self.phases("data"):
                item = next(items, None)
            if item is None:
                return
            yield item

    def lap(self, step: int, steps: int, pace: Pace) -> dict[str, Any]:
        """Collective. What goes into a line of the log: seconds per step and phase (of this rank), rates (of all), who straggles."""
        spent = self.phases.take()
        now = time.perf_counter()
        between_s = sum(spent.get(name, 0.0) for name in BETWEEN)
        # A lap is never empty but for a line right after another, whose figures mean little.
        wall_s, done = max(now - self._lap_began - between_s, 1e-9), max(step - self._lap_step, 1)
        self._lap_began, self._lap_step = now, step
        known_s = sum(spent.get(name, 0.0) for name in PHASES)
        own_s = (wall_s - sum(spent.get(name, 0.0) for name in pace.waits)) / done
        share = torch.zeros(self._ranks.world + 1, dtype=torch.float64, device=self._ranks.device)
        share[self._ranks.rank], share[-1] = own_s, self._tokens.take()
        *own_R, tokens = self._ranks.sum(share).tolist()
        rate = done * pace.batch_size / wall_s
        row: dict[str, Any] = {
            "seconds": self.total,
            "step_s": wall_s / done,
            **{f"{name}_s": spent.get(name, 0.0) / done for name in PHASES},
            "compute_s": (wall_s - spent.get("data", 0.0)) / done,
            "other_s": max(wall_s - known_s, 0.0) / done,
            "samples_per_s": rate,
            "tokens_per_s": tokens / wall_s,
            "left_s": (steps - step) * wall_s / done,
        }
        if between_s:
            row |= {f"{name}_total_s": spent[name] for name in BETWEEN if name in spent}
        if pace.flops is not None:
            achieved = pace.flops * rate / self._ranks.world
            row["tflops_per_s"] = achieved / 1e12
            if pace.peak_flops is not None:
                row["mfu"] = achieved / pace.peak_flops
        return row | (slowest(own_R) if self._ranks.world > 1 else {})

    def close(self) -> None:
        self._tokens.close()


def slowest(own_R: list[float]) -> dict[str, Any]:
    """Of the seconds that each rank spent by itself on a step: the median, the slowest and, where that is far behind, its name."""
    worst = max(range(len(own_R)), key=own_R.__getitem__)
    middle = statistics.median_low(own_R)  # the lower one: of two ranks, else, the slow one would be measured against itself
    row: dict[str, Any] = {"rank_median_s": middle, "rank_slowest_s": own_R[worst], "rank_slowest": worst}
    return row | ({"straggler": worst} if own_R[worst] > STRAGGLES * middle else {})
