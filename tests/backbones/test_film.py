"""FiLM in Prismatic's towers."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.backbones.families import prismatic
from vla.backbones.film import FiLM
from vla.types import Observation

FILM = FiLM(also=(2,))


def see(text: str, views: int = 2, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    roles = ("third_person", "wrist")[:views]
    return Observation({role: rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8) for role in roles}, np.zeros((1, 0)), text, "arm")


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    made = prismatic(film=FILM).build()
    for parameter in made.film.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@contextmanager
def silent(module: nn.Module):
    """What the module gives is zero."""
    handle = module.register_forward_hook(lambda *args: torch.zeros_like(args[-1]))
    yield
    handle.remove()


def test_scale_and_shift_stand_between_attention_and_mlp(backbone):
    """By the towers' own blocks, halved: attention without the MLP, the mean word's scale and shift, the MLP without attention."""
    inputs = backbone.collate([see("open the door"), see("push", seed=1)])
    words = backbone.language.embed_tokens(inputs["token_BS"])
    keep = inputs["token_valid_BS"] & (inputs["patch_BS"] < 0)
    closing = backbone.language.embed_tokens.weight[2]
    mean = torch.stack([torch.cat([row[k], closing[None]]).mean(0) for row, k in zip(words, keep, strict=True)])
    mean = mean.repeat_interleave(2, dim=0)  # two views each
    images = []
    with torch.no_grad():
        entering = lambda _, args: images.append(args[0])  # noqa: E731
        handles = [tower.patch_embed.register_forward_pre_hook(entering) for tower in backbone.vision.towers()]
        found, _ = backbone._see(inputs, 4)
        [handle.remove() for handle in handles]
        features = []
        for tower, film, image in zip(backbone.vision.towers(), backbone.film.values(), images, strict=True):
            x = tower.norm_pre(tower._pos_embed(tower.patch_embed(image)))
            for block, modulation in zip(tower.blocks, film, strict=True):
                with silent(block.mlp):
                    x = block(x)
                x = x * (1 + modulation.scale(mean)[:, None]) + modulation.shift(mean)[:, None]
                with silent(block.attn):
                    x = block(x)
            features.append(x[:, tower.num_prefix_tokens :])
        torch.testing.assert_close(found, backbone.projector(torch.cat(features, dim=-1)), atol=1e-5, rtol=1e-5)


def test_words_change_what_is_seen_and_neighbours_do_not(backbone):
    def features(*observations):
        with torch.no_grad():
            return backbone._see(backbone.collate(observations), 4)[0].unflatten(0, (len(observations), -1))

    first, longer = see("open"), see("push the door open and close it", seed=0)
    both = features(first, longer)
    torch.testing.assert_close(both[:1], features(first), atol=1e-5, rtol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3  # the same images


def test_a_pretrained_tower_starts_as_it_was(backbone):
    torch.manual_seed(0)
    fresh, plain = prismatic(film=FILM).build(), prismatic().build()
    assert plain.film is None
    left = fresh.load_state_dict(plain.state_dict(), strict=False)
    assert left.missing_keys == [name for name in fresh.state_dict() if name.startswith("film.")] and not left.unexpected_keys
    inputs = fresh.collate([see("open")])
    with torch.no_grad():
        torch.testing.assert_close(fresh.embed(inputs).x_BSD, plain.embed(inputs).x_BSD, atol=1e-6, rtol=1e-6)


def test_freezing_the_towers_leaves_their_modulation_free_and_checkpointing_changes_nothing(backbone):
    made = replace(backbone.config, freeze=("vision",)).build()
    made.load_state_dict(backbone.state_dict())
    inputs, found = made.collate([see("open"), see("close it")]), []
    for on in (False, True):
        made.set_gradient_checkpointing(on)
        made.zero_grad()
        made.train().embed(inputs).x_BSD.square().sum().backward()
        found.append([p.grad.clone() for p in made.film.parameters()])
        assert all(p.grad is None for p in made.vision.parameters())
    for a, b in zip(*found, strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b)
