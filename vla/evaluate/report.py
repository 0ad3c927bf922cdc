"""One self-contained HTML page about a run: no script, no external resource, readable in light and in dark.

A report is data: a title, a lead, and sections, each a small object that knows its HTML. All text is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Protocol

from vla.document import document, write_document
from vla.evaluate.curves import COLOURS, Series, curves_svg
from vla.evaluate.result import EvalResult, Rate

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Section(Protocol):
    """One part of the page."""

    @property
    def title(self) -> str: ...

    @property
    def note(self) -> str:
        """A sentence under the title; may be empty."""
        ...

    def body(self) -> str:
        """HTML, already escaped."""
        ...


@dataclass(frozen=True)
class Report:
    """`lead`: one or two sentences: what was done and what came of it. `tiles`: label -> figure, the few that matter most."""

    title: str
    lead: str
    sections: Sequence[Section]
    tiles: Mapping[str, str] = field(default_factory=dict)
    footer: str = ""


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by empty lines."""

    title: str
    text: str
    note: str = ""

    def body(self) -> str:
        return "".join(f"<p>{escape(part.strip())}</p>" for part in self.text.split("\n\n"))


@dataclass(frozen=True)
class Code:
    """Text whose columns matter: a mixture's tree, commands."""

    title: str
    text: str
    note: str = ""

    def body(self) -> str:
        return f"<pre>{escape(self.text)}</pre>"


@dataclass(frozen=True)
class Table:
    """Rows of cells; columns whose cells all start with a digit or sign are set right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def body(self) -> str:
        right = [all(row[i][:1] in "0123456789+-−" for row in self.rows) for i in range(len(self.header))]
        style = [' class="right"' if number else "" for number in right]
        head = "".join(f"<th{style[i]}>{escape(cell)}</th>" for i, cell in enumerate(self.header))
        rows = "".join("<tr>" + "".join(f"<td{style[i]}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>" for row in self.rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


@dataclass(frozen=True)
class Curves:
    """Line plots, for example losses over optimizer steps."""

    title: str
    series: Sequence[Series]
    x_label: str = "optimizer step"
    y_label: str = "loss"
    log_y: bool = False
    note: str = ""

    def body(self) -> str:
        return curves_svg(self.series, self.x_label, self.y_label, self.log_y)


@dataclass(frozen=True)
class Picture:
    """A still picture: PNG, JPEG or WebP bytes."""

    title: str
    data: bytes
    alt: str
    note: str = ""

    def body(self) -> str:
        return f'<img class="picture" alt="{escape(self.alt)}" src="{_data_url(self.data)}">'


@dataclass(frozen=True)
class Successes:
    """Success by task, as bars with 95% Wilson intervals; one bar per named evaluation. `goal`: a rate to mark, if any."""

    title: str
    results: Mapping[str, EvalResult]
    goal: float | None = None
    note: str = ""

    def body(self) -> str:
        many = len(self.results) > 1
        rows: list[str] = []
        for task in dict.fromkeys(task for result in self.results.values() for task in result.tasks):
            rates = {name: result.tasks[task] for name, result in self.results.items() if task in result.tasks}
            rows += self._rows(task, rates, many)
        for group in dict.fromkeys(group for result in self.results.values() for group in result.groups):
            rates = {name: result.groups[group] for name, result in self.results.items() if group in result.groups}
            rows += self._rows(f"{group} tasks", rates, many, "total")
        rows += self._rows("all tasks", {name: result.pooled for name, result in self.results.items()}, many, "total")
        head = "<th>task</th>" + ("<th>policy</th>" if many else "")
        head += '<th class="right">successes</th><th class="right">rate</th><th class="right">95% interval</th>'
        head += f'<th class="bar">{"" if self.goal is None else f"dotted: the goal of {self.goal:.0%}"}</th>'
        return f'<div class="wide"><table class="rates"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'

    def _rows(self, task: str, rates: Mapping[str, Rate], many: bool, css: str = "") -> list[str]:
        found = []
        names = list(self.results)
        for index, (name, rate) in enumerate(rates.items()):
            first = f'<td rowspan="{len(rates)}">{escape(task)}</td>' if index == 0 else ""
            second = f"<td>{escape(name)}</td>" if many else ""
            colour = COLOURS[names.index(name) % len(COLOURS)]
            successes, share, interval = rate.cells
            found.append(
                f'<tr class="{css}{" first" if index == 0 else ""}">{first}{second}<td class="right">{successes}</td>'
                f'<td class="right">{share}</td><td class="right faint">{interval}</td>'
                f'<td class="bar">{_bar(rate, colour, self.goal)}</td></tr>'
            )
        return found


@dataclass(frozen=True)
class Movie:
    """An animation (WebP or GIF bytes) and how its episode ended."""

    caption: str
    data: bytes
    success: bool


@dataclass(frozen=True)
class Gallery:
    """Animations side by side."""

    title: str
    movies: Sequence[Movie]
    note: str = ""

    def body(self) -> str:
        if not self.movies:
            return '<p class="faint">none was recorded</p>'
        return '<div class="gallery">' + "".join(map(self._figure, self.movies)) + "</div>"

    def _figure(self, movie: Movie) -> str:
        css, word = ("good", "success") if movie.success else ("bad", "failure")
        image = f'<img loading="lazy" alt="{escape(movie.caption)}, {word}" src="{_data_url(movie.data)}">'
        return f'<figure>{image}<figcaption>{escape(movie.caption)} <span class="{css}">{word}</span></figcaption></figure>'


@dataclass(frozen=True)
class Times:
    """Where the time went: seconds by activity, as one divided bar and its legend."""

    title: str
    seconds: Mapping[str, float]
    note: str = ""

    def body(self) -> str:
        total = sum(self.seconds.values()) or 1.0
        colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(self.seconds)}
        parts = "".join(
            f'<span style="width:{100 * value / total:.2f}%;background:{colours[name]}" title="{escape(name)}"></span>'
            for name, value in self.seconds.items()
        )
        legend = "".join(
            f'<li><i style="background:{colours[name]}"></i>{escape(name)} <b>{_duration(value)}</b> '
            f'<span class="faint">{value / total:.0%}</span></li>'
            for name, value in self.seconds.items()
        )
        return f'<div class="times">{parts}</div><ul class="legend">{legend}</ul>'


def gallery_of(result: EvalResult, folder: Path | None = None) -> tuple[Movie, ...]:
    """The movies of an evaluation; `folder` if they were moved from where it wrote them."""
    return tuple(
        Movie(
            f"{video['task']}, episode {video['episode']}", (Path(folder or video["folder"]) / video["file"]).read_bytes(), video["success"]
        )
        for video in result.videos
    )


def write_report(path: str | Path, report: Report) -> Path:
    """Writes the page, replacing an older one as a whole."""
    return write_document(path, _page(report))


def _page(report: Report) -> str:
    style = resources.files("vla.evaluate").joinpath("report.css").read_text(encoding="utf-8")
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in report.tiles.items())
    links = "".join(f'<a href="#{_anchor(i)}">{escape(section.title)}</a>' for i, section in enumerate(report.sections))
    sections = "".join(_section(i, section) for i, section in enumerate(report.sections))
    body = (
        f'<header><h1>{escape(report.title)}</h1><p class="lead">{escape(report.lead)}</p><div class="tiles">{tiles}</div>'
        f"<nav>{links}</nav></header>\n<main>\n{sections}</main>\n<footer>{escape(report.footer)}</footer>\n"
    )
    return document(report.title, POLICY, style, body)


def _section(index: int, section: Section) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    return f'<section id="{_anchor(index)}"><h2>{escape(section.title)}</h2>{note}{section.body()}</section>\n'


def _anchor(index: int) -> str:
    return f"part-{index + 1}"


def _bar(rate: Rate, colour: str, goal: float | None) -> str:
    mark = f'<u style="left:{100 * goal:.1f}%" title="goal {goal:.0%}"></u>' if goal is not None else ""
    return (
        f'<div class="rate"><i style="width:{100 * rate.rate:.1f}%;background:{colour}"></i>'
        f'<s style="left:{100 * rate.low:.1f}%;width:{100 * (rate.high - rate.low):.1f}%"></s>{mark}</div>'
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


_SIGNATURES = {b"\x89PNG": "image/png", b"RIFF": "image/webp", b"GIF8": "image/gif", b"\xff\xd8\xff": "image/jpeg"}


def _data_url(data: bytes) -> str:
    kind = next((mime for start, mime in _SIGNATURES.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError(f"a picture that is no PNG, JPEG, GIF or WebP: it starts with {data[:4]!r}")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
