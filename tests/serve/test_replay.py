"""`--policy replay`: a session is told what a robot did once, chunk after chunk, and nothing beyond the end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.data.episodes import ROBOT, make_episode
from tests.serve.parts import LONG_S, request, said, service
from vla.data.shard import DatasetInfo, ShardWriter
from vla.errors import UserError
from vla.serve.background import serving
from vla.serve.codec import from_json, pack, to_json, unpack
from vla.serve.groot import Groot
from vla.serve.observe import Names
from vla.serve.openpi import OpenPi
from vla.serve.openvla import OpenVla
from vla.serve.record import Recorder
from vla.serve.replay import Replay
from vla.serve.rollout import Rollout, rollouts
from vla.serve.service import Service
from vla.serve.vla_eval import VlaEval
from vla.serve.wire import Refusal
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


async def openpi(served: Service) -> list[np.ndarray]:
    """It says nothing of what it carries out: two of each chunk are assumed here."""
    wire = OpenPi(served)
    return [row for _ in range(5) for row in unpack(await wire.answer(pack(said(0.1, of=ROBOT))))["actions"][:2]]


async def ours(served: Service) -> list[np.ndarray]:
    """It says how many it has carried out: none, one, and three."""
    wire, done = OpenPi(served), np.zeros((0, ROBOT.command.size))
    rows = []
    for count in (0, 1, 3, 0, 4, 1):
        done = unpack(await wire.answer(pack({**said(0.1, of=ROBOT), "request": {"executed": done}})))["actions"][:count]
        rows += list(done)
    return rows


async def vla_eval(served: Service) -> list[np.ndarray]:
    wire, rows = VlaEval(served), []

    def message(kind: str, seq: int) -> bytes:
        payload = said(0.1, of=ROBOT) if kind == "observation" else {}
        return pack({"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0})

    for seq in range(20):
        if seq == 10:
            rows = []
            await wire.answer(message("episode_start", seq))
        elif seq != 0:
            rows.append(unpack(await wire.answer(message("observation", seq)))["payload"]["actions"])
    return rows


async def rest_one_by_one(served: Service) -> list[np.ndarray]:
    wire = OpenVla(served)
    assert len(from_json(await wire.answer(to_json(said(0.1, of=ROBOT))))) == ROBOT.command.size
    wire.reset()
    return [from_json(await wire.answer(to_json(said(0.1, of=ROBOT)))) for _ in range(9)]


async def rest_by_chunks(served: Service) -> list[np.ndarray]:
    wire, observation = OpenVla(served), said(0.1, of=ROBOT)
    observation["full_image"] = observation["images"].pop("front")
    return [row for _ in range(3) for row in from_json(await wire.answer(to_json(observation)))]


async def groot(served: Service) -> list[np.ndarray]:
    """Its client says when an episode begins."""
    wire, observation = Groot(SimpleNamespace(service=served, token=None)), said(0.1, of=ROBOT)
    said_flat = {f"video.{role}": pixels[None] for role, pixels in observation["images"].items()}
    said_flat |= {"state.position": observation["state"][None, :3], "state.gripper": observation["state"][None, 3:]}
    said_flat |= {"annotation.human.task_description": ["open it"]}
    await wire.answer(pack({"endpoint": "get_action", "data": said_flat}))
    assert await wire.answer(pack({"endpoint": "reset"})) == {}
    answers = [await wire.answer(pack({"endpoint": "get_action", "data": said_flat})) for _ in range(3)]
    return [np.concatenate(row) for answer in answers for row in zip(answer["action.position"], answer["action.gripper"], strict=True)]


@pytest.mark.parametrize(
    ("client", "execute"),
    [(openpi, 2), (ours, None), (vla_eval, None), (vla_eval, 4), (rest_one_by_one, None), (rest_by_chunks, None), (groot, None)],
)
def test_whatever_the_protocol_a_step_that_is_carried_out_is_a_step_of_the_recording(client, execute, dataset):
    replay, recorded = Replay.of(f"{dataset}:1", None), make_episode("e1", steps=9, seed=1).action
    served = service(replay, replay.robot, execute=execute, names=Names({"full_image": "images.front"}))
    served.warm_up()

    async def run() -> list[np.ndarray]:
        served.batcher.start(asyncio.get_running_loop(), lambda: None)
        rows = await client(served)
        served.batcher.stop()
        return rows

    assert np.array_equal(asyncio.run(run()), recorded)


def test_clients_that_only_post_share_a_session_until_one_begins_an_episode(dataset, tmp_path):
    replay, recorded = Replay.of(f"{dataset}:1", None), make_episode("e1", steps=9, seed=1).action
    served = service(replay, replay.robot)
    served.recorder = Recorder(tmp_path / "served", replay.robot, "replay")

    def post() -> tuple[int, bytes]:
        return request(server.address, "POST", "/act", to_json({**said(0.1, of=ROBOT), "request": {"seq": 1}}))

    with serving(served) as server:
        for _ in range(2):
            assert [from_json(post()[1]).tolist() for _ in range(9)] == recorded.tolist()
            assert post()[0] == 500 and b"is over; connect again, or reset" in post()[1]
            assert request(server.address, "POST", "/reset") == (200, b"{}")
    served.recorder.close()
    assert [len(Rollout.read(folder).requests) for folder in rollouts(tmp_path / "served")] == [9, 9]


def test_vla_evals_commands_are_counted_and_recorded_once_though_requests_between_are_refused(dataset, tmp_path):
    replay, recorded = Replay.of(f"{dataset}:1", None), make_episode("e1", steps=9, seed=1).action
    served = service(replay, replay.robot, execute=2)
    served.recorder = Recorder(tmp_path / "served", replay.robot, "replay")
    nothing, nested = {"images": {}}, {"images": {"front": {"raw": 1}}}  # refused after, and before, the service has heard it

    async def run() -> list[np.ndarray]:
        served.batcher.start(asyncio.get_running_loop(), lambda: None)
        wire, rows, good = VlaEval(served), [], said(0.1, of=ROBOT)
        for seq, payload in enumerate([good, good, nothing, nested, good, good, nothing, nothing, good]):
            message = pack({"type": "observation", "payload": payload, "seq": seq, "timestamp": 0.0})
            if payload is good:
                rows.append(unpack(await wire.answer(message))["payload"]["actions"])
                continue
            with pytest.raises(Refusal):
                await wire.answer(message)
        served.batcher.stop()
        return rows

    assert np.array_equal(asyncio.run(run()), recorded[:5])
    served.recorder.close()
    (folder,) = rollouts(tmp_path / "served")
    executed = [request.executed for request in Rollout.read(folder).requests]
    assert [len(rows) for rows in executed] == [0, 2, 2] and np.array_equal(np.concatenate(executed), recorded[:4])


def test_what_a_refused_request_says_was_carried_out_is_recorded_with_the_next_answer(dataset, tmp_path):
    replay, recorded = Replay.of(f"{dataset}:1", None), make_episode("e1", steps=9, seed=1).action
    served = service(replay, replay.robot)
    served.recorder = Recorder(tmp_path / "served", replay.robot, "replay")

    async def run() -> list[int]:
        served.batcher.start(asyncio.get_running_loop(), lambda: None)
        wire, answered = OpenPi(served), []
        for seq, (start, stop, prompt) in enumerate([(0, 0, "go"), (0, 2, ""), (2, 3, ""), (3, 5, "go"), (5, 6, "go")]):
            # Numbers beyond what a float counts by one, such as nanoseconds.
            request = {"executed": recorded[start:stop], "seq": 2**60 + seq}
            message = pack({**said(0.1, of=ROBOT), "prompt": prompt, "request": request})
            if prompt:
                assert np.array_equal(unpack(await wire.answer(message))["actions"][:1], recorded[stop : stop + 1])
                answered.append(stop)
                continue
            with pytest.raises(Refusal, match="instruction"):
                await wire.answer(message)
        served.batcher.stop()
        return answered

    assert asyncio.run(run()) == [0, 5, 6]
    served.recorder.close()
    (folder,) = rollouts(tmp_path / "served")
    executed = [request.executed for request in Rollout.read(folder).requests]
    assert [len(rows) for rows in executed] == [0, 5, 1] and np.array_equal(np.concatenate(executed), recorded[:6])


def test_what_cannot_be_replayed_is_said(dataset):
    with pytest.raises(UserError, match="has 2 episodes; give one of 0 to 1"):
        Replay.of(f"{dataset}:2", None)
    with pytest.raises(UserError, match="recorded at 10 Hz, and 'arm' runs at 20 Hz"):
        Replay.of(dataset, replace(ROBOT, rate_hz=ROBOT.rate_hz * 2))
