"""The doctor's report as one HTML file that needs nothing else: findings with their evidence drawn, frames, and motion."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.data.images import decode_frame
from vla.errors import UserError

if TYPE_CHECKING:
    from vla.data.check import Report

COLOURS = ("#1f6feb", "#d1570c", "#2da44e", "#8250df", "#bf3989", "#57606a", "#9a6700", "#0550ae")
LEVELS = {"error": "#cf222e", "warning": "#9a6700", "note": "#57606a"}
TILE = 112
STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #1f2328; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #d0d7de }
.finding { border-left: 4px solid; padding: .2em 1em; margin: 1em 0; background: #f6f8fa } .finding b { font-size: 1.05em }
.where, .numbers { color: #57606a; font-size: .9em } .frames img { margin: 1px; vertical-align: top }
table { border-collapse: collapse } td { padding: .1em .8em .1em 0; vertical-align: top } svg { background: #fff; margin: .3em .6em .3em 0 }
figure { display: inline-block; margin: 0 } figcaption { font-size: .8em; color: #57606a }
"""


def write_page(report: Report, path: Path) -> Path:
    """Writes the page; UserError where the folder is not there."""
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent} to write {path.name} in; make it, or name another file")
    path.write_text("\n".join(_page(report)), encoding="utf-8")
    return path


def _page(report: Report) -> Iterator[str]:
    title = html.escape(f"{report.path.name}: {'sound' if report.sound else 'not sound'}")
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>vla check: {title}</title><style>{STYLE}</style><h1>{title}</h1>"
    counts = ", ".join(f"{len(report.of(level))} {level}s" for level in ("error", "warning", "note"))
    yield f"<p>{html.escape(report.kind)} <code>{html.escape(str(report.path))}</code>: {counts}.</p>"
    yield from map(_finding, report.findings)
    if report.facts:
        rows = "".join(f"<tr><td>{html.escape(str(k))}<td>{html.escape(_short(v))}" for k, v in report.facts.items())
        yield f"<h2>What was looked at</h2><table>{rows}</table>"
    for sample in report.samples[:12]:
        yield from _sample(sample)
    yield "</html>"


def _finding(finding: Finding) -> str:
    numbers = ", ".join(f"{html.escape(str(k))} {html.escape(_short(v))}" for k, v in finding.evidence.items())
    fix = f"<br>Fix: {html.escape(finding.fix)}" if finding.fix else ""
    head = f"<b>{html.escape(finding.kind)}</b> ({finding.severity}) <span class=where>{html.escape(finding.where)}</span>"
    picture = _evidence(finding.plot)
    return (
        f"<div class=finding style='border-color:{LEVELS[finding.severity]}'>{head}<br>{html.escape(finding.detail)}{fix}"
        f"<div class=numbers>{numbers}</div>{picture}</div>"
    )


def _evidence(plot: Mapping[str, Sequence[float]]) -> str:
    """Series of a finding: over their first where that is a scale (`rows ahead`, `lag in frames`), else over the step."""
    if not plot:
        return ""
    names = list(plot)
    if names[0].startswith(("rows", "lag")):
        return _figure(names[1], {names[1]: np.asarray(plot[names[1]], float)}, np.asarray(plot[names[0]], float), names[0])
    return _figure("", {name: np.asarray(values, float) for name, values in plot.items()}, None, "step")


def _sample(sample: Sampled) -> Iterator[str]:
    yield f"<h2>{html.escape(sample.name)}</h2>"
    for trace in sample.traces[:6]:
        texts = " / ".join(dict.fromkeys(span.text for span in trace.spans if span.text)) or "(no instruction)"
        yield f"<div class=frames><div class=where>{html.escape(trace.id)}: {html.escape(texts[:160])}</div>"
        for camera, table in trace.cameras.items():
            numbers = np.unique(np.linspace(0, len(table.step) - 1, min(8, len(table.step))).round().astype(int))
            frames = [_image(sample, trace.index, camera, int(number)) for number in numbers]
            yield f"<div>{''.join(frames)} <span class=where>{html.escape(camera)}</span></div>"
        yield "</div>"
    for kind, space in (("state", sample.state_space), ("action", sample.action_space)):
        for field in space.fields if space else ():
            parts = sample.state(field.name) if kind == "state" else sample.action(field.name)
            if parts:
                trace = sample.traces[0]
                series = {f"[{i}]": parts[0][:400, i] for i in range(min(field.size, 8))}
                title = f"{kind}.{field.name} ({field.unit}, {field.frame}), episode {trace.id}"
                yield _figure(title, series, trace.time_s[: len(parts[0])][:400] - trace.time_s[0], "s")


def _image(sample: Sampled, index: int, camera: str, number: int) -> str:
    from PIL import Image, ImageOps

    try:
        picture = ImageOps.contain(Image.fromarray(decode_frame(sample.dataset.frame(index, camera, number))), (TILE, TILE))
    except UserError as error:
        return f"<span class=where>({html.escape(str(error))})</span>"
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"<img alt='frame {number}' src='data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def _figure(title: str, series: Mapping[str, np.ndarray], x: np.ndarray | None, unit: str) -> str:
    """Lines as SVG, 330 x 150, with the ranges written at the axes."""
    width, height, left, bottom = 330, 150, 44, 16
    n = max(map(len, series.values()), default=0)
    x = np.arange(n, dtype=float) if x is None else x
    values = np.concatenate([v[np.isfinite(v)] for v in series.values()]) if n else np.zeros(0)
    if n < 2 or not len(values):
        return ""
    low, high = float(values.min()), float(values.max())
    span, reach = max(high - low, 1e-12), max(float(x[-1] - x[0]), 1e-12)
    lines = []
    for number, (name, v) in enumerate(series.items()):
        px = left + (x[: len(v)] - x[0]) / reach * (width - left - 6)
        py = 6 + (high - v) / span * (height - bottom - 12)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True) if np.isfinite(b))
        colour = COLOURS[number % len(COLOURS)]
        lines.append(
            f"<polyline fill=none stroke='{colour}' stroke-width=1.2 points='{points}'><title>{html.escape(name)}</title></polyline>"
        )
        if len(series) < 4 and name:
            lines.append(f"<text x={left + 4 + 80 * number} y=14 font-size=10 fill='{colour}'>{html.escape(name)}</text>")
    marks = f"<text x=2 y=12 font-size=10>{high:.3g}</text><text x=2 y={height - bottom - 4} font-size=10>{low:.3g}</text>"
    marks += f"<text x={left} y={height - 3} font-size=10>{x[0]:.3g}</text>"
    marks += f"<text x={width - 6} y={height - 3} font-size=10 text-anchor=end>{x[-1]:.3g} {html.escape(unit)}</text>"
    svg = f"<svg width={width} height={height}>{''.join(lines)}{marks}</svg>"
    return f"<figure>{svg}<figcaption>{html.escape(title)}</figcaption></figure>"


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:200] + " ..."
