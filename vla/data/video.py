"""Chosen frames of video files, exact to the frame: seek to a key frame, decode forward, take what the time asks for.

A time is of the player's clock: 0 is where the file starts. The frame shown at `t` is the last that began at or before it; 1 ms
is allowed for rounding, since webm counts in milliseconds and tables in float32. Which frames there are is
read from the packets, so a frame that is there and does not decode is an error and never another frame.

PyAV is the one library: it carries its own FFmpeg, decodes as fast as anything on a CPU, and gives packets as well as frames.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.data.format import MAX_PIXELS
from vla.errors import Damaged, UserError

if TYPE_CHECKING:
    import av

MAX_FRAMES = 4_000_000
"""Of one file: 18 hours at 60 Hz. A table of more times is not built."""
ROUNDING_S = 1e-3
KEPT_OPEN = 8
"""Files that a thread keeps open for `image_at`."""
SEEK_AFTER_S = 1.0
"""A frame further ahead than this, and than key frames lie apart, is sought rather than decoded up to."""
BT601 = (2, 5, 6)
"""Colour matrices (H.273, table 4) that are BT.601: unspecified, which is shown so, and its two names."""
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg"
"""Formats that are opened at all. Playlists (HLS, concat) are not among them: those name other files."""

_LOCAL = threading.local()


@dataclass(frozen=True)
class VideoFacts:
    """What a file says of its first video stream, as shown (turned as it is flagged). A claim: only decoding tells. `duration_s`: None
    where it says nothing."""

    width: int
    height: int
    rate_hz: Fraction
    codec: str
    duration_s: float | None


def probe(path: str | Path) -> VideoFacts:
    """What a file says of itself. Damaged where it is no video, has more than MAX_PIXELS, or states no rate."""
    with opened(path) as (container, stream):
        rate, context = stream.average_rate or stream.guessed_rate, stream.codec_context
        if not rate or rate <= 0:
            raise Damaged(f"{path}: states no frame rate")
        duration = stream.duration and float(stream.duration * stream.time_base)
        if not duration and container.duration:
            duration = container.duration / 1e6
        height, width = context.height, context.width
        first = next(_decoded(container, stream), None)
        if first is not None and turns(first) % 2:
            height, width = width, height
        return VideoFacts(width, height, Fraction(rate), context.name, duration or None)


def frame_times(path: str | Path) -> np.ndarray:
    """When each frame of a file is first shown: float64 (n,), rising, s. Reads the whole file and decodes nothing."""
    with opened(path) as (container, stream):
        pts = []
        for packet in _packets(path, container, stream):
            if packet.pts is not None:
                pts.append(packet.pts)
                if len(pts) > MAX_FRAMES:
                    raise Damaged(f"{path}: more than {MAX_FRAMES} frames")
        start, tick_s = clock(container, stream)
        return (np.sort(np.array(pts, np.int64)) - start) * tick_s


def images_at(path: str | Path, time_s: Sequence[float] | np.ndarray, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """The frames shown at times (s, any order; rising ones are fastest): uint8 (H, W, 3) RGB, one per time, turned as the file says.

    `size`: (H, W) to scale to. Memory is that of a few frames. Damaged, naming file and time, where a frame does not decode or the
    video ends before; UserError where the file cannot be opened at all.
    """
    return (rgb(frame, size) for frame in frames_at(path, time_s))


def image_at(path: str | Path, time_s: float, size: tuple[int, int] | None = None) -> np.ndarray:
    """One frame, as `images_at` gives it, for reading files at random: each thread keeps the last few files open, since opening one
    costs more than decoding a frame."""
    kept = _kept_open()
    try:
        facts = os.stat(path)
        key = (str(path), facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise UserError(f"no video file {path}") from error
    if key not in kept:
        kept[key] = _Cursor(path, *_open(path))
        if len(kept) > KEPT_OPEN:
            kept.popitem(last=False)[1].container.close()
    kept.move_to_end(key)
    try:
        return rgb(kept[key].show(float(time_s)), size)
    except Damaged:
        kept.pop(key).container.close()
        raise


def images(path: str | Path, numbers: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """Like `images_at`, by number in the order shown. Reads the file's packets first, to know their times."""
    times = frame_times(path)
    wanted = np.asarray(numbers, np.int64)
    if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(times)):
        raise Damaged(f"{path}: frame {int(wanted.max() if wanted.min() >= 0 else wanted.min())} of {len(times)}")
    return images_at(path, times[wanted], size)


def jpegs_at(path: str | Path, time_s: Sequence[float] | np.ndarray, quality: int = 90, short_side: int | None = None) -> Iterator[bytes]:
    """Like `images_at`, as JPEG (4:2:0, as almost every video has it already); a frame that is shown at several times is encoded once.
    `short_side`: what the shorter side is shrunk to, the other in proportion (a smaller video stays as it is)."""
    last: Any = None
    data = b""
    for frame in frames_at(path, time_s):
        if frame is not last:
            data, last = jpeg(frame, quality, None if short_side is None else shrunk(frame, short_side)), frame
        yield data


def jpeg(frame: av.VideoFrame, quality: int, size: tuple[int, int] | None = None) -> bytes:
    """A decoded frame as JPEG, upright, scaled to `size` (H, W). The same colours as `rgb` has, up to the rounding of either way."""
    import simplejpeg

    planes = _jpeg_planes(frame, size)
    if planes is None:
        return simplejpeg.encode_jpeg(rgb(frame, size), quality=quality, colorsubsampling="420")
    return simplejpeg.encode_jpeg_yuv_planes(*planes, quality=quality)


def shrunk(frame: av.VideoFrame, short_side: int) -> tuple[int, int]:
    """(H, W) of a frame, upright, when its shorter side is at most `short_side`. Even where that is, as 4:2:0 wants it."""
    height, width = upright(frame)
    if min(height, width) <= short_side:
        return height, width
    unit = 2 - short_side % 2
    longer = unit * round(short_side * max(height, width) / min(height, width) / unit)
    return (short_side, longer) if height <= width else (longer, short_side)


def frames_at(path: str | Path, time_s: Sequence[float] | np.ndarray) -> Iterator[av.VideoFrame]:
    """The decoder's own frames (`av.VideoFrame`) shown at times; see `images_at`."""
    times = np.asarray(time_s, np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise UserError(f"{path}: times must be a row of finite seconds")
    with opened(path) as (container, stream):
        cursor = _Cursor(path, container, stream)
        for at_s in times.tolist():
            yield cursor.show(at_s)


def rgb(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """A decoded frame as uint8 (H, W, 3), by the colour matrix and range that it declares (BT.601 where it declares none)."""
    quarter, (scaler, painter, *_) = turns(frame), _converters()
    if size is not None:
        height, width = (size[1], size[0]) if quarter % 2 else size
        if (height, width) != (frame.height, frame.width):
            # In the video's own planes first: four times faster than scaling on the way to RGB.
            frame = scaler.reformat(frame, width=width, height=height, interpolation="BILINEAR", threads=1)
    image = painter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(image, quarter)) if quarter else image


def _jpeg_planes(frame: av.VideoFrame, size: tuple[int, int] | None) -> list[np.ndarray] | None:
    """Y, Cb and Cr as JFIF has them (BT.601, full range), scaled and ranged in one pass; None for what is better to go by way of RGB.

    That is every other matrix (FFmpeg would go by RGB itself, and slower), limited range that is not scaled (the range alone costs as
    much as RGB), and what is turned and of odd size: half a sample of colour would come to lie at the other edge.
    """
    quarter, name = turns(frame), frame.format.name
    if name not in ("yuv420p", "yuvj420p") or frame.colorspace not in BT601:
        return None
    whole = (frame.width, frame.height) if quarter % 2 else (frame.height, frame.width)
    height, width = size or whole
    scaled, full = (height, width) != whole, name == "yuvj420p" or frame.color_range == 2
    if not (scaled or full) or (quarter and (height % 2 or width % 2)):
        return None
    if quarter % 2:
        height, width = width, height
    maker, as_jfif = _converters()[2:]
    frame = maker.reformat(frame, width=width, height=height, threads=1, **as_jfif)
    stored: Any = frame.planes  # buffers, which PyAV's types do not say
    planes = [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width] for plane in stored]
    return [np.ascontiguousarray(np.rot90(plane, quarter)) for plane in planes] if quarter else planes


def upright(frame: av.VideoFrame) -> tuple[int, int]:
    """(H, W) of a frame when it is turned as it says."""
    return (frame.width, frame.height) if turns(frame) % 2 else (frame.height, frame.width)


def turns(frame: av.VideoFrame) -> int:
    """Quarter turns counter-clockwise that bring a frame upright."""
    return round(frame.rotation / 90) % 4


def check_upright(frame: av.VideoFrame) -> None:
    """Damaged for a frame that is mirrored, or turned by another angle than a quarter. Once per file: looking at side data makes a
    frame part of a cycle, which holds its memory until the next garbage collection."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data), "<i4")[:5].tolist()
            if a * d - b * c <= 0 or frame.rotation % 90:
                raise Damaged(f"a video turned by {frame.rotation} degrees or mirrored; re-encode it upright")


def import_av() -> Any:
    """PyAV, or a UserError that names the extra."""
    try:
        import av
    except ImportError as error:
        raise UserError(f"video needs PyAV, which cannot be imported ({error}): pip install 'vla[convert]'") from error
    return av


class _Cursor:
    """A place in an open video, moved to where a time asks for it.

    Since the last seek: `_packets`, when the frames that were read begin (ticks), and `_last` of them with its duration; `_shown`, the
    last decoded frame at or before the time asked for, and `_next`, the one after it. `_from`: the key frame where decoding began;
    what a decoder gives before it (the leading pictures of an open group) stands on frames that were not read.
    """

    def __init__(self, path: str | Path, container: Any, stream: Any) -> None:
        self.path, self.container, self.stream = path, container, stream
        self.start, self.tick_s = clock(container, stream)
        self._first = self.start if stream.start_time is None else stream.start_time
        self._group = round(SEEK_AFTER_S / self.tick_s)
        self._broken = self._upright = False
        self._shown: av.VideoFrame | None = None
        self._next: av.VideoFrame | None = None
        self._restart(None)

    def show(self, time_s: float) -> av.VideoFrame:
        """The frame shown at `time_s`. It may be the same object as before."""
        tick = int(np.floor((time_s + ROUNDING_S) / self.tick_s)) + self.start
        here = self._shown.pts if self._shown is not None else self._from
        if here is None or tick < here or tick > here + self._group:
            self._seek(tick)
        frame = self._reach(tick, time_s)
        if frame is None:  # a key frame that only begins a gradual refresh: whole pictures come later, so from further back
            self._seek(tick - 2 * self._group)
            frame = self._reach(tick, time_s)
        if frame is None:
            raise Damaged(f"{self.path}: the frame at {time_s:.3f} s does not decode; the file is damaged there")
        return frame

    def _reach(self, tick: int, time_s: float) -> av.VideoFrame | None:
        """Decodes forward to the frame shown at `tick`; None where there is one and it did not decode."""
        while self._next is None or self._next.pts <= tick:
            if self._next is not None:
                self._shown, self._next = self._next, None
            self._next = next(self._frames, None)
            if self._next is None:
                break
        if len(self._packets) > 64 and self._shown is not None:  # however long the file: earlier ones are not asked for without a seek
            self._packets = {pts for pts in self._packets if pts >= self._shown.pts}
        begun = [pts for pts in self._packets if pts <= tick]
        want = max(begun, default=None)
        if want is None and tick < self._first:  # sound began earlier: before the first frame, the first
            want = self._first
        if want is not None and self._next is None and tick >= self._end(want):
            end_s = (self._end(want) - self.start) * self.tick_s
            raise Damaged(f"{self.path}: no frame at {time_s:.3f} s; the video ends at {end_s:.3f} s")
        return next((frame for frame in (self._shown, self._next) if frame is not None and frame.pts == want), None)

    def _end(self, pts: int) -> int:
        """When the last frame, which begins at `pts`, ends: by its own duration, or as long as frames usually last."""
        rate = self.stream.average_rate or self.stream.guessed_rate or 1
        lasts = self._last[1] if self._last[0] == pts else 0
        return pts + (lasts or max(round(1 / float(rate) / self.tick_s), 1))

    def _seek(self, tick: int) -> None:
        """To the last key frame that is shown at or before `tick`. Files are indexed by the order of decoding, in which a key frame may
        stand before `tick` and yet be shown after it, or not at all (mpegts): then back further."""
        at, step = tick, self._group
        while True:
            self._restart(at)
            if (self._from is not None and self._from <= tick) or at <= self._first:
                return
            at, step = max(at - step, self._first), 2 * step

    def _restart(self, at: int | None) -> None:
        """Begins to decode at the key frame that the file has at or before `at`; None: where it stands, which is its start."""
        if at is not None:
            self._jump(at)
        self._packets: set[int] = set()
        self._last = (-1, 0)
        self._from: int | None = None
        self._shown = self._next = None
        self._broken = False
        self._frames = self._decode()
        self._next = next(self._frames, None)

    def _jump(self, at: int) -> None:
        """Moves the demuxer; to the start where the file's index does not serve, so that the way is long and right."""
        av = import_av()
        for place in (at, self._first):
            try:
                self.container.seek(place, stream=self.stream, backward=True, any_frame=False)
                return
            except av.FFmpegError as error:
                reason = error.strerror
        raise Damaged(f"{self.path}: unreadable ({reason}); the file is damaged or cut")

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Sound frames in the order shown, from the first key frame on."""
        av = import_av()
        key = None
        for packet in _packets(self.path, self.container, self.stream):
            if packet.pts is not None:
                if packet.is_keyframe:
                    if key is not None and packet.pts > key:
                        self._group = max(self._group, packet.pts - key)
                    key = packet.pts
                    self._from = key if self._from is None else self._from
                if self._from is None:
                    self._packets.add(packet.pts)  # before any key frame: there, and not to be decoded
                    continue
                if packet.pts >= self._from:
                    self._packets.add(packet.pts)
                    self._last = max(self._last, (packet.pts, packet.duration or 0))
            elif packet.size:
                raise Damaged(f"{self.path}: packets without times; remux it into mp4 or mkv")
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._broken = True  # what follows refers to it
                frames = []
            for frame in frames:
                if frame.key_frame and not frame.is_corrupt:
                    self._broken = False
                sound = not self._broken and not frame.is_corrupt
                if sound and frame.pts is not None and self._from is not None and frame.pts >= self._from:
                    if not self._upright:
                        check_upright(frame)
                        self._upright = True
                    if frame.width * frame.height > MAX_PIXELS:
                        raise Damaged(f"{self.path}: a frame of {frame.height} x {frame.width} pixels; at most {MAX_PIXELS}")
                    yield frame


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """(container, first video stream) while it lasts; see `_open`."""
    container, stream = _open(path)
    with container:
        yield container, stream


def _open(path: str | Path) -> tuple[Any, Any]:
    """(container, first video stream) of a file on disk: no URL, no playlist, no frame larger than MAX_PIXELS."""
    av = import_av()
    if not Path(path).is_file():
        raise UserError(f"no video file {path}")
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        # `file:`, so that a name with a colon is no protocol.
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise Damaged(f"{path} is no video that can be read ({error.strerror or error})") from error
    try:
        return container, _video_stream(path, container)
    except Damaged:
        container.close()
        raise


def _video_stream(path: str | Path, container: Any) -> Any:
    if not container.streams.video:
        raise Damaged(f"{path} holds no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or stream.time_base is None:
        raise Damaged(f"{path}: a video stream of no known codec, or without a clock")
    if not 0 < context.width * context.height <= MAX_PIXELS:
        raise Damaged(f"{path}: frames of {context.height} x {context.width} pixels; at most {MAX_PIXELS} are decoded")
    context.options = {"max_pixels": str(MAX_PIXELS)}  # the decoder's own check, where the header lied
    context.thread_count = 1
    return stream


def _kept_open() -> OrderedDict[tuple, _Cursor]:
    """This thread's open files. A forked process begins anew: it shares the places in its parent's files."""
    if getattr(_LOCAL, "process", None) != os.getpid():
        _LOCAL.process, _LOCAL.cursors = os.getpid(), OrderedDict()
    return _LOCAL.cursors


def _packets(path: str | Path, container: Any, stream: Any) -> Iterator[Any]:
    av = import_av()
    try:
        yield from container.demux(stream)
    except (av.FFmpegError, IndexError) as error:  # IndexError: a stream that the header did not announce
        raise Damaged(f"{path}: unreadable ({error}); the file is damaged or cut") from error


def _decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    av = import_av()
    try:
        yield from container.decode(stream)
    except (av.FFmpegError, IndexError):
        return


def clock(container: Any, stream: Any) -> tuple[int, float]:
    """(tick of the stream at which the file starts, seconds per tick)."""
    start_s = Fraction(container.start_time or 0, 1_000_000)
    start = round(start_s / stream.time_base)
    if stream.start_time is not None and abs(stream.start_time - start) * stream.time_base < Fraction(1, 1000):
        start = stream.start_time  # the container's is rounded to microseconds
    return start, float(stream.time_base)


def _converters() -> tuple[Any, Any, Any, dict[str, Any]]:
    """This thread's scaler, painter of RGB, and maker of JPEG's planes with what it makes them by: making one for every frame costs as
    much as using it, and looking up five names a twentieth of that."""
    if not hasattr(_LOCAL, "converters"):
        reformatter = import_av().video.reformatter
        bt601 = reformatter.Colorspace.ITU601.value
        as_jfif = {
            "format": import_av().VideoFormat("yuvj420p"),
            "src_colorspace": bt601,
            "dst_colorspace": bt601,
            "dst_color_range": reformatter.ColorRange.JPEG.value,
            "interpolation": reformatter.Interpolation.BILINEAR.value,
        }
        _LOCAL.converters = (*(reformatter.VideoReformatter() for _ in range(3)), as_jfif)
    return _LOCAL.converters
