"""Members of a tar that somebody else wrote: names, kinds and lengths checked before any is used, and nothing ever extracted.

Plain files alone pass. Links, devices, sparse files, absolute or `..` names, pickles, compressed archives, oversized headers and members
that reach past the end are refused by name; so is a file without its end mark, which was cut, be it between two members.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vla.errors import Damaged, SchemaError

BLOCK = 512
MAX_HEADER_BYTES = 64 << 10
"""A pax or GNU long-name header; real ones have a few hundred bytes."""
PICKLES = {"pkl", "pickle", "pyd", "pt", "pth", "joblib", "dill"}
"""Extensions that stock readers unpickle, or that hold pickles."""
_PAX, _PAX_ALL, _LONG_NAME = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME


@dataclass(frozen=True)
class Member:
    """One file in a tar: `key` and `ext` as webdataset splits its name, at the first dot of the last part; `offset`, `size` in bytes."""

    key: str
    ext: str
    offset: int
    size: int


def members(path: Path, file: IO[bytes]) -> Iterator[Member]:
    """The files of an open tar, in order; only headers are read. Damaged where it is cut, SchemaError for what has no place in it."""
    length = os.fstat(file.fileno()).st_size
    at, long_name, real_size = 0, "", None
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        if len(header) < BLOCK:
            raise Damaged(f"{path}: ends at {length} bytes without the mark that ends a tar: it was cut")
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            hint = "; a compressed tar cannot be read at random, unpack it first" if at == 0 else ""
            raise Damaged(f"{path}: no tar header at byte {at} ({error}){hint}") from error
        size = info.size if real_size is None else real_size
        if size < 0 or at + BLOCK + size > length:
            raise Damaged(f"{path}: '{_shown(info.name)}' claims {size} bytes at {at}, more than the file of {length} has")
        following = at + BLOCK + -(-size // BLOCK) * BLOCK
        if info.type in (_PAX, _PAX_ALL, _LONG_NAME):
            if size > MAX_HEADER_BYTES:
                raise SchemaError(f"{path}: a header of {size} bytes at {at}; at most {MAX_HEADER_BYTES} are read")
            data = file.read(size)
            if info.type == _LONG_NAME:
                long_name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type == _PAX:
                records = _pax(data, f"{path}: byte {at}")
                long_name, real_size = records.get("path", long_name), int(records["size"]) if "size" in records else None
        else:
            name = long_name or info.name
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                raise SchemaError(f"{path}: '{_shown(name)}' is a link, device or sparse file; shards hold plain files alone")
            if info.type != tarfile.DIRTYPE:
                yield _member(path, name, at + BLOCK, size)
            long_name, real_size = "", None
        at = following


def _member(path: Path, name: str, offset: int, size: int) -> Member:
    name = name.removeprefix("./")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise SchemaError(f"{path}: a member is named '{_shown(name)}', a path out of the archive")
    stem, _, ext = parts[-1].partition(".")
    ext = ext.lower()
    if PICKLES & set(ext.split(".")):
        raise SchemaError(f"{path}: '{_shown(name)}' is a pickle, which runs code when it is read; write it as .npy or .json")
    return Member("/".join([*parts[:-1], stem]), ext, offset, size)


def _pax(data: bytes, where: str) -> dict[str, str]:
    """Records of a pax header: `<length> <name>=<value>\\n`, one after the other (POSIX.1-2001)."""
    records, at = {}, 0
    while at < len(data) and data[at : at + 1] != b"\0":
        digits, _, _ = data[at : at + 20].partition(b" ")
        if not digits.isdigit() or not 0 < int(digits) <= len(data) - at:
            raise Damaged(f"{where}: a damaged pax header")
        name, _, value = data[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        records[name.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += int(digits)
    if any(name.startswith("GNU.sparse") for name in records):
        raise SchemaError(f"{where}: a sparse file; shards hold plain files alone")
    if not records.get("size", "0").isdigit():
        raise Damaged(f"{where}: a damaged pax header")
    return records


def _shown(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:120]
