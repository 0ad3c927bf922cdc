"""What a server says of itself on connecting, and how that differs from what a robot expects."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla import __version__
from vla.embodiment import Embodiment
from vla.serve.wire import PROTOCOL_VERSION


def facts(
    robot: Embodiment,
    policy: str,
    *,
    statistics: str | None,
    offsets_s: tuple[float, ...] | None,
    deadline_s: float,
    max_age_s: float,
    max_bytes: int,
) -> dict[str, Any]:
    """Plain JSON; every fact of the embodiment by value, so that a client can compare it with its own robot's.

    `statistics`: digest of what normalises, None for a policy that normalises nothing. `offsets_s`: times of the frames that a request must
    hold, relative to now; None for a policy that takes any.
    """
    return {
        "server": "vla",
        "protocol_version": PROTOCOL_VERSION,
        "policy": policy,
        "embodiment": robot.name,
        "cameras": list(robot.cameras),
        "state": robot.state.to_json(),
        "action": robot.command.to_json(),
        "state_width": robot.state.size,
        "action_width": robot.command.size,
        "rate_hz": float(robot.rate_hz),
        "horizon": robot.horizon,
        "limits": [list(pair) for pair in robot.limits or ()],
        "statistics": statistics,
        "offsets_s": None if offsets_s is None else list(offsets_s),
        "images": "uint8 RGB (height, width, 3), newest frame last where there are several",
        "deadline_s": deadline_s,
        "max_age_s": max_age_s,
        "max_bytes": max_bytes,
        "versions": {"vla": __version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def digest(normalizer: Mapping[str, Any]) -> str:
    """Of a robot's normaliser as the checkpoint keeps it."""
    return hashlib.sha256(json.dumps(normalizer, sort_keys=True).encode()).hexdigest()


def differences(said: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, ...]:
    """A line for each expected fact that is another one here, or is not said at all."""
    lines = []
    for name, wanted in expected.items():
        if name not in said:
            lines.append(f"{str(name)[:60]} is not among what is said here")
        elif said[name] != wanted:
            lines.append(f"{name} is {_short(said[name])} here, and {_short(wanted)} was expected")
    return tuple(lines[:32])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
