"""pi0-FAST in lerobot's safetensors (`modeling_pi0_fast.py`): FAST codes as the last words of PaliGemma, after the words `Action: `.

Acting, theirs closes the prompt by a second <bos>, which the prompt sees, and has the model write `Action: ` and then codes up to a `|`.
Here those words stand written, and codes end where the chunk is complete.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vla.backbones.empty import build_empty
from vla.backbones.prompts import Prompt, unpack_tokenizer
from vla.checkpoint import Contents
from vla.codecs.fast import FAST
from vla.decoders.tokens import AutoregressiveTokens
from vla.errors import SchemaError, UserError
from vla.interop import stats
from vla.interop.paligemma import EMBEDDING, HEAD, Names
from vla.interop.pi_statistics import read
from vla.interop.plan import Make, Plan, Rows
from vla.interop.source import Source, robot_notes
from vla.model import Model
from vla.state import StateWords

LEAD, SKIPPED = "Action: ", 128


def plan(source: Source, variant: str = "pi0_fast") -> Plan:
    """Raises UserError or SchemaError for another model, statistics or robot."""
    import json

    names = Names(source.stored, source.name)
    if "action_in_proj.weight" in names:
        raise SchemaError(f"{source.name} has 'action_in_proj.weight': it is a pi0 or pi0.5 (vla import pi0, pi05)")
    folder = source.action_tokenizer or source.folder / "action_tokenizer"
    if not (folder / "processor_config.json").is_file():
        raise UserError(f"{source.name} has no FAST tokenizer: give the folder of physical-intelligence/fast: --action-tokenizer FOLDER")
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    meant = read(source, variant)
    tokenizer = source.packed_tokenizer()
    *lead, start = unpack_tokenizer(tokenizer).encode(LEAD, add_special_tokens=False).ids
    prompt = Prompt("{images}<bos>Task: {instruction};\n<bos>", lead=tuple(lead))
    backbone = names.backbone(tokenizer, prompt)
    codec = FAST(vocabulary=int(settings["vocab_size"]), scale=float(settings["scale"]))
    model, robot = Model(backbone, AutoregressiveTokens(codec=codec), state=StateWords()), meant.robot
    normalizers = {robot.name: stats.robot_normalizer(robot, meant.state, meant.action)}
    contents = Contents(model, (robot,), normalizers, {"imported": {"format": variant, "layout": meant.layout, "statistics": meant.key}})
    targets = build_empty(model, contents.roster).state_dict()
    made = codec.build(contents.roster)
    made.read(folder)
    words, width = names.shape(EMBEDDING)
    last = words - SKIPPED  # code c is the word last - 1 - c
    codes = (last - codec.vocabulary, last)

    def embedded(code_CD: Tensor, start_1D: Tensor) -> Tensor:
        return torch.cat([code_CD.flip(0), start_1D]) * math.sqrt(width)  # as Gemma scales its words

    head = names.of(HEAD) if HEAD in names else names.of(EMBEDDING)
    rules = {
        **names.backbone_rules(targets),
        "decoder.codes.code_in.weight": Make((Rows(names.of(EMBEDDING), *codes), Rows(names.of(EMBEDDING), start, start + 1)), embedded),
        "decoder.codes.head.weight": Make((Rows(head, *codes),), lambda code_CD: code_CD.flip(0)),
        "decoder.codes.head.bias": torch.zeros(codec.vocabulary),
        "decoder.codes.slot_ND": torch.zeros(targets["decoder.codes.slot_ND"].shape),
        **{f"decoder.codes.codec.{name}": buffer for name, buffer in made.state_dict().items()},
    }
    notes = [*meant.notes, "codes end where the chunk is complete, and only those that can complete it are chosen; theirs end at '|'"]
    return Plan(contents, rules, {}, [*notes, *robot_notes(robot)])
