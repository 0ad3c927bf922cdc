"""Back into the public layouts: what was imported comes out with the same weights and acts the same when it is read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.interop import layouts, pi0_layouts
from vla.checkpoint import load_checkpoint, save_checkpoint
from vla.errors import UserError
from vla.interop.export import export_checkpoint
from vla.interop.formats import import_checkpoint
from vla.interop.source import Source
from vla.policy import Policy

CAMERAS = ("third_person", "wrist")


@torch.no_grad()
def test_openvla_there_and_back(tmp_path):
    robot = layouts.robot()
    theirs = layouts.openvla(tmp_path / "theirs")
    import_checkpoint("openvla", Source(tmp_path / "theirs", robot, key="bridge_orig"), tmp_path / "ours")
    said = export_checkpoint("openvla", tmp_path / "ours", tmp_path / "back")
    assert any("copy the *.py files" in line for line in said)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert {name: t.shape for name, t in back.items()} == {name: t.shape for name, t in theirs.items()}
    unread = ("featurizer.blocks.2.", "fused_featurizer.blocks.3.", "featurizer.norm.", "attn_pool.", "fc_norm.")
    moved = [name for name in theirs if not torch.equal(back[name], theirs[name]) and not any(part in name for part in unread)]
    assert not moved
    import_checkpoint("openvla", Source(tmp_path / "back", robot), tmp_path / "again")
    seen = layouts.observation(robot)
    want, found = (Policy.load(tmp_path / name).act(seen).action_TA for name in ("ours", "again"))
    np.testing.assert_allclose(found, want, atol=1e-12)
    contents, weights = load_checkpoint(tmp_path / "ours")
    weights["decoder.codes.slot_ND"] = weights["decoder.codes.slot_ND"] + 1
    save_checkpoint(tmp_path / "trained", contents, weights)
    with pytest.raises(UserError, match="OpenVLA's layout has no place for decoder.codes.slot_ND: it has been trained here"):
        export_checkpoint("openvla", tmp_path / "trained", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    with pytest.raises(UserError, match="is no pi0 or pi0.5"):
        export_checkpoint("lerobot_policy", tmp_path / "ours", tmp_path / "never")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_pi0_in_lerobots_layout(kind, tmp_path):
    from tests.interop.test_pi0 import pi05_tensors

    robot, model = layouts.robot(CAMERAS, frame="from_state"), pi0_layouts.library_pi0()
    tensors = pi0_layouts.openpi_names(model) if kind == "pi0" else pi05_tensors(model)
    pi0_layouts.openpi(tmp_path / "openpi", tensors, 7, 8)
    import_checkpoint(kind, Source(tmp_path / "openpi", robot, CAMERAS), tmp_path / "ours")
    export_checkpoint("lerobot_policy", tmp_path / "ours", tmp_path / "lerobot")
    back = load_file(tmp_path / "lerobot" / "model.safetensors")
    assert {f"model.{name}" for name in tensors} | {f"model.{pi0_layouts.HEAD}"} >= set(back) - {
        "model.paligemma_with_expert.gemma_expert.lm_head.weight"
    }
    for name, tensor in tensors.items():
        if "state_proj.weight" in name:  # of numbers that no robot has, which are always 0
            assert torch.equal(back[f"model.{name}"][:, :8], tensor[:, :8]) and not back[f"model.{name}"][:, 8:].any()
        elif ".norm.dense." in name:  # nothing is gated by the last norm
            assert torch.equal(back[f"model.{name}"][: len(tensor) // 3 * 2], tensor[: len(tensor) // 3 * 2])
        else:
            torch.testing.assert_close(back[f"model.{name}"], tensor, atol=2e-7, rtol=0)
    import_checkpoint(kind, Source(tmp_path / "lerobot", robot, CAMERAS), tmp_path / "again")
    seen = layouts.observation(robot)
    want, found = (Policy.load(tmp_path / name).act_batch([seen], [0])[0].action_TA for name in ("ours", "again"))
    np.testing.assert_allclose(found, want, atol=1e-5)
