"""A call of published systems, with random weights: plain, by `Policy.optimize_for_inference`, and at the machine's limit.

    python -m benchmarks.inference                        # every published head on a small PaliGemma; any machine
    python -m benchmarks.inference --size published --device cuda --json
    python -m benchmarks.inference --only pi0 gr00t_n1 --compiled --json

`limit_ms`: the sum over all matrix products, convolutions and attentions of the longer of two times, that for their operations at the
device's best matrix product and that for the bytes that they read and write at its copy bandwidth, both measured in the same run. All else
counts as free, so nothing can be quicker. `plain_operations` and `optimized_operations`: what torch is asked for that is no view. `plain`
and `optimized` run in turn, block by block; `cosine` compares their answers. Where `optimized` captures nothing, `refused` says why.
`compiled` (with `--compiled`): torch.compile on the layers instead of joined maps; `compiled_first_s`: its first call, which compiles.
`peer_ms`: transformers' own class of the same size (`generate()` for what is decoded token by token, `sample_actions` for pi0), with
weights of its own: that the numbers agree is tested in tests/conformance.
A size that does not fit into the machine's memory is not run, and the row says so.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.published import WIDTH, Case, Ceilings, arguments, built, pi0, repeat, samples, table, timed
from vla.capture import Captured
from vla.compiled import compile_layers
from vla.fused import fuse
from vla.model import VLA
from vla.noise import Noise
from vla.train.flops import counted
from vla.types import Batch

CASES = (
    Case("OpenVLA, 7 tokens one by one, 1 image", "openvla", 1, 28, peer="generate"),
    Case("OpenVLA-OFT, 56 tokens at once, 1 image", "openvla_oft", 1, 9),
    Case("OpenVLA-OFT, 2 images", "openvla_oft", 2, 15),
    Case("OpenVLA-OFT, 1 image, 16 observations at once", "openvla_oft", 1, 133, batch=16),
    Case("Discrete Diffusion VLA, 2 images, 12 evaluations", "discrete_diffusion_vla", 2, 58),
    Case("Discrete Diffusion VLA, 2 images, 4 evaluations", "discrete_diffusion_vla", 2, 27, 4),
    Case("pi0, 2 images, chunk of 50, 10 steps", "pi0", 2, 8, peer="pi0"),
    Case("CogACT, 10 steps, guided", "cogact_b", 1, 9),
    Case("GR00T N1.7's sizes, 2 images, 4 steps", "gr00t_n1", 2, 9),
    Case("ACT", "act", 2, 1.5),
    Case("Diffusion Policy, 10 steps", "diffusion_policy", 2, 1.5),
)


class Roofline(TorchDispatchMode):
    """Adds up the least time of every operation that torch has a formula for. `seconds`: so far."""

    def __init__(self, ceilings: Ceilings) -> None:
        super().__init__()
        self.ceilings, self.seconds = ceilings, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "linear":
            with self:
                return func.decompose(*args, **(kwargs or {}))
        with counted() as operations:
            out = func(*args, **(kwargs or {}))
        if operations():
            given = [x for x in (*args, out) if isinstance(x, Tensor)] + [
                x for x in out if isinstance(out, tuple) and isinstance(x, Tensor)
            ]
            moved = sum(x.numel() * x.element_size() for x in given)
            self.seconds += max(operations() / self.ceilings.flops_per_s, moved / self.ceilings.bytes_per_s)
        return out


class Operations(TorchDispatchMode):
    """Counts what is no mere view: about as many kernels, the second limit of short calls. `count`: so far."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        alike = [result.alias_info for result in func._schema.returns]
        self.count += not any(info is not None and not info.is_write for info in alike)
        return func(*args, **(kwargs or {}))


def measure(case: Case, args: argparse.Namespace, ceilings: Ceilings) -> dict[str, Any]:
    """One row: milliseconds a call of each side, the limit, and how alike the answers are."""
    device, dtype = torch.device(args.device), torch.bfloat16 if args.device == "cuda" else torch.float32
    model, holds = built(case, args.size, device, dtype)
    seen = [sample.observation for sample in samples(holds, case.batch)]
    batch = holds.collate(model.eval()).observations(seen).to(device)
    noise = Noise(torch.arange(case.batch, device=device))
    optimized = copy.deepcopy(model)
    fuse(optimized)
    acting: dict[str, VLA | Captured] = {"plain": model, "optimized": optimized}
    if args.compiled:
        torch._dynamo.reset()  # or graphs of earlier rows would count against the limit of this one's
        acting["compiled"] = copy.deepcopy(model)
        compile_layers(acting["compiled"])
    if device.type == "cuda":
        acting |= {name: Captured(each) for name, each in acting.items() if isinstance(each, VLA) and name != "plain"}
    calls: dict[str, Callable[[], Tensor]] = {name: partial(each.sample, batch, noise) for name, each in acting.items()}
    with torch.inference_mode():
        with Roofline(ceilings) as roofline:
            model.sample(batch, noise)
        found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "goal_ms_h200": case.goal}
        found["limit_ms"] = round(1000 * roofline.seconds, 3)
        for name, which in (("plain", model), ("optimized", optimized)):
            which.sample(batch, noise)  # the first call also makes what later ones find
            with Operations() as operations:
                which.sample(batch, noise)
            found[f"{name}_operations"] = operations.count
        answers = {}
        for name, call in calls.items():
            began = time.perf_counter()
            answers[name] = call().float().flatten()
            if name == "compiled":
                found["compiled_first_s"] = round(time.perf_counter() - began, 1)
        likeness = [torch.cosine_similarity(answers["plain"], answer, dim=0) for name, answer in answers.items() if name != "plain"]
        found["cosine"] = round(float(min(likeness)), 6)
        peer = peer_of(case, model, batch, device, dtype)
        if peer is not None:
            calls["peer"] = peer
        found |= in_turn(calls, device, args.blocks, args.calls)
    captured = acting["optimized"]
    found["refused"] = list(captured.refused) if isinstance(captured, Captured) else ["no GPU: nothing is captured"]
    found["share_of_limit"] = round(found["limit_ms"] / found["optimized_ms"], 3)
    found["speedup"] = round(found["plain_ms"] / found["optimized_ms"], 3)
    if peer is not None:
        found["speed_over_peer"] = round(found["peer_ms"] / found["optimized_ms"], 3)
    return found


def in_turn(calls: Mapping[str, Callable[[], Tensor]], device: torch.device, blocks: int, repeats: int) -> dict[str, float]:
    """Medians over blocks, ms a call."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for block in range(blocks + 1):  # the first warms up
        for name, call in calls.items():
            seconds = timed(partial(repeat, call, repeats), device) / repeats
            took[name].extend([seconds] if block else [])
    return {f"{name}_ms": round(1000 * statistics.median(seconds), 3) for name, seconds in took.items()}


def peer_of(case: Case, model: VLA, batch: Batch, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor] | None:
    """transformers' way of doing the same, where it has one for this model."""
    if case.peer == "generate":
        return generation(model, batch, device, dtype)
    if case.peer == "pi0":
        theirs, given = pi0(model, batch, device, dtype)
        return lambda: theirs.sample_actions(num_steps=model.config.decoder.evaluations, **given)
    return None


def generation(model: VLA, batch: Batch, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """`generate()` of the language model, after the same look at the images, for as many tokens."""
    from transformers import AutoModelForCausalLM

    backbone: Any = model.backbone
    count = WIDTH * model.roster.horizon
    with torch.device(device):
        whole = AutoModelForCausalLM.from_config(backbone.language.config, dtype=dtype).eval()
    whole.model = backbone.language

    def call() -> Tensor:
        prefix = model.prefix(batch)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "use_cache": True}
        return whole.generate(inputs_embeds=prefix.x_BSD, attention_mask=prefix.valid_BS.long(), **options)

    return call


def main() -> None:
    """Prints each row as it is measured, or one JSON object."""
    parser = arguments(__doc__, blocks=5, calls=2)
    parser.add_argument("--compiled", action="store_true", help="also by torch.compile; its first call takes up to a minute a row")
    args = parser.parse_args()
    table(CASES, args, 3 + args.compiled, measure)  # each side's model, and what building one adds


if __name__ == "__main__":
    main()
