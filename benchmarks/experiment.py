"""What experiments of several trainings share: one folder each, stages that resume, and success with what the same episodes say."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import parser_of
from vla import arguments
from vla.demo.stages import Stage, State, run_stages
from vla.errors import UserError
from vla.evaluate.result import EvalResult, git_commit, versions
from vla.evaluate.statistics import compare_paired, wilson

NOISY = ("--noise-share", "0.5")
"""How demonstrations are collected, as in `make demo`."""
UNTOLD = ("out", "json", "cores")
"""What changes no figure of an experiment."""


def arguments_of(doc: str | None, name: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """What every experiment is asked beside its own questions; its folder is runs/<name>."""
    parser = parser_of(doc, epilog)
    parser.add_argument("--cores", type=int, default=2, help="stages side by side (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="of one experiment (default: %(default)s)")
    return parser


def same_settings(out: Path, settings: Mapping[str, Any], meaning: str = "") -> None:
    """A folder is of one experiment: others would choose other demonstrations, or compare what was trained otherwise."""
    path = out / "settings.json"
    if path.is_file() and (known := json.loads(path.read_text())) != settings:
        sys.exit(f"{out} was begun with {known}, not {settings}{meaning and f' ({meaning})'}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def run_all(plan: Sequence[Stage], out: Path, cores: int) -> State:
    """Runs what is not done yet, with a line where a stage ends and what is left by estimate; leaves with what a stage says is wrong."""
    seen: set[str] = set()

    def show(state: State) -> None:
        for name, done in state.done.items():
            if name not in seen:
                seen.add(name)
                print(f"[{state.elapsed_s:5.0f} s, about {state.remaining_s:.0f} s left] {name}: {done.seconds:.0f} s", file=sys.stderr)

    try:
        return run_stages(plan, out, cores, True, show)
    except UserError as error:
        sys.exit(f"error: {error}")


def command_line(module: str, args: argparse.Namespace, untold: Sequence[str] = UNTOLD) -> str:
    """What makes the figures again, anywhere."""
    return shlex.join(["python", "-m", module, "--json", *arguments.options(args, untold)])


def facts(states: Sequence[State]) -> dict[str, Any]:
    """When and by what it was made, and what its stages cost: seconds by the clock, which overlap, and CPU seconds."""
    stages = [stage for state in states for stage in state.done.values()]
    return {
        "date": date.today().isoformat(),
        "commit": git_commit(),
        "versions": versions(),
        "seconds": sum(stage.seconds for stage in stages),
        "cpu_seconds": sum(stage.cpu_seconds for stage in stages),
    }


def success(results: Sequence[EvalResult], bases: Mapping[str, Sequence[EvalResult]]) -> dict[str, Any]:
    """Of the evaluations of one training a seed: successes of all episodes with Wilson's interval, and against each of `bases`, which met
    the same episodes, how many turned out `better` and `worse`."""
    won = outcomes(results)
    interval = wilson(int(won.sum()), won.size)
    row: dict[str, Any] = {
        "successes": int(won.sum()),
        "episodes": won.size,
        "rate": float(won.mean()),
        "low": interval.low,
        "high": interval.high,
        "by_seed": won.sum(1).tolist(),
        "raw": ["".join("01"[int(success)] for success in one) for one in won],
    }
    for name, others in bases.items():
        assert [[r.seed for r in result.rows] for result in results] == [[r.seed for r in result.rows] for result in others]
        base = outcomes(others)
        better, worse, both = int((won & ~base).sum()), int((base & ~won).sum()), int((won & base).sum())
        compared = compare_paired(both, better, worse, won.size - both - better - worse)
        row[f"against_{name}"] = {"better": better, "worse": worse, **asdict(compared)}
    return row


def outcomes(results: Sequence[EvalResult]) -> np.ndarray:
    """bool (seeds, episodes)."""
    return np.array([[bool(row.success) for row in result.rows] for result in results])
