"""What an episode must be before it is stored: a mistake found here is found once, by name, and not in training."""

from __future__ import annotations

import numpy as np
import simplejpeg

from vla.data import format as fmt
from vla.errors import SchemaError
from vla.types import Episode, Frames, VideoFrames


def check_episode(episode: Episode, info: fmt.DatasetInfo, cameras: tuple[str, ...]) -> None:
    """Raises SchemaError, naming the episode, unless it is whole, finite and what the dataset declares."""
    where, n, robot = f"{info.name}: episode '{episode.id}'", episode.steps, info.robot
    fmt.check_name(episode.id, "episode id")
    if robot is not None and episode.embodiment != robot.name:
        raise SchemaError(f"{where} is of '{episode.embodiment}'; the dataset declares '{robot.name}'")
    if episode.supervision != info.supervision:
        raise SchemaError(f"{where} has supervision '{episode.supervision}'; the dataset has '{info.supervision}'")
    if tuple(sorted(episode.frames)) != cameras or not episode.frames:
        raise SchemaError(f"{where} has cameras {sorted(episode.frames)}; the dataset has {list(cameras)}")
    time_s = np.asarray(episode.time_s)
    if n < 1 or time_s.ndim != 1 or not np.isfinite(time_s).all() or (np.diff(time_s) <= 0).any():
        raise SchemaError(f"{where}: time_s must be (steps >= 1,), finite and rising")
    if episode.rate_hz <= 0:
        raise SchemaError(f"{where}: rate_hz {episode.rate_hz} must be positive")
    for kind, values, space in (
        ("state", episode.state, info.recorded_state),
        ("action", episode.action, info.recorded_action),
    ):
        if (values is None) != (space is None):
            raise SchemaError(f"{where} {'lacks' if values is None else 'has'} {kind}; the dataset declares otherwise")
        if values is not None and space is not None:
            if len(values) != n:
                raise SchemaError(f"{where}: {len(values)} rows of {kind} for {n} steps")
            space.check(np.asarray(values), f"{where} {kind}")
    _check_spans(episode, where)
    for camera, frames in episode.frames.items():
        _check_frames(frames, n, f"{where} camera '{camera}'")
    if not len(anchors(episode)):
        raise SchemaError(f"{where} has no step at which every camera holds a frame")


def anchors(episode: Episode) -> np.ndarray:
    """Steps at which every camera holds a frame."""
    common: np.ndarray | None = None
    for frames in episode.frames.values():
        common = frames.step if common is None else np.intersect1d(common, frames.step, assume_unique=True)
    assert common is not None
    return common


def _check_spans(episode: Episode, where: str) -> None:
    covered = np.zeros(episode.steps, bool)
    for what, spans in (("instruction", episode.instructions), ("reasoning", episode.reasoning)):
        for span in spans:
            if not 0 <= span.start < span.stop <= episode.steps:
                raise SchemaError(f"{where}: {what} span {span.start}..{span.stop} does not fit {episode.steps} steps")
    for span in episode.instructions:
        covered[span.start : span.stop] = True
    if not covered.all():
        raise SchemaError(f"{where}: step {int(covered.argmin())} has no instruction; give a span with an empty text if so recorded")


def _check_frames(frames: Frames | VideoFrames, steps: int, where: str) -> None:
    step = np.asarray(frames.step)
    jpegs = frames.jpeg if isinstance(frames, Frames) else ()
    try:
        count = len(jpegs) if isinstance(frames, Frames) else len(fmt.pack_camera(frames).start)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from error
    if len(step) != count or step.dtype.kind not in "iu":
        raise SchemaError(f"{where}: {len(step)} step numbers for {count} images")
    if len(step) and (step[0] < 0 or step[-1] >= steps or (np.diff(step) <= 0).any()):
        raise SchemaError(f"{where}: frame steps must rise within 0..{steps - 1}")
    sizes = set()
    for jpeg in jpegs:
        try:
            height, width, colour, _ = simplejpeg.decode_jpeg_header(jpeg)
        except ValueError as error:
            raise SchemaError(f"{where}: an image is no readable JPEG ({error})") from error
        if height * width > fmt.MAX_PIXELS or colour in ("CMYK", "YCCK"):
            raise SchemaError(f"{where}: {height} x {width} {colour} image; convert to RGB of at most {fmt.MAX_PIXELS} pixels")
        sizes.add((height, width))
    if len(sizes) > 1:
        raise SchemaError(f"{where}: images of different sizes {sorted(sizes)} in one episode")
