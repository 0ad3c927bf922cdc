"""Which head, for the same training? Every head on one trunk, on the same demonstrations, for as many optimizer steps, compared.

    python -m benchmarks.heads --json                                      # two cores, about an hour
    python -m benchmarks.heads --heads parallel,flow,flow_8 --seeds 5 --steps 3000 --episodes 50 --cores 16
    python -m benchmarks.heads --data-root runs/demo/data --json           # with the demonstrations of `make demo`
    python -m benchmarks.heads --json --time-again                         # once more, on cores now idle: the times alone are new

Recipes: `pretrain/heads.py`. A seed chooses the order of the data, the noise and the fresh weights. A head that denoises or unmasks is
trained once, and evaluated with each of its numbers of evaluations. All rows meet the same episodes, so that each is paired with
`parallel` of the same seed (McNemar's exact test; `p_holm`: with Holm's correction for the number of rows). Episodes of one trained network
are not independent trainings: intervals and p-values speak of these networks, and `by_seed` shows how much they differ. `latent` learns
codes as well, of a model that watches the same frames (`--latent-steps` steps of its own, which the other heads have no use for).

Times come last, all heads in turn in one process. `ms_per_call`: a trained model of seed 0, from an observation of the demonstrations to a
chunk, median, `--threads` threads. `actions_per_s`: commands of a chunk by that. `train_samples_per_s`: forward, backward and the
optimizer's step by as many threads as the recipe has, one; samples are contexts, of which a head with K = 8 sees eight noise draws
each. Every other stage is a command of ours, logged in `--out`; the same command goes on where an earlier one was stopped, and more heads
or seeds join those that are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import ROOT, machine
from benchmarks.decoders import Bench, calls, in_turn, milliseconds
from benchmarks.experiment import NOISY, UNTOLD, arguments_of, command_line, facts, run_all, same_settings, success
from vla.data.reader import Dataset
from vla.demo.stages import Stage
from vla.evaluate.ranking import holm
from vla.evaluate.result import read_result
from vla.latent_action.checkpoint import load_latent
from vla.latent_action.label import label_hash
from vla.policy import Policy
from vla.train.job import Job, assemble
from vla.train.run import Run, load_recipe

RECIPES = "pretrain/heads.py"
SUITE, DATASET, TASKS = "metaworld-objects", "sawyer", 8
SETTINGS = ("tasks", "demonstrations", "steps", "latent_steps", "episodes")
"""Arguments that one folder has once; heads and seeds may join."""
BLOCKS, REPEATS = 15, 3
"""Of timing: rounds of all heads, and calls of each in a round."""


@dataclass(frozen=True)
class Head:
    """`evaluations`: of the network for a chunk, a row each (None: there is one way). `latents`: it learns latent codes too. `step_s`,
    `episode_s`: what a training step and an episode take of one core, for estimates alone."""

    what: str
    evaluations: tuple[int | None, ...] = (None,)
    latents: bool = False
    step_s: float = 0.1
    episode_s: float = 0.3


BASE = "parallel"
"""What the others are compared with."""
HEADS = {
    "parallel": Head("parallel, L1"),
    "tokens": Head("autoregressive bins", step_s=0.15),
    "fast": Head("autoregressive FAST codes", step_s=0.24),
    "masked": Head("discrete diffusion over bins", (1, 4, 8, 12), step_s=0.14),
    "flow": Head("flow DiT, K = 1", (1, 2, 4, 10)),
    "flow_8": Head("flow DiT, K = 8", (1, 2, 4, 10), step_s=0.23),
    "ddpm": Head("DDPM DiT, K = 8", (10,), step_s=0.23),
    "latent": Head("latent codes and a readout", latents=True),
}
"""Variant of `pretrain/heads.py` -> its rows. K: noise draws a context."""


@dataclass(frozen=True)
class Row:
    """A head with a number of evaluations."""

    head: str
    evaluations: int | None

    @property
    def name(self) -> str:
        """As the page has it."""
        return self.head if self.evaluations is None else f"{self.head} {self.evaluations}"

    def result(self, out: Path, seed: int) -> Path:
        """The file of its evaluation."""
        return out / "results" / f"{self.name.replace(' ', '-')}-{seed}.json"


def main() -> None:
    """Collects, trains and evaluates every head, then times them; prints a line a row, or all of it as JSON."""
    args = _arguments()
    heads = _asked(args)
    data = args.data_root or args.out / "data"
    same_settings(args.out, {"data_root": str(args.data_root or ""), **_given(args, SETTINGS)})
    state = run_all(stages(heads, data, args), args.out, args.cores)
    dataset, timed = Dataset.open(data / DATASET), times(heads, data, args)
    found = {
        **facts([state]),
        "suite": SUITE,
        **_given(args, ("tasks", "steps", "latent_steps", "seeds", "episodes")),
        "data": {"episodes": len(dataset), "steps": dataset.steps},
        **{key: timed[key] for key in ("machine", "threads", "train_threads", "batch")},
        "rows": compared(rows_of(heads), args, timed),
        "command": command_line("benchmarks.heads", args, (*UNTOLD, "time_again")),
    }
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for row in found["rows"]:
        share = f"{row['successes']:4}/{row['episodes']:<4} {row['low']:.0%} to {row['high']:.0%}"
        print(f"{row['name']:12} {share}  {row['ms_per_call']:7.2f} ms  {row['train_samples_per_s']:6.0f} samples/s")


def rows_of(heads: Sequence[str]) -> list[Row]:
    """In the order of the page."""
    return [Row(head, count) for head in heads for count in HEADS[head].evaluations]


def stages(heads: Sequence[str], data: Path, args: argparse.Namespace) -> list[Stage]:
    """Demonstrations unless they are given, codes where a head learns some, and training and evaluation of every head and seed."""
    found = [] if args.data_root else [collecting(data, args)]
    if any(HEADS[head].latents for head in heads):
        found += labelling(data, args, needs=tuple(stage.name for stage in found))
    needs = tuple(stage.name for stage in found)
    for seed in range(args.seeds):
        for head in heads:
            found += learning(head, seed, data, args, needs)
    return found


def collecting(data: Path, args: argparse.Namespace) -> Stage:
    """Demonstrations of all tasks."""
    how = ("--episodes", str(args.demonstrations), *NOISY, "--workers", str(args.cores), "--out", str(data / DATASET))
    command = ("collect", "--suite", SUITE, *_tasks(args), *how)
    return Stage("collect", "collect", command, cores=args.cores, typical_s=0.32 * TASKS * args.demonstrations, makes=data / DATASET)


def labelling(data: Path, args: argparse.Namespace, needs: tuple[str, ...]) -> list[Stage]:
    """Latent codes of the demonstrations' own frames."""
    model = str(_watching(args))
    train = ("train", f"{RECIPES}:latent_action", "--data-root", str(data), "--out", model, "--steps", str(args.latent_steps), "--resume")
    label = ("label", "--json", model, str(data / DATASET))
    return [
        Stage("latent action", "latent", train, needs, typical_s=0.19 * args.latent_steps),
        Stage("label", "latent", label, ("latent action",), typical_s=20),
    ]


def learning(name: str, seed: int, data: Path, args: argparse.Namespace, needs: tuple[str, ...]) -> list[Stage]:
    """Training of a head, and its evaluation with each number of evaluations; a core each."""
    head, run = HEADS[name], _run(args, name, seed)
    codes = ("--latents", str(_watching(args))) if head.latents else ()
    how = ("--steps", str(args.steps), "--seed", str(seed), *codes, "--resume")
    command = ("train", f"{RECIPES}:{name}", "--data-root", str(data), "--out", str(run), *how)
    found = [Stage(run.name, "train", command, needs, typical_s=head.step_s * args.steps)]
    for row in rows_of([name]):
        where = ("--suite", SUITE, *_tasks(args), "--episodes", str(args.episodes), "--seed", "0", "--workers", "1")
        count = () if row.evaluations is None else ("--evaluations", str(row.evaluations))
        command = ("eval", str(run), *where, *count, "--json", str(row.result(args.out, seed)))
        seconds = head.episode_s * TASKS * args.episodes
        found.append(Stage(f"evaluate {row.name} {seed}", "evaluate", command, (run.name,), typical_s=seconds))
    return found


def compared(rows: Sequence[Row], args: argparse.Namespace, timed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each row its success, beside `parallel` on the same episodes, and its times."""
    results = {row: [read_result(row.result(args.out, seed)) for seed in range(args.seeds)] for row in rows}
    bases = {BASE: results[Row(BASE, None)]}
    found = []
    for row, every in results.items():
        of_all = success(every, bases if row.head != BASE else {})
        by_task = {task: sum(result.tasks[task].successes for result in every) for task in every[0].tasks}
        what = {"name": row.name, "what": HEADS[row.head].what, "evaluations": row.evaluations}
        found.append({**what, **of_all, "by_task": by_task, **timed["rows"][row.name]})
    pairs = [row[f"against_{BASE}"] for row in found if f"against_{BASE}" in row]
    for pair, adjusted in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_holm"] = adjusted
    return found


def times(heads: Sequence[str], data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What an earlier command measured of these heads, or what is measured now."""
    path, asked = args.out / "times.json", {"heads": list(heads), "threads": args.threads}
    if path.is_file() and not args.time_again and (known := json.loads(path.read_text())).items() >= asked.items():
        return known
    print("timing all heads in turn", file=sys.stderr)
    found = {**asked, **measured(heads, data, args)}
    path.write_text(json.dumps(found, indent=1))
    return found


def measured(heads: Sequence[str], data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Times of each row: calls of the models trained by seed 0, and training steps of fresh ones, which cost as much as theirs did."""
    jobs = {head: _job(head, data, args) for head in heads}
    benches = {
        head: Bench(job.model, job.training_batch(range(run.batch_size)), run.optim.build(job.model.named_parameters()))
        for head, (run, job) in jobs.items()
    }
    base, rows = jobs[BASE][0], rows_of(heads)
    models = {row: Policy.load(_run(args, row.head, 0), evaluations=row.evaluations).model for row in rows}
    torch.set_num_threads(args.threads)
    called = in_turn({row: calls(model, benches[row.head].batch) for row, model in models.items()}, BLOCKS, REPEATS)
    torch.set_num_threads(base.threads)
    trained = in_turn({head: bench.train for head, bench in benches.items()}, BLOCKS, 1)
    return {
        "machine": machine(),
        "train_threads": base.threads,
        "batch": base.batch_size,
        "rows": {
            row.name: {
                "ms_per_call": milliseconds(called[row]),
                "actions_per_s": round(models[row].roster.horizon / statistics.median(called[row])),
                "train_samples_per_s": round(base.batch_size / statistics.median(trained[row.head]), 1),
            }
            for row in rows
        },
    }


def _job(head: str, data: Path, args: argparse.Namespace) -> tuple[Run, Job]:
    """What `vla train` trained, before its first step."""
    run = replace(load_recipe(f"{ROOT / RECIPES}:{head}"), steps=args.steps)
    if HEADS[head].latents:
        run = replace(run, latents=label_hash(load_latent(_watching(args))))
    return run, assemble(run, data, ROOT / "pretrain", verify="size")


def _run(args: argparse.Namespace, head: str, seed: int) -> Path:
    return args.out / "runs" / f"{head}-{seed}"


def _watching(args: argparse.Namespace) -> Path:
    """The model whose codes are learned."""
    return args.out / "runs" / "latent_action"


def _tasks(args: argparse.Namespace) -> tuple[str, ...]:
    return ("--tasks", args.tasks) if args.tasks else ()


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names}


def _asked(args: argparse.Namespace) -> list[str]:
    """The heads, in the order of the page; leaves with what is wrong."""
    names = args.heads.split(",")
    if unknown := [name for name in names if name not in HEADS]:
        sys.exit(f"{', '.join(unknown)}: heads are {', '.join(HEADS)}")
    if BASE not in names:
        sys.exit(f"`{BASE}` is what the other heads are compared with: add it to --heads")
    counts = ("demonstrations", "steps", "latent_steps", "seeds", "episodes", "threads", "cores")
    if min(_given(args, counts).values()) < 1:
        sys.exit(f"{', '.join(counts)}: each at least 1")
    if args.data_root and not (args.data_root / DATASET).is_dir():
        sys.exit(f"{args.data_root} holds no dataset `{DATASET}`; leave --data-root out, and one is collected")
    return [name for name in HEADS if name in names]


def _arguments() -> argparse.Namespace:
    heads = "\n".join(f"  {name:10} {head.what}" for name, head in HEADS.items())
    parser = arguments_of(__doc__, "heads", f"heads:\n{heads}")
    watching = load_recipe(f"{ROOT / RECIPES}:latent_action")
    parser.add_argument("--heads", default=",".join(HEADS), help="parallel and any others (default: all)")
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="demonstrations that are there, as DIR/sawyer (default: collect some)"
    )
    parser.add_argument("--tasks", default="", help="comma-separated; all of the suite by default")
    parser.add_argument("--demonstrations", type=int, default=35, help="to collect, of each task (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="of training, the same for every head (default: %(default)s)")
    parser.add_argument("--latent-steps", type=int, default=watching.steps, help="of the model whose codes `latent` learns (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each head (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="of each task and evaluation (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of a timed call (default: %(default)s)")
    parser.add_argument("--time-again", action="store_true", help="measure times that an earlier command measured already")
    return parser.parse_args()


if __name__ == "__main__":
    main()
