"""An expert passes an obstacle on the left or on the right, half and half. Regression drives into it; generative decoders choose.

    python -m benchmarks.bimodal --picture docs/images/bimodal.png
    python -m benchmarks.bimodal --plans 256 --json

Each decoder trains on the tiny backbone with the same demonstrations, then plans from starts it has not seen. A plan fails if it comes
nearer than `RADIUS` to the obstacle. Prints a line per decoder: share of plans that pass, and that pass on the left. With
`--json`, those that ask their network several times for a plan do so with each number of `EVALUATIONS`, all by the same weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.backbones.tiny import Tiny
from vla.checkpoint import Contents
from vla.codecs.bins import Bins
from vla.decoders.base import total_loss, with_evaluations
from vla.decoders.conditioning import LayerKeysValues, Pooled
from vla.decoders.dit import DiT
from vla.decoders.masked import MaskedDiffusion
from vla.decoders.parallel import Parallel
from vla.decoders.tokens import AutoregressiveTokens
from vla.diffusion.ddpm import DDPM
from vla.embodiment import Embodiment, Field, Space
from vla.errors import UserError
from vla.evaluate.result import git_commit, versions
from vla.evaluate.statistics import wilson
from vla.model import VLA, Model
from vla.noise import Noise
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.types import Observation, Sample

STEPS, RADIUS, DETOUR = 6, 0.3, 0.6
"""Of a plan; metres around the origin; how far to the side the expert goes."""
BACKBONE = Tiny(width=32, depth=2, heads=2, channels=4, keypoints=4, words=64, image_size=16, sharpness=None)
BINS = Bins(edges=24)
DECODERS: Mapping[str, Any] = {
    "parallel, L1": Parallel(),
    "tokens": AutoregressiveTokens(codec=BINS, temperature=1.0),
    "masked diffusion": MaskedDiffusion(codec=BINS, evaluations=8, temperature=1.0),
    "flow, per layer": DiT(conditioning=LayerKeysValues(width=32, mlp_width=64), evaluations=10),
    "DDPM, pooled": DiT(DDPM(steps=50), Pooled(width=32, depth=2, heads=2), samples_per_context=8, time="token", evaluations=25),
}
EVALUATIONS = (1, 2, 4, 8, 12)
STATE = Space((Field("start", 1, "m"),))
ACTION = Space((Field("position", 2, "m"),))
ROBOT = Embodiment("bimodal", ("top",), STATE, ACTION, ACTION, Fraction(10), STEPS, ((-1.0, 1.0),) * 2)


@dataclass(frozen=True)
class Plans:
    """What a decoder planned: (plans, steps, 2), and where each started (plans,)."""

    action_NTA: np.ndarray
    start_N: np.ndarray

    @property
    def passed(self) -> np.ndarray:
        """bool (plans,): which stay clear of the obstacle, at and between the steps."""
        share_S111 = np.linspace(0, 1, 11)[:, None, None, None]
        between_SNTA = self.action_NTA[:, :-1] * (1 - share_S111) + self.action_NTA[:, 1:] * share_S111
        return np.linalg.norm(between_SNTA, axis=-1).min((0, 2)) > RADIUS

    @property
    def left(self) -> np.ndarray:
        """bool (plans,): which are on the left half way."""
        return self.action_NTA[:, STEPS // 2 - 1 : STEPS // 2 + 1, 0].mean(1) < 0


def demonstrations(count: int, seed: int) -> list[Sample]:
    """From y = -0.9 to y = 0.9 around the origin, from starts within 0.1 of the middle: from each once on the left, once on the right."""
    rng = np.random.default_rng(seed)
    start_N = rng.uniform(-0.1, 0.1, count // 2)
    image = np.full((1, 16, 16, 3), 127, np.uint8)
    along_T = (np.arange(STEPS) + 0.5) / STEPS
    made = []
    for number in range(count):
        start, detour = start_N[number // 2], DETOUR + rng.normal(0, 0.03)
        side = 1 if number % 2 else -1
        across_T = start * (1 - along_T) + side * detour * np.sin(np.pi * along_T)
        path_TA = np.stack([across_T, 1.8 * along_T - 0.9], axis=-1)
        seen = Observation({"top": image}, np.array([[start]]), "pass the obstacle", ROBOT.name)
        made.append(Sample(number, "bimodal", "e", number, seen, path_TA, np.ones(STEPS, dtype=bool)))
    return made


def plans_of(decoder: Any, steps: int = 400, batch: int = 32, count: int = 64) -> Plans:
    """Trains a decoder, and lets it plan."""
    contents, model = trained(decoder, steps, batch)
    return planned(contents, model, count)


def trained(decoder: Any, steps: int, batch: int = 32) -> tuple[Contents, VLA]:
    """From fresh weights."""
    torch.manual_seed(0)
    normal = RobotNormalizer(
        StatsKey.of(ROBOT), Normalizer.identity(1, "within 0.1 m of the middle"), Normalizer.identity(2, "metres within -1..1")
    )
    contents = Contents(Model(BACKBONE, decoder), (ROBOT,), {ROBOT.name: normal})
    model = contents.build()
    data = contents.collate(model).samples(demonstrations(512, seed=0), {"bimodal": 0})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.arange(batch) + step * batch % 512
        part = data[rows]
        optimizer.zero_grad()
        total_loss(model(part, Noise(part.position_B, step))).backward()
        optimizer.step(), schedule.step()
    return contents, model


def planned(contents: Contents, model: VLA, count: int) -> Plans:
    """From so many starts that were not trained on."""
    unseen = demonstrations(count, seed=1)
    asked = contents.collate(model).samples(unseen, {"bimodal": 0})
    with torch.inference_mode():
        found_NTA = model.eval().sample(asked, Noise(asked.position_B, 1)).numpy()
    return Plans(found_NTA, np.array([sample.observation.state[0, 0] for sample in unseen]))


def compared(steps: int, count: int) -> dict[str, Any]:
    """What every decoder plans, by the number of evaluations where it has one."""
    rows: dict[str, Any] = {}
    for name, decoder in DECODERS.items():
        contents, model = trained(decoder, steps)
        weights = model.state_dict()
        for evaluations in EVALUATIONS if several(decoder) else (0,):
            asked = with_evaluations(decoder, evaluations) if evaluations else decoder
            contents = replace(contents, model=replace(contents.model, decoder=asked))
            model = contents.build()
            model.load_state_dict(weights)
            found = planned(contents, model, count)
            passed = int(found.passed.sum())
            interval = wilson(passed, count)
            row = {"successes": passed, "episodes": count, "low": interval.low, "high": interval.high, "left": float(found.left.mean())}
            rows[f"{name}, {evaluations} evaluation{'s' * (evaluations > 1)}" if evaluations else name] = row
    return rows


def several(decoder: Any) -> bool:
    """Whether it asks its network a number of times that one may choose."""
    try:
        return bool(with_evaluations(decoder, 1))
    except UserError:
        return False


def draw(plans: Mapping[str, Plans], path: Path) -> None:
    """One panel per decoder: the obstacle, the expert's two ways, and the plans (red where they fail)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(plans), figsize=(2.4 * len(plans), 2.9), sharey=True, constrained_layout=True)
    for panel, (name, found) in zip(panels, plans.items(), strict=True):
        panel.add_patch(plt.Circle((0, 0), RADIUS, color="0.75"))
        for sample in demonstrations(2, seed=3):
            panel.plot(*sample.action_TA.T, color="0.3", linestyle=":", linewidth=1.5)
        for path_TA, passed in zip(found.action_NTA, found.passed, strict=True):
            panel.plot(*path_TA.T, color="tab:blue" if passed else "tab:red", linewidth=0.8, alpha=0.6)
        panel.set(title=f"{name}\n{found.passed.mean():.0%} pass", xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
        panel.title.set_fontsize(10)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Trains all, prints a line for each, and draws the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each decoder")
    parser.add_argument("--picture", type=Path, help="where to draw the plans")
    parser.add_argument("--plans", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="one object, with each number of evaluations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.json and args.picture:
        parser.error("--json draws no picture; run it once without")
    if args.json:
        facts = {"date": date.today().isoformat(), "commit": git_commit(), "versions": versions(), "steps": args.steps}
        print(json.dumps({**facts, "rows": compared(args.steps, args.plans)}, indent=1))
        return
    plans = {name: plans_of(decoder, args.steps, count=args.plans) for name, decoder in DECODERS.items()}
    for name, found in plans.items():
        print(f"{name:18} {found.passed.mean():4.0%} pass, {found.left.mean():4.0%} on the left")
    if args.picture:
        draw(plans, args.picture)


if __name__ == "__main__":
    main()
