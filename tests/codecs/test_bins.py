"""The 256-bin codec against numpy, as OpenVLA's action tokenizer uses it."""

from __future__ import annotations

import numpy as np
import torch

from vla.codecs.bins import Bins


def test_codes_and_centres_are_numpys():
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    values = np.concatenate([np.random.default_rng(0).uniform(-1.2, 1.2, 5000), edges, [-1.0, 1.0]])
    want = np.clip(np.digitize(np.clip(values, -1, 1), edges) - 1, 0, 254)
    codec = Bins().build()
    assert codec.vocabulary == 255
    codes = codec.encode(torch.from_numpy(values).view(1, -1, 1))
    assert (codes.numpy()[0] == want).all()
    decoded = codec.decode(codes, torch.ones(1, len(values), 1, dtype=torch.bool))[0, :, 0].numpy()
    np.testing.assert_allclose(decoded, centres[want], atol=1e-7)
    inside = np.abs(values) <= 1
    assert np.abs(decoded - values)[inside].max() <= 1 / 255 + 1e-7


def test_every_third_step_interpolates_and_holds_at_a_robots_end():
    codec = Bins(every=3).build()
    ramp = torch.linspace(-0.9, 0.9, 10)[None, :, None].repeat(1, 1, 2)
    ramp[:, 8:, 1] = 0.7  # a narrow robot whose horizon is 8 steps: what stands after them must not matter
    mask = torch.ones(1, 10, 2, dtype=torch.bool)
    mask[:, 8:, 1] = False
    codes = codec.encode(ramp)
    assert codes.shape == (1, codec.length(10, 2)) == (1, 8)
    assert codec.mask(mask).tolist() == [[True] * 7 + [False]]
    decoded = codec.decode(codes, mask)
    np.testing.assert_allclose(decoded[0, :, 0], ramp[0, :, 0], atol=1 / 255)
    np.testing.assert_allclose(decoded[0, :7, 1], ramp[0, :7, 1], atol=1 / 255)
    assert decoded[0, 7, 1] == decoded[0, 6, 1] and (decoded[0, 8:, 1] == 0).all()
