"""What the model is given, as a picture: the first samples of a run, before anything is believed about them."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla.normalize import dimension_names
from vla.train.job import Job
from vla.types import Sample

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

TILE, PLOT, LINE, GAP = 128, 320, 14, 4
"""Side of a view, width of a plot, height of a line of text, space between: pixels."""
RANGE = 1.5
"""Normalised values shown; a quantile normaliser puts 98% of them into -1..1."""


def save_picture(path: Path, job: Job, samples: list[Sample]) -> None:
    """A band per sample: what it is and its instruction, its views (newest frame), and its normalised target over the chunk."""
    from PIL import Image, ImageDraw

    batch = job.batch(samples)
    assert batch.target is not None
    views = max(len(sample.observation.images) for sample in samples)
    band = TILE + LINE + 2 * GAP
    sheet = Image.new("RGB", (max(views * (TILE + GAP) + PLOT, 560), band * len(samples)), "white")
    draw = ImageDraw.Draw(sheet)
    robots = {robot.name: robot for robot in job.contents.embodiments}
    for row, sample in enumerate(samples):
        seen, top = sample.observation, row * band
        draw.text((GAP, top + 2), f"{seen.instruction!r}  {seen.embodiment}, {sample.source}, {sample.episode} step {sample.step}", "black")
        for view, (role, frames) in enumerate(seen.images.items()):
            left = view * (TILE + GAP)
            sheet.paste(Image.fromarray(frames[-1]).resize((TILE, TILE)), (left, top + LINE + GAP))
            draw.text((left + 2, top + LINE + GAP), role, "yellow", stroke_width=1, stroke_fill="black")
        robot = robots[seen.embodiment]
        shown = (row, slice(robot.horizon), slice(robot.action.size))
        action_TA = np.where(batch.target.label_BTA[shown], batch.target.action_BTA[shown], np.nan)
        _plot(draw, views * (TILE + GAP), top + LINE + GAP, action_TA, dimension_names(robot.action))
    sheet.save(path)


def _plot(draw: ImageDraw, left: int, top: int, action_TA: np.ndarray, names: list[str]) -> None:
    def at(step: float, value: float) -> tuple[float, float]:
        x = left + PLOT * 0.6 * step / max(len(action_TA) - 1, 1)
        return x, top + TILE / 2 * (1 - min(max(value, -RANGE), RANGE) / RANGE)

    for value in (-1, 0, 1):
        draw.line([at(0, value), at(len(action_TA) - 1, value)], "lightgray")
    if np.isnan(action_TA).all():
        draw.text((left + GAP, top + TILE // 2), "no action labels", "black")
        return
    for number, (name, value_T) in enumerate(zip(names, action_TA.T, strict=True)):
        colour = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(number / len(names), 0.9, 0.75))
        points = [at(step, value) for step, value in enumerate(value_T) if np.isfinite(value)]
        draw.line(points * 2 if len(points) == 1 else points, colour, 2)
        if number < TILE // 11:
            draw.text((left + PLOT * 0.62, top + 11 * number), name, colour)
