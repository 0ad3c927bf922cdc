"""Latent actions with a distractor: do UniVLA's two stages find the robot where one stage finds the background?

What      a toy video with a known true action and a larger thing that moves behind it (`vla.latent_action.moving_distractor`); models are
          trained without labels; R2 of a linear probe from codes to the true displacement, on episodes that no model has seen.
Run       python benchmarks/latent_actions.py --json             (minutes on one core)
Numbers   one_stage: as many codes as the second stage has. one_stage_wide: as many as both stages together. grounded: one stage with a
          proprioceptive forward model on a few labelled episodes (villa-X). Means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.codecs.quantizer import ResidualVQ
from vla.data.reader import Dataset
from vla.latent_action.decoder import ForwardConv
from vla.latent_action.encoder import StateDifference
from vla.latent_action.features import TinyConv
from vla.latent_action.health import Usage
from vla.latent_action.label import encode_dataset
from vla.latent_action.language import Words
from vla.latent_action.model import LatentActionConfig, LatentActionModel
from vla.latent_action.moving_distractor import ROBOT, write_moving_distractor
from vla.latent_action.probe import probe
from vla.latent_action.proprio import Proprio
from vla.latent_action.train import frame_pairs, train_latent

GAP_S = 0.1
BASE = LatentActionConfig(
    gap_s=(GAP_S, GAP_S),
    features=TinyConv(size=32, channels=12),
    encoder=StateDifference(width=24),
    quantizer=ResidualVQ(codes=1, vocabulary=16, latent=4),
    decoder=ForwardConv(width=24),
)
FIRST = replace(BASE, quantizer=ResidualVQ(codes=4, vocabulary=16, latent=8), language=Words(width=16))
MODELS = {
    "one_stage": BASE,
    "one_stage_wide": replace(BASE, quantizer=ResidualVQ(codes=5, vocabulary=16, latent=8)),
    "two_stage": replace(BASE, first_stage=FIRST),
    "grounded": replace(BASE, proprio=Proprio(((ROBOT.name, 2, 2, float(ROBOT.rate_hz)),))),
}


def measure(root: Path, seed: int, steps: int, names: tuple[str, ...] = tuple(MODELS)) -> dict[str, dict[str, float]]:
    """name -> `r2` and `perplexity_share` on held-out episodes, after `steps` steps (a stage) from `seed`."""
    video, labelled = root / f"video{seed}", root / f"labelled{seed}"
    write_moving_distractor(video, 80, seed)
    write_moving_distractor(labelled, 8, 1000 + seed, labelled=True)
    held_out = Dataset.open(write_moving_distractor(root / f"held_out{seed}", 30, 2000 + seed, labelled=True))
    found = {}
    for name in names:
        config = MODELS[name]
        first = None
        if config.first_stage is not None:
            first = root / f"first{seed}"
            train_latent(config.first_stage, frame_pairs(config.first_stage, [video]).samples, steps, 32, seed, first)
        datasets = [video, labelled] if config.proprio is not None else [video]
        model = train_latent(config, frame_pairs(config, datasets).samples, steps, 32, seed, first=first, min_perplexity_share=0.0)
        found[name] = score(model, held_out)
    return found


def score(model: LatentActionModel, held_out: Dataset) -> dict[str, float]:
    """R2 of the true displacement, mean of both axes, and the share of the codebook in use."""
    code_XN, _ = encode_dataset(held_out, model, GAP_S)
    r2_D = probe(held_out, code_XN, model.vocabulary, GAP_S)["displacement/place"]
    return {"r2": float(r2_D.mean()), "perplexity_share": Usage.of(code_XN, model.vocabulary).perplexity_share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of every stage (default: 500)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        rows = [measure(Path(root), seed, args.steps, tuple(args.models)) for seed in range(args.seeds)]
    result: dict[str, Any] = {"seeds": args.seeds, "steps": args.steps, "rows": rows}
    for name in args.models:
        result[f"{name}_r2"] = float(np.mean([row[name]["r2"] for row in rows]))
        result[f"{name}_perplexity_share"] = float(np.mean([row[name]["perplexity_share"] for row in rows]))
    if args.json:
        print(json.dumps(result))
        return
    for name in args.models:
        each = " ".join(f"{row[name]['r2']:.2f}" for row in rows)
        print(f"{name:15} probe R2 {result[f'{name}_r2']:.2f} ({each}), {result[f'{name}_perplexity_share']:.0%} of the codebook in use")


if __name__ == "__main__":
    main()
