"""Results as evaluations write them, without running any."""

from __future__ import annotations

from dataclasses import replace

from vla.evaluate.result import EvalResult, Row, episode_seed, git_commit, versions


def result(outcomes: dict[str, str], seed: int = 0, **changes) -> EvalResult:
    """`outcomes`: task -> one character per episode, "+" for success."""
    rows = tuple(
        Row(task, i, episode_seed(seed, task, i), kind == "+", 80, "success" if kind == "+" else "max_steps", float(kind == "+"))
        for task, kinds in outcomes.items()
        for i, kind in enumerate(kinds)
    )
    base = EvalResult(
        policy={"name": "p"},
        suite="s",
        embodiment="r",
        held_out=False,
        seed=seed,
        execute=10,
        ensemble="newest chunk",
        image_size=64,
        max_steps=dict.fromkeys(outcomes, 200),
        rows=rows,
        seconds=1.5,
        cpu_seconds=2.5,
        workers=2,
        time={"policy": 0.5},
        versions=versions(),
        commit=git_commit(),
    )
    return replace(base, **changes)
