"""What `vla check` says about a checkpoint: its bytes, what it says of itself, its weights, and whether it still acts as it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vla.checkpoint import Contents, acting, folder_problems, misfits, read_contents
from vla.data.check import Finding, Report
from vla.errors import StatsMissing, UserError
from vla.golden import GOLDEN, differences
from vla.policy import Policy
from vla.weights import read_weights, weight_table


def check_checkpoint(path: Path, verify: bool = False) -> Report:
    """`verify`: also act, and compare with the golden actions. What cannot be looked at because of an earlier finding is left out."""
    folder = acting(path)
    damage = [Finding("damaged", str(folder), text) for text in folder_problems(folder)]
    if damage:
        return Report("checkpoint", folder, tuple(damage))
    try:
        contents = read_contents(folder)
    except UserError as error:
        return Report("checkpoint", folder, (Finding("contents", "config.json", str(error)),))
    findings = [*_robots(contents), *_weights(folder, contents)]
    has_golden = (folder / GOLDEN).is_file()
    if not has_golden:
        fix = "`vla export checkpoint` stores some"
        note = Finding("golden", str(folder), "no golden actions: nothing says how it should act here", "note", fix=fix)
        findings.append(Finding(note.kind, note.where, note.detail, fix=fix) if verify else note)
    if verify and has_golden and not any(finding.severity == "error" for finding in findings):
        policy = Policy.load(folder)
        moved = differences(folder, contents, policy.act_batch)
        findings += [Finding("golden", GOLDEN, line, fix="compare the versions in golden.json with those here") for line in moved]
    return Report("checkpoint", folder, tuple(findings), _facts(folder, contents, verify and has_golden))


def _robots(contents: Contents) -> Iterator[Finding]:
    names = [robot.name for robot in contents.embodiments]
    for robot in contents.embodiments:
        normalizer = contents.normalizers.get(robot.name)
        if normalizer is None:
            yield Finding("statistics", robot.name, f"no normaliser; there are some for {', '.join(contents.normalizers) or 'none'}")
            continue
        try:
            normalizer.check(robot)
        except StatsMissing as error:
            yield Finding("statistics", robot.name, str(error))
        if normalizer.action.degenerate:
            which = ", ".join(map(str, normalizer.action.degenerate))
            yield Finding("statistics", robot.name, f"command number {which} hardly moved in the data", "note")
        if robot.limits is None:
            fix = f"write limits into a copy of its file and fine-tune for that ({robot.command.size} pairs)"
            yield Finding("limits", robot.name, "no limits are known: it will refuse to act as this robot", "warning", fix=fix)
    for name in sorted(set(contents.normalizers) - set(names)):
        yield Finding("statistics", name, f"statistics of a robot that is not among {', '.join(names)}", "warning")


def _weights(folder: Path, contents: Contents) -> Iterator[Finding]:
    wrong = misfits(folder, contents.build())
    if wrong:
        listed = f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        yield Finding("weights", str(folder), f"{len(wrong)} tensors are missing, left over or of another shape: {listed}")
    for part in read_weights(folder):
        for name, tensor in part.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                yield Finding("weights", name, "holds NaN or infinity", fix="use an earlier checkpoint of the run")
    if any(".lora_" in name for name in weight_table(folder)):
        yield Finding("adapters", str(folder), "LoRA adapters stand apart", "note", fix="vla export checkpoint ... --merge-adapters")


def _facts(folder: Path, contents: Contents, verified: bool) -> dict[str, Any]:
    table = weight_table(folder)
    robots = [f"{robot.name} ({float(robot.rate_hz):g} Hz, {'/'.join(robot.cameras) or 'blind'})" for robot in contents.embodiments]
    return {
        "robots": robots,
        "backbone": contents.model.backbone.kind,
        "decoder": contents.model.decoder.kind,
        "parameters": sum(_numbers(row.shape) for row in table.values()),
        "stored as": sorted({row.dtype for row in table.values()}),
        "files of weights": len({row.file for row in table.values()}),
        "observes": f"{len(contents.offsets_s)} frame{'s' * (len(contents.offsets_s) > 1)}, at {list(contents.offsets_s)} s",
        "step": contents.run.get("step"),
        "run": contents.run.get("name"),
        "golden actions": "as they were" if verified else "stored" if (folder / GOLDEN).is_file() else None,
    }


def _numbers(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
