"""Success against the delay of a chunk, for each way of joining chunks: the newest alone, temporal ensembling, real-time chunking.

python -m benchmarks.latency runs/mine --suite metaworld-objects --tasks door-open,window-close
python -m benchmarks.latency runs/mine --suite metaworld-objects --delays 0,2,4,6 --episodes 20 --json --plot latency.png

A delay of d steps: a chunk arrives d control steps after its observation; until then the old one goes on, and where that has run out the
robot holds. All runs share their episodes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import parser_of
from vla import arguments
from vla.checkpoint import acting, read_contents
from vla.evaluate.probes import Probe
from vla.evaluate.runner import evaluate
from vla.execute.ensemble import RealTime, TemporalEnsemble
from vla.sim.suites import load_suite

METHODS = {"newest": None, "temporal": TemporalEnsemble(), "realtime": RealTime()}


def main() -> int:
    """Prints a table, or one JSON object, and draws the picture if asked."""
    parser = parser_of(__doc__)
    parser.add_argument("policy", metavar="CKPT", help="checkpoint or run folder")
    arguments.add_suite(parser)
    arguments.add_tasks(parser)
    parser.add_argument("--episodes", type=int, default=20, help="per task, delay and method (default: 20)")
    parser.add_argument("--delays", default="0,2,4,6", help="in control steps (default: 0,2,4,6)")
    parser.add_argument("--execute", type=int, help="commands of each chunk before the next one (default: two thirds of it)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    found = measure(args)
    if args.plot:
        plot(found, args.plot)
    print(json.dumps(found, indent=1) if args.json else table(found))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The checkpoint, the arguments, and a row for each delay and method."""
    suite = load_suite(args.suite)
    execute = args.execute or suite.embodiment.horizon * 2 // 3
    tasks = arguments.names(args.tasks)
    rows = []
    for delay in map(int, args.delays.split(",")):
        probe = Probe.of(f"latency={float(delay / suite.embodiment.rate_hz)!r}") if delay else None
        for method, ensemble in METHODS.items():
            result = evaluate(
                args.policy, suite, tasks, args.episodes, execute=execute, ensemble=ensemble, probe=probe, workers=args.workers
            )
            rate = result.pooled
            row = {"delay_steps": delay, "method": method, "successes": rate.successes, "episodes": rate.episodes}
            rows.append(row | {"low": rate.low, "high": rate.high, "mean_steps": float(np.mean([r.steps for r in result.rows]))})
            print(f"delay {delay}, {method}: {rate.successes}/{rate.episodes}", file=sys.stderr)
    contents = read_contents(acting(Path(args.policy)))
    made = {"run": contents.run.get("name"), "steps": contents.run.get("step"), "decoder": contents.model.decoder.kind}
    asked = {"suite": suite.name, "tasks": tasks, "episodes": args.episodes}
    return {"policy": Path(args.policy).name, "checkpoint": made, **asked, "execute": execute, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The rows for people."""
    lines = [f"{'delay':>6} {'method':>10} {'success':>9}   95% interval"]
    for row in found["rows"]:
        share = f"{row['successes']}/{row['episodes']}"
        lines.append(f"{row['delay_steps']:>6} {row['method']:>10} {share:>9}   {row['low']:.1%} to {row['high']:.1%}")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Success over delay, a line a method, with its intervals."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for method in METHODS:
        rows = [row for row in found["rows"] if row["method"] == method]
        rate = np.array([row["successes"] / row["episodes"] for row in rows])
        delay = [row["delay_steps"] for row in rows]
        axes.plot(delay, rate, marker="o", label=method)
        axes.fill_between(delay, [row["low"] for row in rows], [row["high"] for row in rows], alpha=0.12)
    axes.set(xlabel="steps from observation to chunk", ylabel="success", ylim=(0, 1.02), title=f"{found['policy']} on {found['suite']}")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
