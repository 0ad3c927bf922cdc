"""What ranks tell each other once a step, in one sum: the weights of the loss, who was asked to stop, who cannot go on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vla.errors import UserError
from vla.noise import Noise
from vla.train.engine import Engine
from vla.train.job import Job
from vla.train.ranks import Left
from vla.train.stop import Stop
from vla.types import Batch


class Agreement:
    """One for a run."""

    def __init__(self, engine: Engine, job: Job, stop: Stop) -> None:
        self.engine, self.job, self.stop = engine, job, stop
        self._last: Tensor | None = None

    def sum_weights(self, batches: Sequence[Batch], noises: Sequence[Noise]) -> tuple[dict[str, Tensor], bool]:
        """Collective. Weight of each part of the loss over all ranks and micro-batches; and whether any rank was asked to stop."""
        rows = [self.job.model.weights(batch, noise) for batch, noise in zip(batches, noises, strict=True)]
        names = sorted(rows[0])
        asked = rows[0][names[0]].new_tensor(float(bool(self.stop.requested)))
        self._last = torch.stack([*(sum(row[name] for row in rows) for name in names), asked])
        with self.engine.phases("communication"):
            summed = self.engine.ranks.sum(self._last)
        if not torch.isfinite(summed[-1]):
            raise Left("another rank could not go on; its error says why")
        return dict(zip(names, summed, strict=False)), bool(summed[-1] > 0)

    def told(self, items: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The items. Where this rank cannot have the next one (its data is gone, say), it spoils the sum that the others wait in."""
        try:
            yield from items
        except UserError:
            if self._last is not None:  # before the first step nobody knows the sum's size: the launcher ends the others
                self.engine.ranks.sum(torch.full_like(self._last, math.nan))
            raise
