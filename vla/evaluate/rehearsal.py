"""Rollouts to learn from: a policy in closed loop, in episodes that no evaluation draws, and what became of each of its chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vla.errors import UserError
from vla.evaluate.resolve import resolve
from vla.evaluate.result import EvalResult, call_key
from vla.evaluate.runner import Progress, evaluate
from vla.execute.value import Decisions, Remembering
from vla.policy import Policy
from vla.sim.suites import load_suite

DISCOUNT = 0.98
"""V-GPS's, there a control step; here a decision, so that a quick success is worth more than a slow one."""


@dataclass(frozen=True)
class Rehearsal:
    """`policy`: the sha256 of its manifest."""

    decisions: Decisions
    result: EvalResult
    policy: str


def rehearse(
    checkpoint: Path,
    suite: str,
    tasks: Sequence[str] = (),
    episodes: int = 40,
    seed: int = 0,
    *,
    execute: int | None = None,
    workers: int = 2,
    device: str = "cpu",
    python: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Rehearsal:
    """Runs `episodes` of each task; arguments as in `evaluate`. Raises UserError for a baseline, which sees nothing to learn from."""
    loaded = load_suite(suite)
    policy, facts, _ = resolve(checkpoint, loaded, device)
    assert isinstance(policy, Policy)
    watched = Remembering(policy)
    result = evaluate(
        watched,
        loaded,
        tasks,
        episodes,
        seed,
        execute=execute,
        image_size=facts.get("image_size"),
        workers=workers,
        python=python,
        progress=progress,
        learning=True,
    )
    return Rehearsal(_decisions(watched, result), result, facts["manifest_sha256"])


def _decisions(watched: Remembering, result: EvalResult) -> Decisions:
    states, actions, returns, episodes = [], [], [], []
    for number, row in enumerate(result.rows):
        calls = 0
        while (key := call_key(result.seed, row.task, row.episode, calls)) in watched.seen:
            state_D, action_TA = watched.seen[key]
            states.append(state_D)
            actions.append(action_TA)
            calls += 1
        returns += [DISCOUNT ** (calls - 1 - call) if row.success else 0.0 for call in range(calls)]
        episodes += [number] * calls
    if not states:
        raise UserError("no decision was taken in any episode; do the simulators run? `vla doctor` checks rendering")
    return Decisions(torch.stack(states), torch.stack(actions), torch.tensor(returns), torch.tensor(episodes))
