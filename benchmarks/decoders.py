"""What each decoder costs on the tiny backbone, and what K = 8 noise samples per context gain over K = 1.

    python -m benchmarks.decoders --json

One process, one thread, decoders in turn within each block; medians over the blocks. `train_samples_per_s`: forward, backward, update.
`ms_per_call`: one observation to one chunk. `actions_per_s`: steps of the chunk per second of calls. `k8_over_k1`: loss samples per
second of training with K = 8 against K = 1, alternating; `k8_over_prediction`: the same against what counted FLOPs predict,
8 * FLOPs(K = 1) / FLOPs(K = 8), printed as `k8_flop_prediction`. `demo_ms_per_call`: a call of each model of `pretrain/demo.py` as it
stands there (masked diffusion in 4 evaluations, the flow in 4 steps), with `--call-threads` threads; weights are random, so autoregressive
codes hang on each other as much as they can. `trained_ms_per_call`: the same of a trained run, such as

    vla train pretrain/demo.py:tokens --data-root runs/demo/data --steps 300 --out runs/tokens
    python -m benchmarks.decoders --trained runs/tokens --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla.backbones.tiny import Tiny
from vla.checkpoint import Contents
from vla.codecs.bins import Bins
from vla.decoders.base import total_loss
from vla.decoders.conditioning import CrossAttention, LayerKeysValues, Pooled
from vla.decoders.dit import DiT
from vla.decoders.joint import Joint, Part
from vla.decoders.latent import LatentActions
from vla.decoders.masked import MaskedDiffusion
from vla.decoders.parallel import Parallel
from vla.decoders.tokens import AutoregressiveTokens
from vla.diffusion.ddpm import DDPM
from vla.embodiment import Embodiment, Field, Space
from vla.golden import image_side, observation
from vla.model import VLA, Model
from vla.noise import Noise
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.policy import Policy
from vla.train.run import load_recipe
from vla.types import Batch, Observation, Sample

SPACE = Space((Field("move", 4, "m"),))
ROBOT = Embodiment("bench", ("front", "wrist"), SPACE, SPACE, SPACE, Fraction(20), 12, ((-9.0, 9.0),) * 4)
BATCH = 16

TINY = Tiny(width=128, depth=4, heads=4, channels=16, keypoints=32)
EXPERT = {"width": 128, "depth": 4, "heads": 4}
TOKENS = AutoregressiveTokens(codec=Bins(every=3))
FLOW = DiT(conditioning=LayerKeysValues(width=128, mlp_width=512), evaluations=10)
DECODERS: Mapping[str, Any] = {
    "parallel": Parallel(),
    "tokens": TOKENS,
    "masked": MaskedDiffusion(codec=Bins(every=3), evaluations=4),
    "dit_in_context": DiT(evaluations=10),
    "dit_layer_keys_values": FLOW,
    "dit_cross": DiT(conditioning=CrossAttention(**EXPERT, style="dit", interleaved=True), time="adaptive", evaluations=4),
    "dit_pooled_ddpm": DiT(path=DDPM(), conditioning=Pooled(**EXPERT, style="dit"), time="token", evaluations=10),
    "latent": LatentActions(),
    "joint_tokens_flow": Joint((Part("tokens", TOKENS), Part("flow", FLOW, insulated=True))),
}

DEMO = Path(__file__).resolve().parent.parent / "pretrain" / "demo.py"
DEMOS = ("parallel", "tokens", "masked", "dit", "latent")

# For K = 8 against K = 1: a prefix of 250 tokens in a backbone several times the expert, as a vision-language model beside pi0's.
CONTEXT = Tiny(width=256, depth=6, heads=4, channels=8, keypoints=16, max_words=248)
DENOISER = DiT(conditioning=LayerKeysValues(width=128, mlp_width=256), evaluations=10)
CONTEXT_BATCH = 4


def samples(count: int, words: int) -> list[Sample]:
    """Random: two cameras of 64 px, a state of 4 numbers, an instruction of so many words, a chunk of the horizon, four latent codes."""
    rng = np.random.default_rng(0)
    said = " ".join(f"w{n}" for n in range(words))
    made = []
    for number in range(count):
        images = {role: rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8) for role in ROBOT.cameras}
        seen = Observation(images, rng.uniform(-1, 1, (1, 4)), said, ROBOT.name)
        latent = rng.integers(0, 16, 4)
        action = rng.uniform(-1, 1, (ROBOT.horizon, 4))
        made.append(Sample(number, "bench", "e", number, seen, action, np.ones(ROBOT.horizon, dtype=bool), latent))
    return made


class Bench:
    """A model with its optimizer and one batch: a training step, and a call."""

    def __init__(self, backbone: Any, decoder: Any, batch: int, words: int = 8) -> None:
        torch.manual_seed(0)
        identity = Normalizer.identity(4, "random numbers in -1..1")
        contents = Contents(Model(backbone, decoder), (ROBOT,), {ROBOT.name: RobotNormalizer(StatsKey.of(ROBOT), identity, identity)})
        self.model: VLA = contents.build()
        self.batch: Batch = contents.collate(self.model).samples(samples(batch, words), {"bench": 0})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.size = batch

    def train(self) -> None:
        self.optimizer.zero_grad()
        total_loss(self.model(self.batch, Noise(self.batch.position_B))).backward()
        self.optimizer.step()

    @torch.inference_mode()
    def call(self) -> None:
        self.model.sample(self.batch[:1], Noise(self.batch.position_B[:1]))

    def flops(self) -> int:
        """Of the forward and backward pass of a training step; attention as the products that it is."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            total_loss(self.model(self.batch, Noise(self.batch.position_B))).backward()
        return counter.get_total_flops()


def measure(blocks: int, repeats: int) -> dict[str, Any]:
    """A row a decoder, in interleaved blocks: training samples/s, ms of a call for one observation, actions/s; and K = 8 beside K = 1."""
    benches = {name: Bench(TINY, config, BATCH) for name, config in DECODERS.items()}
    train: dict[str, list[float]] = {name: [] for name in benches}
    call: dict[str, list[float]] = {name: [] for name in benches}
    for block in range(blocks + 1):  # the first warms up
        for name, bench in benches.items():
            for seconds, run in ((train[name], bench.train), (call[name], bench.call)):
                took = seconds_of(run, repeats)
                seconds.extend([took] if block else [])
    rows = []
    for name in benches:
        called_s = statistics.median(call[name])
        rows.append(
            {
                "decoder": name,
                "parameters": sum(p.numel() for p in benches[name].model.parameters()),
                "train_samples_per_s": round(BATCH / statistics.median(train[name]), 1),
                "ms_per_call": round(1000 * called_s, 2),
                "actions_per_s": round(ROBOT.horizon / called_s),
            }
        )
    return {"rows": rows, **compare_k(blocks, repeats)}


def compare_k(blocks: int, repeats: int) -> dict[str, float]:
    """K = 8 against K = 1 on the same contexts, in turn."""
    one, eight = (Bench(CONTEXT, replace(DENOISER, samples_per_context=k), CONTEXT_BATCH, words=248) for k in (1, 8))
    prediction = 8 * one.flops() / eight.flops()
    ratios = []
    for block in range(blocks + 1):
        took_one, took_eight = seconds_of(one.train, repeats), seconds_of(eight.train, repeats)
        ratios.extend([8 * took_one / took_eight] if block else [])
    gain = statistics.median(ratios)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    return {
        "k8_over_k1": round(gain, 3),
        "k8_flop_prediction": round(prediction, 3),
        "k8_over_prediction": round(gain / prediction, 3),
        "k8_backbone_parameters": count(one.model.backbone),
        "k8_expert_parameters": count(one.model.decoder),
    }


def trained_call(folder: Path, blocks: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a trained model from an observation to a chunk; the median over the blocks."""
    policy = Policy.load(folder)
    robot = policy.contents.embodiments[0]
    batch, noise = policy.prepared([observation(policy.contents, robot, 1, image_side(policy.contents))], [1])

    @torch.inference_mode()
    def call() -> None:
        policy.model.sample(batch, noise)

    took = [seconds_of(call, repeats) for _ in range(blocks + 1)][1:]
    return {"trained_ms_per_call": round(1000 * statistics.median(took), 2), "trained": folder.name}


def demo_calls(threads: int, blocks: int, repeats: int) -> dict[str, Any]:
    """Milliseconds from an observation to a chunk for each of the demo's models, in turn; medians over the blocks."""
    torch.set_num_threads(threads)
    models = {name: load_recipe(f"{DEMO}:{name}").model for name in DEMOS}
    benches = {name: Bench(model.backbone, model.decoder, 1) for name, model in models.items()}
    took: dict[str, list[float]] = {name: [] for name in benches}
    for block in range(blocks + 1):  # the first warms up
        for name, bench in benches.items():
            seconds = seconds_of(bench.call, repeats)
            took[name].extend([seconds] if block else [])
    return {"demo_threads": threads, "demo_ms_per_call": {name: round(1000 * statistics.median(s), 2) for name, s in took.items()}}


def seconds_of(run: Callable[[], None], repeats: int) -> float:
    """Wall seconds of a run, a mean over `repeats`."""
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    """Prints one JSON object, or a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="steps and calls of each decoder in a block")
    parser.add_argument("--call-threads", type=int, default=2, help="of `demo_ms_per_call`; everything else has one")
    parser.add_argument("--trained", type=Path, metavar="RUN", help="a trained run or checkpoint, whose call is timed as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(args.blocks, args.repeats) | demo_calls(args.call_threads, args.blocks, args.repeats)
    result |= trained_call(args.trained, args.blocks, args.repeats) if args.trained else {}
    if args.json:
        print(json.dumps(result))
        return
    for row in result.pop("rows"):
        print("{decoder:24} {train_samples_per_s:8} samples/s {ms_per_call:8} ms a call {actions_per_s:7} actions/s".format(**row))
    print("\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
