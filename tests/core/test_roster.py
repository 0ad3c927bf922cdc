"""Weights carried to another roster: known robots act as before, new ones start fresh."""

from __future__ import annotations

import pytest
import torch

from tests.parts import DECODERS, ROBOTS, SOURCES, contents, robot, samples
from vla.errors import SchemaError, UnknownName
from vla.noise import Noise
from vla.roster import Roster, carry_over


@pytest.mark.parametrize("name", ["parallel", "tokens", "tokens_coarse", "masked", "latent"])
def test_a_wider_new_robot_leaves_the_old_ones_actions_unchanged(name):
    torch.manual_seed(0)
    old = contents(DECODERS[name])
    wide = robot("newcomer", 9, 12, 6)
    new = contents(DECODERS[name], robots=(wide, *reversed(ROBOTS)))
    before, after = old.build().eval(), new.build().eval()
    report = carry_over(after, new.roster, before.state_dict(), old.roster)
    assert report["fresh"] == ["newcomer"] and report["adapted"]
    rows = samples(6)
    first, second = old.collate(before).samples(rows, SOURCES), new.collate(after).samples(rows, SOURCES)
    with torch.inference_mode():
        a, b = (m.sample(x, Noise(x.position_B)) for m, x in ((before, first), (after, second)))
    T, A = a.shape[1:]
    torch.testing.assert_close(a, b[:, :T, :A], atol=1e-5, rtol=1e-5)


def test_weights_of_another_model_are_named():
    old = contents(DECODERS["parallel"])
    other = contents(DECODERS["latent"])
    with pytest.raises(SchemaError, match="another model: missing"):
        carry_over(other.build(), other.roster, old.build().state_dict(), old.roster)
    with pytest.raises(UnknownName, match="Choices: narrow, wide"):
        Roster.of(ROBOTS).index("someone")
