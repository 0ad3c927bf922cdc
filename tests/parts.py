"""Small real parts that the contract suites share: two robots of different widths, samples of every kind, tiny configurations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from vla.backbones.tiny import Tiny
from vla.checkpoint import Contents
from vla.codecs.bins import Bins
from vla.decoders.conditioning import CrossAttention, InContext, LayerKeysValues, Pooled
from vla.decoders.dit import DiT
from vla.decoders.heads import ResNet
from vla.decoders.joint import Joint, Part
from vla.decoders.latent import LatentActions
from vla.decoders.latent_flow import LatentFlow
from vla.decoders.latent_words import LatentWords
from vla.decoders.masked import MaskedDiffusion
from vla.decoders.parallel import Parallel
from vla.decoders.reasoning import ReasonThenAct
from vla.decoders.tokens import AutoregressiveTokens
from vla.diffusion.ddpm import DDPM
from vla.diffusion.flow import Flow
from vla.embodiment import Embodiment, Field, Space
from vla.model import Model
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.types import Observation, Sample

TINY = Tiny(width=32, depth=2, heads=2, channels=8, keypoints=8, words=64, image_size=16)

BACKBONES = {"tiny": TINY}
DECODERS = {
    "parallel": Parallel(),
    "parallel_folded": Parallel(steps_per_token=3),
    "oft": Parallel(tokens="numbers", whole=True, head=ResNet(hidden=32)),
    "tokens": AutoregressiveTokens(),
    "tokens_from_prefix": AutoregressiveTokens(from_prefix=True),
    "tokens_coarse": AutoregressiveTokens(codec=Bins(every=2)),
    "masked": MaskedDiffusion(evaluations=4),
    "masked_whole": MaskedDiffusion(evaluations=4, whole=True),
    "flow": DiT(evaluations=4),
    "flow_data": DiT(path=Flow(predict="data", times="uniform"), samples_per_context=2, evaluations=2),
    "ddpm": DiT(path=DDPM(steps=20), evaluations=20, samples_per_context=8),
    "flow_cross": DiT(conditioning=CrossAttention(width=32, depth=2, heads=2), evaluations=3),
    "ddpm_pooled": DiT(DDPM(steps=20), Pooled(width=32, depth=2, heads=2), samples_per_context=8, evaluations=20),
    "flow_in_context": DiT(conditioning=InContext(), samples_per_context=3, evaluations=2, steps_per_token=2),
    "latent": LatentActions(codes=2, vocabulary=4, heads=2, readout_depth=1),
    "latent_taught": LatentActions(codes=2, vocabulary=4, taught_scale=0.5, steps_per_query=3),
    "latent_flow": LatentFlow(codes=2, vocabulary=4, evaluations=3),
    "latent_words": LatentWords(codes=2, vocabulary=4, heads=2, readout_width=32, mlp_ratio=2),
    "pi0": DiT(path=Flow(reverse=True), conditioning=LayerKeysValues(width=48, mlp_width=96), state_in_suffix=True),
    "pi05": DiT(conditioning=LayerKeysValues(width=48, mlp_width=96, style="llama"), time="adaptive"),
    "groot": DiT(conditioning=CrossAttention(width=32, depth=4, heads=2, style="dit", interleaved=True), time="adaptive", evaluations=4),
    "cogact": DiT(
        path=DDPM(steps=20, spacing="leading", clip=None),
        conditioning=Pooled(width=32, depth=2, heads=2, style="dit", read="last"),
        time="token",
        condition_dropout=0.2,
        guidance=1.5,
        evaluations=10,
        samples_per_context=8,
    ),
    "dita": DiT(path=DDPM(steps=20), time="token", condition_dropout=0.1, evaluations=10, samples_per_context=8),
    "dit_ada": DiT(conditioning=Pooled(width=32, depth=2, heads=2, style="dit"), time="adaptive"),
    "mixture": DiT(conditioning=CrossAttention(width=32, depth=2, heads=2), experts=2, top_k=2),
    "joint": Joint(
        (
            Part("tokens", AutoregressiveTokens()),
            Part("flow", DiT(conditioning=LayerKeysValues(width=32, mlp_width=64)), insulated=True),
        )
    ),
    "joint_in_context": Joint((Part("flow", DiT(samples_per_context=2)), Part("parallel", Parallel(), scale=0.5))),
    "reasoning": ReasonThenAct(DiT(conditioning=CrossAttention(width=32, depth=2, heads=2)), length=8),
}


def robot(name: str, action: int, state: int, horizon: int) -> Embodiment:
    space = Space((Field("move", action, "command", "step"),))
    return Embodiment(
        name=name,
        cameras=("third_person", "wrist"),
        state=Space((Field("joints", state, "rad"),)),
        command=space,
        action=space,
        rate_hz=Fraction(10),
        horizon=horizon,
        limits=((-1.0, 1.0),) * action,
    )


OFFSETS_S = (-0.1, 0.0)
ROBOTS = (robot("narrow", 2, 3, 4), robot("wide", 5, 6, 3))


def unit_normalizer(of: Embodiment) -> RobotNormalizer:
    unit = lambda width: Normalizer.identity(width, "test values are in -1..1 already")  # noqa: E731
    return RobotNormalizer(StatsKey.of(of), unit(of.state.size), unit(of.action.size))


def contents(decoder, backbone=TINY, robots=ROBOTS) -> Contents:
    return Contents(Model(backbone, decoder), robots, {r.name: unit_normalizer(r) for r in robots}, offsets_s=OFFSETS_S)


def observation(of: Embodiment, rng: np.random.Generator, side: int = 16, state: bool = True, text: str = "open the door") -> Observation:
    return Observation(
        {role: rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8) for role in of.cameras},
        rng.uniform(-1, 1, (2, of.state.size if state else 0)),
        text,
        of.name,
        offsets_s=OFFSETS_S,
    )


def samples(count: int, seed: int = 0, robots=ROBOTS, unlabelled: bool = True, latents: int = 2) -> list[Sample]:
    """Robots in turn; every fourth is action-free video with latent codes alone, every second robot sample has codes too."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        of = robots[i % len(robots)]
        video = unlabelled and i % 4 == 3
        made.append(
            Sample(
                position=100 + i,
                source="video" if video else of.name,
                episode=f"e{i}",
                step=i,
                observation=observation(of, rng, state=not video, text="open the door" if i % 3 else "close the drawer"),
                action_TA=None if video else rng.uniform(-0.9, 0.9, (of.horizon, of.action.size)),
                valid_T=np.arange(of.horizon) < (of.horizon if i % 5 else 2),
                latent_N=rng.integers(0, 4, latents) if video or i % 2 else None,
                reasoning="" if i % 3 == 2 else ("open", "close it")[i % 2],
            )
        )
    return made


SOURCES = {"narrow": 0, "wide": 1, "video": 2}
