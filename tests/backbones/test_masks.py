"""The one rule in every implementation's form."""

from __future__ import annotations

import pytest
import torch

from vla.backbones.base import Tokens, prefix_tokens, suffix_tokens, visible
from vla.backbones.masks import attention_mask, flash_form, safe_rows
from vla.errors import UnknownName


def prefix(valid: list[list[bool]], causal: bool = False, dtype: torch.dtype = torch.float32) -> Tokens:
    mask = torch.tensor(valid)
    return prefix_tokens(torch.zeros(*mask.shape, 4, dtype=dtype), mask, causal=causal)


RAGGED = [[True, True, True, True], [True, True, False, False]]


def test_forms_say_the_same():
    tokens = prefix(RAGGED, causal=True)
    both = tokens.cat(suffix_tokens(tokens, torch.zeros(2, 4, 4), causal=False, samples=2))
    seen = attention_mask(both, both, "sdpa")
    assert seen.dtype == torch.bool and torch.equal(seen, visible(both, both))
    additive = attention_mask(both, both, "eager")
    assert torch.equal(additive == 0, seen) and additive[~seen].unique().tolist() == [torch.finfo(torch.float32).min]
    block = attention_mask(both, both, "flex_attention")
    b, q, k = torch.meshgrid(torch.arange(2), torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(block.mask_mod(b, torch.zeros_like(b), q, k), seen[:, 0])
    assert block.shape == (2, 1, 8, 8)


def test_the_additive_minimum_is_that_of_the_type():
    tokens = prefix(RAGGED, dtype=torch.bfloat16)
    assert attention_mask(tokens, tokens, "eager").min() == torch.finfo(torch.bfloat16).min


def test_rows_that_see_nothing_see_themselves():
    """Padding before anything valid; also where the keys of a cache come first."""
    tokens = Tokens(
        torch.zeros(1, 3, 4), torch.tensor([[False, True, True]]), *(torch.tensor([[0, 1, 2]]),) * 1, *(torch.zeros(1, 3).long(),) * 2
    )
    assert attention_mask(tokens, tokens, "sdpa")[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]
    late = safe_rows(torch.zeros(1, 1, 2, 5, dtype=torch.bool))
    assert late[0, 0].tolist() == [[False, False, False, True, False], [False, False, False, False, True]]


@pytest.mark.parametrize(("causal", "valid"), [(True, RAGGED), (False, RAGGED), (True, [[True, False, True, True]])])
def test_flash_takes_plain_prefixes(causal, valid):
    """Also with a gap: flash removes padding, and the order of what is left is the order of blocks."""
    tokens = prefix(valid, causal)
    found = flash_form(tokens, tokens)
    assert found is not None and found[1] is causal and torch.equal(found[0], tokens.valid_BS)


def test_flash_takes_a_suffix_that_sees_all_and_one_causal_step():
    tokens = prefix(RAGGED)
    block = suffix_tokens(tokens, torch.zeros(2, 3, 4), causal=False)
    assert flash_form(block, tokens.cat(block))[1] is False
    steps = suffix_tokens(tokens, torch.zeros(2, 3, 4), causal=True)
    assert flash_form(steps, tokens.cat(steps))[1] is True


def test_flash_does_not_take_groups_or_blocks():
    tokens = prefix(RAGGED)
    groups = suffix_tokens(tokens, torch.zeros(2, 4, 4), causal=False, samples=2)
    assert flash_form(groups, tokens.cat(groups)) is None
    joint = tokens.cat(suffix_tokens(tokens, torch.zeros(2, 2, 4), causal=False))
    assert flash_form(joint, joint) is None


def test_an_unknown_implementation_is_refused():
    tokens = prefix(RAGGED)
    with pytest.raises(UnknownName, match="attention implementation.*'xformers'.*sdpa"):
        attention_mask(tokens, tokens, "xformers")
