"""FAST against scipy's DCT and Hugging Face's own reading of the public files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dct, idct

from vla.codecs.fast import FAST, dct_matrix
from vla.errors import UserError
from vla.roster import Roster
from vla.types import ActionSpec

T, A = 10, 3
ROSTER = Roster(("wide", "narrow"), T, A, 1)


def chunks(count: int, seed: int = 0) -> tuple[torch.Tensor, ActionSpec]:
    """Smooth chunks; every second row is of a robot with 7 steps of 2 numbers."""
    rng = np.random.default_rng(seed)
    time_T = np.arange(T)[None, :, None]
    chunk_BTA = np.sin(rng.uniform(0, 0.5, (count, 1, A)) * time_T + rng.uniform(0, 6, (count, 1, A))) * rng.uniform(0, 0.9, (count, 1, A))
    mask_BTA = torch.ones(count, T, A, dtype=torch.bool)
    mask_BTA[1::2, 7:], mask_BTA[1::2, :, 2:] = False, False
    return torch.from_numpy(chunk_BTA).float(), ActionSpec(torch.arange(count) % 2, mask_BTA)


@pytest.fixture(scope="module")
def codec():
    made = FAST(vocabulary=400).build(ROSTER)
    made.fit(*chunks(600))
    return made


def test_the_transform_is_scipys():
    np.testing.assert_allclose(dct_matrix(T), dct(np.eye(T), axis=0, norm="ortho"), atol=1e-14)


def test_round_trip_is_within_its_bound_and_shorter_than_bins(codec):
    chunk_BTA, spec = chunks(200, seed=1)
    code_BN = codec.encode(chunk_BTA, spec)
    back_BTA = codec.decode(code_BN, spec)
    error_BTA = (back_BTA - chunk_BTA).abs() * spec.mask_BTA
    assert error_BTA.max() <= 0.5 * T**0.5 / 10 + 1e-6
    assert (back_BTA[~spec.mask_BTA] == 0).all()
    assert codec.exists(code_BN, spec).sum(1)[::2].float().mean() < T * A / 2


def test_what_lies_outside_a_robots_numbers_moves_nothing(codec):
    chunk_BTA, spec = chunks(20, seed=2)
    dirty_BTA = torch.where(spec.mask_BTA, chunk_BTA, 7.0)
    assert torch.equal(codec.encode(chunk_BTA, spec), codec.encode(dirty_BTA, spec))


def test_hugging_face_reads_what_we_write_and_finds_the_same_codes(codec, tmp_path):
    """The published processor is a PreTrainedTokenizerFast over these characters, and scipy's inverse transform."""
    from transformers import PreTrainedTokenizerFast

    codec.write(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), clean_up_tokenization_spaces=False)
    chunk_BTA, spec = chunks(40, seed=3)
    code_BN, back_BTA = codec.encode(chunk_BTA, spec), codec.decode(codec.encode(chunk_BTA, spec), spec)
    lengths_B = codec.exists(code_BN, spec).sum(1)
    for row in range(0, 40, 2):
        coefficients = np.around(dct(chunk_BTA[row].double().numpy(), axis=0, norm="ortho") * 10)
        text = "".join(chr(int(c)) for c in np.maximum(coefficients.flatten() - int(codec.lowest), 0))
        ids = theirs(text)["input_ids"]
        assert ids == code_BN[row, : lengths_B[row]].tolist()
        spelled = np.array([ord(c) for c in theirs.decode(ids)]) + int(codec.lowest)
        np.testing.assert_allclose(back_BTA[row], idct(spelled.reshape(T, A) / 10, axis=0, norm="ortho"), atol=1e-6)


def test_a_public_folder_is_read_back_as_it_is(codec, tmp_path):
    codec.write(tmp_path)
    again = FAST(vocabulary=400, tokenizer=str(tmp_path)).build(ROSTER)
    again.fit(*chunks(2))
    chunk_BTA, spec = chunks(50, seed=4)
    assert torch.equal(again.encode(chunk_BTA, spec), codec.encode(chunk_BTA, spec))
    with pytest.raises(UserError, match="vocabulary=400"):
        FAST(vocabulary=512, tokenizer=str(tmp_path)).build(ROSTER).fit(*chunks(2))
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(UserError, match="processor_config.json is missing"):
        again.read(tmp_path)


def test_a_state_dict_holds_the_tokenizer(codec):
    fresh = FAST(vocabulary=400).build(ROSTER)
    with pytest.raises(UserError, match="not fitted"):
        fresh.encode(*chunks(2))
    fresh.load_state_dict(codec.state_dict())
    chunk_BTA, spec = chunks(30, seed=5)
    assert torch.equal(fresh.encode(chunk_BTA, spec), codec.encode(chunk_BTA, spec))


def test_fitting_is_deterministic(codec):
    again = FAST(vocabulary=400).build(ROSTER)
    again.fit(*chunks(600))
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), codec.buffers(), strict=True))


def test_guided_decoding_of_noise_always_has_the_right_length(codec):
    """Random preferences, 200 chunks: without the guide nearly none is a chunk, with it every one is."""
    rng = torch.Generator().manual_seed(0)
    _, spec = chunks(200)
    left_Bn, codes = codec.begin(spec), []
    for _ in range(codec.length(T, A)):
        if not (left_Bn > 0).any():
            break
        allowed_BC, active_B = codec.allow(left_Bn), (left_Bn > 0).any(1)
        assert allowed_BC[active_B].any(1).all() and not allowed_BC[~active_B].any()
        wish_BC = torch.rand(allowed_BC.shape, generator=rng).masked_fill(~allowed_BC, -1)
        codes.append(torch.where(active_B, wish_BC.argmax(1), 0))
        left_Bn = torch.where(active_B[:, None], codec.spend(left_Bn, codes[-1]), left_Bn)
    assert (left_Bn == 0).all()
    code_BN = torch.stack(codes, dim=1)
    code_BN = torch.nn.functional.pad(code_BN, (0, codec.length(T, A) - code_BN.shape[1]))
    back_BTA = codec.decode(code_BN, spec)
    assert torch.isfinite(back_BTA).all() and (back_BTA[~spec.mask_BTA] == 0).all()
