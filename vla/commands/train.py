"""`vla train`: runs a recipe, alone or as one rank of a launcher's job."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla import arguments

if TYPE_CHECKING:
    from vla.latent_action.run import LatentRun
    from vla.train.run import Run

SUMMARY = "Run a recipe: pretraining or fine-tuning."
EXAMPLES = """
vla train pretrain/demo.py
vla train finetune/forkme.py --init runs/demo/pretrain --out runs/my_robot
vla train pretrain/demo.py --resume
vla train pretrain/demo.py --dry-run --world 8 --zero 2
vla train pretrain/demo_latent_action.py --out runs/latent_action
vla train pretrain/univla.py:stage2 --init runs/univla_stage1
vla train pretrain/demo.py:latent --latents runs/latent_action
torchrun --nproc-per-node 2 -m vla train pretrain/demo.py --zero pretrain/zero2.json
device: a GPU for each rank where torch sees one (CUDA_VISIBLE_DEVICES chooses), else the CPU; more ranks by torchrun, as above
exit codes: 0 done; 75 stopped on request with everything saved (go on with --resume); 2 a mistake; 1 damaged data or divergence
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        type=Path,
        help="a Python file that defines RUN, or FILE.py:NAME for a variant in it (it is run: name only files you trust)",
    )
    arguments.add_plugin(parser, "the model")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/<name of the run>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest sound checkpoint in --out, if there is one")
    parser.add_argument("--allow-changed", action="store_true", help="resume although the run or its data have changed")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, and stop before the first step")
    parser.add_argument("--world", type=int, metavar="RANKS", help="with --dry-run: as if on so many ranks (default: as launched)")
    parser.add_argument("--data-root", type=Path, help="folder of the datasets (default: $VLA_DATA, else data)")
    parser.add_argument("--init", help="checkpoint or run folder to start from")
    parser.add_argument(
        "--latents", help="latent codes to learn: the name that `vla label` printed, or the folder of the model that made them"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, help="samples per optimizer step, over all ranks")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--seed", type=int, help="seed of the order, the noise and the fresh weights")
    parser.add_argument("--zero", metavar="STAGE", help="DeepSpeed: 1, 2, 3 or a JSON file such as pretrain/zero2.json; 0: plain torch")
    parser.add_argument("--workers", type=int, help="loader processes (0: one thread)")
    parser.add_argument("--threads", type=int, help="threads of one forward pass on a CPU (0: as torch has it)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0, or what a stopping signal asks for (docs of `vla.train.stop`)."""
    from vla.errors import UserError
    from vla.latent_action.run import LatentRun
    from vla.train.loop import train
    from vla.train.progress import Bar
    from vla.train.run import load_recipe
    from vla.train.stop import EXIT_STOPPED

    if args.world is not None and (args.world < 1 or not args.dry_run):
        raise UserError("--world plans for so many ranks (1 or more): add --dry-run. A run has the ranks of its launcher, such as torchrun")
    arguments.load_plugins(args)
    found = load_recipe(args.recipe)
    if isinstance(found, LatentRun):
        return _train_latent(found, args)
    recipe = overridden(found, args)
    if args.dry_run:
        return _dry_run(recipe, args)
    out = args.out or Path("runs") / recipe.name
    where = {"data_root": args.data_root, "near": args.recipe.parent}
    with Bar() as bar:
        result = train(recipe, out, resume=args.resume, allow_changed=args.allow_changed, watch=bar, **where)
        bar.say(f"saved {result.checkpoint}")
    return EXIT_STOPPED if result.stopped else 0


def overridden(recipe: Run, args: argparse.Namespace) -> Run:
    """The recipe's run with what the command line says instead."""
    from vla.train.optim import Zero

    changes = _given(args, ("init", "steps", "batch_size", "seed", "workers", "threads"))
    if args.lr is not None:
        changes["optim"] = replace(recipe.optim, lr=args.lr)
    if args.zero is not None:
        changes["zero"] = Zero.of(args.zero)
    if args.latents is not None:
        changes["latents"] = _latents(args.latents)
    return replace(recipe, **changes)


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _latents(name_or_folder: str) -> str:
    """The name of the codes that the model in a folder gives at its usual gap; anything else is taken as a name."""
    from vla.latent_action.checkpoint import load_latent
    from vla.latent_action.label import label_hash

    return label_hash(load_latent(name_or_folder)) if Path(name_or_folder).is_dir() else name_or_folder


def _train_latent(recipe: LatentRun, args: argparse.Namespace) -> int:
    from vla.errors import UserError
    from vla.train.checkpoint import lock
    from vla.train.job import open_mixture
    from vla.train.progress import Bar
    from vla.train.ranks import Ranks

    if Ranks.world_size() > 1:
        raise UserError(f"a latent-action model trains on one process, not on {Ranks.world_size()} ranks: start it without a launcher")
    meaningless = sorted([*_given(args, ("zero", "workers", "latents")), *(["allow_changed"] if args.allow_changed else [])])
    if meaningless:
        wrong = ", ".join(f"--{name.replace('_', '-')}" for name in meaningless)
        raise UserError(f"{wrong}: not for a latent-action model, which trains on one process")
    recipe = replace(recipe, **_given(args, ("steps", "batch_size", "seed", "threads")))
    if args.lr is not None:
        recipe = replace(recipe, learning_rate=args.lr)
    first = Path(args.init) if args.init else None
    recipe.check_first(first)
    mixture = open_mixture(recipe.mixture, args.recipe.parent, args.data_root)
    out = args.out or Path("runs") / recipe.name
    if args.dry_run:
        print(f"{args.recipe} is sound; nothing was trained")
        return 0
    with lock(out), Bar() as bar:

        def progress(step: int, steps: int, row: Mapping[str, Any]) -> None:
            bar.step(step, steps)
            unexplained, used = row["prediction"], row["perplexity_share"]
            bar.line(f"step {step}: {unexplained:.0%} of the change unexplained, {used:.0%} of the codebook in use, {row['seconds']:.0f} s")

        recipe.train(out, mixture, progress, first, args.resume)
        bar.say(f"saved {out / 'model'}")
    return 0


def _dry_run(recipe: Run, args: argparse.Namespace) -> int:
    from vla.train.plan import dry_run
    from vla.train.ranks import Ranks

    for line in dry_run(recipe, args.data_root, args.recipe.parent, args.world or Ranks.world_size()):
        print(line)
    print(f"{args.recipe} is sound; nothing was trained")
    return 0
