"""What an import will do, checked before anything is written: every tensor of ours has a source, every one of theirs a use or a reason.

A rule is `Take` (as it is, copied byte by byte), `Make` (a function of one or several, small ones), or a tensor by value. Functions run on
the meta device first, so a tensor of a wrong shape is named before the first byte is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vla.backbones.empty import build_empty
from vla.checkpoint import Contents, write_folder
from vla.errors import SchemaError, UserError
from vla.interop.tensors import Stored, write_tensors
from vla.weights import WEIGHTS


@dataclass(frozen=True)
class Take:
    """A tensor of theirs as it is, by its name there."""

    name: str


@dataclass(frozen=True)
class Rows:
    """Rows first <= i < last of a tensor: what is needed of a large vocabulary."""

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Make:
    """`how`(of the tensors, or rows of them, that `parts` name there) -> ours."""

    parts: tuple[str | Rows, ...]
    how: Callable[..., Tensor]


Rule: TypeAlias = "Take | Make | Tensor"


@dataclass(frozen=True)
class Plan:
    """`rules`: our name -> where its value comes from. `left`: beginning of their names -> why they are not needed; the longest that fits
    counts. `notes`: what the file does not say or we do not do, for people. `stored`: where tensors lie, if not in the source's own
    files alone."""

    contents: Contents
    rules: Mapping[str, Rule]
    left: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    stored: Mapping[str, Stored] | None = None


@dataclass(frozen=True)
class Report:
    """`taken`: tensors of theirs that went in; `left`: reason -> how many did not; `bytes`: of model.safetensors."""

    taken: int
    left: Mapping[str, int]
    notes: Sequence[str]


def check(plan: Plan, stored: Mapping[str, Stored], source: str) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...]]], Report]:
    """Types and shapes to write, and the report. Raises SchemaError naming tensors that are missing, left over or of another shape."""
    used = {part for rule in plan.rules.values() for part in _parts(rule)}
    missing = sorted(used - set(stored))
    if missing:
        raise SchemaError(f"{source}: {_some(missing)} missing; {_near(missing[0], stored)}")
    reasons, extra = {}, []
    for name in stored:
        fits = [start for start in plan.left if name.startswith(start)]
        if name in used:
            continue
        if fits:
            reasons[name] = plan.left[max(fits, key=len)]
        else:
            extra.append(name)
    if extra:
        raise SchemaError(f"{source}: nothing here takes {_some(sorted(extra))}; it is a variant that this importer does not know")
    want = {name: tuple(t.shape) for name, t in build_empty(plan.contents.model, plan.contents.roster).state_dict().items()}
    lacking = sorted(set(want) ^ set(plan.rules))
    assert not lacking, f"the importer has no rule for, or too many: {lacking[:5]}"
    rows = {}
    for name, rule in plan.rules.items():
        try:
            made = on_meta(rule, stored)
        except (RuntimeError, IndexError) as error:
            raise SchemaError(
                f"{source}: {_shapes(rule, stored)} do not fit together for '{name}' ({str(error).splitlines()[0]})"
            ) from error
        if tuple(made.shape) != want[name]:
            what = _shapes(rule, stored) if _parts(rule) else f"'{name}'"
            raise SchemaError(f"{source}: {what} would make {tuple(made.shape)}; its configuration says {want[name]} ('{name}')")
        rows[name] = (made.dtype, want[name])
    counts = {why: list(reasons.values()).count(why) for why in dict.fromkeys(reasons.values())}
    return rows, Report(len(used), counts, plan.notes)


def carry_out(plan: Plan, stored: Mapping[str, Stored], source: str, out: Path) -> Report:
    """Checks, then writes the checkpoint folder, one tensor in memory at a time. UserError where `out` exists."""
    import json

    if out.exists():
        raise UserError(f"{out} exists; give a folder that does not")
    rows, report = check(plan, stored, source)
    run = {**plan.contents.run, "left_out": dict(report.left), "notes": list(report.notes)}
    contents = replace(plan.contents, run=run)

    def write(temporary: Path) -> dict[str, str]:
        digest = write_tensors(temporary / WEIGHTS, rows, lambda name: value_of(plan.rules[name], stored))
        (temporary / "config.json").write_text(json.dumps(contents.to_json(), indent=1))
        return {WEIGHTS: digest}

    write_folder(out, write)
    return report


def value_of(rule: Rule, stored: Mapping[str, Stored]) -> Stored | Tensor:
    """What a rule says: where to copy from, or a tensor in memory."""
    if isinstance(rule, Take):
        return stored[rule.name]
    return rule if isinstance(rule, Tensor) else rule.how(*(_of(part, stored).read() for part in rule.parts))


def on_meta(rule: Rule, stored: Mapping[str, Stored]) -> Any:
    """Something of the type and shape that the rule's value will have; nothing is read."""
    if isinstance(rule, Tensor):
        return rule
    if isinstance(rule, Take):
        return stored[rule.name]
    found = [_of(part, stored) for part in rule.parts]
    return rule.how(*(torch.empty(each.shape, dtype=each.dtype, device="meta") for each in found))


def _parts(rule: Rule) -> tuple[str, ...]:
    if isinstance(rule, Take):
        return (rule.name,)
    return () if isinstance(rule, Tensor) else tuple(part if isinstance(part, str) else part.name for part in rule.parts)


def _of(part: str | Rows, stored: Mapping[str, Stored]) -> Stored:
    return stored[part] if isinstance(part, str) else stored[part.name].rows(part.first, part.last)


def _shapes(rule: Rule, stored: Mapping[str, Stored]) -> str:
    return ", ".join(f"'{name}' {stored[name].shape}" for name in dict.fromkeys(_parts(rule)))


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _near(name: str, stored: Mapping[str, Stored]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(stored), n=2)
    return f"nearest there: {', '.join(near)}" if near else f"there are {len(stored)} other tensors"
