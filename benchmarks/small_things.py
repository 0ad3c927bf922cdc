"""Does a stem find what is small? Told where it lies in 3,000 pictures, the tiny backbone's stem learns it, or not.

    python -m benchmarks.small_things --json

Meta-World's reach, push and pick-place, whose goals are markers of one to four pixels of 64. The stem of `pretrain/mt10.py` and two layers
behind it are told the goal (by L1), from resets with the arm in some place of its own; a policy is told much less. `r2`: on layouts that
were not trained on, of each axis along which the goal varies by more than 5 mm, in the mean; 0 is what the mean place reaches. Rows:
`Tiny.sharpness`, None being keypoints from maps as they come; steps, data, order and fresh weights are the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.command import ROOT, parser_of
from vla.backbones.stems import LightStem
from vla.backbones.tiny import Tiny
from vla.evaluate.result import git_commit, versions
from vla.sim.rendering import configure_rendering
from vla.sim.suites import load_suite
from vla.train.run import load_recipe

RECIPE = ROOT / "pretrain" / "mt10.py"
SUITE, TASKS = "metaworld-mt10", ("reach", "push", "pick-place")
SHARPNESS = (None, 1.0, 2.0, 4.0)
HELD_OUT, BATCH = 0.15, 64


@dataclass(frozen=True)
class Pictures:
    """`image_N3HW` uint8, `task_N`, and the goal `goal_N3`, by task of mean 0 and deviation 1 where `varies_N3`."""

    image_N3HW: Tensor
    task_N: Tensor
    goal_N3: Tensor
    varies_N3: Tensor

    def of(self, rows: Tensor) -> Pictures:
        """Those of some rows, int64 (n,)."""
        return Pictures(*(getattr(self, name)[rows] for name in ("image_N3HW", "task_N", "goal_N3", "varies_N3")))


def draw(count: int, side: int) -> Pictures:
    """`count` resets of each task; the arm goes its way for up to 25 steps, so that it hides the goal from nobody always."""
    images, tasks, goals = [], [], []
    suite = load_suite(SUITE)
    for number, name in enumerate(TASKS):
        env = suite.make(name, side)
        env.roles = ("third_person",)
        for seed in range(count):
            env.reset(seed=100_000 + seed)
            rng = np.random.default_rng(seed)
            command_A = rng.uniform(-1, 1, 4)
            for _ in range(rng.integers(0, 25)):
                env.step(command_A)
            model = env.model()
            assert model is not None
            images.append(env.cameras()["third_person"])
            goals.append(model.site("goal").pos.copy())
            tasks.append(number)
        env.close()
    task_N, goal_N3 = torch.tensor(tasks), torch.from_numpy(np.array(goals)).float()
    deviation_N3 = torch.stack([goal_N3[task_N == task].std(0) for task in range(len(TASKS))])[task_N]
    mean_N3 = torch.stack([goal_N3[task_N == task].mean(0) for task in range(len(TASKS))])[task_N]
    standard_N3 = (goal_N3 - mean_N3) / deviation_N3.clamp(min=1e-3)
    return Pictures(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2), task_N, standard_N3, deviation_N3 > 0.005)


class Told(nn.Module):
    """A stem and two layers: pictures and their task -> the goal, (N, 3)."""

    def __init__(self, config: Tiny) -> None:
        super().__init__()
        self.stem = LightStem(config.channels, config.keypoints, config.sharpness, config.stride)
        self.mix = nn.Sequential(nn.Linear(self.stem.width + len(TASKS), config.width), nn.SiLU(), nn.Linear(config.width, 3))

    def forward(self, seen: Pictures) -> Tensor:
        pixels = seen.image_N3HW.float().div_(127.5).sub_(1)
        return self.mix(torch.cat([self.stem(pixels).flatten(1), F.one_hot(seen.task_N, len(TASKS)).float()], dim=1))


def learn(config: Tiny, known: Pictures, steps: int) -> Told:
    """From fresh weights, as policies are trained: AdamW, cosine."""
    torch.manual_seed(0)
    model, order = Told(config), torch.Generator().manual_seed(0)
    optim = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    for _ in range(steps):
        some = known.of(torch.randint(len(known.task_N), (BATCH,), generator=order))
        loss = ((model(some) - some.goal_N3).abs() * some.varies_N3).sum() / some.varies_N3.sum()
        optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        schedule.step()
    return model


@torch.no_grad()
def explained(model: Told, unknown: Pictures) -> dict[str, float]:
    """Task -> R2, the mean over its axes that vary."""
    found = {}
    for number, name in enumerate(TASKS):
        rows = unknown.of((unknown.task_N == number).nonzero()[:, 0])
        left_3 = (model(rows) - rows.goal_N3).square().sum(0)
        all_3 = (rows.goal_N3 - rows.goal_N3.mean(0)).square().sum(0)
        found[name] = float((1 - left_3 / all_3)[rows.varies_N3[0]].mean())
    return found


def measure(pictures: Pictures, sharpness: Sequence[float | None], steps: int, **settings: int) -> dict[str, dict[str, float]]:
    """Row -> task -> R2. `settings`: of the backbone, that differ from the recipe's."""
    config = replace(load_recipe(str(RECIPE)).model.backbone, **settings)
    order = torch.randperm(len(pictures.task_N), generator=torch.Generator().manual_seed(1))
    held = round(HELD_OUT * len(order))
    known, unknown = pictures.of(order[held:]), pictures.of(order[:held])
    rows = {}
    for each in sharpness:
        name = "maps as they come" if each is None else f"standard maps, sharpness {each:g}"
        rows[name] = {task: round(r2, 3) for task, r2 in explained(learn(replace(config, sharpness=each), known, steps), unknown).items()}
    return rows


def main() -> None:
    """Draws, learns, and prints R2 by row and task."""
    parser = parser_of(__doc__)
    parser.add_argument("--pictures", type=int, default=1000, help="of each task (default: %(default)s)")
    parser.add_argument("--side", type=int, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1600, help="of 64 pictures (default: %(default)s)")
    recipe = load_recipe(str(RECIPE)).model.backbone
    parser.add_argument("--stride", type=int, default=recipe.stride, help="pixels of a map's cell (default: %(default)s)")
    parser.add_argument("--keypoints", type=int, default=recipe.keypoints, help="maps (default: %(default)s)")
    parser.add_argument("--sharpness", type=float, nargs="+", help="instead of none, 1, 2 and 4")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    configure_rendering()
    settings = {"stride": args.stride, "keypoints": args.keypoints}
    began = time.process_time()
    pictures = draw(args.pictures, args.side)
    drawn_s = time.process_time() - began
    rows = measure(pictures, args.sharpness or SHARPNESS, args.steps, **settings)
    learn_s = (time.process_time() - began - drawn_s) / len(rows)
    if args.json:
        told: dict[str, Any] = {"date": date.today().isoformat(), "commit": git_commit(), "versions": versions()}
        print(
            json.dumps(
                {
                    **told,
                    "pictures": args.pictures,
                    "side": args.side,
                    "steps": args.steps,
                    **settings,
                    "cpu_s_a_row": learn_s,
                    "rows": rows,
                },
                indent=1,
            )
        )
        return
    for name, row in rows.items():
        print(f"{name:30}", *(f"{task} {r2:5.2f}" for task, r2 in row.items()))


if __name__ == "__main__":
    main()
