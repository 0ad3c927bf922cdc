"""Points of people's hands as actions of an embodiment of their own, beside a robot in one batch."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import simplejpeg

from tests.parts import TINY
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.shard import DatasetInfo, ShardWriter
from vla.decoders.parallel import Parallel
from vla.embodiment import load_embodiment
from vla.errors import UnknownName, UserError
from vla.latent_action.moving_distractor import ROBOT, write_moving_distractor
from vla.model import Model
from vla.policy import Policy
from vla.train.loop import train
from vla.train.optim import AdamW, Constant
from vla.train.run import Run
from vla.types import Episode, Frames, Span

TRACKS, STEPS, RATE_HZ = load_embodiment("human_tracks"), 60, Fraction(30)


def write_people(folder, episodes=6):
    """A bright hand whose three points move steadily over the picture, at 30 frames a second."""
    with ShardWriter(folder, DatasetInfo(folder.name, TRACKS.to_json(), supervision="tracks")) as writer:
        for number in range(episodes):
            rng = np.random.default_rng(number)
            start, speed = rng.uniform(60, 120, 2), rng.uniform(-40, 40, 2)
            wrist = start + speed * np.arange(STEPS)[:, None] / float(RATE_HZ)
            points = np.concatenate([wrist, wrist + [20, -10], wrist + [25, 10]], axis=1)
            writer.add(_episode(f"p{number}", points))
    return folder


def _episode(name, points):
    rows, columns = np.mgrid[:32, :32] * 8.0
    jpegs = []
    for x, y in points[:, :2]:
        glow = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 800)[..., None]
        jpegs.append(simplejpeg.encode_jpeg((60 + 180 * glow * np.ones(3)).astype(np.uint8), quality=95, colorsubsampling="444"))
    return Episode(
        id=name,
        embodiment=TRACKS.name,
        rate_hz=RATE_HZ,
        supervision="tracks",
        instructions=(Span("wave", 0, STEPS),),
        time_s=np.arange(STEPS) / float(RATE_HZ),
        frames={"third_person": Frames(np.arange(STEPS), tuple(jpegs))},
        state=points,
        action=np.concatenate([points[1:], points[-1:]]),
    )


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tracks")
    return write_people(root / "people"), write_moving_distractor(root / "robot", 6, seed=0, labelled=True)


def test_tracks_become_targets_in_seconds_relative_to_now(folders):
    pipeline = Pipeline(Mixture.of([folders[0]], val_fraction=0.0), {TRACKS.name: TRACKS})
    for sample in pipeline.samples(range(20)):
        per_step = np.diff(sample.action_TA[sample.valid_T], axis=0)
        assert sample.action_TA.shape == (10, 6) and sample.observation.embodiment == "human_tracks"
        np.testing.assert_allclose(per_step, np.tile(per_step[:1], (len(per_step), 1)), atol=1e-9)  # steady, and 10 a second
        assert np.abs(sample.action_TA[0]).max() < 2  # a thirtieth of a second from where the points are
    with pytest.raises(UnknownName, match="human_tracks"):
        Pipeline(Mixture.of([folders[0]]), {ROBOT.name: ROBOT})


def test_a_robot_and_people_train_in_one_batch(folders, tmp_path):
    mixture = Mixture.of(dict.fromkeys(folders, 1.0), "both", 0.0)
    run = Run(
        "both",
        mixture,
        (ROBOT, "human_tracks"),
        steps=40,
        batch_size=16,
        model=Model(TINY, Parallel()),
        optim=AdamW(lr=3e-3),
        schedule=Constant(),
        ema_decay=None,
        log_every=10,
        threads=1,
    )
    result = train(run, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    rows = [row["sources"] for row in rows if row["kind"] == "train"]
    for name in ("people", "robot"):
        assert rows[-1][name] < 0.9 * rows[0][name]
    policy = Policy.load(result.checkpoint)
    robot, person = (Pipeline(mixture, {r.name: r for r in (ROBOT, TRACKS)}).at_anchor(name, 0).observation for name in ("robot", "people"))
    assert policy.act(robot).action_TA.shape == (ROBOT.horizon, 2)
    with pytest.raises(UserError, match="nothing may be sent"):
        policy.act(person)
