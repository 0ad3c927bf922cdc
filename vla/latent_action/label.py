"""Codes for every anchor of a dataset, kept beside its shards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vla.data.assemble import MAX_STRETCH
from vla.data.images import decode_frame
from vla.data.latents import read_latents, write_latents
from vla.data.quarantine import BadRecord, BadSample, Quarantine
from vla.data.reader import Dataset
from vla.data.window import frame_at, history_steps
from vla.errors import Damaged, StatsMissing, UnknownName
from vla.latent_action.features import fit, side_by_side
from vla.latent_action.health import Usage
from vla.latent_action.model import FramePairs, LatentActionModel
from vla.latent_action.pairs import Pair, anchor_pairs, in_batches, later_anchors

Progress = Callable[[int, int], None]
"""Called as (anchors done, anchors)."""


@dataclass(frozen=True)
class Labels:
    """`hash`: name of the codes, for a run's `latents`. `code_XN`: int64, one row per anchor in storage order, -1 for none (N: the model's
    codes, times its `spans`). `cached`: they stood beside the shards already."""

    hash: str
    path: Path
    gap_s: float
    code_XN: np.ndarray
    usage: Usage
    bad: int
    seconds: float
    cached: bool = False


def label_hash(model: LatentActionModel, gap_s: float | None = None) -> str:
    """Name of the codes that a model gives at a gap: sha256 of the model's hash and the gap. Another model or gap, another name."""
    return hashlib.sha256(f"{model.hash()} {model.check_gap(gap_s):.6g}".encode()).hexdigest()


def label(
    dataset: Dataset, model: LatentActionModel, gap_s: float | None = None, batch: int = 256, progress: Progress | None = None
) -> Labels:
    """Codes of all anchors, written with `write_latents` under `label_hash(model, gap_s)`.

    An anchor is paired with the one nearest to `gap_s` later, or the episode's last: near the end the last frame repeats. Frames
    that do not decode, and a hole in the video, leave their anchors without a code; more than 1% of those raise TooManyBad. Sound
    codes of this name, for this version of the dataset, are kept; damaged ones are made again.
    """
    start_s = time.monotonic()
    gap_s = model.check_gap(gap_s)
    name = label_hash(model, gap_s)
    path = dataset.folder / "latents" / f"{name[:12]}.npy"
    kept_XN = _kept(dataset, name)
    if kept_XN is not None:
        bad = int((kept_XN < 0).any(1).sum())
        return Labels(
            name, path, gap_s, kept_XN, Usage.of(kept_XN[:, : model.codes], model.vocabulary), bad, time.monotonic() - start_s, cached=True
        )
    code_XN, bad = encode_dataset(dataset, model, gap_s, batch, progress)
    usage = Usage.of(code_XN, model.vocabulary)
    if model.config.spans is not None:
        code_XN = one_after_another(dataset, code_XN, gap_s, model.config.spans)
        bad = int((code_XN < 0).any(1).sum())
    meta = {
        "latent_action_model": model.hash(),
        "camera": model.config.camera,
        "gap_s": gap_s,
        "codes": code_XN.shape[1],
        "vocabulary": model.vocabulary,
        "without_code": bad,
        "perplexity_share": usage.perplexity_share,
    }
    path = write_latents(dataset, name, code_XN, meta)
    return Labels(name, path, gap_s, code_XN, usage, bad, time.monotonic() - start_s)


def one_after_another(dataset: Dataset, code_XN: np.ndarray, gap_s: float, spans: int) -> np.ndarray:
    """(anchors, N) -> (anchors, spans * N): each anchor's codes, then those of the anchor that its pair ends at, and so on. An episode's
    last one follows itself, without motion; -1 throughout where one of them has no code."""
    first_E = np.cumsum(dataset.anchors_E) - dataset.anchors_E
    next_X = np.concatenate([first_E[index] + later_anchors(dataset.episode(index), gap_s) for index in range(len(dataset))])
    parts, at_X = [], np.arange(len(code_XN))
    for _ in range(spans):
        parts.append(code_XN[at_X])
        at_X = next_X[at_X]
    found_XM = np.concatenate(parts, axis=1)
    found_XM[(found_XM < 0).any(1)] = -1
    return found_XM


def _kept(dataset: Dataset, name: str) -> np.ndarray | None:
    try:
        return np.array(read_latents(dataset, name), np.int64)
    except (StatsMissing, Damaged):
        return None


def encode_dataset(
    dataset: Dataset,
    model: LatentActionModel,
    gap_s: float,
    batch: int = 256,
    progress: Progress | None = None,
    episodes: Sequence[int] | None = None,
) -> tuple[np.ndarray, int]:
    """int64 codes (anchors, N) of all `episodes` (None: every one), and how many anchors have none. Reads each frame about once;
    memory does not grow with pixels."""
    if model.config.camera not in dataset.cameras:
        fix = f"Dataset '{dataset.info.name}' does not have it; train a model with another `camera`."
        raise UnknownName("camera role", model.config.camera, dataset.cameras, fix)
    model.eval()
    anchors = dataset.anchors if episodes is None else int(dataset.anchors_E[np.asarray(episodes, np.int64)].sum())
    code_XN = np.full((anchors, model.codes), -1, np.int64)
    quarantine, done = Quarantine(max_rate=0.01), 0
    for pairs in in_batches(anchor_pairs(dataset, model.config.camera, gap_s, episodes), batch):
        code_XN[done : done + len(pairs)], records = _encode(dataset, model, gap_s, pairs, done)
        quarantine.add(len(pairs), records)
        done += len(pairs)
        if progress is not None:
            progress(done, anchors)
    return code_XN, quarantine.bad


def _encode(dataset: Dataset, model: LatentActionModel, gap_s: float, pairs: list[Pair], first: int) -> tuple[np.ndarray, list[BadRecord]]:
    """Codes of a batch; -1 and a record for a pair with a bad frame. Frames that pairs share are read once."""
    seen = [(*_before(dataset, model, pair), pair.now, pair.later) for pair in pairs]
    frames: dict[tuple[int, int], np.ndarray | BadSample] = {}
    for key in dict.fromkeys((pair.episode, number) for pair, numbers in zip(pairs, seen, strict=True) for number in numbers):
        frames[key] = _frame(dataset, model.config.views(dataset.cameras), *key)
    code_BN, bad, rows, images = np.full((len(pairs), model.codes), -1, np.int64), [], [], []
    for row, pair in enumerate(pairs):
        window = [frames[pair.episode, number] for number in seen[row]]
        wrong = next((frame for frame in window if isinstance(frame, BadSample)), None)
        if pair.apart_s > MAX_STRETCH * gap_s:
            wrong = BadSample("time", f"no frame for {pair.apart_s:.3g} s after it; the pair is to be {gap_s:g} s apart")
        if wrong is None:
            rows.append(row), images.append(window)
        else:
            episode = dataset.episode(pair.episode).id
            bad.append(BadRecord(wrong.cause, dataset.info.name, episode, pair.step, first + row, str(wrong)))
    if rows:
        side = model.features.image_side
        now, later = (fit([window[i] for window in images], side) for i in (-2, -1))
        before = None
        if model.config.history_s:
            before = fit([image for window in images for image in window[:-2]], side).unflatten(0, (len(rows), -1))
        # As in training, the time that lies between the frames, which is not often gap_s to the hair. An episode's last ones, which are
        # nearer than any pair of training, say gap_s: in that time nothing more happened.
        apart_B = torch.tensor([pairs[row].apart_s if pairs[row].apart_s > gap_s / 2 else gap_s for row in rows])
        batch = FramePairs(now, later, apart_B, torch.arange(len(rows)), before)
        code_BN[rows] = model.encode(batch.to(next(model.parameters()).device)).cpu().numpy()
    return code_BN, bad


def _before(dataset: Dataset, model: LatentActionModel, pair: Pair) -> list[int]:
    """Numbers of the frames that a window shows before an anchor, as a pipeline would (`history_s`)."""
    if not model.config.history_s:
        return []
    episode = dataset.episode(pair.episode)
    steps = episode.cameras[model.config.camera].step
    return [frame_at(steps, step) for step in history_steps(episode, pair.step, model.config.history_s)]


def _frame(dataset: Dataset, views: Sequence[str], episode: int, number: int) -> np.ndarray | BadSample:
    """What the views show at the first one's frame of that number."""
    stored = dataset.episode(episode)
    step = int(stored.cameras[views[0]].step[number])
    try:
        return side_by_side([decode_frame(dataset.frame(episode, role, frame_at(stored.cameras[role].step, step))) for role in views])
    except BadSample as error:
        return error
    except Damaged as error:
        return BadSample("altered", str(error))
