"""Do codes mean motion? A linear probe from codes to what the robot did, on episodes that the probe has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla.data.reader import Dataset, StoredEpisode
from vla.latent_action.pairs import later_anchors


def probe(
    dataset: Dataset,
    code_XN: np.ndarray,
    vocabulary: int,
    gap_s: float,
    test_share: float = 0.3,
    episodes: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """R2 of a linear map from one-hot codes, on episodes that it was not fitted on, to what the robot did between the frames.

    `displacement`: change of each absolute state field in metres; `action`: sum of each `step`-frame action field. One R2 per
    dimension. A dataset without labels, or with one episode, gives {}. The split is by episode name; it is not the pipeline's.
    `episodes`: those that the codes are of (None: all).
    """
    count = len(dataset) if episodes is None else len(episodes)
    if count < 2:
        return {}
    tested = min(max(round(test_share * count), 1), count - 1)
    key_E = dataset.key_E if episodes is None else dataset.key_E[np.asarray(episodes)]
    test_E = np.argsort(np.argsort(key_E)) < tested
    episode_X, moves = true_moves(dataset, gap_s, episodes)
    coded_X = (code_XN >= 0).all(1)
    test = test_E[episode_X[coded_X]]
    return {name: probe_r2(code_XN[coded_X], vocabulary, moves_XD[coded_X], test) for name, moves_XD in moves.items()}


def agreement(
    datasets: Mapping[str, tuple[Dataset, np.ndarray, Sequence[int] | None]], vocabulary: int, gap_s: float
) -> dict[str, dict[str, float]]:
    """Does a code mean the same on another robot? name -> other name -> mean R2 of a linear map fitted on one,
    used on the other.

    `datasets`: name -> (dataset, codes, the episodes that they are of; None: all). Compared are displacements in metres that both
    robots have under the same name and size; pairs of datasets of one embodiment, and those with nothing to compare, are left out.
    Below 0: worse than the other's own mean, as when cameras see the robots from other sides.
    """
    known = {name: (dataset, code_XN, true_moves(dataset, gap_s, which)[1]) for name, (dataset, code_XN, which) in datasets.items()}
    found: dict[str, dict[str, float]] = {}
    for name, (dataset, code_XN, moves) in known.items():
        for other, (other_set, other_XN, other_moves) in known.items():
            shared = [key for key in moves if key.startswith("displacement/") and key in other_moves]
            shared = [key for key in shared if moves[key].shape[1] == other_moves[key].shape[1]]
            if dataset.info.robot is None or other_set.info.robot is None or dataset.info.robot.name == other_set.info.robot.name:
                continue
            both_XN = np.concatenate([code_XN, other_XN])
            coded_X, test_X = (both_XN >= 0).all(1), np.arange(len(both_XN)) >= len(code_XN)
            for key in shared:
                target_XD = np.concatenate([moves[key], other_moves[key]])
                r2_D = probe_r2(both_XN[coded_X], vocabulary, target_XD[coded_X], test_X[coded_X])
                found.setdefault(name, {})[other] = float(r2_D.mean())
    return found


def true_moves(dataset: Dataset, gap_s: float, episodes: Sequence[int] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the robot did between the frames of each anchor's pair: its episode's place (anchors,), and name -> (anchors, size)."""
    rows: dict[str, list[np.ndarray]] = {}
    episode_X = []
    for place, index in enumerate(range(len(dataset)) if episodes is None else episodes):
        episode = dataset.episode(index)
        later = episode.anchors[later_anchors(episode, gap_s)]
        for name, values in _moves(dataset, episode, later).items():
            rows.setdefault(name, []).append(values)
        episode_X.append(np.full(len(later), place))
    return np.concatenate(episode_X), {name: np.concatenate(parts) for name, parts in rows.items()}


def probe_r2(code_XN: np.ndarray, vocabulary: int, target_XD: np.ndarray, test_X: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """R2 (D,) on the rows `test_X` (bool) of a ridge regression, from one-hot codes, fitted on the other rows."""
    onehot_XM = np.eye(vocabulary)[code_XN].reshape(len(code_XN), -1)
    fit_X = ~test_X
    mean_M, mean_D = onehot_XM[fit_X].mean(0), target_XD[fit_X].mean(0)
    centred = onehot_XM[fit_X] - mean_M
    weight_MD = np.linalg.solve(centred.T @ centred + ridge * np.eye(len(mean_M)), centred.T @ (target_XD[fit_X] - mean_D))
    want_XD = target_XD[test_X]
    error_XD = (onehot_XM[test_X] - mean_M) @ weight_MD + mean_D - want_XD
    spread_D = np.square(want_XD - want_XD.mean(0)).sum(0)
    return 1 - np.square(error_XD).sum(0) / np.maximum(spread_D, 1e-12)


def _moves(dataset: Dataset, episode: StoredEpisode, later: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    state, action = dataset.info.recorded_state, dataset.info.recorded_action
    if state is not None and episode.state is not None:
        for name, where in state.slices().items():
            if state.field(name).unit == "m" and state.field(name).frame == "absolute":
                found[f"displacement/{name}"] = episode.state[later][:, where] - episode.state[episode.anchors][:, where]
    if action is not None and episode.action is not None:
        total = np.concatenate([np.zeros((1, action.size)), np.cumsum(episode.action, axis=0)])
        for name, where in action.slices().items():
            if action.field(name).frame == "step":
                found[f"action/{name}"] = total[later][:, where] - total[episode.anchors][:, where]
    return found
