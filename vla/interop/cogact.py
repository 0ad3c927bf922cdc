"""CogACT (microsoft/CogACT, `vla/cogactvla.py`, `action_model/models.py`): `config.json`, `dataset_statistics.json`, `checkpoints/*.pt`.

Two things stand elsewhere here: the position of the condition's token lies in the last bias of the time MLP, and the vector for "no
condition" is stored after the map that theirs sends it through.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vla.backbones.empty import build_empty
from vla.backbones.images import Pixels
from vla.backbones.prismatic import IMAGENET_MEAN, IMAGENET_STD, OPENVLA_PROMPT, Prismatic
from vla.checkpoint import Contents
from vla.decoders.conditioning import Pooled
from vla.decoders.dit import DiT
from vla.diffusion.ddpm import DDPM
from vla.errors import SchemaError, UserError
from vla.interop import prismatic, stats
from vla.interop.openvla import statistics
from vla.interop.plan import Make, Plan, Rule, Take
from vla.interop.source import Source, robot_notes
from vla.model import Model
from vla.state import NoState

NET, END = "action_model.net.", (29871, 2)
"""The empty piece and </s>, whose state is the condition."""
HEADS = {384: 4, 768: 12, 1024: 16}
LEFT = {
    "ema_diffusion.": "a moving average of the action model, which theirs does not act with either",
    f"{NET}history_embedder.": "a map of past actions, which theirs never uses",
}


def plan(source: Source, variant: str = "cogact") -> Plan:
    """Raises UserError or SchemaError for another model, statistics or robot."""
    config = source.json("config.json")
    base = str(config.get("vla", {}).get("base_vlm", ""))
    if "dinosiglip-224px" not in base:
        raise UserError(f"{source.name} stands on '{base}'; what is known here is prism-dinosiglip-224px")
    stored = source.stored
    net = f"{NET}x_embedder.linear.weight"
    if net not in stored:
        raise SchemaError(f"{source.name} has no '{net}'; it is no CogACT")
    (inner, width), steps = stored[net].shape, stored[f"{NET}positional_embedding"].shape[0] - 1
    key, numbers = statistics(source, config)
    binary = (6,) if width > 6 else ()  # theirs sets the seventh number to 0 or 1 at 0.5
    normalizer = stats.openvla(numbers["action"], f"the action statistics of '{key}'", clip_out=True, binary=binary)
    robot = source.robot_of(horizon=steps, least=1, most=1, width=width)
    pixels = (Pixels(IMAGENET_MEAN, IMAGENET_STD), Pixels())
    prompt = replace(OPENVLA_PROMPT, append=END)
    library = prismatic.native_library(stored, source.name)
    backbone = Prismatic(library, tokenizer=source.packed_tokenizer(), prompt=prompt, tower_pixels=pixels, head=True, freeze=("head",))
    depth = prismatic.count(stored, f"{NET}blocks.")
    conditioning = Pooled(inner, depth, HEADS.get(inner, max(1, inner // 64)), style="dit", read="last", norm=False)
    path = DDPM(steps=100, spacing="leading", clip=None)
    sampling: dict[str, Any] = {"samples_per_context": 8, "evaluations": 10, "time": "token", "condition_dropout": 0.1, "guidance": 1.5}
    model = Model(backbone, DiT(path=path, conditioning=conditioning, **sampling), state=NoState())
    robots = {robot.name: stats.robot_normalizer(robot, None, normalizer)}
    contents = Contents(model, (robot,), robots, {"imported": {"format": "cogact", "statistics": key}})
    empty = build_empty(model, contents.roster)
    rules = {**prismatic.rules(empty.state_dict(), prismatic.NATIVE), **_head(depth, inner)}
    notes = ["acts by 10 DDIM steps and guidance 1.5, as in its simulator scripts", *robot_notes(robot)]
    return Plan(contents, rules, {**prismatic.left(empty.backbone, prismatic.NATIVE), **LEFT}, notes)


def _head(depth: int, inner: int) -> dict[str, Rule]:
    decoder, expert = "decoder.", "decoder.conditioning.expert."
    place, condition = f"{NET}positional_embedding", f"{NET}z_embedder."
    found: dict[str, Rule] = {
        f"{decoder}step_TD": Make((place,), lambda place_SD: place_SD[1:]),
        f"{decoder}time_in.mlp.0.weight": Take(f"{NET}t_embedder.mlp.0.weight"),
        f"{decoder}time_in.mlp.0.bias": Take(f"{NET}t_embedder.mlp.0.bias"),
        f"{decoder}time_in.mlp.2.weight": Take(f"{NET}t_embedder.mlp.2.weight"),
        f"{decoder}time_in.mlp.2.bias": Make((f"{NET}t_embedder.mlp.2.bias", place), lambda bias, place_SD: bias + place_SD[0]),
        f"{decoder}conditioning.context_in.weight": Take(f"{condition}linear.weight"),
        f"{decoder}conditioning.context_in.bias": Take(f"{condition}linear.bias"),
        f"{decoder}null_D": Make((f"{condition}uncondition", f"{condition}linear.weight", f"{condition}linear.bias"), _mapped),
    }
    for ours, theirs in (("action_in", "x_embedder"), ("out", "final_layer")):
        found[f"{decoder}{ours}.weight_EIO"] = Make((f"{NET}{theirs}.linear.weight",), lambda weight: weight.T[None])
        found[f"{decoder}{ours}.bias_EO"] = Make((f"{NET}{theirs}.linear.bias",), lambda bias: bias[None])
    for index in range(depth):
        block, theirs = f"{expert}blocks.{index}.", f"{NET}blocks.{index}."
        for kind in ("weight", "bias"):
            qkv = f"{theirs}attn.qkv.{kind}"
            found[f"{block}q.{kind}"] = Make((qkv,), lambda tensor: tensor[:inner])
            found[f"{block}kv.{kind}"] = Make((qkv,), lambda tensor: tensor[inner:])
            for ours, name in (("out", "attn.proj"), ("mlp.up", "mlp.fc1"), ("mlp.down", "mlp.fc2")):
                found[f"{block}{ours}.{kind}"] = Take(f"{theirs}{name}.{kind}")
    return found


def _mapped(none_1D: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(none_1D.float(), weight.float(), bias.float())[0]
