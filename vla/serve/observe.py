"""What a client said -> the observation that the policy knows. Nothing is filled in, guessed or silently dropped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla.embodiment import Embodiment, Space
from vla.errors import UnknownName
from vla.serve.wire import Compressed, Heard, Refusal
from vla.types import Observation

MAX_FRAMES = 16
SIDE = (8, 2048)
"""Pixels of a picture's side, least and most."""
PROPORTION = 50
MAX_LETTERS = 2000
IGNORED = "ignore"
ALIASES: Mapping[str, str] = {"prompt": "instruction", "task_description": "instruction", "states": "state"}
"""Names that the public protocols use -> ours."""


@dataclass(frozen=True)
class Names:
    """Wire name -> `instruction`, `state`, `state.FIELD`, `images.ROLE` or `ignore`: what `--map` says beside what needs no saying."""

    given: Mapping[str, str] = field(default_factory=dict)

    def check(self, robot: Embodiment) -> None:
        """UserError where a name of ours is none of the robot's: no client's message could ever be understood."""
        there = [*_known(robot), IGNORED]
        for theirs, ours in self.given.items():
            if ours not in there:
                raise UnknownName(f"name of {robot.name} that '{theirs}' stands for", ours, there, f"Mend --map {theirs}={ours}.")

    def ours(self, name: str, robot: Embodiment) -> str:
        """What a name of a message stands for. Raises Refusal (bad_observation), which lists what there is."""
        if name in self.given:
            return self.given[name]
        ours = ALIASES.get(name, name).replace("/", ".")
        if ours == "image" and len(robot.cameras) == 1:
            return f"images.{robot.cameras[0]}"
        if ours == "instruction" or (ours == "state" and robot.state.fields):
            return ours
        kind, _, which = ours.partition(".")
        if (kind == "images" and which in robot.cameras) or (kind == "state" and which in robot.state.slices()):
            return ours
        raise Refusal("bad_observation", f"'{name[:80]}' is not known here; expected are {', '.join(_known(robot))} (vla serve --map)")


def observe(heard: Heard, robot: Embodiment, names: Names, state_optional: bool = False) -> Observation:
    """Raises Refusal (bad_observation) for what is missing, unknown, of another shape or type, or not finite."""
    values: dict[str, Any] = {}
    for wire_name, value in heard.values.items():
        name = names.ours(wire_name, robot)
        if name in values:
            raise Refusal("bad_observation", f"'{name}' was said twice")
        if name != IGNORED:
            values[name] = value
    offsets_s = _offsets(heard.offsets_s)
    images = {role: _frames(role, values.get(f"images.{role}"), len(offsets_s)) for role in robot.cameras}
    state = _state(values, robot, len(offsets_s), state_optional)
    return Observation(images, state, _instruction(values.get("instruction")), robot.name, offsets_s)


def _known(robot: Embodiment) -> list[str]:
    fields = [f"state.{field.name}" for field in robot.state.fields]
    return ["instruction", *(f"images.{role}" for role in robot.cameras), *(["state"] if fields else []), *fields]


def _instruction(text: Any) -> str:
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_LETTERS:
        raise Refusal("bad_observation", f"the instruction must be a text of 1 to {MAX_LETTERS} letters")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may say one; tokenizers written in Rust answer it with a TypeError
        raise Refusal("bad_observation", "the instruction holds half of a surrogate pair, which is no letter; send whole ones") from error
    return text


def _offsets(offsets_s: tuple[float, ...]) -> tuple[float, ...]:
    if offsets_s == (0.0,):
        return offsets_s
    rising = all(a < b for a, b in itertools.pairwise(offsets_s))
    if not 1 <= len(offsets_s) <= MAX_FRAMES or not all(map(math.isfinite, offsets_s)) or not rising or offsets_s[-1] > 0:
        raise Refusal("bad_observation", f"offsets_s must be 1 to {MAX_FRAMES} rising seconds, none above 0")
    return offsets_s


def _frames(role: str, value: Any, frames: int) -> np.ndarray:
    """-> uint8 (F, H, W, 3)."""
    if value is None:
        raise Refusal("bad_observation", f"no picture of camera '{role}'")
    pixels = _decode(value, role) if isinstance(value, Compressed) else value
    if isinstance(pixels, np.ndarray) and pixels.ndim == 3:
        pixels = pixels[None]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) != frames:
        said = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise Refusal(
            "bad_observation", f"camera '{role}': must be uint8 RGB ({frames}, height, width, 3) or, if single, without the 1; came {said}"
        )
    _check_size(role, *pixels.shape[1:3])
    return pixels


def _check_size(role: str, height: int, width: int) -> None:
    small, large = sorted((height, width))
    if not SIDE[0] <= small <= large <= SIDE[1] or large > PROPORTION * small:
        raise Refusal(
            "bad_observation", f"camera '{role}': {height} x {width} pixels; sides must be {SIDE[0]} to {SIDE[1]}, at most 1:{PROPORTION}"
        )


def _decode(picture: Compressed, role: str) -> np.ndarray:
    import io
    import struct

    from PIL import Image

    from vla.data.images import decode_image
    from vla.data.quarantine import BadSample

    try:
        with Image.open(io.BytesIO(picture.data), formats=("PNG", "JPEG")) as image:  # reads the header alone
            _check_size(role, image.height, image.width)
        return decode_image(picture.data)
    except (BadSample, OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise Refusal("bad_observation", f"camera '{role}': the picture does not decode") from error


def _state(values: Mapping[str, Any], robot: Embodiment, frames: int, optional: bool) -> np.ndarray:
    """-> float64 (F, P)."""
    parts = {name[len("state.") :]: value for name, value in values.items() if name.startswith("state.")}
    if not robot.state.size or (optional and not parts and values.get("state") is None):
        return np.zeros((frames, 0))
    if parts and "state" in values:
        raise Refusal("bad_observation", "give the state whole or by field, not both")
    if parts:
        missing = [field.name for field in robot.state.fields if field.name not in parts]
        if missing:
            raise Refusal("bad_observation", f"the state lacks {', '.join(missing)}")
        return np.concatenate([_numbers(Space((f,)), parts[f.name], frames) for f in robot.state.fields], axis=1)
    if values.get("state") is None:
        raise Refusal("bad_observation", f"no state; it is {_listed(robot.state)}")
    return _numbers(robot.state, values["state"], frames)


def _listed(space: Space) -> str:
    return ", ".join(f"{field.name}[{field.size} {field.unit}]" for field in space.fields)


def _numbers(space: Space, value: Any, frames: int) -> np.ndarray:
    """-> float64 (F, size of the space). A list of numbers stands for an array."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list) and all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value):
        try:
            value = np.array(value, dtype=np.float64)
        except OverflowError as error:  # an integer of hundreds of digits
            raise _beyond(space) from error
    size = space.size
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.shape not in ((size,), (frames, size)):
        said = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        what = f"state ({_listed(space)}): must be ({frames}, {size}) numbers or, if single, ({size},)"
        raise Refusal("bad_observation", f"{what}; came {said}")
    rows = np.array(value, np.float64, ndmin=2)
    if len(rows) != frames:
        raise Refusal("bad_observation", f"state ({_listed(space)}): {len(rows)} rows for {frames} frames")
    if not all(-1e9 <= number <= 1e9 for row in rows.tolist() for number in row):  # as NaN is not
        raise _beyond(space)
    return rows


def _beyond(space: Space) -> Refusal:
    return Refusal("bad_observation", f"state ({_listed(space)}): holds NaN, infinity or numbers over 1e9")
