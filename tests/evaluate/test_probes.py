"""Probes change one thing, say so, and leave everything else as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.results import result
from vla.cli import main
from vla.commands import eval as command
from vla.errors import UnknownName, UserError
from vla.evaluate.compare import compare
from vla.evaluate.probes import GREY, KINDS, Probe, disguise
from vla.evaluate.result import write_result
from vla.evaluate.runner import evaluate
from vla.sim.suites import load_suite
from vla.types import Chunk

TOY = str(Path(__file__).with_name("toy_suite.py"))
DOT = load_suite(TOY).embodiment


class Watcher:
    """Drives to the goal that it sees (red), and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen = []

    def act_batch(self, observations, keys):
        self.seen += observations
        return [self._chunk(observation) for observation in observations]

    def _chunk(self, observation):
        image = observation.images["third_person"][-1].astype(int)
        red = np.argwhere(image[..., 0] - image[..., 1] > 100)
        goal_P = 2 * red[0] / (len(image) - 1) - 1 if len(red) else np.zeros(2)
        step_A = np.clip((goal_P - observation.state[-1]) / 0.08, -1, 1)
        return Chunk(np.repeat(step_A[None], 4, axis=0), "dot", DOT.rate_hz)


def run(probe, tasks=("easy", "hard"), episodes=2, **settings):
    watcher = Watcher()
    got = evaluate(watcher, TOY, tasks, episodes, workers=1, slots=1, image_size=65, probe=probe and Probe.of(probe), **settings)
    return got, watcher.seen


@pytest.mark.thorough
def test_a_blind_policy_fails_on_the_same_episodes():
    base, seen = run(None)
    assert base.probe is None and {one.instruction for one in seen} == {"go to the spot easy", "go to the spot hard"}
    blind, grey = run("no-vision")
    assert blind.probe == {"spec": "no-vision", "kind": "no-vision", "value": None, "what": KINDS["no-vision"].what}
    assert all((image == GREY).all() and image.dtype == np.uint8 for one in grey for image in one.images.values())
    assert blind.pooled.successes < base.pooled.successes
    assert [row.seed for row in blind.rows] == [row.seed for row in base.rows]
    assert "probe: none against no-vision" in compare(base, blind).notes and compare(base, blind).paired


def test_words_are_taken_away_or_swapped():
    suite = load_suite(TOY)
    env = suite.make("easy", 16)
    env.reset(seed=0)
    seen = env.observation()
    assert disguise(None, suite)("easy", seen) == seen
    assert disguise(Probe.of("no-language"), suite)("easy", seen).instruction == ""
    assert disguise(Probe.of("swapped-instruction"), suite)("easy", seen).instruction == "go to the spot hard"
    assert disguise(Probe.of("swapped-instruction"), suite)("broken", seen).instruction == "go to the spot easy"
    assert disguise(Probe.of("latency"), suite)("easy", seen) == seen


class Counter:
    """Says how many chunks it has made, in units of 1/100."""

    def __init__(self) -> None:
        self.calls = 0

    def act_batch(self, observations, keys):
        self.calls += 1
        return [Chunk(self.calls / 100 + np.arange(8).reshape(4, 2) / 1000, "dot", DOT.rate_hz)] * len(observations)


def test_a_late_chunk_starts_in_its_middle_and_the_old_one_goes_on_until_then():
    """Executing 3 of 4 at 10 Hz, two steps late: the first two steps hold, then rows 2 of the first chunk, its last row, and so on."""
    from vla.evaluate.worker import Worker

    setup = {"image_size": 16, "execute": 3, "ensemble": None, "delay": 2}
    worker, policy = Worker(load_suite(TOY), setup), Counter()
    worker.obey({"op": "start", "slot": 0, "task": "hard", "seed": 5, "expert": False}, {})
    sent = []
    for _ in range(3):
        (chunk,) = policy.act_batch([None], [0])
        _, arrays = worker.obey({"op": "act", "slot": 0}, {"chunk": chunk.action_TA})
        sent += arrays["commands"][:, 0].tolist()
    first, second, third = ([0.01 * call + 0.002 * row for row in range(4)] for call in (1, 2, 3))
    held = [0.0, 0.0]
    assert sent == pytest.approx([*held, first[2], first[3], 0.0, second[2], second[3], 0.0, third[2]])


def test_latency_is_whole_steps_and_must_be_shorter_than_what_is_executed():
    probe, suite = Probe.of("latency=0.2"), load_suite(TOY)
    assert probe.delay(suite, 4) == 2 and Probe.of("latency=0.01").delay(suite, 4) == 1
    assert "0.2 s after its observation" in probe.to_json()["what"]
    with pytest.raises(UserError, match=r"latency of 0.5 s is 5 steps at 10 Hz, but a chunk is replaced after 4"):
        run("latency=0.5", execute=4)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("no-sound", "unknown probe 'no-sound'. Choices: background, camera-moved"),
        ("no-vision=3", "takes no amount"),
        ("latency=soon", "give a positive number of s, such as latency=0.1"),
        ("camera-moved=-5", "give a positive number of deg"),
    ],
)
def test_what_is_no_probe_is_refused(spec, complaint):
    with pytest.raises((UserError, UnknownName), match=complaint):
        Probe.of(spec)


def test_a_probe_that_says_nothing_here_is_refused():
    with pytest.raises(UserError, match="lets no probe change its background; MuJoCo's do"):
        run("background")
    with pytest.raises(UserError, match="expert looks at no observation"):
        evaluate("expert", TOY, ["easy"], 1, workers=1, probe=Probe.of("no-vision"))
    with pytest.raises(UserError, match="no second instruction to swap with"):
        suite = load_suite(TOY)
        from dataclasses import replace

        Probe.of("swapped-instruction").words(replace(suite, tasks=suite.tasks[:1]))


def test_help_names_every_probe():
    assert set(command.PROBES) == set(KINDS)


@pytest.mark.thorough
def test_probes_stand_beside_the_base_run_on_one_page(tmp_path, capsys):
    own = str(tmp_path / "no-vision.json")
    words = ["eval", "random", "--suite", TOY, "--tasks", "easy", "--episodes", "3", "--workers", "1", "--json", own]
    assert main([*words, "--probe", "no-vision", "--html", str(tmp_path / "one.html")]) == 0
    files = [own]
    for name, probe in (("late", Probe.of("latency=0.1").to_json()), ("base", None)):
        changes = {"probe": probe, "suite": "toy", "embodiment": "dot", "execute": 3}
        files.insert(0, str(write_result(tmp_path / f"{name}.json", result({"easy": "+++"}, **changes))))
    assert main(["compare", *files, "--html", str(tmp_path / "all.html"), "--json", str(tmp_path / "all.json")]) == 0
    out = capsys.readouterr().out
    assert "Policies that share a letter" in out and "probe: none against latency=0.1" in out
    page = (tmp_path / "all.html").read_text()
    for words in ("Probes", "every image is one grey", "Bradley-Terry", "Every episode", "first control step", "manifest sha256", "numpy"):
        assert words in page
    one = (tmp_path / "one.html").read_text()
    assert "probe no-vision" in one and "vla eval random" in one and "exact interval" in one


@pytest.mark.thorough
def test_each_part_of_a_mujoco_scene_can_be_changed_alone():
    """Sawyer's drawer: cabinet and drawer, the arm, the table. A change is by the seed, and shows where it should."""
    from vla.evaluate.worker import Worker

    def pictures(disturbance, seed=7):
        setup = {"image_size": 64, "execute": 10, "ensemble": None, "disturbance": disturbance}
        worker = Worker(load_suite("metaworld-objects"), setup)
        _, arrays = worker.obey({"op": "start", "slot": 0, "task": "drawer-open", "seed": seed, "expert": False}, {})
        again = worker.obey({"op": "start", "slot": 0, "task": "drawer-open", "seed": seed, "expert": False}, {})[1]
        np.testing.assert_array_equal(arrays["image:third_person"], again["image:third_person"])
        worker.slots[0].env.close()
        return {name: array[0].astype(int) for name, array in arrays.items() if name.startswith("image")} | {"state": arrays["state"]}

    base = pictures(None)
    share = {}
    for part, amount in (("background", 0.0), ("object", 0.5), ("camera", 10.0)):
        changed = pictures([part, amount])
        np.testing.assert_array_equal(changed["state"], base["state"])
        share[part] = (np.abs(changed["image:third_person"] - base["image:third_person"]).max(-1) > 8).mean()
        if part == "camera":
            np.testing.assert_array_equal(changed["image:wrist"], base["image:wrist"])
    assert share["background"] > 0.3 and 0.02 < share["object"] < 0.5 and share["camera"] > 0.1, share
