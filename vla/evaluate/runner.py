"""`evaluate`: a policy in closed loop on the tasks of a suite."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.embodiment import Embodiment
from vla.errors import UnknownName, UserError
from vla.evaluate.baselines import BASELINES, Actor, Expert, baseline
from vla.evaluate.batching import Batcher, one_thread
from vla.evaluate.result import EvalResult, Row, git_commit, versions
from vla.evaluate.rollouts import Rollouts
from vla.evaluate.video import choose, film
from vla.execute.ensemble import AdaptiveEnsemble, TemporalEnsemble
from vla.sim.env import IMAGE_SIZE, Suite
from vla.sim.suites import load_suite

if TYPE_CHECKING:
    from vla.policy import Policy

EXECUTED_SHARE = Fraction(5, 6)
"""Share of a chunk that is executed by default: its last steps are the least sure ones."""


@dataclass(frozen=True)
class Progress:
    """At the start and after each episode: how many of how many are done, how many succeeded, and the newest row."""

    done: int
    total: int
    successes: int
    row: Row | None


def evaluate(
    policy: str | Path | Actor | Expert,
    suite: str | Suite,
    tasks: Sequence[str] = (),
    episodes: int = 40,
    seed: int = 0,
    *,
    execute: int | None = None,
    ensemble: TemporalEnsemble | AdaptiveEnsemble | None = None,
    workers: int = 2,
    slots: int = 4,
    image_size: int | None = None,
    video: Path | None = None,
    videos_per_outcome: int = 1,
    timeout_s: float = 60.0,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    command: str = "",
) -> EvalResult:
    """Success rates with their raw rows. The rule by which an episode ends is `vla.evaluate.result.TERMINATION`.

    `policy`: a checkpoint folder, the name of a baseline (random, hold, expert), or an object with `act_batch`. `tasks`: all of the
    suite when empty. `execute`: commands of each chunk before the next one (by default 5/6 of it). `workers`: simulator processes
    with `slots` episodes each; neither changes a result. `image_size`: pixels, by default what the checkpoint's backbone sees.
    `video`: folder for animations of the first successes and failures of each task. `timeout_s`: a simulator silent for longer is
    killed and its episode counted as failed. On a GPU the last bits of a chunk may depend on the batch it was in, so single episodes
    near the edge of success may differ from run to run; on a CPU they do not.

    Raises UserError (names the choices) for an unknown suite, task or robot, and SimulatorFailed if a simulator cannot run here.
    """
    start, cpu = time.monotonic(), time.process_time()
    suite = load_suite(suite) if isinstance(suite, str) else suite
    names = _checked(suite, tasks, episodes, workers, slots)
    actor, facts, robot = _resolve(policy, suite, device)
    execute = execute or max(1, int(robot.horizon * EXECUTED_SHARE))
    image_size = image_size or facts.pop("image_size", IMAGE_SIZE)
    if execute > robot.horizon:
        raise UserError(f"cannot execute {execute} commands of chunks of {robot.horizon}; give --execute 1 to {robot.horizon}")
    setup = {
        "suite": suite.spec,
        "image_size": image_size,
        "execute": execute,
        "ensemble": ensemble.spec if ensemble else None,
    }
    rows: list[Row] = []

    def report(row: Row | None) -> None:
        rows.extend([row] if row is not None else [])
        if progress is not None:
            progress(Progress(len(rows), len(names) * episodes, sum(row.success for row in rows), row))

    batcher = actor if isinstance(actor, Expert) else Batcher(actor, suite.embodiment)
    rollouts = Rollouts(batcher, setup, names, episodes, seed, workers, slots, timeout_s, report)
    videos: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    report(None)
    try:
        with one_thread():
            rollouts.run()
        if video is not None:
            videos, notes = film(rollouts, choose(rollouts.rows, videos_per_outcome), video, workers)
    finally:
        rollouts.close()
    parent_cpu = time.process_time() - cpu
    said = getattr(actor, "facts", dict)()  # after acting: what only acting can tell
    return EvalResult(
        policy={**facts, **said},
        suite=suite.name,
        embodiment=suite.embodiment.name,
        held_out=suite.held_out,
        seed=seed,
        execute=execute,
        ensemble=repr(ensemble) if ensemble else "newest chunk",
        image_size=image_size,
        max_steps={name: suite.task(name).max_steps for name in names},
        rows=rollouts.rows,
        seconds=time.monotonic() - start,
        cpu_seconds=parent_cpu + rollouts.clock.get("cpu", 0.0),
        workers=workers,
        time=_time(rollouts, parent_cpu),
        versions=versions(),
        commit=git_commit(),
        command=command,
        videos=videos,
        notes=notes,
    )


def _checked(suite: Suite, tasks: Sequence[str], episodes: int, workers: int, slots: int) -> list[str]:
    """The tasks' names, all of them known. Raises UserError for what cannot be run."""
    if not suite.spec:
        raise UserError(f"suite '{suite.name}' was made in code; save it in a .py file as SUITE, so that simulator processes can load it")
    for name, value in {"episodes": episodes, "workers": workers, "slots": slots}.items():
        if value < 1:
            raise UserError(f"{name} is {value}; give at least 1")
    names = [suite.task(name).name for name in tasks or [task.name for task in suite.tasks]]
    if len(set(names)) != len(names):
        raise UserError(f"a task is named twice: {', '.join(names)}")
    return names


def _resolve(policy: str | Path | Actor | Expert, suite: Suite, device: str) -> tuple[Actor | Expert, dict[str, Any], Embodiment]:
    """The policy, what the result says of it, and the robot as the policy knows it (its chunks' length)."""
    if isinstance(policy, str) and policy in BASELINES:
        return baseline(policy, suite.embodiment), {"name": policy}, suite.embodiment
    if isinstance(policy, (str, Path)):
        return _load(Path(policy), suite, device)
    contents = getattr(policy, "contents", None)
    robot = _robot_of(contents, suite) if contents is not None else suite.embodiment
    return policy, {"name": type(policy).__name__.lower()}, robot


def _load(folder: Path, suite: Suite, device: str) -> tuple[Policy, dict[str, Any], Embodiment]:
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder {folder}. Give one, or a baseline: {', '.join(BASELINES)}.")
    from vla.checkpoint import acting, sha256
    from vla.policy import Policy

    folder = acting(folder)
    policy = Policy.load(folder, device)
    robot = _robot_of(policy.contents, suite)
    model = policy.contents.model
    facts = {
        "name": str(folder),
        "manifest_sha256": sha256(folder / "manifest.json"),
        "backbone": model.backbone.kind,
        "decoder": model.decoder.kind,
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "device": device,
    }
    size = getattr(model.backbone, "image_size", None)
    return policy, {**facts, **({"image_size": size} if size else {})}, robot


def _robot_of(contents: Any, suite: Suite) -> Embodiment:
    """The checkpoint's own robot of the suite's name; it must mean the same numbers and see the same cameras."""
    robots = {robot.name: robot for robot in contents.embodiments}
    name = suite.embodiment.name
    if name not in robots:
        raise UnknownName("embodiment of this checkpoint", name, robots, f"Suite {suite.name} needs it: fine-tune (finetune/forkme.py).")
    ours, theirs = suite.embodiment.to_json(), robots[name].to_json()
    differ = [key for key in ("cameras", "state", "command", "rate_hz", "limits") if ours[key] != theirs[key]]
    if differ:
        raise UserError(
            f"the checkpoint's '{name}' differs from the suite's in {', '.join(differ)}: "
            + "; ".join(f"{key} {theirs[key]} against {ours[key]}" for key in differ)
        )
    return robots[name]


def _time(rollouts: Rollouts, parent_cpu: float) -> dict[str, float]:
    """Where the processor time went, in seconds summed over processes."""
    clock = rollouts.clock
    named = ("build", "reset", "step", "render", "replay")
    workers_cpu = clock.get("cpu", 0.0)
    seconds = {"policy": clock["policy"], **{name: clock.get(name, 0.0) for name in named}}
    seconds["cpu_policy_process"], seconds["cpu_simulator_processes"] = parent_cpu, workers_cpu
    return {name: round(value, 3) for name, value in seconds.items()}
