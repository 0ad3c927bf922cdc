"""The page: everything in one file, nothing executable, every section there."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.evaluate.test_result import result
from vla.evaluate.curves import Series
from vla.evaluate.report import Code, Curves, Gallery, Movie, Picture, Report, Successes, Table, Text, Times, gallery_of, write_report

HOSTILE = "<script>alert(1)</script> & \"quotes\" <img src=x onerror='1'>"
VOID = {"meta", "img", "link", "br", "use", "path"}


class Page(HTMLParser):
    """Collects what matters, and that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in VOID or tag == "path":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def movie() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in (0, 200)]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=100)
    return out.getvalue()


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def page(tmp_path):
    report = Report(
        "Demo " + HOSTILE,
        "lead " + HOSTILE,
        [
            Text("What was run", "first\n\nsecond " + HOSTILE, note=HOSTILE),
            Code("Mixture", "a\n├─ b  70% " + HOSTILE),
            Curves(
                "Losses", (Series("train", range(300), [1 / (i + 1) for i in range(300)], smooth=True), Series(HOSTILE, [0, 1], [1, 2]))
            ),
            Successes("Success", {"pretrained": result({"open": "+++-"}), "scratch": result({"open": "+---"})}, goal=0.8),
            Table("Compared", ["task " + HOSTILE, "p"], [["open", "0.25"]]),
            Picture("First batch", png(), alt=HOSTILE),
            Gallery("Rollouts", [Movie("open " + HOSTILE, movie(), True), Movie("open", movie(), False)]),
            Gallery("More", []),
            Times("Time", {"collect": 60, HOSTILE: 140.0}),
        ],
        tiles={"mean " + HOSTILE: "75.0%"},
        footer=HOSTILE,
    )
    path = write_report(tmp_path / "deep" / "report.html", report)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    parser = Page()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    return parser


def test_the_page_is_well_formed_and_complete(page):
    assert page.open == []
    text = " ".join(page.text)
    for part in ("What was run", "├─ b  70%", "optimizer step", "3/4", "75.0%", "30.1% – 95.4%", "goal of 80%", "failure", "2 min 20 s"):
        assert part in text
    assert text.count(HOSTILE) >= 9  # shown as text wherever it was given


def test_nothing_is_loaded_or_run(page):
    assert page.links and all(link.startswith(("data:image/", "#")) for link in page.links)
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "link", "base"}
    assert not any(name.startswith("on") for name in page.attributes)


def test_a_plot_takes_the_colour_of_the_page():
    svg = Curves("", (Series("a", [0, 1, 2], [1, 2, 3]),)).body()
    assert svg.startswith("<svg") and "currentColor" in svg and "#000000" not in svg and "<style" not in svg
    assert svg == Curves("", (Series("a", [0, 1, 2], [1, 2, 3]),)).body()


def test_movies_of_an_evaluation_are_found_where_it_wrote_them(tmp_path):
    (tmp_path / "a.webp").write_bytes(movie())
    video = {"task": "open", "episode": 3, "success": True, "folder": str(tmp_path), "file": "a.webp"}
    assert gallery_of(result({"open": "+"}, videos=(video,))) == (Movie("open, episode 3", movie(), True),)


def test_an_unknown_kind_of_picture_is_refused():
    with pytest.raises(ValueError, match="no PNG, JPEG, GIF or WebP"):
        Picture("x", b"<svg/>", "x").body()
