"""Every way of fine-tuning that docs/finetune.md names: what moves, what stands still, and what is kept of before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import simplejpeg
import torch

from tests.train.toy import MODEL, NARROW, WIDE, robot, toy_run
from vla.backbones.adapters import LoRA
from vla.checkpoint import load_checkpoint
from vla.codecs.grid import Grid
from vla.data.mixture import Mixture
from vla.data.reader import Dataset
from vla.data.shard import DatasetInfo, ShardWriter
from vla.decoders.masked import MaskedDiffusion
from vla.decoders.tokens import AutoregressiveTokens
from vla.errors import UserError
from vla.model import Model
from vla.policy import Policy
from vla.publish import Publishing, publish
from vla.train.job import assemble
from vla.train.loop import train
from vla.train.optim import AdamW, Constant
from vla.types import Episode, Frames, Observation, Span

STILL = AdamW(lr=3e-3, weight_decay=0.0)


def write_task(folder, robot, seeds, sign=1):
    """A task that only pixels tell: the commands follow how bright the picture is, or how dark (`sign`)."""
    with ShardWriter(folder, DatasetInfo(name=folder.name, embodiment=robot.to_json())) as writer:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            level = rng.integers(20, 236, 10)
            images = [np.clip(rng.normal(each, 10, (16, 16, 3)), 0, 255).astype(np.uint8) for each in level]
            action = sign * (level[:, None] / 128 - 1) * (1 + np.arange(robot.action.size))
            jpegs = tuple(simplejpeg.encode_jpeg(image, colorsubsampling="444") for image in images)
            told = {
                "instructions": (Span("push it", 0, 10),),
                "time_s": np.arange(10) / 10,
                "frames": {"front": Frames(np.arange(10), jpegs)},
            }
            numbers = {"state": rng.normal(size=(10, robot.state.size)), "action": action}
            writer.add(Episode(f"{folder.name}{seed}", robot.name, robot.rate_hz, "actions", **told, **numbers))
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Folder of datasets: `a` of the narrow robot, `b` of the wide one, `inverted` of the wide one at the opposite of a's task, `few`."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder / "a", NARROW, range(8))
    write_task(folder / "b", WIDE, range(20, 26))
    write_task(folder / "inverted", WIDE, range(40, 46), sign=-1)
    write_task(folder / "few", WIDE, range(60, 62))
    return folder


@pytest.fixture(scope="module")
def pretrained(tasks, tmp_path_factory):
    """On the narrow robot alone."""
    run = toy_run(mixture=Mixture.of([tasks / "a"], val_fraction=0), embodiments=(NARROW,), steps=80, batch_size=16)
    return train(run, tmp_path_factory.mktemp("pretrained") / "run").checkpoint


def tuned(pretrained, data, out, **changes):
    """A run of a few steps from the pretrained checkpoint, on the given datasets (all alike, or with weights)."""
    settings = {
        "name": "tuned",
        "model": None,
        "init": str(pretrained),
        "embodiments": (WIDE,),
        "mixture": Mixture.of(data, val_fraction=0),
    }
    return train(toy_run(**{**settings, "validate_every": 0, **changes}), out).checkpoint


def moved(before, after, prefix):
    """Names of tensors under a prefix that are not bitwise what they were; those that only one has count as moved."""
    old, new = (load_checkpoint(folder)[1] for folder in (before, after))
    names = {name for name in (*old, *new) if name.startswith(prefix)}
    return {name for name in names if name not in old or name not in new or not torch.equal(old[name], new[name])}


def error(checkpoint, folder):
    """Mean distance of the first command from what the data did, over a dataset's steps."""
    policy, dataset = Policy.load(checkpoint), Dataset.open(folder)
    seen, want = [], []
    for index in range(len(dataset)):
        episode = dataset.read(index)
        for step in range(0, episode.steps, 3):
            image = simplejpeg.decode_jpeg(episode.frames["front"].jpeg[step])
            seen.append(Observation({"front": image[None]}, episode.state[step : step + 1], "push it", episode.embodiment))
            want.append(episode.action[step])
    chunks = policy.act_batch(seen, list(range(len(seen))))
    return float(np.mean([np.abs(chunk.action_TA[0] - row).mean() for chunk, row in zip(chunks, want, strict=True)]))


def test_full_everything_moves(pretrained, tasks, tmp_path):
    after = tuned(pretrained, [tasks / "b"], tmp_path / "run")
    for part in ("backbone.transformer", "backbone.stem", "state_in", "decoder"):
        assert moved(pretrained, after, part), part


def test_frozen_backbone_stands_still(pretrained, tasks, tmp_path):
    after = tuned(pretrained, [tasks / "b"], tmp_path / "run", freeze=("backbone",))
    assert not moved(pretrained, after, "backbone.") and moved(pretrained, after, "decoder.")


def test_a_grids_codes_keep_their_meaning_on_another_robot(tmp_path):
    """One robot's embeddings and rows of the head are interpolated at the cells of another; rows that several share stay."""
    arms = [robot(name, 4, 3) for name in ("one", "other")]
    for number, arm in enumerate(arms):
        write_task(tmp_path / arm.name, arm, range(20 * number, 20 * number + 6), sign=1 - 2 * number)
    grid = Grid(rotation=(), gripper=3, translation_bins=(4, 6, 3))
    settings = {"model": Model(MODEL.backbone, AutoregressiveTokens(codec=grid)), "normalization": "zscore"}
    first = toy_run(mixture=Mixture.of([tmp_path / "one"], val_fraction=0), embodiments=arms[:1], steps=2, validate_every=0, **settings)
    before = load_checkpoint(checkpoint := train(first, tmp_path / "run").checkpoint)[1]

    def begun(*robots):
        mixture = Mixture.of([tmp_path / each.name for each in robots], val_fraction=0)
        return assemble(
            toy_run(model=None, init=str(checkpoint), embodiments=robots, mixture=mixture, normalization="zscore")
        ).model.decoder

    codes = begun(arms[1]).codes
    old = [[before[f"decoder.codes.codec.translation{axis}_EC"][0] for axis in range(3)]]
    assert not torch.allclose(old[0][2], codes.codec.cells(0)[0][2])
    for name in ("code_in.weight", "head.weight", "head.bias"):
        was, now = before[f"decoder.codes.{name}"], codes.get_parameter(name)
        rows_VD = was.view(len(was), -1)[: codes.codec.vocabulary]
        found_VD = codes.codec.regrid(rows_VD, old, codes.codec.cells(0))
        assert torch.equal(now.view(len(now), -1)[: codes.codec.vocabulary], found_VD) and not torch.equal(found_VD, rows_VD), name
        assert torch.equal(now[codes.codec.vocabulary :], was[codes.codec.vocabulary :])
    for robots in (arms[:1], arms):
        assert torch.equal(begun(*robots).codes.head.weight, before["decoder.codes.head.weight"])


@pytest.mark.slow
def test_lora_moves_adapters_and_heads_and_merges_into_a_plain_checkpoint(pretrained, tasks, tmp_path):
    lora = LoRA(rank=2, parts=("language",))
    rest = tuple(f"backbone.{name}" for name in ("stem", "image_in", "word_in", "role_in", "age_in"))
    after = tuned(pretrained, [tasks / "b"], tmp_path / "run", lora=lora, freeze=rest)
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in load_checkpoint(after)[1].items()}
    old = load_checkpoint(pretrained)[1]
    assert all(torch.equal(plain[name], tensor) for name, tensor in old.items() if name.startswith("backbone."))
    trained = {name: tensor for name, tensor in plain.items() if ".lora_B" in name}
    assert trained and all(tensor.abs().max() > 0 for tensor in trained.values())
    merged = publish(after, tmp_path / "merged", Publishing(merge_adapters=True))
    assert merged.contents.model.backbone == MODEL.backbone
    assert error(after, tasks / "b") == pytest.approx(error(tmp_path / "merged", tasks / "b"), abs=1e-4)
    data = Mixture.of([tasks / "b"], val_fraction=0)
    again = assemble(toy_run(init=str(after), model=None, embodiments=(WIDE,), mixture=data))  # goes on from the adapters
    assert again.contents.model.backbone.lora == lora


def test_adapters_where_there_can_be_none_are_refused(pretrained, tasks):
    @dataclass(frozen=True)
    class Bare:
        kind: ClassVar[str] = "backbone.bare"

    run = toy_run(model=Model(Bare(), MODEL.decoder), lora=LoRA(rank=2), mixture=Mixture.of([tasks / "b"]), embodiments=(WIDE,))
    with pytest.raises(UserError, match="a backbone.bare takes no adapters"):
        assemble(run)


def test_a_new_head_leaves_the_old_one_behind(pretrained, tasks, tmp_path):
    other = Model(MODEL.backbone, MaskedDiffusion(evaluations=2))
    after = tuned(pretrained, [tasks / "b"], tmp_path / "run", model=other, freeze=("backbone",))
    assert load_checkpoint(after)[0].model == other and not moved(pretrained, after, "backbone.")
    same = tuned(pretrained, [tasks / "b"], tmp_path / "same", init_parts=("backbone", "state_in"), freeze=("backbone",))
    assert moved(pretrained, same, "decoder.query_TD")  # the same kind of decoder, from fresh weights


def test_a_new_action_space_beside_the_old_one_leaves_the_old_robots_head(pretrained, tasks, tmp_path):
    """Robots have rows of their own in what goes in and out; where all that they share is frozen, an old one's stay bit for bit."""
    shared = ("backbone", "decoder.query_TD")
    settings = {"embodiments": (NARROW, WIDE), "freeze": shared, "optim": STILL, "steps": 30, "schedule": Constant()}
    after = tuned(pretrained, [tasks / "b"], tmp_path / "run", **settings)
    rng = np.random.default_rng(0)
    seen = [Observation({"front": rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)}, rng.normal(size=(1, 2)), "push it", "narrow")]
    old, new = Policy.load(pretrained), Policy.load(after)
    mine, was = new.model.state_dict(), old.model.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in was.items() if mine[name].shape == tensor.shape and "_E" not in name)
    assert torch.equal(mine["decoder.out.weight_EIO"][:1, :, :2], was["decoder.out.weight_EIO"])
    assert torch.equal(mine["state_in.weight_EIO"][:1, :2], was["state_in.weight_EIO"])
    # Sums over wider rows are rounded otherwise, so that actions agree within that.
    np.testing.assert_allclose(old.act_batch(seen, [1])[0].action_TA, new.act_batch(seen, [1])[0].action_TA, atol=1e-5)
    assert [robot.name for robot in new.contents.embodiments] == ["narrow", "wide"]
    assert error(after, tasks / "b") < 0.8 * error(
        tuned(pretrained, [tasks / "b"], tmp_path / "one", **{**settings, "steps": 1}), tasks / "b"
    )


@pytest.mark.slow
def test_a_few_demonstrations_reach_further_from_a_checkpoint_than_from_nothing(pretrained, tasks, tmp_path):
    settings = {"steps": 30, "schedule": Constant()}
    after = tuned(pretrained, [tasks / "few"], tmp_path / "run", freeze=("backbone",), **settings)
    scratch = tuned(pretrained, [tasks / "few"], tmp_path / "scratch", init_parts=(), **settings)
    assert error(after, tasks / "b") < 0.8 * error(scratch, tasks / "b")  # steps that neither has seen


@pytest.mark.slow
def test_a_share_of_the_pretraining_keeps_what_was_known(pretrained, tasks, tmp_path):
    settings = {"embodiments": (NARROW, WIDE), "steps": 40, "batch_size": 16, "schedule": Constant()}
    alone = tuned(pretrained, [tasks / "inverted"], tmp_path / "alone", **settings)
    shared = tuned(pretrained, {tasks / "inverted": 3, tasks / "a": 1}, tmp_path / "shared", **settings)
    before, forgot, kept = (error(folder, tasks / "a") for folder in (pretrained, alone, shared))
    assert forgot > 1.5 * before and kept < 0.7 * forgot, (before, forgot, kept)
