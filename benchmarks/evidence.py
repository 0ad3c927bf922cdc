"""docs/results.md from benchmarks/results/*.json: what learned policies do in closed loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla.evaluate.statistics import wilson

FROM_SCRATCH = (
    ("mt10", "## Ten tasks in half an hour of two cores\n\nMeta-World's MT10 from scratch, by two 64 px cameras.\n"),
    ("mt50_two_cores", "## Fifty tasks on two cores\n\nMeta-World's MT50 from scratch, by one 128 px camera.\n"),
    ("mt50", "## Fifty tasks in half an hour of one large GPU\n\nMeta-World's MT50 from scratch, by one 128 px camera.\n"),
)
"""Name of the recipe and of its result, and what is said of it."""


BEFORE = (
    "Run before maps of keypoints were standardised; with `sharpness=None` in `BACKBONE` of `pretrain/demo.py` the same commands make it "
    "again.\n"
)
"""Under what was not run again yet."""


def evidence(results: Path) -> str:
    """What learned policies do in closed loop."""
    return "\n".join(
        [
            "# Results\n\nSuccess in closed loop, from images, proprioception and an instruction. Intervals are Wilson's, 95%.\n",
            _demo(results),
            _heads(results),
            _bimodal(results),
            *(_from_scratch(results, *each) for each in FROM_SCRATCH),
            _new_robot(results / "new_robot.json", NEW_ROBOT, PICTURE),
            _new_robot(results / "new_robot_before.json", NEW_ROBOT_BEFORE),
            _few_labels(results),
            _sampling(results / "sampling.json", "## How chunks are drawn\n"),
            _sampling(results / "sampling_before.json", f"## How chunks are drawn, by a weaker policy\n\n{BEFORE}"),
            _latency(results),
            _shipped(results),
            _probes(results),
            _small_things(results),
        ]
    )


def _demo(results: Path) -> str:
    found = load(results / "demo-parallel.json")
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


HEADS = """## Decoders beside each other

One trunk, the same demonstrations, as many optimizer steps for every decoder. Each row beside `parallel` on the same episodes (McNemar's
exact test, p with Holm's correction for the number of rows). Intervals and p-values are of these trained networks: episodes of one are no
independent trainings. K: noise draws of a context in a step; a training sample is a context, whatever its draws. The latent codes are of
a model that watched the same frames, in steps of its own.
"""


def _heads(results: Path) -> str:
    """`benchmarks/heads.py`."""
    found = load(results / "heads.json")
    if found is None:
        return HEADS + "\n```bash\npython -m benchmarks.heads --json\n```\n\nNot run yet.\n"
    columns = "| | evaluations | successes | rate | interval | against `parallel` | ms a call | actions/s | training samples/s |"
    lines = [
        HEADS,
        f"```bash\n{found['command']}\n```\n",
        f"{found['steps']} steps of {found['batch']} samples from {found['data']['episodes']} demonstrations; seeds: {found['seeds']}; "
        f"episodes a task: {found['episodes']}; threads: {found['threads']} of a call, {found['train_threads']} of training.\n",
        f"{columns}\n" + "|---" * 9 + "|",
    ]
    for row in found["rows"]:
        pair = row.get("against_parallel")
        told = _pair({**pair, "p_value": pair["p_holm"]}) if pair else ""
        cost = f"{row['ms_per_call']:.3g} | {row['actions_per_s']:,} | {row['train_samples_per_s']:.0f}"
        lines.append(f"| {row['what']} {_rate(row['evaluations'] or '', row)} {told} | {cost} |")
    return "\n".join(lines) + "\n"


def _small_things(results: Path) -> str:
    """`benchmarks/small_things.py`."""
    head = (
        "## What is small in a picture\n\nThe tiny backbone's stem, told where a goal of a few pixels lies: R2 on layouts it was not told, "
        "0 being the mean place. Of `Tiny.sharpness`, the default is 2.\n\n```bash\npython -m benchmarks.small_things --json\n```\n"
    )
    found = load(results / "small_things.json")
    if found is None:
        return head + "\nNot run yet.\n"
    tasks = list(next(iter(found["rows"].values())))
    lines = ["| | " + " | ".join(tasks) + " |\n|---" + "|---" * len(tasks) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[task]:.2f}" for task in tasks) + " |" for name, row in found["rows"].items()]
    told = f"{found['pictures']} pictures a task, {found['side']} px, {found['steps']} steps.\n\n"
    page = head + "\n" + told + "\n".join(lines) + "\n"
    others = [other for path in sorted(results.glob("small_things_*.json")) if (other := load(path))]
    if not others:
        return page
    lines = ["| | " + " | ".join(tasks) + " | CPU seconds of learning |\n|---" + "|---" * (len(tasks) + 1) + "|"]
    for other in others:
        told = f"{other['side']} px, {other['keypoints']} maps with cells of {other['stride']} px"
        lines += [
            f"| {told} | " + " | ".join(f"{row[task]:.2f}" for task in tasks) + f" | {other['cpu_s_a_row']:.0f} |"
            for row in other["rows"].values()
        ]
    command = "python -m benchmarks.small_things --side 128 --stride 8 --keypoints 128 --sharpness 2 --json"
    return (
        page + f"\nOther sizes (`--side`, `--stride`, `--keypoints`), sharpness 2:\n\n```bash\n{command}\n```\n\n" + "\n".join(lines) + "\n"
    )


def _bimodal(results: Path) -> str:
    head = (
        "## Two ways round an obstacle\n\nDemonstrations pass on the left or on the right, half and half, so that their mean is wrong. "
        "Plans from unseen starts that stay clear of the obstacle, and how many of all go left.\n\n"
        "```bash\npython -m benchmarks.bimodal --plans 256 --json\n```\n"
    )
    found = load(results / "bimodal.json")
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
    "latent": "pretrained on the same video without labels, by latent actions",
    "latent_permuted": "the same with latent actions exchanged between episodes",
}


NEW_ROBOT = (
    "## Does pretraining help a new robot?\n\nA robot that pretraining never saw, fine-tuned on few demonstrations. Each arm beside "
    "training from scratch on the same demonstrations, and beside the pretrained one, on the same episodes (McNemar's exact test). "
    "Intervals and p-values are of these trained networks: episodes of one are no independent trainings, and pretraining was run once.\n"
)
NEW_ROBOT_BEFORE = f"## A new robot, before\n\n{BEFORE}"


PICTURE = "![Success by number of demonstrations, a line for each way to start; controls are dashed](images/new_robot.png)\n"
"""Drawn by `benchmarks/pictures.py`; faint points are single trainings."""


def _new_robot(path: Path, head: str, picture: str = "") -> str:
    found = load(path)
    if found is None:
        return head + "\n```bash\npython -m benchmarks.new_robot --json\n```\n\nNot run yet.\n"
    lines = [
        head,
        f"```bash\n{found['command']}\n```\n",
        f"{found['seeds']} seeds, {found['episodes']} episodes each; {found['steps']} steps of fine-tuning, {found['pretrain_steps']} of "
        f"pretraining; {found['cpu_seconds'] / 60:.0f} CPU minutes.\n",
        *([picture] if picture else []),
    ]
    for robot, rows in found["robots"].items():
        lines.append(f"`{robot}`, {rows['task']}:\n")
        every = [row for by_arm in rows["demonstrations"].values() for row in by_arm.values()]
        bases = [base for base in ("scratch", "pretrained", "latent") if any(f"against_{base}" in row for row in every)]
        against = "".join(f" against {base} |" for base in bases)
        lines.append(f"| demonstrations | | successes | rate | interval | by seed |{against} worth |")
        lines.append("|---" * (7 + len(bases)) + "|")
        for count, by_arm in rows["demonstrations"].items():
            for arm, row in by_arm.items():
                seeds, times = ", ".join(map(str, row["by_seed"])), rows["multiplier"].get(arm, {}).get(count)
                pairs = [row.get(f"against_{base}") for base in bases]
                told = " | ".join(_pair(pair) for pair in pairs)
                # Of a difference that may be none, a factor would tell nothing.
                telling = pairs[0] and pairs[0]["p_value"] < 0.05 and times != {"at_least": 1.0}
                worth = _times(times) if telling else ""
                lines.append(f"| {count} {_rate(ARMS[arm], row)} {seeds} | {told} | {worth} |")
        lines.append("")
    lines.append("`worth`: how many times these demonstrations training from scratch would need for the same success, roughly.\n")
    return "\n".join([*lines, *_codes(found.get("codes", {}))])


def _codes(found: dict[str, Any]) -> list[str]:
    """What the codes of each source's video say, a line for each thing that a probe reads from them."""
    if not found:
        return []
    lines = [
        "What the latent actions say: a linear map from codes to what the robots did between the frames, on episodes that the map was not "
        "fitted on. The model that gives the codes has watched them, without a label.\n",
        "| video | | mean R² | by dimension | codebook in use, by perplexity | entries never used |",
        "|---" * 6 + "|",
    ]
    for source, row in found.items():
        used = f"{row['perplexity_share']:.0%} | {row['dead_share']:.0%}"
        for name, r2_D in row["probe_r2"].items():
            each = ", ".join(f"{r2:.2f}" for r2 in r2_D)
            lines.append(f"| {source} | {name.replace('/', ' of ')} | {sum(r2_D) / len(r2_D):.2f} | {each} | {used} |")
    return [*lines, ""]


def _pair(pair: dict[str, Any] | None) -> str:
    return f"{100 * pair['difference']:+.0f} points, p = {pair['p_value']:.2g}" if pair else ""


def _times(multiplier: dict[str, float]) -> str:
    ((kind, value),) = multiplier.items()
    return f"{kind.replace('_', ' ')} {value:.1f}x"


def _probes(results: Path) -> str:
    base, files = load(results / "checkpoint-arms-small-sawyer.json"), sorted(results.glob("probe-*.json"))
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


def _from_scratch(results: Path, name: str, head: str) -> str:
    """`benchmarks/from_scratch.py`: all tasks of a suite, and the minutes that it took."""
    found = load(results / f"{name}.json")
    head += f"\n```bash\npython -m benchmarks.from_scratch pretrain/{name}.py --json\n```\n"
    if found is None:
        return head + "\nNot run yet.\n"
    took = " + ".join(f"{seconds / 60:.1f} ({name})" for name, seconds in found["wall_s"].items())
    lines = [
        head,
        f"Minutes by the clock: {took}.\n",
        "| | successes | rate | interval |\n|---|---|---|---|",
        _rate("all", found["success"]),
        *(_rate(f"{name} tasks", row) for name, row in found.get("groups", {}).items()),
    ]
    if "mean_over_groups" in found:
        lines[1] += f"\nMean over the {len(found['groups'])} groups of difficulty: {100 * found['mean_over_groups']:.1f}%.\n"
    return "\n".join([*lines, *(_rate(f"- {name}", row) for name, row in found["tasks"].items())]) + "\n"


def _few_labels(results: Path) -> str:
    found, before = load(results / "few_labels.json"), load(results / "few_labels_three_tasks.json")
    parts = ["## Few labels\n\nFive labelled demonstrations a task, and others seen as video; labels alone for as many optimizer steps.\n"]
    if found:
        rows = found["few_label"]
        each = next(iter(rows["latent"]["tasks"].values()))["episodes"]
        command = f"python benchmarks/latent.py --parts few_labels --arms {' '.join(rows)} --episodes {each}"
        command += f" --arm-steps {found['steps']} --json"
        parts.append(f"```bash\n{command}\n```\n\n" + _arms(found.get("what", "the eight tasks of `metaworld-objects`"), rows))
        parts.append(_by_steps([found, *(load(path) or {} for path in sorted(results.glob("few_labels_[0-9]*.json")))]))
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
    found = wilson(row["successes"], row["episodes"])
    return found.low, found.high


def _sampling(path: Path, title: str) -> str:
    found = load(path)
    title += "\nThe same episodes in every row; `decisions` are the chunks that an episode asked for.\n"
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
    found = load(results / "latency.json")
    title = "## Success against delay\n\nA chunk arrives so many control steps after its observation; till then the old one goes on.\n"
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
        found = load(path)
        assert found is not None
        name = path.stem.removeprefix("checkpoint-")
        lines += [f"| {name} {_rate(found['suite'], found['success'])}"]
        lines += [f"| | {_rate('- ' + task, row).removeprefix('| ')}" for task, row in found["tasks"].items()]
    return "\n".join(lines) + "\n"


def _rate(label: str, row: dict[str, Any]) -> str:
    low, high = _interval(row)
    rate = 100 * row["successes"] / row["episodes"]
    return f"| {label} | {row['successes']}/{row['episodes']} | {rate:.1f}% | {100 * low:.1f} to {100 * high:.1f}% |"


def load(path: Path) -> dict[str, Any] | None:
    """A result; None where it is not there."""
    return json.loads(path.read_text()) if path.is_file() else None
