"""`vla convert`: a dataset in another format -> shards, by what its card says."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vla.convert.engine import Progress, Settings
    from vla.convert.estimate import Estimate
    from vla.convert.raw import Reader, Size
    from vla.convert.report import Report

SUMMARY = "Convert a dataset (RLDS, LeRobot, HDF5, video, ...) into shards, by what its card says."
EXAMPLES = """
vla convert rlds data/raw/bridge_dataset/1.0.0 --card my_bridge.yaml --out data/bridge --workers 8
vla convert rlds gs://gresearch/robotics/bridge/0.1.0 --card bridge_oxe --out data/bridge --resume
vla convert lerobot data/raw/pusht --dry-run
vla convert hdf5 data/raw/mine --card mine.yaml --out data/mine --image-size 256 --limit-episodes 10
vla convert --list
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", nargs="?", metavar="FORMAT", help="name of a format; --list shows them")
    parser.add_argument("source", nargs="?", metavar="SRC", help="folder, file or URL (gs://, s3://, hf://, https://) of the dataset")
    parser.add_argument("--card", metavar="CARD", help="name of a card in data_mixtures/sources, or a .yaml file")
    parser.add_argument("--embodiment", metavar="FILE.py", help="the robot that the card names, where it is your own; its code is run")
    parser.add_argument("--out", type=Path, help="folder of the new dataset")
    parser.add_argument("--list", action="store_true", help="list formats and cards, and leave")
    parser.add_argument("--dry-run", action="store_true", help="say what the source holds, and what would come of it; write nothing")
    parser.add_argument("--workers", type=int, default=2, help="reading processes (default: 2; 0: none but this one)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted conversion of the same source and card")
    parser.add_argument("--image-size", type=int, metavar="N", help="shrink pictures to N pixels on the shorter side (default: do not)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEGs that have to be encoded (default: 95)")
    parser.add_argument("--limit-episodes", type=int, metavar="N", help="stop after N episodes")
    parser.add_argument(
        "--max-bad", type=float, default=0.01, help="share of episodes that may be bad before it stops, ten at least (default: 0.01)"
    )
    parser.add_argument("--reader", default="", help="another reader of the format (rlds: tfds)")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="option of the reader, over the card's")
    parser.add_argument("--plugin", default="", metavar="FILE.py:CLASS", help="a reader of your own, for any FORMAT; its code is run")
    parser.add_argument("--cache", type=Path, help="where files of a URL are kept while they are read (default: OUT.cache)")
    parser.add_argument("--no-disk-check", action="store_true", help="begin although the disk looks too small")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; too many bad episodes are an error."""
    if args.list:
        _list()
        return 0
    if not args.format or not args.source:
        raise UserError("vla convert: give FORMAT and SRC, or --list")
    if not args.card and not args.dry_run:
        raise UserError("vla convert: give --card, or --dry-run to see what the source holds")
    if not args.out and not args.dry_run:
        raise UserError("vla convert: give --out, the folder of the new dataset")
    from vla.convert.card import Card
    from vla.convert.formats import open_reader
    from vla.embodiment import load_embodiment

    robot = load_embodiment(args.embodiment) if args.embodiment else None
    card = Card.find(args.card, robot) if args.card else None
    if card is not None and card.format != args.format and not args.plugin:
        raise UserError(f"card '{card.name}' is for format {card.format}, not {args.format}: its names are those of that format")
    options = {**(card.reader if card else {}), **_options(args.option)}
    opening = partial(open_reader, args.format, args.source, options, _cache(args), args.plugin, args.reader)
    if card is None:
        _show_features(opening(), args.json)
        return 0
    return _convert(opening, card, args)


def _convert(opening: Callable[[], Reader], card: Any, args: argparse.Namespace) -> int:
    from vla.convert.engine import convert
    from vla.convert.estimate import check_disk, estimate
    from vla.convert.lanes import LANES

    settings = _settings(args)
    expected = estimate(opening, card, settings.encoding, settings.workers)
    if not args.json or args.dry_run:
        _show_estimate(expected, card.name, args.json)
    if args.dry_run:
        if expected.first is not None and not args.json:
            _show_episode(expected.first, card)
        return 1 if expected.problems else 0
    if settings.limit_episodes is None and not args.no_disk_check:
        held_at_once = expected.source.bytes * min(LANES, expected.parts) // expected.parts if "://" in args.source else 0
        check_disk(expected.bytes + held_at_once, args.out)
    report = _with_bar(lambda show: convert(opening, card, args.out, settings, show), expected.episodes)
    if args.cache is None:
        shutil.rmtree(_cache(args), ignore_errors=True)  # what killed runs have left there; files of this one are gone already
    _show_report(report, args.out, args.json)
    return 0


def _cache(args: argparse.Namespace) -> Path:
    return args.cache or Path(f"{args.out or 'vla-convert'}.cache")


def _settings(args: argparse.Namespace) -> Settings:
    from vla.convert.engine import Settings
    from vla.convert.pictures import Encoding

    for name in ("image_size", "limit_episodes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if not 1 <= args.quality <= 100 or not 0 <= args.max_bad <= 1:
        raise UserError("--quality lies in 1..100, and --max-bad in 0..1")
    return Settings(Encoding(args.quality, args.image_size), args.workers, args.resume, args.limit_episodes, args.max_bad)


def _options(pairs: list[str]) -> Mapping[str, Any]:
    import yaml

    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--option {pair}: give KEY=VALUE")
        options[key] = yaml.safe_load(value)
    return options


def _with_bar(work: Callable[[Callable[[Progress], None]], Report], expected: int | None) -> Report:
    """Runs the work with a bar on a terminal, else a line at every tenth, or every minute where nobody knows how much there is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console, start_s = Console(stderr=True), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    said_s, tenths = start_s, 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("reading", total=expected)

        def show(progress: Any) -> None:
            nonlocal said_s, tenths
            report, now_s = progress.report, time.monotonic()
            rate = report.tried / max(now_s - start_s, 1e-9)
            bars.update(bar, completed=report.tried, description=f"{report.episodes} episodes, {rate:.1f}/s, {report.bad.total()} bad")
            total = progress.episodes_expected
            tenth = report.tried * 10 // total if total else 0
            if not console.is_terminal and now_s - said_s > (2 if tenth > tenths else 60):
                said_s, tenths = now_s, tenth
                left = f", {(total - report.tried) / rate:.0f} s left" if total and rate else ""
                parts = f"{progress.parts_done} of {progress.parts} parts"
                console.print(f"{report.tried} episodes read ({parts}), {rate:.1f}/s{left}", highlight=False)

        return work(show)


def _show_features(reader: Reader, as_json: bool) -> None:
    from rich.table import Table

    from vla.tables import print_table

    features, size = reader.features(), reader.size()
    if as_json:
        rows = [{"name": f.name, "kind": f.kind, "dtype": f.dtype, "shape": f.shape} for f in features]
        print(json.dumps({"bytes": size.bytes, "episodes": size.episodes, "parts": len(reader.parts()), "features": rows}, indent=1))
        return
    table = Table("name", "kind", "dtype", "shape")
    for feature in sorted(features, key=lambda f: (f.kind, f.name)):
        table.add_row(feature.name, feature.kind, feature.dtype, " x ".join("?" if n is None else str(n) for n in feature.shape))
    print_table(table)
    print(_holds(size, len(reader.parts())))


def _holds(size: Size, parts: int) -> str:
    episodes = "an unknown number of" if size.episodes is None else f"{size.episodes:,}"
    return f"{episodes} episodes in {parts:,} part{'s' * (parts != 1)}, {size.bytes:,} bytes"


def _show_estimate(expected: Estimate, name: str, as_json: bool) -> None:
    facts = {
        "dataset": name,
        "episodes": expected.episodes,
        "parts": expected.parts,
        "source_bytes": expected.source.bytes,
        "bytes": expected.bytes,
        "seconds": expected.seconds,
        "sampled": expected.sampled,
        "unused": list(expected.unused),
        "problems": list(expected.problems),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    time_left = f", about {expected.seconds:.0f} s" if expected.seconds is not None else ""
    basis = f"from {expected.sampled} episodes" if expected.sampled else "the size of the source; nothing could be sampled"
    print(f"{name}: {_holds(replace(expected.source, episodes=expected.episodes), expected.parts)}")
    print(f"about {expected.bytes:,} bytes of shards ({basis}){time_left}")
    if expected.unused:
        print(f"not in the card: {', '.join(expected.unused)}")
    for problem in expected.problems:
        print(f"problem: {problem}")


def _show_episode(episode: Any, card: Any) -> None:
    """The first episode as it would be stored: what its numbers reach shows a wrong unit or polarity at a glance."""
    import simplejpeg
    from rich.table import Table

    from vla.tables import print_table

    table = Table("field", "unit", "frame", "lowest", "highest", title=f"{episode.id}: {episode.steps} steps at {episode.rate_hz} Hz")
    for kind, space, rows in (("state", card.state_space, episode.state), ("action", card.action_space, episode.action)):
        for name, values in (space.unpack(rows) if space else {}).items():
            of, low, high = space.field(name), values.min(0), values.max(0)
            spans = [" ".join(f"{value + 0.0:.3g}" for value in ends) for ends in (low, high)]
            table.add_row(f"{kind} {name}", of.unit, of.frame, *spans)
    if table.rows:
        print_table(table)
    for role, frames in episode.frames.items():
        if hasattr(frames, "jpeg"):
            height, width, _, _ = simplejpeg.decode_jpeg_header(frames.jpeg[0])
            print(f"{role}: {len(frames.jpeg)} pictures of {height} x {width}")
    for span in episode.instructions[:5]:
        print(f"steps {span.start}..{span.stop}: {span.text}")


def _show_report(report: Report, out: Path, as_json: bool) -> None:
    from vla.convert.report import GRACE

    if as_json:
        print(json.dumps({**report.to_json(), "out": str(out)}, indent=1))
        return
    resumed = f" ({report.resumed} of them from before)" if report.resumed else ""
    print(f"{report.episodes} episodes{resumed}, {report.steps:,} steps, {report.hours:.2f} h in {report.seconds:.0f} s -> {out}")
    for what, count in sorted(report.dropped.items()):
        print(f"left out, as the card says: {count} {what}")
    for cause, count in report.bad.most_common():
        print(f"bad: {count} {cause}")
    for bad in report.listed[:10]:
        print(f"  {bad}")
    if lost := report.bad.total():
        share = f"{lost / max(report.tried, 1):.1%} of the episodes ({lost} of {report.tried})"
        print(f"warning: {share} are bad and were not stored; --max-bad stops it only after {GRACE} of them")


def _list() -> None:
    from rich.console import Console

    from vla.convert.card import card_names
    from vla.convert.formats import FORMATS

    console = Console(soft_wrap=True, highlight=False)
    for name, row in FORMATS.items():
        others = f" (--reader {', '.join(row.others)})" if row.others else ""
        console.print(f"[bold]{name}[/bold]  {row.summary}{others}")
    console.print(f"cards: {', '.join(card_names()) or 'none'}")
