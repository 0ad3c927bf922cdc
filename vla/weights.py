"""Weights on disk: safetensors in one file, or in several with an index, as the Hugging Face libraries lay them out.

    model.safetensors
    model-00001-of-00003.safetensors ...  model.safetensors.index.json   {"metadata": {"total_size": ...}, "weight_map": {name: file}}

Files are mapped into memory and handed on one at a time, so that loading a model takes its own size and not twice that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla.errors import Damaged, UserError
from vla.tensor_file import write_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
"""The hub's own convention; a file of a larger model holds as many whole tensors as fit."""
_PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Row:
    """One stored tensor: `dtype` as safetensors spells it (F32, BF16)."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def save_weights(folder: Path, weights: Mapping[str, Tensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> dict[str, str]:
    """Into one file where they fit, else into several and an index, in the order in which they come. The sha256 of each file of weights."""
    if max_shard_bytes < 1:
        raise UserError(f"a file of weights cannot be of {max_shard_bytes} bytes; give a size such as 5GB")
    parts: list[list[str]] = [[]]
    held = 0
    for name, tensor in weights.items():
        if parts[-1] and held + tensor.nbytes > max_shard_bytes:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += tensor.nbytes
    if len(parts) == 1:
        return {WEIGHTS: save_tensors(folder / WEIGHTS, weights)}
    files = {f"model-{number:05d}-of-{len(parts):05d}.safetensors": names for number, names in enumerate(parts, 1)}
    digests = {file: save_tensors(folder / file, {name: weights[name] for name in names}) for file, names in files.items()}
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    return digests


def read_weights(folder: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors, a file at a time; each is a view of the mapped file, and read when it is used."""
    for file in weight_files(folder):
        with _opened(folder / file) as tensors:
            yield {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  # no mapping


def weight_table(folder: Path) -> dict[str, Row]:
    """Name -> where and what each tensor is, from the files' headers alone. Damaged where the index and the files disagree."""
    found: dict[str, Row] = {}
    for file in weight_files(folder):
        with _opened(folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(name)
                found[name] = Row(file, str(part.get_dtype()), tuple(part.get_shape()))
    if (folder / INDEX).is_file():
        listed = _weight_map(folder)
        wrong = sorted(name for name in {*listed, *found} if name not in found or listed.get(name) != found[name].file)
        if wrong:
            raise Damaged(f"{folder / INDEX} and the files disagree about '{wrong[0]}'; copy the checkpoint again")
    return found


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the weights, in order."""
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    files = sorted(set(_weight_map(folder).values()))
    for file in files:
        if not _PART.fullmatch(file):  # a name such as ../other would leave the folder
            raise Damaged(f"{folder / INDEX}: '{file}' is no file of weights")
    return files


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """safetensors, written from memory (`vla.tensor_file`). Its sha256. OSError says how many bytes were needed."""
    try:
        return write_tensors(path, tensors)
    except OSError as error:
        needed = sum(tensor.nbytes for tensor in tensors.values())
        raise OSError(error.errno, f"{error.strerror}: {path.name} needs {needed / 1e6:.1f} MB") from error


def parse_size(text: str) -> int:
    """`5GB`, `200MB`, `1000` -> bytes, in powers of ten."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()]) if match else 0
    if size < 1:
        raise UserError(f"'{text}' is no size; give one such as 5GB or 200MB")
    return size


def _weight_map(folder: Path) -> dict[str, str]:
    try:
        rows = json.loads((folder / INDEX).read_text())["weight_map"]
        return {str(name): str(file) for name, file in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder / INDEX} is not readable ({error}); copy the checkpoint again") from error


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path} is no readable file of weights ({error}); copy the checkpoint again") from error
