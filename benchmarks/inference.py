"""A call of published systems at their published sizes, with random weights: plain, by `Policy.hasten`, and at the machine's limit.

    python -m benchmarks.inference                        # every published head on a small PaliGemma; any machine
    python -m benchmarks.inference --size published --device cuda --json

`limit_ms`: the sum over all matrix products, convolutions and attentions of the longer of two times, that for their operations at the
device's best matrix product and that for the bytes that they read and write at its copy bandwidth, both measured in the same run. All else
counts as free, so nothing can be quicker. `plain` and `hastened` run in turn, block by block; `cosine` compares their answers. Where
`hastened` records nothing, `refused` says why. `peer_ms`: transformers' own class of the same size (`generate()` for what is decoded token
by token, `sample_actions` for pi0), with weights of its own: that the numbers agree is tested in tests/conformance.
A size that does not fit into the machine's memory is not run, and the row says so.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vla.backbones.empty import build_empty
from vla.backbones.library import LibraryConfig
from vla.backbones.paligemma import PaliGemma
from vla.backbones.prompts import pack_tokenizer
from vla.checkpoint import Contents
from vla.embodiment import Embodiment, Field, Space
from vla.fused import fuse
from vla.model import VLA, Model
from vla.noise import Noise
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.presets import preset
from vla.recorded import Recorded
from vla.torchvision_cpu import prepare_torchvision
from vla.train.flops import counted, measured_peak
from vla.types import Batch, Observation

WIDTH = 7
"""Numbers of a command and of the state."""
SIDE = 224


@dataclass(frozen=True)
class Case:
    """A row: a preset with so many cameras. `evaluations`: of a denoiser, other than the preset's. `goal_ms`: on an H200. `peer`: what of
    transformers' does the same."""

    name: str
    preset: str
    views: int
    goal_ms: float
    evaluations: int | None = None
    peer: str = ""


CASES = (
    Case("7B token by token, 7 tokens, 1 image", "openvla", 1, 28, peer="generate"),
    Case("7B parallel, 56 tokens, 1 image", "openvla_oft", 1, 9),
    Case("7B parallel, 56 tokens, 2 images", "openvla_oft", 2, 15),
    Case("7B discrete diffusion, 56 tokens, 2 images, 12 evaluations", "discrete_diffusion_vla", 2, 58),
    Case("7B discrete diffusion, 4 evaluations", "discrete_diffusion_vla", 2, 27, 4),
    Case("pi0, 2 images, chunk of 50, 10 steps", "pi0", 2, 8, peer="pi0"),
    Case("CogACT 7B, 10 steps, guided", "cogact_b", 1, 9),
    Case("GR00T N1.7's sizes, 2 images, 4 steps", "gr00t_n1", 2, 9),
    Case("ACT", "act", 2, 1.5),
    Case("Diffusion Policy, 10 steps", "diffusion_policy", 2, 1.5),
)
_TEXT = {"model_type": "gemma", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
_TEXT |= {"num_key_value_heads": 1, "head_dim": 64, "vocab_size": 512, "pad_token_id": 0}
_TOWER = {"model_type": "siglip_vision_model", "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6}
_TOWER |= {"num_attention_heads": 3, "image_size": SIDE, "patch_size": 14, "vision_use_head": False, "projection_dim": 256}
SMALL = {"model_type": "paligemma", "text_config": _TEXT, "vision_config": _TOWER, "projection_dim": 256, "hidden_size": 256}
SMALL |= {"vocab_size": 512, "image_token_index": 261}
"""PaliGemma's own classes, an eighth as wide: what a CPU runs."""
SPECIAL: tuple[str, ...] = ("<pad>", "<s>", "</s>", "<bos>", "<eos>", "<image>", "<|im_start|>", "<|im_end|>")
SPECIAL += ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


@dataclass(frozen=True)
class Ceilings:
    """Of the machine, measured: operations a second of a matrix product, bytes a second of a copy (read and written)."""

    flops_per_s: float
    bytes_per_s: float

    @staticmethod
    def measured(device: torch.device, dtype: torch.dtype) -> Ceilings:
        on_gpu = device.type == "cuda"
        peak = measured_peak(device, "bf16" if dtype == torch.bfloat16 else "fp32", 8192 if on_gpu else 1024)
        a = torch.empty((2 << 30 if on_gpu else 256 << 20) // 4, dtype=torch.float32, device=device).normal_()
        b = torch.empty_like(a)
        took = min(timed(lambda: b.copy_(a), device) for _ in range(7))
        return Ceilings(peak, 2 * a.numel() * 4 / took)


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


def tokenizer() -> str:
    """Bytes, and the special tokens of all families: prompts of random models need no words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return pack_tokenizer(made.to_str())


def contents(case: Case, size: str) -> Contents:
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


def built(case: Case, size: str, device: torch.device, dtype: torch.dtype) -> tuple[VLA, Batch]:
    holds = contents(case, size)
    torch.manual_seed(0)
    with torch.device(device):
        model = holds.build()
    model = model.to(device, dtype).eval()
    with torch.no_grad():  # what starts at zero would hide a mistake
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    if model.decoder.fits:
        fit(model, holds, device)
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8) for camera in holds.embodiments[0].cameras}
    seen = Observation(images, rng.uniform(-1, 1, (1, WIDTH)), "put the red cube into the drawer", "bench")
    return model, holds.collate(model).observations([seen]).to(device)


def fit(model: VLA, holds: Contents, device: torch.device) -> None:
    """Codecs that look at data first are shown uniform chunks."""
    from vla.types import Sample

    rng, robot = np.random.default_rng(1), holds.embodiments[0]
    seen = Observation({}, np.zeros((1, WIDTH)), "", robot.name)
    rows = [Sample(n, "bench", "e", n, seen, rng.uniform(-1, 1, (robot.horizon, WIDTH)), np.ones(robot.horizon, bool)) for n in range(256)]
    target = holds.collate(model).samples(rows, {"bench": 0}).target
    assert target is not None
    model.decoder.fit(target.to(device))


def measure(case: Case, args: argparse.Namespace, ceilings: Ceilings) -> dict[str, Any]:
    device, dtype = torch.device(args.device), torch.bfloat16 if args.device == "cuda" else torch.float32
    model, batch = built(case, args.size, device, dtype)
    parameters = sum(p.numel() for p in model.parameters())
    noise = Noise(torch.tensor([1], device=device))
    hastened = copy.deepcopy(model)
    fuse(hastened)
    recorded = Recorded(hastened) if device.type == "cuda" else None
    calls: dict[str, Callable[[], Tensor]] = {"plain": lambda: model.sample(batch, noise)}
    calls["hastened"] = lambda: (recorded or hastened).sample(batch, noise)
    with torch.inference_mode():
        with Roofline(ceilings) as roofline:
            model.sample(batch, noise)
        found: dict[str, Any] = {"parameters": parameters, "limit_ms": round(1000 * roofline.seconds, 3), "goal_ms_h200": case.goal_ms}
        answers = {name: call().float().flatten() for name, call in calls.items()}
        found["cosine"] = round(float(torch.cosine_similarity(answers["plain"], answers["hastened"], dim=0)), 6)
        peer = peer_of(case, model, batch, device, dtype)
        if peer is not None:
            calls["peer"] = peer
        found |= in_turn(calls, device, args.blocks, args.calls)
    found["refused"] = list(recorded.refused) if recorded is not None else ["no GPU: nothing is recorded"]
    found["share_of_limit"] = round(found["limit_ms"] / found["hastened_ms"], 3)
    found["speedup"] = round(found["plain_ms"] / found["hastened_ms"], 3)
    if peer is not None:
        found["speed_over_peer"] = round(found["peer_ms"] / found["hastened_ms"], 3)
    return found


def in_turn(calls: Mapping[str, Callable[[], Tensor]], device: torch.device, blocks: int, repeats: int) -> dict[str, float]:
    """Medians over blocks, ms a call."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for block in range(blocks + 1):  # the first warms up
        for name, call in calls.items():
            seconds = timed(partial(_repeat, call, repeats), device) / repeats
            took[name].extend([seconds] if block else [])
    return {f"{name}_ms": round(1000 * statistics.median(seconds), 3) for name, seconds in took.items()}


def _repeat(call: Callable[[], Tensor], times: int) -> None:
    for _ in range(times):
        call()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until it is done, on the device too."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def peer_of(case: Case, model: VLA, batch: Batch, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor] | None:
    """transformers' way of doing the same, where it has one for this model."""
    make = {"generate": generation, "pi0": pi0}.get(case.peer)
    return make(model, batch, device, dtype) if make is not None else None


def pi0(model: VLA, batch: Batch, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """`sample_actions` of PI0ForConditionalGeneration of the same sizes, on the same observation, for as many steps."""
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
    given = {
        "input_ids": torch.where(seen["patch_BS"] >= 0, image_id, seen["token_BS"]),
        "attention_mask": seen["token_valid_BS"].long(),
        "pixel_values": image,
        "pixel_attention_mask": torch.ones(image.shape[:2], dtype=torch.bool, device=device),
        "noise": torch.randn(1, horizon, numbers, device=device, dtype=dtype),
        "state": batch.state_BFP[:, -1].to(dtype),
    }
    return lambda: theirs.sample_actions(num_steps=decoder.evaluations, **given)


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


def memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def needed_bytes(case: Case, size: str, element: int) -> int:
    """Of the weights of both copies, and what building adds; without building any."""
    holds = contents(case, size)
    model: nn.Module = build_empty(holds.model, holds.roster)
    return 3 * element * sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("small", "published"), default="small")
    parser.add_argument("--only", nargs="+", metavar="PRESET", help="rows of these presets")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2, help="of each side in a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"size": args.size, "device": args.device, "machine": machine(args)}
    if args.device == "cuda" and not torch.cuda.is_available():
        found["could_not_run"] = "no CUDA device"
    else:
        prepare_torchvision()
        device = torch.device(args.device)
        dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
        ceilings = Ceilings.measured(device, dtype)
        found["ceilings"] = {"tflops_per_s": round(ceilings.flops_per_s / 1e12, 3), "gb_per_s": round(ceilings.bytes_per_s / 1e9, 2)}
        found["rows"] = {}
        for case in CASES:
            if args.only and case.preset not in args.only:
                continue
            needed, there = needed_bytes(case, args.size, dtype.itemsize), memory_bytes(device)
            if needed > there:
                row = {"could_not_run": f"needs about {needed / 1e9:.0f} GB; this machine has {there / 1e9:.0f}"}
            else:
                row = measure(case, args, ceilings)
            found["rows"][case.name] = row
            gc.collect()
            if not args.json:
                print(case.name, *(f"{key} {value}" for key, value in row.items()), sep="\n  ")
    if args.json or "could_not_run" in found:
        print(json.dumps(found, indent=1))


def machine(args: argparse.Namespace) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    name = (
        torch.cuda.get_device_name() if args.device == "cuda" and torch.cuda.is_available() else platform.processor() or platform.machine()
    )
    return {"processor": name, "threads": args.threads, **versions}


if __name__ == "__main__":
    main()
