"""UniVLA fine-tuned for a robot (OpenDriveLab/UniVLA): OpenVLA's Hugging Face layout with words `<ACT_i>` for latent actions, and
`action_decoder*.pt` (`experiments/robot/libero/run_libero_eval.py`, `ActionDecoderHead`).

The empty piece 29871, which ends their prompt, is what our decoder starts from. Its state and those of the first codes are what the
readout is given when theirs acts; in training theirs gave it the states of the codes themselves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vla.backbones.empty import build_empty
from vla.backbones.prismatic import OPENVLA_PROMPT
from vla.backbones.prompts import unpack_tokenizer
from vla.checkpoint import Contents
from vla.decoders.latent_words import LatentWords
from vla.errors import SchemaError, UnknownName, UserError
from vla.interop import prismatic, stats
from vla.interop.openvla import EMBEDDING, EMPTY_PIECE, HEAD, ROTARY, backbone_of, statistics
from vla.interop.plan import Make, Plan, Rows, Rule, Take
from vla.interop.source import Source, robot_notes
from vla.model import Model
from vla.normalize import Normalizer
from vla.state import NoState

PART, CODES, HEAD_WIDTH = "action_decoder", 4, 64
PLATFORMS = {"libero": True, "bridge": True, "calvin": False}
"""Name of a script that acts -> whether it un-normalises what the readout says."""
POOLS = {"seen": "visual_pool", "said": "latent_action_pool"}
NOTES = (
    "theirs draws latent actions (temperature 0.75, top-p 0.9) among all words; ours says the likeliest of the codes' words",
    "theirs may show the last call's latent actions in the prompt (LIBERO: `History action ...`); a call here is an episode's first, which"
    " training showed as often",
    "theirs shows it the central 90% of images where it was trained on crops; crop them before",
    "actions of several calls are averaged by theirs (weights exp(-0.1 age)); for that see vla eval --ensemble",
)


def plan(source: Source, variant: str = "univla") -> Plan:
    """Raises UserError or SchemaError for another model, statistics or robot."""
    if source.platform not in PLATFORMS:
        raise UnknownName("platform", source.platform, PLATFORMS, "Its script says whether actions were normalised: --platform NAME.")
    config = source.json("config.json")
    if config.get("model_type") != "openvla":
        raise UserError(f"{source.name} is a '{config.get('model_type')}', not UniVLA in the Hugging Face layout (model_type 'openvla')")
    parts = source.part(PART)
    if not parts:
        raise UserError(
            f"{source.name} has no {PART}*.pt: latent actions alone move no robot. To fine-tune from its backbone: vla import vlm"
        )
    stored = {**source.stored, **parts}
    unknown = sorted({name.split(".")[1] for name in parts} - {*POOLS.values(), "proj"})
    if unknown or f"{PART}.proj.0.weight" not in parts:
        raise SchemaError(
            f"{source.name}: its readout has {', '.join(unknown) or 'no proj.0'}, which nothing here takes; what is known is that of"
            " LIBERO, CALVIN and Bridge (two pools, a map, tanh), not those of the real robot (with proprioception) and of navigation"
        )
    numbers, inner = stored[f"{PART}.proj.0.weight"].shape
    key, action = _statistics(source, config)
    steps, left_over = divmod(numbers, action.width)
    if left_over:
        raise SchemaError(f"{source.name} reads out {numbers} numbers, which are no whole steps of {action.width}")
    robot = source.robot_of(horizon=steps, least=1, most=1, width=action.width)
    backbone = backbone_of(source, prompt=replace(OPENVLA_PROMPT, append=()))
    first, count = _words(source, backbone.tokenizer, stored[EMBEDDING].shape[0])
    ratio = stored[f"{PART}.visual_pool.mlp.1.weight"].shape[1] // inner
    decoder = LatentWords(CODES, count, max(1, inner // HEAD_WIDTH), inner, ratio, one_before=True)
    model = Model(backbone, decoder, state=NoState())
    facts = {"format": "univla", "statistics": key, "platform": source.platform}
    contents = Contents(model, (robot,), {robot.name: stats.robot_normalizer(robot, None, action)}, {"imported": facts})
    empty = build_empty(model, contents.roster)
    targets = empty.state_dict()
    rules = {**prismatic.rules(targets, prismatic.HUGGING_FACE), **_words_rules(targets, first, count), **_readout(steps, action.width)}
    left = {**prismatic.left(empty.backbone, prismatic.HUGGING_FACE), **ROTARY}
    return Plan(contents, rules, left, [*NOTES, *robot_notes(robot)], stored)


def _statistics(source: Source, config: dict[str, Any]) -> tuple[str, Normalizer]:
    """CALVIN's actions were never normalised: what is read out is what is sent."""
    if PLATFORMS[source.platform]:
        key, numbers = statistics(source, config)
        return key, stats.openvla(numbers["action"], f"the action statistics of '{key}'")
    return "", Normalizer.identity(source.robot.action.size, f"{source.platform}'s actions are learned as they are")


def _words(source: Source, tokenizer: str, words: int) -> tuple[int, int]:
    """Id of `<ACT_0>`, and how many there are."""
    vocabulary = unpack_tokenizer(tokenizer).get_vocab()
    ids = []
    while (word := f"<ACT_{len(ids)}>") in vocabulary:
        ids.append(vocabulary[word])
    if not ids or ids != list(range(ids[0], ids[0] + len(ids))) or ids[-1] >= words:
        raise SchemaError(f"{source.name}: its tokenizer has {len(ids)} words <ACT_i>, at {ids[:3]}; UniVLA's are one behind the other")
    return ids[0], len(ids)


def _words_rules(targets: dict[str, Tensor], first: int, count: int) -> dict[str, Rule]:
    rows = (first, first + count)
    return {
        "decoder.code_in.weight": Make((Rows(EMBEDDING, *rows), Rows(EMBEDDING, EMPTY_PIECE, EMPTY_PIECE + 1)), lambda *x: torch.cat(x)),
        "decoder.head.weight": Make((Rows(HEAD, *rows),), lambda weight: weight),
        "decoder.head.bias": torch.zeros(targets["decoder.head.bias"].shape),
    }


def _readout(steps: int, width: int) -> dict[str, Rule]:
    found: dict[str, Rule] = {
        "decoder.out_ETIA": Make((f"{PART}.proj.0.weight",), lambda weight: weight.view(steps, width, -1).transpose(1, 2)[None]),
        "decoder.out_ETA": Make((f"{PART}.proj.0.bias",), lambda bias: bias.view(1, steps, width)),
    }
    for ours, name in POOLS.items():
        mine, theirs = f"decoder.{ours}.", f"{PART}.{name}."
        found[f"{mine}query_D"] = Make((f"{theirs}latents",), lambda latents: latents[0])
        found[f"{mine}norm1.weight"] = Take(f"{theirs}attn_norm.g")
        found[f"{mine}norm2.weight"] = Take(f"{theirs}mlp_norm.g")
        pairs = [("inward", "projection"), ("o", "attn.proj"), ("up", "mlp.0.project"), ("down", "mlp.1")]
        found |= {f"{mine}{a}.{kind}": Take(f"{theirs}{b}.{kind}") for a, b in pairs for kind in ("weight", "bias")}
        found |= {f"{mine}{name}.weight": Take(f"{theirs}attn.{name}.weight") for name in ("q", "kv")}
    return found
