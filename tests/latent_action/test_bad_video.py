"""Video that is not as it should be: declared, quarantined and counted, or refused; never trained on in silence."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from tests.latent_action.dots import CONFIG, STEPS, write_dots
from tests.parts import TINY
from vla.data.mixture import Mixture
from vla.data.quarantine import TooManyBad
from vla.data.reader import Dataset
from vla.data.shard import DatasetInfo, ShardWriter
from vla.decoders.latent import LatentActions
from vla.errors import SchemaError, StatsMissing, UserError
from vla.latent_action.label import encode_dataset, label, label_hash
from vla.latent_action.language import Words
from vla.latent_action.train import frame_pairs, train_latent
from vla.model import Model
from vla.train.loop import train
from vla.train.run import Run
from vla.types import Span


def altered(source, folder, change, episodes=1):
    """A copy of a dataset whose first episodes went through `change`."""
    whole = Dataset.open(source)
    with ShardWriter(folder, DatasetInfo(folder.name, whole.info.embodiment, supervision=whole.info.supervision)) as writer:
        for index in range(len(whole)):
            episode = whole.read(index)
            writer.add(change(episode) if index < episodes else episode)
    return folder


def cut(episode, steps):
    """Its first steps."""
    frames = {role: replace(f, step=f.step[:steps], jpeg=f.jpeg[:steps]) for role, f in episode.frames.items()}
    return replace(episode, time_s=episode.time_s[:steps], frames=frames, instructions=(Span("move the dot", 0, steps),))


def hole(episode):
    """Nothing was recorded for five seconds in its middle."""
    time_s = episode.time_s.copy()
    time_s[STEPS // 2 :] += 5.0
    return replace(episode, time_s=time_s)


def test_an_episode_of_one_frame_is_quarantined_and_counted(dots, tmp_path):
    pairs = frame_pairs(CONFIG, [altered(dots[1], tmp_path / "short", lambda episode: cut(episode, 1), episodes=3)])
    train_latent(CONFIG, pairs.samples, steps=20, batch=32, min_perplexity_share=0.0)
    assert set(pairs.quarantine.causes) == {"short"} and pairs.quarantine.records[0].episode in ("video0", "video1", "video2")
    assert pairs.quarantine.tried == 20 * 32 + pairs.quarantine.bad


def test_an_episode_shorter_than_the_gap_gives_its_first_and_last_frame(dots, tmp_path):
    folder = altered(dots[1], tmp_path / "short", lambda episode: cut(episode, 2), episodes=30)
    samples = frame_pairs(CONFIG, [folder]).samples(range(30))
    assert {(sample.step, round(sample.gap_s, 6)) for sample in samples} == {(0, 0.1)}


def test_video_without_text_trains_and_is_labelled(dots, tmp_path):
    silent = altered(dots[1], tmp_path / "silent", lambda e: replace(e, instructions=(Span("", 0, STEPS),)), episodes=30)
    config = replace(CONFIG, language=Words(width=4))
    model = train_latent(config, frame_pairs(config, [silent]).samples, steps=3, batch=8, min_perplexity_share=0.0)
    assert label(Dataset.open(silent), model).bad == 0


def test_a_timeline_that_does_not_rise_is_refused(dots, tmp_path):
    def back(episode):
        return replace(episode, time_s=np.concatenate([episode.time_s[:5], episode.time_s[4:-1]]))

    with pytest.raises(SchemaError, match=r"'video0'.*rising"):
        altered(dots[1], tmp_path / "back", back)


def test_a_hole_in_a_timeline_is_quarantined_and_its_anchors_have_no_code(dots, trained, tmp_path):
    folder = altered(dots[1], tmp_path / "hole", hole)
    pairs = frame_pairs(CONFIG, [folder])
    assert max(sample.gap_s for sample in pairs.samples(range(480))) < 0.4
    assert set(pairs.quarantine.causes) == {"time"} and "no frame for 5" in pairs.quarantine.records[0].detail
    labels = label(Dataset.open(folder), trained[0])
    np.testing.assert_array_equal(np.flatnonzero((labels.code_XN < 0).any(1)), [STEPS // 2 - 1])
    assert labels.bad == 1  # the one before finds a frame 0.1 s on, which is nearer than 5 s


def test_video_of_another_rate_is_paired_in_seconds_or_refused(trained, tmp_path):
    model = trained[0]
    slow = Dataset.open(write_dots(tmp_path / "slow", episodes=3, labelled=False, every=2))  # 5 frames a second: pairs of 0.2 s
    assert label(slow, model).bad == 0
    assert {round(sample.gap_s, 6) for sample in frame_pairs(CONFIG, [slow.folder]).samples(range(20))} == {0.2}
    fast = altered(slow.folder, tmp_path / "fast", lambda e: replace(e, rate_hz=Fraction(100), time_s=e.time_s / 10), episodes=3)
    assert max(sample.gap_s for sample in frame_pairs(CONFIG, [fast]).samples(range(20))) <= 0.2
    still = Dataset.open(write_dots(tmp_path / "still", episodes=3, labelled=False, every=5))  # 2 a second
    with pytest.raises(SchemaError, match=r"every 0\.5 s"):
        encode_dataset(still, model, 0.2)
    with pytest.raises(TooManyBad, match=r"no frame for 0\.5 s"):
        train_latent(CONFIG, frame_pairs(CONFIG, [still.folder]).samples, steps=3, batch=8)


def test_a_policy_refuses_codes_of_another_model(dots, trained, tmp_path):
    other = train_latent(CONFIG, frame_pairs(CONFIG, [dots[1]]).samples, steps=2, batch=4, min_perplexity_share=0.0)
    folder = altered(dots[0], tmp_path / "robot", lambda episode: episode, episodes=0)
    label(Dataset.open(folder), trained[0])
    decoder = LatentActions(codes=2, vocabulary=8, heads=2, readout_depth=1)
    run = Run(
        "codes", Mixture.of([folder], val_fraction=0.0), ("dot",), 2, 4, Model(TINY, decoder), latents=label_hash(other), ema_decay=None
    )
    robot = Dataset.open(folder).info.robot
    with pytest.raises(StatsMissing, match=label_hash(other)[:12]):
        train(replace(run, embodiments=(robot,)), tmp_path / "out")
    with pytest.raises(UserError, match="2 latent codes; the decoder predicts 3"):
        wider = replace(run, embodiments=(robot,), latents=label_hash(trained[0]), model=Model(TINY, replace(decoder, codes=3)))
        train(wider, tmp_path / "out3")
