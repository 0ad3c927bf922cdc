"""Line plots as SVG that takes the page's own text colour and fonts, so that it reads in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = ("#3b7dd8", "#e0803a", "#3d9a6c", "#b45ac0", "#c9a227", "#d3526b", "#5aa9b8", "#8a7b6a")
"""Legible on white and on near-black, and told apart by most colour-blind readers in this order."""
SMOOTHED_POINTS = 200


@dataclass(frozen=True)
class Series:
    """One line: `x` and `y` of equal length. `smooth`: draw the raw values faintly under their moving average."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    smooth: bool = False


def curves_svg(series: Sequence[Series], x_label: str, y_label: str, log_y: bool = False) -> str:
    """An `<svg>` element, to be put into a page as it is."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text; ids come from the contents, so that two plots on a page do not share them by chance.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": y_label + "".join(one.name for one in series)}):
        figure = Figure(figsize=(10.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for one, colour in zip(series, [COLOURS[i % len(COLOURS)] for i in range(len(series))], strict=True):
            x, y = np.asarray(one.x, dtype=float), np.asarray(one.y, dtype=float)
            window = max(1, len(y) // SMOOTHED_POINTS, min(25, len(y) // 8))
            if one.smooth and window > 1:
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
                x, y = x[window - 1 :], np.convolve(y, np.ones(window) / window, mode="valid")
            axes.plot(x, y, color=colour, linewidth=1.8, label=one.name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_yscale("log" if log_y else "linear")
        axes.grid(alpha=0.15, color="#808080")
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(frameon=False, ncols=2)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(out.getvalue())


def _for_page(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # A style element inside an inline SVG would hold for the whole page.
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: [^;\"]*px [^;\"]*", "font: 11px sans-serif", svg)
    svg = svg.replace("#000000", "currentColor")
    # Text without a fill is black, whatever the page's colour.
    return svg.replace("<svg", '<svg class="plot" role="img" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt"', 1)
