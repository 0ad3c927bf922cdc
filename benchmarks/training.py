"""A training step of published systems, with random weights: samples a second, and the share of the machine's best matrix product (MFU).

    python -m benchmarks.training                        # pi0 and OpenVLA-OFT on a small PaliGemma; any machine
    python -m benchmarks.training --size published --device cuda --json

A step is forward, backward and fused AdamW; in bf16 by autocast on a GPU. `gflop_a_sample` counts what the model needs, once, whatever is
computed twice to save memory (vla/train/flops.py); `mfu` is that, times samples a second, over the best matrix product of the same
precision, measured in the same run. `compiled`: each layer by torch.compile, as `Run(compiled=True)` has it. `peer`: transformers'
PI0ForConditionalGeneration of the same sizes, same batch, same optimizer. The sides take turns, block by block.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.published import Case, Ceilings, arguments, built, pi0, repeat, samples, table, timed
from vla.compiled import compile_layers
from vla.decoders.base import total_loss
from vla.noise import Noise
from vla.train.flops import backward_share, counted
from vla.types import Batch

CASES = (
    Case("pi0, 2 images", "pi0", 2, 0.45, peer="pi0"),
    Case("OpenVLA-OFT, 2 images", "openvla_oft", 2, 0.45),
)


def measure(case: Case, args: argparse.Namespace, ceilings: Ceilings) -> dict[str, Any]:
    """One row: samples a second and MFU of a training step."""
    device, size = torch.device(args.device), args.batch
    model, holds = built(case, args.size, device, torch.float32)
    batch: Batch = holds.collate(model.train()).samples(samples(holds, size), {"bench": 0}).to(device)
    model.apart, model.backbone.all_reached = True, False  # as the local engine has it
    noise = Noise(batch.position_B)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda")
    with torch.no_grad(), autocast(), counted() as operations:
        model(batch, noise)
        flops = operations() * (1 + backward_share(model))

    def loss_of(which: nn.Module) -> torch.Tensor:
        with autocast():
            return total_loss(which(batch, noise))

    steps: dict[str, Callable[[], None]] = {"plain": step(model, partial(loss_of, model))}
    if args.compiled:
        compiled = copy.deepcopy(model)
        compile_layers(compiled)
        steps["compiled"] = step(compiled, partial(loss_of, compiled))
    if case.peer:
        theirs, given = pi0(model, batch, device, torch.float32)
        assert batch.target is not None
        robot = {"actions": batch.target.action_BTA, "timestep": torch.rand(size, device=device)}

        def their_loss() -> torch.Tensor:
            with autocast():
                return theirs(**given, **robot).loss

        steps["peer"] = step(theirs.train(), their_loss)
    took: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(args.blocks + 1):  # the first warms up
        for name, work in steps.items():
            seconds = timed(partial(repeat, work, args.calls), device) / args.calls
            took[name].extend([seconds] if block else [])
    middle = {name: statistics.median(seconds) for name, seconds in took.items()}
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "batch": size, "goal_mfu_h200": case.goal}
    found["gflop_a_sample"] = round(flops / size / 1e9, 2)
    for name, seconds in middle.items():
        found[f"{name}_samples_per_s"] = round(size / seconds, 3)
        if name != "peer":
            found[f"{name}_mfu"] = round(flops / seconds / ceilings.flops_per_s, 3)
    if "peer" in middle:
        ours = min(seconds for name, seconds in middle.items() if name != "peer")
        found["speed_over_peer"] = round(middle["peer"] / ours, 3)
    return found


def step(model: nn.Module, loss_of: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A training step by fused AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def work() -> None:
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()

    return work


def main() -> None:
    """Prints each row as it is measured, or one JSON object."""
    parser = arguments(__doc__, blocks=7, calls=1)
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--compiled", action="store_true", help="also with compiled layers, which takes minutes to begin")
    args = parser.parse_args()
    table(CASES, args, 10 if args.compiled else 6, measure)  # weights, gradients, two moments; bf16 is half of a weight


if __name__ == "__main__":
    main()
