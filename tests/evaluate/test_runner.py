"""Closed-loop evaluation on real processes: what a result depends on, and what becomes of a simulator that fails."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parts import TINY, unit_normalizer
from vla.checkpoint import Contents, save_checkpoint
from vla.decoders.dit import DiT
from vla.decoders.parallel import Parallel
from vla.embodiment import load_embodiment
from vla.errors import SchemaError, UnknownName, UserError
from vla.evaluate.batching import Batcher, one_thread
from vla.evaluate.probes import Probe
from vla.evaluate.result import EvalResult, episode_seed
from vla.evaluate.rollouts import SimulatorFailed
from vla.evaluate.runner import Progress, evaluate
from vla.execute.ensemble import RealTime, TemporalEnsemble
from vla.model import Model
from vla.normalize import Normalizer
from vla.policy import Policy
from vla.sim.env import EVALUATION_SEEDS
from vla.sim.suites import load_suite
from vla.types import Chunk

TOY = str(Path(__file__).with_name("toy_suite.py"))


@pytest.fixture(scope="module")
def toy() -> Policy:
    """A random network for the toy robot; flow matching, so that noise matters too."""
    return _policy(load_suite(TOY).embodiment, DiT(evaluations=2))


def _policy(robot, decoder) -> Policy:
    contents = Contents(Model(TINY, decoder), (robot,), {robot.name: unit_normalizer(robot)})
    torch.manual_seed(0)
    model = contents.build()
    with torch.no_grad():
        for parameter in model.parameters():  # outputs start at zero, which would be a dull policy
            parameter += 0.1 * torch.randn_like(parameter)
    return Policy(contents, model)


@pytest.fixture(scope="module")
def healthy(toy, tmp_path_factory) -> EvalResult:
    return evaluate(toy, TOY, ["easy", "hard"], 6, workers=2, slots=3, video=tmp_path_factory.mktemp("videos"))


def test_states_unlike_those_of_training_are_a_note_of_the_result(toy):
    robot = toy.contents.embodiments[0]
    far = Normalizer("quantile", (1000.0,) * robot.state.size, (1.0,) * robot.state.size)
    fitted = {robot.name: replace(unit_normalizer(robot), state=far)}
    lost = Policy(replace(toy.contents, normalizers=fitted), toy.model)
    (note, *_) = evaluate(lost, TOY, ["easy"], 1, workers=1, slots=1).notes
    assert "far from training's 1000 ± 1" in note
    assert not evaluate(toy, TOY, ["easy"], 1, workers=1, slots=1).notes


@pytest.mark.thorough
def test_neither_workers_nor_slots_nor_batches_change_a_result(toy, healthy):
    assert evaluate(toy, TOY, ["easy", "hard"], 6, workers=1, slots=1).rows == healthy.rows
    assert 0 < healthy.tasks["easy"].successes < 6
    assert len({row.steps for row in healthy.rows if row.task == "easy"}) > 1
    assert evaluate(toy, TOY, ["easy"], 3, workers=1).rows == healthy.rows[:3]  # nor do the other tasks and episodes


def test_rows_of_a_batch_are_the_same_bits_in_any_batch(toy):
    env = load_suite(TOY).make("easy", 16)
    observations = []
    for seed in range(7):
        env.reset(seed=seed)
        observations.append(env.observation())
    batcher = Batcher(toy, env.embodiment)
    with one_thread():
        together = batcher.act(observations, range(7))
        for size in (1, 2, 3, 5):
            apart = [chunk for i in range(0, 7, size) for chunk in batcher.act(observations[i : i + size], range(7)[i : i + size])]
            assert all(np.array_equal(a.action_TA, b.action_TA) for a, b in zip(together, apart, strict=True))


@pytest.mark.thorough
def test_another_seed_gives_other_episodes(toy, healthy):
    other = evaluate(toy, TOY, ["easy"], 3, seed=1, workers=1)
    assert {row.seed for row in other.rows}.isdisjoint(row.seed for row in healthy.rows)
    assert all(row.seed == episode_seed(1, "easy", row.episode) >= EVALUATION_SEEDS for row in other.rows)


def test_the_result_says_how_it_came_about(toy):
    seen: list[Progress] = []
    result = evaluate(toy, TOY, ["hard", "easy"], 2, execute=3, ensemble=TemporalEnsemble(0.1), workers=1, progress=seen.append)
    assert list(result.tasks) == ["hard", "easy"]
    assert (result.execute, result.ensemble) == (3, "TemporalEnsemble(decay=0.1)")
    assert result.max_steps == {"hard": 24, "easy": 24}
    assert [progress.done for progress in seen] == [0, 1, 2, 3, 4] and seen[-1].total == 4
    assert all(row.steps == 24 and row.reason == "max_steps" for row in result.rows if not row.success)
    assert result.time["step"] > 0 and result.cpu_seconds > 0 and result.versions["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("task", "reason"),
    [("kills", f"crashed: killed by signal {int(signal.SIGSEGV)}"), pytest.param("hangs", "timed out", marks=pytest.mark.thorough)],
)
def test_a_failing_simulator_costs_its_own_episode_only(toy, healthy, task, reason):
    result = evaluate(toy, TOY, [task, "easy"], 4, slots=2, timeout_s=4)
    assert [row for row in result.rows if row.task == "easy"] == list(healthy.rows[:4])
    rows = [row for row in result.rows if row.task == task]
    lost = [row for row in rows if row.seed % 3 == 0]
    assert 0 < len(lost) < 4
    assert all(row.reason.startswith(reason) and not row.success and row.steps == 6 for row in lost)
    assert all(row.steps > 6 and row.reason in ("success", "max_steps") for row in rows if row not in lost)


@pytest.mark.thorough
def test_an_environment_that_cannot_be_built_stops_the_evaluation(toy):
    with pytest.raises(SimulatorFailed, match=r"'broken' failed 3 times; the last crashed: OSError: no such mesh: dot.stl"):
        evaluate(toy, TOY, ["broken"], 4, workers=1)


@pytest.mark.thorough
def test_no_process_outlives_its_evaluation(toy):
    class Stops:
        def act_batch(self, observations, keys):
            raise KeyboardInterrupt

    before = _children()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stops(), TOY, ["easy"], 2)
    evaluate(toy, TOY, ["easy"], 2)
    assert _children() == before


def _children() -> set[str]:
    mine = str(os.getpid())
    stats = [path.read_text().rsplit(")", 1)[1].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return {" ".join(fields[:2]) for fields in stats if fields[1] == mine}


@pytest.mark.thorough
def test_simulators_may_live_in_another_interpreter(tmp_path, healthy, toy):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntouch "{tmp_path}/asked"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert evaluate(toy, TOY, ["easy"], 1, workers=1, python=str(python)).rows == healthy.rows[:1]
    assert (tmp_path / "asked").exists()


@pytest.mark.thorough
def test_baselines_bound_what_a_policy_can_do():
    rates = {name: evaluate(name, TOY, ["hard"], 5, workers=1).pooled.rate for name in ("hold", "random", "expert")}
    assert rates["hold"] == 0 and rates["expert"] == 1 and 0 <= rates["random"] < 1


def test_videos_show_successes_and_failures_as_they_were(healthy):
    from PIL import Image

    assert {(video["task"], video["success"]) for video in healthy.videos} == {("easy", True), ("easy", False), ("hard", False)}
    assert healthy.notes == ()
    for video in healthy.videos:
        with Image.open(Path(video["folder"]) / video["file"]) as movie:
            assert movie.size == (320, 160) and movie.n_frames > 1


def test_user_errors_name_the_choices(toy):
    with pytest.raises(UnknownName, match="Choices: broken, easy, hangs, hard, kills"):
        evaluate(toy, TOY, ["fly"])
    with pytest.raises(UserError, match="no checkpoint folder nowhere.*random, hold, expert"):
        evaluate("nowhere", TOY)
    with pytest.raises(UserError, match="give --execute 1 to 4"):
        evaluate(toy, TOY, execute=5)
    with pytest.raises(UserError, match="episodes is 0"):
        evaluate(toy, TOY, episodes=0)
    with pytest.raises(UserError, match="named twice"):
        evaluate(toy, TOY, ["easy", "easy"])


def test_a_checkpoint_for_another_robot_is_refused_with_what_it_has(tmp_path):
    robot = load_embodiment("fetch")
    policy = _policy(robot, Parallel())
    save_checkpoint(tmp_path / "fetch", policy.contents, policy.model.state_dict())
    with pytest.raises(UnknownName, match="'dot'. Choices: fetch. Suite toy needs it"):
        evaluate(tmp_path / "fetch", TOY)


def test_a_optimized_checkpoint_does_the_same_and_the_result_says_so(toy, tmp_path):
    folder = save_checkpoint(tmp_path / "toy", toy.contents, toy.model.state_dict())
    plain, quick = (evaluate(folder, TOY, ["easy"], 3, optimize=optimize) for optimize in (False, True))
    assert [(row.success, row.steps) for row in quick.rows] == [(row.success, row.steps) for row in plain.rows]
    assert quick.policy["optimized"] and "optimized" not in plain.policy
    for nothing_to_optimize in ("hold", toy):
        with pytest.raises(UserError, match="optimize is for a checkpoint"):
            evaluate(nothing_to_optimize, TOY, ["easy"], 1, optimize=True)


def test_a_robot_that_means_other_numbers_is_refused(toy):
    suite = load_suite(TOY)
    other = replace(suite, embodiment=replace(suite.embodiment, cameras=("third_person",), limits=((-2.0, 2.0),) * 2))
    with pytest.raises(UserError, match="differs from the suite's in limits, cameras"):
        evaluate(toy, other)


def test_a_checkpoint_sees_by_the_cameras_that_it_was_trained_with():
    one = replace(load_suite(TOY).embodiment, cameras=("wrist",))
    seen = []

    class Looking:
        def __init__(self, policy):
            self.policy, self.contents = policy, policy.contents

        def act_batch(self, observations, keys):
            seen.extend(set(observation.images) for observation in observations)
            return self.policy.act_batch(observations, keys)

    result = evaluate(Looking(_policy(one, Parallel())), TOY, ["easy"], 2, workers=1)
    assert len(result.rows) == 2 and set(map(frozenset, seen)) == {frozenset({"wrist"})}


@pytest.mark.parametrize("bad", [np.full((4, 2), np.nan), np.zeros((4, 3))])
def test_a_policy_that_says_nonsense_moves_nothing(bad):
    class Nonsense:
        def act_batch(self, observations, keys):
            return [Chunk(bad, "dot", load_suite(TOY).embodiment.rate_hz)] * len(observations)

    with pytest.raises(SchemaError, match="dot chunk"):
        evaluate(Nonsense(), TOY, ["easy"], 1)


@pytest.mark.slow
def test_a_checkpoint_in_meta_world(tmp_path):
    """The real simulator, from a checkpoint on disk, with one process and with two."""
    short = tmp_path / "short.py"
    short.write_text(
        "from dataclasses import replace\n"
        "from vla.sim.suites import load_suite\n"
        "_whole = load_suite('metaworld-objects')\n"
        "SUITE = replace(_whole, tasks=tuple(replace(task, max_steps=24) for task in _whole.tasks[:2]))\n"
    )
    policy = _policy(load_embodiment("metaworld_sawyer"), Parallel())
    folder = save_checkpoint(tmp_path / "checkpoint", policy.contents, policy.model.state_dict())
    two = evaluate(folder, str(short), episodes=2, execute=10, workers=2)
    one = evaluate(folder, str(short), episodes=2, execute=10, workers=1)
    assert one.rows == two.rows and len(one.rows) == 4
    assert all(row.steps == 24 for row in one.rows)
    assert two.image_size == TINY.image_size and len(two.policy["manifest_sha256"]) == 64
    assert two.time["render"] > 0 and "metaworld" in two.versions


class Recorder:
    """The toy policy, and what it was asked to continue."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.rests, self.chunks = policy, [], []

    def act_batch(self, observations, keys):
        return self.policy.act_batch(observations, keys)

    def continue_batch(self, observations, keys, continuations):
        self.rests += continuations
        self.chunks += (found := self.policy.continue_batch(observations, keys, continuations))
        return found


@pytest.mark.thorough
def test_real_time_chunks_begin_with_what_is_sent_meanwhile(toy):
    recorder, late = Recorder(toy), Probe.of("latency=0.1")
    result = evaluate(recorder, TOY, ["hard"], 2, execute=3, ensemble=RealTime(), probe=late, workers=1)
    assert recorder.rests and {rest.frozen for rest in recorder.rests} == {1}  # a tenth of a second is one step of this robot
    for rest, chunk in zip(recorder.rests, recorder.chunks, strict=True):
        np.testing.assert_allclose(chunk.action_TA[:1], rest.command_RA[:1], atol=1e-5)
    assert "RealTime" in result.ensemble
    assert evaluate(toy, TOY, ["hard"], 2, execute=3, ensemble=RealTime(), probe=late, workers=2, slots=1).rows == result.rows


def test_a_policy_that_cannot_continue_says_so(toy):
    with pytest.raises(UserError, match="cannot continue a chunk; leave out --ensemble realtime"):
        evaluate("random", TOY, ["hard"], 1, execute=3, ensemble=RealTime(), workers=1)
