"""Writes docs/performance.md and docs/results.md from benchmarks/results/*.json, so that no number on them is typed by hand.

python -m benchmarks.pages           # write both pages
python -m benchmarks.pages --check   # exit 1 where a page is not what its results say
python -m benchmarks.pages --commands

A result that is not there is a row that says so, with the command that makes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla.evaluate.statistics import compare_paired

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HEADER = "<!-- Written by `python -m benchmarks.pages` from benchmarks/results/. Do not edit. -->\n"


@dataclass(frozen=True)
class Row:
    """One number of a result: `key` with dots for nesting, `at_least` or `at_most` for what it should be, `scale` for display."""

    label: str
    key: str
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Case:
    """One benchmark: its result file, the command that makes it, what it measures, and its rows; or the `columns` (heading, key) of the
    rows that the result itself has."""

    title: str
    file: str
    command: str
    what: str
    rows: tuple[Row, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()


DEMOS = ("parallel", "tokens", "masked", "dit", "latent")
VARIANTS = ("fast", "dit_one", "ddpm")
"""Of `pretrain/demo.py` that `make demo` does not take."""

SPEEDUP = (
    Row("speed-up", "speedup", "x", at_least=5.0),
    Row("- by rendering only where the policy looks", "by_rendering", "x"),
    Row("- by processes and batches", "by_parallelism", "x"),
    Row("episodes", "episodes"),
    Row("successes, the loop", "successes_loop"),
    Row("successes, ours", "successes_project"),
)
INFERENCE = (
    ("parameters", "parameters"),
    ("operations, plain", "plain_operations"),
    ("optimized", "optimized_operations"),
    ("plain, ms", "plain_ms"),
    ("optimized, ms", "optimized_ms"),
    ("transformers, ms", "peer_ms"),
    ("limit, ms", "limit_ms"),
    ("share of the limit", "share_of_limit"),
)
TRAINING = (
    ("parameters", "parameters"),
    ("batch", "batch"),
    ("GFLOP a sample", "gflop_a_sample"),
    ("samples/s", "plain_samples_per_s"),
    ("compiled, samples/s", "compiled_samples_per_s"),
    ("transformers, samples/s", "peer_samples_per_s"),
    ("MFU", "plain_mfu"),
    ("MFU, compiled", "compiled_mfu"),
)
FEATURES = {
    "paligemma/pooled": "small PaliGemma, pooled on the last token",
    "paligemma/parallel": "small PaliGemma, parallel decoding",
    "paligemma/per_layer": "small PaliGemma, keys and values of each layer",
    "paligemma/cross": "small PaliGemma, cross-attention",
    "resnet18/parallel": "ResNet-18, parallel decoding",
    "resnet18/cross": "ResNet-18, cross-attention",
}
VIDEO_SIZES = ("224x224", "456x256", "640x480")

MT10 = "## Ten tasks in half an hour of two cores\n\nMeta-World's MT10 from scratch; the commands stand in `pretrain/mt10.py`.\n"
MT50 = "## Fifty tasks in half an hour of one large GPU\n\nMeta-World's MT50 from scratch; the commands stand in `pretrain/mt50.py`.\n"

CASES = (
    Case(
        "Loader",
        "loader.json",
        "python -m benchmarks.loader --json",
        "CPU seconds a 224 px frame that the training process gets, against decoding alone and against stock webdataset.",
        (
            Row("simplejpeg alone", "decode_fps", "frames/s a core"),
            Row("delivered", "loader_fps", "frames/s a core"),
            Row("delivered / simplejpeg's plain call", "ratio_to_decode_fresh", at_least=0.85),
            Row("- least of the processes", "ratio_to_decode_fresh_least"),
            Row("- most", "ratio_to_decode_fresh_most"),
            Row("delivered / simplejpeg into one buffer that stays in the caches", "ratio_to_decode", at_least=0.85),
            Row("against stock webdataset", "ratio_to_webdataset", "x", at_least=2.0),
            Row("memory growth, 10,000 to 1,000,000 steps", "rss_growth", at_most=0.05),
            Row("first batch, 60 datasets, 100 million steps", "first_batch_s", "s", at_most=10.0),
            Row("memory then", "first_batch_rss_mb", "MB", at_most=1000.0),
        ),
    ),
    Case(
        "Video conversion",
        "video.json",
        "python -m benchmarks.video --json --blocks 4 --sizes 224x224 456x256 640x480",
        "H.264 with B-frames as cameras write it, from the file to a finished dataset of JPEGs of 224 px, beside PyAV's own decoding "
        "loop. By the clock: `vla convert` with its two processes, on a folder of clips. CPU seconds: one process; the bound is what "
        "decoding and libjpeg-turbo's encoding alone would leave.",
        tuple(
            row
            for size in VIDEO_SIZES
            for row in (
                Row(f"{size}: PyAV decodes", f"{size}.wall_decode_fps", "frames/s"),
                Row(f"{size}: PyAV with FFmpeg's threads", f"{size}.wall_decode_threads_fps", "frames/s"),
                Row(f"{size}: converted", f"{size}.wall_convert_fps", "frames/s"),
                Row(f"{size}: speed, of PyAV's", f"{size}.ratio_wall_convert_to_decode", at_least=0.5),
                Row(f"{size}: speed, of PyAV's with threads", f"{size}.ratio_wall_convert_to_decode_threads", at_least=0.5),
                Row(f"{size}: CPU seconds, of decoding", f"{size}.ratio_convert_to_decode"),
                Row(f"{size}: CPU seconds, of decoding to arrays", f"{size}.ratio_convert_to_decode_rgb"),
                Row(f"{size}: bound of CPU seconds, of decoding", f"{size}.ratio_bound"),
                Row(f"{size}: packets as they are, of decoding", f"{size}.ratio_convert_mp4_fitting_to_decode_fitting"),
                Row(f"{size}: encoded anew to mp4, of decoding", f"{size}.ratio_convert_mp4_to_decode"),
            )
        ),
    ),
    Case(
        "RLDS conversion",
        "rlds.json",
        "python -m benchmarks.rlds --json",
        "Converting an RLDS dataset, against reading the same dataset through tensorflow-datasets.",
        (Row("wall", "ratio", "x", at_least=1.0), Row("CPU seconds", "ratio_cpu", "x", at_least=1.0)),
    ),
    Case(
        "Decoders",
        "decoders.json",
        "python -m benchmarks.decoders --json",
        "Eight noise samples a context against one, in loss samples a second, and against what their operations predict. A call of each "
        "of the demo's decoders with two threads, observation to chunk: masked diffusion with 4 evaluations, the flow with 4 steps. "
        "Weights are random, the worst case for `tokens`, which decodes ahead (docs/design.md); trained ones stand beside it.",
        (
            Row("K = 8 / K = 1", "k8_over_k1", "x"),
            Row("against the prediction", "k8_over_prediction", at_least=0.85),
            *(Row(f"a call, `{name}`", f"demo_ms_per_call.{name}", "ms", at_most=30.0) for name in DEMOS),
            Row("a call, `tokens`, trained", "trained_ms_per_call", "ms", at_most=30.0),
        ),
    ),
    Case(
        "Small policies beside lerobot's",
        "peers.json",
        "python -m benchmarks.peers --json",
        "The presets `act` and `diffusion_policy` beside lerobot's ACTPolicy and DiffusionPolicy: equal parameters, images, states and "
        "chunks, the same denoising evaluations, in turn in one process. Each trains by the optimizer that its own trainer makes. Ratios "
        "above 1: ours is faster.",
        (
            Row("ACT: parameters, ours / lerobot's", "act.parameters_ratio"),
            Row("a call, ours", "act.ours_ms_per_call", "ms"),
            Row("a call, lerobot", "act.theirs_ms_per_call", "ms"),
            Row("speed of a call", "act.call_ratio", "x", at_least=1.0),
            Row("speed of training", "act.train_ratio", "x", at_least=1.0),
            Row("- lerobot's optimizer fused like ours", "act.train_fused_ratio", "x"),
            Row("Diffusion: parameters, ours / lerobot's", "diffusion.parameters_ratio"),
            Row("a call, ours", "diffusion.ours_ms_per_call", "ms"),
            Row("a call, lerobot", "diffusion.theirs_ms_per_call", "ms"),
            Row("speed of a call", "diffusion.call_ratio", "x", at_least=1.0),
            Row("speed of training", "diffusion.train_ratio", "x", at_least=1.0),
            Row("- lerobot's optimizer fused like ours", "diffusion.train_fused_ratio", "x"),
        ),
    ),
    Case(
        "Published heads on a small PaliGemma",
        "inference.json",
        "python -m benchmarks.inference --json",
        "A call with random weights: plain, by `Policy.optimize_for_inference`, by transformers' own class of the same sizes where it has "
        "one, and the sum of the least times of all products, convolutions and attentions at the best matrix product and copy of the same "
        "machine. Operations: what torch is asked for that is no view. Nothing is captured without a GPU.",
        columns=INFERENCE,
    ),
    Case(
        "Published sizes on a GPU",
        "inference_cuda.json",
        "python -m benchmarks.inference --size published --device cuda --json",
        "The same at the models' real sizes, in bf16, calls captured as CUDA graphs.",
        columns=(*INFERENCE, ("goal on an H200, ms", "goal_ms_h200")),
    ),
    Case(
        "Training steps on a small PaliGemma",
        "training.json",
        "python -m benchmarks.training --json",
        "Forward, backward and AdamW with random weights; MFU is against the best matrix product of the same machine.",
        columns=TRAINING,
    ),
    Case(
        "Training steps at published sizes on a GPU",
        "training_cuda.json",
        "python -m benchmarks.training --size published --device cuda --batch 32 --compiled --json",
        "The same at the models' real sizes, in bf16.",
        columns=TRAINING,
    ),
    Case(
        "Features of a frozen backbone",
        "features.json",
        "python -m benchmarks.features --json --steps 10 --rounds 3",
        "Samples a second of a run whose observations were kept by an earlier one, over those of the same run without; random weights, one "
        "thread.",
        tuple(
            row
            for name, what in FEATURES.items()
            for row in (
                Row(what, f"{name}.speedup", "x"),
                Row("- an observation on disk", f"{name}.kb", "kB"),
                Row("- largest difference of losses", f"{name}.loss_difference", at_most=1e-5),
            )
        ),
    ),
    Case(
        "Robots of different lengths",
        "views.json",
        "python -m benchmarks.views --rounds 5 --batch-size 6 --json",
        "A training step on robots of one, one and three cameras: all as wide as the widest, or views and tokens that a sample lacks left "
        "out. One thread.",
        tuple(
            row
            for name, what in (("paligemma", "a small PaliGemma"), ("tiny", "the tiny backbone"))
            for row in (
                Row(f"{what}: a step", f"{name}.speedup.views_and_tokens", "x"),
                Row("- images a sample, as the widest", f"{name}.images.filled_up"),
                Row("- images a sample, now", f"{name}.images.views_and_tokens"),
                Row("- tokens a sample, as the widest", f"{name}.tokens.filled_up"),
                Row("- tokens a sample, now", f"{name}.tokens.views_and_tokens"),
            )
        ),
    ),
    Case(
        "The first action",
        "first_action.json",
        "python -m benchmarks.first_action --json",
        "A new process that imports, loads `checkpoints/arms-small` and acts, from its start to its end.",
        (
            Row("median", "first_action_s", "s", at_most=5.0),
            Row("slowest", "slowest_s", "s", at_most=5.0),
        ),
    ),
    Case(
        "Server",
        "serve.json",
        "python -m benchmarks.serve --json",
        "A request with two 224 px images over loopback, beyond the policy's own time; health during a 3 s inference; 32 clients against "
        "the same policy called directly at the same batch sizes.",
        (
            Row("overhead, median", "overhead_ms_p50", "ms", at_most=2.0),
            Row("the same bytes over a bare socket", "echo_ms_p50", "ms"),
            Row("health during an inference, slowest", "health_ms_during_inference", "ms", at_most=50.0),
            Row("32 clients / called directly", "batching_efficiency_32", at_least=0.8),
        ),
    ),
    Case(
        "Training loop",
        "train_loop.json",
        "python -m benchmarks.train_loop --json",
        "What everything but forward, backward and the optimizer's step costs, and what saving costs.",
        (
            Row("overhead at steps of 100 ms", "overhead", at_most=0.03),
            Row("a save every 20 steps, in the background", "async_save_overhead", at_most=0.05),
            Row("saving a state of 1 GB", "save_gb_per_s", "GB/s"),
            Row("the same disk, bare", "disk_gb_per_s", "GB/s"),
        ),
    ),
    Case(
        "Evaluation",
        "evaluate.json",
        "python -m benchmarks.evaluate --json",
        "Episodes a minute against a synchronous gymnasium loop of one process that renders every step, same chunk; four tasks.",
        SPEEDUP,
    ),
    Case(
        "Evaluation, half as long",
        "evaluate_20.json",
        "python -m benchmarks.evaluate --episodes 20 --json",
        "The same with 80 episodes, of which the start of the simulators' processes is a larger share.",
        SPEEDUP,
    ),
    Case(
        "Latent actions",
        "latent.json",
        "python -m benchmarks.latent --json",
        "Codes of a model that saw video only, on held-out episodes.",
        (
            Row("linear probe, codes to the hand's displacement", "probe_r2", "R²", at_least=0.7),
            Row("perplexity, share of the codebook", "perplexity_share", at_least=0.6),
            Row("two stages beside a distractor", "two_stage_r2", "R²"),
            Row("one stage beside a distractor", "one_stage_r2", "R²"),
            Row("the readout's share of the policy's latency", "readout_latency_share", at_most=0.05),
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="print what makes the results of docs/performance.md, a line each")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is out of date")
    args = parser.parse_args()
    if args.commands:
        print("\n".join(case.command for case in CASES))
        return 0
    stale = []
    for path, text in pages().items():
        if args.check:
            stale += [path] if not path.is_file() or path.read_text() != text else []
        else:
            path.write_text(text)
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what benchmarks/results/ says. Run: python -m benchmarks.pages", file=sys.stderr)
    return 1 if stale else 0


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Each page and its text."""
    return {ROOT / "docs" / "performance.md": performance(results), ROOT / "docs" / "results.md": evidence(results)}


def performance(results: Path) -> str:
    """A table a case: what was measured, what is asked, and whether that is met."""
    parts = [HEADER + "# Performance\n\nWhat was measured, as `benchmarks/results/` holds it; each table's command makes it again.\n"]
    for case in CASES:
        found = _load(results / case.file)
        failed = found.get("could_not_run") if found else None
        lines = [f"## {case.title}\n\n{case.what}\n\n```bash\n{case.command}\n```\n"]
        if found is None:
            lines.append("Not measured yet.\n")
        elif failed:
            lines.append(f"Could not run: {failed}.\n")
        elif case.columns:
            lines.append("| | " + " | ".join(heading for heading, _ in case.columns) + " |\n|---" + "|---" * len(case.columns) + "|")
            lines += [_cells(name, row, case.columns) for name, row in found["rows"].items()]
            lines.append(_machine(found))
        else:
            lines.append("| | measured | asked | |\n|---|---|---|---|")
            lines += [_row(row, _at(found, row.key)) for row in case.rows]
            lines.append(_machine(found))
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _cells(name: str, row: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> str:
    if "could_not_run" in row:
        return f"| {name} | could not run: {row['could_not_run']} |" + " |" * (len(columns) - 1)
    return f"| {name} | " + " | ".join(f"{row[key]:,}" if key in row else "" for _, key in columns) + " |"


def evidence(results: Path) -> str:
    """What learned policies do in closed loop."""
    return "\n".join(
        [
            HEADER + "# Results\n\nSuccess in closed loop, from images, proprioception and an instruction. Intervals are Wilson's, 95%.\n",
            _demo(results),
            _decoders(results),
            _evaluations(results),
            _bimodal(results),
            _meta_world(results, "mt10.json", MT10),
            _meta_world(results, "mt50.json", MT50),
            _new_robot(results),
            _few_labels(results),
            _sampling(results),
            _latency(results),
            _shipped(results),
            _probes(results),
        ]
    )


def _demo(results: Path) -> str:
    found = _load(results / "demo-parallel.json")
    if found is None:
        return "## The demo\n\nNot run yet.\n"
    tasks = found["pretrain"]["success"]["tasks"]
    lines = ["## The demo\n\n```bash\nmake demo\n```\n", "| | successes | rate | interval |\n|---|---|---|---|"]
    lines.append(_rate("eight trained tasks, unseen seeds", found["pretrain"]["success"]))
    lines += [_rate(f"- {name}", row) for name, row in tasks.items()]
    lines.append(_rate("four tasks never seen (zero-shot)", found["zero_shot"]["success"]))
    lines += [_rate(f"- {name}", row) for name, row in found["zero_shot"]["success"]["tasks"].items()]
    tune = found["finetune"]
    lines.append(_rate(f"a robot never seen, fine-tuned from {tune['demonstrations']} demonstrations", tune["success"]))
    lines.append(_rate("the same from scratch", tune["from_scratch"]))
    paired = tune["paired_difference"]
    low, high = paired["interval"]["low"], paired["interval"]["high"]
    lines.append(
        f"\nPaired difference of the last two: {100 * paired['difference']:+.0f} points, 95% from {100 * low:+.0f} to {100 * high:+.0f} "
        f"({paired['test']}, p = {paired['p_value']:.2g}). The whole job took {found['seconds']['total']:.0f} s and "
        f"{found['cpu_seconds']:.0f} CPU seconds.\n"
    )
    return "\n".join(lines)


def _decoders(results: Path) -> str:
    lines = [
        "## Decoders beside each other\n\nThe demo's eight tasks, data and backbone; steps as in `pretrain/demo.py`. `fast`: FAST codes; "
        "`dit_one`: one noise sample a context instead of four; `ddpm`: that path instead of a flow.\n\n"
        "```bash\nmake demo DECODER=masked\nvla train pretrain/demo.py:fast --data-root runs/demo/data\n```\n",
        "| decoder | successes | rate | interval |\n|---|---|---|---|",
    ]
    for name in (*DEMOS, *VARIANTS):
        demo, alone = _load(results / f"demo-{name}.json"), _load(results / f"sawyer-{name}.json")
        success = demo["pretrain"]["success"] if demo else alone["success"] if alone else None
        lines.append(_rate(f"`{name}`", success) if success else f"| `{name}` | not run | | |")
    return "\n".join(lines) + "\n"


def _evaluations(results: Path) -> str:
    """`vla eval --evaluations` of the denoising decoders."""
    head = (
        "## Evaluations of the network\n\nThe same weights, asked another number of times for a chunk; the same episodes in every row.\n\n"
        "```bash\nvla eval runs/mine --suite metaworld-objects --episodes 20 --seed 0 --evaluations 2 --json FILE\n```\n"
    )
    found = [json.loads(path.read_text()) for path in results.glob("evaluations-*.json")]
    if not found:
        return head + "\nNot run yet.\n"
    lines = ["| decoder | evaluations | successes | rate | interval | against the fewest |\n|---|---|---|---|---|---|"]
    fewest: dict[str, dict[str, Any]] = {}
    for result in sorted(found, key=lambda result: (result["policy"]["decoder"], result["policy"]["evaluations"])):
        decoder = result["policy"]["decoder"].removeprefix("decoder.")
        base = fewest.setdefault(decoder, result)
        told = "" if base is result else _pair(_paired(result, base))
        lines.append(f"| `{decoder}` {_rate(result['policy']['evaluations'], result['success'])} {told} |")
    lines.append("\nThese demonstrations have one way to do each task; the next table has two.")
    return head + "\n" + "\n".join(lines) + "\n"


def _bimodal(results: Path) -> str:
    head = (
        "## Two ways round an obstacle\n\nDemonstrations pass on the left or on the right, half and half, so that their mean is wrong. "
        "Plans from unseen starts that stay clear of the obstacle, and how many of all go left.\n\n"
        "```bash\npython -m benchmarks.bimodal --plans 256 --json\n```\n"
    )
    found = _load(results / "bimodal.json")
    if found is None:
        return head + "\nNot run yet.\n"
    lines = ["| | clear | rate | interval | left |\n|---|---|---|---|---|"]
    lines += [f"{_rate(name, row)} {row['left']:.0%} |" for name, row in found["rows"].items()]
    return head + "\n" + "\n".join(lines) + "\n"


ARMS = {
    "scratch": "from scratch",
    "scratch_longer": "from scratch, with the steps of pretraining on top",
    "pretrained": "pretrained on a Sawyer and a Fetch arm",
    "permuted": "the same with actions exchanged between episodes",
    "one_robot": "pretrained on the Sawyer alone, as many samples",
}


def _new_robot(results: Path) -> str:
    head = (
        "## Does pretraining help a new robot?\n\nA robot that pretraining never saw, fine-tuned on few demonstrations. Each arm beside "
        "training from scratch on the same demonstrations, and beside the pretrained one, on the same episodes (McNemar's exact test). "
        "Intervals and p-values are of these trained networks: episodes of one are no independent trainings, and pretraining was run "
        "once.\n"
    )
    found = _load(results / "new_robot.json")
    if found is None:
        return head + "\n```bash\npython -m benchmarks.new_robot --json\n```\n\nNot run yet.\n"
    lines = [
        head,
        f"```bash\n{found['command']}\n```\n",
        f"{found['seeds']} seeds, {found['episodes']} episodes each; {found['steps']} steps of fine-tuning, {found['pretrain_steps']} of "
        f"pretraining; {found['cpu_seconds'] / 60:.0f} CPU minutes.\n",
    ]
    for robot, rows in found["robots"].items():
        lines.append(f"`{robot}`, {rows['task']}:\n")
        lines.append("| demonstrations | | successes | rate | interval | by seed | against scratch | against pretrained | worth |")
        lines.append("|---" * 9 + "|")
        for count, by_arm in rows["demonstrations"].items():
            for arm, row in by_arm.items():
                seeds, times = ", ".join(map(str, row["by_seed"])), rows["multiplier"].get(arm, {}).get(count)
                pairs = [row.get(f"against_{base}") for base in ("scratch", "pretrained")]
                told = " | ".join(_pair(pair) for pair in pairs)
                # Of a difference that may be none, a factor would tell nothing.
                telling = pairs[0] and pairs[0]["p_value"] < 0.05 and times != {"at_least": 1.0}
                worth = _times(times) if telling else ""
                lines.append(f"| {count} {_rate(ARMS[arm], row)} {seeds} | {told} | {worth} |")
        lines.append("")
    lines.append("`worth`: how many times these demonstrations training from scratch would need for the same success, roughly.\n")
    return "\n".join(lines)


def _paired(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two evaluations of the same episodes."""
    one, other = ({(row["task"], row["episode"]): row["success"] for row in found["rows"]} for found in (a, b))
    pairs = [(one[key], other[key]) for key in one]
    return asdict(compare_paired(*(sum(pair == wanted for pair in pairs) for wanted in ((1, 1), (1, 0), (0, 1), (0, 0)))))


def _pair(pair: dict[str, Any] | None) -> str:
    return f"{100 * pair['difference']:+.0f} points, p = {pair['p_value']:.2g}" if pair else ""


def _times(multiplier: dict[str, float]) -> str:
    ((kind, value),) = multiplier.items()
    return f"{kind.replace('_', ' ')} {value:.1f}x"


def _probes(results: Path) -> str:
    base, files = _load(results / "checkpoint-arms-small-sawyer.json"), sorted(results.glob("probe-*.json"))
    head = (
        "## What the policy uses\n\nThe checkpoint in the repository, on the same episodes with one thing taken away or changed. The two "
        "faucet tasks look alike, so that words alone tell which is meant; of the others the scene tells a part. An empty instruction is "
        "also one that training never saw.\n\n"
        "```bash\nvla eval checkpoints/arms-small --suite metaworld-objects --episodes 20 --seed 0 --probe no-language --json FILE\n```\n"
    )
    if base is None or not files:
        return head + "\nNot run yet.\n"
    every = {"nothing": base} | {path.stem.removeprefix("probe-"): json.loads(path.read_text()) for path in files}
    tasks = list(base["tasks"])
    lines = ["| | all | interval | " + " | ".join(tasks) + " |\n|---|---|---" + "|---" * len(tasks) + "|"]
    for name, found in every.items():
        low, high = _interval(found["success"])
        cells = " | ".join(str(found["tasks"][task]["successes"]) for task in tasks)
        row = found["success"]
        lines.append(f"| {name} | {row['successes']}/{row['episodes']} | {100 * low:.0f} to {100 * high:.0f}% | {cells} |")
    changed = [f"`{name}`: {found['probe']['what']}." for name, found in every.items() if found.get("probe")]
    return head + "\n" + "\n".join(lines) + "\n\n" + " ".join(changed) + "\n"


def _meta_world(results: Path, file: str, head: str) -> str:
    """All tasks of a suite, from `vla eval` and the minutes that it took."""
    found = _load(results / file)
    if found is None:
        return head + "\nNot run yet.\n"
    took = " + ".join(f"{seconds / 60:.1f} ({name})" for name, seconds in found["wall_s"].items())
    lines = [
        head,
        f"Minutes by the clock: {took}.\n",
        "| | successes | rate | interval |\n|---|---|---|---|",
        _rate("all", found["success"]),
    ]
    return "\n".join([*lines, *(_rate(f"- {name}", row) for name, row in found["tasks"].items())]) + "\n"


def _few_labels(results: Path) -> str:
    found, before = _load(results / "few_labels.json"), _load(results / "few_labels_three_tasks.json")
    parts = ["## Few labels\n\nFive labelled demonstrations a task, and others seen as video; labels alone for as many optimizer steps.\n"]
    if found:
        rows = found["few_label"]
        each = next(iter(rows["latent"]["tasks"].values()))["episodes"]
        command = f"python benchmarks/latent.py --parts few_labels --arms {' '.join(rows)} --episodes {each}"
        command += f" --arm-steps {found['steps']} --json"
        parts.append(f"```bash\n{command}\n```\n\n" + _arms(found.get("what", "the eight tasks of `metaworld-objects`"), rows))
        parts.append(_by_steps([found, *(_load(path) or {} for path in sorted(results.glob("few_labels_[0-9]*.json")))]))
    if before:
        parts.append(_arms(f"Before, with one pair's codes a label, in video with injected noise: {before['what']}", before["arms"]))
    return "\n".join(parts if len(parts) > 1 else [*parts, "Not measured yet.\n"])


def _by_steps(found: list[dict[str, Any]]) -> str:
    """The same with other numbers of optimizer steps (`--arm-steps`)."""
    lines = ["By optimizer steps (`--arm-steps`), each of trainings of its own:\n", "| | successes | rate | interval |\n|---|---|---|---|"]
    for each in sorted(found, key=lambda each: each["steps"]):
        lines += [_rate(f"{each['steps']} steps, `{name}`", row) for name, row in each["few_label"].items()]
    return "\n".join(lines) + "\n"


def _arms(what: str, rows: dict[str, Any]) -> str:
    """Arms beside each other, task by task, and whether their intervals say anything."""
    (low, high), (least, most) = _interval(rows["latent"]), _interval(rows["labelled_only"])
    said = "above" if low > most else "below" if high < least else ""
    verdict = f"the interval of `latent` lies {said} that of `labelled_only`" if said else "the intervals overlap: no difference is shown"
    lines = [f"{what[0].upper()}{what[1:]}; {verdict}.\n", "| | successes | rate | interval |\n|---|---|---|---|"]
    for name, row in rows.items():
        lines.append(_rate(f"`{name}`", row))
        for task, of in row["tasks"].items():
            lines.append(_rate(f"- {task}", of if isinstance(of, dict) else {"successes": of[0], "episodes": of[1]}))
    return "\n".join(lines) + "\n"


def _interval(row: dict[str, Any]) -> tuple[float, float]:
    from statsmodels.stats.proportion import proportion_confint

    return proportion_confint(row["successes"], row["episodes"], method="wilson")


def _sampling(results: Path) -> str:
    found = _load(results / "sampling.json")
    title = "## How chunks are drawn\n\nThe same episodes in every row; `decisions` are the chunks that an episode asked for.\n"
    if found is None:
        return f"{title}\nNot measured yet.\n"
    where = f"--suite {found['suite']}" + f" --tasks {found['tasks']}" * bool(found["tasks"])
    command = (
        f"vla train-value runs/mine --suite {found['suite']} --episodes 30 --out runs/mine/value.safetensors\n"
        f"python -m benchmarks.sampling runs/mine {where} --episodes {found['episodes']} --value runs/mine/value.safetensors "
        f"--guidance {found['guidance']} --agree {found['agree']} --out runs/mine/sampling --json"
    )
    head = "| | successes | rate | interval | decisions | better | worse | p (Holm) |\n" + "|---" * 8 + "|"
    lines = [f"{title}\n```bash\n{command}\n```\n\n`runs/mine`: {_trained(found)}.\n", head]
    for name, row in found["rows"].items():
        changed = f"{row['better']} | {row['worse']} | {row['p_holm']:.2g}" if "p_holm" in row else "| |"
        lines.append(f"{_rate(name, row)} {row['decisions']:.1f} | {changed} |")
    shown = [(name, row) for name, row in found["rows"].items() if row.get("p_holm", 1) <= 0.05]
    verdicts = [f"`{name}` is {'better' if row['better'] > row['worse'] else 'worse'}" for name, row in shown]
    return "\n".join([*lines, f"\nAgainst `plain`, at 5%: {', '.join(verdicts) if verdicts else 'no difference is shown'}."]) + "\n"


def _trained(found: dict[str, Any]) -> str:
    made = found["checkpoint"]
    return f"the run `{made['run']}` after {made['steps']} steps (decoder `{made['decoder'].removeprefix('decoder.')}`)"


def _latency(results: Path) -> str:
    found = _load(results / "latency.json")
    title = "## Success against delay\n\nA chunk arrives so many control steps after its observation; until then the old one goes on.\n"
    if found is None:
        return f"{title}\nNot measured yet.\n"
    delays = ",".join(dict.fromkeys(str(row["delay_steps"]) for row in found["rows"]))
    command = f"python -m benchmarks.latency runs/mine --suite {found['suite']} --tasks {','.join(found['tasks'])} --delays {delays}"
    lines = [f"{title}\n```bash\n{command} --episodes {found['episodes']} --json\n```\n\n`runs/mine`: {_trained(found)}.\n"]
    lines.append("| | successes | rate | interval |\n|---|---|---|---|")
    lines += [_rate(f"{row['delay_steps']} steps, {row['method']}", row) for row in found["rows"]]
    return "\n".join([*lines, f"\n{found['execute']} commands of each chunk are executed."]) + "\n"


def _shipped(results: Path) -> str:
    files = sorted(results.glob("checkpoint-*.json"))
    if not files:
        return "## Checkpoints in the repository\n\nNone yet.\n"
    command = "vla eval checkpoints/arms-small --suite metaworld-objects --episodes 20 --seed 0 --json FILE"
    lines = [
        f"## Checkpoints in the repository\n\n```bash\n{command}\n```\n",
        "| checkpoint | suite | successes | rate | interval |\n|---|---|---|---|---|",
    ]
    for path in files:
        found = _load(path)
        assert found is not None
        name = path.stem.removeprefix("checkpoint-")
        lines += [f"| {name} {_rate(found['suite'], found['success'])}"]
        lines += [f"| | {_rate('- ' + task, row).removeprefix('| ')}" for task, row in found["tasks"].items()]
    return "\n".join(lines) + "\n"


def _rate(label: str, row: dict[str, Any]) -> str:
    low, high = _interval(row)
    rate = 100 * row["successes"] / row["episodes"]
    return f"| {label} | {row['successes']}/{row['episodes']} | {rate:.1f}% | {100 * low:.1f} to {100 * high:.1f}% |"


def _row(row: Row, value: Any) -> str:
    if value is None:
        return f"| {row.label} | not measured | | |"
    asked, verdict = "", ""
    if row.at_least is not None:
        asked, verdict = f"at least {row.at_least:g}", "met" if value >= row.at_least else "**short**"
    elif row.at_most is not None:
        asked, verdict = f"at most {row.at_most:g}", "met" if value <= row.at_most else "**short**"
    return f"| {row.label} | {value:.4g} {row.unit} | {asked} | {verdict} |".replace("  ", " ")


def _machine(found: dict[str, Any]) -> str:
    machine = found.get("machine")
    if isinstance(machine, dict):
        return "\n" + ", ".join(f"{key}: {value}" for key, value in machine.items() if not isinstance(value, dict | list)) + "\n"
    return f"\n{machine}\n" if machine else ""


def _load(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _at(found: dict[str, Any], key: str) -> Any:
    value: Any = found
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


if __name__ == "__main__":
    sys.exit(main())
