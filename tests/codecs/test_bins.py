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
    decoded = codec.decode(codes, len(values), 1)[0, :, 0].numpy()
    np.testing.assert_allclose(decoded, centres[want], atol=1e-7)
    inside = np.abs(values) <= 1
    assert np.abs(decoded - values)[inside].max() <= 1 / 255 + 1e-7
