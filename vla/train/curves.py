"""A run in one picture, or several over one another: what `log.jsonl` says of losses, rates, gradients, time and the probe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.errors import UserError
from vla.evaluate.curves import COLOURS
from vla.train.clock import PHASES
from vla.train.report import duration

STYLES = ("-", "--", ":", "-.")
SMOOTH_FROM = 200
"""Lines of the log from which on a curve is drawn faintly, under its mean over a fiftieth of the run."""
SPLIT = (*PHASES, "other")


@dataclass(frozen=True)
class History:
    """What a run's folder says of it. `rows`: kind -> lines of the log, by step."""

    name: str
    steps: int
    rows: Mapping[str, list[dict[str, Any]]]

    @staticmethod
    def read(folder: Path) -> History:
        """Raises UserError where there is no run, or no step of it was logged. A last line that a crash tore is passed over."""
        if not (folder / "log.jsonl").is_file():
            raise UserError(f"{folder} is no run: it has no log.jsonl. Give the folder that `vla train` wrote (--out)")
        rows: dict[str, list[dict[str, Any]]] = {}
        lines = (folder / "log.jsonl").read_text().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows.setdefault(row["kind"], []).append(row)
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise UserError(f"{folder / 'log.jsonl'}, line {number}: not a line of a training log") from error
        if not rows.get("train"):
            raise UserError(f"{folder} has not logged a step yet; look again when it has")
        record = folder / "run.json"
        steps = json.loads(record.read_text()).get("steps", 0) if record.is_file() else 0
        return History(folder.name, steps, rows)

    def series(self, kind: str, *keys: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of what stands under `keys` in lines of a kind; lines without it are left out."""
        found = [(row["step"], _at(row, keys)) for row in self.rows.get(kind, ())]
        pairs = [(step, value) for step, value in found if isinstance(value, (int, float))]
        return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs], dtype=float)

    def names(self, kind: str, key: str) -> list[str]:
        """Of all that ever stood in the group `key`."""
        return sorted({name for row in self.rows.get(kind, ()) for name in row.get(key) or {}})


def summary(history: History) -> dict[str, str]:
    """Facts of a run for a table's row."""
    last = history.rows["train"][-1]
    held = (history.rows.get("validation") or [{}])[-1]
    step_s = last.get("step_s")
    slow = {row["straggler"] for row in history.rows["train"] if "straggler" in row}
    return {
        "run": history.name,
        "step": f"{last['step']:,} of {history.steps:,}" if history.steps else f"{last['step']:,}",
        "loss": _number(last.get("loss")),
        "held out": _number(held.get("loss")),
        "shuffled": f"{held['probe']['rise']:+.0%}" if held.get("probe") else "-",
        "samples/s": _number(last.get("samples_per_s"), 3),
        "MFU": f"{last['mfu']:.0%}" if "mfu" in last else "-",
        "waits for data": f"{last.get('data_s', 0.0) / step_s:.0%}" if step_s else "-",
        "skipped": str(sum(row.get("skipped", 0) for row in history.rows["train"])),
        "slow ranks": ", ".join(map(str, sorted(slow))) or "-",
        "time": duration(last.get("seconds", 0.0)),
    }


def save_curves(path: Path, histories: Sequence[History]) -> None:
    """A PNG of six plots. With several runs each has a colour; what else a plot tells apart has line styles."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'vla[show]'") from error
    figure = Figure(figsize=(16, 8.5), layout="constrained")
    draw = (_losses, _sources, _rates, _gradients, _times, _probes)
    for axes, plot in zip(figure.subplots(2, 3).flat, draw, strict=True):
        plot(axes, histories)
        axes.set_xlabel("step")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        labels = axes.get_legend_handles_labels()[1]
        if labels:
            axes.legend(frameon=False, fontsize=8, ncols=2 if len(labels) > 5 else 1)
        else:
            axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color="gray")
    figure.savefig(path, dpi=110)


def _losses(axes: Any, histories: Sequence[History]) -> None:
    axes.set_title("loss; held out as dots")
    for history, colour in _coloured(histories):
        _line(axes, history.series("train", "loss"), history.name, colour)
        x, y = history.series("validation", "loss")
        if len(x):
            axes.plot(x, y, "o--", color=colour, markersize=4, linewidth=0.8, label=f"{history.name}, held out")
    _logarithmic(axes)


def _sources(axes: Any, histories: Sequence[History]) -> None:
    axes.set_title("loss by source")
    _group(axes, histories, "sources")
    _logarithmic(axes)


def _rates(axes: Any, histories: Sequence[History]) -> None:
    axes.set_title("learning rate")
    for history, colour in _coloured(histories):
        _line(axes, history.series("train", "lr"), history.name, colour)


def _gradients(axes: Any, histories: Sequence[History]) -> None:
    axes.set_title("gradient norm before clipping")
    for history, colour in _coloured(histories):
        name, colour = (history.name, colour) if len(histories) > 1 else ("all", "black")
        _line(axes, history.series("train", "grad_norm"), name, colour)
    if len(histories) == 1:
        _group(axes, histories, "grad_norms")
    _logarithmic(axes)


def _times(axes: Any, histories: Sequence[History]) -> None:
    axes.set_title("seconds a step")
    if len(histories) == 1:
        found = [histories[0].series("train", f"{name}_s") for name in SPLIT]
        if all(len(x) == len(found[0][0]) > 0 for x, _ in found):
            x = np.concatenate([[0], found[0][0]])  # a line holds what was since the one before
            axes.stackplot(x, [np.concatenate([y[:1], y]) for _, y in found], labels=SPLIT, colors=COLOURS, alpha=0.85, step="pre")
        return
    for history, colour in _coloured(histories):
        _line(axes, history.series("train", "step_s"), history.name, colour)
        _line(axes, history.series("train", "data_s"), f"{history.name}, data", colour, "--")


def _probes(axes: Any, histories: Sequence[History]) -> None:
    axes.set_title("held-out loss by what is said")
    for history, colour in _coloured(histories):
        said = (("as it is", ("loss",)), ("shuffled", ("probe", "shuffled")), ("blank", ("probe", "blank")))
        if not len(history.series("validation", "probe", "rise")[0]):
            continue
        for (name, keys), style in zip(said, STYLES, strict=False):
            x, y = history.series("validation", *keys)
            axes.plot(x, y, style, color=colour, marker="o", markersize=4, label=f"{history.name}, {name}")
    _logarithmic(axes)


def _group(axes: Any, histories: Sequence[History], key: str) -> None:
    names = sorted({name for history in histories for name in history.names("train", key)})
    for history, colour in _coloured(histories):
        for number, name in enumerate(names):
            series = history.series("train", key, name)
            if len(histories) == 1:
                _line(axes, series, name, COLOURS[number % len(COLOURS)])
            else:
                _line(axes, series, f"{history.name}, {name}", colour, STYLES[number % len(STYLES)])


def _line(axes: Any, series: tuple[np.ndarray, np.ndarray], label: str, colour: str, style: str = "-") -> None:
    x, y = series
    if len(x) > SMOOTH_FROM:
        axes.plot(x, y, style, color=colour, linewidth=0.6, alpha=0.25)
        window = len(x) // 50
        x, y = x[window - 1 :], np.convolve(y, np.ones(window) / window, mode="valid")
    if len(x):
        axes.plot(x, y, style, color=colour, linewidth=1.4, marker="." if len(x) < 3 else None, label=label)


def _logarithmic(axes: Any) -> None:
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()] or [np.zeros(0)])
    if len(values) and values.min() > 0:
        axes.set_yscale("log")


def _coloured(histories: Sequence[History]) -> list[tuple[History, str]]:
    return [(history, COLOURS[number % len(COLOURS)]) for number, history in enumerate(histories)]


def _at(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"
