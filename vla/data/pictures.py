"""Looking at a dataset: a contact sheet of frames with their instructions, and a plot of its actions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla.data.images import decode_frame
from vla.data.reader import Dataset
from vla.data.window import frame_at
from vla.normalize import dimension_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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


def action_plot(dataset: Dataset, episodes: int = 8) -> Figure | None:
    """One panel per action dimension: the recorded values over time of some episodes.

    None for a dataset without actions.
    """
    from matplotlib.figure import Figure

    space = dataset.info.recorded_action
    if space is None:
        return None
    names, units = dimension_names(space), [f.unit for f in space.fields for _ in range(f.size)]
    columns = min(4, space.size)
    lines = -(-space.size // columns)
    figure = Figure(figsize=(3.4 * columns, 2.2 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axis in axes[space.size :]:
        axis.set_axis_off()
    for index in spread_episodes(dataset, episodes):
        episode = dataset.episode(index)
        assert episode.action is not None
        for axis, values in zip(axes, episode.action.T, strict=False):
            axis.plot(episode.time_s - episode.time_s[0], values, linewidth=0.7, alpha=0.8)
    for axis, name, unit in zip(axes, names, units, strict=False):
        axis.set_title(f"{name} ({unit})", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("s", fontsize=7)
    figure.suptitle(f"{dataset.info.name}: recorded actions of {min(episodes, len(dataset))} episodes", fontsize=9)
    return figure


def save_pictures(dataset: Dataset, out: Path, episodes: int = 8) -> list[Path]:
    """Writes `<name>-frames.png` and, where there are actions, `<name>-actions.png`; returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / f"{dataset.info.name}-frames.png"]
    contact_sheet(dataset, episodes).save(written[0])
    figure = action_plot(dataset, episodes)
    if figure is not None:
        written.append(out / f"{dataset.info.name}-actions.png")
        figure.savefig(written[1], dpi=110)
    return written
