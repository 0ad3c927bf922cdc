"""pi0 and pi0.5: openpi's PyTorch files and lerobot's (`pi0_pytorch.py`, `modeling_pi0.py`, `modeling_pi05.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from vla.backbones.empty import build_empty
from vla.backbones.prompts import Prompt
from vla.checkpoint import Contents
from vla.decoders.conditioning import LayerKeysValues
from vla.decoders.dit import DiT
from vla.diffusion.flow import Flow
from vla.errors import SchemaError
from vla.interop import stats
from vla.interop.paligemma import EMBEDDING, EXPERT, HEAD, TIME_MLPS, WHOLE, Names
from vla.interop.pi_statistics import Meant, read
from vla.interop.plan import Make, Plan, Rule, Take
from vla.interop.source import Source, robot_notes
from vla.model import Model
from vla.state import StateTokens, StateWords

UNUSED_HEAD = "a head of words, which acting does not use"
PROMPTS = {"pi0": "{images}<bos>{instruction}\n", "pi05": "{images}<bos>Task: {instruction};\nAction: "}


def plan(source: Source, variant: str) -> Plan:
    """`variant`: pi0 or pi05. Raises UserError or SchemaError for another model, statistics or robot."""
    names = Names(source.stored, source.name)
    found = "pi05" if "time_mlp_in.weight" in names else "pi0"
    if "action_in_proj.weight" not in names:
        raise SchemaError(
            f"{source.name} has no 'action_in_proj.weight'; it is no pi0 of openpi or lerobot (for pi0-FAST: vla import pi0_fast)"
        )
    if found != variant:
        raise SchemaError(f"{source.name} is a {found} ('{TIME_MLPS[found][1]}_in.weight'): vla import {found}")
    meant = read(source, variant)
    prompt = Prompt(PROMPTS[variant], clean=variant == "pi0" and meant.layout == "openpi")
    backbone = names.backbone(source.packed_tokenizer(), prompt)
    decoder = DiT(
        path=Flow(times="pi0", reverse=True),
        conditioning=LayerKeysValues(*_expert_sizes(names), style="gemma"),
        samples_per_context=1,
        evaluations=meant.steps,
        time="mix" if variant == "pi0" else "adaptive",
        time_features="periods",
        state_in_suffix=variant == "pi0",
        padded_width=meant.padded,
    )
    robot = meant.robot
    facts = {"format": variant, "layout": meant.layout, "statistics": meant.key}
    normalizers = {robot.name: stats.robot_normalizer(robot, meant.state, meant.action)}
    model = Model(backbone, decoder, state=StateTokens() if variant == "pi0" else StateWords())
    contents = Contents(model, (robot,), normalizers, {"imported": facts})
    targets = build_empty(model, contents.roster).state_dict()
    rules = {**names.backbone_rules(targets), **names.expert_rules(targets), **_projections(names, targets, variant, meant)}
    left = {name: UNUSED_HEAD for name in (names.of(HEAD), names.of(f"{WHOLE}gemma_expert.lm_head.weight")) if name != names.of(EMBEDDING)}
    return Plan(contents, rules, left, [*meant.notes, *robot_notes(robot)])


def _expert_sizes(names: Names) -> tuple[int, int]:
    mlp_width, width = names.shape(f"{EXPERT}layers.0.mlp.up_proj.weight")
    return width, mlp_width


def _projections(names: Names, targets: dict[str, Tensor], variant: str, meant: Meant) -> dict[str, Rule]:
    """The maps around the expert. A robot's numbers are the first of their padded ones; of the state's, the rest is always 0."""
    size = max(1, meant.robot.state.size)

    def turned(weight: Tensor) -> Tensor:
        return weight.T[None]

    def row(bias: Tensor) -> Tensor:
        return bias[None]

    found: dict[str, Rule] = {"decoder.step_TD": torch.zeros(targets["decoder.step_TD"].shape)}
    for ours, theirs in (("action_in", "action_in_proj"), ("out", "action_out_proj")):
        found[f"decoder.{ours}.weight_EIO"] = Make((names.of(f"{theirs}.weight"),), turned)
        found[f"decoder.{ours}.bias_EO"] = Make((names.of(f"{theirs}.bias"),), row)
    mlp, time = TIME_MLPS[variant]
    for index, end in ((0, "in"), (2, "out")):
        for kind in ("weight", "bias"):
            found[f"{mlp}.{index}.{kind}"] = Take(names.of(f"{time}_{end}.{kind}"))
    if variant == "pi0":
        found["decoder.state_in.weight_EIO"] = Make((names.of("state_proj.weight"),), lambda weight: weight[:, :size].T[None])
        found["decoder.state_in.bias_EO"] = Make((names.of("state_proj.bias"),), row)
    return found
