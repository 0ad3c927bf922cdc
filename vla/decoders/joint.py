"""Several decoders trained together on one backbone; one of them acts.

The prefix runs once. Each decoder's tokens follow it in a pass of their own, so that no decoder sees another's: they share what the
prefix's keys and values hold, and nothing else.

Knowledge insulation (Driess et al. 2025, "Knowledge insulating vision-language-action models"): tokens train the backbone, and the
gradient of a flow expert beside them stops at what it reads of it: `Joint((Part("tokens", ...), Part("flow", ..., insulated=True)))`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla.backbones.base import AttentionShape, Backbone, Hidden, Tokens
from vla.decoders.base import ActionDecoder, with_evaluations
from vla.diffusion.base import Denoiser
from vla.errors import UnknownName, UserError
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Prior, Target


@dataclass(frozen=True)
class Part:
    """A decoder under a name. `scale`: of its loss. `insulated`: its loss does not train the backbone."""

    kind: ClassVar[str] = "decoder.joint.part"
    name: str
    decoder: Any
    scale: float = 1.0
    insulated: bool = False


@dataclass(frozen=True)
class Joint:
    """`acts`: the name of the part that samples ('': the last). A checkpoint acts with another part if its config.json says so."""

    kind: ClassVar[str] = "decoder.joint"
    parts: tuple[Part, ...]
    acts: str = ""

    def build(self, width: int, roster: Roster) -> JointDecoder:
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names) or not names or not all(name.isidentifier() for name in names):
            raise UserError(f"the parts of a joint decoder need distinct names of letters, digits and _; got {names}")
        if self.acts and self.acts not in names:
            raise UnknownName("part of the joint decoder", self.acts, names)
        return JointDecoder(self, width, roster)

    def with_evaluations(self, count: int) -> Joint:
        """Of the part that acts."""
        acts = self.acts or self.parts[-1].name
        changed = [replace(p, decoder=with_evaluations(p.decoder, count)) if p.name == acts else p for p in self.parts]
        return replace(self, parts=tuple(changed))


class JointDecoder(ActionDecoder):
    """Losses are named `part/loss`. `acts`, the name of the part that samples, may be set on a loaded model."""

    def __init__(self, config: Joint, width: int, roster: Roster) -> None:
        super().__init__()
        self.config = config
        self.acts = config.acts or config.parts[-1].name
        self.parts = nn.ModuleDict({part.name: part.decoder.build(width, roster) for part in config.parts})
        decoders: list[ActionDecoder] = list(self.parts.values())
        self.latent_codes = max(decoder.latent_codes for decoder in decoders)
        if len({decoder.latent_codes for decoder in decoders} - {0}) > 1:
            raise UserError("the parts of a joint decoder learn from different numbers of latent codes; a sample has one set")
        if len({decoder.takes_state for decoder in decoders}) > 1:
            raise UserError("the parts of a joint decoder must agree whether proprioception comes with the prefix (state_in_suffix)")
        if not all(decoder.shares_prefix for decoder in decoders):
            raise UserError("the parts of a joint decoder share one prefix, and one of these lets it see its own tokens (whole=True)")
        self.takes_state = decoders[0].takes_state
        self.text_tokens = max(decoder.text_tokens for decoder in decoders)
        self.fits = max(decoder.fits for decoder in decoders)
        self.reads = reduce(or_, (decoder.reads for decoder in decoders))

    @property
    def draws(self) -> bool:
        return self.parts[self.acts].draws

    def bind(self, backbone: Backbone) -> None:
        for decoder in self.parts.values():
            decoder.bind(backbone)

    def fit(self, target: Target) -> None:
        for decoder in self.parts.values():
            decoder.fit(target)

    def facts(self) -> dict[str, int]:
        return self.parts[self.acts].facts()

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {
            f"{part.name}/{name}": weight
            for index, part in enumerate(self.config.parts)
            for name, weight in self.parts[part.name].weights(target, noise.fold(index)).items()
        }

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        shared, losses = OncePerPrefix(backbone, prefix), []
        for index, part in enumerate(self.config.parts):
            view = shared.insulated(part.name) if part.insulated else shared
            losses.append(self.parts[part.name].loss(view, view.prefix, target, noise.fold(index)))
        named = list(zip(self.config.parts, losses, strict=True))
        return replace(
            losses[0],
            parts={f"{part.name}/{name}": value for part, loss in named for name, value in loss.parts.items()},
            scale={f"{part.name}/{name}": part.scale * value for part, loss in named for name, value in loss.scale.items()},
        )

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        return self.parts[self.acts].sample(backbone, prefix, like, noise.fold(self._acting()))

    def resume(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise, prior: Prior) -> Tensor:
        return self.parts[self.acts].resume(backbone, prefix, like, noise.fold(self._acting()), prior)

    def denoiser(self, backbone: Backbone, prefix: Tokens, like: ActionSpec) -> Denoiser:
        return self.parts[self.acts].denoiser(backbone, prefix, like)

    def _acting(self) -> int:
        return [part.name for part in self.config.parts].index(self.acts)


@dataclass(frozen=True)
class _Prefix(Tokens):
    """A prefix that remembers being continued."""

    def cat(self, other: Tokens) -> Tokens:
        joined = super().cat(other)
        return _Continued(*joined._core(), extras=joined.extras, given=joined.given, prefix=self, suffix=other)


@dataclass(frozen=True)
class _Continued(Tokens):
    prefix: Tokens | None = field(default=None)
    suffix: Tokens | None = field(default=None)


class OncePerPrefix:
    """Stands for a backbone while several decoders use it on one prefix, which runs once; a pass over prefix and suffix becomes one
    over the suffix after the prefix's cache. By the contract of backbones, both are equal. Give the decoders `prefix`.

    `hidden`: what that pass left, where it is known."""

    def __init__(self, backbone: Backbone, prefix: Tokens, hidden: Hidden | None = None) -> None:
        self.backbone, self.width = backbone, backbone.width
        self.prefix = _Prefix(*prefix._core(), extras=prefix.extras, given=prefix.given)
        self.hidden: Hidden = backbone(prefix) if hidden is None else hidden

    @property
    def attention(self) -> AttentionShape:
        return self.backbone.attention

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def insulated(self, name: str) -> OncePerPrefix:
        """The same for a decoder whose loss must not reach the backbone."""
        found = object.__new__(_Insulated)
        prefix = replace(self.prefix, x_BSD=self.prefix.x_BSD.detach())
        found.__dict__.update(backbone=self.backbone, width=self.width, prefix=prefix, hidden=self.hidden.detach(), name=name)
        return found

    def __call__(self, tokens: Tokens, cache: Hidden | None = None) -> Hidden:
        if cache is not None:
            return self.backbone(tokens, cache=cache)
        if tokens is self.prefix:
            return self.hidden
        assert isinstance(tokens, _Continued) and tokens.prefix is self.prefix, "a decoder's tokens are the prefix, or follow it"
        assert tokens.suffix is not None
        return behind(self.hidden, self.backbone(tokens.suffix, cache=self.hidden), tokens)


def behind(before: Hidden, after: Hidden, tokens: Tokens) -> Hidden:
    """One pass over all `tokens`, from one over the first of them and one over the rest, whose cache that was."""
    return replace(
        after,
        tokens=tokens,
        x_BSD=torch.cat([before.x_BSD, after.x_BSD], dim=1),
        layers=tuple(torch.cat(pair, dim=1) for pair in zip(before.layers, after.layers, strict=True)),
    )


class _Insulated(OncePerPrefix):
    name: str

    def __call__(self, tokens: Tokens, cache: Hidden | None = None) -> Hidden:
        if tokens is not self.prefix:
            raise UserError(
                f"part '{self.name}' runs its own tokens through the backbone, so its gradient cannot be kept from it; "
                "condition it on the backbone's states (CrossAttention, LayerKeysValues, Pooled with read='last')"
            )
        return self.hidden
