"""What a policy that samples gains by how its chunks are drawn: the best of several by a value, as far as they agree, self-guidance.

    vla train-value runs/mine --suite metaworld-objects --episodes 30 --out runs/mine/value.safetensors
    python -m benchmarks.sampling runs/mine --suite metaworld-objects --value runs/mine/value.safetensors --out runs/mine/sampling --json

Each row is an evaluation of its own, of the same episodes, kept in the folder `--out`: the same command goes on from those that are there,
and `vla compare` reads them. `decisions`: chunks asked for, a mean over episodes; a shorter chunk may help only because the robot looks
more often, so that `agree` has a row with fixed chunks of about its own mean length beside it. `better`, `worse`: episodes that end
otherwise than in the row `plain`, and `p`, the exact McNemar test of these; `p_holm`: with Holm's correction for the number of rows.
Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import parser_of
from vla import arguments
from vla.checkpoint import acting, read_contents
from vla.errors import UserError
from vla.evaluate.compare import compare
from vla.evaluate.journal import discard
from vla.evaluate.ranking import holm
from vla.evaluate.resolve import Sampling
from vla.evaluate.result import EvalResult, read_result, write_result
from vla.evaluate.runner import evaluate

AGREE, GUIDANCE = "0.05,0.1,0.2", "0.25,0.5,1.0"
SAMPLES, RANKED = 4, 8


def main() -> int:
    """Prints a table, or one JSON object; exit code 2 for what cannot be evaluated."""
    parser = parser_of(__doc__)
    parser.add_argument("policy", metavar="CKPT", type=Path, help="checkpoint or run folder, of a decoder that denoises")
    arguments.add_suite(parser)
    arguments.add_tasks(parser)
    parser.add_argument("--episodes", type=int, default=20, help="per task and row (default: 20)")
    parser.add_argument("--value", type=Path, help="what `vla train-value` learned for this checkpoint")
    parser.add_argument("--agree", default=AGREE, help="comma-separated spreads (default: %(default)s)")
    parser.add_argument("--guidance", default=GUIDANCE, help="comma-separated weights (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the evaluations are kept")
    args = parser.parse_args()
    try:
        found = measure(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1) if args.json else table(found["rows"]))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The checkpoint, the arguments that matter, and a row for each way of drawing."""
    results: dict[str, EvalResult] = {}

    def run(name: str, sampling: Sampling, execute: int | None = None) -> EvalResult:
        if name not in results:
            results[name] = evaluated(args, args.out / f"{name.replace(' ', '_')}.json", sampling, execute)
            rate = results[name].pooled
            print(f"{name}: {rate.successes}/{rate.episodes}", file=sys.stderr, flush=True)
        return results[name]

    plain = run("plain", Sampling())
    if args.value is not None:
        run(f"best of {RANKED} by the value", Sampling(RANKED, args.value))
    for weight in numbers(args.guidance):
        run(f"self-guidance {weight:g}", Sampling(guidance=weight))
    for spread in numbers(args.agree):
        cut = run(f"agree {spread:g}", Sampling(SAMPLES, agree=spread))
        fixed = max(1, round(sum(row.steps for row in cut.rows) / sum(row.decisions for row in cut.rows)))
        if fixed < plain.execute:
            run(f"chunks of {fixed}", Sampling(), fixed)
    rows = {name: described(result, plain) for name, result in results.items()}
    others = [name for name in rows if name != "plain"]
    for name, adjusted in zip(others, holm([rows[name]["p"] for name in others]), strict=True):
        rows[name]["p_holm"] = adjusted
    made = read_contents(acting(args.policy)).run
    checkpoint = {"run": made.get("name"), "steps": made.get("step"), "decoder": plain.policy["decoder"]}
    asked = {"suite": args.suite, "tasks": args.tasks, "episodes": args.episodes, "agree": args.agree, "guidance": args.guidance}
    return {"checkpoint": checkpoint, **asked, "execute": plain.execute, "rows": rows}


def evaluated(args: argparse.Namespace, path: Path, sampling: Sampling, execute: int | None) -> EvalResult:
    """The evaluation that stands in `path`, made first unless it is there. UserError where it is not one of these."""
    tasks = arguments.names(args.tasks)
    if not path.is_file():
        how = {"execute": execute, "sampling": sampling, "workers": args.workers, "journal": path}
        write_result(path, evaluate(args.policy, args.suite, tasks, args.episodes, **how))
        discard(path)
    found = read_result(path)
    if Path(found.policy["name"]) != acting(args.policy) or found.episodes != args.episodes or (tasks and [*found.tasks] != tasks):
        raise UserError(f"{path} is of another checkpoint, of other tasks or of another number of episodes; give another --out")
    return found


def described(result: EvalResult, plain: EvalResult) -> dict[str, Any]:
    """One row: its rate, how often the policy was asked, and what changed against the plain one."""
    rate, paired = result.pooled, compare(result, plain).pooled
    means = {name: float(np.mean([getattr(row, name) for row in result.rows])) for name in ("decisions", "steps")}
    changed = {"better": paired.only_a, "worse": paired.only_b, "p": paired.comparison.p_value}
    return {"successes": rate.successes, "episodes": rate.episodes, "low": rate.low, "high": rate.high, **means, **changed}


def numbers(text: str) -> list[float]:
    """`0.1,0.2` -> those numbers; none of an empty text."""
    return [float(word) for word in text.split(",") if word]


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"{'':28} {'success':>9}  95% interval     decisions  better  worse  p (Holm)"]
    for name, row in rows.items():
        share, spread = f"{row['successes']}/{row['episodes']}", f"{row['low']:.1%} to {row['high']:.1%}"
        changed = f"{row['better']:7} {row['worse']:6} {row['p_holm']:9.2g}" if "p_holm" in row else ""
        lines.append(f"{name:28} {share:>9}  {spread:16} {row['decisions']:9.1f} {changed}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
