"""What a person sees of a run in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vla.train.log import Watch
from vla.train.probe import IGNORED
from vla.train.ranks import Ranks
from vla.train.report import duration


class Bar(Watch):
    """What is said goes to the terminal above a progress bar; without a terminal, a line of losses now and then."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._first = Ranks.number() == 0  # the others are silent
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not (self._first and self._console.is_terminal))
        self._task = self._bar.add_task("training", total=None, start=False)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        if self._first:
            self._console.print(line, markup=False, soft_wrap=True)

    def line(self, line: str) -> None:
        """What goes beside the bar, or on a line of its own where there is none."""
        if self._console.is_terminal:
            self._bar.update(self._task, description=line)
        else:
            self.say(line)

    def row(self, row: Mapping[str, Any]) -> None:
        """Shows a training row: step, loss, rate and the time left."""
        if row["kind"] == "train" and row["loss"] is not None:
            line = f"loss {row['loss']:.4f}, {row['samples_per_s']:.0f} samples/s"
            if self._console.is_terminal:
                self._bar.update(self._task, description=line)
            else:
                self.say(f"step {row['step']}: {line}, {row['seconds']:.0f} s, {duration(row['left_s'])} left")
            if "straggler" in row:
                own, middle = row["rank_slowest_s"], row["rank_median_s"]
                self.say(f"step {row['step']}: rank {row['straggler']} is slow: {own:.3g} s a step by itself, the median {middle:.3g} s")
        elif row["kind"] == "validation" and row["loss"] is not None:
            robots = ", ".join(f"{name} {value:.4f}" for name, value in row["embodiments"].items())
            self.say(f"step {row['step']}: held-out loss {row['loss']:.4f} ({robots})")
            if probe := row.get("probe"):
                verdict = "; it does not matter what it is told" if probe["rise"] < IGNORED else ""
                self.say(
                    f"  with shuffled instructions {probe['shuffled']:.4f} ({probe['rise']:+.0%}), blank {probe['blank']:.4f}{verdict}"
                )
        elif row["kind"] == "skip":
            self.say(f"step {row['step']}: skipped, {row['why']} (loss {row['loss']}, gradient norm {row['grad_norm']})")

    def step(self, done: int, steps: int) -> None:
        if self._bar.tasks[0].start_time is None:
            self._bar.start_task(self._task)
        self._bar.update(self._task, completed=done, total=steps)
