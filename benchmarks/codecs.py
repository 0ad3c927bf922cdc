"""Round-trip error of every codec on demonstrations: how much of a chunk its codes can say, and in how many codes.

What      chunks of a dataset, normalised as in training -> codes -> chunks; the second half is never fitted on.
Run       python benchmarks/codecs.py --json                                   (collects 4 episodes of eight Sawyer tasks first)
          python benchmarks/codecs.py --data runs/demo/data/sawyer --json      (after `make demo`)
Numbers   errors are of numbers normalised to -1..1 by quantiles: 0.01 is half a hundredth of a number's usual range.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vla.codecs.bins import Bins
from vla.codecs.fast import FAST
from vla.codecs.grid import Grid
from vla.codecs.vq import VQCodes
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.statistics import compute_stats
from vla.embodiment import Embodiment
from vla.normalize import RobotNormalizer
from vla.roster import Roster
from vla.types import ActionSpec

CHUNKS = 4096


def codecs(width: int) -> dict[str, Any]:
    """Name -> configuration; grids need three numbers of translation and a gripper last."""
    found = {
        "bins": Bins(),
        "bins, quantile": Bins(spacing="quantile"),
        "bins, every 3rd step": Bins(every=3),
        "FAST": FAST(),
        "VQ, 2 x 16": VQCodes(),
        "VQ, 2 x 256": VQCodes(vocabulary=256),
        "VQ, scales 1 2 4 8 x 64": VQCodes(scales=(1, 2, 4, 8), vocabulary=64),
    }
    grids = {4: {"rotation": (), "gripper": 3}, 7: {}}
    if width in grids:
        found |= {"grid": Grid(**grids[width]), "grid, middles": Grid(values="middle", **grids[width])}
    return found


def chunks(folder: Path) -> tuple[torch.Tensor, Embodiment]:
    """float32 (N, T, A): normalised chunks whose every step is labelled, in the order of training."""
    mixture = Mixture.of([folder], val_fraction=0.0)
    robot = mixture.sources[0].dataset.info.robot
    if robot is None:
        raise SystemExit(f"{folder} has no actions")
    normalizer = RobotNormalizer.fit(compute_stats(mixture, {robot.name: robot})[robot.name], robot).action
    pipeline = Pipeline(mixture, {robot.name: robot}, "train", seed=0)
    made = [s for at in range(0, 2 * CHUNKS, 256) for s in pipeline.samples(range(at, at + 256)) if s.valid_T.all()]
    return torch.stack([torch.from_numpy(normalizer.normalize(s.action_TA)).float() for s in made]), robot


def measure(config: Any, action_BTA: torch.Tensor) -> dict[str, float]:
    """Fits on the first half, measures on the second."""
    T, A = action_BTA.shape[1:]
    torch.manual_seed(0)
    codec = config.build(Roster(("robot",), T, A, 1))
    half = len(action_BTA) // 2
    start = time.perf_counter()
    codec.fit(*_with_spec(action_BTA[:half]))
    fitted = time.perf_counter()
    chunk_BTA, spec = _with_spec(action_BTA[half:])
    code_BN = codec.encode(chunk_BTA, spec)
    error_BTA = (codec.decode(code_BN, spec) - chunk_BTA).abs()
    return {
        "vocabulary": codec.vocabulary,
        "codes_per_chunk": round(float(codec.exists(code_BN, spec).sum(1).float().mean()), 1),
        "mean_error": round(float(error_BTA.mean()), 4),
        "p99_error": round(float(torch.quantile(error_BTA.flatten()[:10_000_000], 0.99)), 4),
        "max_error": round(float(error_BTA.max()), 4),
        "fit_seconds": round(fitted - start, 2),
    }


def _with_spec(action_BTA: torch.Tensor) -> tuple[torch.Tensor, ActionSpec]:
    robot_B = torch.zeros(len(action_BTA), dtype=torch.int64)
    return action_BTA, ActionSpec(robot_B, torch.ones_like(action_BTA, dtype=torch.bool))


def main() -> None:
    """Prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset folder with actions (default: collect a small one)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data
        if folder is None:
            from vla.sim.collect import Plan, collect

            folder = Path(scratch) / "sawyer"
            collect(Plan(suite="metaworld-objects", episodes=4), folder, 2)
        action_BTA, robot = chunks(folder)
        rows = {name: measure(config, action_BTA) for name, config in codecs(robot.action.size).items()}
    if args.json:
        print(json.dumps({"robot": robot.name, "chunks": len(action_BTA), "shape": list(action_BTA.shape[1:]), "codecs": rows}))
        return
    print(f"{robot.name}: {len(action_BTA)} chunks of {tuple(action_BTA.shape[1:])}")
    for name, row in rows.items():
        print(f"{name:26}" + "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
