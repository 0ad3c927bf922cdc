"""Cached latent-action codes of a dataset: one row per anchor, beside the shards, tied to the model that made them.

<dataset>/latents/<hash>.npy     int16 or int32 (anchors, N), in storage order; a row of -1 has no code
<dataset>/latents/<hash>.json    the model's whole hash, the dataset's digest, shape, and what the writer adds
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla.data import format as fmt
from vla.data.reader import Dataset
from vla.errors import Damaged, SchemaError, StatsMissing, UserError


def write_latents(dataset: Dataset, model_hash: str, codes_XN: np.ndarray, meta: Mapping[str, Any] | None = None) -> Path:
    """Stores integer codes for all anchors of a dataset (held-out ones included), in storage order; -1 rows mean none."""
    codes_XN = np.asarray(codes_XN)
    if codes_XN.ndim != 2 or len(codes_XN) != dataset.anchors or codes_XN.dtype.kind not in "iu":
        raise SchemaError(f"{dataset.info.name}: codes {codes_XN.dtype} {codes_XN.shape}; want integers ({dataset.anchors}, N)")
    if codes_XN.size and (codes_XN.min() < -1 or codes_XN.max() > np.iinfo(np.int32).max):
        raise SchemaError(f"{dataset.info.name}: codes {codes_XN.min()}..{codes_XN.max()} are out of range")
    stem = _stem(dataset, model_hash)
    stem.parent.mkdir(exist_ok=True)
    small = not codes_XN.size or codes_XN.max() <= np.iinfo(np.int16).max
    buffer = io.BytesIO()
    np.save(buffer, codes_XN.astype(np.int16 if small else np.int32), allow_pickle=False)
    data = buffer.getvalue()
    record = {
        "model_hash": model_hash,
        "dataset": dataset.digest,
        "shape": list(codes_XN.shape),
        "sha256": hashlib.sha256(data).hexdigest(),
        "meta": dict(meta or {}),
    }
    fmt.write_atomic(stem.with_suffix(".npy"), data)
    fmt.write_atomic(stem.with_suffix(".json"), fmt.to_json(record, "latents"))
    return stem.with_suffix(".npy")


def read_latents(dataset: Dataset, model_hash: str) -> np.ndarray:
    """int (anchors, N), memory-mapped. StatsMissing where this model made none; Damaged where they are not this dataset's."""
    stem = _stem(dataset, model_hash)
    if not stem.with_suffix(".json").is_file():
        have = sorted(path.stem for path in stem.parent.glob("*.json")) or "none"
        raise StatsMissing(f"{dataset.folder}: no latent codes of model {model_hash[:12]}; it has {have}. Run `vla label`.")
    try:
        record = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        same = (record["model_hash"], record["dataset"]) == (model_hash, dataset.digest)
        shape = tuple(record["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{stem}.json is damaged: {error}. Run `vla label` again.") from error
    if not same:
        raise Damaged(f"{stem}.json is of another model or another version of the dataset. Run `vla label` again.")
    try:
        codes_XN = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Damaged(f"{stem}.npy does not load: {error}. Run `vla label` again.") from error
    if codes_XN.shape != shape or len(codes_XN) != dataset.anchors or codes_XN.dtype not in (np.int16, np.int32):
        raise Damaged(f"{stem}.npy has shape {codes_XN.shape}; wanted {shape} for {dataset.anchors} anchors. Run `vla label` again.")
    return codes_XN


def _stem(dataset: Dataset, model_hash: str) -> Path:
    if len(model_hash) < 12 or not model_hash.isalnum():
        raise UserError(f"'{model_hash}' is no model hash: give at least 12 hexadecimal digits")
    return dataset.folder / "latents" / model_hash[:12]
