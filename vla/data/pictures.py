"""Looking at data: a contact sheet of frames with their instructions, plots of states and actions, the samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vla.data.images import decode_frame
from vla.data.reader import Dataset
from vla.data.window import frame_at
from vla.errors import UserError
from vla.normalize import dimension_names
from vla.types import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import ImageDraw
    from PIL.Image import Image

TILE = 96
"""Width and height of a picture on the sheet, pixels."""
LINE = 14
"""Height of a line of text, pixels."""


def spread_episodes(dataset: Dataset, count: int) -> list[int]:
    """Up to `count` episodes, evenly over the dataset."""
    return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist()


def contact_sheet(dataset: Dataset, episodes: int = 8, columns: int = 8) -> Image:
    """One band per episode: its id and instruction, then a row of frames per camera, evenly over its steps."""
    from PIL import Image, ImageDraw, ImageOps

    rows = spread_episodes(dataset, episodes)
    band = LINE + 4 + len(dataset.cameras) * (TILE + 2)
    sheet = Image.new("RGB", (columns * (TILE + 2), band * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, index in enumerate(rows):
        episode, top = dataset.episode(index), row * band
        texts = " / ".join(dict.fromkeys(span.text for span in episode.spans if span.text)) or "(no instruction)"
        draw.text((2, top + 2), f"{episode.id}: {texts}"[: columns * TILE // 6], fill="black")
        for line, camera in enumerate(dataset.cameras):
            for column, step in enumerate(np.linspace(0, episode.steps - 1, columns).round().astype(int)):
                number = frame_at(episode.cameras[camera].step, int(step))
                image = Image.fromarray(decode_frame(dataset.frame(index, camera, number)))
                sheet.paste(ImageOps.contain(image, (TILE, TILE)), (column * (TILE + 2), top + LINE + 4 + line * (TILE + 2)))
    return sheet


def motion_plot(dataset: Dataset, kind: Literal["state", "action"], episodes: int = 8) -> Figure | None:
    """One panel per dimension of the recorded actions or states: their values over time, one line per episode.

    None for a dataset without them.
    """
    space = dataset.info.recorded_action if kind == "action" else dataset.info.recorded_state
    if space is None or not space.size:
        return None
    names, units = dimension_names(space), [f.unit for f in space.fields for _ in range(f.size)]
    figure, axes = _panels(space.size)
    for index in spread_episodes(dataset, episodes):
        episode = dataset.episode(index)
        rows = episode.action if kind == "action" else episode.state
        assert rows is not None
        for axis, values in zip(axes, rows.T, strict=False):
            axis.plot(episode.time_s - episode.time_s[0], values, linewidth=0.7, alpha=0.8)
    for axis, name, unit in zip(axes, names, units, strict=False):
        axis.set_title(f"{name} ({unit})", fontsize=8)
        axis.set_xlabel("s", fontsize=7)
    figure.suptitle(f"{dataset.info.name}: recorded {kind}s of {min(episodes, len(dataset))} episodes", fontsize=9)
    return figure


def batch_sheet(samples: Sequence[Sample]) -> Image:
    """Samples as training sees them: a row each, with every camera's frames (history oldest first) and the action chunk drawn.

    The chunk is in the learned frames, each dimension in its own range over these samples; grey is past the episode's end.
    """
    from PIL import Image, ImageDraw, ImageOps

    views = max(sum(len(frames) for frames in sample.observation.images.values()) for sample in samples)
    band = LINE + 4 + TILE + 2
    width = views * (TILE + 2) + CHART[0] + 4
    sheet = Image.new("RGB", (width, band * len(samples)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, sample in enumerate(samples):
        top, left = row * band, 0
        text = f"{sample.source}/{sample.episode} step {sample.step}: {sample.observation.instruction or '(no instruction)'}"
        draw.text((2, top + 2), text[: width // 6], fill="black")
        for frames in sample.observation.images.values():
            for image in frames:
                sheet.paste(ImageOps.contain(Image.fromarray(np.asarray(image)), (TILE, TILE)), (left, top + LINE + 4))
                left += TILE + 2
        _chunk(draw, sample, samples, (views * (TILE + 2) + 4, top + LINE + 4))
    return sheet


CHART = (220, TILE)
"""Width and height of a drawn chunk, pixels."""
INKS = ("#1f6feb", "#d1570c", "#2da44e", "#8250df", "#bf3989", "#57606a", "#9a6700", "#0550ae")


def _chunk(draw: ImageDraw.ImageDraw, sample: Sample, samples: Sequence[Sample], corner: tuple[int, int]) -> None:
    (left, top), (width, height) = corner, CHART
    draw.rectangle((left, top, left + width - 1, top + height - 1), outline="#d0d7de")
    if sample.action_TA is None:
        draw.text((left + 8, top + height // 2 - 6), "no action labels", fill="#57606a")
        return
    same = [s.action_TA for s in samples if s.action_TA is not None and s.observation.embodiment == sample.observation.embodiment]
    low, high = np.min([a.min(0) for a in same], axis=0), np.max([a.max(0) for a in same], axis=0)
    unit_TA = (sample.action_TA - low) / np.maximum(high - low, 1e-12)
    T = len(unit_TA)
    x = left + 4 + np.arange(T) * (width - 8) / max(T - 1, 1)
    for number, values in enumerate(unit_TA.T):
        points = [(float(a), float(top + height - 5 - b * (height - 10))) for a, b in zip(x, values, strict=True)]
        for step in range(T - 1):
            ink = INKS[number % len(INKS)] if sample.valid_T[step + 1] else "#d0d7de"
            draw.line([points[step], points[step + 1]], fill=ink)


def _panels(count: int) -> tuple[Figure, np.ndarray]:
    """A figure with `count` panels, four beside each other, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib, which is not installed: `pip install 'vla[show]'`") from error

    columns = min(4, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(3.4 * columns, 2.2 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes:
        axis.tick_params(labelsize=7)
    return figure, axes


def save_pictures(dataset: Dataset, out: Path, episodes: int = 8) -> list[Path]:
    """Writes `<name>-frames.png` and, where there are any, `<name>-actions.png` and `<name>-states.png`; returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / f"{dataset.info.name}-frames.png"]
    contact_sheet(dataset, episodes).save(written[0])
    for kind in ("action", "state"):
        figure = motion_plot(dataset, kind, episodes)
        if figure is not None:
            written.append(out / f"{dataset.info.name}-{kind}s.png")
            figure.savefig(written[-1], dpi=110)
    return written
