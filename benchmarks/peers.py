"""Small policies beside lerobot's of the same size: ACT beside our `act`, Diffusion Policy beside our `diffusion_policy` (vla/presets.py).

    python -m venv peers-env && peers-env/bin/pip install lerobot && peers-env/bin/pip install --no-deps .
    peers-env/bin/python -m benchmarks.peers --json

lerobot's pins exclude this project's versions, hence the environment of its own; where it is not installed, the result says so. One
process: in each block both sides act and train in turn, on the same images, states and chunks; medians over the blocks, ratios within a
block (above 1: ours is faster). Both see by a ResNet-18 from random weights and denoise in the same number of evaluations. Ours act as
`Policy.optimize_for_inference` leaves them. Each side trains by the optimizer that its own trainer makes: fused AdamW, and lerobot's
presets, which are not fused; `train_fused` is the same with a fused AdamW on both sides.
The peer runs at its best: `eval` and `inference_mode`, images that are floats already (ours convert bytes), no dropout, and ACT without its
CVAE, whose encoder would train another 17M parameters that acting does not use. Parameters are those that act.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.command import parser_of
from vla.checkpoint import Contents
from vla.decoders.base import total_loss
from vla.embodiment import Embodiment, Field, Space
from vla.fused import fuse
from vla.noise import Noise
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.presets import preset
from vla.torchvision_cpu import prepare_torchvision
from vla.train.optim import AdamW
from vla.types import Observation, Sample

CAMERAS = ("front", "wrist")
WIDTH = 7
"""Numbers of the state and of a command."""

KINDS = ("call", "train", "train_fused")

INSTALL = "python -m venv peers-env && peers-env/bin/pip install lerobot && peers-env/bin/pip install --no-deps ."


@dataclass(frozen=True)
class Data:
    """What both sides see: `image` uint8 (B, F, V, side, side, 3), `state` (B, F, WIDTH), `action` (B, T, WIDTH)."""

    image: np.ndarray
    state: np.ndarray
    action: np.ndarray

    @staticmethod
    def random(batch: int, frames: int, side: int, horizon: int) -> Data:
        """Noise of these sizes, always the same."""
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (batch, frames, len(CAMERAS), side, side, 3), dtype=np.uint8)
        state, action = (rng.uniform(-1, 1, (batch, length, WIDTH)).astype(np.float32) for length in (frames, horizon))
        return Data(image, state, action)


class Ours:
    """A preset at the peer's image size: a call and a training step."""

    def __init__(self, name: str, data: Data) -> None:
        batch, frames, _, side = data.image.shape[:4]
        chosen = preset(name)
        config = chosen.model()
        config = replace(config, backbone=replace(config.backbone, image_size=side))
        space = Space((Field("move", WIDTH, "m"),))
        robot = Embodiment("bench", CAMERAS, space, space, space, Fraction(10), data.action.shape[1], ((-9.0, 9.0),) * WIDTH)
        identity = Normalizer.identity(WIDTH, "random numbers in -1..1")
        offsets_s = tuple(-0.1 * age for age in reversed(range(frames)))
        contents = Contents(config, (robot,), {robot.name: RobotNormalizer(StatsKey.of(robot), identity, identity)}, offsets_s=offsets_s)
        torch.manual_seed(0)
        self.model = contents.build()
        rows = []
        for n in range(batch):
            images = {camera: data.image[n, :, view] for view, camera in enumerate(CAMERAS)}
            seen = Observation(images, data.state[n].astype(np.float64), "", robot.name, offsets_s)  # the peer has no words
            rows.append(Sample(n, "bench", "e", n, seen, data.action[n].astype(np.float64), np.ones(robot.horizon, dtype=bool)))
        self.batch = contents.collate(self.model).samples(rows, {"bench": 0})
        self.one = self.batch[:1]
        self.acting = copy.deepcopy(self.model).eval()
        fuse(self.acting)
        self.optimizer = AdamW(lr=1e-4).build(self.model.named_parameters())
        self.parameters = sum(p.numel() for p in self.model.parameters())

    @torch.inference_mode()
    def call(self) -> Tensor:
        """A chunk of one observation, (1, T, WIDTH)."""
        return self.acting.sample(self.one, Noise(self.one.position_B))

    def train(self) -> None:
        """Forward, backward and the update, of the whole batch."""
        self.model.train()
        self.optimizer.zero_grad()
        total_loss(self.model(self.batch, Noise(self.batch.position_B))).backward()
        self.optimizer.step()

    train_fused = train  # it is


class Theirs:
    """A policy of lerobot's: a call and a training step, as its own `eval` and `train` scripts make them."""

    def __init__(self, policy: Any, data: Data, act: Callable[[Any, Mapping[str, Tensor]], Tensor]) -> None:
        self.policy, self.act = policy, act
        image = torch.from_numpy(data.image).permute(0, 1, 2, 5, 3, 4).float() / 255
        past = (lambda t: t) if data.image.shape[1] > 1 else (lambda t: t[:, 0])
        self.batch = {f"observation.images.{camera}": past(image[:, :, view]).contiguous() for view, camera in enumerate(CAMERAS)}
        self.batch["observation.state"] = past(torch.from_numpy(data.state))
        self.now = {name: (t[:1] if data.image.shape[1] == 1 else t[:1, -1]).contiguous() for name, t in self.batch.items()}
        self.batch["action"] = torch.from_numpy(data.action)
        self.batch["action_is_pad"] = torch.zeros(data.action.shape[:2], dtype=torch.bool)
        self.optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
        self.fused = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)
        self.parameters = sum(p.numel() for p in policy.parameters())

    @torch.inference_mode()
    def call(self) -> Tensor:
        """As `Ours.call`."""
        self.policy.eval()
        return self.act(self.policy, self.now)

    def train(self) -> None:
        """With lerobot's own optimizer."""
        self._step(self.optimizer)

    def train_fused(self) -> None:
        """With torch's fused one, as ours is."""
        self._step(self.fused)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        self.policy.train()
        optimizer.zero_grad()
        self.policy.forward(self.batch)[0].backward()
        optimizer.step()


def act_pair(batch: int, side: int) -> tuple[Ours, Theirs]:
    """ACT: one frame, 100 commands, its published sizes."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    data = Data.random(batch, 1, side, preset("act").horizon)
    config = ACTConfig(**_features(side), pretrained_backbone_weights=None, use_vae=False, dropout=0.0, device="cpu")
    return Ours("act", data), Theirs(ACTPolicy(config), data, lambda policy, now: policy.predict_action_chunk(now))


def diffusion_pair(batch: int, side: int) -> tuple[Ours, Theirs]:
    """Diffusion Policy: two frames, 16 commands, DDIM; its U-Net as narrow as makes the two equal, most of it where steps are few."""
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    chosen = preset("diffusion_policy")
    data = Data.random(batch, 2, side, chosen.horizon)
    sampler = {"noise_scheduler_type": "DDIM", "num_inference_steps": chosen.decoder.evaluations}
    config = DiffusionConfig(**_features(side), down_dims=(64, 160, 320), **sampler, device="cpu")

    def act(policy: Any, now: Mapping[str, Tensor]) -> Tensor:
        policy.reset()  # the queue of commands is empty: it has to look and to denoise
        return policy.select_action(dict(now))

    return Ours("diffusion_policy", data), Theirs(DiffusionPolicy(config), data, act)


def _features(side: int) -> dict[str, Any]:
    from lerobot.configs.types import FeatureType, PolicyFeature

    seen = {f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, side, side)) for camera in CAMERAS}
    seen["observation.state"] = PolicyFeature(FeatureType.STATE, (WIDTH,))
    return {"input_features": seen, "output_features": {"action": PolicyFeature(FeatureType.ACTION, (WIDTH,))}}


def compare(pair: tuple[Ours, Theirs], batch: int, blocks: int, calls: int) -> dict[str, Any]:
    """Medians of both sides and the ratios, ours over theirs in speed, with the least and the most over the blocks."""
    took: dict[str, list[float]] = {name: [] for name in (f"{side}_{kind}" for kind in KINDS for side in ("ours", "theirs"))}
    for block in range(blocks + 1):  # the first warms up
        for kind, repeats in ((kind, calls if kind == "call" else 1) for kind in KINDS):
            for side, bench in zip(("ours", "theirs"), pair, strict=True):
                run = getattr(bench, kind)
                started = time.perf_counter()
                for _ in range(repeats):
                    run()
                took[f"{side}_{kind}"].extend([(time.perf_counter() - started) / repeats] if block else [])
    middle = {name: statistics.median(seconds) for name, seconds in took.items()}
    found: dict[str, Any] = {}
    for side, bench in zip(("ours", "theirs"), pair, strict=True):
        found[f"{side}_parameters"] = bench.parameters
        found[f"{side}_ms_per_call"] = round(1000 * middle[f"{side}_call"], 2)
        found[f"{side}_train_samples_per_s"] = round(batch / middle[f"{side}_train"], 2)
    found["parameters_ratio"] = round(pair[0].parameters / pair[1].parameters, 3)
    for kind in KINDS:
        ratios = [theirs / ours for ours, theirs in zip(took[f"ours_{kind}"], took[f"theirs_{kind}"], strict=True)]
        found[f"{kind}_ratio"] = round(statistics.median(ratios), 3)
        found[f"{kind}_ratio_least_most"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """A row for ACT and one for Diffusion Policy, or why there are none."""
    if importlib.util.find_spec("lerobot") is None:
        return {"could_not_run": "lerobot is not installed", "install": INSTALL}
    prepare_torchvision()
    found: dict[str, Any] = {"threads": args.threads, "batch_size": args.batch, "blocks": args.blocks}
    for name, make, side in (("act", act_pair, args.act_side), ("diffusion", diffusion_pair, args.diffusion_side)):
        found[name] = {"image_side": side, **compare(make(args.batch, side), args.batch, args.blocks, args.calls)}
    versions = {name: importlib.metadata.version(name) for name in ("lerobot", "torch")}
    return found | {"machine": {"processor": platform.processor() or platform.machine(), "threads": args.threads, **versions}}


def main() -> None:
    """Prints one JSON object, or a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--calls", type=int, default=5, help="of each policy in a block, beside one training step")
    parser.add_argument("--batch", type=int, default=8, help="of a training step")
    parser.add_argument("--act-side", type=int, default=128, help="pixels of ACT's square images (a multiple of 32)")
    parser.add_argument("--diffusion-side", type=int, default=96, help="of Diffusion Policy's")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=1))
    elif "could_not_run" in found:
        print(f"could not run: {found['could_not_run']}. Install it beside this project:\n{found['install']}")
    else:
        for name in ("act", "diffusion"):
            row = found[name]
            print(f"{name}: {row['ours_parameters']:,} parameters beside {row['theirs_parameters']:,}")
            print("  a call {ours_ms_per_call} ms, lerobot {theirs_ms_per_call} ms: {call_ratio}x".format(**row))
            print("  training {ours_train_samples_per_s}/s, lerobot {theirs_train_samples_per_s}/s: {train_ratio}x".format(**row))


if __name__ == "__main__":
    main()
