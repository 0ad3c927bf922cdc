"""Check sums of stored bytes: zlib's CRC-32, from the fastest library that is there."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32  # eight times as fast
except ImportError:  # no wheel for this machine
    from zlib import crc32

__all__ = ["crc32"]
