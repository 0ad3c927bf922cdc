"""Latent actions: do codes mean motion, do two stages see past a distractor, do they help where few labels are, what does a readout cost?

Run       python benchmarks/latent.py --json                        (about a quarter of an hour on two cores)
          python benchmarks/latent.py --json --parts readout        (one part: distractor, robots, few_labels, readout)

distractor    a toy video with a known true action and a larger thing that moves behind it (`vla.latent_action.moving_distractor`). Models
              learn without labels; R2 of a linear probe from codes to the true displacement, on episodes that no model has seen, mean over
              the seeds. `one_stage`: as many codes as the second stage has. `one_stage_wide`: as many as both together. `grounded`: one
              stage with a proprioceptive forward model on a few labelled episodes (villa-X).
robots        `pretrain/demo_latent_action.py:two_robots` on simulated video of a Sawyer and a Fetch arm, without labels: `probe_r2` and
              `perplexity_share`, the lower of the two robots', on held-out episodes.
few_labels    `pretrain/few_labels.py`: five labelled demonstrations a task, and forty more without labels. Closed-loop success of latent
              pretraining, and of the labelled ones alone for as many optimizer steps. The longest part: half an hour to an hour.
readout       share that the readout adds to the CPU time of a call of the policy: `pretrain/few_labels.py`, in turn with and without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.backbones.base import Backbone, Tokens
from vla.checkpoint import Contents
from vla.codecs.quantizer import ResidualVQ
from vla.data.reader import Dataset
from vla.embodiment import load_embodiment
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
from vla.noise import Noise
from vla.normalize import Normalizer, RobotNormalizer, StatsKey
from vla.policy import Policy
from vla.train.run import load_recipe
from vla.types import ActionSpec, Observation

ROOT = Path(__file__).parents[1]
RECIPES = "pretrain/few_labels.py"
PARTS = ("readout", "distractor", "robots", "few_labels")
BEGUN = {"latent": "begun"}
"""Arms that go on from another run, and which."""
CODED = ("begun", "together")
"""Runs that learn codes."""
ARMS = ("latent", "together", "begun", "labelled_only", "augmented")
FETCH = ("--tasks", "reach,push,lift")
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


def distractor(root: Path, seeds: int, steps: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Each model's mean R2 and share of the codebook over the seeds, and every seed's row."""
    rows = [measure(root, seed, steps, names) for seed in range(seeds)]
    found: dict[str, Any] = {"distractor": {"seeds": seeds, "steps": steps, "rows": rows}}
    for name in names:
        found[f"{name}_r2"] = float(np.mean([row[name]["r2"] for row in rows]))
        found[f"{name}_perplexity_share"] = float(np.mean([row[name]["perplexity_share"] for row in rows]))
    return found


def robots(root: Path, cores: int) -> dict[str, Any]:
    """Trains on video and probes on labelled episodes of other seeds."""
    data = root / "data"
    collect(data / "video", cores, "metaworld-video", "--episodes", "8", "--seed", "200000")
    collect(data / "fetch_video", cores, "fetch-video", *FETCH, "--episodes", "25", "--seed", "200000")
    vla("train", "pretrain/demo_latent_action.py:two_robots", "--data-root", data, "--resume", "--out", root / "latent_action")
    collect(root / "sawyer", cores, "metaworld-objects", "--episodes", "5")
    collect(root / "other_fetch", cores, "fetch", *FETCH, "--episodes", "15")
    rows = vla("label", root / "latent_action", root / "sawyer", root / "other_fetch", "--json")["datasets"]
    each = {row["dataset"]: {"probe_r2": row["probe_r2"], "perplexity_share": row["perplexity_share"]} for row in rows}
    return {
        "probe_r2": min(float(np.mean(row["probe_r2"]["displacement/hand"])) for row in each.values()),
        "perplexity_share": min(row["perplexity_share"] for row in each.values()),
        "robots": each,
    }


def few_labels(root: Path, cores: int, episodes: int, arms: Sequence[str], steps: int) -> dict[str, Any]:
    """All arms see the same five demonstrations a task and make `steps` optimizer steps; of `latent` three quarters are those of `begun`,
    which it goes on from. What `root` holds already is not made again."""
    data, model = root / "few_data", root / "few_latent_action"
    collect(data / "few", cores, "metaworld-objects", "--episodes", "5", "--noise-share", "0.5")
    collect(data / "few_video", cores, "metaworld-video", "--episodes", "40", "--seed", "150000")

    def train(variant: str, out: Path, *more: Any) -> None:
        vla("train", f"pretrain/few_labels.py:{variant}", "--data-root", data, *more, "--resume", "--out", out)

    train("latent_action", model)
    vla("label", model, data / "few", data / "few_video")
    found = {}
    for arm in arms:
        run, result, begun = root / f"few_{arm}", root / f"few_{arm}.json", BEGUN.get(arm)
        own = ("--steps", steps // 4 if begun else steps)
        if begun:
            train(begun, root / f"few_{begun}", "--latents", model, "--steps", steps - steps // 4)
        if not result.is_file():
            train(arm, run, *own, *(("--init", root / f"few_{begun}") if begun else ("--latents", model) if arm in CODED else ()))
            vla("eval", run, "--suite", "metaworld-objects", "--episodes", episodes, "--seed", "0", "--workers", cores, "--json", result)
        rows = json.loads(result.read_text())
        found[arm] = {**rows["success"], "tasks": rows["tasks"]}
    return {"few_label": found, "steps": steps}


def collect(out: Path, cores: int, suite: str, *how: str) -> None:
    """Demonstrations, unless they are there."""
    if not (out / "dataset.json").is_file():
        vla("collect", "--suite", suite, *how, "--workers", cores, "--resume", "--out", out)


def readout(calls: int) -> dict[str, float]:
    """CPU time of `Policy.act` with the readout, over that of one that stops where the codes are known, minus 1.

    Call by call in turn, medians: what else the machine does hits both alike.
    """
    policy, observation = few_labels_policy()
    decoder = policy.model.decoder

    def codes_alone(backbone: Backbone, prefix: Tokens, like: ActionSpec, noise: Noise) -> Tensor:
        decoder.think(backbone, prefix)
        return like.mask_BTA.float()

    ways = (decoder.sample, codes_alone)
    cpu_s: tuple[list[float], list[float]] = ([], [])
    for call in range(2 * calls + 40):
        decoder.sample = ways[call % 2]
        began = time.process_time()
        policy.act(observation)
        if call >= 40:  # the first warm up
            cpu_s[call % 2].append(time.process_time() - began)
    whole_s, without_s = map(statistics.median, cpu_s)
    return {"readout_latency_share": whole_s / without_s - 1, "policy_cpu_ms": 1000 * whole_s}


def few_labels_policy() -> tuple[Policy, Observation]:
    """The latent policy of few labels with random weights, and one observation of it."""
    run = load_recipe(f"{ROOT / 'pretrain' / 'few_labels.py'}:latent")
    robots = tuple(load_embodiment(name) for name in run.embodiments)
    unit = lambda size: Normalizer.identity(size, "random numbers in -1..1")  # noqa: E731
    normal = {r.name: RobotNormalizer(StatsKey.of(r), unit(r.state.size), unit(r.action.size)) for r in robots}
    contents, rng = Contents(run.model, robots, normal), np.random.default_rng(0)
    images = {role: rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8) for role in robots[0].cameras}
    state = rng.uniform(-1, 1, (1, robots[0].state.size))
    return Policy(contents, contents.build()), Observation(images, state, "open the door with the hand", robots[0].name)


def vla(*command: Any) -> Any:
    """Runs a command of ours; what it prints as JSON, if asked to."""
    done = subprocess.run([sys.executable, "-m", "vla", *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) if command[-1] == "--json" else None


def main() -> None:
    """Runs the parts that are asked for; prints a line for each figure, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3, help="of the distractor part (default: 3)")
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of every stage of the distractor part (default: 500)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["one_stage", "two_stage"], help="of the distractor part")
    parser.add_argument("--episodes", type=int, default=40, help="of each task in the few_labels part (default: 40)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["latent", "labelled_only"], help="of the few_labels part")
    parser.add_argument("--arm-steps", type=int, default=6000, help="optimizer steps of each arm of the few_labels part (default: 6000)")
    parser.add_argument("--calls", type=int, default=400, help="of the policy, with the readout and as many without (default: 400)")
    parser.add_argument("--cores", type=int, default=2, help="simulator processes (default: 2)")
    parser.add_argument("--out", type=Path, help="folder to keep data, runs and results in (default: none are kept)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.out or Path(temporary)
        run: dict[str, Callable[[], dict[str, Any]]] = {
            "readout": lambda: readout(args.calls),
            "distractor": lambda: distractor(root, args.seeds, args.steps, tuple(args.models)),
            "robots": lambda: robots(root, args.cores),
            "few_labels": lambda: few_labels(root, args.cores, args.episodes, args.arms, args.arm_steps),
        }
        result: dict[str, Any] = {}
        for part in (part for part in PARTS if part in args.parts):
            result |= run[part]()
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:26} {value:.3f}" if isinstance(value, float) else f"{name:26} {json.dumps(value)}")


if __name__ == "__main__":
    main()
