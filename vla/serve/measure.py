"""How much a message would become, found from its headers alone before anything of it is built.

A byte of msgpack or JSON can become a list of 56 bytes; a message within the byte limit could fill the memory all the same. Whoever
sends numbers in bulk sends arrays, so that a lawful message has few items.
"""

from __future__ import annotations

from vla.serve.wire import Refusal

MAX_ITEMS = 4096
MAX_DEPTH = 8
MAX_CONTAINERS = 256
LONG = 1024
"""Bytes in a run that are worth not being copied."""

# Format bytes of msgpack (github.com/msgpack/msgpack/blob/master/spec.md): bytes of a fixed payload, or of the length in front.
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_BINARY = (0xC5, 0xC6)
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_PLAIN = (0xC0, 0xC2, 0xC3)


def _skip(byte: int) -> int:
    """Bytes of a plain value after its format byte; -1 for what has to be looked at."""
    if byte <= 0x7F or byte >= 0xE0 or byte in _PLAIN:
        return 0
    return byte & 31 if 0xA0 <= byte <= 0xBF else _FIXED.get(byte, -1)


_SKIP = tuple(map(_skip, range(256)))


def measure_msgpack(data: bytes) -> list[tuple[int, int, int]]:
    """Raises Refusal unless it is one whole msgpack value, within the limits, without extension types.

    Returns where the long runs of bytes lie, in their order: (format byte, first byte, end).
    """
    at, items, left = 0, 0, 1  # `left`: values still to come of the innermost list or map
    outer: list[int] = []
    runs: list[tuple[int, int, int]] = []
    try:
        while left or outer:
            if not left:
                left = outer.pop()
                continue
            left -= 1
            items += 1
            if items > MAX_ITEMS:
                raise Refusal("too_large", f"more than {MAX_ITEMS} items in one message; send numbers as arrays")
            byte = data[at]
            at += 1
            skip = _SKIP[byte]
            if skip >= 0:
                at += skip
                continue
            if byte <= 0x9F:
                inside = 2 * (byte & 15) if byte <= 0x8F else byte & 15
            else:
                width = _SIZED.get(byte) or _LISTS.get(byte) or _MAPS.get(byte)
                if width is None:
                    raise Refusal("malformed", f"format byte {byte:#x} is no part of the protocol")
                count = int.from_bytes(data[at : at + width], "big")
                at += width
                if byte in _SIZED:
                    if count >= LONG and byte in _BINARY:
                        runs.append((at - width - 1, at, at + count))
                    at += count
                    continue
                inside = count * (2 if byte in _MAPS else 1)
            if len(outer) >= MAX_DEPTH:
                raise Refusal("too_large", f"nested deeper than {MAX_DEPTH}")
            outer.append(left)
            left = inside
    except IndexError as error:
        raise Refusal("malformed", "the message ends too early") from error
    if at != len(data):
        raise Refusal("malformed", "the message ends too early" if at > len(data) else f"{len(data) - at} bytes after the message")
    return runs


def measure_json(data: bytes) -> None:
    """Raises Refusal for more lists, maps and items than a lawful request has. Counted over texts too, which may hold few of these."""
    containers = data.count(b"[") + data.count(b"{")
    if containers > MAX_CONTAINERS or data.count(b",") > MAX_ITEMS:
        raise Refusal("too_large", f"more than {MAX_CONTAINERS} lists and maps or {MAX_ITEMS} items; send numbers as arrays")
