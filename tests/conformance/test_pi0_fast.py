"""FAST as published (`processing_action_tokenizer.py` of physical-intelligence/fast, openpi `tokenizer.py`), by hand and on public files.

The transform against scipy and the files against transformers: tests/codecs/test_fast.py.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vla.codecs.fast import FAST
from vla.decoders.dit_time import time_embedding
from vla.presets import preset
from vla.roster import Roster
from vla.types import ActionSpec

T, A = 4, 2


def spec(count: int) -> ActionSpec:
    return ActionSpec(torch.zeros(count, dtype=torch.int64), torch.ones(count, T, A, dtype=torch.bool))


def public_fit(texts: list[str], folder, lowest: int, vocabulary: int, seen: str) -> None:
    """A folder as the published `fit` writes it: its alphabet is the characters of the data, so bytes may be missing."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, initial_alphabet=list(seen), max_token_length=10000, show_progress=False
    )
    made.train_from_iterator(texts, trainer=trainer)
    made.save(str(folder / "tokenizer.json"))
    settings = {"scale": 10, "vocab_size": vocabulary, "min_token": lowest, "action_dim": None, "time_horizon": None}
    (folder / "processor_config.json").write_text(json.dumps(settings))


@pytest.fixture
def public(tmp_path):
    """Characters '0'..'z', of which character 0 stands for coefficient -60."""
    texts = ["".join(chr(48 + (7 * i + 3 * j) % 75) for j in range(T * A)) for i in range(300)]
    public_fit(texts, tmp_path, lowest=-60, vocabulary=300, seen="".join(map(chr, range(48, 123))))
    codec = FAST(vocabulary=300, tokenizer=str(tmp_path)).build(Roster(("arm",), T, A, 1))
    codec.read(tmp_path)
    return codec, Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def test_a_hand_worked_chunk(public):
    """0.5 for 4 steps: sqrt(4) * 0.5 * 10 = 10 at frequency 0. An alternation of +-0.5: (0, 3.827, 0, 9.239) rounds to (0, 4, 0, 9).

    Frequency by frequency: 10 0 | 0 4 | 0 0 | 0 9, less -60, as characters.
    """
    codec, theirs = public
    action_BTA = torch.tensor([[0.5, 0.5], [0.5, -0.5], [0.5, 0.5], [0.5, -0.5]])[None]
    coefficients = [10, 0, 0, 4, 0, 0, 0, 9]
    text = "".join(chr(value + 60) for value in coefficients)
    ids = theirs.encode(text, add_special_tokens=False).ids
    code_BN = codec.encode(action_BTA, spec(1))
    assert codec.exists(code_BN, spec(1)).sum() == len(ids) and code_BN[0, : len(ids)].tolist() == ids
    frequency = np.cos(np.pi / T * np.outer(np.arange(T), np.arange(T) + 0.5)) * math.sqrt(2 / T)
    frequency[0] = math.sqrt(1 / T)
    want_TA = frequency.T @ (np.array(coefficients).reshape(T, A) / 10)
    np.testing.assert_allclose(codec.decode(code_BN, spec(1))[0].numpy(), want_TA, atol=1e-6)
    np.testing.assert_allclose(want_TA[:, 0], 0.5, atol=1e-12)


def test_a_coefficient_that_a_public_tokenizer_never_saw_goes_to_the_nearest_it_knows(public):
    """The published code drops its character, and the whole chunk decodes to zeros; ours keeps its length and its neighbours."""
    codec, theirs = public
    action_BTA = torch.full((1, T, A), 0.1)
    action_BTA[..., 1] = -0.9  # coefficient -18 -> character 42, below the first known one (48, coefficient -12)
    assert len(theirs.decode(theirs.encode("".join(chr(v + 60) for v in (2, -18, 0, 0, 0, 0, 0, 0))).ids)) < T * A
    code_BN = codec.encode(action_BTA, spec(1))
    back_TA = codec.decode(code_BN, spec(1))[0]
    np.testing.assert_allclose(back_TA[:, 0], 0.1, atol=1e-6)
    np.testing.assert_allclose(back_TA[:, 1], -12 / 10 / math.sqrt(T), atol=1e-6)


def test_guided_decoding_needs_only_the_bytes_that_a_public_tokenizer_has(public):
    codec, _ = public
    left_Bn, draw, codes = codec.begin(spec(20)), torch.Generator().manual_seed(0), []
    while (left_Bn > 0).any():
        allowed_BV = codec.allow(left_Bn)
        active_B = (left_Bn > 0).any(1)
        assert allowed_BV[active_B].any(1).all()
        code_B = (torch.rand(allowed_BV.shape, generator=draw) * allowed_BV).argmax(1)
        left_Bn = torch.where(active_B[:, None], codec.spend(left_Bn, code_B), left_Bn)
        codes.append(torch.where(active_B, code_B, 0))
    code_BN = torch.nn.functional.pad(torch.stack(codes, 1), (0, codec.length(T, A) - len(codes)))
    assert torch.isfinite(codec.decode(code_BN, spec(20))).all() and codec.exists(code_BN, spec(20)).any(1).all()


def test_published_settings():
    """Released tokenizer: scale 10, 2,048 codes; the class's default is 1,024. pi0's times: periods of 4e-3 .. 4.0."""
    codec = preset("pi0_fast").decoder.codec.build(Roster(("arm",), 10, 7, 1))
    assert (codec.scale, codec.vocabulary, FAST().vocabulary) == (10, 2048, 1024)
    half = time_embedding(torch.tensor([0.0, 4e-3, 1.0, 2.0, 4.0]), 64)
    np.testing.assert_allclose(half[1, [0, 32]], [0, 1], atol=1e-5)  # one whole period of the shortest
    np.testing.assert_allclose(half[2:, 31], [1, 0, 0], atol=1e-5)  # a quarter, a half, a whole one of the longest
    np.testing.assert_allclose(half[2:, 63], [0, -1, 1], atol=1e-5)
