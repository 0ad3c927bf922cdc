"""Published systems, each composed of the parts in a few lines: which backbone, which decoder, at which sizes.

`preset("cogact_b").model()` is a `Model` for a recipe, over the published backbone's configuration; `.model(backbone=...)` is the same
head on a backbone of yours (the tiny one, say). Weights come with `vla import`, or from training. Where a preset departs from its paper,
`deviates` says so: it is the idea at the published size, not a clone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vla.backbones.ego3d import Ego3D
from vla.backbones.film import FiLM
from vla.backbones.published import ZOEDEPTH, published
from vla.backbones.stems import ResNet18
from vla.backbones.tiny import Tiny
from vla.codecs.bins import Bins
from vla.codecs.fast import FAST
from vla.codecs.grid import Grid
from vla.codecs.vq import VQCodes
from vla.decoders.conditioning import CrossAttention, InContext, LayerKeysValues, Pooled
from vla.decoders.dit import DiT
from vla.decoders.heads import ResNet
from vla.decoders.joint import Joint, Part
from vla.decoders.latent import LatentActions
from vla.decoders.latent_words import LatentWords
from vla.decoders.masked import MaskedDiffusion
from vla.decoders.parallel import Parallel
from vla.decoders.reasoning import ReasonThenAct
from vla.decoders.tokens import AutoregressiveTokens
from vla.diffusion.ddpm import DDPM
from vla.diffusion.flow import Flow
from vla.errors import UnknownName
from vla.model import Model
from vla.state import StateTokens

PRISMATIC, PALIGEMMA, PALIGEMMA2 = "openvla/openvla-7b", "google/paligemma-3b-pt-224", "google/paligemma2-3b-pt-224"
QWEN3, SMOLVLM = "Qwen/Qwen3-VL-2B-Instruct", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"


@dataclass(frozen=True)
class Preset:
    """`backbone`: hub id of the one it was published with, or its configuration where it has one of its own. `decoder`: a configuration.
    `horizon`: commands per chunk, which an embodiment states. `paper`, `deviates`: for people. `state`: how proprioception enters.
    `settings`: of a published backbone."""

    backbone: str | Tiny
    decoder: Any
    horizon: int
    paper: str
    deviates: str = ""
    state: StateTokens = field(default_factory=StateTokens)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def model(self, backbone: Any = None) -> Model:
        """The model over its own backbone's published configuration, or over another."""
        if backbone is None:
            backbone = published(self.backbone, **self.settings) if isinstance(self.backbone, str) else self.backbone
        return Model(backbone, self.decoder, self.state)


_COGACT: dict[str, Any] = {"path": DDPM(spacing="leading", clip=None), "samples_per_context": 8, "evaluations": 10, "time": "token"}
_COGACT |= {"condition_dropout": 0.1, "guidance": 1.5}
_OFT = Preset(
    PRISMATIC,
    Parallel(tokens="numbers", whole=True, head=ResNet()),
    horizon=8,
    paper="OpenVLA-OFT (Kim et al. 2025)",
    deviates="the token that closes the sequence is learned instead of a word's",
    state=StateTokens(layers=2, after_images=True),
)
_PI0 = DiT(
    path=Flow(times="pi0", reverse=True),
    conditioning=LayerKeysValues(width=1024, mlp_width=4096, style="gemma"),
    samples_per_context=1,
    evaluations=10,
    state_in_suffix=True,
)
_PI0_FAST = AutoregressiveTokens(codec=FAST(vocabulary=2048, scale=10))
_ACT = Tiny(width=512, depth=5, heads=8, image_size=224, words=64, mlp_ratio=5.6, stem=ResNet18())
"""Five layers, as four of its encoder and one of its decoder; MLPs so wide that all is as many numbers as ACT without its CVAE."""
_DIFFUSION_POLICY = Tiny(width=256, depth=0, heads=4, image_size=96, words=64, stem=ResNet18(keypoints=32, norm="group"))

PRESETS: dict[str, Preset] = {
    "act": Preset(
        _ACT,
        Parallel(steps_per_token=10),
        horizon=100,
        paper="ACT (Zhao et al. 2023)",
        deviates="no CVAE; ten steps a query; the layers of encoder and decoder as one stack; instructions, in hashed words",
    ),
    "diffusion_policy": Preset(
        _DIFFUSION_POLICY,
        DiT(
            path=DDPM(steps=100, clip=1.0),
            conditioning=CrossAttention(width=256, depth=8, heads=4, style="dit"),
            time="token",
            samples_per_context=1,
            evaluations=10,
            steps_per_token=2,
        ),
        horizon=16,
        paper="Diffusion Policy (Chi et al. 2023), the transformer over images",
        deviates="DDIM in 10 steps; two steps a token; one attention over observation and actions, not causal; no random crops",
    ),
    "openvla": Preset(
        PRISMATIC,
        AutoregressiveTokens(codec=Bins(edges=256)),
        horizon=1,
        paper="OpenVLA (Kim et al. 2024)",
        deviates="action codes have embeddings and a head of their own, instead of the language model's last 256 words",
    ),
    "openvla_oft": _OFT,
    "openvla_oft_plus": replace(_OFT, horizon=25, settings={"film": FiLM(also=(2,))}),
    "openvla_oft_diffusion": replace(
        _OFT,
        decoder=DiT(path=DDPM(steps=50, spacing="leading", clip=1.0), samples_per_context=1, evaluations=50, time="token", head=ResNet()),
        deviates="a token a step instead of one a number; the prompt does not see the noisy actions; the level goes through an MLP",
    ),
    "discrete_diffusion_vla": Preset(
        PRISMATIC,
        MaskedDiffusion(codec=Bins(edges=256), evaluations=12, temperature=1.0, remask=1.0, whole=True),
        horizon=8,
        paper="Discrete Diffusion VLA (Liang et al. 2025)",
        deviates="re-masking by a fall of log-probability; the paper's thresholds are not published",
    ),
    "cogact_s": Preset(PRISMATIC, DiT(conditioning=Pooled.dit("S", read="last"), **_COGACT), 16, "CogACT (Li et al. 2024)"),
    "cogact_b": Preset(PRISMATIC, DiT(conditioning=Pooled.dit("B", read="last"), **_COGACT), 16, "CogACT (Li et al. 2024)"),
    "cogact_l": Preset(PRISMATIC, DiT(conditioning=Pooled.dit("L", read="last"), **_COGACT), 16, "CogACT (Li et al. 2024)"),
    "dita": Preset(
        SMOLVLM,
        DiT(path=DDPM(steps=100), conditioning=InContext(), samples_per_context=1, evaluations=20),
        horizon=16,
        paper="Dita (Hou et al. 2025)",
        deviates="a pretrained vision-language model denoises, instead of a 768-wide transformer over DINOv2 and CLIP features",
    ),
    "diffusion_vla": Preset(
        QWEN3,
        ReasonThenAct(action=DiT(path=DDPM(), conditioning=Pooled.dit("L"), time="adaptive", samples_per_context=4, evaluations=10)),
        horizon=16,
        paper="DiffusionVLA (Wen et al. 2024)",
        deviates="Qwen3-VL-2B for Qwen2-VL-2B; text in bytes",
    ),
    "pi0": Preset(PALIGEMMA, _PI0, horizon=50, paper="pi0 (Black et al. 2024)"),
    "pi0_fast": Preset(
        PALIGEMMA, _PI0_FAST, horizon=10, paper="pi0-FAST (Pertsch et al. 2025)", deviates="embeddings and a head of its own"
    ),
    "pi0_insulated": Preset(
        PALIGEMMA,
        Joint((Part("tokens", _PI0_FAST), Part("flow", replace(_PI0, time="adaptive", state_in_suffix=False), insulated=True))),
        horizon=50,
        paper="Knowledge insulation (Driess et al. 2025), pi0.5",
        deviates="proprioception as a token instead of as text",
    ),
    "spatialvla": Preset(
        PALIGEMMA2,
        AutoregressiveTokens(codec=Grid(values="middle"), from_prefix=True),
        horizon=4,
        paper="SpatialVLA (Qu et al. 2025)",
        deviates="action codes have a head of their own; depth that is given comes before depth that is estimated",
        settings={"ego3d": Ego3D(estimator=ZOEDEPTH, assumed=(623.588 / 640, 623.588 / 480, 319.501 / 640, 239.545 / 480))},  # Bridge's
    ),
    "gr00t_n1": Preset(
        QWEN3,
        DiT(
            path=Flow(times="pi0"),
            conditioning=CrossAttention(width=1536, depth=16, heads=32, style="dit", interleaved=True),
            samples_per_context=1,
            evaluations=4,
            time="adaptive",
        ),
        horizon=40,
        paper="GR00T N1 (2025), sizes of N1.7",
        deviates="states of the last layer; one linear map per robot in and out",
    ),
    "univla": Preset(
        PRISMATIC,
        LatentWords(),
        horizon=12,
        paper="UniVLA (Bu et al. 2025)",
        deviates="latent actions have embeddings and a head of their own, instead of words added to the language model",
    ),
    "lapa": Preset(
        PRISMATIC,
        LatentActions(codes=4, vocabulary=8, heads=8, readout_depth=1, readout_width=512),
        horizon=1,
        paper="LAPA (Ye et al. 2024)",
        deviates="Prismatic instead of LWM; a readout beside the latent head instead of a head put in its place",
    ),
    "vq_bet": Preset(
        SMOLVLM,
        AutoregressiveTokens(codec=VQCodes(scales=(1, 1), vocabulary=16), offset=True),
        horizon=10,
        paper="VQ-BeT (Lee et al. 2024)",
        deviates="a vision-language model instead of a small GPT",
    ),
    "carp": Preset(
        SMOLVLM,
        AutoregressiveTokens(codec=VQCodes(scales=(1, 2, 4, 8), vocabulary=256)),
        horizon=16,
        paper="CARP (Gong et al. 2024)",
        deviates="a vision-language model instead of a small GPT; a residual vector quantizer over all numbers instead of one per number",
    ),
}


def preset(name: str) -> Preset:
    """A published system by name; UnknownName lists them."""
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    return PRESETS[name]
