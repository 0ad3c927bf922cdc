"""Latent actions said word by word, and what they mean for a robot (UniVLA, Bu et al. 2025, section III-C).

Codes are predicted one after the other, each given those before it, as a language model says words. The readout pools what the model saw
into one vector by attention, which then asks the states that said the codes; one map a robot makes the whole chunk of that, within -1..1.
Facts: `predict_latent_action` and `ActionDecoderHead` of OpenDriveLab/UniVLA. `LatentActions` has queries in place of words.

Where a sample has no codes, the readout learns from those that the model says itself, as it will have to when it acts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Backbone, Hidden, Tokens, suffix_tokens
from vla.backbones.remembered import Reads
from vla.decoders.base import ActionDecoder, make_loss
from vla.noise import Noise
from vla.roster import Roster
from vla.types import ActionSpec, Loss, Target


@dataclass(frozen=True)
class LatentWords:
    """`codes`: latent actions per chunk, `vocabulary`: entries of the codebook; as in the model that labelled the data.

    `readout_width`, `heads`, `mlp_ratio`: of the attention pooling. `temperature`: 0 says the likeliest code (UniVLA draws at 0.75).
    `one_before`: what is pooled are the tokens one before the image's, which is where UniVLA's slice falls, as it counts from the token
    that begins the sequence.
    """

    kind: ClassVar[str] = "decoder.latent_words"
    codes: int = 4
    vocabulary: int = 16
    heads: int = 8
    readout_width: int = 512
    mlp_ratio: int = 4
    latent_scale: float = 1.0
    temperature: float = 0.0
    one_before: bool = False

    def build(self, width: int, roster: Roster) -> LatentWordsDecoder:
        return LatentWordsDecoder(self, width, roster)


class LatentWordsDecoder(ActionDecoder):
    """A causal suffix start, c_0, ..., c_{N-2} that predicts c_0, ..., c_{N-1}; its states are what the readout asks."""

    reads = Reads(layers=())

    def __init__(self, config: LatentWords, width: int, roster: Roster) -> None:
        super().__init__()
        self.config, self.latent_codes, self.start_id = config, config.codes, config.vocabulary
        self.code_in = nn.Embedding(config.vocabulary + 1, width)
        nn.init.normal_(self.code_in.weight, std=0.5)
        self.head = nn.Linear(width, config.vocabulary)
        self.seen = _Pool(width, config)
        self.said = _Pool(width, config)
        size, inner = (len(roster), roster.horizon), config.readout_width
        bound = 1 / math.sqrt(inner)
        self.out_ETIA = nn.Parameter(torch.empty(*size, inner, roster.action_width).uniform_(-bound, bound))
        self.out_ETA = nn.Parameter(torch.zeros(*size, roster.action_width))
        self.roster_axes = {"out_ETIA": ("E", "T", None, "A"), "out_ETA": ("E", "T", "A")}

    @property
    def draws(self) -> bool:
        return self.config.temperature > 0

    def weights(self, target: Target, noise: Noise) -> Mapping[str, Tensor]:
        return {"l1": target.label_BTA.sum().float(), "latent": target.has_latent_B.sum().float() * self.config.codes}

    def loss(self, backbone: Backbone, prefix: Tokens, target: Target, noise: Noise) -> Loss:
        """Codes by cross-entropy wherever there are some, actions by L1 wherever they are labelled."""
        cache = backbone(prefix)
        with torch.no_grad():  # on every rank, whatever its samples have: a pass that some skip would hang ZeRO
            own_BN, _ = self._say(backbone, prefix, cache.detach(), None)
        code_BN = torch.where(target.has_latent_B[:, None], target.latent_BN, own_BN)
        shown_BN = F.pad(code_BN[:, :-1], (1, 0), value=self.start_id)
        state_BND = backbone(self._places(prefix, self.code_in(shown_BN)), cache=cache).last(self.config.codes)
        surprise_BN = F.cross_entropy(self.head(state_BND).float().transpose(1, 2), target.latent_BN, reduction="none")
        error_BTA = (self._read(cache, state_BND, target.spec) - target.action_BTA).abs()
        parts = {
            "l1": (error_BTA, target.label_BTA),
            "latent": (surprise_BN, target.has_latent_B[:, None].expand_as(surprise_BN)),
        }
        return make_loss(parts, {"l1": 1.0, "latent": self.config.latent_scale})

    def sample(self, backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        cache = backbone(prefix)
        _, state_BND = self._say(backbone, prefix, cache, noise)
        return (self._read(cache, state_BND, like) * like.mask_BTA).float()

    def _say(self, backbone: Backbone, prefix: Tokens, cache: Hidden, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Codes int64 (B, N), and the states that said them (B, N, D). `noise` None: the likeliest ones."""
        B, N = len(prefix.x_BSD), self.config.codes
        places = self._places(prefix, prefix.x_BSD.new_zeros(B, N, prefix.x_BSD.shape[-1]))
        shown_B1 = torch.full((B, 1), self.start_id, device=prefix.x_BSD.device)
        draws_BNC = noise.uniform("codes", N, self.config.vocabulary) if noise is not None and self.config.temperature > 0 else None
        codes, states = [], []
        for at in range(N):
            x_B1D = self.code_in(shown_B1).to(prefix.x_BSD.dtype)
            cache = backbone(places.slice(at, at + 1).with_x(x_B1D), cache=cache)
            states.append(cache.last(1))
            logits_BC = self.head(states[-1])[:, 0].float()
            if draws_BNC is not None:  # Gumbel-max: a draw from softmax(logits / temperature)
                logits_BC = logits_BC - self.config.temperature * torch.log(-torch.log(draws_BNC[:, at]))
            shown_B1 = logits_BC.argmax(-1, keepdim=True)
            codes.append(shown_B1)
        return torch.cat(codes, dim=1), torch.cat(states, dim=1)

    def _places(self, prefix: Tokens, x_BND: Tensor) -> Tokens:
        return suffix_tokens(prefix, x_BND.to(prefix.x_BSD.dtype), causal=True)

    def _read(self, prefix: Hidden, state_BND: Tensor, like: ActionSpec) -> Tensor:
        """float (B, T, A), not yet masked."""
        saw_BI = self.seen(prefix.x_BSD, self._images(prefix.tokens), None)
        x_BI = self.said(state_BND, torch.ones_like(state_BND[..., 0], dtype=torch.bool), saw_BI)
        robot_B = like.embodiment_B
        out_BTA = torch.einsum("bi,btia->bta", x_BI, self.out_ETIA[robot_B].to(x_BI.dtype)) + self.out_ETA[robot_B].to(x_BI.dtype)
        return torch.tanh(out_BTA)

    def _images(self, tokens: Tokens) -> Tensor:
        """bool (B, S): what `seen` pools; all that is valid where nothing is marked as an image's."""
        image_BS = tokens.extras.get("image_BS")
        if image_BS is None:
            return tokens.valid_BS
        if self.config.one_before:
            image_BS = F.pad(image_BS[:, 1:], (0, 1))
        image_BS = image_BS & tokens.valid_BS
        return torch.where(image_BS.any(1, keepdim=True), image_BS, tokens.valid_BS)


class _Pool(nn.Module):
    """A learned query asks what it is given, then a gated MLP; norms after each (UniVLA's `MAPBlock`)."""

    def __init__(self, context_width: int, config: LatentWords) -> None:
        super().__init__()
        width, inner = config.readout_width, config.mlp_ratio * config.readout_width
        self.heads = config.heads
        self.query_D = nn.Parameter(torch.randn(width) * 0.02)
        self.inward = nn.Linear(context_width, width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.o = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * inner)
        self.down = nn.Linear(inner, width)
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-16) for _ in range(2))  # theirs: the root is at least 1e-8

    def forward(self, context_BSD: Tensor, valid_BS: Tensor, more_BD: Tensor | None) -> Tensor:
        """(B, S, context width) -> (B, D). `more_BD` is added to the query."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        x_BD = self.query_D.expand(len(context_BSD), -1)
        x_BD = x_BD if more_BD is None else x_BD + more_BD
        inward_BSD = self.inward(context_BSD.to(self.inward.weight.dtype))
        k, v = self.kv(inward_BSD).chunk(2, dim=-1)
        pooled = F.scaled_dot_product_attention(split(self.q(x_BD[:, None])), split(k), split(v), attn_mask=valid_BS[:, None, None, :])
        x_BD = self.norm1(x_BD + self.o(pooled.transpose(1, 2).flatten(2))[:, 0])
        value, gate = self.up(x_BD).chunk(2, dim=-1)
        return self.norm2(x_BD + self.down(value * F.silu(gate)))
