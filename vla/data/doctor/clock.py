"""Time: does it rise, evenly, and at the declared rate?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled

RATE_TOLERANCE = 0.02
"""Of the rate. 29.97 for 30 is within it, 24 for 25 is not."""
JITTER = 0.25
"""Standard deviation of the time between rows, over its median."""
GAP = 3.5
"""Rows further apart than so many ticks lack the ones between."""


def check(sample: Sampled) -> Iterator[Finding]:
    """The times of the rows, and the rate that they and recorded velocities tell."""
    back, wrong, uneven, gaps = [], [], [], []
    ratios = []
    for trace in sample.traces:
        dt = np.diff(trace.time_s)
        if not len(dt):
            continue
        if not np.isfinite(dt).all() or (dt <= 0).any():
            back.append(trace.id)
            continue
        tick = float(np.median(dt))
        ratio = tick * float(trace.rate_hz)
        ratios.append(ratio)
        wrong += [trace.id] if len(dt) >= 4 and abs(ratio - 1) > RATE_TOLERANCE else []
        uneven += [trace.id] if len(dt) >= 8 and dt.std() > JITTER * tick else []
        gaps += [trace.id] if (dt > GAP * tick).any() else []
    total = max(len(sample.traces), 1)
    where = f"{sample.name}: time_s"
    if back:
        yield Finding(
            "time_not_rising",
            where,
            f"time stands still or goes back {_listed(back, total)}",
            "error",
            {"episodes": len(back)},
            "sort the rows.",
        )
    if wrong:
        rate = float(sample.traces[0].rate_hz)
        ratio = float(np.median([r for r in ratios if abs(r - 1) > RATE_TOLERANCE]))
        yield Finding(
            "wrong_rate",
            where,
            f"rows are {1 / (rate / ratio):.4g} s apart, which is {rate / ratio:.4g} Hz; declared {rate:.4g} Hz {_listed(wrong, total)}",
            "error",
            {"declared_hz": rate, "measured_hz": rate / ratio, "episodes": len(wrong)},
            f"declare {rate / ratio:.4g} Hz, or mend the times.",
        )
    if uneven:
        yield Finding(
            "jitter",
            where,
            f"the time between rows varies by more than {JITTER:.0%} {_listed(uneven, total)}",
            "warning",
            {"episodes": len(uneven)},
            "windows are cut by row: resample to an even clock if the unevenness is real.",
        )
    elif gaps:
        yield Finding("time_gap", where, f"rows are missing {_listed(gaps, total)}", "warning", {"episodes": len(gaps)}, "cut there.")
    yield from _rates(sample)
    yield from _velocities(sample)


def _rates(sample: Sampled) -> Iterator[Finding]:
    robot = sample.dataset.info.robot
    rates = Counter(trace.rate_hz for trace in sample.traces)
    other = {str(rate): count for rate, count in rates.items() if robot is not None and rate != robot.rate_hz}
    if robot is not None and other:
        listed = ", ".join(f"{count} episodes at {float_text(rate)} Hz" for rate, count in other.items())
        yield Finding(
            "rate_differs",
            f"{sample.name}: rate_hz",
            f"'{robot.name}' is declared at {float_text(str(robot.rate_hz))} Hz, but there are {listed}: training resamples them",
            "warning",
            {"declared_hz": str(robot.rate_hz), "others": other},
            "right for a robot recorded at several rates; else one of the two is wrong.",
        )


def _velocities(sample: Sampled) -> Iterator[Finding]:
    """Where the state holds velocities, they are the positions' change per second, which tells the rate whatever the clock says."""
    fields = sample.state_space.fields if sample.state_space else ()
    for speed in fields:
        unit = {"m/s": "m", "rad/s": "rad"}.get(speed.unit)
        for place in (f for f in fields if f.unit == unit and f.size == speed.size):
            v = np.concatenate([e[1:-1] for e in sample.state(speed.name)])
            d = np.concatenate(
                [(x[2:] - x[:-2]) * float(t.rate_hz) / 2 for x, t in zip(sample.state(place.name), sample.traces, strict=True)]
            )
            size = float(np.sqrt((v**2).sum() * (d**2).sum()))
            if len(v) < 30 or size < 1e-9 or (alike := float((v * d).sum()) / size) < 0.8:
                continue
            ratio = float(np.sqrt((d**2).sum() / (v**2).sum()))
            if not 0.77 < ratio < 1.3:
                yield Finding(
                    "wrong_rate",
                    f"{sample.name}: state.{speed.name}",
                    f"state.{place.name} changes {ratio:.3g} times as fast as this velocity says (correlation {alike:.2f})",
                    "error",
                    {"ratio": ratio, "correlation": alike},
                    f"the rate is probably {float(sample.traces[0].rate_hz) / ratio:.4g} Hz, or the velocity is in another unit.",
                )


def float_text(rate: str) -> str:
    """`29.97` for `30000/1001`."""
    from fractions import Fraction

    return f"{float(Fraction(rate)):.4g}"


def _listed(names: list[str], total: int) -> str:
    return f"in {len(names)} of {total} episodes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
