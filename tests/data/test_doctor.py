"""The data doctor: quiet on clean robots, and each seeded mistake found; the whole table is the slow test's, and docs/data-doctor.md's."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.data.episodes import make_video
from tests.data.mutants import MUTANTS, shift, stale, trial, wrong_rate
from tests.data.robots import CLEAN, Robot, make
from vla.cli import main
from vla.data.check import check_dataset, check_mixture
from vla.data.doctor.lag import respond
from vla.data.doctor.sample import MAX_ROWS, Budget
from vla.data.shard import Dataset, DatasetInfo, ShardWriter
from vla.data.statistics import compute_stats
from vla.types import Span

QUICK = tuple(robot for robot in CLEAN if robot.name in ("pose_rot6d", "pose_quat", "joints_slow", "two_arms_pose"))
BASES = {robot.name: robot for robot in CLEAN}
ON = {  # mistake -> a robot that can have it
    "rotation layout": "pose_rot6d",
    "quaternion order": "pose_quat",
    "inverted gripper": "pose_rot6d",
    "degrees for radians": "joints_slow",
    "swapped arms": "two_arms_pose",
    "delta for absolute": "pose_rot6d",
    "swapped cameras": "pose_rot6d",
    "wrong rate": "joints_slow",
    "stale statistics": "pose_rot6d",
    "actions shifted": "pose_rot6d",
}


@pytest.fixture(scope="module")
def clean():
    cache = {}

    def get(name):
        if name not in cache:  # a little smaller than in the table
            cache[name] = make(replace(BASES[name], episodes=10, steps=int(0.7 * BASES[name].steps)))
        return cache[name]

    return get


def look(folder, filmed=0):
    """The doctor's report on numbers alone, or with pictures of so many episodes."""
    return check_dataset(folder, full=False, budget=Budget(filmed=filmed))


def kinds(report, severity=None):
    return {f.kind for f in report.findings if severity in (None, f.severity)}


@pytest.mark.parametrize("robot", QUICK, ids=lambda robot: robot.name)
def test_no_alarm_on_clean_robots(robot, clean, tmp_path):
    report = check_dataset(clean(robot.name).write(tmp_path / robot.name))
    assert report.sound and not report.of("error") and not report.of("warning"), [str(f) for f in report.findings]
    assert report.facts["checked"] == "every byte" and report.samples


@pytest.mark.parametrize("mistake", ON)
def test_each_of_the_ten_mistakes_is_found_and_nothing_else_is_blamed(mistake, clean, tmp_path):
    variant = next(m for m in MUTANTS if m.name == mistake and (m.seen, m.variant) != (True, "declared step"))
    base = clean(ON[mistake])
    outcome = trial(base, variant, tmp_path / "x")
    assert outcome is not None and outcome[0], f"{mistake} ({variant.variant}) was not found"
    assert outcome[1] == []


@pytest.mark.slow
def test_twenty_clean_sets_and_all_mutants(tmp_path):
    sets = [make(robot) for robot in CLEAN]
    reports = [check_dataset(made.write(tmp_path / made.info.name), full=False) for made in sets]
    assert len(sets) == 20 and [r.path.name for r in reports if not r.sound] == []
    found: dict[str, list[bool]] = {}
    for number, mutant in enumerate(MUTANTS):
        for made in sets:
            outcome = trial(made, mutant, tmp_path / f"{made.info.name}-{number}")
            if outcome is not None and mutant.seen:
                found.setdefault(mutant.name, []).append(outcome[0])
    missed = {name: hits.count(False) for name, hits in found.items()}
    assert len(found) == 10 and sum(np.mean(hits) > 0.7 for hits in found.values()) >= 9, missed


@pytest.mark.slow
def test_no_alarm_on_what_the_simulators_record(tmp_path):
    for suite, tasks in (("fetch", "reach"), ("metaworld-objects", "door-close,drawer-open"), ("panda", "lift"), ("aloha", "lift")):
        folder = tmp_path / suite
        command = [sys.executable, "-m", "vla", "collect", "--suite", suite, "--episodes", "3", "--out", str(folder)]
        done = subprocess.run([*command, "--tasks", tasks], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        report = check_dataset(folder)
        assert report.sound, [str(f) for f in report.findings]


def test_the_lag_of_a_plant_is_measured():
    rng = np.random.default_rng(0)
    for late in (0, 1, 2):
        u, x = rng.normal(size=(8, 200, 2)), np.zeros((8, 200, 2))
        for t in range(199):
            x[:, t + 1] = x[:, t] + 0.4 * (u[:, max(t - late, 0)] - x[:, t])
        found = respond(list(u), list(x), "a", "s")
        assert found.lag == late and found.causal < 1e-6
        assert found.future < 1e-6 or late == 0  # four rows from one later on still hold the one that acts
        early = respond([np.roll(e, 1, axis=0) for e in u], list(x), "a", "s")
        assert early.lag == late - 1 and (early.causal > 0.5) == (late == 0)


@pytest.mark.thorough
def test_feedback_and_process_noise_are_no_shift(tmp_path):
    # The next command depends on the state that noise has moved: it "explains" the past without having caused it.
    noisy = replace(BASES["step_axis_angle"], name="noisy", noise=5e-3, wrists=False, image_every=30, episodes=8)
    report = look(make(noisy).write(tmp_path / "noisy"))
    assert "actions_shifted" not in kinds(report)
    assert "actions_shifted" in kinds(look(shift("rolled late")(make(noisy)).write(tmp_path / "late")))


@pytest.mark.parametrize("targets", [False, True], ids=["steps", "targets"])
@pytest.mark.parametrize("common_goal", [False, True], ids=["own goals", "one goal"])
def test_steering_towards_a_goal_is_no_shift(targets, common_goal, tmp_path):
    """Then the next command is a function of where the state went, and so tells it exactly; but it asks the less the further it went."""
    rng = np.random.default_rng(0)
    goal = np.full((12, 3), 0.2) if common_goal else rng.uniform(-0.5, 0.5, (12, 3))
    u, x = np.zeros((12, 80, 3)), np.zeros((12, 80, 3))
    x[:, 0] = rng.uniform(-0.5, 0.5, (12, 3))
    for t in range(80):
        if t:
            x[:, t] = x[:, t - 1] + 0.6 * (u[:, t - 1] - targets * x[:, t - 1]) + rng.normal(0, 3e-3, (12, 3))
        u[:, t] = 0.3 * (goal - x[:, t]) + targets * x[:, t]
    found = respond(list(u), list(x), "a", "s", targets)
    assert found.agrees < -0.9 or found.causal - found.future < 0.01
    if targets:  # what the command alone says would have been an alarm
        assert min(found.causal - found.future, found.single[0] - found.single[1]) > 0.3


def test_actions_that_are_the_states_themselves_tell_a_shift_exactly(clean, tmp_path):
    base = clean("pose_position")

    def copies(ahead):
        def each(episode):
            rows = np.concatenate([episode.state[ahead:], np.repeat(episode.state[-1:], ahead, axis=0)])
            return replace(episode, action=np.concatenate([rows[:, :3], episode.action[:, 3:]], axis=1))

        return base.each(each)

    for ahead, want in ((0, True), (1, False), (2, True)):
        report = look(copies(ahead).write(tmp_path / str(ahead)))
        assert ("actions_shifted" in kinds(report)) == want


@pytest.mark.thorough
def test_steps_that_turn_about_the_bases_axes_are_found(tmp_path):
    """rot6d transposed in state and action alike, which is the same to the numbers: steps compose from the other side."""
    made = make(replace(BASES["from_state_rot6d"], episodes=8, image_every=60, wrists=False))
    both = next(m for m in MUTANTS if (m.name, m.variant) == ("rotation layout", "state and action"))
    assert not kinds(look(made.write(tmp_path / "good")), "error")
    (found,) = look(both.change(made).write(tmp_path / "bad")).of("error")
    assert found.kind == "rotation_layout" and found.evidence["about_the_base"] > 0.8 and "base's axes" in found.detail


def test_pictures_that_run_behind_their_rows_are_found(clean, tmp_path):
    def late(episode):
        frames = {c: replace(f, jpeg=(f.jpeg[0],) * 4 + f.jpeg[:-4]) for c, f in episode.frames.items()}
        return replace(episode, frames=frames)

    report = look(clean("pose_rot6d").each(late).write(tmp_path / "late"), filmed=6)
    (found,) = [f for f in report.findings if f.kind == "misaligned_frames"]
    assert found.evidence["lag_frames"] == 4 and found.severity == "error" and found.where.endswith("wrist")


def test_time_that_stands_jumps_or_jitters(clean, tmp_path, monkeypatch):
    base = clean("joints_slow")
    uneven = base.each(lambda e: replace(e, time_s=np.cumsum(np.random.default_rng(0).uniform(0.1, 0.6, e.steps))))
    assert "jitter" in kinds(look(uneven.write(tmp_path / "uneven")), "warning")
    gap = base.each(lambda e: replace(e, time_s=e.time_s + 5.0 * (np.arange(e.steps) > 20)))
    assert {"time_gap", "jitter"} & kinds(look(gap.write(tmp_path / "gap")), "warning")
    monkeypatch.setattr("vla.data.writer.check_episode", lambda *args: None)  # which refuses it: other writers might not
    back = base.each(lambda e: replace(e, time_s=np.concatenate([e.time_s[:5], e.time_s[3:-2]])))
    report = look(back.write(tmp_path / "back"))
    assert not report.sound and "time_not_rising" in kinds(report, "error")


def test_rates_that_differ_from_the_robots_are_told(clean, tmp_path):
    base = clean("joints_slow")
    other = base.each(lambda e: replace(e, rate_hz=e.rate_hz * 2, time_s=e.time_s / 2))
    assert kinds(look(other.write(tmp_path / "x"))) == {"rate_differs"}
    (found,) = [f for f in look(wrong_rate(2)(base).write(tmp_path / "y")).findings if f.kind == "wrong_rate"]
    assert found.evidence["measured_hz"] == pytest.approx(3, rel=0.01) and found.evidence["declared_hz"] == 6


def test_commands_that_would_be_clipped_are_told_with_how_many(clean, tmp_path):
    made = clean("joints_slow")
    robot = made.embodiment()
    rows = np.concatenate([episode.action for episode in made.episodes])
    reached = [(float(low), float(high) + 1e-6) for low, high in zip(rows.min(0), rows.max(0), strict=True)]

    def limited(name, limits):
        return look(
            replace(made, info=replace(made.info, embodiment=replace(robot, limits=tuple(limits)).to_json())).write(tmp_path / name)
        )

    assert "outside_limits" not in kinds(limited("at", reached))  # to the limit, not beyond
    low, high = reached[1]
    rounded = [*reached[:1], (low + 0.005 * (high - low), high), *reached[2:]]
    assert "outside_limits" not in kinds(limited("rounded", rounded))
    middle = float(np.median(rows[:, 1]))
    (found,) = [f for f in limited("half", [*reached[:1], (low, middle), *reached[2:]]).findings if f.kind == "outside_limits"]
    assert found.severity == "warning" and found.where.endswith("action.joints") and "joints[1]" in found.detail
    assert 0.3 < found.evidence["share"] <= 0.5 and found.evidence["worst"] == pytest.approx(high, abs=1e-3)


def test_values_that_no_robot_has(clean, tmp_path, monkeypatch):
    monkeypatch.setattr("vla.data.writer.check_episode", lambda *args: None)
    monkeypatch.setattr("vla.embodiment.Space.check", lambda *args: None)
    made = clean("pose_rot6d").each(lambda e: replace(e, action=e.action * [1, 1, 0, *[1] * 7]))
    episodes = list(made.episodes)
    state, action = np.array(episodes[3].state), np.array(episodes[3].action)
    state[7, 1], action[5, 0], action[6, 2] = 1e6, np.nan, np.inf
    episodes[3] = replace(episodes[3], state=state, action=action)
    made = replace(made, episodes=tuple(episodes))
    report = look(made.write(tmp_path / "x"))
    by_kind = {f.kind: f for f in report.findings}
    assert by_kind["not_finite"].evidence["rows"] == 2
    assert (
        by_kind["outlier"].severity == "error"
        and by_kind["outlier"].where.endswith("hand[1]")
        and by_kind["outlier"].evidence["high"] == 1e6
    )
    assert by_kind["near_constant"].severity == "warning" and by_kind["near_constant"].evidence["dimensions"] == ["hand[2]"]


def test_an_extreme_is_found_outside_the_sample_too(clean, tmp_path):
    base = clean("joints_slow")
    spoiled = base.rows("state", "joints", lambda x: np.where(np.arange(len(x))[:, None] == 9, -4e5, x), only=[6])
    report = check_dataset(spoiled.write(tmp_path / "x"), full=False, budget=Budget(episodes=3))
    assert {t.id for t in report.samples[0].traces}.isdisjoint({"e006"}) and "outlier" in kinds(report, "error")


@pytest.mark.thorough
def test_the_same_episode_in_training_and_validation(clean, tmp_path):
    base = clean("joints_slow")
    copies = tuple(replace(e, id=f"copy{i}") for i, e in enumerate(base.episodes[:6]))
    cut = tuple(
        replace(
            e, id=f"cut{i}", **{k: getattr(e, k)[9:] for k in ("state", "action", "time_s")}, instructions=(Span("cut", 0, e.steps - 9),)
        )
        for i, e in enumerate(base.episodes[6:8])
    )
    cut = tuple(
        replace(c, frames={k: replace(f, step=f.step[9:] - 9, jpeg=f.jpeg[9:]) for k, f in c.frames.items()}) for c in cut
    )  # an image a step
    replace(base, episodes=base.episodes + copies).write(tmp_path / "twice")
    (tmp_path / "mix.yaml").write_text("name: m\nval_fraction: 0.5\nsources: [{path: twice}]")
    report = check_mixture(tmp_path / "mix.yaml", tmp_path, full=False)
    found = {f.kind: f.evidence["count"] for f in report.findings}
    assert found["train_val_overlap"] >= 1 and not report.sound
    assert found["train_val_overlap"] + found.get("duplicate_episodes", 0) == 6
    replace(base, info=replace(base.info, name="other"), episodes=copies[:3] + cut).write(tmp_path / "other")
    base.write(tmp_path / "first")
    (tmp_path / "two.yaml").write_text("name: m\nval_fraction: 0.0\nsources: [{path: first}, {path: other}]")
    report = check_mixture(tmp_path / "two.yaml", tmp_path, full=False)
    assert {f.kind: f.evidence["count"] for f in report.findings if f.kind == "duplicate_episodes"} == {"duplicate_episodes": 5}


def test_the_same_motion_in_another_scene_is_no_copy(clean, tmp_path):
    base = clean("joints_slow")
    other = make(replace(BASES["joints_slow"], seed=99))

    def elsewhere(pair):
        episode, scene = pair
        n = min(episode.steps, scene.steps)
        frames = {c: replace(f, step=f.step[:n], jpeg=f.jpeg[:n]) for c, f in scene.frames.items()}
        rows = {k: getattr(episode, k)[:n] for k in ("state", "action", "time_s")}
        return replace(episode, id=f"again-{episode.id}", frames=frames, instructions=(Span("again", 0, n),), **rows)

    moved = tuple(map(elsewhere, zip(base.episodes, other.episodes, strict=False)))
    report = look(replace(base, episodes=base.episodes + moved).write(tmp_path / "x"))
    assert "duplicate_episodes" not in kinds(report) and report.sound


def test_idle_stretches_and_poor_language_are_told(clean, tmp_path):
    def idle(episode):
        still = {k: np.repeat(getattr(episode, k)[-1:], 150, axis=0) for k in ("state", "action")}
        n = episode.steps + 150
        rows = {k: np.concatenate([getattr(episode, k), v]) for k, v in still.items()}
        return replace(episode, time_s=np.arange(n) / 3, instructions=(Span("", 0, n),), **rows)

    report = look(clean("joints_slow").each(idle).write(tmp_path / "x"))
    by_kind = {f.kind: f for f in report.findings}
    assert by_kind["idle"].severity == "warning" and by_kind["idle"].evidence["share_at_ends"] > 0.6
    assert by_kind["missing_language"].severity == "warning"
    same = clean("joints_slow").each(lambda e: replace(e, instructions=(Span("do it", 0, e.steps),)))
    assert kinds(look(same.write(tmp_path / "y"))) == {"one_instruction"}


@pytest.mark.thorough
def test_a_trusted_dataset_betrays_what_is_consistent_in_itself(clean, tmp_path):
    """Both arms exchanged in state and action, without a camera on a wrist: only another dataset of the robot can tell."""
    robot = replace(BASES["two_arms_pose"], wrists=False, image_every=30, episodes=8)
    centre = np.zeros(20)
    centre[1], centre[11] = 0.4, -0.4  # the arms work on their own sides
    good, fresh = (
        make(replace(robot, seed=s)).each(lambda e: replace(e, state=e.state + centre, action=e.action + centre)) for s in (1, 2)
    )
    both = next(m for m in MUTANTS if (m.name, m.variant) == ("swapped arms", "state and action"))
    good.write(tmp_path / "good")
    fresh.write(tmp_path / "fresh")
    both.change(fresh).write(tmp_path / "bad")
    assert look(tmp_path / "bad").sound
    assert not kinds(check_dataset(tmp_path / "fresh", full=False, like=tmp_path / "good"), "error")
    assert "swapped_arms" in kinds(check_dataset(tmp_path / "bad", full=False, like=tmp_path / "good"), "error")


@pytest.mark.thorough
def test_two_fixed_cameras_exchanged_everywhere_show_in_a_trusted_dataset(tmp_path):
    robot = replace(BASES["fixed_cameras"], episodes=6, steps=40, seed=3)
    good = make(robot)
    exchanged = good.each(lambda e: replace(e, frames={"third_person": e.frames["side"], "side": e.frames["third_person"]}))
    good.write(tmp_path / "good")
    exchanged.write(tmp_path / "bad")
    assert check_dataset(tmp_path / "bad", full=False).sound  # alone, they are two fixed cameras
    assert "swapped_cameras" in kinds(check_dataset(tmp_path / "bad", full=False, like=tmp_path / "good"), "error")
    assert "swapped_cameras" not in kinds(check_dataset(tmp_path / "good", full=False, like=tmp_path / "good"))


def test_a_dataset_of_a_mixture_whose_gripper_goes_the_other_way(clean, tmp_path):
    def command(made):  # a dimensionless gripper: what 1 means stands nowhere
        robot = made.embodiment()
        fields = tuple(replace(f, unit="command") if f.name == "gripper" else f for f in robot.command.fields)
        space = replace(robot.command, fields=fields)
        return replace(made, info=DatasetInfo(made.info.name, replace(robot, name="r", command=space, action=space).to_json())).each(
            lambda e: replace(e, embodiment="r")
        )

    base = replace(BASES["pose_position"], episodes=8, image_every=20)
    right, wrong = (command(make(replace(base, name=name, seed=seed))) for name, seed in (("right", 1), ("wrong", 2)))
    right.write(tmp_path / "right")
    wrong.rows("action", "gripper", lambda g: 1 - g).write(tmp_path / "wrong")
    (tmp_path / "mix.yaml").write_text("name: m\nsources: [{path: right}, {path: wrong}]")
    report = check_mixture(tmp_path / "mix.yaml", tmp_path, full=False)
    (found,) = report.of("error")
    assert found.kind == "inverted_gripper" and found.where == "wrong: action.gripper" and "right" in found.detail
    assert look(tmp_path / "wrong").sound  # alone it cannot be told; the direction is a note
    assert "gripper_direction" in kinds(look(tmp_path / "wrong"), "note")


def test_fresh_statistics_are_no_alarm_and_damaged_ones_are(clean, tmp_path):
    folder = clean("joints_slow").write(tmp_path / "x")
    dataset = Dataset.open(folder)
    compute_stats([dataset], {dataset.info.robot.name: dataset.info.robot}, save=True)
    assert look(folder).sound
    next((folder / "stats").glob("*.json")).write_text("{}")
    assert kinds(look(folder)) == {"damaged"}
    stale(digest_fits=True)(folder)
    (found,) = look(folder).of("error")
    assert found.kind == "stale_statistics" and found.fix


SPACES = ("rot6d", "quat_xyzw", "axis_angle")


@pytest.mark.parametrize("seed", range(6))
def test_the_doctor_stands_garbage(seed, tmp_path, monkeypatch):
    """Zeros, constants, huge and wild numbers, single steps: findings or none, but never an accident."""
    rng = np.random.default_rng(seed)
    base = make(
        Robot("junk", rotation=SPACES[seed % 3], frame=("absolute", "step")[seed % 2], episodes=6, steps=12, image_every=4, seed=seed)
    )
    monkeypatch.setattr("vla.data.writer.check_episode", lambda *args: None)
    monkeypatch.setattr("vla.embodiment.Space.check", lambda *args: None)

    def spoil(episode):
        n = int(rng.integers(1, episode.steps + 1))
        rows = {}
        for kind in ("state", "action"):
            values = getattr(episode, kind)[:n]
            fill = rng.choice([0.0, 1.0, -3e8, 1e300, np.nan, np.inf], values.shape)
            rows[kind] = np.where(rng.uniform(size=values.shape) < rng.choice([0.02, 0.5, 1.0]), fill, values)
        frames = {c: replace(f, step=f.step[f.step < n], jpeg=f.jpeg[: int((f.step < n).sum())]) for c, f in episode.frames.items()}
        time_s = np.sort(rng.uniform(0, 5, n)) if seed % 2 else episode.time_s[:n]
        return replace(episode, time_s=time_s, frames=frames, instructions=(Span("", 0, n),), **rows)

    folder = base.each(spoil).write(tmp_path / "junk")
    monkeypatch.undo()
    report = check_dataset(folder, full=False)
    assert not report.sound and {"not_finite", "outlier"} & kinds(report) and json.dumps(report.to_json())


def test_video_without_actions_is_looked_at_too(tmp_path):
    with ShardWriter(tmp_path / "v", DatasetInfo(name="v", supervision="none")) as writer:
        for name in "abc":
            writer.add(make_video(name, 40))
    report = check_dataset(tmp_path / "v")
    assert report.sound and kinds(report) <= {"duplicate_episodes", "blank_pictures"}


def test_the_command_line_says_how_bad_and_writes_the_page(clean, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vla.commands.check._Progress.every_s", 1e9)  # a slow machine would say how far it is
    good = clean("joints_slow").write(tmp_path / "good")
    bad = next(m for m in MUTANTS if m.name == "degrees for radians").change(clean("joints_slow")).write(tmp_path / "bad")
    assert main(["check", str(good), "--quick"]) == 0 and "dataset, sound" in capsys.readouterr().out
    assert main(["check", str(bad), "--json", "--sample", "6", "--html", str(tmp_path / "page.html")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["sound"] and report["severities"]["error"] >= 1
    finding = next(row for row in report["findings"] if row["kind"] == "degrees_for_radians")
    assert set(finding) == {"kind", "where", "severity", "detail", "evidence", "fix"} and finding["fix"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") >= 4 and page.count("data:image/jpeg;base64,") >= 12 and "degrees_for_radians" in page
    assert "http" not in page.replace("http-equiv", "")  # needs nothing from elsewhere
    other = clean("pose_rot6d").write(tmp_path / "other")  # of another robot
    assert main(["check", str(bad), "--sample", "0"]) == 0  # bytes alone are sound
    for wrong in (
        ["--sample", "-1"],
        ["--like", str(tmp_path / "nowhere")],
        ["--like", str(other)],
        ["--html", str(tmp_path / "no" / "x.html"), "--sample", "0"],
    ):
        assert main(["check", str(bad), *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_sample_is_bounded_and_the_same_every_time(tmp_path):
    robot = Robot("many", control="joint", rotation=None, episodes=30, steps=20, image_every=10, seed=5)
    folder = make(robot).write(tmp_path / "many")
    looked = [check_dataset(folder, full=False, budget=Budget(episodes=7, filmed=3)).samples[0] for _ in range(2)]
    ids = [[trace.id for trace in sample.traces] for sample in looked]
    assert ids[0] == ids[1] and len(ids[0]) == 7 and len(looked[0].films) <= 3
    places = [int(name[1:]) for name in ids[0]]
    assert places == sorted(places) and places[0] < 5 and places[-1] >= 25  # over the whole of it


@pytest.mark.thorough
def test_of_a_long_episode_a_part_is_kept(tmp_path):
    robot = Robot("long", control="joint", rotation=None, episodes=1, steps=2600, image_every=200, seed=6)
    folder = make(robot).write(tmp_path / "long")
    dataset = Dataset.open(folder)
    compute_stats([dataset], {dataset.info.robot.name: dataset.info.robot}, 0.0, save=True)
    report = check_dataset(folder, full=False)
    (trace,) = report.samples[0].traces
    assert dataset.episode(0).steps > MAX_ROWS and len(trace.state) == len(trace.time_s) == MAX_ROWS
    assert trace.state.base is None  # a copy: the rest is not held
    assert report.sound, [str(f) for f in report.findings]
