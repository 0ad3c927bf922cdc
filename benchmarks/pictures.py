"""Pictures of results, which `benchmarks.pages` draws beside the tables that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DASHED = {"permuted": "pretrained", "latent_permuted": "latent"}
"""Of `benchmarks/new_robot.py`, a control -> what it is the control of; both have one colour."""


def new_robot(found: Mapping[str, Any], names: Mapping[str, str], path: Path) -> None:
    """A panel for each robot: success by number of demonstrations, with Wilson's intervals; faint points are single trainings. `names`:
    arm -> its label, in the order of the legend."""
    from matplotlib.figure import Figure

    from vla.evaluate.curves import COLOURS

    robots = found["robots"]
    figure = Figure(figsize=(1.5 + 4.2 * len(robots), 4.4), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(robots), sharey=True, squeeze=False)[0]
    arms = [arm for arm in names if any(arm in by_arm for rows in robots.values() for by_arm in rows["demonstrations"].values())]
    solid = [arm for arm in arms if arm not in DASHED]
    for panel, (robot, rows) in zip(panels, robots.items(), strict=True):
        counts = list(rows["demonstrations"])
        for arm in arms:
            told = [(int(count), rows["demonstrations"][count][arm]) for count in counts if arm in rows["demonstrations"][count]]
            each = found["episodes"] / 100
            x, rate = [count for count, _ in told], [100 * row["rate"] for _, row in told]
            colour = COLOURS[solid.index(DASHED.get(arm, arm)) % len(COLOURS)]
            reach = [[100 * (row["rate"] - row["low"]) for _, row in told], [100 * (row["high"] - row["rate"]) for _, row in told]]
            style = "--" if arm in DASHED else "-"
            panel.errorbar(x, rate, yerr=reach, color=colour, linestyle=style, marker="o", markersize=4, capsize=2, label=names[arm])
            for count, row in told:
                panel.scatter(
                    [count] * len(row["by_seed"]), [won / each for won in row["by_seed"]], color=colour, s=9, alpha=0.3, linewidths=0
                )
        panel.set(xscale="log", xticks=list(map(int, counts)), xticklabels=counts, ylim=(0, 103), title=f"{robot}, {rows['task']}")
        panel.set_xlabel("demonstrations")
        panel.minorticks_off()
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("success, %")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=1, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
