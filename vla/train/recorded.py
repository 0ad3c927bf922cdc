"""Where a run's robot is not the one of its name that a source was recorded on. What cannot be reconciled (units, sizes, state, cameras)
is refused as the data are opened (`vla.data.feed`); what is left here trains, but perhaps not on what was meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vla.data.doctor.finding import Finding, Severity
from vla.data.doctor.limits import OFTEN, slack_A
from vla.data.mixture import Mixture
from vla.embodiment import Embodiment
from vla.normalize import RobotStats, dimension_names


def disagreements(mixture: Mixture, robots: Iterable[Embodiment]) -> list[Finding]:
    """What differs, once for all sources in which it does. A warning where it changes what is learned or sent, else a note."""
    by_name, sources = {robot.name: robot for robot in robots}, dict[tuple[str, str, Severity, str], list[str]]()
    for source in mixture.sources:
        info = source.dataset.info
        if info.robot is None or info.robot.name not in by_name or info.recorded_action is None:
            continue
        robot = by_name[info.robot.name]
        for severity, what, fix in _differences(info.robot, robot):
            sources.setdefault((robot.name, what, severity, fix), []).append(source.name)
    return [
        Finding("robot_differs", f"robot '{name}'", f"{what} in {', '.join(where)}", severity, {"sources": where}, fix)
        for (name, what, severity, fix), where in sources.items()
    ]


def clipped(stats: Mapping[str, RobotStats], robots: Iterable[Embodiment]) -> list[Finding]:
    """Robots of the run whose demonstrated commands lie beyond the run's limits, as far as what is learned is what is sent."""
    found = []
    for robot in robots:
        if robot.limits is None or robot.name not in stats or not stats[robot.name].action.count:
            continue
        (low_A, high_A), names = robot.bounds(), dimension_names(robot.command)
        least_A, most_A = stats[robot.name].action.quantile(OFTEN), stats[robot.name].action.quantile(1 - OFTEN)
        beyond_A = np.maximum(low_A - least_A, most_A - high_A) - slack_A(robot.command, low_A, high_A)
        where = robot.command.slices()
        for field in robot.command.fields:
            i = where[field.name].start + int(beyond_A[where[field.name]].argmax())
            if field in robot.action.fields and beyond_A[i] > 0:
                detail = (
                    f"{names[i]} is demonstrated in {least_A[i]:.4g}..{most_A[i]:.4g} and clipped to the run's {low_A[i]:g}..{high_A[i]:g}"
                )
                fix = "correct the limits in the robot's file; `vla check` of the data says how often the recorded ones are passed"
                found.append(Finding("outside_limits", f"robot '{robot.name}'", detail, "warning", {"dimension": names[i]}, fix))
    return found


def _differences(data: Embodiment, run: Embodiment) -> Iterator[tuple[Severity, str, str]]:
    fix = "if the run's robot is not meant to differ, correct its file"
    if run.rate_hz != data.rate_hz:
        here_s, there_s = run.horizon / float(run.rate_hz), run.horizon / float(data.rate_hz)
        lasts = f"a chunk of {run.horizon} covers {here_s:.3g} s, at the other rate {there_s:.3g} s"
        yield "warning", f"rate_hz is {run.rate_hz} in the run, so that rows are resampled ({lasts}); it is {data.rate_hz}", fix
    for kind, mine, theirs in (("command", run.command, data.command), ("learned", run.action, data.action)):
        frames = [(a.name, a.frame, b.frame) for a, b in zip(mine.fields, theirs.fields, strict=True) if a.frame != b.frame]
        for name, frame, recorded in frames:
            severity: Severity = "warning" if kind == "command" else "note"
            yield severity, f"the {kind} frame of '{name}' is {frame} in the run; it is {recorded}", fix if kind == "command" else ""
    if run.limits != data.limits and data.limits is not None:
        if run.limits is None:
            yield "warning", "the run's has no limits, so that nothing may be sent to it; there are limits", fix
            return
        pairs = zip(run.limits, data.limits, strict=True)
        number, (here, there) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        shown = f"number {number} of a command is sent within {here[0]:g}..{here[1]:g} by the run's limits"
        narrower = any(a[0] > b[0] or a[1] < b[1] for a, b in zip(run.limits, data.limits, strict=True))
        yield "warning", f"{shown}{' (what lies beyond is clipped)' if narrower else ''}; it is {there[0]:g}..{there[1]:g}", fix
    if run.horizon != data.horizon:
        yield "note", f"a chunk is {run.horizon} commands in the run; it is {data.horizon}", ""
