"""The cache that records: what it returns, what it keeps, and that running a layer again changes nothing."""

from __future__ import annotations

import pytest
import torch

from vla.backbones.recording_cache import RecordingCache


def pair(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 1, length, 4), torch.randn(2, 1, length, 4)


def test_the_prefix_comes_first_and_nothing_grows():
    key, value = pair(3)
    cache = RecordingCache(1, [key], [value])
    new = pair(2)
    for _ in range(3):  # a layer that is computed again in the backward pass
        keys, values = cache.update(*new, 0)
        assert torch.equal(keys, torch.cat([key, new[0]], 2)) and torch.equal(values, torch.cat([value, new[1]], 2))
    assert cache.get_seq_length() == cache.get_query_offset(0) == 3 and cache.get_mask_sizes(2, 0) == (5, 0)
    cache.see(0, new[0])
    states, keys, values = cache.close()
    assert keys[0].shape == (2, 1, 5, 4) and states[0] is new[0] and len(values) == 1


def test_a_closed_one_serves_but_does_not_record():
    cache = RecordingCache(1)
    first, second = pair(2), pair(2)
    cache.update(*first, 0)
    cache.see(0, first[0])
    _, keys, _ = cache.close()
    again, _ = cache.update(*second, 0)
    assert torch.equal(again, second[0]) and torch.equal(keys[0], first[0])


def test_a_layer_that_was_not_run_is_our_mistake():
    cache = RecordingCache(2)
    cache.update(*pair(2), 0)
    with pytest.raises(AssertionError, match="recorded no"):
        cache.close()


def test_the_prefix_is_cast_to_the_precision_of_the_call():
    key, value = pair(3)
    keys, _ = RecordingCache(1, [key], [value]).update(*(t.bfloat16() for t in pair(2)), 0)
    assert keys.dtype == torch.bfloat16
