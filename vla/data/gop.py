"""Video inside shards: mp4 with short groups of pictures and no B-frames, so that one frame is one read of part of its group.

    encode_mp4(images, rate_hz)     -> mp4 bytes that a shard takes
    as_video(frames, rate_hz)       -> the same from a camera's JPEGs
    packet_table(mp4)               -> where each frame's packet lies, and the key frame at which decoding of it begins
    Gop(...).decode()               -> the last frame of a run of packets that begins with a key frame

The packets of an mp4 lie in it as the decoder takes them, and in the order shown where there are no B-frames. So a shard's index needs
for a frame what it needs for a JPEG (offset, size, checksum), and the number of its key frame.
"""

from __future__ import annotations

import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.data.format import MAX_PIXELS, VIDEO_CODEC
from vla.data.quarantine import BadSample
from vla.data.video import import_av, rgb
from vla.errors import SchemaError
from vla.types import Frames, VideoFrames

if TYPE_CHECKING:
    import av

CODECS = (VIDEO_CODEC,)
"""What a shard's mp4 may hold: what the tests hold."""
GOP_FRAMES = 8
"""Frames per group when we encode. A random frame costs the decoding of half a group; doubling it saves about a tenth of the bytes."""
MAX_GOP_FRAMES = 64
_DECODERS_KEPT = 16


@dataclass(frozen=True)
class PacketTable:
    """Rows of one per frame: `start` and `size` (int64, bytes in the mp4) of its packet, `key` (int32), the frame at which decoding
    of it begins. `head`: the codec's parameters (avcC), which a decoder needs besides the packets. `shape`: (H, W)."""

    codec: str
    head: bytes
    start: np.ndarray
    size: np.ndarray
    key: np.ndarray
    shape: tuple[int, int]


@dataclass(frozen=True)
class Gop:
    """Packets from a key frame up to a wanted one, still encoded: what `Dataset.frame` gives for a camera stored as video."""

    codec: str
    head: bytes
    packets: tuple[bytes, ...]

    def decode(self, out: np.ndarray | None = None) -> np.ndarray:
        """The last frame: uint8 (H, W, 3) RGB, in `out` if that has its shape. BadSample where it does not decode."""
        av = import_av()
        decoder, shown = _decoder(self.codec, self.head), None
        try:
            for number, data in enumerate(self.packets):
                packet = av.Packet(data)
                packet.pts = packet.dts = number
                for frame in decoder.decode(packet):
                    shown = frame
            for frame in decoder.decode(None):
                shown = frame
        except av.FFmpegError as error:
            raise BadSample("decode", f"video frame does not decode: {error.strerror}") from error
        finally:
            decoder.flush_buffers()
        if shown is None or shown.pts != len(self.packets) - 1 or shown.is_corrupt:
            raise BadSample("decode", "video frame does not decode: the decoder gave nothing whole for it")
        if shown.width * shown.height > MAX_PIXELS:
            raise BadSample("oversize", f"video frame of {shown.height} x {shown.width} pixels; at most {MAX_PIXELS} are decoded")
        image = rgb(shown)
        if out is None or out.shape != image.shape:
            return image
        out[...] = image
        return out


def encode_mp4(
    images: Iterable[np.ndarray], rate_hz: Fraction | int, gop_frames: int = GOP_FRAMES, crf: int = 20, preset: str = "veryfast"
) -> bytes:
    """Pictures, uint8 (H, W, 3) RGB of one size -> mp4 (H.264, BT.709, no B-frames), which shows them at `rate_hz`.

    `crf`: x264's quality, lower is better; 20 stands about where JPEG 85 to 90 does, in a third to a tenth of the bytes. Odd sizes are
    stored 4:4:4. Frame by frame: memory is that of the encoded bytes.
    """
    if not 1 <= gop_frames <= MAX_GOP_FRAMES:
        raise SchemaError(f"groups of {gop_frames} frames; choose 1 to {MAX_GOP_FRAMES}")
    av = import_av()
    buffer, stream, shape = io.BytesIO(), None, None
    # Without arithmetic coding and the loop filter (`fastdecode`) a random frame costs less than half, for a fifth more bytes.
    options = {
        "preset": preset,
        "tune": "fastdecode",
        "crf": str(crf),
        "g": str(gop_frames),
        "keyint_min": str(gop_frames),
        "sc_threshold": "0",
        "bf": "0",
    }
    with av.open(buffer, "w", format="mp4") as container:
        for number, image in enumerate(images):
            if stream is None:
                shape = image.shape
                stream = container.add_stream("libx264", rate=Fraction(rate_hz), options=options)
                stream.height, stream.width = shape[:2]
                stream.pix_fmt = "yuv444p" if shape[0] % 2 or shape[1] % 2 else "yuv420p"
                stream.codec_context.thread_count = 1
                context = stream.codec_context
                context.colorspace, context.color_range, context.color_primaries, context.color_trc = 1, 1, 1, 1  # BT.709, limited
            if image.shape != shape or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise SchemaError(f"frame {number} is {image.dtype} {image.shape}; the first was {shape}, and all must be uint8 (H, W, 3)")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=1, dst_color_range=1, threads=1)
            frame.pts, frame.time_base = number, 1 / Fraction(rate_hz)
            container.mux(stream.encode(frame))
        if stream is None:
            raise SchemaError("a video without a frame")
        container.mux(stream.encode())
    return buffer.getvalue()


def as_video(frames: Frames, rate_hz: Fraction | int, gop_frames: int = GOP_FRAMES, crf: int = 20) -> VideoFrames:
    """A camera's JPEGs as video of at most `rate_hz`, one picture decoded at a time. Encoded twice, which JPEGs of quality 95 bear."""
    from vla.data.images import decode_jpeg

    stride = int(np.diff(frames.step).min()) if len(frames.step) > 1 else 1
    if not frames.jpeg:
        return VideoFrames(np.asarray(frames.step), b"")
    images = (decode_jpeg(jpeg) for jpeg in frames.jpeg)
    return VideoFrames(np.asarray(frames.step), encode_mp4(images, Fraction(rate_hz) / stride, gop_frames, crf))


def decode_mp4(mp4: bytes) -> Iterator[np.ndarray]:
    """All frames in order: uint8 (H, W, 3) RGB. BadSample where one does not decode."""
    av = import_av()
    if not mp4:
        return
    with _opened(mp4) as (container, stream):
        stream.codec_context.thread_count = 1
        try:
            for frame in container.decode(stream):
                yield rgb(frame)
        except av.FFmpegError as error:
            raise BadSample("decode", f"video does not decode: {error.strerror}") from error


def packet_table(mp4: bytes) -> PacketTable:
    """Where everything lies in an mp4. SchemaError, which names the fix, unless it is one that a shard takes. Decodes its first frame."""
    if not mp4:
        none = np.zeros(0, np.int64)
        return PacketTable(CODECS[0], b"", none, none, none.astype(np.int32), (0, 0))
    with _opened(mp4) as (container, stream):
        context = stream.codec_context
        if context.name not in CODECS:
            raise SchemaError(f"video codec {context.name}; shards take {', '.join(CODECS)}: encode it with vla.data.gop.encode_mp4")
        rows, key, before = [], -1, None
        for number, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
            if packet.pts is None or packet.pos is None or packet.pts != packet.dts or (before is not None and packet.pts <= before):
                raise SchemaError("a video with B-frames; encode it with vla.data.gop.encode_mp4")
            key = number if packet.is_keyframe else key
            if key < 0 or number - key >= MAX_GOP_FRAMES:
                raise SchemaError(f"frame {number} has no key frame within {MAX_GOP_FRAMES} before it; encode it with shorter groups")
            if mp4[packet.pos : packet.pos + packet.size] != bytes(packet):
                raise SchemaError("a video whose packets do not lie in it as they are decoded")
            rows.append((packet.pos, packet.size, key))
            before = packet.pts
        table = np.array(rows, np.int64).reshape(-1, 3)
        if (table[1:, 0] < table[:-1, 0] + table[:-1, 1]).any():
            raise SchemaError("a video whose packets do not lie in the order shown")
        head, shape = bytes(context.extradata or b""), (context.height, context.width)
        container.seek(0, stream=stream)
        if any(data.type.name == "DISPLAYMATRIX" for frame in itertools.islice(container.decode(stream), 1) for data in frame.side_data):
            raise SchemaError("a video that is to be turned as it is shown; encode it upright with vla.data.gop.encode_mp4")
        return PacketTable(context.name, head, table[:, 0], table[:, 1], table[:, 2].astype(np.int32), shape)


def cut_mp4(mp4: bytes, edges: Sequence[int]) -> list[bytes]:
    """An mp4 cut before the frames `edges` (key frames, the first 0), packet by packet: nothing is decoded or encoded anew."""
    packets = list(_packets([mp4]))
    pieces = []
    for start, stop in zip(edges, [*edges[1:], len(packets)], strict=True):
        if start == stop:  # a piece without a frame
            pieces.append(b"")
            continue
        if not packets[start].is_keyframe:
            raise SchemaError(f"frame {start} is no key frame; a video is cut only before one")
        pieces.append(_mux(mp4, packets[start:stop]))
    return pieces


def join_mp4(pieces: Sequence[bytes]) -> bytes:
    """The inverse of `cut_mp4`: packets of several mp4s of one encoder run, in one."""
    filled = [piece for piece in pieces if piece]
    return b"".join(filled) if len(filled) < 2 else _mux(filled[0], list(_packets(filled)))


def _packets(pieces: Iterable[bytes]) -> Iterator[av.Packet]:
    for mp4 in pieces:
        with _opened(mp4) as (container, stream):
            for packet in container.demux(stream):
                if packet.size:
                    yield packet


def _mux(like: bytes, packets: Sequence[av.Packet]) -> bytes:
    """Packets as an mp4 of their own, one tick of the same rate after the other."""
    av = import_av()
    buffer = io.BytesIO()
    with _opened(like) as (_, template), av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream_from_template(template)
        tick = 1 / Fraction(template.average_rate or 1)
        for number, packet in enumerate(packets):
            copy = av.Packet(bytes(packet))
            copy.pts = copy.dts = number
            copy.duration, copy.time_base = 1, tick
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            container.mux(copy)
    return buffer.getvalue()


@contextmanager
def _opened(mp4: bytes) -> Iterator[tuple[Any, Any]]:
    av = import_av()
    try:
        container = av.open(io.BytesIO(mp4), options={"protocol_whitelist": "none", "format_whitelist": "mov"}, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise SchemaError(f"no readable mp4 ({error.strerror or error})") from error
    with container:
        if len(container.streams) != 1 or not container.streams.video:
            raise SchemaError(f"an mp4 of {len(container.streams)} streams; a camera is one video stream and nothing else")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None or not 0 < context.width * context.height <= MAX_PIXELS:
            raise SchemaError(
                "video of no known codec"
                if context is None
                else f"video of {context.height} x {context.width} pixels; at most {MAX_PIXELS}"
            )
        try:
            yield container, stream
        except (av.FFmpegError, IndexError) as error:  # IndexError: a stream that the header did not announce
            raise SchemaError(f"no readable mp4 ({error})") from error


class _Kept(threading.local):
    """Each thread's decoders, by what they decode: opening one costs as much as a frame."""

    def __init__(self) -> None:
        self.decoders: OrderedDict[tuple[str, bytes], Any] = OrderedDict()


_KEPT = _Kept()


def _decoder(codec: str, head: bytes) -> Any:
    if codec not in CODECS:
        raise BadSample("schema", f"video codec '{codec}'; this program reads {', '.join(CODECS)}")
    kept, key = _KEPT.decoders, (codec, head)
    if key not in kept:
        av = import_av()
        context = av.CodecContext.create(codec, "r")
        context.extradata, context.thread_count = head, 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        kept[key] = context
        if len(kept) > _DECODERS_KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
