"""`vla demo`: collect, learn latent actions, pretrain, evaluate, fine-tune a new robot, report. What `make demo` runs."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla.demo.stages import State

SUMMARY = "The whole job on real input: collect, pretrain, evaluate, fine-tune, report."
EXAMPLES = """
vla demo
vla demo --decoder masked
vla demo --resume
vla demo --list
"""
MARK = ".vla-demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--decoder", default=None, help="parallel (default), tokens, masked, dit or latent")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="emptied first, unless --resume (default: runs/demo)")
    parser.add_argument("--resume", action="store_true", help="keep what finished stages made, where their commands are still the same")
    parser.add_argument("--cores", type=int, default=min(os.cpu_count() or 1, 2), help="stages side by side (default: 2, or what there is)")
    parser.add_argument("--list", action="store_true", help="print the commands it would run, and stop")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; a stage that fails ends it with an error that names the stage and its log."""
    from vla.demo.plan import DECODERS, stages
    from vla.demo.stages import run_stages
    from vla.demo.summary import write_summary
    from vla.errors import UnknownName, UserError

    decoder = args.decoder or DECODERS[0]
    if decoder not in DECODERS:
        raise UnknownName("decoder", decoder, DECODERS)
    plan = stages(decoder, args.out)
    if args.list:
        for stage in plan:
            print(stage.line)
        return 0
    if not Path("pretrain/demo.py").is_file():
        raise UserError("the demo's recipes are not here (pretrain/demo.py); run it from the root of the repository")
    if args.cores < 1:
        raise UserError(f"--cores {args.cores}: at least 1")
    _prepare(args.out, args.resume)
    with _Display(len(plan)) as display:
        state = run_stages(plan, args.out, args.cores, args.resume, display.show)
    _print(write_summary(args.out, decoder, state), args.out)
    return 0


def _prepare(out: Path, resume: bool) -> None:
    """An empty folder of ours. A folder that is not a demo's is never emptied."""
    from vla.errors import UserError

    if out.exists() and not resume:
        if any(out.iterdir()) and not (out / MARK).exists():
            raise UserError(f"{out} is not empty and was not made by the demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _print(summary: dict, out: Path) -> None:
    pretrain, finetune = summary["pretrain"]["success"], summary["finetune"]
    for label, row in (
        ("eight Sawyer tasks, unseen seeds", pretrain),
        ("tasks never seen (zero-shot)", summary["zero_shot"]["success"]),
        ("new robot, fine-tuned", finetune["success"]),
        ("new robot, from scratch", finetune["from_scratch"]),
    ):
        print(
            f"{label:34} {row['successes']:3}/{row['episodes']:<4} {row['rate']:6.1%}   95% interval {row['low']:.1%} to {row['high']:.1%}"
        )
    total = summary["seconds"]["total"]
    print(f"{total:.0f} s, {summary['cpu_seconds']:.0f} CPU s, peak memory {summary['peak_rss_mb']:.0f} MB")
    print(f"report: {out / 'report.html'}   summary: {out / 'summary.json'}")


class _Display:
    """A table of the stages with an estimate of what is left; without a terminal, a line when a stage starts or ends."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self.total, self.console = total, Console()
        self._live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self._seen: set[str] = set()

    def __enter__(self) -> _Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, state: State) -> None:
        """One line where a stage begins or ends, and a table of all while any runs."""
        if self._live:
            self._live.update(self._table(state))
            return
        for name in state.running:
            if ("start", name) not in self._seen:
                self._seen.add(("start", name))  # type: ignore[arg-type]
                self.console.print(f"[{state.elapsed_s:4.0f} s, about {state.remaining_s:.0f} s left] {name} ...", markup=False)
        for name, done in state.done.items():
            if name not in self._seen:
                self._seen.add(name)
                self.console.print(f"[{state.elapsed_s:4.0f} s] {name}: {done.seconds:.0f} s, {done.cpu_seconds:.0f} CPU s", markup=False)

    def _table(self, state: State):
        from rich.table import Table

        table = Table(
            title=f"{len(state.done)}/{self.total} stages, {state.elapsed_s:.0f} s, about {state.remaining_s:.0f} s left", expand=True
        )
        for column, width in (("stage", 24), ("seconds", 8), ("", None)):
            table.add_column(column, width=width, no_wrap=True, overflow="ellipsis")
        for name, done in state.done.items():
            table.add_row(f"[green]{name}", f"{done.seconds:.0f}", "[dim]done")
        for name, (seconds, line) in state.running.items():
            table.add_row(f"[bold]{name}", f"{seconds:.0f}", line.replace("[", "\\["))
        for name in state.waiting:
            table.add_row(f"[dim]{name}", "", "")
        return table
