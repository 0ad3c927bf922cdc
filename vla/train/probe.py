"""Does the policy listen? The held-out loss with other instructions than the true ones, beside the plain one.

A policy can learn to act from the images alone, where they give the task away; then its loss does not care what it is told, and on a scene
with two possible tasks it does the one that it likes. Shuffled: each sample has the instruction of another one in its batch.
Blank: none. Same samples, same noise, so that the difference is the instruction's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vla.types import Batch, Sample

IGNORED = 0.01
"""Below this rise of the loss, as a share of it, under shuffled instructions, a reader is told that they make no difference."""


@dataclass(frozen=True)
class Probed:
    """A batch as it is, with shuffled and with blank instructions; `changed`, of its samples, got another text by shuffling."""

    plain: Batch
    shuffled: Batch
    blank: Batch
    changed: int

    def to(self, device: Any) -> Probed:
        return Probed(self.plain.to(device), self.shuffled.to(device), self.blank.to(device), self.changed)


def probing(collate: Callable[[list[Sample]], Batch]) -> Callable[[list[Sample]], Probed]:
    """A collate that makes all three."""

    def three(samples: list[Sample]) -> Probed:
        texts = shuffled([sample.observation.instruction for sample in samples])
        changed = sum(text != sample.observation.instruction for text, sample in zip(texts, samples, strict=True))
        return Probed(collate(samples), collate(_told(samples, texts)), collate(_told(samples, [""] * len(samples))), changed)

    return three


def shuffled(texts: Sequence[str]) -> list[str]:
    """Each is replaced by the next one, in a circle, that differs; where all are the same there is none."""
    count = len(texts)
    found = []
    for at, text in enumerate(texts):
        others = (texts[(at + step) % count] for step in range(1, count))
        found.append(next((other for other in others if other != text), text))
    return found


def listening(plain: float | None, shuffled_loss: float | None, blank: float | None, changed: float) -> dict[str, float]:
    """The probe's part of a line: the two losses, the share of samples whose text shuffling changed, and by how much of itself it
    raised the loss. {} where it changed none, or nothing has a label."""
    if plain is None or shuffled_loss is None or blank is None or not changed:
        return {}
    return {"shuffled": shuffled_loss, "blank": blank, "changed": changed, "rise": shuffled_loss / max(plain, 1e-12) - 1}


def _told(samples: Sequence[Sample], texts: Sequence[str]) -> list[Sample]:
    return [replace(sample, observation=replace(sample.observation, instruction=text)) for sample, text in zip(samples, texts, strict=True)]
