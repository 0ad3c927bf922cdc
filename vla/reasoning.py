"""Reasoning text as token ids: UTF-8 bytes, which need no vocabulary and read back exactly (ByT5, Xue et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NONE, END, FIRST_BYTE = 0, 1, 2
VOCABULARY = FIRST_BYTE + 256


def text_ids(texts: Sequence[str], length: int) -> np.ndarray:
    """int64 (B, length): bytes, then END where it fits, then NONE; a row of NONE for ''."""
    found = np.full((len(texts), length), NONE, dtype=np.int64)
    for row, text in enumerate(texts):
        if text:
            ids = [*(FIRST_BYTE + byte for byte in text.encode()), END][:length]
            found[row, : len(ids)] = ids
    return found


def text_of(ids: Sequence[int]) -> str:
    """What a row of ids says, up to its END; bytes that are no text become U+FFFD."""
    said = []
    for token in ids:
        if token < FIRST_BYTE:
            break
        said.append(int(token) - FIRST_BYTE)
    return bytes(said).decode(errors="replace")
