"""Do codes mean motion? A linear probe from codes to what the robot did, on episodes that the probe has not seen."""

from __future__ import annotations

import numpy as np

from vla.data.reader import Dataset, StoredEpisode
from vla.latent_action.pairs import later_anchors


def probe(dataset: Dataset, code_XN: np.ndarray, vocabulary: int, gap_s: float, test_share: float = 0.3) -> dict[str, np.ndarray]:
    """R2 of a linear map from one-hot codes, on episodes that it was not fitted on, to what the robot did between the frames.

    `displacement`: change of each absolute state field in metres; `action`: sum of each `step`-frame action field. One R2 per
    dimension. A dataset without labels, or with one episode, gives {}. The split is by episode name; it is not the pipeline's.
    """
    if len(dataset) < 2:
        return {}
    tested = min(max(round(test_share * len(dataset)), 1), len(dataset) - 1)
    test_E = np.argsort(np.argsort(dataset.key_E)) < tested
    rows: dict[str, list[np.ndarray]] = {}
    test_X = []
    for index in range(len(dataset)):
        episode = dataset.episode(index)
        later = episode.anchors[later_anchors(episode, gap_s)]
        for name, values in _moves(dataset, episode, later).items():
            rows.setdefault(name, []).append(values)
        test_X.append(np.full(len(later), test_E[index]))
    coded_X = (code_XN >= 0).all(1)
    test = np.concatenate(test_X)[coded_X]
    return {name: probe_r2(code_XN[coded_X], vocabulary, np.concatenate(parts)[coded_X], test) for name, parts in rows.items()}


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
