"""OpenVLA in the Hugging Face layout (openvla/openvla, `prismatic/extern/hf/modeling_prismatic.py`), merged fine-tunes of it included.

Actions are the last 256 words of Llama: code c is the word `words - 1 - c`, and both the embedding and the head of a code are that word's.
The empty piece 29871, which ends their prompt, is what our decoder starts from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vla.backbones.empty import build_empty
from vla.backbones.pretrained import from_pretrained
from vla.backbones.prismatic import OPENVLA_PROMPT
from vla.checkpoint import Contents
from vla.codecs.bins import Bins
from vla.decoders.tokens import AutoregressiveTokens
from vla.errors import UserError
from vla.interop import prismatic, stats
from vla.interop.plan import Make, Plan, Rows, Rule
from vla.interop.source import Source, robot_notes
from vla.model import Model
from vla.state import NoState

EMPTY_PIECE = 29871
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
NOT_SAID = "whether it was fine-tuned on images cropped at random (then theirs shows it the central 90%) does not stand in the file"


def plan(source: Source, variant: str = "openvla") -> Plan:
    """Raises UserError or SchemaError for another model, statistics or robot."""
    config = source.json("config.json")
    if config.get("model_type") != "openvla":
        raise UserError(f"{source.name} is a '{config.get('model_type')}', not OpenVLA in the Hugging Face layout (model_type 'openvla')")
    key, numbers = statistics(source, config)
    normalizer = stats.openvla(numbers["action"], f"the action statistics of '{key}'")
    robot = source.robot_of(horizon=1, least=1, most=1, width=normalizer.width)
    backbone = backbone_of(source)
    words, edges = words_of(config), int(config.get("n_action_bins", 256))
    decoder = AutoregressiveTokens(codec=Bins(edges=edges, top=True))
    facts = {"format": "openvla", "statistics": key}
    robots = {robot.name: stats.robot_normalizer(robot, None, normalizer)}
    contents = Contents(Model(backbone, decoder, state=NoState()), (robot,), robots, {"imported": facts})
    empty = build_empty(contents.model, contents.roster)
    targets = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    rules = prismatic.rules(targets, prismatic.HUGGING_FACE)
    rules |= word_rules(targets, words, edges)
    notes = [NOT_SAID, *robot_notes(robot)]
    return Plan(contents, rules, {**prismatic.left(empty.backbone, prismatic.HUGGING_FACE), **ROTARY}, notes)


ROTARY = {"language_model.model.rotary_emb.": "rotary frequencies, which are computed"}


def backbone_of(source: Source, **changes: Any) -> Any:
    """By value, with the head of the language model, which only an export needs."""
    prompt = changes.pop("prompt", replace(OPENVLA_PROMPT, append=()))
    return from_pretrained(str(source.folder), head=True, freeze=("head",), origin=None, prompt=prompt, **changes)


def statistics(source: Source, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(key, numbers) of `dataset_statistics.json` (fine-tunes), or of config.json."""
    found = source.json("dataset_statistics.json") if "dataset_statistics.json" in source.files() else config.get("norm_stats")
    if not found:
        raise UserError(f"{source.name} has no statistics: neither dataset_statistics.json nor norm_stats in config.json")
    return source.choose(found)


def words_of(config: dict[str, Any]) -> int:
    """Words of the tokenizer: the vocabulary less what it was padded by."""
    return int(config["text_config"]["vocab_size"]) - int(config.get("pad_to_multiple_of", 64))


def word_rules(targets: dict[str, tuple[int, ...]], words: int, codes: int, start: int | None = EMPTY_PIECE) -> dict[str, Rule]:
    """Codes from the last words of the language model, last one first, and the start from another."""

    def flipped(last: Tensor, *more: Tensor) -> Tensor:
        return torch.cat([last.flip(0), *more])

    last = (words - codes, words)
    before = () if start is None else (Rows(EMBEDDING, start, start + 1),)
    return {
        "decoder.codes.code_in.weight": Make((Rows(EMBEDDING, *last), *before), flipped),
        "decoder.codes.head.weight": Make((Rows(HEAD, *last),), flipped),
        "decoder.codes.head.bias": torch.zeros(targets["decoder.codes.head.bias"]),
        "decoder.codes.slot_ND": torch.zeros(targets["decoder.codes.slot_ND"]),
    }
