"""Which robot a pi0 file is for: statistics, horizon, cameras of openpi's folder (`assets/`) or lerobot's (`policy_preprocessor.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla.embodiment import Embodiment
from vla.errors import SchemaError, StatsMissing, UserError
from vla.interop import stats
from vla.interop.source import Source, require
from vla.interop.tensors import scan
from vla.normalize import Normalizer

NORMALIZER, RELATIVE = "normalizer_processor", "relative_actions_processor"


@dataclass(frozen=True)
class Meant:
    """What the folder says of its numbers. `padded`: width of the model's vectors."""

    robot: Embodiment
    state: Normalizer
    action: Normalizer
    steps: int
    padded: int
    key: str
    layout: str
    notes: tuple[str, ...]


def read(source: Source, variant: str) -> Meant:
    """Either layout: lerobot's config.json has a `type`."""
    config = source.json("config.json")
    return _lerobot(source, config, variant) if "type" in config else _openpi(source, config, variant)


def _openpi(source: Source, config: Mapping[str, Any], variant: str) -> Meant:
    padded, horizon = require(config, ("action_dim", "action_horizon"), f"{source.name}/config.json")
    found = {str(path.parent.relative_to(source.folder / "assets")): path for path in source.folder.glob("assets/**/norm_stats.json")}
    if not found:
        raise StatsMissing(f"{source.name} has no assets/*/norm_stats.json: copy the folder `assets` of the original checkpoint there")
    key, path = source.choose(found)
    data = source.json(str(path.relative_to(source.folder)))
    numbers = data.get("norm_stats", data)
    state, action = require(numbers, ("state", "actions"), f"norm_stats.json of '{key}'")
    widths = [len(require(each, ("mean",), "norm_stats.json")[0]) for each in (state, action)]
    robot = source.robot_of(horizon, 1, 3, source.robot.action.size if widths[1] == padded else widths[1])
    if widths[0] not in (robot.state.size, padded):
        raise SchemaError(f"{source.name} reads a state of {widths[0]} numbers; '{robot.name}' has {robot.state.size}")
    quantiles = variant != "pi0"  # `use_quantile_norm` of its configurations
    made = [
        stats.openpi(each, f"{what} statistics of '{key}'", size, quantiles=quantiles)
        for each, what, size in ((state, "state", robot.state.size), (action, "action", robot.action.size))
    ]
    frames = ", ".join(f"{f.name} {f.frame}" for f in robot.action.fields)
    note = f"the file does not say which actions are relative to the state (`DeltaActions`); '{robot.name}' says: {frames}"
    return Meant(robot, made[0], made[1], 10, padded, key, "openpi", (note,))


def _lerobot(source: Source, config: Mapping[str, Any], variant: str) -> Meant:
    if config["type"] != variant:
        raise UserError(f"{source.name} is a '{config['type']}' of lerobot: vla import {config['type']} ...")
    where = f"{source.name}/config.json"
    horizon, padded, inputs, outputs = require(config, ("chunk_size", "max_action_dim", "input_features", "output_features"), where)
    cameras = [name for name, row in inputs.items() if row["type"] == "VISUAL" and "empty_camera" not in name]
    width = int(require(outputs, ("action",), "its output_features")[0]["shape"][0])
    robot = source.robot_of(int(horizon), 1, max(1, len(cameras)), width)
    steps = {step.get("registry_name"): step for step in source.json("policy_preprocessor.json").get("steps", ())}
    if NORMALIZER not in steps:
        raise StatsMissing(f"{source.name}/policy_preprocessor.json has no {NORMALIZER}; its steps: {', '.join(map(str, steps))}")
    settings, file = steps[NORMALIZER].get("config", {}), steps[NORMALIZER].get("state_file")
    if not file or file not in source.files():
        raise StatsMissing(
            f"{source.name} has no statistics ({file or 'its normaliser names no file'}): it is a base model, made to be fine-tuned"
        )
    numbers: dict[str, dict[str, Any]] = {}
    for name, stored in scan([source.folder / file]).items():
        feature, _, kind = name.rpartition(".")
        numbers.setdefault(feature, {})[kind] = stored.read().numpy()
    eps, modes = float(settings.get("eps", 1e-8)), settings.get("norm_map", config.get("normalization_mapping", {}))
    state, action = (
        stats.lerobot(require(numbers, (feature,), file)[0], f"{feature} in {file}", size, modes[kind], eps)
        for feature, kind, size in (("observation.state", "STATE", robot.state.size), ("action", "ACTION", robot.action.size))
    )
    _check_frames(source, robot, steps.get(RELATIVE, {}).get("config", {}))
    order = f"its images, in order: {', '.join(cameras)}; given: {', '.join(robot.cameras)}"
    return Meant(robot, state, action, int(config.get("num_inference_steps", 10)), int(padded), "", "lerobot", (order, RESIZED))


RESIZED = "lerobot shrinks images without antialiasing; here they are antialiased, as in openpi's own transforms"


def _check_frames(source: Source, robot: Embodiment, settings: Mapping[str, Any]) -> None:
    """Relative actions are in the file: the robot must mean the same."""
    relative = bool(settings.get("enabled"))
    kept, names = settings.get("exclude_joints") or [], settings.get("action_names") or []
    wanted = [relative and not (names and any(part in str(names[i]) for part in kept)) for i in range(robot.action.size)]
    for name, where in robot.action.slices().items():
        frame = robot.action.field(name).frame
        mixed = len(set(wanted[where])) > 1
        if mixed or (frame == "from_state") != wanted[where][0]:
            said = "relative to the state" if wanted[where][0] else "not relative to the state"
            raise SchemaError(f"{source.name}: '{name}' is {'in part ' if mixed else ''}{said}; '{robot.name}' has it {frame}")
