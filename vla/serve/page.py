"""A rollout as one HTML page that needs nothing else: cameras, instruction, every chunk over time, and what was carried out.

The plots are drawn here and stand without the script; it moves the pictures and the cursor. The browser runs that script alone, known by
its hash, and loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vla.document import document, write_document
from vla.normalize import dimension_names
from vla.serve.rollout import Request, Rollout

MOST_REQUESTS = 300
"""So many are shown, evenly over a longer rollout: a picture is some 10 kB."""
WIDTH, HEIGHT = 360, 110


def write_page(rollout: Rollout, path: Path) -> Path:
    """Writes the page, replacing an older one as a whole."""
    return write_document(path, page(rollout))


def page(rollout: Rollout) -> str:
    """The page's text."""
    style, script = (resources.files("vla.serve").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    shown = [rollout.requests[i] for i in _spread(len(rollout.requests))]
    axis = Axis(rollout)
    data: list[dict[str, Any]] = [
        {
            "at_s": round(request.at_s, 3),
            "policy_s": request.policy_s,
            "instruction": request.instruction,
            "x": round(axis.x(request.at_s), 2),
            "frames": {role: _picture(file) for role, file in request.frames.items()},
        }
        for request in shown
    ]
    robot, first = rollout.robot, data[0]
    cameras = "".join(
        f'<figure><img data-role="{escape(role)}" src="{first["frames"][role]}" alt="{escape(role)}">'
        f"<figcaption>{escape(role)}</figcaption></figure>"
        for role in robot.cameras
        if role in first["frames"]
    )
    pieces, said = rollout.executed()
    note = "as the robot reported" if said else "assumed: each chunk until the next one came"
    units = [field.unit for field in robot.command.fields for _ in range(field.size)]
    plots = "".join(
        _plot(column, f"{name} ({unit})", axis, shown, pieces)
        for column, (name, unit) in enumerate(zip(dimension_names(robot.command), units, strict=True))
    )
    times = sorted(request.policy_s for request in rollout.requests)
    lead = (
        f"{rollout.policy} for {robot.name}: {len(rollout.requests)} requests in {rollout.requests[-1].at_s:.1f} s, "
        f"policy {times[len(times) // 2] * 1e3:.1f} ms at the median"
    )
    lead += f"; {len(shown)} of them are shown" if len(shown) < len(rollout.requests) else ""
    body = (
        f"<header><h1>{escape(rollout.name)}</h1><p>{escape(lead)}</p></header>\n<main>\n"
        f'<section><div class="cameras">{cameras}</div><div id="instruction">{escape(first["instruction"])}</div>'
        '<div class="bar"><button id="play" type="button">Play</button>'
        f'<input id="request" type="range" min="0" max="{len(shown) - 1}" value="0" aria-label="request">'
        '<output id="when"></output></div></section>\n'
        f'<section><h2>Commands over time, s</h2><p class="key"><i style="background:var(--chunk)"></i>chunks'
        f'<i style="background:var(--now)"></i>the chunk of this request<i style="background:var(--done)"></i>carried out ({note})</p>'
        f'<div class="plots">{plots}</div></section>\n</main>\n'
        f'<script type="application/json" id="data">{json.dumps(data).replace("<", chr(92) + "u003c")}</script>\n'
        f"<script>{script}</script>\n"
    )
    return document(rollout.name, policy, style, body)


class Axis:
    """Seconds and a command's numbers -> places in a plot."""

    def __init__(self, rollout: Rollout) -> None:
        self.period_s = 1 / float(rollout.robot.rate_hz)
        self.end_s = max(request.at_s + len(request.action_TA) * self.period_s for request in rollout.requests)
        low, high = (np.array([bound(request.action_TA, axis=0) for request in rollout.requests]) for bound in (np.min, np.max))
        self.low_A, self.high_A = low.min(axis=0), high.max(axis=0)
        self.span_A = np.maximum(self.high_A - self.low_A, 1e-9)

    def x(self, at_s: float) -> float:
        """Where a time lies, in the units of the SVG."""
        return at_s / self.end_s * WIDTH

    def path(self, times: np.ndarray, values: np.ndarray, column: int) -> str:
        """The points of a line, as SVG's `polyline` takes them; `values`: of number `column`."""
        x = times / self.end_s * WIDTH
        y = HEIGHT - 4 - (values - self.low_A[column]) / self.span_A[column] * (HEIGHT - 8)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _plot(column: int, name: str, axis: Axis, shown: list[Request], pieces: list[tuple[np.ndarray, np.ndarray]]) -> str:
    chunks = "".join(
        f'<polyline class="chunk" data-request="{number}" points="'
        f'{axis.path(request.at_s + axis.period_s * np.arange(len(request.action_TA)), request.action_TA[:, column], column)}"/>'
        for number, request in enumerate(shown)
    )
    done = "".join(f'<polyline class="done" points="{axis.path(times, rows[:, column], column)}"/>' for times, rows in pieces)
    return (
        f'<figure><figcaption>{escape(name)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT + 14}" role="img" aria-label="{escape(name)}">'
        f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>{chunks}{done}<line class="cursor" x1="0" x2="0" y1="0" y2="{HEIGHT}"/>'
        f'<text x="3" y="11">{axis.high_A[column]:.3g}</text><text x="3" y="{HEIGHT - 5}">{axis.low_A[column]:.3g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 12}" text-anchor="end">{axis.end_s:.1f} s</text></svg></figure>'
    )


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_REQUESTS)).round().astype(int)).tolist()


def _picture(file: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}" if file.is_file() else ""
