"""What a finished run says about its codes: health.json (use per source, probe, agreement between robots) and codes.png."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vla.data.pictures import spread_episodes
from vla.data.pipeline import Pipeline
from vla.data.quarantine import TooManyBad
from vla.data.reader import Dataset
from vla.errors import SchemaError, UnknownName
from vla.latent_action.health import Usage
from vla.latent_action.label import encode_dataset
from vla.latent_action.model import FramePairs, LatentActionModel
from vla.latent_action.probe import agreement, probe

if TYPE_CHECKING:
    from PIL.Image import Image

EPISODES = 24
"""Looked at per source: enough to tell a dead code from a rare one, in seconds on a CPU."""
REPORT = ("health.json", "codes.png")
"""What is written, in this order."""
TILE = 64
"""Width and height of a frame in the picture, pixels."""


def write_report(out: Path, model: LatentActionModel, datasets: Sequence[Dataset], pairs: Pipeline) -> dict[str, Any]:
    """Writes `out`/health.json and `out`/codes.png; returns what the first holds. `pairs`: a pipeline of frame pairs to draw from."""
    health = health_report(model, datasets)
    (out / REPORT[0]).write_text(json.dumps(health, indent=1))
    codes_picture(model, model.collate(pairs.samples(range(64)))).save(out / REPORT[1])
    return health


def health_report(model: LatentActionModel, datasets: Sequence[Dataset], episodes: int = EPISODES) -> dict[str, Any]:
    """`perplexity_share`, `dead_share` and `perplexity` over all sources; `sources`: the same for each, with `probe_r2` (name -> R2 per
    dimension) where it has labels; `agreement`: see there. On up to `episodes` episodes of each source, evenly spread. A source that
    cannot be labelled (too few frames a second, another camera, many damaged frames) says why under `not_measured`."""
    gap_s = model.check_gap(None)
    total = Usage(np.zeros((model.codes, model.vocabulary)))
    sources: dict[str, Any] = {}
    coded: dict[str, tuple[Dataset, np.ndarray, Sequence[int]]] = {}
    for dataset in datasets:
        chosen = spread_episodes(dataset, episodes)
        try:
            code_XN, bad = encode_dataset(dataset, model, gap_s, episodes=chosen)
        except (SchemaError, UnknownName, TooManyBad) as error:  # after hours of training, no reason to end in an error
            sources[dataset.info.name] = {"not_measured": str(error)}
            continue
        usage = Usage.of(code_XN, model.vocabulary)
        r2 = probe(dataset, code_XN, model.vocabulary, gap_s, episodes=chosen)
        coded[dataset.info.name] = (dataset, code_XN, chosen)
        sources[dataset.info.name] = {
            **usage.to_json(),
            "anchors": len(code_XN),
            "without_code": bad,
            "probe_r2": {name: values.tolist() for name, values in r2.items()},
        }
        total = total + usage
    return {**total.to_json(), "gap_s": gap_s, "sources": sources, "agreement": agreement(coded, model.vocabulary, gap_s)}


def codes_picture(model: LatentActionModel, pairs: FramePairs, columns: int = 4) -> Image:
    """What each code does: one row per entry of the first code, most used first; the others as they were seen with it.

    Per row, `columns` pairs that were given this entry, each as three tiles: first frame, later frame, and where the forward decoder
    says that the entry changes the picture (bright: much), from the very same first frame for all rows in the last column.
    """
    from PIL import Image, ImageDraw

    model.eval()
    pairs = pairs.to(next(model.parameters()).device)
    code_BN = model.encode(pairs)
    count_K = torch.bincount(code_BN[:, 0], minlength=model.vocabulary)
    entries = [k for k in count_K.argsort(descending=True, stable=True).tolist() if count_K[k]][:16]
    moved_BHW = model.predict(pairs, code_BN).square().mean(1)
    sheet = Image.new("RGB", ((columns * 3 + 1) * (TILE + 2), len(entries) * (TILE + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, entry in enumerate(entries):
        top = line * (TILE + 16)
        draw.text((2, top + 1), f"code {entry}: {int(count_K[entry])} of {len(code_BN)} pairs", fill="black")
        rows = (code_BN[:, 0] == entry).nonzero()[:, 0].tolist()
        tiles: list[np.ndarray] = []
        for row in rows[:columns]:
            now, later = pairs.now_BHW3[row].cpu().numpy(), pairs.later_BHW3[row].cpu().numpy()
            tiles += [now, later, _heat(moved_BHW[row])]
        tiles += [np.full((TILE, TILE, 3), 255, np.uint8)] * (3 * columns - len(tiles))
        tiles.append(_heat(_alike(model, pairs, code_BN[rows[0]])))
        for column, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile).resize((TILE, TILE)), (column * (TILE + 2), top + 14))
    return sheet


def _alike(model: LatentActionModel, pairs: FramePairs, code_N: torch.Tensor) -> torch.Tensor:
    """Where codes change the batch's first frame: (side, side)."""
    return model.predict(pairs, code_N.expand(len(pairs.gap_B), -1))[0].square().mean(0)


def _heat(amount_HW: torch.Tensor) -> np.ndarray:
    amount_HW = amount_HW.sqrt().cpu().float()
    grey = (255 * amount_HW / amount_HW.max().clamp(min=1e-6)).byte().numpy()
    return np.repeat(grey[:, :, None], 3, axis=2)
