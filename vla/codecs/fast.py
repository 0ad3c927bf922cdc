"""FAST: frequencies of a chunk as text, compressed by byte-pair merges (Pertsch et al. 2025; pi0-FAST).

Each number's course over the chunk becomes its orthonormal DCT-II coefficients, times `scale`, rounded: most are 0 where motion is
smooth. Read frequency by frequency (all numbers of the lowest first), each integer less the smallest one is a character, and
byte-level BPE merges what recurs. Round-trip error: at most 0.5 sqrt(T) / scale a number (every coefficient rounded the wrong way), and
0.29 / scale r.m.s. where all coefficients are large; for those that lie in the 2,048 characters.

The files of the public tokenizer (`tokenizer.json`, `processor_config.json` of physical-intelligence/fast) are read and written. The
public decoder fails where a sequence spells too many or too few coefficients, and then returns zeros; here `allow` leaves only codes after
which the chunk can still be completed, so every decoded sequence has the right length. How often that changed a choice is reported.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vla.codecs.base import Codec, need_fitted
from vla.errors import SchemaError, UserError
from vla.roster import Roster
from vla.types import ActionSpec

FIT_CHUNKS = 4096
CHARACTERS = 2048
"""One or two bytes of UTF-8 each: coefficients outside are clipped, a range that no normalised chunk comes near at scale 10."""
NONE = -1
_LAYOUT = ("tokenizer.json", "processor_config.json")


@dataclass(frozen=True)
class FAST:
    """`vocabulary`: codes after merging. `scale`: of the coefficients before rounding. `tokenizer`: a folder in the public layout to
    take the merges from, instead of fitting them on the run's data; looked at once, before training."""

    kind: ClassVar[str] = "codec.fast"
    vocabulary: int = 1024
    scale: float = 10.0
    tokenizer: str = ""

    def build(self, roster: Roster) -> FASTCodec:
        if self.vocabulary < 256 or not self.scale > 0:
            raise UserError(
                f"FAST needs a vocabulary of at least 256 (every byte) and a positive scale; got {self.vocabulary}, {self.scale}"
            )
        return FASTCodec(self)


class FASTCodec(Codec):
    """Merges and bytes as buffers; the tokenizer and the tables for guided decoding follow from them."""

    merge_M3: Tensor
    byte_V: Tensor
    lowest: Tensor
    slot_axes = (None, None)
    whole = True
    fixed = False

    def __init__(self, config: FAST) -> None:
        super().__init__()
        self.config, self.vocabulary, self.scale = config, config.vocabulary, config.scale
        self.fits = 1 if config.tokenizer else FIT_CHUNKS
        self.register_buffer("merge_M3", torch.full((config.vocabulary, 3), NONE))  # (left, right, result) in order of rank
        self.register_buffer("byte_V", torch.full((config.vocabulary,), NONE))  # of the codes that are one byte
        self.register_buffer("lowest", torch.zeros((), dtype=torch.int64))  # the coefficient that character 0 stands for

    def length(self, horizon: int, width: int) -> int:
        return 2 * horizon * width  # every coefficient two bytes, none merged

    def encode(self, action_BTA: Tensor, spec: ActionSpec) -> Tensor:
        code_BN = torch.zeros(len(action_BTA), self.length(*action_BTA.shape[1:]), dtype=torch.int64)
        rows = [row for row, (T, _) in enumerate(_sizes(spec.mask_BTA)) if T]
        tokens = self._tables().tokenizer.encode_batch(self._texts(action_BTA, spec), add_special_tokens=False)
        for row, token in zip(rows, tokens, strict=True):
            code_BN[row, : len(token.ids)] = torch.tensor(token.ids)
        return code_BN.to(action_BTA.device)

    def decode(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        tables, exists_BN = self._tables(), self.exists(code_BN, spec).cpu()
        out_BTA = np.zeros(spec.mask_BTA.shape, dtype=np.float32)
        for row, (T, A) in enumerate(_sizes(spec.mask_BTA)):
            if T:
                spelled = b"".join(tables.spelled[code] for code in code_BN[row][exists_BN[row].to(code_BN.device)].tolist())
                coefficient = np.array([ord(character) for character in spelled.decode()], dtype=np.float64) + int(self.lowest)
                assert len(coefficient) == T * A, "codes that `allow` would not have allowed"
                out_BTA[row, :T, :A] = dct_matrix(T).T @ (coefficient.reshape(T, A) / self.scale)
        return torch.from_numpy(out_BTA).to(code_BN.device) * spec.mask_BTA

    def exists(self, code_BN: Tensor, spec: ActionSpec) -> Tensor:
        begun_V, open_V = (t.to(code_BN.device) for t in (self._tables().begun_V, self._tables().open_V))
        want_B1 = spec.mask_BTA.flatten(1).sum(1, keepdim=True)
        done_BN = (begun_V[code_BN].cumsum(1) >= want_B1) & (open_V[code_BN].cumsum(1) <= 0)
        return (done_BN.long().cumsum(1) - done_BN.long() == 0) & (want_B1 > 0)  # up to the code that completes the chunk

    def begin(self, spec: ActionSpec) -> Tensor:
        """Characters to come, and bytes that the character in hand still lacks."""
        want_B = spec.mask_BTA.flatten(1).sum(1)
        return torch.stack([want_B, torch.zeros_like(want_B)], dim=1)

    def allow(self, left_Bn: Tensor) -> Tensor:
        gain_BV, open_BV = self._after(left_Bn)
        rest_BV = left_Bn[:, :1] - gain_BV
        return (gain_BV >= 0) & torch.where(open_BV > 0, rest_BV >= 1, rest_BV >= 0) & (left_Bn > 0).any(1, keepdim=True)

    def spend(self, left_Bn: Tensor, code_B: Tensor) -> Tensor:
        gain_BV, open_BV = self._after(left_Bn)
        gain_B, open_B = (t.gather(1, code_B[:, None])[:, 0] for t in (gain_BV, open_BV))
        return torch.stack([left_Bn[:, 0] - gain_B, open_B], dim=1)

    def fit(self, action_BTA: Tensor, spec: ActionSpec) -> None:
        if self.byte_V.max() >= 0:
            return
        if self.config.tokenizer:
            self.read(self.config.tokenizer)
            return
        whole = [_coefficients(chunk_TA, self.scale) for chunk_TA in _chunks(action_BTA, spec)]
        if not whole:
            raise UserError("FAST found no labelled chunk to fit on; give the run a source with actions")
        lowest = int(min(coefficient.min() for coefficient in whole))
        self._adopt(_train([_spell(coefficient, lowest) for coefficient in whole], self.vocabulary), lowest)

    def read(self, folder: str | Path) -> None:
        """Takes over a tokenizer in the public layout. UserError where files are missing or the vocabulary or scale is another."""
        paths = [Path(folder) / name for name in _LAYOUT]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{folder} is no FAST tokenizer: {path.name} is missing (it needs {' and '.join(_LAYOUT)})")
        found, settings = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
        if settings["vocab_size"] != self.vocabulary or settings["scale"] != self.scale:
            raise UserError(
                f"{folder} has vocabulary {settings['vocab_size']} and scale {settings['scale']}; "
                f"write FAST(vocabulary={settings['vocab_size']}, scale={settings['scale']}, ...)"
            )
        self._adopt(found["model"], int(settings["min_token"]))

    def write(self, folder: str | Path) -> None:
        """Writes the public layout, which `transformers.PreTrainedTokenizerFast` and the published processor read."""
        folder, tables = Path(folder), self._tables()
        folder.mkdir(parents=True, exist_ok=True)
        tables.tokenizer.save(str(folder / _LAYOUT[0]))
        settings: dict[str, Any] = {"scale": self.scale, "vocab_size": self.vocabulary, "min_token": int(self.lowest)}
        settings |= {"action_dim": None, "time_horizon": None, "processor_class": "UniversalActionProcessor"}
        (folder / _LAYOUT[1]).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(kind, indent=2) + "\n", encoding="utf-8")

    def _adopt(self, model: dict[str, Any], lowest: int) -> None:
        """A byte-level BPE model as JSON -> buffers."""
        merge_M3, byte_V = torch.full_like(self.merge_M3, NONE), torch.full_like(self.byte_V, NONE)
        vocabulary, bytes_of = model["vocab"], _bytes_of_letters()
        if max(vocabulary.values(), default=0) >= self.vocabulary:
            raise SchemaError(f"a tokenizer of {max(vocabulary.values()) + 1} codes; FAST(vocabulary={self.vocabulary}) has fewer")
        for piece, code in vocabulary.items():
            if len(piece) == 1 and piece in bytes_of:
                byte_V[code] = bytes_of[piece]
        for rank, pair in enumerate(model["merges"]):
            left, right = pair.split(" ") if isinstance(pair, str) else pair
            merge_M3[rank] = torch.tensor([vocabulary[left], vocabulary[right], vocabulary[left + right]])
        self.merge_M3.copy_(merge_M3), self.byte_V.copy_(byte_V), self.lowest.fill_(lowest)
        tables = self._tables()
        ends, (opens, _) = ((tables.gain_2V == 1) & (tables.open_2V == 0)).any(1), (tables.open_2V > 0).any(1)
        if not ends[0] or (opens and not ends[1]):
            self.byte_V.fill_(NONE)
            raise SchemaError("this tokenizer lacks the single bytes that completing a chunk may need")

    def _texts(self, action_BTA: Tensor, spec: ActionSpec) -> list[str]:
        known = self._tables().known_C
        return [_spell(_coefficients(chunk_TA, self.scale), int(self.lowest), known) for chunk_TA in _chunks(action_BTA, spec)]

    def _after(self, left_Bn: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V) each: characters that a code completes from here (below 0: impossible), and bytes then lacking."""
        tables = self._tables()
        return tables.gain_2V.to(left_Bn.device)[left_Bn[:, 1]], tables.open_2V.to(left_Bn.device)[left_Bn[:, 1]]

    def _tables(self) -> _Tables:
        need_fitted(bool(self.byte_V.max() >= 0), "the FAST codec")
        key = (self.merge_M3.data_ptr(), self.merge_M3._version, self.byte_V._version)
        if getattr(self, "_kept", (None,))[0] != key:
            self._kept = (key, _Tables(self.merge_M3.cpu(), self.byte_V.cpu()))
        return self._kept[1]


class _Tables:
    """What follows from the merges: the tokenizer, what each code spells, and what it does to a half-spelled chunk."""

    def __init__(self, merge_M3: Tensor, byte_V: Tensor) -> None:
        letters = {value: letter for letter, value in _bytes_of_letters().items()}
        spelled: list[bytes] = [bytes([value]) if value >= 0 else b"" for value in byte_V.tolist()]
        merges = []
        for left, right, result in merge_M3.tolist():
            if result >= 0:
                pair = ["".join(letters[value] for value in spelled[code]) for code in (left, right)]
                merges.append((pair[0], pair[1]))
                spelled[result] = spelled[left] + spelled[right]
        vocabulary = {"".join(letters[value] for value in piece): code for code, piece in enumerate(spelled) if piece}
        self.spelled, self.tokenizer = spelled, _tokenizer(vocabulary, merges)
        self.known_C = _known(set(byte_V.tolist()))
        self.begun_V = torch.tensor([sum(not 0x80 <= value < 0xC0 for value in piece) for piece in spelled])
        self.open_V = torch.tensor([sum(1 if value >= 0xC0 else -(0x80 <= value < 0xC0) for value in piece) for piece in spelled])
        moves = [[_move(piece, lacking) for piece in spelled] for lacking in (0, 1)]
        self.gain_2V, self.open_2V = (torch.tensor([[move[i] for move in row] for row in moves]) for i in (0, 1))


def dct_matrix(steps: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix, float64 (frequency, time): scipy.fft.dct(norm="ortho") of an identity."""
    angle = np.pi / steps * (np.arange(steps) + 0.5) * np.arange(steps)[:, None]
    return np.cos(angle) * np.where(np.arange(steps) == 0, math.sqrt(1 / steps), math.sqrt(2 / steps))[:, None]


def _coefficients(chunk_TA: np.ndarray, scale: float) -> np.ndarray:
    return np.around(dct_matrix(len(chunk_TA)) @ chunk_TA * scale).astype(np.int64).ravel()


def _spell(coefficient: np.ndarray, lowest: int, known_C: np.ndarray | None = None) -> str:
    character = np.clip(coefficient - lowest, 0, CHARACTERS - 1)
    return "".join(map(chr, character if known_C is None else known_C[character]))


def _known(values: set[int]) -> np.ndarray:
    """int64 (CHARACTERS,): the nearest character whose bytes a tokenizer has (the lower of two). A public fit knows the bytes of its data
    alone, and would drop others in silence, which shifts every coefficient behind them."""
    known = np.array([c for c in range(CHARACTERS) if values.issuperset(chr(c).encode())], dtype=np.int64)
    if not len(known):
        return np.arange(CHARACTERS)
    after = np.searchsorted(known, np.arange(CHARACTERS)).clip(max=len(known) - 1)
    low, high = known[(after - 1).clip(min=0)], known[after]
    return np.where(np.abs(np.arange(CHARACTERS) - low) <= np.abs(high - np.arange(CHARACTERS)), low, high)


def _move(piece: bytes, lacking: int) -> tuple[int, int]:
    """(characters completed, bytes lacking) after a piece, or (-1, 0) where it does not continue UTF-8 of one or two bytes."""
    gain = 0
    for value in piece:
        if lacking:
            if not 0x80 <= value < 0xC0:
                return -1, 0
            gain, lacking = gain + 1, 0
        elif value < 0x80:
            gain += 1
        elif 0xC2 <= value < 0xE0:
            lacking = 1
        else:
            return -1, 0
    return (gain, lacking) if piece else (-1, 0)


def _sizes(mask_BTA: Tensor) -> list[tuple[int, int]]:
    """Steps and numbers that exist, per row; (0, 0) where there are none."""
    steps_B, width_B = mask_BTA.any(2).sum(1), mask_BTA.any(1).sum(1)
    return list(zip(steps_B.tolist(), width_B.tolist(), strict=True))


def _chunks(action_BTA: Tensor, spec: ActionSpec) -> list[np.ndarray]:
    """float64 (T, A) of every row that has numbers, at its own size."""
    rows = action_BTA.detach().double().cpu().numpy()
    return [chunk[:T, :A] for chunk, (T, A) in zip(rows, _sizes(spec.mask_BTA), strict=True) if T]


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _train(texts: list[str], vocabulary: int) -> dict[str, Any]:
    """Merges as the public `fit` finds them, over an alphabet of all bytes (the public one can miss some)."""
    from tokenizers import pre_tokenizers, trainers

    made = _tokenizer({}, [])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, show_progress=False, special_tokens=[], initial_alphabet=alphabet, max_token_length=10000
    )
    made.train_from_iterator(texts, trainer=trainer)
    return json.loads(made.to_str())["model"]


@lru_cache(maxsize=1)
def _bytes_of_letters() -> dict[str, int]:
    """The printable letter that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2) -> the byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(256 + n): value for n, value in enumerate(others)}
