"""What all decoders' losses are made by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tests.parts import TINY, contents
from vla.decoders.base import ActionDecoder, make_loss, total_loss
from vla.errors import UserError


def test_entries_of_weight_0_add_nothing_whatever_their_error():
    error_BT = torch.tensor([[1.0, float("inf")], [float("nan"), 3.0]], requires_grad=True)
    weight_BT = torch.tensor([[True, False], [False, True]])
    loss = make_loss({"l1": (error_BT, weight_BT)}, {"l1": 1.0})
    assert loss.parts["l1"].sum.item() == 4 and float(loss.parts["l1"].weight) == 2
    assert loss.sample_sum_B.tolist() == [1, 3] and loss.sample_weight_B.tolist() == [1, 1]
    loss.parts["l1"].sum.backward()
    assert error_BT.grad.tolist() == [[1, 0], [0, 1]]


def test_parts_of_another_name_are_named():
    loss = make_loss({"huber": (torch.zeros(2), torch.ones(2))}, {"huber": 1.0})
    with pytest.raises(UserError, match=r"\['huber'\], its weights\(\) say \['hubber'\]"):
        total_loss(loss, {"hubber": torch.ones(())})


def test_a_decoder_without_a_method_is_named():
    @dataclass(frozen=True)
    class Half:
        kind: ClassVar[str] = "test.half"

        def build(self, width, roster):
            return HalfDecoder()

    class HalfDecoder(ActionDecoder):
        def weights(self, target, noise):
            return {}

    with pytest.raises(UserError, match="test.half: .*abstract.*add-decoder"):
        contents(Half(), TINY).build()
