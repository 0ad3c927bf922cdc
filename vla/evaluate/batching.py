"""A policy called in batches whose size and order leave no trace in its answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Protocol, runtime_checkable

from vla.embodiment import Embodiment
from vla.errors import SchemaError, UserError
from vla.evaluate.baselines import Actor
from vla.types import Chunk, Continuation, Observation
from vla.unfamiliar import Unfamiliar

MAX_BATCH = 32
LEAST_BATCH = 2
"""A batch of one takes another path through the matrix product (a vector's), with other last bits: measured 8e-7 on a CPU."""


@runtime_checkable
class Continues(Protocol):
    """A policy whose chunks can follow from what is being executed; `vla.policy.Policy` is one."""

    def continue_batch(
        self, observations: Sequence[Observation], keys: Sequence[int], continuations: Sequence[Continuation | None]
    ) -> list[Chunk]: ...


@runtime_checkable
class Follows(Protocol):
    """A policy whose chunks depend on what was seen at the decision before; `vla.execute.selfguide.SelfGuided` is one."""

    def follow_batch(
        self, observations: Sequence[Observation], keys: Sequence[int], before: Sequence[Observation | None]
    ) -> list[Chunk]: ...


class Batcher:
    """Checks what the policy says before anything moves: for this robot, finite, of its width."""

    def __init__(self, policy: Actor, robot: Embodiment) -> None:
        self.policy, self.robot, self.unfamiliar = policy, robot, Unfamiliar.of(policy, robot)

    def act(
        self,
        observations: Sequence[Observation],
        keys: Sequence[int],
        rests: Sequence[Continuation | None] | None = None,
        before: Sequence[Observation | None] | None = None,
    ) -> list[Chunk]:
        """`rests`: what each chunk has to continue, if anything. Rows that continue and rows that do not are batches of their own.
        `before`: what was seen at the episode's decision before this one, None at its first."""
        rests, before = rests or [None] * len(observations), before or [None] * len(observations)
        found: dict[int, Chunk] = {}
        for continues in (False, True):
            rows = [row for row, rest in enumerate(rests) if (rest is not None) == continues]
            for start in range(0, len(rows), MAX_BATCH):
                part = rows[start : start + MAX_BATCH]
                seen, then = [observations[row] for row in part], [before[row] for row in part]
                found |= zip(part, self._act(seen, [keys[row] for row in part], [rests[row] for row in part], then), strict=True)
        return [found[row] for row in range(len(observations))]

    def _act(
        self, observations: list[Observation], keys: list[int], rests: list[Continuation | None], before: list[Observation | None]
    ) -> list[Chunk]:
        if self.unfamiliar is not None:
            for observation in observations:
                self.unfamiliar.look(observation)
        wanted = len(observations)
        padding = max(0, LEAST_BATCH - wanted)
        observations, keys, rests = observations + observations[:1] * padding, keys + keys[:1] * padding, rests + rests[:1] * padding
        if isinstance(self.policy, Follows):
            if rests[0] is not None:
                raise UserError("self-guidance does not continue a chunk; leave out --ensemble realtime or --self-guidance")
            chunks = self.policy.follow_batch(observations, keys, before + before[:1] * padding)[:wanted]
        elif rests[0] is None:
            chunks = self.policy.act_batch(observations, keys)[:wanted]
        elif isinstance(self.policy, Continues):
            chunks = self.policy.continue_batch(observations, keys, rests)[:wanted]
        else:
            raise UserError(f"{type(self.policy).__name__} cannot continue a chunk; leave out --ensemble realtime")
        for chunk in chunks:
            _check(chunk, self.robot)
        return chunks


def _check(chunk: Chunk, robot: Embodiment) -> None:
    found: tuple[str, Fraction] = (chunk.embodiment, chunk.rate_hz)
    if found != (robot.name, robot.rate_hz):
        raise SchemaError(f"the policy acts for '{found[0]}' at {found[1]} Hz; the suite has '{robot.name}' at {robot.rate_hz} Hz")
    robot.command.check(chunk.action_TA, f"{robot.name} chunk")


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: rows of a batch are then the same bits at every batch size of two and more (with two threads a batch of
    three was not), and the simulators keep the other cores."""
    torch = sys.modules.get("torch")
    if torch is None:  # a policy without torch
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
