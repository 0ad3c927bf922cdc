"""The model: a backbone, proprioception, and an action decoder. The only module that an engine wraps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.alignment import Align
from vla.backbones.base import Hidden, Tokens, by_length, one_of_few
from vla.backbones.remembered import Reads, hidden_of
from vla.decoders.base import summed
from vla.decoders.joint import OncePerPrefix, behind
from vla.errors import UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.state import StateTokens
from vla.types import Batch, Loss, Prior, Target


@dataclass(frozen=True)
class Model:
    """What a checkpoint says to build: the parts. Sizes that depend on the robots come with the roster. `state`: how proprioception
    enters (vla/state.py), unless the decoder takes it. `align`: pulls words and goal images together (`Run(goal_gap_s=...)`)."""

    kind: ClassVar[str] = "model.vla"
    backbone: Any
    decoder: Any
    state: Any = field(default_factory=StateTokens)
    align: Align | None = None

    def build(self, roster: Roster) -> VLA:
        return VLA(self, roster)


class VLA(nn.Module):
    """Batch -> loss (`forward`), or batch -> normalised action chunk (`sample`).

    Proprioception enters as one token per history frame, through a map per robot (vla/state.py). A source without a state has no such
    token. A decoder that takes the state itself finds it with the prefix (`Tokens.given`).
    """

    def __init__(self, config: Model, roster: Roster) -> None:
        super().__init__()
        self.config, self.roster = config, roster
        self.backbone = config.backbone.build()
        self.state_in: nn.Module | None = config.state.build(self.backbone.width, roster)
        self.decoder = _built(config.decoder, self.backbone.width, roster)
        self.decoder.bind(self.backbone)
        self.align = None if config.align is None else config.align.build(self.backbone.width)
        self.apart = False
        """Whether a batch may take as many passes as it has groups of lengths. Not where ranks must make the same passes (ZeRO-3)."""
        if self.decoder.takes_state:
            self.state_in = None

    def forward(self, batch: Batch, noise: Noise) -> Loss:
        """`noise` keyed by `batch.position_B`: the same loss whatever the rank or the neighbours."""
        assert batch.target is not None
        if batch.seen is not None:
            known = self._known(batch, batch.seen)
            return self.decoder.loss(known, known.prefix, batch.target, noise)
        prefix = self.prefix(batch)
        if self.align is None:
            return self._loss(prefix, batch.target, noise)
        assert batch.pair is not None, "the collate function of a model that aligns gives pairs"
        shared = OncePerPrefix(self.backbone, prefix)
        view, seen = (shared, shared.prefix) if self.decoder.shares_prefix else (self.backbone, prefix)
        loss = self.decoder.loss(view, seen, batch.target, noise)
        otherwise = self.backbone(self.prefix(replace(batch, inputs=batch.pair.inputs)))
        part = self.align(shared.hidden, otherwise, batch.pair.by_goal_B, batch.pair.paired_B)
        return replace(loss, parts={**loss.parts, "align": part}, scale={**loss.scale, "align": self.align.config.scale})

    def weights(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        """The weight of each part that `forward` will return; no forward pass."""
        assert batch.target is not None
        found = self.decoder.weights(batch.target, noise)
        return found if batch.pair is None else {**found, "align": batch.pair.paired_B.sum().float()}

    def sample(self, batch: Batch, noise: Noise) -> Tensor:
        """float32 (B, T, A) normalised actions."""
        return self.decoder.sample(self.backbone, self.prefix(batch), batch.spec, noise)

    def resume(self, batch: Batch, noise: Noise, prior: Prior) -> Tensor:
        """float32 (B, T, A) normalised actions that continue `prior`."""
        return self.decoder.resume(self.backbone, self.prefix(batch), batch.spec, noise, prior)

    def prefix(self, batch: Batch) -> Tokens:
        """Observation and proprioception as group-0 tokens."""
        tokens = self._with_state(self.backbone.embed(batch.inputs), batch)
        return tokens.padded(one_of_few(len(tokens))) if self.backbone.few_sizes else tokens

    def _loss(self, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """The decoder's; rows of much different lengths in passes of their own, so that robots of one camera do not pay for three."""
        groups = by_length(prefix.valid_BS) if self.apart and not self.backbone.few_sizes and not prefix.valid_BS.is_meta else []
        if len(groups) < 2:
            return self.decoder.loss(self.backbone, prefix, target, noise)
        losses = []
        for rows_N, length in groups:
            some = Noise(noise.key_B[rows_N], noise.seed)
            losses.append(self.decoder.loss(self.backbone, prefix.chosen(rows_N, length), target[rows_N], some))
        return summed(losses, torch.cat([rows_N for rows_N, _ in groups]))

    @property
    def reads(self) -> Reads:
        """What has to be known of a pass over the observation, so that it need not run: proprioception runs behind it."""
        return self.decoder.reads if self.state_in is None else replace(self.decoder.reads, keys_values=True, last=False)

    def _known(self, batch: Batch, seen: Mapping[str, Tensor]) -> OncePerPrefix:
        """The backbone on a prefix whose observation has run."""
        hidden: Hidden = hidden_of(seen, self.reads, self.backbone.attention.layers)
        prefix = self._with_state(hidden.tokens, batch)
        if self.state_in is not None:
            state = prefix.slice(len(hidden.tokens), len(prefix))
            hidden = behind(hidden, self.backbone(state, cache=hidden), prefix)
        return OncePerPrefix(self.backbone, prefix, hidden)

    def _with_state(self, seen: Tokens, batch: Batch) -> Tokens:
        valid_BF = batch.state_mask_BP.any(-1, keepdim=True).expand(batch.state_BFP.shape[:2])
        if self.state_in is None:
            return replace(seen, given={**seen.given, "state_BFP": batch.state_BFP, "state_valid_BF": valid_BF})
        x_BFD = self.state_in(batch.state_BFP.to(seen.x_BSD.dtype), batch.spec.embodiment_B)
        return self.config.state.join(seen, x_BFD, valid_BF)


def _built(config: Any, width: int, roster: Roster) -> Any:
    """UserError for a class that leaves out a method, which is a mistake of a plug-in's."""
    try:
        return config.build(width, roster)
    except TypeError as error:
        if "abstract" not in str(error):
            raise
        raise UserError(f"{config.kind}: {error}; docs/add-decoder.md says what each is for") from error
