"""What a killed run of `train_latent` goes on from: weights, moments and what was watched, complete or invisible; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file

from vla.checkpoint import save_tensors, verify_folder, write_folder, writing
from vla.errors import UnsafeChange
from vla.latent_action.model import LatentActionModel


@dataclass(frozen=True)
class Watched:
    """`step`: steps done. The rest is the run's slowly forgetting view of its codes, its seconds so far, and the last logged row."""

    step: int
    count_NK: np.ndarray
    unexplained: float
    change: float
    seconds: float
    row: Mapping[str, Any]


def save_state(out: Path, facts: Mapping[str, Any], model: LatentActionModel, optimizer: torch.optim.Optimizer, watched: Watched) -> None:
    """Replaces `out/state` once the new one is complete on disk. There is no generator to keep: all noise is a function of position."""
    moments = optimizer.state_dict()["state"]
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"moment.{number}.{name}": torch.as_tensor(t) for number, row in moments.items() for name, t in row.items()}
    tensors["count_NK"] = torch.from_numpy(watched.count_NK)
    numbers = {"step": watched.step, "unexplained": watched.unexplained, "change": watched.change, "seconds": watched.seconds}

    def write(temporary: Path) -> dict[str, str]:
        digest = save_tensors(temporary / "state.safetensors", tensors)
        (temporary / "state.json").write_text(json.dumps({"facts": dict(facts), **numbers, "row": dict(watched.row)}))
        return {"state.safetensors": digest}

    write_folder(out / "state", write)


def load_state(
    out: Path, facts: Mapping[str, Any], model: LatentActionModel, optimizer: torch.optim.Optimizer, schedule: Any
) -> Watched | None:
    """Puts back what `save_state` wrote; None where nothing was saved yet. UnsafeChange where the run is another; Damaged."""
    if not (out / "state").is_dir():
        return None
    folder = verify_folder(out / "state")
    data = json.loads((folder / "state.json").read_text())
    refuse_changes(out, facts, data["facts"])
    tensors = load_file(folder / "state.safetensors")
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("moment."):
            _, number, what = name.split(".")
            moments.setdefault(int(number), {})[what] = tensor
    schedule.last_epoch = data["step"]
    for group, base, rate in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * rate(data["step"])
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    count_NK = tensors["count_NK"].numpy()
    return Watched(data["step"], count_NK, data["unexplained"], data["change"], data["seconds"], data["row"])


def refuse_changes(out: Path, facts: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """UnsafeChange where a run is to go on as another. What an older version did not write down is not compared."""
    now = json.loads(json.dumps(dict(facts)))  # as it was read: lists for tuples
    if changed := sorted(name for name in now if known.get(name, now[name]) != now[name]):
        raise UnsafeChange(f"{out} was trained with another {', '.join(changed)}; resume it as it was, or choose another --out")


@contextmanager
def restart_log(out: Path, step: int) -> Iterator[IO[str]]:
    """`out/log.jsonl`, cut back to the rows up to `step`, ready to be written on; a row at a time, so that it can be watched."""
    out.mkdir(parents=True, exist_ok=True)
    path, part = out / "log.jsonl", out / ".log.jsonl.partial"
    kept = []
    for line in path.read_text().splitlines() if step and path.is_file() else []:
        if line.endswith("}") and json.loads(line)["step"] <= step:  # a kill may have cut the last row
            kept.append(line + "\n")
    with writing(path):
        part.write_text("".join(kept))
        part.replace(path)
        file = open(path, "a", buffering=1)  # noqa: SIM115  # closed below
    try:
        yield file
    finally:
        with suppress(OSError):  # each row was flushed: what is left is what was refused, and said
            file.close()
