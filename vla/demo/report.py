"""The demo's page: what was run, what came of it, and where the time went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla.evaluate.compare import Compared
from vla.evaluate.curves import Series
from vla.evaluate.report import Code, Curves, Gallery, Picture, Report, Successes, Table, Times, gallery_of
from vla.evaluate.result import EvalResult

GOALS = {"parallel": 0.80}
"""Success that each decoder is held to on the eight tasks; the others to `OTHER_GOAL`."""
OTHER_GOAL = 0.60
GALLERIES = {"Rollouts": "evaluate", "Rollouts, zero-shot": "zero-shot", "Rollouts, new robot": "evaluate_fine-tuned"}
"""Title -> the evaluation whose videos are shown."""
TRAININGS = {"pretrain": "pretraining", "fine-tune": "fine-tuning", "from_scratch": "from scratch"}
"""Folder of a run -> what its curve is called."""


def demo_report(out: Path, decoder: str, summary: Mapping[str, Any], results: Mapping[str, EvalResult], compared: Compared) -> Report:
    """The page, from what the stages wrote into `out`."""
    pretrain, finetune = summary["pretrain"]["success"], summary["finetune"]
    robot = results["evaluate_fine-tuned"].embodiment
    lead = (
        f"A {decoder} policy was pretrained on demonstrations of eight Sawyer tasks and a Fetch arm, evaluated on unseen seeds and "
        f"on tasks it never saw, then fine-tuned for another robot ({robot}) from {finetune['demonstrations']} demonstrations. "
        "All from images, proprioception and an instruction; every figure below comes from this run."
    )
    tiles = {
        "eight Sawyer tasks": f"{pretrain['mean']:.0%}",
        "tasks never seen": f"{summary['zero_shot']['success']['mean']:.0%}",
        "new robot, fine-tuned": f"{finetune['success']['rate']:.0%}",
        "new robot, from scratch": f"{finetune['from_scratch']['rate']:.0%}",
        "minutes": f"{summary['seconds']['total'] / 60:.1f}",
    }
    sections = [
        *_successes(decoder, results, compared),
        *(Gallery(title, gallery_of(results[name], out / "videos" / name)) for title, name in GALLERIES.items()),
        Curves("Training loss", [_losses(out / run, name) for run, name in TRAININGS.items()]),
        _latent_section(summary["latent_action"]),
        Code("What it was trained on", _mixture_tree(out)),
        Picture(
            "The first batch of pretraining",
            (out / "pretrain" / "first_batch.png").read_bytes(),
            "samples with their instructions and targets",
        ),
        Times(
            "Where the time went",
            {phase: seconds for phase, seconds in summary["seconds"].items() if phase != "total"},
            "Wall seconds of each phase; stages run side by side, so they add up to more than the total.",
        ),
        _stages(summary["stages"]),
        Table("Versions", ("package", "version"), [[name, str(version)] for name, version in summary["versions"].items()]),
    ]
    footer = (
        f"commit {summary['commit'] or 'unknown'}, peak memory {summary['peak_rss_mb']:.0f} MB, {summary['cpu_seconds']:.0f} CPU seconds"
    )
    if summary["reused_stages"]:
        footer += f"; kept from an earlier run, and not in the total: {', '.join(summary['reused_stages'])}"
    return Report(f"make demo: {decoder}", lead, sections, tiles, footer)


def _successes(decoder: str, results: Mapping[str, EvalResult], compared: Compared) -> list[Successes]:
    """On the tasks that were trained, on others, and of the new robot with pretraining and without."""
    pair = compared.pooled.comparison
    return [
        Successes(
            "Eight Sawyer tasks, unseen seeds",
            {decoder: results["evaluate"]},
            GOALS.get(decoder, OTHER_GOAL),
            "Closed loop from two 64-pixel cameras; 95% Wilson intervals.",
        ),
        Successes("Tasks that training never saw (zero-shot)", {decoder: results["zero-shot"]}, note="No gradient step on any of these."),
        Successes(
            "A robot that pretraining never saw",
            {"fine-tuned": results["evaluate_fine-tuned"], "from scratch": results["evaluate_from_scratch"]},
            OTHER_GOAL,
            f"Same data, steps and seeds; paired difference {pair.difference:+.0%}, 95% interval {pair.interval.low:+.0%} to "
            f"{pair.interval.high:+.0%} ({pair.test}, p = {pair.p_value:.2g}).",
        ),
    ]


def _stages(stages: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [row["name"], f"{row['started_s']:.0f}", f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}", row["command"]] for row in stages
    ]
    return Table("Every stage is a command", ("stage", "started at, s", "seconds", "CPU seconds", "command"), rows)


def _losses(run: Path, name: str) -> Series:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = [(row["step"], row["loss"]) for row in rows if row.get("kind") == "train" and row.get("loss") is not None]
    return Series(name, [step for step, _ in kept], [loss for _, loss in kept], smooth=True)


def _latent_section(labels: Mapping[str, Any]) -> Table:
    rows = []
    for row in labels["datasets"]:
        probes = ", ".join(f"{name} {sum(values) / len(values):.2f}" for name, values in row["probe_r2"].items())
        effective = " ".join(f"{value:.1f}" for value in row["perplexity"])
        rows.append([row["dataset"], f"{row['anchors']:,}", effective, f"{row['dead_share']:.0%}", probes or "no labels to test on"])
    header = ("dataset", "frame pairs", "effective entries per code", "entries never used", "linear probe R2 on held-out episodes")
    note = "Learned from video alone; the probe asks how much of the robot's true motion the codes tell, linearly."
    return Table("Latent actions", header, rows, note)


def _mixture_tree(out: Path) -> str:
    """What `vla train` printed between its command line and the sizes of its batches."""
    lines = (out / "logs" / "pretrain.log").read_text(errors="replace").splitlines()[1:]
    stop = next((i for i, line in enumerate(lines) if line.startswith("batch:")), len(lines))
    return "\n".join(lines[:stop])
