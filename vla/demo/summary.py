"""What the demo found, as JSON for machines and one page for people. Every figure is read from the files of its stages."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla.demo.plan import DEMONSTRATIONS
from vla.demo.report import demo_report
from vla.demo.stages import State
from vla.evaluate.compare import compare
from vla.evaluate.report import write_report
from vla.evaluate.result import EvalResult, git_commit, read_result, versions

PHASES = ("collect", "latent", "pretrain", "finetune", "evaluate")


def write_summary(out: Path, decoder: str, state: State) -> dict[str, Any]:
    """Writes `out`/summary.json and `out`/report.html; returns the summary."""
    results = {
        name: read_result(out / f"{name}.json") for name in ("evaluate", "zero-shot", "evaluate_fine-tuned", "evaluate_from_scratch")
    }
    compared = compare(results["evaluate_fine-tuned"], results["evaluate_from_scratch"])
    seconds = {phase: sum(row.seconds for row in state.done.values() if row.phase == phase) for phase in PHASES}
    finetune = {"success": _rate(results["evaluate_fine-tuned"]), "from_scratch": _rate(results["evaluate_from_scratch"])}
    finetune |= {"demonstrations": DEMONSTRATIONS, "paired_difference": asdict(compared.pooled.comparison)}
    summary = {
        "decoder": decoder,
        "pretrain": {"success": _rates(results["evaluate"])},
        "zero_shot": {"success": _rates(results["zero-shot"])},
        "finetune": finetune,
        "latent_action": _last_json(out / "logs" / "label.log"),
        "seconds": {**seconds, "total": state.elapsed_s},
        "cpu_seconds": sum(row.cpu_seconds for row in state.done.values()),
        "peak_rss_mb": state.peak_rss_mb,
        "reused_stages": list(state.reused),
        "stages": [asdict(row) for row in state.done.values()],
        "versions": versions(),
        "commit": git_commit(),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    write_report(out / "report.html", demo_report(out, decoder, summary, results, compared))
    return summary


def _rates(result: EvalResult) -> dict[str, Any]:
    tasks = {
        name: {"successes": rate.successes, "episodes": rate.episodes, "low": rate.low, "high": rate.high}
        for name, rate in result.tasks.items()
    }
    return {"mean": result.pooled.rate, **_rate(result), "tasks": tasks}


def _rate(result: EvalResult) -> dict[str, Any]:
    rate = result.pooled
    return {"successes": rate.successes, "episodes": rate.episodes, "rate": rate.rate, "low": rate.low, "high": rate.high}


def _last_json(log: Path) -> Any:
    """What a command printed as JSON on its last line."""
    return json.loads(log.read_text().splitlines()[-1])
