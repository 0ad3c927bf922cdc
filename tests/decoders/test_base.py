"""What all decoders' losses are made by."""

from __future__ import annotations

import torch

from vla.decoders.base import make_loss


def test_entries_of_weight_0_add_nothing_whatever_their_error():
    error_BT = torch.tensor([[1.0, float("inf")], [float("nan"), 3.0]], requires_grad=True)
    weight_BT = torch.tensor([[True, False], [False, True]])
    loss = make_loss({"l1": (error_BT, weight_BT)}, {"l1": 1.0})
    assert loss.parts["l1"].sum.item() == 4 and float(loss.parts["l1"].weight) == 2
    assert loss.sample_sum_B.tolist() == [1, 3] and loss.sample_weight_B.tolist() == [1, 1]
    loss.parts["l1"].sum.backward()
    assert error_BT.grad.tolist() == [[1, 0], [0, 1]]
