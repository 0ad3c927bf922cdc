"""What a policy that samples gains by how its chunks are drawn: the best of several by a value, as far as they agree, self-guidance.

    vla train-value runs/mine --suite metaworld-objects --episodes 40 --out runs/mine/value.safetensors
    python -m benchmarks.sampling runs/mine --suite metaworld-objects --value runs/mine/value.safetensors --out sampling.json

All rows share their episodes. `decisions`: chunks asked for, a mean over episodes; a shorter chunk may help only because the robot looks
more often, so that `agree` has a row with fixed chunks of about its own mean length beside it. `better`, `worse`: episodes that end
otherwise than in the row `plain`; `p`: that so uneven a split comes by chance (exact sign test). Nothing is timed. It is long (an hour and
more for all rows of 160 episodes): `--out` keeps each row as it ends, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from vla.checkpoint import acting, sha256
from vla.evaluate.resolve import Sampling
from vla.evaluate.runner import EXECUTED_SHARE, evaluate
from vla.policy import Policy
from vla.sim.suites import load_suite
from vla.types import Observation

AGREE = (0.05, 0.1, 0.2)
GUIDANCE = (0.25, 0.5, 1.0)
SAMPLES, RANKED = 4, 8


class Counting:
    """A policy that counts its decisions by their keys, which no two share."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.keys = policy, set()

    def act_batch(self, observations: Sequence[Observation], keys: Sequence[int]) -> Any:
        self.keys.update(keys)
        return self.policy.act_batch(observations, keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


class CountingFollower(Counting):
    """The same of one that wants to know what was seen before."""

    def follow_batch(self, observations: Sequence[Observation], keys: Sequence[int], before: Sequence[Observation | None]) -> Any:
        self.keys.update(keys)
        return self.policy.follow_batch(observations, keys, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", metavar="CKPT", type=Path, help="checkpoint or run folder, of a decoder that denoises")
    parser.add_argument("--suite", required=True)
    parser.add_argument("--tasks", default="", help="comma-separated; all by default")
    parser.add_argument("--episodes", type=int, default=20, help="per task and row (default: 20)")
    parser.add_argument("--execute", type=int, help="commands of each chunk before the next one (default: 5/6 of it)")
    parser.add_argument("--value", type=Path, help="what `vla train-value` learned for this checkpoint")
    parser.add_argument("--agree", default=",".join(map(str, AGREE)), help="comma-separated spreads (default: %(default)s)")
    parser.add_argument("--guidance", default=",".join(map(str, GUIDANCE)), help="comma-separated weights (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="one JSON object; rows that it has already are not run again")
    args = parser.parse_args()
    print(table(measure(args)["rows"]))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    suite, folder = load_suite(args.suite), acting(args.policy)
    policy = Policy.load(folder)
    facts = {"manifest_sha256": sha256(folder / "manifest.json")}
    robot = next(robot for robot in policy.contents.embodiments if robot.name == suite.embodiment.name)
    usual = args.execute or int(robot.horizon * EXECUTED_SHARE)
    tasks = [task for task in args.tasks.split(",") if task]

    def run(sampling: Sampling, execute: int = usual) -> dict[str, Any]:
        actor, _ = sampling.of(policy, facts, execute)
        counting = (CountingFollower if sampling.guidance else Counting)(actor)
        result = evaluate(counting, suite, tasks, args.episodes, execute=execute, workers=args.workers, image_size=_size(policy))
        rate, rows = result.pooled, result.rows
        share = {"successes": rate.successes, "episodes": rate.episodes, "low": rate.low, "high": rate.high}
        counts = {"decisions": len(counting.keys) / len(rows), "mean_steps": float(np.mean([row.steps for row in rows]))}
        return {**share, **counts, "outcomes": [row.success for row in rows]}

    described = {"checkpoint": facts["manifest_sha256"], "decoder": policy.contents.model.decoder.kind, "suite": suite.name, "tasks": tasks}
    described |= {"execute": usual, "episodes_per_task": args.episodes}
    found: dict[str, Any] = {**described, "rows": {}}
    if args.out and args.out.is_file():
        found = json.loads(args.out.read_text())
        if described != {name: found.get(name) for name in described}:
            raise SystemExit(f"error: {args.out} is of another checkpoint or of other episodes; give another --out")
    rows: dict[str, dict[str, Any]] = found["rows"]

    def add(name: str, sampling: Sampling, execute: int = usual) -> None:
        if name not in rows:
            rows[name] = run(sampling, execute)
            rows[name] |= paired(rows["plain"]["outcomes"], rows[name]["outcomes"])
            if args.out:
                args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {rows[name]['successes']}/{rows[name]['episodes']}", file=sys.stderr, flush=True)

    add("plain", Sampling())
    if args.value is not None:
        add(f"best of {RANKED} by the value", Sampling(RANKED, args.value))
    for weight in map(float, filter(None, args.guidance.split(","))):
        add(f"self-guidance {weight:g}", Sampling(guidance=weight))
    for spread in map(float, filter(None, args.agree.split(","))):
        add(f"agree {spread:g}", Sampling(SAMPLES, agree=spread))
        length = rows[f"agree {spread:g}"]["mean_steps"] / rows[f"agree {spread:g}"]["decisions"]
        fixed = max(1, min(usual, round(length)))
        if f"chunks of {fixed}" not in rows and fixed != usual:
            add(f"chunks of {fixed}", Sampling(), fixed)
    return found


def paired(plain: Sequence[bool], other: Sequence[bool]) -> dict[str, Any]:
    """Episodes that ended better or worse than in the plain run, and the exact sign test's p."""
    better = sum(b and not a for a, b in zip(plain, other, strict=True))
    worse = sum(a and not b for a, b in zip(plain, other, strict=True))
    return {"better": better, "worse": worse, "p": float(binomtest(better, better + worse).pvalue) if better + worse else 1.0}


def _size(policy: Policy) -> int | None:
    return getattr(policy.contents.model.backbone, "image_size", None)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{'':28} {'success':>9}  95% interval     decisions  better  worse      p"]
    for name, row in rows.items():
        share, spread = f"{row['successes']}/{row['episodes']}", f"{row['low']:.1%} to {row['high']:.1%}"
        lines.append(f"{name:28} {share:>9}  {spread:16} {row['decisions']:9.1f} {row['better']:7} {row['worse']:6} {row['p']:6.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
