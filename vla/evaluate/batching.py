"""A policy called in batches whose size and order leave no trace in its answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

from vla.embodiment import Embodiment
from vla.errors import SchemaError
from vla.evaluate.baselines import Actor
from vla.types import Chunk, Observation

MAX_BATCH = 32
LEAST_BATCH = 2
"""A batch of one takes another path through the matrix product (a vector's), with other last bits: measured 8e-7 on a CPU."""


class Batcher:
    """Checks what the policy says before anything moves: for this robot, finite, of its width."""

    def __init__(self, policy: Actor, robot: Embodiment) -> None:
        self.policy, self.robot = policy, robot

    def act(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for start in range(0, len(observations), MAX_BATCH):
            chunks += self._act(list(observations[start : start + MAX_BATCH]), list(keys[start : start + MAX_BATCH]))
        return chunks

    def _act(self, observations: list[Observation], keys: list[int]) -> list[Chunk]:
        wanted = len(observations)
        padding = max(0, LEAST_BATCH - wanted)
        chunks = self.policy.act_batch(observations + observations[:1] * padding, keys + keys[:1] * padding)[:wanted]
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
