"""Commands that the robot's limits would clip: nothing outside them is ever sent, so no policy can repeat such a demonstration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.embodiment import Space
from vla.normalize import dimension_names

SLACK = 0.01
"""Of a number's range: beyond a limit by less is rounding, or another's calibration, and clipping it moves nothing."""
OPENING_SLACK = 0.1
"""Of an opening: a gripper's own ends lie about so near to 0 and 1."""
OFTEN = 0.005
"""A smaller share of the rows is an accident of the recording: a note."""


def check(sample: Sampled) -> Iterator[Finding]:
    """Per field, commands beyond the limits of the robot that the data were recorded on. A command at its limit is within."""
    robot, recorded = sample.dataset.info.robot, sample.action_space
    if robot is None or robot.limits is None or recorded is None:
        return
    low_A, high_A = robot.bounds()
    names, where, bounded = dimension_names(recorded), recorded.slices(), robot.command.slices()
    same_rate = all(trace.rate_hz == robot.rate_hz for trace in sample.traces)
    allowed_A = slack_A(robot.command, low_A, high_A)
    for field in recorded.fields:
        if field not in robot.command.fields or (field.frame == "step" and not same_rate):
            continue  # limits bound what is sent: a step at another rate, or a number in another frame or unit, is not that
        rows = np.concatenate(sample.action(field.name) or [np.zeros((0, field.size))])
        rows = rows[np.isfinite(rows).all(1)]
        if not len(rows):
            continue
        low, high = low_A[bounded[field.name]], high_A[bounded[field.name]]
        beyond = np.maximum(low - rows, rows - high)
        slack = allowed_A[bounded[field.name]]
        outside = beyond > slack
        if not outside.any():
            continue
        share = float(outside.any(1).mean())
        row, i = np.unravel_index((beyond - slack).argmax(), beyond.shape)
        worst, name = float(rows[row, i]), names[where[field.name].start + int(i)]
        yield Finding(
            "outside_limits",
            f"{sample.name}: action.{field.name}",
            f"{share:.2%} of the commands lie outside the limits of '{robot.name}', which a policy's are clipped to: {name} is {worst:.4g}, "
            f"its limits {low[i]:.4g}..{high[i]:.4g}",
            "warning" if share >= OFTEN else "note",
            {"share": share, "dimension": name, "worst": worst, "low": float(low[i]), "high": float(high[i])},
            "correct the limits in the robot's file (or the unit in the card) and convert again, if the robot takes these commands.",
        )


def slack_A(command: Space, low_A: np.ndarray, high_A: np.ndarray) -> np.ndarray:
    """How far beyond a limit each number may lie, float64 (A,)."""
    shares = [OPENING_SLACK if field.unit == "open01" else SLACK for field in command.fields for _ in range(field.size)]
    return (high_A - low_A) * np.array(shares)
