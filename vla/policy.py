"""A checkpoint that acts: observations in, action chunks in physical units out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vla.checkpoint import Contents, load_model
from vla.errors import SchemaError, UserError
from vla.model import VLA
from vla.noise import Noise
from vla.types import Chunk, Observation


class Policy:
    """`Policy.load(folder).act(observation)`. Every chunk is finite and within the robot's limits, or an error is raised."""

    def __init__(self, contents: Contents, model: VLA, seed: int = 0) -> None:
        self.contents, self.model, self.seed = contents, model.eval(), seed
        self.collate = contents.collate(model)
        self._robots = {robot.name: robot for robot in contents.embodiments}
        self._calls = 0

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", seed: int = 0) -> Policy:
        return Policy(*load_model(folder, device), seed=seed)

    def act(self, observation: Observation) -> Chunk:
        """One chunk; successive calls draw fresh noise."""
        self._calls += 1
        return self.act_batch([observation], [self._calls])[0]

    def facts(self) -> dict[str, float]:
        """What sampling has met so far and a result should state, such as the share of chunks whose codes needed repair."""
        return self.model.decoder.facts()

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        """One chunk per observation. `keys` seed each row's noise: a row's chunk does not depend on the others in the batch."""
        chunks = []
        for outcome in self.try_batch(observations, keys):
            if isinstance(outcome, UserError):
                raise outcome
            chunks.append(outcome)
        return chunks

    @torch.inference_mode()
    def try_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk | UserError]:
        """As `act_batch`, but a row whose actions may not be sent is an error in its place, and the others keep theirs."""
        for observation in observations:
            if not np.isfinite(observation.state).all():
                raise SchemaError(f"{observation.embodiment}: the observed state holds NaN or infinity")
        device = next(self.model.parameters()).device
        batch = self.collate.observations(observations).to(device)
        for name in {observation.embodiment for observation in observations}:
            self._robots[name].bounds()  # refused before the model runs, not after
        noise = Noise(torch.tensor(keys, dtype=torch.int64, device=device), self.seed)
        action_BTA = self.model.sample(batch, noise).cpu().numpy().astype(np.float64)
        return [self._outcome(obs, action_TA) for obs, action_TA in zip(observations, action_BTA, strict=True)]

    def _outcome(self, observation: Observation, action_TA: np.ndarray) -> Chunk | UserError:
        try:
            return self._chunk(observation, action_TA)
        except UserError as error:
            return error

    def _chunk(self, observation: Observation, action_TA: np.ndarray) -> Chunk:
        robot = self._robots[observation.embodiment]
        normal_TA = action_TA[: robot.horizon, : robot.action.size]
        learned_TA = self.contents.normalizers[robot.name].action.denormalize(normal_TA)
        return Chunk(robot.limit(robot.decode(learned_TA, observation.state[-1])), robot.name, robot.rate_hz)
