"""The table of the Open X-Embodiment collection in data_mixtures/README.md: `python -m tests.convert.collection` writes it anew."""

from __future__ import annotations

from pathlib import Path

from tests.convert.oxe import FEATURES
from vla.convert.card import Card

README = Path(__file__).parents[2] / "data_mixtures" / "README.md"
START, END = "<!-- collection: made by `python -m tests.convert.collection` -->", "<!-- end of collection -->"


def table() -> str:
    """One row for each card, in the order of names."""
    head = ("dataset", "robot", "Hz", "cameras", "action", "licence", "episodes", "doubts")
    rows = [head, tuple("---" for _ in head)]
    for name in sorted(FEATURES["datasets"]):
        card = Card.find(name)
        rate = "?" if card.rate_hz is None else f"{float(card.rate_hz):g}"
        fields = ", ".join(f"{f.name} ({f.unit}, {f.frame})" for f in card.action_space.fields) if card.action_space else "not declared"
        episodes = "?" if card.source.episodes is None else f"{card.source.episodes:,}"
        cells = (f"`{name}`", f"`{card.embodiment}`", rate, ", ".join(card.cameras), fields, card.licence, episodes, str(len(card.doubts)))
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    README.write_text(f"{before}\n\n{table()}\n\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
