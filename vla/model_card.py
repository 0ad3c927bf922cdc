"""The model card of an exported checkpoint: what it is, what it was made of, what it reached, what it must not be used for.

Every figure is read from the checkpoint or from a result file of `vla eval --json`; nothing is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla import __version__
from vla.checkpoint import Contents, sha256
from vla.embodiment import Embodiment, Space
from vla.errors import SchemaError, UserError
from vla.model import VLA


def read_scores(path: Path, folder: Path) -> Mapping[str, Any]:
    """A result of `vla eval --json`. UserError where it is of another checkpoint than the one in `folder`: such scores mislead."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no scores at {path}: {error.strerror}") from error
    except ValueError as error:
        raise SchemaError(f"{path} is no JSON ({error}); give a file that `vla eval --json` wrote") from error
    if not isinstance(data, dict) or data.get("kind") != "evaluation":
        raise SchemaError(f"{path} is no result of `vla eval --json`")
    if data["policy"].get("manifest_sha256") != sha256(folder / "manifest.json"):
        raise UserError(f"{path} is a score of {data['policy'].get('name')}, not of {folder}; evaluate this one: vla eval {folder} ...")
    return data


def card_text(name: str, licence: str, contents: Contents, model: VLA, scores: Sequence[Mapping[str, Any]], made_from: Path) -> str:
    """README.md of a checkpoint, with the front matter that the Hugging Face hub reads."""
    sections = [
        _front_matter(name, licence, contents, scores),
        f"# {name}\n\n{_summary(contents, model)}",
        _use(contents),
        "## Robots\n\nNumbers are physical; `from_state` is relative to the state at the start of a chunk, `step` to the step before.\n\n"
        + "\n\n".join(_robot(robot) for robot in contents.embodiments),
        f"## Data\n\n{_data(contents)}",
        f"## Scores\n\n{_scores(scores)}",
        f"## Limits\n\n{_limits(contents, scores)}",
        f"## How it was made\n\n{_training(contents, made_from)}",
        f"## Licence\n\nWeights: {licence}. Data: as in the table; what a source's licence forbids, these weights may not be used for.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(name: str, licence: str, contents: Contents, scores: Sequence[Mapping[str, Any]]) -> str:
    import yaml

    tags = ["robotics", "vision-language-action", contents.model.backbone.kind, contents.model.decoder.kind]
    facts: dict[str, Any] = {"library_name": "vla", "license": licence.lower() if licence != "unknown" else "other"}
    facts |= {"pipeline_tag": "robotics", "tags": [*tags, *(robot.name for robot in contents.embodiments)]}
    if scores:
        results = [
            {
                "task": {"type": "robotics"},
                "dataset": {"name": score["suite"], "type": score["suite"]},
                "metrics": [{"type": "success_rate", "value": round(score["success"]["rate"], 4)}],
            }
            for score in scores
        ]
        facts["model-index"] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---"


def _summary(contents: Contents, model: VLA) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    run = contents.run
    seen = f"{len(contents.offsets_s)} frames" if len(contents.offsets_s) > 1 else "one frame"
    robots = ", ".join(robot.name for robot in contents.embodiments)
    goal = ", or an image of the goal" if run.get("goal_gap_s") else ""
    return (
        f"A vision-language-action policy: {seen} of each camera, proprioception and an instruction{goal} in, a chunk of commands out. "
        f"{count:,} parameters (`{contents.model.backbone.kind}`, `{contents.model.decoder.kind}`), for: {robots}."
    )


def _use(contents: Contents) -> str:
    first, frames = contents.embodiments[0], len(contents.offsets_s)
    roles = ", ".join(f"`{role}`" for role in first.cameras) or "none"
    return f"""## Use

With this folder as `policy` (or the hub's id of it and a commit, by `Policy.from_pretrained(id, revision=...)`):

```bash
vla check policy --verify
```

```python
from vla.policy import Policy
from vla.types import Observation


def act(images, state, instruction):
    policy = Policy.load("policy", verify=True)
    observation = Observation(images, state, instruction, "{first.name}", {contents.offsets_s!r})
    return policy.act(observation).action_TA  # physical units, one row per 1/{first.rate_hz} s, within the robot's limits
```

`images`: {roles}, each uint8 ({frames}, height, width, 3), RGB, newest last; `state`: float64 ({frames}, {first.state.size}), packed in
the order below."""


def _robot(robot: Embodiment) -> str:
    rows = [f"### `{robot.name}`", ""]
    rows.append(f"{float(robot.rate_hz):g} Hz, {robot.horizon} commands a chunk; cameras: {', '.join(robot.cameras) or 'none'}.")
    if robot.limits is None:
        rows.append("**No limits are known: it can be learned from, and every attempt to act as it is refused.**")
    rows += ["", "| | field | size | unit | frame | learned | limits |", "|---|---|---|---|---|---|---|"]
    rows += [f"| state | {f.name} | {f.size} | {f.unit} | {f.frame} | | |" for f in robot.state.fields]
    for field, learned in zip(robot.command.fields, robot.action.fields, strict=True):
        bounds = _bounds(robot, robot.command, field.name)
        rows.append(f"| command | {field.name} | {field.size} | {field.unit} | {field.frame} | {learned.frame} | {bounds} |")
    return "\n".join(rows)


def _bounds(robot: Embodiment, space: Space, field: str) -> str:
    if robot.limits is None:
        return "none"
    pairs = dict.fromkeys(robot.limits[space.slices()[field]])
    return "; ".join(f"{low:g} .. {high:g}" for low, high in pairs)


def _data(contents: Contents) -> str:
    sources = contents.run.get("sources")
    if not sources:
        return "The checkpoint does not say what it was trained on."
    rows = ["| source | robot | share | episodes | hours | supervision | licence |", "|---|---|---|---|---|---|---|"]
    for row in sources:
        share, length = f"{row['share']:.1%}", f"{row['episodes']:,} | {row['hours']:.2f}"
        rows.append(f"| {row['name']} | {row['robot'] or '-'} | {share} | {length} | {row['supervision']} | {row['licence']} |")
    held_out = contents.run.get("data", {}).get("val_fraction")
    return "\n".join(rows) + (f"\n\n{held_out:.1%} of the episodes were held out." if held_out else "")


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return "Not evaluated. `vla eval policy --suite NAME --json FILE` makes a score, and `vla export checkpoint --scores FILE` adds it."
    rows = ["| suite | task | successes | rate | 95% interval |", "|---|---|---|---|---|"]
    for score in scores:
        for task, rate in [*score["tasks"].items(), ("all", score["success"])]:
            interval = f"{rate['low']:.1%} – {rate['high']:.1%}"
            rows.append(f"| {score['suite']} | {task} | {rate['successes']}/{rate['episodes']} | {rate['rate']:.1%} | {interval} |")
    said = [f"`{score['command']}`" for score in scores if score.get("command")]
    return "\n".join(rows) + ("\n\nMade by " + "; ".join(said) + "." if said else "")


def _limits(contents: Contents, scores: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "- For the robots above, with their cameras, units and frames, and no others; anything else is refused.",
        "- Outside of the data above nothing is promised. Commands are kept within the limits above, which is no safety function.",
    ]
    lines += ["- No closed-loop score is known."] if not scores else []
    silent = [robot.name for robot in contents.embodiments if robot.limits is None]
    lines += [f"- Never acts as {', '.join(silent)}: their limits are not known."] if silent else []
    degenerate = {
        robot.name: contents.normalizers[robot.name].action.degenerate
        for robot in contents.embodiments
        if contents.normalizers[robot.name].action.degenerate
    }
    lines += [f"- In the data of {name}, command number {', '.join(map(str, which))} hardly moved." for name, which in degenerate.items()]
    return "\n".join(lines)


def _training(contents: Contents, made_from: Path) -> str:
    run = contents.run
    known = ("mixture", "step", "batch_size", "seed", "precision", "ema_decay", "init", "freeze", "normalization")
    rows = ["| setting | value |", "|---|---|", *(f"| {key} | {_plain(run[key])} |" for key in known if run.get(key) not in (None, (), []))]
    rows.append(f"| vla | {__version__} |")
    rows.append(f"| manifest of the run's checkpoint (sha256) | `{sha256(made_from / 'manifest.json')}` |")
    return "\n".join(rows)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
