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

import itertools
import json
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command import ROOT, parser_of
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
from vla.demo.plan import DECODERS as DEMO_DECODERS
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

DEMO = ROOT / "pretrain" / "demo.py"

# For K = 8 against K = 1: a prefix of 250 tokens in a backbone several times the expert, as a vision-language model beside pi0's.
CONTEXT = Tiny(width=256, depth=6, heads=4, channels=8, keypoints=16, max_words=248)
DENOISER = DiT(conditioning=LayerKeysValues(width=128, mlp_width=256), evaluations=10)
CONTEXT_BATCH = 4

Name = TypeVar("Name", bound=Hashable)


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

    def __init__(self, model: VLA, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.batch, self.optimizer = model, batch, optimizer
        self.call = calls(model, batch[:1])

    @staticmethod
    def random(backbone: Any, decoder: Any, batch: int, words: int = 8) -> Bench:
        """Of fresh weights and random samples."""
        torch.manual_seed(0)
        identity = Normalizer.identity(4, "random numbers in -1..1")
        contents = Contents(Model(backbone, decoder), (ROBOT,), {ROBOT.name: RobotNormalizer(StatsKey.of(ROBOT), identity, identity)})
        model = contents.build()
        made = contents.collate(model).samples(samples(batch, words), {"bench": 0})
        return Bench(model, made, torch.optim.AdamW(model.parameters(), lr=1e-4))

    def train(self) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        total_loss(self.model(self.batch, Noise(self.batch.position_B))).backward()
        self.optimizer.step()

    def flops(self) -> int:
        """Of the forward and backward pass of a training step; attention as the products that it is."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            total_loss(self.model(self.batch, Noise(self.batch.position_B))).backward()
        return counter.get_total_flops()


def calls(model: VLA, batch: Batch) -> Callable[[], None]:
    """A call of the model, which makes one observation of the batch to a chunk: the next one each time."""
    seen = [batch[row : row + 1] for row in range(len(batch.position_B))]
    turns = itertools.cycle([(one, Noise(one.position_B)) for one in seen])

    @torch.inference_mode()
    def call() -> None:
        model.sample(*next(turns))

    return call


def in_turn(runs: Mapping[Name, Callable[[], None]], blocks: int, repeats: int) -> dict[Name, list[float]]:
    """Wall seconds of each, a mean over `repeats` in each of the blocks, so that a slow moment of the machine is shared."""
    took: dict[Name, list[float]] = {name: [] for name in runs}
    for block in range(blocks + 1):  # the first warms up
        for name, run in runs.items():
            seconds = seconds_of(run, repeats)
            took[name].extend([seconds] if block else [])
    return took


def seconds_of(run: Callable[[], None], repeats: int) -> float:
    """Wall seconds of a run, a mean over `repeats`."""
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def milliseconds(seconds: Sequence[float]) -> float:
    """The median."""
    return round(1000 * statistics.median(seconds), 2)


def measure(blocks: int, repeats: int) -> dict[str, Any]:
    """A row a decoder, in interleaved blocks: training samples/s, ms of a call for one observation, actions/s; and K = 8 beside K = 1."""
    benches = {name: Bench.random(TINY, config, BATCH) for name, config in DECODERS.items()}
    work = {(name, what): run for name, bench in benches.items() for what, run in (("train", bench.train), ("call", bench.call))}
    took = in_turn(work, blocks, repeats)
    rows = [
        {
            "decoder": name,
            "parameters": sum(p.numel() for p in bench.model.parameters()),
            "train_samples_per_s": round(BATCH / statistics.median(took[name, "train"]), 1),
            "ms_per_call": milliseconds(took[name, "call"]),
            "actions_per_s": round(ROBOT.horizon / statistics.median(took[name, "call"])),
        }
        for name, bench in benches.items()
    ]
    return {"rows": rows, **compare_k(blocks, repeats)}


def compare_k(blocks: int, repeats: int) -> dict[str, float]:
    """K = 8 against K = 1 on the same contexts, in turn."""
    one, eight = (Bench.random(CONTEXT, replace(DENOISER, samples_per_context=k), CONTEXT_BATCH, words=248) for k in (1, 8))
    prediction = 8 * one.flops() / eight.flops()
    took = in_turn({1: one.train, 8: eight.train}, blocks, repeats)
    gain = statistics.median(8 * took_one / took_eight for took_one, took_eight in zip(took[1], took[8], strict=True))
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
    batch, _ = policy.prepared([observation(policy.contents, robot, 1, image_side(policy.contents))], [1])
    took = in_turn({"call": calls(policy.model, batch)}, blocks, repeats)
    return {"trained_ms_per_call": milliseconds(took["call"]), "trained": folder.name}


def demo_calls(threads: int, blocks: int, repeats: int) -> dict[str, Any]:
    """Milliseconds from an observation to a chunk for each of the demo's models, in turn; medians over the blocks."""
    torch.set_num_threads(threads)
    models = {name: load_recipe(f"{DEMO}:{name}").model for name in DEMO_DECODERS}
    took = in_turn({name: Bench.random(model.backbone, model.decoder, 1).call for name, model in models.items()}, blocks, repeats)
    return {"demo_threads": threads, "demo_ms_per_call": {name: milliseconds(seconds) for name, seconds in took.items()}}


def main() -> None:
    """Prints one JSON object, or a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="steps and calls of each decoder in a block")
    parser.add_argument("--call-threads", type=int, default=2, help="of `demo_ms_per_call`; everything else has one")
    parser.add_argument("--trained", type=Path, metavar="RUN", help="a trained run or checkpoint, whose call is timed as well")
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
