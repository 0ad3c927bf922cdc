"""Many pieces of bytes into a file or a pipe, without joining them."""

from __future__ import annotations

import os
from collections.abc import Sequence

AT_ONCE = 32
"""Pictures that one system call writes: a call each takes half as long again, and hundreds in one are slow too."""


def write(file: int, pieces: Sequence[bytes]) -> int:
    """All of them, and their bytes together: by one system call, or more where that one stops early (its limit, a pipe, a full disk, of
    which the next call says so). OSError as `os.write` raises it."""
    size, written = sum(map(len, pieces)), os.writev(file, pieces)
    rest = b"".join(pieces)[written:] if written < size else b""
    while rest:
        rest = rest[os.write(file, rest) :]
    return size
