"""A recipe for a latent-action model: what `vla train` runs where RUN is a `LatentRun`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vla.config import check_types, to_json
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.device import device_here
from vla.errors import UserError
from vla.latent_action.checkpoint import load_latent, run_of
from vla.latent_action.model import LatentActionConfig, LatentActionModel
from vla.latent_action.report import REPORT, write_report
from vla.latent_action.state import refuse_changes
from vla.latent_action.train import Progress, train_latent


@dataclass(frozen=True)
class LatentRun:
    """`mixture`: path of a mixture file; neither actions nor states in it are looked at. `batch_size`: frame pairs per step.

    `threads`: of one forward pass on a CPU (0: as torch has it). `save_every`: steps between states to resume from (0: none).
    `min_perplexity_share`: of the vocabulary, below which a run stops in its second half. `device`: cpu, cuda, ...
    """

    name: str
    mixture: str
    steps: int
    batch_size: int = 64
    model: LatentActionConfig = field(default_factory=LatentActionConfig)
    learning_rate: float = 3e-3
    seed: int = 0
    threads: int = 0
    save_every: int = 200
    min_perplexity_share: float = 0.2
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_types(self)
        if self.steps < 1 or self.batch_size < 2 or min(self.threads, self.save_every) < 0:
            raise UserError(f"run '{self.name}': needs steps >= 1, batch_size >= 2, threads >= 0 and save_every >= 0")

    def check_first(self, first: Path | None) -> None:
        """UserError unless a first stage's folder is given exactly where the model has one."""
        if (first is None) != (self.model.first_stage is None):
            raise UserError(
                f"run '{self.name}' is the second of two stages: give the first one's folder with --init"
                if first is None
                else f"run '{self.name}' has no first stage; leave --init {first} away"
            )

    def train(
        self, out: Path, mixture: Mixture, progress: Progress | None = None, first: Path | None = None, resume: bool = False
    ) -> LatentActionModel:
        """Trains on the mixture's training episodes; writes `out`/model, log.jsonl, state/, health.json and codes.png.

        `first`: folder of the first stage, where the model has one. `resume`: go on from `out`/state, if there is one; of a run that is
        finished already the model is returned, and what was left of its report written.
        """
        finished, data = (out / "model").exists(), mixture.fingerprint()
        if finished and not resume:
            raise UserError(f"{out} holds a latent-action model already; choose another --out")
        if (out / "state").exists() and not resume:
            raise UserError(f"{out} holds a run that was not finished; go on with --resume, or choose another --out")
        try:
            device_here("cpu" if finished else self.device)
        except UserError as error:
            raise UserError(f"run '{self.name}': {error}; its recipe has a tiny variant for a CPU") from error
        if self.threads:
            torch.set_num_threads(self.threads)
        robots = {robot.name: robot for source in mixture.sources if (robot := source.dataset.info.robot)}
        pairs = Pipeline(mixture, robots, "train", self.seed, history_s=self.model.offsets_s, future_gap_s=self.model.gap_s)
        datasets = [source.dataset for source in mixture.sources]
        if finished:
            model = self._finished(out, data)
            if not all((out / name).is_file() for name in REPORT):
                write_report(out, model, datasets, pairs)
            return model
        model = train_latent(
            self.model,
            pairs.samples,
            self.steps,
            self.batch_size,
            self.seed,
            out,
            learning_rate=self.learning_rate,
            min_perplexity_share=self.min_perplexity_share,
            device=self.device,
            progress=progress,
            first=first,
            save_every=self.save_every,
            resume=resume,
            data=data,
        )
        write_report(out, model, datasets, pairs)
        return model

    def _finished(self, out: Path, data: Mapping[str, Any]) -> LatentActionModel:
        """The model in `out`. UnsafeChange where this run would have made another."""
        model = load_latent(out)
        mine = {"steps": self.steps, "batch": self.batch_size, "seed": self.seed, "learning_rate": self.learning_rate, "data": data}
        known = run_of(out / "model")
        refuse_changes(out, {**mine, "model": to_json(self.model)}, {**known, "model": to_json(model.config)})
        return model
