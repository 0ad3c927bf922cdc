"""`vla label`: latent-action codes for every anchor of datasets, kept beside their shards."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla import arguments
from vla.errors import UserError

if TYPE_CHECKING:
    from vla.data.reader import Dataset
    from vla.latent_action.label import Labels
    from vla.latent_action.model import LatentActionModel

SUMMARY = "Write latent-action codes into shards, from video without actions."
EXAMPLES = """
vla label runs/latent/model data/video data/sawyer
vla label runs/latent/model data/video --gap 0.2 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="folder of a latent-action model")
    parser.add_argument("dataset", type=Path, nargs="+", help="dataset folders")
    parser.add_argument("--gap", type=float, help="seconds between the frames of a pair (default: the middle of those trained on)")
    parser.add_argument("--batch", type=int, default=256, help="pairs at once (default: 256)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    arguments.add_plugin(parser, "the model")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Writes codes beside the shards; those of the same model that are there already are kept."""
    from vla.data.reader import Dataset
    from vla.device import device_here
    from vla.latent_action.checkpoint import load_latent

    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give at least 1")
    arguments.load_plugins(args)
    device = device_here(args.device)
    model = load_latent(args.checkpoint).to(device)
    model.check_gap(args.gap)
    datasets = [Dataset.open(folder) for folder in args.dataset]  # all of them, before the first is labelled
    rows = []
    for dataset in datasets:
        rows.append(_row(dataset, _label_with_bar(dataset, model, args), model))
        if not args.json:
            _print(rows[-1])
    if args.json:
        print(json.dumps({"latents": rows[0]["latents"], "datasets": rows}))
    else:
        print(f'a recipe uses these codes with latents="{rows[0]["latents"]}"')
    return 0


def _label_with_bar(dataset: Dataset, model: LatentActionModel, args: argparse.Namespace) -> Labels:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vla.latent_action.label import label

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(dataset.info.name, total=dataset.anchors, rate="")

        def show(done: int, total: int) -> None:
            bars.update(bar, completed=done, rate=f"{done / max(bars.tasks[0].elapsed or 0, 1e-9):.0f}/s")

        return label(dataset, model, args.gap, args.batch, show)


def _row(dataset: Dataset, labels: Labels, model: LatentActionModel) -> dict[str, Any]:
    from vla.latent_action.probe import probe

    r2 = probe(dataset, labels.code_XN[:, : model.codes], model.vocabulary, labels.gap_s)
    return {
        "dataset": dataset.info.name,
        "latents": labels.hash,
        "path": str(labels.path),
        "anchors": dataset.anchors,
        "bad": labels.bad,
        "cached": labels.cached,
        "seconds": round(labels.seconds, 3),
        "gap_s": labels.gap_s,
        **labels.usage.to_json(),
        "probe_r2": {name: values.tolist() for name, values in r2.items()},
    }


def _print(row: dict[str, Any]) -> None:
    rate = row["anchors"] / max(row["seconds"], 1e-9)
    effective = " ".join(f"{value:.1f}" for value in row["perplexity"])
    how = "kept, made earlier by the same model" if row["cached"] else f"in {row['seconds']:.1f} s ({rate:.0f}/s)"
    print(f"{row['dataset']}: {row['anchors']:,} anchors {how}, {row['bad']} without a code")
    print(f"  effective entries per code {effective} of {len(row['count'][0])}; {row['dead_share']:.0%} of entries never used")
    for name, values in row["probe_r2"].items():
        print(f"  linear probe R2, {name}: {' '.join(f'{value:.2f}' for value in values)} (mean {sum(values) / len(values):.2f})")
