"""The messages of an MCAP file, one chunk in memory at a time, with every claim about sizes checked before it is believed.

`mcap` parses the records and `mcap_ros2` the messages, by the definitions in the file and without making code of them (which ROS 1's
genpy and the `rosbags` package do).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vla.convert.safe import require
from vla.data.format import MAX_PIXELS
from vla.errors import Damaged, SchemaError

TIMES = ("log", "publish", "header")
MAX_RECORD_BYTES = 512 << 20
MAX_CHUNK_BYTES = 1 << 30
"""Unpacked. Recorders write chunks of a few megabytes."""
MAX_DEPTH = 12
MAX_MEMBERS = 4096
"""Numbers in one message, and fields of it."""
_PIXELS = {"rgb8": 3, "bgr8": 3, "mono8": 1, "8UC1": 1, "8UC3": 3}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")


@dataclass(frozen=True)
class Message:
    """`body`: the decoded message: a ROS 2 message object, or plain JSON. `topic` is without its leading slash."""

    topic: str
    log_ns: int
    publish_ns: int
    body: Any
    where: str

    def time_ns(self, clock: str) -> int:
        """By `clock` (one of TIMES). SchemaError where a message has no stamp of its own."""
        if clock != "header":
            return self.log_ns if clock == "log" else self.publish_ns
        stamp = _get(_get(self.body, "header"), "stamp")
        seconds, nanoseconds = _get(stamp, "sec"), _get(stamp, "nanosec")
        if not isinstance(seconds, int) or not isinstance(nanoseconds, int):
            raise SchemaError(f"{self.where}: no header with a stamp; choose another `clock`")
        return seconds * 1_000_000_000 + nanoseconds

    @property
    def order(self) -> tuple[str, ...]:
        """The names beside the numbers, as sensor_msgs/JointState has them."""
        names = _get(self.body, "name")
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def messages(path: Path, wanted: frozenset[str] | None = None) -> Iterator[Message]:
    """The messages in the order of the file; of the topics that some name in `wanted` begins with, where it is given.

    Damaged where the file is cut, altered or makes claims beyond the limits. Topics in an encoding that is not read are left out,
    and an error where they are wanted.
    """
    records, exceptions = require("mcap.records", "mcap"), require("mcap.exceptions", "mcap")
    schemas: dict[int, Any] = {}
    channels: dict[int, Any] = {}
    decoders = _Decoders()
    try:
        for record in _records(path):
            if isinstance(record, records.Schema):
                schemas[record.id] = record
            elif isinstance(record, records.Channel):
                channels[record.id] = record
            elif isinstance(record, records.Message):
                channel = channels.get(record.channel_id)
                if channel is None:
                    raise Damaged(f"{path}: a message of channel {record.channel_id}, which the file does not declare")
                topic = channel.topic.strip("/")
                if wanted is not None and not any(name == topic or name.startswith(f"{topic}/") for name in wanted):
                    continue
                where = f"{path}: /{topic} at {record.log_time} ns"
                decode = decoders.of(channel, schemas.get(channel.schema_id), where, needed=wanted is not None)
                if decode is not None:
                    yield Message(topic, record.log_time, record.publish_time, decode(record.data), where)
    except (exceptions.McapError, struct.error, ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, (Damaged, SchemaError)):
            raise
        raise Damaged(f"{path} does not read as MCAP: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def flat(message: Message) -> dict[str, Any]:
    """Numbers (float64, int64 or bool arrays) and texts of a message by `topic/field/field`; headers and lists of messages
    are left out."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH or len(found) > MAX_MEMBERS:
            raise SchemaError(f"{message.where}: more than {MAX_MEMBERS} fields or {MAX_DEPTH} levels")
        if isinstance(value, (bool, int, float)):
            found[prefix] = np.asarray(value)
        elif isinstance(value, str):
            found[prefix] = value
        elif isinstance(value, (list, tuple, bytes)):
            if isinstance(value, bytes):
                value = list(value[: MAX_MEMBERS + 1])
            if value and len(value) <= MAX_MEMBERS and all(isinstance(item, (bool, int, float)) for item in value):
                found[prefix] = np.asarray(value)
        else:
            for name, item in _fields(value):
                if name != "header":
                    walk(f"{prefix}/{name}", item, depth + 1)

    walk(message.topic, message.body, 0)
    return found


def picture_of(message: Message) -> bytes | np.ndarray | None:
    """The picture of a message that is one: JPEG or PNG bytes (sensor_msgs/CompressedImage, foxglove.CompressedImage in JSON), or
    uint8 (H, W, 3) RGB or (H, W) (sensor_msgs/Image in rgb8, bgr8 or mono8; of 8UC3 nobody says the order, and it is kept)."""
    body = message.body
    data, compressed = _get(body, "data"), isinstance(_get(body, "format"), str)
    if compressed and isinstance(data, str):  # JSON
        try:
            data = base64.b64decode(data, validate=True)
        except ValueError:
            return None
    if not isinstance(data, bytes):
        return None
    if compressed:
        return data if data.startswith(_MAGIC) else None
    encoding, height, width, step = (_get(body, name) for name in ("encoding", "height", "width", "step"))
    channels = _PIXELS.get(encoding) if isinstance(encoding, str) else None
    if channels is None or not all(isinstance(value, int) for value in (height, width, step)):
        return None
    if not 0 < height * width <= MAX_PIXELS or step < width * channels or len(data) < height * step:
        raise Damaged(f"{message.where}: {len(data)} bytes for a picture of {height} x {width} x {channels}, {step} a row")
    rows = np.frombuffer(data, np.uint8, height * step).reshape(height, step)[:, : width * channels]
    if channels == 1:
        return rows
    pixels = rows.reshape(height, width, channels)
    return pixels[..., ::-1] if encoding == "bgr8" else pixels


class _Bounded:
    """A file that refuses to read more than it has: lengths inside records are believed by the library, and allocated."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.left = file, size

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise Damaged(f"{self.file.name} ends within a record, or a record claims {count} of {self.left} bytes that are left")
        self.left -= count
        return self.file.read(count)


class _Decoders:
    def __init__(self) -> None:
        self._ros2 = require("mcap_ros2.decoder", "mcap").DecoderFactory()
        self._known: dict[int, Callable[[bytes], Any] | None] = {}

    def of(self, channel: Any, schema: Any, where: str, needed: bool) -> Callable[[bytes], Any] | None:
        if channel.id not in self._known:
            json_text = channel.message_encoding == "json"
            self._known[channel.id] = _from_json if json_text else self._ros2.decoder_for(channel.message_encoding, schema)
        decode = self._known[channel.id]
        if decode is None and needed:
            kind = f"{channel.message_encoding} of schema {schema.encoding if schema else 'none'}"
            raise SchemaError(f"{where}: messages in {kind}; cdr of ros2msg, and json, are read")
        return decode


def _records(path: Path) -> Iterator[Any]:
    """All records of the data section, those inside chunks too."""
    stream_reader, records = require("mcap.stream_reader", "mcap"), require("mcap.records", "mcap")
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    whole = False
    with path.open("rb") as file:
        bounded: Any = _Bounded(file, path.stat().st_size)
        reader = stream_reader.StreamReader(bounded, emit_chunks=True, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)
        for record in reader.records:
            if isinstance(record, records.Chunk):
                yield from stream_reader.breakup_chunk(_unpacked(record, path), validate_crc=True)
            else:
                yield record
            whole = whole or isinstance(record, records.Footer)
    if not whole:
        raise Damaged(f"{path} has no end: the recorder was stopped, or the file was cut")


def _unpacked(chunk: Any, path: Path) -> Any:
    """The chunk without compression; never larger than it claims, nor than MAX_CHUNK_BYTES."""
    size = chunk.uncompressed_size
    if size > MAX_CHUNK_BYTES:
        raise Damaged(f"{path}: a chunk claims {size} bytes unpacked; at most {MAX_CHUNK_BYTES}")
    data = chunk.data
    if chunk.compression == "zstd":
        zstandard = require("zstandard", "mcap")
        claimed = zstandard.frame_content_size(data)
        if claimed > size:
            raise Damaged(f"{path}: a chunk of {size} bytes whose zstd frame claims {claimed}")
        try:
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        except zstandard.ZstdError as error:
            raise Damaged(f"{path}: a chunk does not unpack ({error})") from error
    elif chunk.compression == "lz4":
        lz4 = require("lz4.frame", "mcap")
        try:
            data = lz4.LZ4FrameDecompressor().decompress(data, max_length=size)
        except RuntimeError as error:
            raise Damaged(f"{path}: a chunk does not unpack ({error})") from error
    elif chunk.compression:
        raise Damaged(f"{path}: a chunk compressed with '{chunk.compression[:20]}'; lz4 and zstd are read")
    if len(data) != size:
        raise Damaged(f"{path}: a chunk unpacks to {len(data)} bytes; it claims {size}")
    return dataclasses.replace(chunk, compression="", data=data)


def _from_json(data: bytes) -> Any:
    return json.loads(data, parse_constant=_no_constant)


def _no_constant(text: str) -> float:
    return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[text]


def _get(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None) if name in getattr(value, "__slots__", ()) else None


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), item) for name, item in value.items())
    else:
        yield from ((name, getattr(value, name)) for name in getattr(value, "__slots__", ()))
