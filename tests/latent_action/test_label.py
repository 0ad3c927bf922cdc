from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.latent_action.dots import CONFIG, STEPS, write_dots
from vla.cli import main
from vla.data.latents import read_latents
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.quarantine import TooManyBad
from vla.data.reader import Dataset
from vla.errors import SchemaError, StatsMissing, UnknownName, UserError
from vla.latent_action.encoder import SpatioTemporal
from vla.latent_action.label import encode_dataset, label, label_hash, one_after_another
from vla.latent_action.pairs import anchor_pairs, later_anchors
from vla.latent_action.train import frame_pairs, train_latent


@pytest.fixture(name="video")
def _video(dots, tmp_path):
    return Dataset.open(shutil.copytree(dots[1], tmp_path / "video"))


def test_labels_reach_the_samples_of_a_pipeline(video, trained):
    model, _ = trained
    labels = label(video, model)
    assert labels.hash == label_hash(model) and labels.code_XN.shape == (video.anchors, 2) and labels.bad == 0
    np.testing.assert_array_equal(read_latents(video, labels.hash), labels.code_XN)
    pipeline = Pipeline(Mixture.of([video.folder], val_fraction=0.0), {}, latents=labels.hash)
    first = np.cumsum(video.anchors_E) - video.anchors_E
    names = [video.episode(index).id for index in range(len(video))]
    for sample in pipeline.samples(range(20)):
        row = first[names.index(sample.episode)] + sample.step
        np.testing.assert_array_equal(sample.latent_N, labels.code_XN[row])


def test_codes_of_another_model_or_gap_are_refused(video, dots, trained):
    model, _ = trained
    labels = label(video, model)
    other = train_latent(CONFIG, frame_pairs(CONFIG, [dots[1]]).samples, steps=2, batch=4)
    assert label_hash(other) != labels.hash
    with pytest.raises(StatsMissing, match=labels.hash[:12]):
        read_latents(video, label_hash(other))
    with pytest.raises(UserError, match="trained on gaps"):
        label(video, model, gap_s=0.5)


def test_pairs_are_clipped_at_the_end(video):
    episode = video.episode(0)
    later = later_anchors(episode, 0.2)
    np.testing.assert_array_equal(later, np.minimum(np.arange(STEPS) + 2, STEPS - 1))
    np.testing.assert_array_equal(later_anchors(episode, 0.001), np.minimum(np.arange(STEPS) + 1, STEPS - 1))
    pairs = list(anchor_pairs(video, "front", 0.2))
    assert len(pairs) == video.anchors
    assert pairs[STEPS - 1][:4] == (0, STEPS - 1, STEPS - 1, STEPS - 1) and pairs[STEPS][:4] == (1, 0, 0, 2)
    assert pairs[STEPS - 1].apart_s == 0 and pairs[STEPS].apart_s == pytest.approx(0.2)


def test_batch_size_changes_nothing(video, trained):
    model, _ = trained
    small, large = (encode_dataset(video, model, 0.2, batch=size)[0] for size in (7, 256))
    assert (small == large).mean() > 0.99  # a latent on the border of two entries may fall to either, by the last bit


def test_labelling_agrees_with_training_pairs(video, trained):
    model, _ = trained
    code_XN, _ = encode_dataset(video, model, 0.2)
    pipeline = frame_pairs(CONFIG, [video.folder])
    rows = [anchor for anchor in range(100) if anchor % STEPS < STEPS - 2]
    samples = [pipeline.at_anchor("video", anchor, 0.2) for anchor in rows]
    assert (model.encode(model.collate(samples)).numpy() == code_XN[rows]).mean() > 0.99


def test_an_encoder_that_is_told_the_gap_is_told_the_same_in_labelling(video):
    """A frame every 0.1 s for a gap of 0.24: the frames of a pair are 0.2 s apart, in training too."""
    config = replace(CONFIG, gap_s=(0.24, 0.24), encoder=SpatioTemporal(width=16, depth=1, heads=2, queries=2, patch=8))
    torch.manual_seed(0)
    model = config.build().eval()
    pipeline = frame_pairs(config, [video.folder])
    rows = [anchor for anchor in range(100) if anchor % STEPS < STEPS - 2]
    samples = [pipeline.at_anchor("video", anchor, 0.24) for anchor in rows]
    assert {round(sample.gap_s, 6) for sample in samples} == {0.2}
    told = []
    model.encoder.register_forward_hook(lambda module, given, out: told.append(given[2]))
    code_XN, _ = encode_dataset(video, model, 0.24)
    labelled_XN = model.encode(model.collate(samples)).numpy()
    assert torch.equal(torch.cat(told[:-1])[rows], told[-1]) and torch.unique(torch.cat(told)).numel() == 2  # at an episode's end 0.24
    assert (labelled_XN == code_XN[rows]).all()


def test_altered_frames_have_no_code(video, trained):
    model, _ = trained
    tar = video.folder / "shard-00000.tar"
    table = video.episode(3).cameras["front"]
    data = bytearray(tar.read_bytes())
    data[int(table.offset[5]) + 40] ^= 0xFF
    tar.write_bytes(bytes(data))
    damaged = Dataset.open(video.folder)
    labels = label(damaged, model)
    first = 3 * STEPS
    assert labels.bad == 2
    np.testing.assert_array_equal(np.flatnonzero((labels.code_XN < 0).any(1)), [first + 3, first + 5])
    for number in range(STEPS):  # a whole episode and more: no longer a few bad frames
        data[int(table.offset[number]) + 40] ^= 0xFF
    tar.write_bytes(bytes(data))
    with pytest.raises(TooManyBad, match="altered"):
        encode_dataset(Dataset.open(video.folder), model, 0.2)


def test_codes_of_the_same_model_are_kept(video, trained):
    model, _ = trained
    first = label(video, model)
    written = first.path.stat().st_mtime_ns
    again = label(video, model)
    assert (first.cached, again.cached) == (False, True) and again.path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.code_XN, first.code_XN)
    first.path.write_bytes(first.path.read_bytes()[:100])  # cut short: not codes any more
    assert not label(video, model).cached
    np.testing.assert_array_equal(read_latents(video, first.hash), first.code_XN)


def test_video_that_does_not_fit(trained, tmp_path):
    model, _ = trained
    slow = Dataset.open(write_dots(tmp_path / "slow", episodes=2, labelled=False, every=5))
    with pytest.raises(SchemaError, match=r"every 0\.5 s"):
        label(slow, model)
    short = Dataset.open(write_dots(tmp_path / "short", episodes=2, labelled=False, steps=1))
    assert label(short, model).code_XN.min() >= 0  # a single frame: the code of no motion
    with pytest.raises(UnknownName, match="front"):
        encode_dataset(slow, replace(CONFIG, camera="wrist").build(), 0.2)


def test_codes_of_pairs_that_follow_each_other(video, trained):
    """A label of two spans holds what a label of one says now, and what it says where the first pair ends."""
    model, _ = trained
    one = label(video, model)
    two_spans = replace(CONFIG, spans=2).build()
    two_spans.load_state_dict(model.state_dict())
    two = label(video, two_spans.eval())
    assert two.hash != one.hash and two.code_XN.shape == (video.anchors, 2 * one.code_XN.shape[1])
    row_X = np.arange(video.anchors)
    ends_X = row_X + np.minimum(2, STEPS - 1 - row_X % STEPS)  # 0.2 s at 10 Hz, or the episode's last
    np.testing.assert_array_equal(two.code_XN, np.concatenate([one.code_XN, one.code_XN[ends_X]], axis=1))
    assert label(video, two_spans).cached and two.usage.perplexity_share == one.usage.perplexity_share
    holed_XN = one.code_XN.copy()
    holed_XN[5] = -1
    assert set(np.flatnonzero((one_after_another(video, holed_XN, 0.2, 2) < 0).all(1))) == {3, 5}
    with pytest.raises(UserError, match="spans 0"):
        replace(CONFIG, spans=0)


def test_command(video, dots, trained, tmp_path, capsys):
    model, out = trained
    labelled = shutil.copytree(dots[0], tmp_path / "labelled")
    assert main(["label", str(out / "model"), str(video.folder), str(labelled), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["latents"] == label_hash(model)
    rows = {row["dataset"]: row for row in answer["datasets"]}
    assert rows["video"]["probe_r2"] == {} and min(rows["labelled"]["probe_r2"]["action/move"]) > 0.7
    assert main(["label", str(out / "model"), str(labelled)]) == 0
    printed = capsys.readouterr().out
    assert "linear probe R2, displacement/place" in printed and label_hash(model) in printed
    assert main(["label", str(out / "model"), str(labelled), "--gap", "9"]) == 2
    assert main(["label", str(labelled), str(labelled)]) == 1
    assert capsys.readouterr().err.count("error:") == 2
    assert main(["label", str(out / "model"), str(labelled), "--device", "cude"]) == 2
    assert "'cude' is no device; there are cpu" in capsys.readouterr().err
