"""Discrete Diffusion VLA (Liang-ZX/DiscreteDiffusionVLA): OpenVLA-OFT's merged folder, `proprio_projector--*`, a tokenizer with `<mask>`.

Its decoding (`prismatic/discrete_flow/parallel_decode.py`) runs the whole sequence, in which every token sees every other, 12 times.
Codes are OpenVLA's: code c is the word `words - 1 - c`. Merged folders keep OpenVLA's config.json, so the tokenizer alone says which word
hides a code.
"""

from __future__ import annotations

from vla.backbones.empty import build_empty
from vla.backbones.prismatic import OPENVLA_PROMPT
from vla.backbones.prompts import unpack_tokenizer
from vla.checkpoint import Contents
from vla.codecs.bins import Bins
from vla.decoders.masked import MaskedDiffusion
from vla.errors import SchemaError, UserError
from vla.interop import prismatic
from vla.interop.oft import FILM, HEAD, STOP, fine_tuned
from vla.interop.openvla import EMBEDDING, ROTARY, backbone_of, word_rules, words_of
from vla.interop.plan import Make, Plan, Rows
from vla.interop.source import Source, robot_notes
from vla.model import Model

MASK, EVALUATIONS = "<mask>", 12
NOTES = (
    "theirs draws among all words, ours among the words of actions",
    "its published decoding does not re-mask what it kept (`use_remask=False`); for that set MaskedDiffusion(remask=...)",
    "theirs shows it the central 90% of images where it was trained with `image_aug`; crop them before",
)


def plan(source: Source, variant: str = "discrete_diffusion_vla") -> Plan:
    """Raises UserError or SchemaError for another model, statistics or robot."""
    found, config = fine_tuned(source), source.json("config.json")
    robot, parts, stored = found.robot, found.parts, found.stored
    if f"{HEAD}model.fc1.weight" in parts or any(name.startswith(FILM) for name in parts):
        raise UserError(
            f"{source.name} has a regression head or FiLM beside its weights; what is known here has neither (OFT: vla import openvla_oft)"
        )
    backbone = backbone_of(source, prompt=OPENVLA_PROMPT)
    mask = _mask(source, backbone.tokenizer, stored[EMBEDDING].shape[0])
    edges = int(config.get("n_action_bins", 256))
    decoder = MaskedDiffusion(Bins(edges=edges, top=True), evaluations=EVALUATIONS, temperature=1.0, whole=True)
    model = Model(backbone, decoder, found.state_tokens)
    facts = {"format": "discrete_diffusion_vla", **found.facts}
    contents = Contents(model, (robot,), {robot.name: found.normalizer}, {"imported": facts})
    empty = build_empty(model, contents.roster)
    targets = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    rules = prismatic.rules(targets, prismatic.HUGGING_FACE) | word_rules(targets, words_of(config), edges, start=mask)
    rules |= {"decoder.closing_1D": Make((Rows(EMBEDDING, STOP, STOP + 1),), lambda row: row)} | found.state_rules
    left = {**prismatic.left(empty.backbone, prismatic.HUGGING_FACE), **ROTARY}
    return Plan(contents, rules, left, [*NOTES, *robot_notes(robot)], stored)


def _mask(source: Source, tokenizer: str, words: int) -> int:
    """Id of the word that stands for a hidden code."""
    mask = unpack_tokenizer(tokenizer).token_to_id(MASK)
    if mask is None or mask >= words:
        raise SchemaError(f"{source.name}: its tokenizer has no {MASK} among the model's {words} words; it is no Discrete Diffusion VLA")
    return mask
