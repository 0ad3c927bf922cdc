"""Statistics of what a model learns: encoded action targets, and states, of the training episodes; kept beside each dataset.

<dataset>/stats/<robot>-<key>.json      one robot, frames, horizon, rate and held-out fraction; tied to the dataset's digest
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vla.data import format as fmt
from vla.data.mixture import VAL_FRACTION, Mixture
from vla.data.quarantine import BadSample
from vla.data.reader import Dataset, StoredEpisode
from vla.data.split import Split
from vla.data.window import Targets
from vla.embodiment import Embodiment, Space
from vla.errors import Damaged, SchemaError
from vla.normalize import RobotStats, StatsKey

Progress = Callable[[str, int, int], None]
"""Called with (dataset, episodes done, episodes in all)."""


def compute_stats(
    data: Mixture | Sequence[Dataset],
    embodiments: Mapping[str, Embodiment],
    val_fraction: float | None = None,
    save: bool = False,
    progress: Progress | None = None,
) -> dict[str, RobotStats]:
    """Robot name -> statistics over all datasets recorded on it; robots without action labels have none.

    Every sample weighs the same, whatever a mixture's weights: statistics belong to the data. Deterministic: the same datasets in
    the same order give the same bits. Reads what `save` left in `<dataset>/stats/`; what belongs to other bytes, another split or
    another robot is computed again.
    """
    datasets = [source.dataset for source in data.sources] if isinstance(data, Mixture) else list(data)
    if val_fraction is None:
        val_fraction = data.val_fraction if isinstance(data, Mixture) else VAL_FRACTION
    found: dict[str, RobotStats] = {}
    for dataset in datasets:
        robot = _robot(dataset, embodiments)
        if robot is None:
            continue
        stats = load_stats(dataset, robot, val_fraction)
        if stats is None:
            stats = dataset_stats(dataset, robot, val_fraction, progress)
            if save:
                save_stats(dataset, robot, val_fraction, stats)
        if robot.name in found:
            found[robot.name].merge(stats)
        else:
            found[robot.name] = stats
    return found


def dataset_stats(dataset: Dataset, robot: Embodiment, val_fraction: float = VAL_FRACTION, progress: Progress | None = None) -> RobotStats:
    """Statistics of one dataset's training episodes, read from it.

    A row whose state or action holds NaN or infinity is left out of both, as if it had not been recorded, and a chunk that holds
    one is left out whole; what was left out is counted in `dropped`.
    """
    info = dataset.info
    assert info.recorded_action is not None
    if (info.recorded_state or Space(())) != robot.state:
        raise SchemaError(f"{info.name} recorded another state than '{robot.name}' has: {info.state_space}")
    targets, stats = Targets(robot, info.recorded_action), RobotStats.empty(robot)
    split = Split(dataset, "train", val_fraction)
    for done, index in enumerate(split.episode_E):
        episode = dataset.episode(int(index))
        stats.state.update_finite(_blank_unless(_finite(episode), _state(episode))[episode.anchors])
        stats.action.update_finite(target_rows(targets, episode))
        if progress is not None:
            progress(info.name, done + 1, len(split.episode_E))
    return stats


def target_rows(targets: Targets, episode: StoredEpisode) -> np.ndarray:
    """All real (not padded) rows of the chunks of one episode, float64 (n, A); NaN throughout where a row cannot be used.

    Where a row is the same in every chunk, each is given once: repeats change no quantile but near the episode's ends.
    """
    assert episode.action is not None
    finite = _finite(episode)
    if targets.plain and episode.rate_hz == targets.robot.rate_hz:
        return _blank_unless(finite, episode.action)[episode.anchors[0] :]
    parts = []
    for step in episode.anchors:
        try:
            action_TA, valid_T = targets.chunk(episode, int(step)) if finite[step] else (None, None)
        except BadSample as bad:
            if bad.cause != "nonfinite":
                raise
            action_TA = None
        parts.append(np.full((1, episode.action.shape[1]), np.nan) if action_TA is None else action_TA[valid_T])
    return np.concatenate(parts)


def stats_path(dataset: Dataset, robot: Embodiment, val_fraction: float) -> Path:
    """Where these statistics are kept. Anything they depend on, but for the data itself, is in the name."""
    depends = [StatsKey.of(robot).to_json(), robot.state.to_json(), robot.action.to_json(), val_fraction]
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
    return dataset.folder / "stats" / f"{robot.name}-{key}.json"


def save_stats(dataset: Dataset, robot: Embodiment, val_fraction: float, stats: RobotStats) -> Path:
    """Keeps them beside the dataset, for these bytes, this split and this robot's encoding; `load_stats` finds them."""
    path = stats_path(dataset, robot, val_fraction)
    path.parent.mkdir(exist_ok=True)
    record = {"dataset": dataset.digest, "val_fraction": val_fraction, "stats": stats.to_json()}
    fmt.write_atomic(path, fmt.to_json(record, f"statistics of '{robot.name}'"))
    return path


def load_stats(dataset: Dataset, robot: Embodiment, val_fraction: float) -> RobotStats | None:
    """What `save_stats` kept for exactly these bytes, this split and this robot; None where there is nothing."""
    path = stats_path(dataset, robot, val_fraction)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["dataset"] != dataset.digest:
            return None  # of an older version of this dataset
        return RobotStats.from_json(record["stats"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Damaged(f"{path} is damaged ({error}); remove it and run `vla stats` again") from error


def read_stats(path: Path) -> RobotStats:
    """A statistics file as `save_stats` writes it, whatever data it is of. Damaged where it is none."""
    try:
        return RobotStats.from_json(json.loads(path.read_text(encoding="utf-8"))["stats"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise Damaged(f"{path} is no statistics file: {why}; `vla stats DATASET --embodiment ROBOT` writes one beside a dataset") from error


def _finite(episode: StoredEpisode) -> np.ndarray:
    """bool (steps,): rows whose state and action are both numbers."""
    assert episode.action is not None
    return np.isfinite(_state(episode)).all(1) & np.isfinite(episode.action).all(1)


def _state(episode: StoredEpisode) -> np.ndarray:
    """float64 (steps, P); width 0 for a robot whose state nobody recorded."""
    return np.zeros((episode.steps, 0)) if episode.state is None else episode.state


def _blank_unless(keep: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows if keep.all() else np.where(keep[:, None], rows, np.nan)


def _robot(dataset: Dataset, embodiments: Mapping[str, Embodiment]) -> Embodiment | None:
    recorded = dataset.info.robot
    if recorded is None or dataset.info.recorded_action is None:
        return None
    return embodiments.get(recorded.name)
