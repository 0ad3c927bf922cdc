"""What the model is given, as a picture: the first samples of a run, before anything is believed about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla.normalize import dimension_names
from vla.train.job import Job
from vla.types import Batch, Sample


def save_picture(path: Path, job: Job, samples: list[Sample]) -> None:
    """A row per sample: its views (newest frame), its instruction, and its normalised target over the chunk."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    batch = job.batch(samples)
    views = max(len(sample.observation.images) for sample in samples)
    figure = Figure(figsize=(2.2 * views + 5, 2.2 * len(samples)), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(samples), views + 1, squeeze=False, width_ratios=[1] * views + [2])
    for row, sample in enumerate(samples):
        for view, (role, frames) in enumerate(sample.observation.images.items()):
            axes[row, view].imshow(frames[-1])
            axes[row, view].set_title(role, fontsize=7)
        for axis in axes[row, :views]:
            axis.axis("off")
        _plot_target(axes[row, views], sample, batch, row, job)
    figure.savefig(path)


def _plot_target(axis, sample: Sample, batch: Batch, row: int, job: Job) -> None:
    robot = next(robot for robot in job.contents.embodiments if robot.name == sample.observation.embodiment)
    assert batch.target is not None
    wanted_TA = batch.target.action_BTA[row, : robot.horizon, : robot.action.size].numpy()
    label_TA = batch.target.label_BTA[row, : robot.horizon, : robot.action.size].numpy()
    if label_TA.any():
        shown_TA = np.where(label_TA, wanted_TA, np.nan)
        for name, line_T in zip(dimension_names(robot.action), shown_TA.T, strict=True):
            axis.plot(line_T, label=name, linewidth=1)
        axis.legend(fontsize=5, ncols=3, loc="upper right")
    else:
        axis.text(0.5, 0.5, "no action labels", ha="center", transform=axis.transAxes, fontsize=7)
    axis.tick_params(labelsize=6)
    axis.set_title(f"{sample.observation.instruction!r}  {robot.name}, {sample.source}", fontsize=7)
