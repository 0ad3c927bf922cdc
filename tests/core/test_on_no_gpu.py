"""Calls on a device without numbers: what a GPU would refuse, found without one (`tests/core/on_no_gpu.py`)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch.utils import backend_registration

from tests.core.on_no_gpu import cases
from vla.kept import Kept

REFUSED = {"mixture": ["DynamicOutputShapeException: aten.nonzero.default"]}
"""What cannot be captured: experts that a token is sent to are chosen by a number."""
QUICK = ("tokens", "masked", "pi0", "groot", "cogact", "mixture", "qwen3_vl", "qwen2_5_vl", "smolvlm")


needs_a_stand_in = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this torch knows no device that Python makes"
)


def found(*names: str) -> dict[str, dict[str, list[str]]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.on_no_gpu", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def unlike(told: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, list[str]]]:
    """The cases of which something else was found than `REFUSED` says."""
    return {name: parts for name, parts in told.items() if parts != dict.fromkeys(("sample", "fused", "train"), REFUSED.get(name, []))}


@needs_a_stand_in
def test_no_call_looks_at_a_number_or_leaves_a_tensor_behind():
    told = found(*QUICK)
    assert set(told) == set(QUICK)
    assert unlike(told) == {}


@needs_a_stand_in
@pytest.mark.slow
def test_nor_does_any_other():
    told = found(*(name for name in cases() if name not in QUICK))
    assert len(told) == len(cases()) - len(QUICK)
    assert unlike(told) == {}


def test_what_sizes_decide_is_made_once_and_serves_training():
    kept, made = Kept(), []

    def make():
        made.append(torch.arange(3.0))
        return {"here": made[-1], "there": made[-1] + 1}

    with torch.inference_mode():
        first = kept.on(torch.device("cpu"), "a", make, here=("here",))
    again = kept.on(torch.device("cpu"), "a", make, here=("here",))
    assert first is again and len(made) == 1
    weight = torch.ones(3, requires_grad=True)
    (weight * again["there"]).sum().backward()
    assert torch.equal(weight.grad, torch.tensor([1.0, 2.0, 3.0]))
    elsewhere = kept.on(torch.device("meta"), "a", make, here=("here",))
    assert elsewhere["there"].is_meta and not elsewhere["here"].is_meta and len(made) == 2
