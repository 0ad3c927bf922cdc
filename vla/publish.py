"""A run's checkpoint -> one to hand on: without training state, with golden actions and a model card, read back before it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.checkpoint import CARD, Contents, acting, save_checkpoint
from vla.errors import UnknownName, UserError
from vla.golden import GOLDEN, SEEDS, TOLERANCE, image_side, observation, record
from vla.model import VLA
from vla.model_card import card_text, read_scores
from vla.policy import Policy
from vla.weights import MAX_SHARD_BYTES

DTYPES = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Publishing:
    """`name`: the card's title ('': that of the run). `licence`: an SPDX name; there is no default for what others may do with it.
    `scores`: result files of `vla eval --json`. `dtype`: of the stored weights. `merge_adapters`: LoRA into the weights it stands on."""

    name: str = ""
    licence: str = "unknown"
    scores: tuple[Path, ...] = ()
    dtype: str = "keep"
    merge_adapters: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES


def publish(source: str | Path, out: Path, how: Publishing = Publishing(), device: str = "cpu") -> Policy:
    """Writes `out`, and returns the policy as it was read back from there, acting as it did before.

    UserError for a merge that moves the outputs, a score of another checkpoint, or an `out` that is in the way.
    """
    if how.dtype not in DTYPES:
        raise UnknownName("dtype", how.dtype, DTYPES)
    folder = acting(Path(source))
    if out.exists():
        raise UserError(f"{out} exists; remove it, or choose another folder")
    policy = Policy.load(folder, device)
    scores = [read_scores(path, folder) for path in how.scores]
    contents, model = policy.contents, policy.model
    if how.merge_adapters:
        contents, model = merged(contents, model)
    weights = _cast(model.state_dict(), DTYPES[how.dtype])
    model.load_state_dict(weights)  # what is stored is what the golden actions are of
    golden = record(contents, Policy(contents, model).act_batch)
    name = how.name or str(contents.run.get("name", folder.name))
    card = card_text(name, how.licence, contents, model, scores, folder)
    save_checkpoint(out, contents, weights, how.max_shard_bytes, {GOLDEN: golden, CARD: card})
    return Policy.load(out, device, verify=True)


def merged(contents: Contents, model: VLA) -> tuple[Contents, VLA]:
    """Contents and model with LoRA merged into what it stands on, in fp32. UserError if states or actions move (by more than 1e-3)."""
    from vla.backbones.adapters import merge

    before = Policy(contents, model)
    seen = [observation(contents, robot, seed, image_side(contents)) for robot in contents.embodiments for seed in SEEDS]
    inputs = [before.collate.observations([each]).to(next(model.parameters()).device).inputs for each in seen]

    def states(backbone: Any) -> Tensor:
        return torch.cat([backbone(backbone.embed(each)).x_BSD.flatten() for each in inputs])

    backbone = merge(model.backbone, states)
    plain = replace(contents, model=replace(contents.model, backbone=backbone.config))
    built = plain.build()
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    built.load_state_dict({**weights, **{f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}})
    _same_actions(before, Policy(plain, built.to(next(model.parameters()).device)), contents)
    return plain, built.eval()


def _same_actions(before: Policy, after: Policy, contents: Contents) -> None:
    for robot in contents.embodiments:
        if robot.limits is None:
            continue
        for seed in SEEDS:
            seen = [observation(contents, robot, seed, image_side(contents))]
            was, now = (policy.act_batch(seen, [seed])[0].action_TA for policy in (before, after))
            moved = float((abs(now - was) / contents.normalizers[robot.name].action.scale).max())
            if not moved <= TOLERANCE:
                raise UserError(f"merging moved an action of '{robot.name}' by {moved:.1e} of its range; the adapters stay apart")


def _cast(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Floats in the type; counters, codes and the like as they are."""
    return {name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor for name, tensor in weights.items()}
