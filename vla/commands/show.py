"""`vla show`: what lies at a path, for people: trees, tables and pictures."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vla import arguments
from vla.commands.check import kind_of
from vla.errors import UnknownName, UserError

if TYPE_CHECKING:
    from vla.data.mixture import Mixture
    from vla.data.reader import Dataset

SUMMARY = "Show what a dataset holds (tables, pictures, plots), a mixture as a tree, training runs as curves, or what was served."
EXAMPLES = """
vla show data_mixtures/demo.yaml --samples 100000
vla show data/demo/sawyer
vla show data/demo/sawyer --out pictures --episodes 12
vla show data_mixtures/demo.yaml --batch 8 --out pictures
vla show data/demo/sawyer --rerun runs/show/sawyer.rrd
vla show runs/demo_parallel runs/demo_tokens
vla show runs/served --out runs/show
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="dataset folder, mixture .yaml, training run, or recording of `vla serve`")
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="further runs, to be drawn over the first")
    arguments.add_data_root(parser)
    parser.add_argument("--samples", type=int, help="mixture: length of a run, to show how often each source is seen")
    parser.add_argument("--episodes", type=int, default=8, help="dataset: episodes on the pictures (default: 8)")
    parser.add_argument("--batch", type=int, default=0, metavar="N", help="also draw the first N samples as training sees them")
    parser.add_argument("--rerun", type=Path, metavar="FILE", help="dataset or one session: also write a file (.rrd) for rerun")
    parser.add_argument("--out", type=Path, default=Path("runs/show"), help="folder for pictures (default: runs/show)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; UnknownName for a path that is nothing to show."""
    if args.runs or (args.path / "log.jsonl").is_file():
        return _runs(args)
    if _served(args.path):
        return _rollouts(args)
    kind = kind_of(args.path)
    if kind not in SHOWS:
        shown = [*SHOWS, "folder of a run", "recording of a server"]
        raise UnknownName("kind of path to show", kind, shown, f"`vla check {args.path}` knows it.")
    return SHOWS[kind](args)


def _mixture(args: argparse.Namespace) -> int:
    from rich.console import Console

    from vla.data.mixture import Mixture

    if args.rerun:
        raise UserError("--rerun records one dataset; give the folder of a dataset of the mixture")
    mixture = Mixture.load(args.path, args.data_root, verify="size")
    Console().print(mixture.tree(args.samples))
    if args.batch:
        print(f"wrote {_batch(mixture, args)}")
    return 0


def _dataset(args: argparse.Namespace) -> int:
    from vla.data.mixture import Mixture
    from vla.data.pictures import save_pictures
    from vla.data.reader import Dataset

    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}; give at least 1")
    dataset = Dataset.open(args.path)
    _print_summary(dataset)
    for path in save_pictures(dataset, args.out, args.episodes):
        print(f"wrote {path}")
    if args.batch:
        print(f"wrote {_batch(Mixture.of([args.path], name=dataset.info.name), args)}")
    if args.rerun:
        from vla.data.recording import write_recording

        print(f"wrote {write_recording(dataset, args.rerun, args.episodes)}; look at it with `rerun {args.rerun}`")
    return 0


def _runs(args: argparse.Namespace) -> int:
    from rich.table import Table

    from vla.tables import print_table
    from vla.train.curves import History, save_curves, summary

    if args.rerun or args.batch:
        raise UserError("--rerun and --batch show data; a run is drawn as curves (and its first batch lies in its folder)")
    histories = [History.read(folder) for folder in (args.path, *args.runs)]
    rows = [summary(history) for history in histories]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    print_table(table)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{'-'.join(dict.fromkeys(history.name for history in histories))}-curves.png"
    save_curves(path, histories)
    print(f"wrote {path}")
    return 0


def _served(path: Path) -> bool:
    return (path / "rollout.json").is_file() or any(path.glob("session-*/rollout.json"))


def _rollouts(args: argparse.Namespace) -> int:
    from vla.serve.page import write_page
    from vla.serve.rollout import Rollout, rollouts

    found = rollouts(args.path)
    if args.rerun and len(found) > 1:
        raise UserError(f"--rerun records one session; give one of {', '.join(path.name for path in found)}")
    for path in found:
        rollout = Rollout.read(path)
        print(f"wrote {write_page(rollout, args.out / f'{rollout.name}.html')}")
        if args.rerun:
            from vla.serve.rerun import write_rollout

            print(f"wrote {write_rollout(rollout, args.rerun)}; look at it with `rerun {args.rerun}`")
    return 0


def _batch(mixture: Mixture, args: argparse.Namespace) -> Path:
    """The first samples of an order (seed 0), as pictures with their action chunks."""
    from vla.data.pictures import batch_sheet
    from vla.data.pipeline import Pipeline

    if args.batch < 0:
        raise UserError(f"--batch {args.batch}; give a number of samples")
    robots = {robot.name: robot for s in mixture.sources if (robot := s.dataset.info.robot) is not None}
    samples = Pipeline(mixture, robots).samples(range(args.batch))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{mixture.name}-batch.png"
    batch_sheet(samples).save(path)
    return path


SHOWS: dict[str, Callable[[argparse.Namespace], int]] = {"dataset": _dataset, "mixture": _mixture}
"""kind (of `vla.commands.check.KINDS`) -> how to show it."""


MOST_EPISODES = 2000
"""So many are searched for instructions: a listing must not read the whole of a large dataset."""


def _print_summary(dataset: Dataset) -> None:
    from rich.table import Table

    from vla.data.check import dataset_facts
    from vla.data.pictures import spread_episodes
    from vla.tables import print_table

    table = Table(title=dataset.info.name, show_header=False)
    for name, value in dataset_facts(dataset, full=False).items():
        table.add_row(name, ", ".join(value) if isinstance(value, list) else "none" if value is None else str(value))
    for name, space in (("state", dataset.info.recorded_state), ("action", dataset.info.recorded_action)):
        fields = space.fields if space else ()
        table.add_row(name, ", ".join(f"{f.name}[{f.size} {f.unit}, {f.frame}]" for f in fields) or "none")
    print_table(table)
    texts: Counter[str] = Counter()
    looked = spread_episodes(dataset, MOST_EPISODES)
    for index in looked:
        texts.update({span.text for span in dataset.episode(index).spans})
    part = "" if len(looked) == len(dataset) else f" in {len(looked):,} of {len(dataset):,} episodes"
    listed = Table("episodes", "instruction", title=f"{len(texts)} instructions{part}")
    for text, count in texts.most_common(12):
        listed.add_row(str(count), text or "(none)")
    print_table(listed)
    if dataset.reasons:
        _print_reasoning(dataset, looked)


def _print_reasoning(dataset: Dataset, looked: Iterable[int]) -> None:
    """What is said before acting in the first of these episodes that has any; of other sources, no episode need have it."""
    from rich.table import Table

    from vla.tables import print_table

    episode = next((each for each in map(dataset.episode, looked) if each.reasons), None)
    if episode is None:
        return
    table = Table("steps", "reasoning", title=f"{len(episode.reasons)} spans of reasoning in episode '{episode.id}'")
    for span in episode.reasons[:12]:
        table.add_row(f"{span.start}..{span.stop}", span.text)
    print_table(table)
