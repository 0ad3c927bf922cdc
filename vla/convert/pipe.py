"""Episodes through a pipe between processes: pictures as the bytes that they are, behind all else as multiprocessing sends objects.

A connection puts a whole message together before it sends it, and again when it arrives: for an episode of pictures four times the
processor's time of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from vla.data import gather
from vla.types import Episode, Frames, VideoFrames

CUT = (EOFError, OSError)
"""What `receive` raises where the sender died, before or in the middle of it."""


def send(connection: Connection, what: Any, episode: Episode | None) -> None:
    """Any small object, and an episode with its pictures. ConnectionError where nobody receives any more."""
    cameras = {} if episode is None else {camera: _bytes_of(frames) for camera, frames in episode.frames.items()}
    if episode is not None:
        episode = replace(episode, frames={camera: _with(frames, ()) for camera, frames in episode.frames.items()})
    connection.send((what, episode, {camera: [len(piece) for piece in pieces] for camera, pieces in cameras.items()}))
    every = [piece for pieces in cameras.values() for piece in pieces]
    for first in range(0, len(every), gather.AT_ONCE):
        gather.write(connection.fileno(), every[first : first + gather.AT_ONCE])


def receive(connection: Connection) -> tuple[Any, Episode | None]:
    """What was sent."""
    what, episode, sizes = connection.recv()
    if episode is not None:
        pieces = {camera: tuple(_exactly(connection.fileno(), every)) for camera, every in sizes.items()}
        episode = replace(episode, frames={camera: _with(frames, pieces[camera]) for camera, frames in episode.frames.items()})
    return what, episode


def _exactly(file: int, sizes: Sequence[int]) -> Iterator[bytes]:
    for size in sizes:
        data = os.read(file, size) if size else b""
        if len(data) < size:
            whole = bytearray(data)
            while len(whole) < size:
                more = os.read(file, min(size - len(whole), 1 << 20))
                if not more:
                    raise EOFError(f"{len(whole)} of {size} bytes of a picture")
                whole += more
            data = bytes(whole)
        yield data


def _bytes_of(frames: Frames | VideoFrames) -> tuple[bytes, ...]:
    return frames.jpeg if isinstance(frames, Frames) else (frames.mp4,)


def _with(frames: Frames | VideoFrames, pieces: tuple[bytes, ...]) -> Frames | VideoFrames:
    return replace(frames, jpeg=pieces) if isinstance(frames, Frames) else replace(frames, mp4=b"".join(pieces))
