"""Training decoders on a frozen backbone with its features kept on disk, against running it in every step.

Every case is one backbone and one decoder; both sides are the same run, but for `Run(features=...)`. `speedup`: samples a second of a run
whose observations were all kept by an earlier one (any epoch but the first), over those of the same run without; medians of interleaved
rounds. `kb`: of an observation on disk. `loss_difference`: the most by which the losses of the two sides differ, over the largest.

Backbones: a PaliGemma of a tenth of the real one's depth and a quarter of its width at 224 px with random weights, and a ResNet-18 with a
small transformer. Where the real one is larger, so is the speed-up: what is left over is the decoder's.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.command import parser_of, usable
from benchmarks.published import SIDE, Sizes, paligemma_library, with_special
from benchmarks.train_loop import ROBOT, Times, write_shards
from vla.backbones.paligemma import PaliGemma
from vla.backbones.stems import ResNet18
from vla.backbones.tiny import Tiny
from vla.data.mixture import Mixture
from vla.decoders.conditioning import CrossAttention, LayerKeysValues, Pooled
from vla.decoders.dit import DiT
from vla.decoders.parallel import Parallel
from vla.model import Model
from vla.state import NoState
from vla.train.features import Features
from vla.train.loop import train
from vla.train.run import Run


def tokenizer() -> str:
    """Words of the bench's one instruction, and what stands around it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<unk>": 0, "do": 1, "it": 2, "\n": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return with_special(made, ("<bos>", "<image>"))


def paligemma() -> PaliGemma:
    """A tenth of the published one's depth, a quarter of its width."""
    library = paligemma_library(Sizes(512, 4096, 2, 2), Sizes(288, 1076, 3, 4), head_width=256, words=16, image_token=5)
    return PaliGemma(library, tokenizer=tokenizer())


def cases() -> dict[str, Model]:
    """Backbone/decoder -> a model whose backbone stands still."""
    large, small = paligemma(), Tiny(stem=ResNet18(), image_size=SIDE)
    sizes = {"width": 128, "heads": 4}
    return {
        "paligemma/pooled": Model(large, DiT(conditioning=Pooled(**sizes, depth=3, read="last")), NoState()),
        "paligemma/cross": Model(large, DiT(conditioning=CrossAttention(**sizes, depth=3), state_in_suffix=True)),
        "paligemma/per_layer": Model(large, DiT(conditioning=LayerKeysValues(width=128, mlp_width=512), state_in_suffix=True)),
        "paligemma/parallel": Model(large, Parallel()),
        "resnet18/parallel": Model(small, Parallel()),
        "resnet18/cross": Model(small, DiT(conditioning=CrossAttention(**sizes, depth=3), state_in_suffix=True)),
    }


def measure(model: Model, mixture: Mixture, folder: Path, steps: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Samples a second with features and without, in turn, and how far their losses lie apart."""

    def run(features: Features | None) -> Run:
        settings: dict[str, Any] = {"freeze": ("backbone",), "features": features, "threads": 1, "workers": 1, "log_every": 1}
        return Run("bench", mixture, (ROBOT,), steps, batch_size, model, probe=False, val_batches=1, **settings)

    kept = Features(str(folder / "features"))
    train(run(kept), folder / "fill")
    rates: dict[str, list[float]] = {"without": [], "kept": []}
    for number in range(rounds):
        for name, features in (("without", None), ("kept", kept)):
            times = Times()
            train(run(features), folder / f"{name}{number}", watch=times)
            rates[name].append(batch_size / times.mean_s)
    losses = {name: _losses(folder / f"{name}0") for name in rates}
    files = list((folder / "features").rglob("*.safetensors"))
    observations = 0
    for path in files:
        with safe_open(path, "pt") as file:
            observations += file.get_slice("end_N").get_shape()[0]
    return {
        "speedup": statistics.median(kept / without for without, kept in zip(rates["without"], rates["kept"], strict=True)),
        "without_per_s": statistics.median(rates["without"]),
        "kept_per_s": statistics.median(rates["kept"]),
        "kb": sum(path.stat().st_size for path in files) / observations / 1e3,
        "loss_difference": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)) / max(losses["without"]),
        "rounds_per_s": rates,
    }


def _losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == "train"]


def main() -> int:
    """Prints each case as it is measured, or one JSON object."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=15, help="of each run; the first five are not counted")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(cases()), choices=list(cases()))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {**usable(), "batch_size": args.batch_size}
    for name in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            mixture = write_shards(Path(folder), episodes=10, steps=20, side=SIDE)
            found[name] = measure(cases()[name], mixture, Path(folder), args.steps, args.batch_size, args.rounds)
        if not args.json:
            print(name, {key: value for key, value in found[name].items() if key != "rounds_per_s"}, flush=True)
    if args.json:
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
