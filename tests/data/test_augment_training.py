"""Augmentation inside a run: the same draws whatever the batches and however often it is resumed, and in training alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.train.toy import NARROW, WIDE, robot, toy_run, write_shards
from vla.checkpoint import MODEL, load_checkpoint
from vla.data.augment import PI0, Augment
from vla.train.loop import train
from vla.train.run import differences


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


def losses(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def weights(out):
    return load_checkpoint(out / "checkpoints" / "000004" / MODEL)[1]


@pytest.mark.thorough
def test_batches_and_resuming_change_no_draw(shards, tmp_path):
    run = toy_run(steps=4, augment=replace(PI0, brightness=(0.0, 3.0)), save_every=2)
    places = {"data_root": shards, "near": shards}
    train(run, tmp_path / "whole", **places)
    train(replace(run, microbatch=2), tmp_path / "pieces", **places)
    assert losses(tmp_path / "pieces") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    train(replace(run, augment=None), tmp_path / "plain", **places)
    assert losses(tmp_path / "plain")[0] != pytest.approx(losses(tmp_path / "whole")[0], abs=1e-6)
    resumed = shutil.copytree(tmp_path / "whole", tmp_path / "resumed", symlinks=True)
    shutil.rmtree(resumed / "checkpoints" / "000004")
    train(run, resumed, resume=True, **places)
    want, got = weights(tmp_path / "whole"), weights(resumed)
    assert all(torch.equal(want[name], got[name]) for name in want)
    unsafe, _ = differences(run.to_json(), replace(run, augment=None).to_json())
    assert any(line.startswith("augment") for line in unsafe)


def test_only_training_images_are_changed_and_wrists_stay(shards, tmp_path, monkeypatch):
    seen = []
    call = Augment.__call__

    def watched(self, images, noise, moved_BV=None, size_BV2=None):
        seen.append((noise.key_B.tolist(), moved_BV.tolist()))
        return call(self, images, noise, moved_BV, size_BV2)

    monkeypatch.setattr(Augment, "__call__", watched)
    run = toy_run(steps=3, augment=replace(PI0, steady=("front",)), validate_every=1)
    train(run, tmp_path / "run", data_root=shards, near=shards)
    assert [keys for keys, _ in seen] == [list(range(step * 8, step * 8 + 8)) for step in range(3)]
    assert all(row == [False] for _, moved in seen for row in moved)
    assert robot("x", 2, 3).cameras == NARROW.cameras == WIDE.cameras == ("front",)
