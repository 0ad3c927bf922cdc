"""Packets of a video file as a shard's mp4, where they are such as a shard takes: nothing is encoded anew, and nothing lost.

That is H.264 without B-frames, in short closed groups, of which every frame from a key frame on is wanted: what is recorded for training
by frames, as LeRobot's H.264 files are. Every frame is decoded once, so that damage is found here, by name.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.data.gop import CODECS, GOP_FRAMES, Gop, packet_table
from vla.data.video import ROUNDING_S, clock, frames_at, import_av, opened, rgb, turns
from vla.errors import SchemaError

if TYPE_CHECKING:
    import av

MAX_GROUP_FRAMES = 2 * GOP_FRAMES
"""Of longer groups a frame at random would cost more than twice what it does of our own."""


def remuxed(path: str | Path, time_s: Sequence[float] | np.ndarray, short_side: int | None = None) -> bytes | None:
    """The frames shown at times (s, rising) as an mp4 that `vla.data.gop.packet_table` takes; None where they are to be encoded anew:
    for the reasons above, or since the shorter side is longer than `short_side`. Damaged where a frame does not decode."""
    times = np.asarray(time_s, np.float64)
    if not len(times):
        return None
    with opened(path) as (container, stream):
        context = stream.codec_context
        head = bytes(context.extradata or b"")
        fits = context.name in CODECS and head[:1] == b"\x01" and (short_side is None or min(context.height, context.width) <= short_side)
        packets = _packets_shown(container, stream, times) if fits else None
        if packets is None or any(packet.is_keyframe and not _is_idr(bytes(packet), (head[4] & 3) + 1) for packet in packets):
            return None
        mp4 = _mux(stream, packets)
    try:
        table = packet_table(mp4)
    except SchemaError:
        return None
    if (np.arange(len(table.key)) - table.key).max() >= MAX_GROUP_FRAMES:
        return None
    shown: Any = None
    for shown in frames_at(path, times):
        if turns(shown):
            return None
    key = int(table.key[-1])
    lone = tuple(mp4[start : start + size] for start, size in zip(table.start[key:], table.size[key:], strict=True))
    # Colours that the container alone declares do not travel with packets: then what is read is not what was shown.
    return mp4 if np.array_equal(Gop(table.codec, table.head, lone).decode(), rgb(shown)) else None


def _packets_shown(container: Any, stream: Any, times: np.ndarray) -> list[av.Packet] | None:
    """The packets of the frames shown at times, if those are all frames from a key frame on, in the order decoded."""
    av = import_av()
    start, tick_s = clock(container, stream)
    packets: list[Any] = []
    try:
        container.seek(int(np.floor((times[0] + ROUNDING_S) / tick_s)) + start, stream=stream, backward=True, any_frame=False)
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.pts != packet.dts:
                return None
            at_s = (packet.pts - start) * tick_s
            if at_s > times[-1] + ROUNDING_S:
                break
            if at_s <= times[0] + ROUNDING_S:
                packets.clear()
            packets.append(packet)
    except (av.FFmpegError, IndexError):
        return None  # reading frames names what is wrong
    begin_s = (np.array([packet.pts for packet in packets], np.int64) - start) * tick_s
    at = np.searchsorted(begin_s, times + ROUNDING_S, side="right") - 1
    whole = len(packets) == len(times) and packets[0].is_keyframe and np.array_equal(at, np.arange(len(times)))
    return packets if whole else None


def _is_idr(data: bytes, length_bytes: int) -> bool:
    """Whether a packet (NAL units, each after its length: ISO/IEC 14496-15) holds a slice of type 5, behind which nothing later looks."""
    place = 0
    while place + length_bytes < len(data):
        if data[place + length_bytes] & 31 == 5:
            return True
        place += length_bytes + int.from_bytes(data[place : place + length_bytes], "big")
    return False


def _mux(like: Any, packets: Sequence[av.Packet]) -> bytes:
    av = import_av()
    buffer = io.BytesIO()
    tick = 1 / Fraction(like.average_rate or like.guessed_rate or 30)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream_from_template(like)
        for number, packet in enumerate(packets):
            copy = av.Packet(bytes(packet))
            copy.pts = copy.dts = number
            copy.duration, copy.time_base, copy.is_keyframe, copy.stream = 1, tick, packet.is_keyframe, stream
            container.mux(copy)
    return buffer.getvalue()
