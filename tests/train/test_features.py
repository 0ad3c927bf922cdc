"""Features of a frozen backbone: the same training without running it, and a refusal where it would not be the same."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backbones.families import paligemma, qwen3, smolvlm
from tests.train.test_checkpoint import Told
from tests.train.test_loop import rows
from tests.train.toy import MODEL, WIDE, episode, toy_run
from vla.backbones.remembered import Reads
from vla.data import assemble as assembling
from vla.data.augment import PI0
from vla.data.mixture import Mixture
from vla.data.shard import DatasetInfo, ShardWriter
from vla.decoders.conditioning import CrossAttention, LayerKeysValues, Pooled
from vla.decoders.dit import DiT
from vla.decoders.parallel import Parallel
from vla.errors import Damaged, UserError
from vla.model import Model
from vla.noise import Noise
from vla.state import NoState, StateTokens, StateWords
from vla.train.engine import freeze
from vla.train.feature_store import Column, NotKept, Store
from vla.train.features import Features, remember
from vla.train.job import assemble
from vla.train.loop import train
from vla.train.optim import Zero
from vla.train.plan import dry_run
from vla.train.ranks import Ranks
from vla.types import Frames, Span

SMALL = {"samples_per_context": 2}
DECODERS = {
    "parallel": Parallel(),
    "pooled": DiT(conditioning=Pooled(width=16, depth=1, heads=2), **SMALL),
    "last": DiT(conditioning=Pooled(width=16, depth=1, heads=2, style="dit", read="last"), time="token", **SMALL),
    "cross": DiT(conditioning=CrossAttention(width=16, depth=2, heads=2), **SMALL),
    "one_layer": DiT(conditioning=CrossAttention(width=16, depth=2, heads=2, layer=-2), **SMALL),
    "per_layer": DiT(conditioning=LayerKeysValues(width=16, mlp_width=32), state_in_suffix=True, **SMALL),
}
TWO_LAYERS = replace(MODEL.backbone, depth=2)
FROZEN = ("backbone",)
TWO_WAYS = (Span("push it", 0, 10), Span("shove it away", 0, 10))


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out, "train")]


def trained(shards: Path, out: Path, **changes) -> list[float]:
    train(toy_run(**{"freeze": FROZEN, **changes}), out, data_root=shards, near=shards)
    return losses(out)


@pytest.mark.parametrize("decoder", DECODERS)
def test_losses_are_those_without_features(shards, tmp_path, decoder):
    """Two epochs of the smallest source, so that most is seen again; validating is without features."""
    same(shards, tmp_path, Model(TWO_LAYERS, DECODERS[decoder], NoState() if decoder == "last" else StateTokens()))


@pytest.mark.parametrize(
    "backbone", [paligemma(), pytest.param(qwen3(), marks=pytest.mark.slow), pytest.param(smolvlm(), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("decoder", ["per_layer", "cross", "parallel"])
def test_losses_are_those_without_features_on_a_class_of_the_library(shards, tmp_path, backbone, decoder):
    same(shards, tmp_path, Model(backbone, DECODERS[decoder]), steps=4)


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"workers": 2, "microbatch": 4}, {"model": Model(MODEL.backbone, Parallel(), StateWords())}]
)
def test_losses_are_those_without_features_in_other_runs(shards, tmp_path, changes):
    same(shards, tmp_path, changes.pop("model", MODEL), **changes)


def same(shards, tmp_path, model, steps=12, **changes):
    plain = trained(shards, tmp_path / "plain", model=model, steps=steps, validate_every=steps, **changes)
    kept = trained(
        shards, tmp_path / "kept", model=model, steps=steps, validate_every=steps, features=Features(str(tmp_path / "f")), **changes
    )
    assert kept == pytest.approx(plain, rel=2e-2 if changes.get("precision") else 1e-4)
    without, within = (rows(tmp_path / name, "validation")[-1]["loss"] for name in ("plain", "kept"))
    assert within == pytest.approx(without, rel=2e-2 if changes.get("precision") else 1e-3)


def test_a_second_run_computes_nothing_and_looks_at_no_picture(shards, tmp_path, monkeypatch):
    run = toy_run(freeze=FROZEN, features=Features(str(tmp_path / "f")))
    told = Told()
    first = train(run, tmp_path / "one", data_root=shards, near=shards, watch=told)
    files = sorted((tmp_path / "f").rglob("*.safetensors"))
    job = assemble(run, shards, shards)
    freeze(job.model, run.freeze)
    job.memory = remember(run, job, Ranks.join(), 0, told.say)
    assert "44 are in" in told.lines[-1] and "0 are to be computed" in told.lines[-1], told.lines[-1]
    monkeypatch.setattr(assembling, "decode_frame", None)
    monkeypatch.setattr(type(job.model.backbone.stem), "forward", None)
    batch = job.training_batch(range(8))
    assert batch.inputs == {} and job.model(batch, Noise(batch.position_B, 0)).parts["l1"].weight > 0
    monkeypatch.undo()
    other = trained(shards, tmp_path / "two", features=run.features)
    assert other == losses(tmp_path / "one") and sorted((tmp_path / "f").rglob("*.safetensors")) == files
    assert first.step == 6


def test_only_what_is_missing_is_computed(shards, tmp_path):
    features, told = Features(str(tmp_path / "f")), Told()
    trained(shards, tmp_path / "short", steps=3, features=features)
    train(toy_run(freeze=FROZEN, features=features), tmp_path / "long", data_root=shards, near=shards, watch=told)
    (line,) = [line for line in told.lines if line.startswith("features:")]
    assert "44 observations" in line and "23 are in" in line and "21 are to be computed" in line
    next((tmp_path / "f").rglob("*.safetensors")).unlink()
    assert trained(shards, tmp_path / "again", features=features) == pytest.approx(trained(shards, tmp_path / "plain"), rel=1e-5)


def test_a_resumed_run_goes_on_with_features(shards, tmp_path):
    features = Features(str(tmp_path / "f"))
    whole = trained(shards, tmp_path / "plain", steps=8)
    trained(shards, tmp_path / "kept", steps=4, features=features)
    shutil.rmtree(tmp_path / "f")
    train(
        toy_run(freeze=FROZEN, steps=8, features=features),
        tmp_path / "kept",
        resume=True,
        allow_changed=True,
        data_root=shards,
        near=shards,
    )
    assert losses(tmp_path / "kept")[4:] == pytest.approx(whole[4:], rel=1e-1)  # another schedule up to there


def test_other_weights_have_features_of_their_own_and_the_old_are_pointed_out(shards, tmp_path):
    told = Told()
    trained(shards, tmp_path / "one", features=Features(str(tmp_path / "f")))
    run = toy_run(freeze=FROZEN, seed=1, features=Features(str(tmp_path / "f")))
    train(run, tmp_path / "two", data_root=shards, near=shards, watch=told)
    assert any("also holds features of other backbones or settings" in line for line in told.lines)
    assert losses(tmp_path / "two") == pytest.approx(trained(shards, tmp_path / "plain", seed=1), rel=1e-4)


def test_a_sample_that_cannot_be_shown_is_stood_for_by_the_same_one(tmp_path):
    """Its features are those of what stands for it, which the position decides, each time that it comes up."""
    with ShardWriter(tmp_path / "d", DatasetInfo(name="d", embodiment=WIDE.to_json(), supervision="actions")) as writer:
        for number in range(6):
            one = episode(f"d{number}", WIDE, "actions", number)
            whole = one.frames["front"].jpeg
            shown = (*whole[:8], whole[8][:-60], whole[9]) if number == 2 else whole
            writer.add(replace(one, frames={"front": Frames(np.arange(10), shown)}, instructions=TWO_WAYS))

    def run(name, **more):
        mixture = Mixture.of([tmp_path / "d"], val_fraction=0.0)
        run = toy_run(mixture=mixture, embodiments=(WIDE,), steps=24, freeze=FROZEN, **more)
        job = assemble(run)
        job.train.quarantine.max_rate = 1.0
        train(run, tmp_path / name, job=job)
        return losses(tmp_path / name), job.train.quarantine.bad

    (kept, found), (plain, bad) = run("kept", features=Features(str(tmp_path / "f"))), run("plain")
    assert kept == pytest.approx(plain, rel=1e-4) and bad and found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"freeze": ()}, r"its backbone is trained \(.*set freeze=\('backbone',\)"),
        ({"freeze": ("backbone.stem",)}, "its backbone is trained"),
        ({"augment": PI0}, "augmented images differ"),
        ({"goal_gap_s": (0.2, 0.4)}, "a goal image is drawn anew"),
        ({"model": Model(MODEL.backbone, Parallel(whole=True))}, r"own \(whole=True\)"),
        ({"zero": Zero(2)}, "train with zero=None"),
    ],
)
def test_what_would_not_be_the_same_is_refused_with_the_fix(shards, tmp_path, changes, why):
    run = toy_run(**{"freeze": FROZEN, "features": Features(str(tmp_path / "f")), **changes})
    job = assemble(run, shards, shards)
    freeze(job.model, run.freeze)
    for refused in (lambda: remember(run, job, Ranks.join(), 0, print), lambda: dry_run(run, shards, shards, 1)):
        with pytest.raises(UserError, match=f"run 'toy' cannot keep features: .*{why}"):
            refused()


def test_a_state_that_the_observation_makes_room_for_is_refused(shards, tmp_path):
    model = Model(paligemma(), Parallel(), StateTokens(after_images=True))
    with pytest.raises(UserError, match=r"knows nothing of the state.*StateTokens\(\).*state_in_suffix"):
        trained(shards, tmp_path / "run", model=model, features=Features(str(tmp_path / "f")))


def test_a_backbone_that_draws_in_training_is_refused(shards, tmp_path):
    run = toy_run(freeze=FROZEN, features=Features(str(tmp_path / "f")))
    job = assemble(run, shards, shards)
    job.model.backbone.transformer.norm = torch.nn.Sequential(job.model.backbone.transformer.norm, torch.nn.Dropout(0.1))
    with pytest.raises(UserError, match="dropout"):
        train(run, tmp_path / "run", job=job)


def test_a_run_that_needs_too_much_is_refused_before_it_computes(shards, tmp_path):
    with pytest.raises(UserError, match=r"its features need .* GB beside .* limit_gb is 1e-05: .*read less of the backbone \(now block_BS"):
        trained(shards, tmp_path / "run", features=Features(str(tmp_path / "f"), limit_gb=1e-5))
    assert not list((tmp_path / "f").rglob("*.safetensors"))
    with pytest.raises(UserError, match="limit_gb above 0"):
        Features("", 1)


def test_what_was_altered_on_disk_is_named(shards, tmp_path):
    features = Features(str(tmp_path / "f"))
    trained(shards, tmp_path / "one", features=features)
    (path,) = (tmp_path / "f").rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    with pytest.raises(Damaged, match=f"{path.name} was altered: .*Delete the file"):
        trained(shards, tmp_path / "two", features=features)
    path.write_bytes(whole[:-40])
    with pytest.raises(Damaged, match=f"{path.name} is damaged .*delete the file"):
        trained(shards, tmp_path / "three", features=features)
    path.unlink()
    trained(shards, tmp_path / "four", features=features)


def test_a_store_gives_back_rows_of_any_length_and_finds_what_others_wrote(tmp_path):
    columns = {"a": Column(torch.bfloat16, (2, 3)), "b": Column(torch.int64, ()), "c": Column(torch.bool, ())}
    one, two = Store(tmp_path, columns), Store(tmp_path, columns)
    made = {
        (key, 2**64 - 1 - key): {"a": torch.randn(key, 2, 3).bfloat16(), "b": torch.arange(key), "c": torch.arange(key) % 2 == 0}
        for key in (3, 1, 0, 2)
    }
    for key, row in made.items():
        one.add(key, row)
    assert one.has((3, 2**64 - 4)) and not two.has((3, 2**64 - 4)) and not one.has((3, 5))
    one.flush(), two.refresh()
    (tmp_path / "left.safetensors.part").write_bytes(b"half")  # of a process that was killed
    read = two.read([*made, *made])
    assert read["length_B"].tolist() == [3, 1, 0, 2] * 2 and read["a"].shape == (8, 3, 12)
    for number, row in enumerate([*made.values()] * 2):
        count = len(row["b"])
        assert torch.equal(read["a"].view(torch.bfloat16).unflatten(2, (2, 3))[number, :count], row["a"])
        assert torch.equal(read["b"].view(torch.int64)[number, :count, 0], row["b"]) and not read["a"][number, count:].any()
    assert two.read([(1, 2**64 - 2)], lambda length: length + 7)["a"].shape[1] == 8
    with pytest.raises(NotKept):
        two.read([(9, 9)])
    os.utime(tmp_path / "left.safetensors.part", (0, 0))
    assert len(Store(tmp_path, columns)) == 4 and not (tmp_path / "left.safetensors.part").exists()


def test_what_two_read_is_what_either_reads():
    assert Reads(False, (1,), True) | Reads(True, (3, 1), True) == Reads(True, (1, 3), True)
    assert Reads(False, (), True) | Reads() == Reads()
