"""What an evaluation found: a row per episode, and everything one needs to repeat it or to doubt it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from vla.data.format import write_atomic
from vla.errors import UserError
from vla.sim.env import EVALUATION_SEEDS

FORMAT_VERSION = 1

TERMINATION = (
    "An episode is a success at the first control step whose info['success'] is true, and ends there. It is a failure after the "
    "task's max_steps control steps, or when its simulator crashes or gives no answer in time (see the row's reason)."
)

PACKAGES = (
    "vla",
    "torch",
    "numpy",
    "scipy",
    "transformers",
    "mujoco",
    "metaworld",
    "gymnasium",
    "gymnasium-robotics",
    "gym-aloha",
    "gym-pusht",
    "robosuite",
)


ACTS = ("name", "manifest_sha256", "fingerprint", "optimized", "evaluations", "samples", "value_sha256", "agree", "self_guidance")
"""What a result says of its policy that tells two apart whose rows must not be mixed, beside the device."""


def identity(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a result says of its policy, what tells two apart whose rows must not be mixed."""
    return {key: policy[key] for key in (*ACTS, "device") if key in policy}


def episode_seed(seed: int, task: str, episode: int) -> int:
    """The simulator's seed of one episode: the same for every policy evaluated under `seed`, so results pair up."""
    return EVALUATION_SEEDS + stable_hash("episode", seed, task, episode) % EVALUATION_SEEDS


def stable_hash(*parts: object) -> int:
    """A non-negative int64 that depends on the parts alone, not on the process or the machine."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def call_key(seed: int, task: str, episode: int, call: int) -> int:
    """What seeds the noise of an episode's `call`-th chunk."""
    return stable_hash("call", seed, task, episode, call)


def sampled(counts: Mapping[str, int]) -> dict[str, Any]:
    """What a policy has counted while it sampled (`ActionDecoder.facts`), as results state it: with the rate."""
    return {**counts, "repair_rate": counts["repaired"] / counts["chunks"]} if counts.get("chunks") else {}


@dataclass(frozen=True)
class Row:
    """One episode. `steps`: control steps run. `reason`: success, max_steps, crashed: ..., or timed out: .... `reward`: their sum.
    `decisions`: chunks that the policy was asked for (0 for the expert, and in files from before these were counted)."""

    task: str
    episode: int
    seed: int
    success: bool
    steps: int
    reason: str
    reward: float
    decisions: int = 0

    @property
    def measured(self) -> bool:
        """Whether the simulator ran to the end; an episode whose simulator did not counts as failed all the same."""
        return self.reason in ("success", "max_steps")


@dataclass(frozen=True)
class Rate:
    """Successes out of episodes, with the Wilson interval [low, high] and the exact (Clopper-Pearson) one; 95%."""

    successes: int
    episodes: int
    rate: float
    low: float
    high: float
    exact_low: float
    exact_high: float

    @property
    def cells(self) -> tuple[str, str, str]:
        """As tables show it: "17/20", "85.0%", "64.0% – 94.8%"."""
        return f"{self.successes}/{self.episodes}", f"{self.rate:.1%}", f"{self.low:.1%} – {self.high:.1%}"

    @staticmethod
    def of(rows: Iterable[Row]) -> Rate:
        """Of episodes, at least one."""
        from vla.evaluate.statistics import clopper_pearson, wilson

        outcomes = [row.success for row in rows]
        count, successes = len(outcomes), sum(outcomes)
        score, exact = wilson(successes, count), clopper_pearson(successes, count)
        return Rate(successes, count, successes / count, score.low, score.high, exact.low, exact.high)


@dataclass(frozen=True)
class EvalResult:
    """`policy`: name, and for a checkpoint its manifest's sha256. `time`: seconds of each activity, summed over processes.

    `videos`: file names by task and outcome, beside the JSON or in the folder that was asked for. `notes`: what a reader must know.
    `probe`: what was perturbed (`vla.evaluate.probes`), if anything. `shard`: which part of the episodes this is, as "1/4", or "".
    `episodes`: per task that were asked for, of all shards. `stopping`: the rule by which the run ended early, and its verdict, if any.
    `group_of`: how the benchmark groups its tasks, where it does.
    """

    policy: Mapping[str, Any]
    suite: str
    embodiment: str
    held_out: bool
    seed: int
    execute: int
    ensemble: str
    image_size: int
    max_steps: Mapping[str, int]
    rows: tuple[Row, ...]
    seconds: float
    cpu_seconds: float
    workers: int
    time: Mapping[str, float]
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    command: str = ""
    videos: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    termination: str = TERMINATION
    probe: Mapping[str, Any] | None = None
    shard: str = ""
    episodes: int = 0
    stopping: Mapping[str, Any] | None = None
    group_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, Rate]:
        """By task, in the suite's order; a shard may hold no episode of some."""
        ran = {row.task for row in self.rows}
        return {name: Rate.of(row for row in self.rows if row.task == name) for name in self.max_steps if name in ran}

    @property
    def pooled(self) -> Rate:
        """Over all episodes: the mean of the tasks, since each has the same number of episodes."""
        return Rate.of(self.rows)

    @property
    def groups(self) -> dict[str, Rate]:
        """By the benchmark's group of tasks; empty where it has not two of them among these."""
        names = dict.fromkeys(self.group_of[task] for task in self.tasks if task in self.group_of)
        of = {name: [row for row in self.rows if self.group_of.get(row.task) == name] for name in names}
        return {name: Rate.of(rows) for name, rows in of.items()} if len(of) > 1 else {}

    @property
    def mean_over_groups(self) -> float | None:
        """Each group counts as much as another, however many tasks it has; None without groups."""
        rates = [rate.rate for rate in self.groups.values()]
        return sum(rates) / len(rates) if rates else None

    def to_json(self) -> dict[str, Any]:
        """The result file: totals with intervals, per task, and one raw row per episode."""
        data = asdict(self)
        summary = {
            "kind": "evaluation",
            "format_version": FORMAT_VERSION,
            "success": asdict(self.pooled),
            "tasks": {name: asdict(rate) for name, rate in self.tasks.items()},
        }
        if self.groups:
            grouped = {"groups": {name: asdict(rate) for name, rate in self.groups.items()}, "mean_over_groups": self.mean_over_groups}
            summary = {**summary, **grouped}
        return {**summary, **data}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EvalResult:
        """The inverse of `to_json`, also of files from before some fields."""
        added = ("termination", "probe", "shard", "episodes", "stopping", "group_of")  # files of before have none of these
        known = {name: data[name] for name in EvalResult.__dataclass_fields__ if name in data or name not in added}
        rows = tuple(Row(**{name: value for name, value in row.items() if name in Row.__dataclass_fields__}) for row in data["rows"])
        return EvalResult(**{**known, "rows": rows, "videos": tuple(data["videos"]), "notes": tuple(data["notes"])})


def read_result(path: str | Path) -> EvalResult:
    """What `vla eval --json` wrote. Raises UserError for anything else."""
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Give a file that `vla eval --json FILE` wrote.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON. Give a file that `vla eval --json FILE` wrote.") from error
    if not isinstance(data, dict) or data.get("kind") != "evaluation" or data.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is no evaluation of format {FORMAT_VERSION}. Give a file that `vla eval --json FILE` wrote.")
    try:
        return EvalResult.from_json(data)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is an incomplete evaluation ({error}). Run `vla eval` again.") from error


def write_result(path: str | Path, result: EvalResult) -> Path:
    """The file that `read_result` reads, whole or not at all; its folder is made if need be."""
    path = Path(path)
    text = json.dumps(result.to_json(), indent=1) + "\n"
    if path.exists() and not path.is_file():  # such as /dev/stdout
        path.write_text(text)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
    return path


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result; those not installed are left out."""
    import platform

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout that `vla` runs from, with "+changes" if files differ from it; None outside a checkout."""
    import vla

    root = Path(vla.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes.strip() else "")
