"""Policies trained on several frames in closed loop: the frames are those of training, at exact times, and no others are drawn."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla.checkpoint import Contents
from vla.data.window import history_steps
from vla.evaluate.history import History
from vla.evaluate.probes import Probe
from vla.evaluate.runner import evaluate
from vla.evaluate.worker import Worker
from vla.sim.suites import load_suite
from vla.types import Chunk, Observation

TOY = str(Path(__file__).with_name("toy_suite.py"))
RATE_HZ = 10


def frame(step: int) -> Observation:
    """One that shows its step."""
    return Observation({"front": np.full((1, 2, 2, 3), step, np.uint8)}, np.full((1, 1), float(step)), "go", "arm")


@pytest.mark.parametrize("every", [1, 3, 7])
@pytest.mark.parametrize("offsets_s", [(0.0,), (-0.1, 0.0), (-0.54, -0.1, 0.0), (-0.35, -0.25, 0.0), (-2.0, 0.0), (-0.04, 0.0)])
@pytest.mark.parametrize("first", [0, 5])
def test_frames_are_those_of_a_training_sample(offsets_s, every, first):
    """Of an episode as it is stored, ties between two ticks included."""
    stored = SimpleNamespace(rate_hz=Fraction(RATE_HZ), time_s=np.arange(40) / RATE_HZ, finite_time=True)
    history, drawn = History(offsets_s, stored.rate_hz, every), 1
    history.start(first, frame(first))
    for since in range(40):
        step = first + since
        if since % every == 0:
            seen = history.at(step, frame(step))
            want = [first + back for back in history_steps(stored, since, offsets_s)]
            assert seen.state[:, 0].tolist() == want and seen.offsets_s == offsets_s
            assert seen.images["front"][:, 0, 0, 0].tolist() == want
        elif history.wants(step):
            history.keep(step, frame(step))
            drawn += 1
    assert drawn <= 1 + 40 * (len(offsets_s) - 1) / every + every  # no frame that nobody sees
    assert len(history._seen) <= 1 - min(history._back) + every


class Sees:
    """A policy of two frames that goes right, and keeps what it saw."""

    def __init__(self, offsets_s) -> None:
        self.contents = Contents(None, (load_suite(TOY).embodiment,), {}, offsets_s=offsets_s)
        self.seen: list[Observation] = []

    def act_batch(self, observations, keys):
        self.seen += observations
        robot = self.contents.embodiments[0]
        return [Chunk(np.tile([1.0, 0.0], (robot.horizon, 1)), robot.name, robot.rate_hz) for _ in observations]


def test_where_decisions_come_at_any_step_every_frame_that_one_may_look_back_to_is_there():
    history, now_only = History((-0.35, 0.0), Fraction(RATE_HZ), None), History((0.0,), Fraction(RATE_HZ), None)
    history.start(0, frame(0))
    for step in range(1, 30):
        assert history.wants(step) and not now_only.wants(step)
        if step in (2, 3, 9, 10, 21):
            assert history.at(step, frame(step)).state[:, 0].tolist() == [max(step - 3, 0), step]
        else:
            history.keep(step, frame(step))


def test_an_evaluation_shows_a_policy_the_frames_it_was_trained_on():
    """The dot moves 0.02 m a step, so that its place tells the step that a frame is of."""
    policy = Sees((-0.5, -0.2, 0.0))
    result = evaluate(policy, TOY, ["hard"], 1, execute=3, workers=1)
    steps = np.round(np.array([seen.state[:, 0] for seen in policy.seen[::2]]) / 0.02)  # a batch of one is padded to two
    want = [[max(now - 5, 0), max(now - 2, 0), now] for now in range(0, result.rows[0].steps, 3)]
    assert len(want) > 4 and steps.tolist() == want
    assert all(seen.offsets_s == (-0.5, -0.2, 0.0) and seen.images["wrist"].shape[0] == 3 for seen in policy.seen)


def test_late_chunks_change_no_time_and_no_frame_is_drawn_in_vain():
    setup = {"image_size": 16, "execute": 4, "ensemble": None, "delay": 2, "offsets_s": [-0.3, 0.0]}
    worker = Worker(load_suite(TOY), setup)
    answer, arrays = worker.obey({"op": "start", "slot": 0, "task": "hard", "seed": 1, "expert": False}, {})
    env, drawn = worker.slots[0].env, []
    cameras = env.cameras
    env.cameras = lambda: drawn.append(env.steps) or cameras()
    places = []
    while not answer["ended"]:
        places.append(np.round(arrays["state"][:, 0] / 0.02).astype(int).tolist())
        answer, arrays = worker.obey({"op": "act", "slot": 0}, {"chunk": np.tile([1.0, 0.0], (6, 1))})
    # Two steps of holding at first, so that the place is two steps behind; then a chunk goes on while the next one is on its way.
    assert places == [[max(at - 5, 0), max(at - 2, 0)] for at in range(0, 24, 4)]
    assert drawn == [step for step in range(1, 24) if step % 4 in (0, 1)]
    assert Probe.of("latency=0.2").delay(load_suite(TOY), 4) == 2
