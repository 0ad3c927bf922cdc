"""A latent-action model on disk: a folder as in `vla.checkpoint` (weights, configuration, manifest), without robots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from vla.checkpoint import save_tensors, verify_folder, write_folder
from vla.config import from_json, to_json
from vla.errors import Damaged, UserError
from vla.latent_action.model import LatentActionConfig, LatentActionModel

FORMAT_VERSION = 1


def save_latent(folder: Path, model: LatentActionModel, run: Mapping[str, Any] | None = None) -> Path:
    """Writes model.safetensors, config.json (with the model's hash) and manifest.json; complete or invisible."""
    contents = {"format_version": FORMAT_VERSION, "model": to_json(model.config), "hash": model.hash(), "run": dict(run or {})}

    def write(temporary: Path) -> dict[str, str]:
        digest = save_tensors(temporary / "model.safetensors", model.state_dict())
        (temporary / "config.json").write_text(json.dumps(contents, indent=1))
        return {"model.safetensors": digest}

    return write_folder(folder, write)


def run_of(folder: Path) -> dict[str, Any]:
    """What `save_latent` was told of the run that made a model."""
    return json.loads((folder / "config.json").read_text())["run"]


def load_latent(folder: str | Path) -> LatentActionModel:
    """The model in evaluation mode. UserError where the folder holds something else; Damaged where it does not fit its manifest."""
    folder = Path(folder)
    folder = verify_folder(folder / "model" if (folder / "model").is_dir() else folder)  # a run's folder stands for its model
    contents = json.loads((folder / "config.json").read_text())
    if contents.get("model", {}).get("kind") != LatentActionConfig.kind:
        raise UserError(f"{folder} is no latent-action model; a recipe such as pretrain/demo_latent_action.py makes one")
    if contents["format_version"] != FORMAT_VERSION:
        raise UserError(f"{folder}: format {contents['format_version']}; this version reads {FORMAT_VERSION}")
    model = from_json(contents["model"]).build()
    problems = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if problems.missing_keys or problems.unexpected_keys or model.hash() != contents["hash"]:
        raise Damaged(f"{folder}: weights are not those of the model that its config.json describes")
    return model.eval()
