"""P6 and P7: an answer in time or a refusal in time, nothing non-finite or out of limits; and the tensors that training saw."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import threading
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
from PIL import Image
from websockets.sync.client import connect

from tests.parts import ROBOTS, contents, samples, unit_normalizer
from tests.serve.parts import LONG_S, ROBOT, Echo, Gated, eventually, said, service, statistics
from tests.serve.test_protocols import from_openpi, to_openpi
from vla.collate import Collate
from vla.decoders.parallel import Parallel
from vla.normalize import Normalizer
from vla.policy import Policy
from vla.serve.background import serving
from vla.serve.gate import Gate
from vla.serve.openpi import heard
from vla.serve.wire import Compressed, Refusal
from vla.types import Chunk
from vla_client import PolicyClient, Refused, TooLate, Unavailable

BAD = (np.nan, np.inf, -np.inf, 1e300, -1e300, 1.0000001, -1.5, 2.0)


def bad_chunk(rng: np.random.Generator) -> Chunk:
    """What a broken model says: numbers that are none, far or just out of limits, wrong shapes and types, another robot; or good ones."""
    action_TA = rng.uniform(-1, 1, (int(rng.integers(0, 7)), int(rng.choice([2, 2, 2, 1, 3]))))
    if action_TA.size and rng.random() < 0.6:
        where = tuple(rng.integers(0, size) for size in action_TA.shape)
        action_TA[where] = rng.choice(BAD)
    if rng.random() < 0.1:
        action_TA = action_TA.astype(rng.choice([np.complex128, np.float16])) if np.abs(action_TA).max(initial=0) < 9 else action_TA
    if rng.random() < 0.05:
        action_TA = action_TA[0] if len(action_TA) else action_TA[None]
    return Chunk(action_TA, "wide" if rng.random() < 0.05 else ROBOT.name, ROBOT.rate_hz * (2 if rng.random() < 0.05 else 1))


def violations(action_TA: np.ndarray, low_A: np.ndarray, high_A: np.ndarray) -> bool:
    return not (np.isfinite(action_TA).all() and (action_TA >= low_A).all() and (action_TA <= high_A).all())


@pytest.mark.thorough
def test_p6_ten_thousand_bad_model_outputs_and_not_one_violation():
    rng = np.random.default_rng(0)

    class Broken(Echo):
        def act_batch(self, observations, keys):
            return [bad_chunk(rng) for _ in keys]

    served = service(Broken())
    low_A, high_A = ROBOT.bounds()
    request = heard(said())

    async def ask(session) -> bool:
        """Whether an action was sent, which then is a good one."""
        try:
            answer = await served.act(request, session)
        except Refusal as refusal:
            assert refusal.kind == "unsafe" and "/" not in refusal.message
            return False
        assert answer.action_TA.dtype == np.float64 and answer.action_TA.shape[1] == 2 and 1 <= len(answer.action_TA) <= 4
        assert not violations(answer.action_TA, low_A, high_A)
        return True

    async def run() -> int:
        served.batcher.start(asyncio.get_running_loop(), lambda: None)
        sessions = [served.session() for _ in range(100)]
        sent = [await asyncio.gather(*map(ask, sessions)) for _ in range(100)]
        served.batcher.stop()
        return sum(map(sum, sent))

    sent = asyncio.run(run())
    assert 1_000 < sent < 5_000 and served.answered == sent


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_p6_what_is_not_finite_passes_no_limit_not_even_one_that_is_infinite(number):
    boundless = replace(ROBOT, limits=((-np.inf, np.inf),) * 2)
    with pytest.raises(Refusal, match="is not finite"):
        Gate(boundless).check(Chunk(np.array([[0.0, 1.0], [number, 1.0]]), ROBOT.name, ROBOT.rate_hz))


def test_p6_a_chunk_that_jumps_or_jerks_is_not_sent():
    class Path(Echo):
        def act_batch(self, observations, keys):
            rows = {0.0: [0, 0.1, 0.2, 0.3], 1.0: [0, 0.1, 0.9, 0.9], 2.0: [0.2, 0.0, 0.2, 0.0]}[observations[0].state[0, 0]]
            return [Chunk(np.repeat(np.array(rows, dtype=np.float64)[:, None], 2, axis=1), ROBOT.name, ROBOT.rate_hz)]

    served = service(Path(), max_change_per_s=(3.0, np.inf), max_jerk_per_s2=(np.inf, 30.0))
    with serving(served) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        assert client.infer(said(0.0))["actions"].shape == (4, 2)
        for number, reason in ((1.0, "jumps faster"), (2.0, "jerks harder")):
            with pytest.raises(Refused, match=reason):
                client.infer(said(number))
    with serving(service(Path())) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        assert client.infer(said(1.0))["actions"][2, 0] == 0.9  # an embodiment says no speeds: whoever knows them gives them


def test_p6_the_refusal_comes_while_the_policy_still_thinks_and_its_answer_is_never_sent():
    gated = Gated()
    with serving(service(gated)) as server:
        with connect(f"ws://{server.address}", compression=None) as socket:
            socket.recv()
            socket.send(msgpack.packb({**said(0.1), "request": {"timeout_s": 0.2}}, default=to_openpi))
            assert json.loads(socket.recv(timeout=LONG_S))["error"] == "deadline"  # the gate is closed: the policy cannot have answered
            socket.send(msgpack.packb(said(0.2), default=to_openpi))
            gated.go.release(2)
            answer = msgpack.unpackb(socket.recv(timeout=LONG_S), object_hook=from_openpi)
            assert answer["actions"][0, 0] == 0.2


def test_p6_pictures_that_are_not_decoded_in_time_are_refused_while_the_decoding_still_runs(monkeypatch):
    from vla.data import images

    go, decode = threading.Event(), images.decode_image

    def held(data: bytes) -> np.ndarray:
        assert go.wait(LONG_S)
        return decode(data)

    monkeypatch.setattr(images, "decode_image", held)
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, format="PNG")
    message = {**said(0.1), "images": {role: Compressed(file.getvalue()) for role in ROBOT.cameras}}
    served = service(Echo())

    async def run() -> None:
        served.batcher.start(asyncio.get_running_loop(), lambda: None)
        with pytest.raises(Refusal, match="decoded in time") as caught:
            await served.act(heard({**message, "request": {"timeout_s": 0.2}}), served.session())
        assert caught.value.kind == "deadline" and served.in_flight == 0
        go.set()
        answer = await served.act(heard(message), served.session())
        assert answer.action_TA[0, 0] == 0.1
        served.batcher.stop()

    asyncio.run(run())
    assert served.answered == 1


def test_p6_an_answer_that_is_done_after_its_deadline_is_refused_by_the_clock():
    now = itertools.count(start=0.0, step=0.4)  # every look at the clock is 0.4 s later
    served = service(Echo(), deadline_s=1.0)
    served.clock = lambda: next(now)

    async def run() -> None:
        served.batcher.start(asyncio.get_running_loop(), lambda: None)
        with pytest.raises(Refusal, match="in time") as caught:
            await served.act(heard(said(0.1)), served.session())
        assert caught.value.kind == "deadline"
        served.batcher.stop()

    asyncio.run(run())
    assert served.answered == 0


def test_p6_stale_and_reordered_observations_are_refused():
    def ask(client: PolicyClient, **request) -> str:
        try:
            client.infer({**said(0.1), "request": request})
        except Refused as refused:
            return refused.kind
        return "answered"

    with serving(service(Echo(), max_age_s=0.5)) as server:
        with PolicyClient(f"ws://{server.address}", LONG_S) as client:
            assert ask(client, age_s=0.1) == "answered"
            assert ask(client, age_s=0.6) == "stale"
            assert ask(client, age_s=-1.0) == "stale"
            assert ask(client, timeout_s=0) == "deadline"
            assert ask(client, age_s="old") == "malformed"
        with connect(f"ws://{server.address}", compression=None) as socket:
            socket.recv()
            kinds = []
            for seq in (1, 2, 2, 1, 3):
                socket.send(msgpack.packb({**said(0.1), "request": {"seq": seq}}, default=to_openpi))
                answer = socket.recv()
                kinds.append(json.loads(answer)["error"] if isinstance(answer, str) else "answered")
            assert kinds == ["answered", "answered", "reordered", "reordered", "answered"]


def test_p6_a_full_queue_refuses_at_once():
    gated = Gated()
    with serving(service(gated, max_batch=1, max_waiting=2)) as server:
        clients = [PolicyClient(f"ws://{server.address}", LONG_S) for _ in range(3)]
        threads = [threading.Thread(target=client.infer, args=[said(0.1)]) for client in clients]
        threads[0].start()
        assert gated.begun.acquire(timeout=LONG_S)  # one is in the policy
        for thread in threads[1:]:
            thread.start()
        eventually(lambda: statistics(server.address)["in_flight"] == 3)  # and two wait
        with PolicyClient(f"ws://{server.address}", LONG_S) as late, pytest.raises(Refused, match="busy"):
            late.infer(said(0.1))
        gated.go.release(3)
        for thread, client in zip(threads, clients, strict=True):
            thread.join()
            client.close()


def test_p6_one_row_of_a_batch_that_may_not_be_sent_leaves_the_others_theirs():
    made = contents(Parallel())
    policy = Policy(made, made.build())
    observations = [sample.observation for sample in samples(6, robots=ROBOTS[:1], unlabelled=False)]
    whole = policy.act_batch(observations, range(6))
    sample = policy.model.sample

    def broken(batch, noise):
        action_BTA = sample(batch, noise)
        action_BTA[2, 0, 0] = float("nan")
        return action_BTA

    policy.model.sample = broken
    outcomes = policy.try_batch(observations, range(6))
    assert [isinstance(outcome, Chunk) for outcome in outcomes] == [True, True, False, True, True, True]
    assert all(np.array_equal(a.action_TA, b.action_TA) for i, (a, b) in enumerate(zip(outcomes, whole, strict=True)) if i != 2)
    with pytest.raises(ValueError, match="NaN"):
        policy.act_batch(observations, range(6))


def tensors(value, name=""):
    """Every tensor in a batch, by its place."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}")
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            if key not in ("target", "source_B", "position_B"):  # what only training has
                yield from tensors(getattr(value, key), f"{name}.{key}")


@pytest.mark.parametrize("number", [0, 1], ids=lambda number: ROBOTS[number].name)
def test_p7_a_sample_through_training_and_through_the_server_gives_identical_tensors(number):
    robot = ROBOTS[number]
    made = contents(Parallel())
    policy = Policy(made, made.build())
    trained = samples(3, seed=5, robots=(robot,), unlabelled=False)
    training = policy.collate.samples(trained, {robot.name: 0})
    seen = []
    collate = policy.collate

    class Spy(Collate):
        def observations(self, observations):
            batch = super().observations(observations)
            seen.append(batch)
            return batch

    policy.collate = Spy(collate.embodiments, collate.normalizers, collate.inputs, collate.codes, collate.text)
    with serving(service(policy, robot)) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        for sample in trained:
            observation = sample.observation
            answer = client.infer(
                {
                    "prompt": observation.instruction,
                    "images": dict(observation.images),
                    "state": observation.state,
                    "request": {"offsets_s": list(observation.offsets_s)},
                }
            )
            assert answer["actions"].shape == (robot.horizon, robot.command.size)
    names = [name for name, _ in tensors(training)]
    assert len(names) > 8 and len(seen) == 3
    for row, batch in enumerate(seen):
        served = dict(tensors(batch))
        assert sorted(served) == sorted(names)
        for name, tensor in tensors(training[row : row + 1]):
            words = tensor.shape[1] if ".word" in name else None  # padded to the longest text of the batch
            assert torch.equal(tensor[:, : served[name].shape[1]] if words else tensor, served[name]), name
            assert tensor.dtype == served[name].dtype


def test_p7_what_the_model_says_is_what_the_client_gets():
    robot = ROBOTS[0]
    made = contents(Parallel())
    policy = Policy(made, made.build())
    observation = samples(1, robots=(robot,), unlabelled=False)[0].observation
    with serving(service(policy, robot)) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        request = {"offsets_s": list(observation.offsets_s)}
        message = {"prompt": observation.instruction, "images": dict(observation.images), "state": observation.state, "request": request}
        assert np.array_equal(client.infer(message)["actions"], policy.act(observation).action_TA)


def test_p7_a_checkpoint_of_history_warms_up_and_is_never_shown_frames_of_other_times():
    robot = ROBOTS[0]
    made = contents(Parallel())
    policy, seen = Policy(made, made.build()), []
    act = policy.try_batch
    policy.try_batch = lambda observations, keys: seen.extend(observations) or act(observations, keys)
    served = service(policy, robot, max_batch=2)
    assert served.warm_up() > 0 and {observation.offsets_s for observation in seen} == {made.offsets_s}
    images = {role: np.zeros((2, 16, 16, 3), np.uint8) for role in robot.cameras}
    message = {"prompt": "open the door", "images": images, "state": np.zeros((2, 3))}
    with serving(served) as server, PolicyClient(f"ws://{server.address}", LONG_S, expect={"offsets_s": [-0.1, 0.0]}) as client:
        for offsets_s in ([-0.1, 0.0], [float(np.float32(-0.1)), 0.0]):
            assert client.infer({**message, "request": {"offsets_s": offsets_s}})["actions"].shape == (4, 2)
        for offsets_s in ([-0.2, 0.0], [-0.1, -0.05], [0.0], [-0.2, -0.1, 0.0]):
            with pytest.raises(Refused, match=r"frames at \[-0\.1, 0\.0\] s are seen here") as caught:
                client.infer({**message, "request": {"offsets_s": offsets_s}})
            assert caught.value.kind == "bad_observation"
        with pytest.raises(Refused, match="frames at"):  # a client that says nothing of times sends one frame
            client.infer(said(0.1))
    with serving(service(Echo())) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        assert client.infer({**message, "request": {"offsets_s": [-0.2, 0.0]}})["actions"].shape == (4, 2)
        assert client.metadata["offsets_s"] is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("mistake", [AttributeError, TypeError, ImportError])
def test_a_policy_whose_code_is_wrong_ends_the_server_and_nobody_waits(mistake):
    class Wrong(Echo):
        def act_batch(self, observations, keys):
            raise mistake("no such thing")

    served = service(Wrong())
    with serving(served) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        with pytest.raises(Unavailable) as caught:
            client.infer(said(0.1))
        assert not isinstance(caught.value, TooLate)
    assert server.broken


def test_a_state_unlike_those_of_training_is_acted_on_and_said(caplog):
    """Once in the log, and in the statistics for as long as it is so."""
    robot, known = ROBOTS[0], contents(Parallel())
    fitted = replace(unit_normalizer(robot), state=Normalizer("quantile", (0.0,) * robot.state.size, (1.0,) * robot.state.size))
    policy = Policy(replace(known, normalizers={**known.normalizers, robot.name: fitted}), known.build())
    with serving(service(policy, of=robot)) as server, PolicyClient(f"ws://{server.address}", LONG_S) as client:
        for number in (0.5, 57.0, 57.0):
            told = said(number, of=robot)
            told["images"] = {role: np.repeat(image[None], 2, axis=0) for role, image in told["images"].items()}
            told |= {"state": np.tile(told["state"], (2, 1)), "request": {"offsets_s": list(known.offsets_s)}}
            assert client.infer(told)["actions"].shape == (robot.horizon, robot.command.size)
        lines = statistics(server.address)["unfamiliar"]
    assert len(lines) == robot.state.size and "in 2 of 3 observations, 57 at the farthest" in lines[0]
    assert [record.message for record in caplog.records if "57" in record.message] == ["; ".join(lines).replace("2 of 3", "1 of 2")]
