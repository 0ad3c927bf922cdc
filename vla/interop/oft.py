"""OpenVLA-OFT (moojink/openvla-oft): a merged OpenVLA folder, and beside it `action_head--*_checkpoint.pt`, `proprio_projector--*`, and
`vision_backbone--*` (FiLM).

Chunk length and kind of normalisation stand in its code (`prismatic/vla/constants.py`), by the platform that the command line happened to
name: `--platform` says which. Unlike OpenVLA's, its way back has the epsilon of the way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vla.backbones.empty import build_empty
from vla.backbones.film import FiLM
from vla.backbones.prismatic import OPENVLA_PROMPT
from vla.checkpoint import Contents
from vla.decoders.heads import ResNet
from vla.decoders.parallel import Parallel
from vla.embodiment import Embodiment
from vla.errors import SchemaError, UnknownName, UserError
from vla.interop import prismatic, stats
from vla.interop.openvla import EMBEDDING, ROTARY, backbone_of, statistics
from vla.interop.plan import Make, Plan, Rows, Rule, Take
from vla.interop.source import Source, robot_notes
from vla.interop.tensors import Stored
from vla.model import Model
from vla.normalize import Normalizer, RobotNormalizer
from vla.state import NoState, StateTokens

PLATFORMS = {"libero": (8, "quantile"), "aloha": (25, "extremes"), "bridge": (5, "quantile")}
"""Name in `constants.py` -> (steps of a chunk, what is mapped to -1..1)."""
STOP = 2
HEAD, STATE, FILM = "action_head.", "proprio_projector.", "vision_backbone.vision_backbone."
"""What the parts' tensors are called here, behind the name of their file."""
PLAIN_TOWERS = "a tower without FiLM, which the towers with FiLM stand in for"


@dataclass(frozen=True)
class FineTuned:
    """What a folder that OpenVLA-OFT's scripts fine-tuned says of its robot. `stored`: the weights and the tensors of the `parts` beside
    them; `state`, if it reads one; `facts`: what the checkpoint keeps of where it came from."""

    robot: Embodiment
    action: Normalizer
    state: Normalizer | None
    parts: Mapping[str, Stored]
    stored: dict[str, Stored]
    facts: dict[str, Any]

    @property
    def normalizer(self) -> RobotNormalizer:
        """State and action of its robot, by the folder's statistics."""
        return stats.robot_normalizer(self.robot, self.state, self.action)

    @property
    def state_tokens(self) -> StateTokens | NoState:
        """How the model reads proprioception: their projector's two layers behind the images, or not at all."""
        return NoState() if self.state is None else StateTokens(layers=2, after_images=True)

    @property
    def state_rules(self) -> dict[str, Rule]:
        """What their projector's tensors become; none where it has no projector."""
        return {} if self.state is None else state_rules()


def fine_tuned(source: Source) -> FineTuned:
    """Raises UnknownName for a platform, SchemaError for statistics of another width than the robot's."""
    if source.platform not in PLATFORMS:
        raise UnknownName("platform", source.platform, PLATFORMS, "It was named in the training command: --platform NAME.")
    steps, bounds = PLATFORMS[source.platform]
    config = source.json("config.json")
    key, numbers = statistics(source, config)
    where = f"statistics of '{key}'"
    action = stats.openvla(numbers["action"], f"the action {where}", bounds=bounds, both_ways=True)
    robot = source.robot_of(horizon=steps, least=1, most=3, width=action.width)
    parts = source.parts()
    stored = {**source.stored, **parts}
    state = None
    if f"{STATE}fc1.weight" in stored:
        state = stats.openvla(numbers["proprio"], f"the proprio {where}", bounds=bounds, both_ways=True)
        if state.width != robot.state.size:
            raise SchemaError(f"{source.name} reads a state of {state.width} numbers; '{robot.name}' has {robot.state.size}")
    return FineTuned(robot, action, state, parts, stored, {"statistics": key, "platform": source.platform})


def plan(source: Source, variant: str = "openvla_oft") -> Plan:
    """Raises UserError or SchemaError for another model, statistics or robot."""
    found = fine_tuned(source)
    action, robot, parts, stored = found.action, found.robot, found.parts, found.stored
    if f"{HEAD}model.fc1.weight" not in stored:
        raise UserError(
            f"{source.name} has no action_head--*_checkpoint.pt of an L1 head; there are {', '.join(source.files('*.pt')) or 'none'}"
        )
    hidden, joined = stored[f"{HEAD}model.fc1.weight"].shape
    film = any(name.startswith(FILM) for name in parts)
    backbone = backbone_of(source, prompt=OPENVLA_PROMPT, **({"film": FiLM(also=(STOP,))} if film else {}))
    blocks = prismatic.count(stored, f"{HEAD}model.mlp_resnet_blocks.")
    decoder = Parallel(tokens="numbers", whole=True, head=ResNet(blocks, hidden))
    model = Model(backbone, decoder, found.state_tokens)
    facts = {"format": "openvla_oft", **found.facts, "film": film}
    contents = Contents(model, (robot,), {robot.name: found.normalizer}, {"imported": facts})
    empty = build_empty(model, contents.roster)
    targets = empty.state_dict()
    rules = prismatic.rules(targets, prismatic.HUGGING_FACE)
    left = {**prismatic.left(empty.backbone, prismatic.HUGGING_FACE), **ROTARY}
    if film:
        rules |= _film_rules(targets)
        left = {**ROTARY, "vision_backbone.featurizer.": PLAIN_TOWERS, "vision_backbone.fused_featurizer.": PLAIN_TOWERS}
        left |= {
            name.replace("vision_backbone.", FILM, 1): why for name, why in prismatic.left(empty.backbone, prismatic.HUGGING_FACE).items()
        }
    rules |= _head(joined // action.width, action.width, blocks) | found.state_rules
    cropped = "theirs shows it the central 90% of images where it was trained with `image_aug`; crop them before"
    return Plan(contents, rules, left, [cropped, *robot_notes(robot)], stored)


def _head(width: int, numbers: int, blocks: int) -> dict[str, Rule]:
    model = f"{HEAD}model."

    def apart(vector: Tensor) -> Tensor:
        return vector.view(numbers, width)

    found: dict[str, Rule] = {
        "decoder.closing_1D": Make((Rows(EMBEDDING, STOP, STOP + 1),), lambda row: row),
        "decoder.out.norm_weight_ND": Make((f"{model}layer_norm1.weight",), apart),
        "decoder.out.norm_bias_ND": Make((f"{model}layer_norm1.bias",), apart),
        "decoder.out.weight_NDH": Make((f"{model}fc1.weight",), lambda weight: weight.T.reshape(numbers, width, -1)),
        "decoder.out.bias_H": Take(f"{model}fc1.bias"),
        "decoder.out.out.weight_EIO": Make((f"{model}fc2.weight",), lambda weight: weight.T[None]),
        "decoder.out.out.bias_EO": Make((f"{model}fc2.bias",), lambda bias: bias[None]),
    }
    for kind in ("weight", "bias"):
        found[f"decoder.out.norm.{kind}"] = Take(f"{model}layer_norm2.{kind}")
        for index in range(blocks):
            theirs = f"{model}mlp_resnet_blocks.{index}.ffn."
            found[f"decoder.out.blocks.{index}.norm.{kind}"] = Take(f"{theirs}0.{kind}")
            found[f"decoder.out.blocks.{index}.linear.{kind}"] = Take(f"{theirs}1.{kind}")
    return found


def state_rules() -> dict[str, Rule]:
    """What their projector's tensors become; none where it has no projector."""
    return {
        "state_in.first.weight_EIO": Make((f"{STATE}fc1.weight",), lambda weight: weight.T[None]),
        "state_in.first.bias_EO": Make((f"{STATE}fc1.bias",), lambda bias: bias[None]),
        "state_in.second.weight": Take(f"{STATE}fc2.weight"),
        "state_in.second.bias": Take(f"{STATE}fc2.bias"),
    }


def _film_rules(targets: Mapping[str, Any]) -> dict[str, Rule]:
    """Of `FiLMedPrismaticVisionBackbone`: a block stands inside its wrapper, beside `scale` and `shift`."""
    found: dict[str, Rule] = {}
    for name in targets:
        if name.startswith("backbone.vision."):
            theirs = name.replace("backbone.vision.", FILM, 1).replace(".gamma", ".scale_factor")
            head, block, rest = theirs.partition(".blocks.")
            index, _, inner = rest.partition(".")
            found[name] = Take(f"{head}.blocks.{index}.block.{inner}" if block else theirs)
        elif name.startswith("backbone.film."):
            tower, index, rest = name.removeprefix("backbone.film.").split(".", 2)
            found[name] = Take(f"{FILM}{tower}.blocks.{index}.{rest}")
    return found
