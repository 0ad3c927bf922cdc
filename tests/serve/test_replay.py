"""`--policy replay`: a session is told what a robot did once, chunk after chunk, and nothing beyond the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.data.episodes import ROBOT, make_episode
from tests.serve.parts import LONG_S, said, service
from vla.data.shard import DatasetInfo, ShardWriter
from vla.errors import UserError
from vla.serve.background import serving
from vla.serve.replay import Replay
from vla_client import PolicyClient, Refused


@pytest.fixture
def dataset(tmp_path) -> str:
    with ShardWriter(tmp_path / "arm", DatasetInfo(name="arm", embodiment=ROBOT.to_json())) as writer:
        for number in range(2):
            writer.add(make_episode(f"e{number}", steps=9, seed=number))
    return str(tmp_path / "arm")


def test_each_session_is_told_the_episode_from_its_start(dataset):
    replay, recorded = Replay.of(f"{dataset}:1", None), make_episode("e1", steps=9, seed=1).action
    with serving(service(replay, replay.robot)) as server:
        for _ in range(2):
            with PolicyClient(f"ws://{server.address}", LONG_S) as client:
                rows = [client.infer(said(0.1, of=ROBOT))["actions"] for _ in range(3)]
                assert [len(row) for row in rows] == [4, 4, 1] and np.array_equal(np.concatenate(rows), recorded)
                with pytest.raises(Refused, match="the episode of 9 steps is over"):
                    client.infer(said(0.1, of=ROBOT))


def test_chunks_may_overlap(dataset):
    replay = Replay.of(dataset, ROBOT, execute=2)
    (first,), (second,) = replay.act_batch([None], [1]), replay.act_batch([None], [2])
    assert np.array_equal(first.action_TA[2:], second.action_TA[:2])


def test_what_cannot_be_replayed_is_said(dataset):
    with pytest.raises(UserError, match="has 2 episodes; give one of 0 to 1"):
        Replay.of(f"{dataset}:2", None)
    with pytest.raises(UserError, match="recorded at 10 Hz, and 'arm' runs at 20 Hz"):
        Replay.of(dataset, replace(ROBOT, rate_hz=ROBOT.rate_hz * 2))
