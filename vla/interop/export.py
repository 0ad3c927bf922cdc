"""Our checkpoints in the layouts of other projects, where those have a place for everything that was learned; what has none is named."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vla.backbones.prompts import unpack_tokenizer
from vla.checkpoint import acting, put_in_place, read_contents, saving, verify_folder
from vla.errors import UserError
from vla.interop.exports import EXPORTS
from vla.interop.plan import Rule, on_meta, value_of
from vla.interop.tensors import Stored, scan, write_tensors
from vla.weights import weight_files


@dataclass(frozen=True)
class Exported:
    """`rules`: their name -> where its value comes from. `tables`: file -> small tensors. `texts`: file -> JSON. `notes`: for people."""

    rules: Mapping[str, Rule]
    texts: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def export_checkpoint(name: str, folder: str | Path, out: Path) -> list[str]:
    """Writes `out`, which must not exist; returns lines for people. UserError for what the layout has no place for."""
    if out.exists():
        raise UserError(f"{out} exists; give a folder that does not")
    source = verify_folder(acting(Path(folder)))
    contents, weights = read_contents(source), scan(source / file for file in weight_files(source))
    made = importlib.import_module(EXPORTS[name][1]).plan(contents, weights)
    rows = {each: (like.dtype, tuple(like.shape)) for each, like in ((n, on_meta(rule, weights)) for n, rule in made.rules.items())}
    texts = {"tokenizer.json": json.loads(unpack_tokenizer(contents.model.backbone.tokenizer).to_str()), **made.texts}
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with saving(out, temporary):
        temporary.mkdir(parents=True)
        write_tensors(temporary / "model.safetensors", rows, lambda each: value_of(made.rules[each], weights))
        for file, tensors in made.tables.items():
            write_tensors(temporary / file, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}, tensors.__getitem__)
        for file, data in texts.items():
            (temporary / file).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        put_in_place(temporary, out)
    return [f"{len(rows)} tensors", *made.notes]


def require_zero(weights: Mapping[str, Stored], names: Sequence[str], layout: str) -> None:
    """Refuses parameters that the layout lacks, unless they are 0, as an import leaves them."""
    moved = [name for name in names if bool(weights[name].read().any())]
    if moved:
        fix = "it has been trained here; share it as it is (`Policy.load` needs nothing else)"
        raise UserError(f"{layout} has no place for {', '.join(moved)}: {fix}")
