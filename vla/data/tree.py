"""A mixture as a tree for people: what is in it, how much of each, how often it is seen."""

from __future__ import annotations

import math

from rich.markup import escape
from rich.tree import Tree

from vla.data.mixture import Mixture, Source
from vla.data.order import Order, OrderSource
from vla.data.split import Split


def mixture_tree(mixture: Mixture, positions: int | None = None) -> Tree:
    """`positions`: length of a run in samples; then each source shows how often its training samples are seen."""
    sources = mixture.sources
    epochs = _epochs(mixture, positions) if positions is not None else {}
    total = f"{duration(sum(s.dataset.hours for s in sources))}, {sum(s.dataset.steps for s in sources):,} steps"
    run = f", {positions:,} samples" if positions is not None else ""
    top = Tree(f"[bold]{escape(mixture.name)}[/bold]  {total}, held out {mixture.val_fraction:.1%}{run}{_why(mixture.why)}")
    _grow(top, mixture, 1.0, epochs)
    return top


def duration(hours: float) -> str:
    """`3.25 h`, or minutes or seconds where those say more."""
    if hours >= 1:
        return f"{hours:,.2f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"


def _grow(tree: Tree, mixture: Mixture, share: float, epochs: dict[str, float]) -> None:
    for child in mixture.children:
        if isinstance(child, Source):
            tree.add(_leaf(child, child.share * share, epochs))
        else:
            inner, part = child
            branch = tree.add(f"[bold]{part * share:6.1%}  {escape(inner.name)}[/bold]{_why(inner.why)}")
            _grow(branch, inner, part * share, epochs)


def _leaf(source: Source, share: float, epochs: dict[str, float]) -> str:
    info = source.dataset.info
    robot = info.embodiment["name"] if info.embodiment else "video"
    parts = [
        f"{share:6.1%}  [cyan]{escape(source.name)}[/cyan]  {escape(robot)}",
        duration(source.dataset.hours),
        f"{source.dataset.steps:,} steps",
        f"{len(source.dataset):,} episodes",
        f"{info.supervision}",
        escape(info.licence),
    ]
    if source.name in epochs:
        parts.append(f"[bold]{epochs[source.name]:.2f} epochs[/bold]")
    if source.max_epochs is not None:
        parts.append(f"at most {source.max_epochs:g} epochs")
    if source.cameras is not None:
        parts.append(f"cameras {', '.join(source.cameras)} only")
    return ", ".join(parts) + _why(source.why)


def _epochs(mixture: Mixture, positions: int) -> dict[str, float]:
    splits = {s.name: Split(s.dataset, "train", mixture.val_fraction) for s in mixture.sources}
    rows = [OrderSource(s.name, s.share, splits[s.name].anchors_per_shard, s.max_epochs) for s in mixture.sources]
    order = Order(rows, seed=0)
    drawn = order.drawn(positions if order.length is None else min(positions, order.length))
    return {row.name: float(count) / row.samples if row.samples else math.inf for row, count in zip(rows, drawn, strict=True)}


def _why(text: str) -> str:
    return f"\n[dim]{escape(text)}[/dim]" if text else ""
