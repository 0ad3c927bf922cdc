"""Training end to end in one process: it learns, it keeps its books, it stops when it must, it starts from what there is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.train.test_checkpoint import Told
from tests.train.toy import MODEL, NARROW, WIDE, robot, toy_run
from vla.alignment import Align
from vla.backbones.adapters import LoRA
from vla.checkpoint import load_checkpoint, save_checkpoint
from vla.data.mixture import Mixture
from vla.decoders.dit import DiT
from vla.decoders.masked import MaskedDiffusion
from vla.errors import Damaged, StatsMissing, UnknownName, UserError
from vla.model import Model
from vla.normalize import Normalizer, RobotNormalizer
from vla.policy import Policy
from vla.train.job import assemble
from vla.train.loop import Diverged, train
from vla.train.optim import AdamW


def rows(out, kind):
    return [row for row in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if row["kind"] == kind]


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A run that learns, and what was said about it."""
    out, told = tmp_path_factory.mktemp("run") / "toy", Told()
    train(toy_run(steps=60, batch_size=16, log_every=5, validate_every=30), out, data_root=shards, near=shards, watch=told)
    return out, told.lines


def test_it_learns_and_the_books_say_where(trained):
    out, _ = trained
    train_rows = rows(out, "train")
    assert train_rows[-1]["loss"] < 0.75 * train_rows[0]["loss"]
    last = train_rows[-1]
    assert {*last["parts"]} == {"l1"} and {*last["embodiments"]} == {"narrow", "wide"}
    assert {*last["sources"]} == {"a", "b"}  # video has no labels, so no loss
    assert {"lr", "grad_norm", "samples_per_s", "data_s", "compute_s", "rss_mb", "skipped"} <= {*last}
    assert [row["step"] for row in rows(out, "validation")] == [30, 60]
    assert rows(out, "validation")[1]["loss"] < rows(out, "validation")[0]["loss"]


def test_what_is_about_to_happen_is_said_first(trained):
    out, lines = trained
    text = "\n".join(lines)
    for fact in (
        "two robots and video, for tests",
        "batch: 16 = 1 ranks x 1 micro-batches x 16",
        "trained, 0 frozen",
        "device: cpu, ",
        "60 steps, about",
    ):
        assert fact in text
    assert (out / "first_batch.png").stat().st_size > 10_000


def test_the_loss_is_of_all_microbatches_and_the_log_ends_with_every_step(shards, tmp_path):
    for name, size in (("one", None), ("four", 4)):
        train(toy_run(microbatch=size), tmp_path / name, data_root=shards, near=shards)
    one, four = (rows(tmp_path / name, "train") for name in ("one", "four"))
    assert len(one) == len(four) == 6
    for a, b in zip(one, four, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["sources"] == pytest.approx(b["sources"], abs=1e-5)


def test_the_largest_seed_trains(shards, tmp_path):
    assert train(toy_run(steps=2, seed=2**31 - 1), tmp_path / "run", data_root=shards).step == 2


def test_too_many_updates_that_are_not_finite_stop_the_run_with_a_checkpoint(shards, tmp_path):
    run = toy_run(optim=AdamW(lr=1e-3), max_skips=3, steps=20)
    job = assemble(run, shards, shards)
    with torch.no_grad():
        job.model.get_parameter("decoder.query_TD")[0, 0] = torch.nan
    with pytest.raises(Diverged, match="3 updates in a row were skipped, the last at step 3 .*not finite") as raised:
        train(run, tmp_path / "run", job=job)
    assert raised.value.exit_code == 1
    skips = rows(tmp_path / "run", "skip")
    assert [row["positions"] for row in skips] == [[0, 8], [8, 16], [16, 24]]
    assert skips[0]["loss"] == "nan"
    assert (tmp_path / "run" / "checkpoints" / "000003").is_dir()


def test_a_new_robot_starts_from_what_others_taught(trained, shards, tmp_path):
    """Another robot of another width: everything shared is carried, its own maps are fresh, its numbers are its data's."""
    other = Mixture.of([shards / "b"], val_fraction=0.2)
    run = toy_run(init=str(trained[0]), model=None, mixture=other, embodiments=(WIDE,))
    job = assemble(run)
    _, old = load_checkpoint(trained[0] / "checkpoints" / "last" / "pretrained_model")
    assert torch.equal(job.model.get_parameter("decoder.out.weight_EIO")[0], old["decoder.out.weight_EIO"][1])  # its row of the bank
    assert torch.equal(job.model.get_parameter("backbone.word_in.weight"), old["backbone.word_in.weight"])
    assert (
        job.contents.normalizers["wide"] == load_checkpoint(trained[0] / "checkpoints" / "last" / "pretrained_model")[0].normalizers["wide"]
    )
    assert any("normalised as in" in note for note in job.notes)
    result = train(run, tmp_path / "run", job=job)
    assert load_checkpoint(result.checkpoint)[0].roster.names == ("wide",)


def test_another_decoder_carries_all_but_the_decoder_and_says_so(trained, shards):
    run = toy_run(init=str(trained[0]), model=Model(MODEL.backbone, MaskedDiffusion()))
    job = assemble(run, shards, shards)
    _, old = load_checkpoint(trained[0] / "checkpoints" / "last" / "pretrained_model")
    assert torch.equal(job.model.get_parameter("state_in.weight_EIO"), old["state_in.weight_EIO"])
    assert any("fresh: decoder (the checkpoint's decoder is decoder.parallel)" in note for note in job.notes)


def test_a_part_that_the_checkpoint_does_not_have_is_fresh(trained, shards, tmp_path):
    aligned = toy_run(init=str(trained[0]), model=replace(MODEL, align=Align()), goal_gap_s=(0.1, 0.3))
    job = assemble(aligned, shards, shards)
    _, old = load_checkpoint(trained[0] / "checkpoints" / "last" / "pretrained_model")
    assert torch.equal(job.model.get_parameter("decoder.query_TD"), old["decoder.query_TD"])
    assert any("fresh: align (the checkpoint's decoder is decoder.parallel, and it has no align)" in note for note in job.notes)
    # pi0's decoder takes the state itself, so that its checkpoint has no map of it beside the backbone.
    inside = assemble(toy_run(model=Model(MODEL.backbone, DiT(state_in_suffix=True))), shards, shards)
    start = save_checkpoint(tmp_path / "start", inside.contents, inside.model.state_dict())
    job = assemble(toy_run(init=str(start), seed=1), shards, shards)
    assert torch.equal(job.model.get_parameter("backbone.word_in.weight"), inside.model.get_parameter("backbone.word_in.weight"))
    assert any("fresh: state_in, decoder (the checkpoint's decoder is decoder.dit, and it has no state_in)" in note for note in job.notes)


def test_a_part_of_another_shape_is_named_with_what_to_do(trained, shards, tmp_path):
    lora = LoRA(rank=2, parts=("language",))
    adapted = assemble(toy_run(init=str(trained[0]), model=None, lora=lora), shards, shards)
    start = str(save_checkpoint(tmp_path / "adapted", adapted.contents, adapted.model.state_dict()))
    with pytest.raises(UserError, match=r"the backbone of .*adapted does not fit this run's.*model=None.*--merge-adapters"):
        assemble(toy_run(init=start), shards, shards)
    wider = Model(replace(MODEL.backbone, width=64), MODEL.decoder)
    with pytest.raises(UserError, match=r"the backbone of .* does not fit this run's: weight '.*leave 'backbone' out of init_parts[.]"):
        assemble(toy_run(init=str(trained[0]), model=wider), shards, shards)


def test_only_the_architecture_takes_no_numbers(trained, shards):
    job = assemble(toy_run(init=str(trained[0]), model=None, init_parts=()), shards, shards)
    _, old = load_checkpoint(trained[0] / "checkpoints" / "last" / "pretrained_model")
    assert job.contents.model == MODEL and not any("normalised as in" in note for note in job.notes)
    assert not torch.equal(job.model.get_parameter("backbone.word_in.weight"), old["backbone.word_in.weight"])


def test_a_checkpoint_that_has_learned_no_actions_gives_its_weights_and_not_its_numbers(trained, shards, tmp_path):
    """As `vla import vlm` writes them: the same robot is in it, with normalisers that nobody fitted."""
    contents, weights = load_checkpoint(trained[0] / "checkpoints" / "last" / "pretrained_model")
    none = lambda each: Normalizer.identity(each.width, "none yet")  # noqa: E731
    plain = {name: RobotNormalizer(each.key, none(each.state), none(each.action)) for name, each in contents.normalizers.items()}
    start = save_checkpoint(tmp_path / "start", replace(contents, normalizers=plain, run={"untrained": True}), weights)
    with pytest.raises(UserError, match="has learned no actions yet.*vla train RECIPE.py --init"):
        Policy.load(start)
    job = assemble(toy_run(init=str(start), model=None), shards, shards)
    assert torch.equal(job.model.get_parameter("backbone.word_in.weight"), weights["backbone.word_in.weight"])
    assert job.contents.normalizers["narrow"] != plain["narrow"] and not job.contents.untrained
    assert not any("normalised as in" in note for note in job.notes)


def test_what_a_run_lacks_is_said_before_it_starts(shards):
    with pytest.raises(UnknownName, match=r"'wide'.*Choices: narrow.*Source 'b' was recorded on it: add it"):
        assemble(toy_run(embodiments=(NARROW,)), shards, shards)
    with pytest.raises(StatsMissing, match="no statistics for 'third'.*Add a source"):
        assemble(toy_run(embodiments=(NARROW, WIDE, robot("third", 3, 3))), shards, shards)
    with pytest.raises(UnknownName, match="metaworld_sawyer"):
        assemble(toy_run(embodiments=("metaworld_sawer",)), shards, shards)
    with pytest.raises(UserError, match="no mixture file toi.yaml"):
        assemble(toy_run(mixture="toi.yaml"), shards, shards)
    with pytest.raises(StatsMissing, match="vla label"):
        assemble(toy_run(latents="0123456789ab"), shards, shards)
    with pytest.raises(UserError, match="no checkpoint at nowhere"):
        assemble(toy_run(init="nowhere"), shards, shards)


def test_a_held_out_loss_that_cannot_be_measured_is_said_or_refused(shards):
    whole = replace(Mixture.load(shards / "toy.yaml", shards), val_fraction=0.0)
    with pytest.raises(UserError, match=r"keep_best goes by the held-out loss.*'toy' holds no episode out.*Raise val_fraction"):
        assemble(toy_run(mixture=whole, validate_every=2, save_every=2, keep_best=1), shards, shards)
    notes = {every: assemble(toy_run(mixture=whole, validate_every=every), shards, shards).notes for every in (0, 2)}
    assert [any("validate_every measures nothing" in note for note in notes[every]) for every in (0, 2)] == [False, True]


def test_training_refuses_damaged_shards(tmp_path):
    from tests.train.toy import write_shards

    root = write_shards(tmp_path)
    tar = root / "b" / "shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(Damaged, match=r"'b'.*shard-00000"):
        train(toy_run(), tmp_path / "run", data_root=root, near=root)
    assert not (tmp_path / "run").exists()


def test_caps_that_end_the_data_too_early_are_refused(tmp_path):
    from tests.train.toy import write_shards

    root = write_shards(tmp_path)
    (root / "toy.yaml").write_text((root / "toy.yaml").read_text().replace("weight: 1,", "weight: 1, max_epochs: 1,"))
    with pytest.raises(UserError, match=r"needs 8,000 samples.*lower --steps to"):
        assemble(toy_run(steps=1000), root, root)
