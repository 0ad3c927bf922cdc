"""UniVLA's and LAPA's quantizers (`genie/modules/blocks.py`, `laq_model/nsvq.py`) on hand-worked cases, and their policies' sizes."""

from __future__ import annotations

import torch

from tests.parts import TINY
from vla.codecs.quantizer import NSVQ, VQ
from vla.noise import Noise
from vla.presets import preset
from vla.roster import Roster


def test_nearest_entry_straight_through_and_commitment():
    """Entries 0 and (3, 4); latent (1, 0) is nearer to 0: commitment 0.25 * mean((1, 0)^2) = 0.125, gradient 0.25 * 2 (z - q) / 2."""
    quantizer = VQ(codes=2, vocabulary=2, width=2).build().eval()
    quantizer.entry_NKd.copy_(torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [-1.0, -1.0]]]))
    latent_BZ = torch.tensor([[1.0, 0.0, -0.9, -0.9]], requires_grad=True)
    found = quantizer(latent_BZ)
    assert found.code_BN.tolist() == [[0, 1]] and found.action_BZ.tolist() == [[0, 0, -1, -1]]
    torch.testing.assert_close(found.commitment_B, torch.tensor([0.25 * (1 + 0 + 0.01 + 0.01) / 4]))
    pull = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (found.action_BZ * pull).sum().backward(retain_graph=True)
    torch.testing.assert_close(latent_BZ.grad, pull[None])  # straight through
    latent_BZ.grad = None
    found.commitment_B.sum().backward()
    torch.testing.assert_close(latent_BZ.grad, 0.25 * 2 / 4 * torch.tensor([[1.0, 0.0, 0.1, 0.1]]))


def test_noise_substitution_keeps_the_errors_length():
    """NSVQ: z + |z - e| v / |v|: as far from the latent as the entry is; a gradient to the entry, through the length."""
    quantizer = NSVQ(codes=1, vocabulary=2, width=2, dead_below=0.0).build().train()
    with torch.no_grad():
        quantizer.entry_NKd.copy_(torch.tensor([[[0.0, 0.0], [30.0, 40.0]]]))
    latent_BZ = torch.tensor([[3.0, 4.0], [27.0, 36.0]])
    noise = Noise(torch.arange(2), seed=1)
    found = quantizer(latent_BZ, noise)
    assert found.code_BN[:, 0].tolist() == [0, 1]
    torch.testing.assert_close((found.action_BZ - latent_BZ).norm(dim=1), torch.tensor([5.0, 5.0]))
    direction_BZ = torch.nn.functional.normalize(noise.normal("nsvq0", 2), dim=1)
    found.action_BZ.sum().backward()
    # d|z - e| / de = (e - z) / |z - e|, times the sum of the direction's parts.
    away_BZ = (quantizer.entry_NKd[0, [0, 1]].detach() - latent_BZ) / 5 * direction_BZ.sum(1, keepdim=True)
    torch.testing.assert_close(quantizer.entry_NKd.grad[0], away_BZ)
    assert torch.equal(quantizer.eval()(latent_BZ).action_BZ, quantizer.entry_NKd[0].detach())


def test_published_sizes():
    """UniVLA: 4 codes of 16 entries x 128, beta 0.25, chunks of 12. LAPA: 4 codes of 8 entries x 32."""
    univla, lapa = VQ(codes=4, vocabulary=16, width=128).build(), NSVQ().build()
    assert (univla.entry_NKd.shape, univla.beta) == ((4, 16, 128), 0.25)
    assert lapa.entry_NKd.shape == (4, 8, 32)
    for name, entries, quantizer in (("univla", 16, univla), ("lapa", 8, lapa)):
        chosen = preset(name)
        decoder = chosen.decoder.build(TINY.width, Roster(("arm",), chosen.horizon, 7, 1))
        assert (decoder.latent_codes, decoder.head.out_features) == (quantizer.codes, entries)
    assert preset("univla").horizon == 12
