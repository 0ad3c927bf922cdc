"""A checkpoint that acts: observations in, action chunks in physical units out. No part of training is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.capture import Captured
from vla.checkpoint import Contents, acting, load_model, save_checkpoint
from vla.compiled import compile_layers
from vla.continuing import prior_of
from vla.embodiment import nearest_rotations
from vla.errors import SchemaError, UserError
from vla.float8 import multiplies, to_float8
from vla.fused import fuse, join_norms
from vla.model import VLA
from vla.noise import Noise
from vla.types import Batch, Chunk, Continuation, Observation, Prior


class Policy:
    """`Policy.load(folder).act(observation)`. Every chunk is finite and within the robot's limits, or an error is raised."""

    def __init__(self, contents: Contents, model: VLA, seed: int = 0) -> None:
        self.contents, self.model, self.seed = contents, model.eval(), seed
        self.collate = contents.collate(model)
        self._robots = {robot.name: robot for robot in contents.embodiments}
        self._calls = 0
        self._captured: Captured | None = None
        self._rounded = False

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", seed: int = 0, verify: bool = False, evaluations: int | None = None) -> Policy:
        """From the folder of a checkpoint, or of a run (its newest). `verify`: also act as it did when it was exported, or Damaged.
        `evaluations`: of the network for a chunk, instead of as many as the checkpoint says, where its decoder denoises or unmasks."""
        if verify and evaluations is not None:
            raise UserError("with other evaluations it does not act as it did when it was exported; verify it without them")
        contents, model = load_model(folder, device, evaluations)
        if contents.untrained:
            raise UserError(f"{folder} has learned no actions yet. First `vla train RECIPE.py --init {folder}`.")
        policy = Policy(contents, model, seed=seed)
        if verify:
            from vla.golden import check

            check(acting(Path(folder)), policy.contents, policy._verifying)
        return policy

    def optimize_for_inference(self, float8: bool = False, compiled: bool = False) -> Policy:
        """Makes calls quicker; the actions stay what they were, up to rounding. Maps of one input become one product (vla/fused.py), and on
        a GPU each shape of batch is captured at its first call, which takes longer, and replayed from then on (vla/capture.py). Not
        for a policy that is trained on.

        `float8`: maps in 8 bits instead (vla/float8.py), whose actions are close and not the same: evaluate it so. UserError where the
        device has no such products.

        `compiled`: torch.compile on the layers instead of joined maps (vla/compiled.py); it needs a C++ compiler, and the first call of
        each size takes up to a minute.
        """
        device = next(self.model.parameters()).device
        if compiled:
            if float8:
                raise UserError("8-bit products are not compiled; take one of float8 and compiled")
            compile_layers(self.model)
        elif float8:
            if not multiplies(device):
                raise UserError(f"float8 needs a GPU of compute capability 8.9 or later, not {device}; leave it out")
            to_float8(self.model)
            join_norms(self.model)
            self._rounded = True
        else:
            fuse(self.model)
        if device.type == "cuda":
            self._captured = Captured(self.model)
        return self

    @staticmethod
    def from_pretrained(
        source: str | Path,
        revision: str = "",
        device: str = "cpu",
        seed: int = 0,
        verify: bool = False,
        evaluations: int | None = None,
    ) -> Policy:
        """`load` of a local folder, or of a hub id at a `revision`, which must be a commit: a name alone may change under you."""
        from vla.hub import fetch_folder

        return Policy.load(fetch_folder(source, revision), device, seed, verify, evaluations)

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int | None = None) -> Path:
        """Writes a checkpoint that acts alone, with golden actions; from 5 GB on in several files, unless said otherwise."""
        if self._rounded:
            raise UserError("the weights of this policy were rounded to 8 bits: save it before `optimize_for_inference(float8=True)`")
        from vla.golden import GOLDEN, record
        from vla.weights import MAX_SHARD_BYTES

        golden = {GOLDEN: record(self.contents, self._verifying)}
        return save_checkpoint(Path(folder), self.contents, self.model.state_dict(), max_shard_bytes or MAX_SHARD_BYTES, golden)

    def push_to_hub(self, repo_id: str, private: bool = False, message: str = "", api: Any = None) -> str:
        """Uploads what `save_pretrained` writes, and returns the commit. For a model card and scores: `vla export checkpoint`."""
        import tempfile

        from vla.hub import push_folder

        with tempfile.TemporaryDirectory() as folder:
            return push_folder(self.save_pretrained(Path(folder) / "model"), repo_id, private=private, message=message, api=api)

    def act(self, observation: Observation) -> Chunk:
        """One chunk; successive calls draw fresh noise."""
        self._calls += 1
        return self.act_batch([observation], [self._calls])[0]

    def facts(self) -> dict[str, int]:
        """Counts of what sampling has met so far, such as chunks whose codes needed repair (`ActionDecoder.facts`)."""
        return self.model.decoder.facts()

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        """One chunk per observation. `keys` seed each row's noise: a row's chunk does not depend on the others in the batch."""
        return all_good(self.try_batch(observations, keys))

    @torch.inference_mode()
    def try_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk | UserError]:
        """As `act_batch`, but a row whose actions may not be sent is an error in its place, and the others keep theirs."""
        return self._decided(observations, keys)

    def continue_batch(
        self, observations: Sequence[Observation], keys: Sequence[int], continuations: Sequence[Continuation | None]
    ) -> list[Chunk]:
        """Chunks that begin with what the robot does meanwhile, and follow from it (`Continuation`, docs/execute.md); a row without one is
        as in `act_batch`."""
        chunks: dict[int, Chunk] = {}
        for warm in {None if c is None else c.warm for c in continuations}:
            rows = [row for row, c in enumerate(continuations) if (None if c is None else c.warm) == warm]
            seen, chosen = [observations[row] for row in rows], [keys[row] for row in rows]
            rest = [c for row in rows if (c := continuations[row]) is not None]
            chunks |= zip(rows, self._continued(seen, chosen, rest) if rest else self.act_batch(seen, chosen), strict=True)
        return [chunks[row] for row in range(len(observations))]

    @torch.no_grad()  # and not inference_mode: a denoiser is guided through its own derivative
    def _continued(self, observations: Sequence[Observation], keys: Sequence[int], rest: Sequence[Continuation]) -> list[Chunk]:
        shape = (self.model.roster.horizon, self.model.roster.action_width)
        prior = prior_of(self._robots, self.contents.normalizers, shape, observations, rest)
        return all_good(self._decided(observations, keys, prior))

    def _decided(self, observations: Sequence[Observation], keys: Sequence[int], prior: Prior | None = None) -> list[Chunk | UserError]:
        """Chunks in physical units, or why a row has none."""
        return self._outcomes(observations, self._sample(observations, keys, prior))

    def _sample(self, observations: Sequence[Observation], keys: Sequence[int], prior: Prior | None = None) -> Tensor:
        """Normalised actions, float32 (B, T, A), on the model's device."""
        batch, noise = self.prepared(observations, keys)
        if prior is None:
            return (self._captured or self.model).sample(batch, noise)
        return self.model.resume(batch, noise, prior.to(noise.key_B.device))

    def prepared(self, observations: Sequence[Observation], keys: Sequence[int]) -> tuple[Batch, Noise]:
        """What the model sees of observations that were checked, and the noise of their keys, on its device."""
        for observation in observations:
            if not np.isfinite(observation.state).all():
                raise SchemaError(f"{observation.embodiment}: the observed state holds NaN or infinity")
            if len(observation.offsets_s) != len(self.contents.offsets_s):
                raise SchemaError(
                    f"{len(observation.offsets_s)} frames given; this checkpoint sees {len(self.contents.offsets_s)}, at "
                    f"{list(self.contents.offsets_s)} s relative to now"
                )
        device = next(self.model.parameters()).device
        batch = self.collate.observations(observations).to(device)
        for name in {observation.embodiment for observation in observations}:
            self._robots[name].bounds()  # refused before the model runs, not after
        return batch, Noise(torch.tensor(keys, dtype=torch.int64, device=device), self.seed)

    def _outcomes(self, observations: Sequence[Observation], action_BTA: Tensor) -> list[Chunk | UserError]:
        rows = action_BTA.cpu().numpy().astype(np.float64)
        return [self._outcome(obs, action_TA) for obs, action_TA in zip(observations, rows, strict=True)]

    def _outcome(self, observation: Observation, action_TA: np.ndarray) -> Chunk | UserError:
        try:
            return self._chunk(observation, action_TA)
        except UserError as error:
            return error

    def _verifying(self, observations: Sequence[Observation], keys: Sequence[int]) -> list[Chunk]:
        """`act_batch` under seed 0, whatever this policy's: golden actions must not depend on it."""
        return Policy(self.contents, self.model).act_batch(observations, keys)

    def _chunk(self, observation: Observation, action_TA: np.ndarray) -> Chunk:
        robot = self._robots[observation.embodiment]
        normal_TA = action_TA[: robot.horizon, : robot.action.size]
        learned_TA = nearest_rotations(self.contents.normalizers[robot.name].action.denormalize(normal_TA), robot.action)
        return Chunk(robot.limit(robot.decode(learned_TA, observation.state[-1])), robot.name, robot.rate_hz)


def all_good(outcomes: Sequence[Chunk | UserError]) -> list[Chunk]:
    """The chunks, or the first error among them raised."""
    chunks = []
    for outcome in outcomes:
        if isinstance(outcome, UserError):
            raise outcome
        chunks.append(outcome)
    return chunks
