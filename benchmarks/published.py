"""What the benchmarks of published systems share: the systems with random weights, an observation and a batch for them, transformers' own
class beside ours, and what the machine can do at most."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.command import parser_of
from vla.backbones.empty import build_empty
from vla.backbones.library import LibraryConfig
from vla.backbones.paligemma import PaliGemma
from vla.backbones.prompts import pack_tokenizer
from vla.checkpoint import Contents
from vla.embodiment import Embodiment, Field, Space
from vla.model import VLA, Model
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.presets import preset
from vla.torchvision_cpu import prepare_torchvision
from vla.train.flops import measured_peak
from vla.types import Batch, Observation, Sample

WIDTH = 7
"""Numbers of a command and of the state."""
SIDE = 224
SPECIAL: tuple[str, ...] = ("<pad>", "<s>", "</s>", "<bos>", "<eos>", "<image>", "<|im_start|>", "<|im_end|>")
SPECIAL += ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


@dataclass(frozen=True)
class Case:
    """A row: a preset with so many cameras. `evaluations`: of a denoiser, other than the preset's. `goal`: on an H200, as the benchmark
    counts. `peer`: what of transformers' does the same. `batch`: observations at once."""

    name: str
    preset: str
    views: int
    goal: float
    evaluations: int | None = None
    peer: str = ""
    batch: int = 1


@dataclass(frozen=True)
class Ceilings:
    """Of the machine, measured: operations a second of a matrix product, bytes a second of a copy (read and written)."""

    flops_per_s: float
    bytes_per_s: float

    @staticmethod
    def measured(device: torch.device, dtype: torch.dtype) -> Ceilings:
        """Of this device, in numbers of this type."""
        on_gpu = device.type == "cuda"
        peak = measured_peak(device, "bf16" if dtype == torch.bfloat16 else "fp32", 8192 if on_gpu else 1024)
        a = torch.empty((2 << 30 if on_gpu else 256 << 20) // 4, dtype=torch.float32, device=device).normal_()
        b = torch.empty_like(a)
        took = min(timed(lambda: b.copy_(a), device) for _ in range(7))
        return Ceilings(peak, 2 * a.numel() * 4 / took)

    def or_better(self, other: Ceilings) -> Ceilings:
        """The best of both: on a machine that others use too, a moment may be a slow one."""
        return Ceilings(max(self.flops_per_s, other.flops_per_s), max(self.bytes_per_s, other.bytes_per_s))


@dataclass(frozen=True)
class Sizes:
    """Of a transformer."""

    width: int
    mlp_width: int
    depth: int
    heads: int


def paligemma_library(language: Sizes, tower: Sizes, *, head_width: int, words: int, image_token: int) -> dict[str, Any]:
    """PaliGemma's own classes at other sizes, as its `config.json` says it."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": tower.width, "intermediate_size": tower.mlp_width}
    vision |= {"num_hidden_layers": tower.depth, "num_attention_heads": tower.heads, "projection_dim": language.width}
    vision |= {"image_size": SIDE, "patch_size": 14, "vision_use_head": False}
    text = {"model_type": "gemma", "hidden_size": language.width, "intermediate_size": language.mlp_width, "vocab_size": words}
    text |= {"num_hidden_layers": language.depth, "num_attention_heads": language.heads}
    text |= {"num_key_value_heads": 1, "head_dim": head_width}
    sizes = {"projection_dim": language.width, "hidden_size": language.width, "vocab_size": words, "image_token_index": image_token}
    return {"model_type": "paligemma", "text_config": text, "vision_config": vision, **sizes}


SMALL = paligemma_library(Sizes(256, 1024, 6, 4), Sizes(192, 768, 6, 3), head_width=64, words=512, image_token=261)
"""An eighth as wide: what a CPU runs."""


def with_special(tokenizer: Any, special: Sequence[str]) -> str:
    """A tokenizer of the library `tokenizers` with these tokens, which no text is split into, as configurations hold it."""
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return pack_tokenizer(tokenizer.to_str())


def tokenizer() -> str:
    """Bytes, and the special tokens of all families: prompts of random models need no words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return with_special(made, SPECIAL)


def contents(case: Case, size: str) -> Contents:
    """A preset for one robot of `WIDTH` numbers, on its published backbone or on `SMALL`."""
    chosen = preset(case.preset)
    decoder = chosen.decoder if case.evaluations is None else replace(chosen.decoder, evaluations=case.evaluations)
    config = chosen.model()
    backbone = config.backbone
    if isinstance(backbone, LibraryConfig):
        backbone = replace(backbone, tokenizer=tokenizer()) if size == "published" else PaliGemma(SMALL, tokenizer=tokenizer())
    space = Space((Field("move", WIDTH, "m"),))
    cameras = ("front", "wrist")[: case.views]
    robot = Embodiment("bench", cameras, space, space, space, Fraction(10), chosen.horizon, ((-9.0, 9.0),) * WIDTH)
    identity = Normalizer.identity(WIDTH, "random numbers in -1..1")
    return Contents(Model(backbone, decoder, config.state), (robot,), {robot.name: RobotNormalizer(StatsKey.of(robot), identity, identity)})


def built(case: Case, size: str, device: torch.device, dtype: torch.dtype) -> tuple[VLA, Contents]:
    """A model with random weights, whose codec has seen data."""
    holds = contents(case, size)
    torch.manual_seed(0)
    with torch.device(device):
        model = holds.build()
    model = model.to(device, dtype)
    with torch.no_grad():  # what starts at zero would hide a mistake
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    if model.decoder.fits:
        target = holds.collate(model).samples(samples(holds, 256, images=False), {"bench": 0}).target
        assert target is not None
        model.decoder.fit(target.to(device))
    return model, holds


def samples(holds: Contents, count: int, images: bool = True) -> list[Sample]:
    """Of the one robot: noise in every picture, uniform states and commands."""
    rng, robot = np.random.default_rng(0), holds.embodiments[0]
    cameras = robot.cameras if images else ()
    made = []
    for n in range(count):
        seen = {camera: rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8) for camera in cameras}
        observed = Observation(seen, rng.uniform(-1, 1, (1, WIDTH)), "put the red cube into the drawer", robot.name)
        made.append(Sample(n, "bench", "e", n, observed, rng.uniform(-1, 1, (robot.horizon, WIDTH)), np.ones(robot.horizon, dtype=bool)))
    return made


def pi0(model: VLA, batch: Batch, device: torch.device, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    """transformers' PI0ForConditionalGeneration of the same sizes, and the same batch as it takes it."""
    from transformers import PI0Config, PI0ForConditionalGeneration

    backbone, decoder = model.config.backbone, model.config.decoder
    expert = {"hidden_size": decoder.conditioning.width, "intermediate_size": decoder.conditioning.mlp_width}
    text = {"hidden_activation": "gelu_pytorch_tanh", **backbone.library["text_config"], **expert}
    horizon, numbers = model.roster.horizon, model.decoder.action_width
    sizes = {"chunk_size": horizon, "max_action_dim": numbers, "max_state_dim": model.roster.state_width}
    with torch.device(device):
        theirs = PI0ForConditionalGeneration(PI0Config(vlm_config=dict(backbone.library), dit_config=text, **sizes)).to(dtype).eval()
    seen, image_id = batch.inputs, theirs.config.vlm_config.image_token_id
    image = seen["image_BVFHW3"].flatten(1, 2).permute(0, 1, 4, 2, 3).to(dtype) / 127.5 - 1
    return theirs, {
        "input_ids": torch.where(seen["patch_BS"] >= 0, image_id, seen["token_BS"]),
        "attention_mask": seen["token_valid_BS"].long(),
        "pixel_values": image,
        "pixel_attention_mask": torch.ones(image.shape[:2], dtype=torch.bool, device=device),
        "noise": torch.randn(len(image), horizon, numbers, device=device, dtype=dtype),
        "state": batch.state_BFP[:, -1].to(dtype),
    }


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until it is done, on the device too."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def repeat(call: Callable[[], object], times: int) -> None:
    """Calls so many times."""
    for _ in range(times):
        call()


def memory_bytes(device: torch.device) -> int:
    """Of the GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def needed_bytes(case: Case, size: str, a_number: int) -> int:
    """Of the weights, at so many bytes a number; without building them."""
    holds = contents(case, size)
    model: nn.Module = build_empty(holds.model, holds.roster)
    return a_number * sum(p.numel() for p in model.parameters())


def arguments(doc: str, blocks: int, calls: int) -> argparse.ArgumentParser:
    """What both benchmarks can be told."""
    parser = parser_of(doc)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("small", "published"), default="small")
    parser.add_argument("--only", nargs="+", metavar="PRESET", help="rows of these presets")
    parser.add_argument("--blocks", type=int, default=blocks)
    parser.add_argument("--calls", type=int, default=calls, help="of each side in a block")
    parser.add_argument("--threads", type=int, default=2)
    return parser


Measure = Callable[[Case, argparse.Namespace, Ceilings], Mapping[str, Any]]


def table(cases: Sequence[Case], args: argparse.Namespace, copies: int, measure: Measure) -> None:
    """Prints a row for each case, or why there is none. `copies`: of the weights that a row holds at once."""
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"size": args.size, "device": args.device, "machine": machine(args)}
    if args.device == "cuda" and not torch.cuda.is_available():
        found["could_not_run"] = "no CUDA device"
        print(json.dumps(found, indent=1))
        return
    prepare_torchvision()
    device, dtype = torch.device(args.device), torch.bfloat16 if args.device == "cuda" else torch.float32
    ceilings = Ceilings.measured(device, dtype)
    found["rows"] = {}
    for case in cases:
        if args.only and case.preset not in args.only:
            continue
        needed, there = needed_bytes(case, args.size, copies * dtype.itemsize), memory_bytes(device)
        if needed > there:
            row: Mapping[str, Any] = {"could_not_run": f"needs about {needed / 1e9:.0f} GB; this machine has {there / 1e9:.0f}"}
        else:
            ceilings = ceilings.or_better(Ceilings.measured(device, dtype))
            row = measure(case, args, ceilings)
        found["rows"][case.name] = row
        gc.collect()
        if not args.json:
            print(case.name, *(f"{key} {value}" for key, value in row.items()), sep="\n  ")
    found["ceilings"] = {"tflops_per_s": round(ceilings.flops_per_s / 1e12, 3), "gb_per_s": round(ceilings.bytes_per_s / 1e9, 2)}
    if args.json:
        print(json.dumps(found, indent=1))


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Processor or GPU, threads and versions."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    name = (
        torch.cuda.get_device_name() if args.device == "cuda" and torch.cuda.is_available() else platform.processor() or platform.machine()
    )
    return {"processor": name, "threads": args.threads, **versions}
