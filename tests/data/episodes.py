"""Small real episodes for the tests of this folder: seeded, JPEG-encoded, with a recognisable picture per step."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import simplejpeg

from vla.embodiment import Embodiment, Field, Space
from vla.types import Episode, Frames, Span

FIELDS = (Field("position", 3, "m"), Field("gripper", 1, "open01"))
ROBOT = Embodiment(
    name="arm",
    cameras=("front", "wrist"),
    state=Space(FIELDS),
    command=Space(FIELDS),
    action=Space((Field("position", 3, "m", "from_state"), Field("gripper", 1, "open01"))),
    rate_hz=Fraction(10),
    horizon=4,
    limits=((-10.0, 10.0),) * 3 + ((0.0, 1.0),),
)


def picture(value: int, size: int = 16, camera: int = 0) -> np.ndarray:
    """A flat picture whose red channel is `value` and green tells the camera: survives JPEG within 2."""
    image = np.zeros((size, size, 3), np.uint8)
    image[...] = value % 256, 40 * camera, 100
    return image


def jpeg(value: int, size: int = 16, camera: int = 0) -> bytes:
    return simplejpeg.encode_jpeg(picture(value, size, camera), quality=95, colorsubsampling="444")


def make_episode(name: str, steps: int = 12, seed: int = 0, every: tuple[int, int] = (1, 1), rate_hz: Fraction = ROBOT.rate_hz) -> Episode:
    """`every`: a frame each so many steps, for the two cameras. The red channel of a frame is its step."""
    rng = np.random.default_rng([seed, steps])
    rows = rng.normal(size=(2, steps, 4))
    rows[..., 3] = rng.uniform(size=(2, steps))
    frames = {}
    for number, (camera, stride) in enumerate(zip(ROBOT.cameras, every, strict=True)):
        seen = np.arange(0, steps, stride)
        frames[camera] = Frames(seen, tuple(jpeg(int(step), camera=number) for step in seen))
    half = max(steps // 2, 1)
    spans = (Span(f"begin {name}", 0, half), *((Span(f"end {name}", half, steps),) if steps > half else ()))
    return Episode(
        id=name,
        embodiment="arm",
        rate_hz=rate_hz,
        supervision="actions",
        instructions=spans,
        time_s=np.arange(steps) / float(rate_hz),
        frames=frames,
        state=rows[0],
        action=rows[1],
        source="test",
        info={"seed": seed, "success": True},
    )


def make_video(name: str, steps: int = 12) -> Episode:
    frames = {"front": Frames(np.arange(steps), tuple(jpeg(step) for step in range(steps)))}
    return Episode(
        id=name,
        embodiment="",
        rate_hz=Fraction(30000, 1001),
        supervision="none",
        instructions=(Span(f"watch {name}", 0, steps),),
        time_s=np.arange(steps) * 1001 / 30000,
        frames=frames,
    )
