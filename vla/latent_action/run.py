"""A recipe for a latent-action model: what `vla train` runs where RUN is a `LatentRun`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from vla.config import check_types
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.errors import UserError
from vla.latent_action.model import LatentActionConfig, LatentActionModel
from vla.latent_action.train import Progress, train_latent


@dataclass(frozen=True)
class LatentRun:
    """`mixture`: path of a mixture file; neither actions nor states in it are looked at. `batch_size`: frame pairs per step.

    `threads`: of one forward pass on a CPU (0: as torch has it).
    """

    name: str
    mixture: str
    steps: int
    batch_size: int = 64
    model: LatentActionConfig = field(default_factory=LatentActionConfig)
    learning_rate: float = 3e-3
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.steps < 1 or self.batch_size < 2 or self.threads < 0:
            raise UserError(f"run '{self.name}': needs steps >= 1, batch_size >= 2 and threads >= 0")

    def train(self, out: Path, mixture: Mixture, progress: Progress | None = None) -> LatentActionModel:
        """Trains on the mixture's training episodes and writes `out`/model and `out`/log.jsonl."""
        if (out / "model").exists():
            raise UserError(f"{out} holds a latent-action model already; choose another --out")
        if self.threads:
            torch.set_num_threads(self.threads)
        robots = {robot.name: robot for source in mixture.sources if (robot := source.dataset.info.robot)}
        pairs = Pipeline(mixture, robots, "train", self.seed, future_gap_s=self.model.gap_s)
        return train_latent(
            self.model,
            pairs.samples,
            self.steps,
            self.batch_size,
            self.seed,
            out,
            learning_rate=self.learning_rate,
            progress=progress,
        )
