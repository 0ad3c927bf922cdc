"""`evaluate`: a policy in closed loop on the tasks of a suite."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import UserError
from vla.evaluate.baselines import Actor, Expert
from vla.evaluate.batching import Batcher, one_thread
from vla.evaluate.journal import RULES, Journal, check_replaced
from vla.evaluate.probes import Probe, disguise
from vla.evaluate.resolve import Sampling, resolve
from vla.evaluate.result import TERMINATION, EvalResult, Row, episode_seed, git_commit, identity, sampled, versions
from vla.evaluate.rollouts import Job, Rollouts, Watch
from vla.evaluate.shards import Shard
from vla.evaluate.stopping import Rival
from vla.evaluate.video import choose, film
from vla.execute.ensemble import Overlapping
from vla.execute.queue import usually_executed
from vla.sim.env import EVALUATION_SEEDS, IMAGE_SIZE, Suite
from vla.sim.suites import load_suite


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
    episodes: int | None = None,
    seed: int = 0,
    *,
    execute: int | None = None,
    ensemble: Overlapping | None = None,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
    learning: bool = False,
    shard: Shard | None = None,
    rival: Rival | None = None,
    journal: Path | None = None,
    workers: int = 2,
    slots: int = 4,
    image_size: int | None = None,
    video: Path | None = None,
    videos_per_outcome: int = 1,
    timeout_s: float = 60.0,
    device: str = "cpu",
    optimize: bool = False,
    evaluations: int | None = None,
    python: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str = "",
) -> EvalResult:
    """Success rates with their raw rows. The rule by which an episode ends is the result's `termination`.

    `policy`: a checkpoint folder, the name of a baseline (random, hold, expert), or an object with `act_batch`. `tasks`: all of the
    suite when empty. `episodes`: of each task (by default as many as the suite's protocol has). `execute`: commands of each chunk before
    the next one (by default 5/6 of it). `probe`: one declared perturbation. `sampling`: several chunks for each, or
    self-guidance. `learning`: episodes that no evaluation draws, for those who learn from them. `shard`: the
    part of the episodes to run here (`vla.evaluate.shards.merge`). `rival`: another policy's result; the run ends as soon as its rule
    says which is better. `journal`: the result's file; rows are kept beside it as they end, and those of a run that was killed are not
    run again. `workers`: simulator processes with `slots` episodes each; neither changes a result. `image_size`: pixels, by default
    what the checkpoint's backbone sees. `video`: folder for animations of the first successes and failures of each task. `timeout_s`: a
    simulator silent for longer is killed and its episode counted as failed. `optimize`:
    `Policy.optimize_for_inference`, whose actions differ by rounding. `evaluations`: of the network for a chunk (`Policy.load`).
    `python`: the interpreter of the simulator's own environment. On a GPU the last bits of a chunk may depend on the batch it was in, so
    single episodes near the edge of success may differ from run to run; on a CPU they do not.

    Raises UserError (names the choices) for an unknown suite, task or robot, and SimulatorFailed if a simulator cannot run here.
    """
    began, cpu = time.monotonic(), time.process_time()
    suite = load_suite(suite) if isinstance(suite, str) else suite
    episodes, shard = suite.episodes if episodes is None else episodes, shard or Shard()
    names = _checked(suite, tasks, episodes, workers, slots)
    found = resolve(policy, suite, device, optimize, evaluations)
    acting = _acting(*found, execute=execute, sampling=sampling or Sampling(), image_size=image_size, probe=probe)
    how = {"image_size": acting.image_size, "execute": acting.execute, "ensemble": repr(ensemble) if ensemble else "newest chunk"}
    declared, setup = _declared(suite, seed, how, probe), _setup(suite, acting, ensemble, probe)
    rounds = _rounds(names, episodes, shard, rival, declared)
    max_steps = {name: suite.task(name).max_steps for name in names}
    kept = None
    if journal is not None:
        asked = {"tasks": max_steps, "episodes": episodes, "shard": shard.spec}
        kept = _opened(journal, declared, identity(acting.facts), rival, asked)
    known: Mapping[tuple[str, int], Row] = kept.rows if kept is not None else {}
    report = _Reporter(sum(map(len, rounds)), kept, progress)
    counted = _counts(acting.actor)  # an object may have acted before
    batcher = acting.actor if isinstance(acting.actor, Expert) else Batcher(acting.actor, suite.embodiment)
    watch = Watch(report, timeout_s, python, disguise(probe, suite))
    rollouts = Rollouts(batcher, setup, seed, workers, slots, watch)
    videos: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    report(None)
    with closing(kept) if kept is not None else nullcontext(), closing(rollouts):
        rows = _run(rollouts, rounds, known, rival, report, lambda key: Job(*key, _seed(suite, seed, learning, *key)))
        rows = {key: rows[key] for key in sorted(rows, key=lambda key: (names.index(key[0]), key[1]))}
        if video is not None:
            rollouts.commands.update(kept.commands if kept is not None else {})
            videos, notes = film(rollouts, choose(list(rows.values()), videos_per_outcome), video, workers)
    if isinstance(batcher, Batcher) and batcher.unfamiliar is not None:
        notes += tuple(batcher.unfamiliar.lines())
    if resumed := sum(key in known for key in rows):
        notes += (f"{resumed} of {len(rows)} episodes were run before; times are of the rest",)
    parent_cpu = time.process_time() - cpu
    counts = {name: count - counted.get(name, 0) for name, count in _counts(acting.actor).items()}
    return EvalResult(
        policy={**acting.facts, **sampled(counts)},
        suite=suite.name,
        embodiment=suite.embodiment.name,
        held_out=suite.held_out,
        seed=seed,
        **how,
        max_steps=max_steps,
        rows=tuple(rows.values()),
        seconds=time.monotonic() - began,
        cpu_seconds=parent_cpu + rollouts.clock.get("cpu", 0.0),
        workers=workers,
        time=_time(rollouts, parent_cpu),
        versions=versions(),
        commit=git_commit(),
        command=command,
        videos=videos,
        notes=notes,
        termination=suite.termination or TERMINATION,
        probe=declared["probe"],
        shard=shard.spec,
        episodes=episodes,
        stopping=rival.to_json() if rival is not None else None,
        group_of={name: group for name in names if (group := suite.task(name).group)},
    )


@dataclass(frozen=True)
class _Acting:
    """The policy as it acts in this evaluation. `facts`: what the result says of it. `cameras`: the roles that it looks through.
    `varies`: whether it may execute fewer than `execute` commands of a chunk."""

    actor: Actor | Expert
    facts: dict[str, Any]
    cameras: tuple[str, ...]
    execute: int
    image_size: int
    offsets_s: list[float]
    varies: bool


def _acting(
    actor: Actor | Expert,
    facts: dict[str, Any],
    robot: Embodiment,
    *,
    execute: int | None,
    sampling: Sampling,
    image_size: int | None,
    probe: Probe | None,
) -> _Acting:
    """What was resolved, with what was asked of it. Raises UserError where they do not go together."""
    execute = execute or usually_executed(robot.horizon)
    actor, facts = sampling.of(actor, facts, execute)
    image_size = image_size or facts.pop("image_size", IMAGE_SIZE)
    if execute > robot.horizon:
        raise UserError(f"cannot execute {execute} commands of chunks of {robot.horizon}; give --execute 1 to {robot.horizon}")
    if probe is not None and probe.watched and isinstance(actor, Expert):
        raise UserError(f"the scripted expert looks at no observation, so {probe.spec} changes nothing for it; give a policy")
    offsets_s = facts.get("offsets_s", [0.0])
    return _Acting(actor, facts, robot.cameras, execute, image_size, offsets_s, varies=sampling.agree is not None)


class _Reporter:
    """Hears of every row, those of an earlier run too: counts, tells whoever watches, and keeps what was run now on disk."""

    def __init__(self, total: int, journal: Journal | None, progress: Callable[[Progress], None] | None) -> None:
        self.total, self.journal, self.progress = total, journal, progress
        self.done = self.successes = 0

    def __call__(self, row: Row | None, commands: np.ndarray | None = None) -> None:
        """`row`: None at the start. `commands`: (steps, A), of an episode that was run now."""
        if row is not None:
            self.done, self.successes = self.done + 1, self.successes + row.success
            if self.journal is not None and commands is not None:
                self.journal.add(row, commands)
        if self.progress is not None:
            self.progress(Progress(self.done, self.total, self.successes, row))


def _opened(
    journal: Path, declared: Mapping[str, Any], policy: Mapping[str, Any], rival: Rival | None, asked: Mapping[str, Any]
) -> Journal:
    """Beside the result's file, which may hold the same evaluation and no other."""
    steps = {"tasks": {name: f"{count} steps" for name, count in asked["tasks"].items()}}
    against = {"against": rival.name, "level": rival.level} if rival is not None else {}
    check_replaced(journal, {**{key: declared[key] for key in RULES}, **asked, **steps, **against, "policy": policy})
    return Journal(journal, {**declared, "policy": policy, "versions": versions()})


def _checked(suite: Suite, tasks: Sequence[str], episodes: int, workers: int, slots: int) -> list[str]:
    """The tasks' names, all of them known. Raises UserError for what cannot be run."""
    if not suite.spec:
        raise UserError(f"suite '{suite.name}' was made in code; save it in a .py file as SUITE, so that simulator processes can load it")
    if suite.supervision == "tracks":
        raise UserError(f"suite '{suite.name}' records what a hand shows; nothing acts in it. Evaluate on the robot's own suite.")
    for name, value in {"episodes": episodes, "workers": workers, "slots": slots}.items():
        if value < 1:
            raise UserError(f"{name} is {value}; give at least 1")
    names = [suite.task(name).name for name in tasks or [task.name for task in suite.tasks]]
    if len(set(names)) != len(names):
        raise UserError(f"a task is named twice: {', '.join(names)}")
    for name in names:
        if 0 < suite.task(name).layouts < episodes:
            most = suite.task(name).layouts
            raise UserError(f"task '{name}' of {suite.name} has {most} layouts, each for one episode; give --episodes {most} or fewer")
    return names


def _declared(suite: Suite, seed: int, how: Mapping[str, Any], probe: Probe | None) -> dict[str, Any]:
    """What an episode's outcome depends on beside the policy: rows of runs that differ in it are never mixed."""
    rules = {
        "max_steps": {task.name: task.max_steps for task in suite.tasks},
        "options": {task.name: {key: repr(value) for key, value in task.options.items()} for task in suite.tasks},
    }
    return {"suite": suite.name, "seed": seed, **how, "probe": probe.to_json() if probe is not None else None, **rules}


def _setup(suite: Suite, acting: _Acting, ensemble: Overlapping | None, probe: Probe | None) -> dict[str, Any]:
    """What a simulator process is told when it starts."""
    disturbance = probe.disturbance if probe is not None else None
    return {
        "suite": suite.spec,
        "image_size": acting.image_size,
        "execute": acting.execute,
        "ensemble": ensemble.spec if ensemble else None,
        "delay": probe.delay(suite, acting.execute) if probe is not None else 0,
        "disturbance": [disturbance.part, disturbance.amount] if disturbance is not None else None,
        "offsets_s": acting.offsets_s,
        "varies": acting.varies,
        "cameras": list(acting.cameras),
    }


def _rounds(
    names: Sequence[str], episodes: int, shard: Shard, rival: Rival | None, declared: Mapping[str, Any]
) -> list[list[tuple[str, int]]]:
    """(task, episode)s, in the parts after which a rival's rule looks at them; one part without a rival."""
    part = shard.part(names, episodes)
    if not part:
        raise UserError(f"shard {shard.spec} of {len(names) * episodes} episodes is empty; give fewer shards")
    if rival is None:
        return [part]
    if shard.count > 1:
        raise UserError("a run that stops by its outcomes cannot be run in shards; leave out --shard or --against")
    return rival.rounds(names, episodes, declared)


def _run(
    rollouts: Rollouts,
    rounds: Sequence[Sequence[tuple[str, int]]],
    known: Mapping[tuple[str, int], Row],
    rival: Rival | None,
    report: Callable[[Row], None],
    job: Callable[[tuple[str, int]], Job],
) -> dict[tuple[str, int], Row]:
    """Rows by (task, episode): those `known` from an earlier run, the others run now; until a rival's rule has decided, if there is one."""
    found: dict[tuple[str, int], Row] = {}
    for part in rounds:
        old = {key: known[key] for key in part if key in known}
        for row in old.values():
            report(row)
        with one_thread():
            rollouts.run(job(key) for key in part if key not in old)
        found.update({key: old[key] if key in old else rollouts.rows[key] for key in part})
        if rival is not None and rival.decided([found[key] for key in part]):
            break
    return found


def _seed(suite: Suite, seed: int, learning: bool, task: str, episode: int) -> int:
    """What the simulator starts the episode from: a seed drawn for it, or the number of its layout where the benchmark lists them."""
    if learning and suite.task(task).layouts:
        raise UserError(f"the start states of {suite.name} are those of its evaluations; learn in another suite")
    drawn = episode_seed(seed, task, episode) - (EVALUATION_SEEDS if learning else 0)
    return episode if suite.task(task).layouts else drawn


def _counts(actor: Actor | Expert) -> dict[str, int]:
    """What its sampling has met so far, if it counts anything."""
    return getattr(actor, "facts", dict)()


def _time(rollouts: Rollouts, parent_cpu: float) -> dict[str, float]:
    """Where the processor time went, in seconds summed over processes."""
    clock = rollouts.clock
    named = ("build", "reset", "step", "render", "replay")
    workers_cpu = clock.get("cpu", 0.0)
    seconds = {"policy": clock["policy"], **{name: clock.get(name, 0.0) for name in named}}
    seconds["cpu_policy_process"], seconds["cpu_simulator_processes"] = parent_cpu, workers_cpu
    return {name: round(value, 3) for name, value in seconds.items()}
