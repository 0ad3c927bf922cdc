"""A run's folder: what is in it, who may write to it, and how training goes on from it.

    run.json, log.jsonl, first_batch.png
    checkpoints/000500/pretrained_model   the acting checkpoint (`vla.checkpoint`), with the EMA's weights if there is one
    checkpoints/000500/training_state     state.safetensors (`Engine.state`) and progress.json, under a manifest
    checkpoints/last -> 000500            for people, where the file system has links; resuming looks at the folders themselves

A step's folder appears whole or not at all. Nothing here can run code.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vla.checkpoint import MODEL, Contents, folder_problems, save_checkpoint, save_tensors, steps_saved, write_folder
from vla.errors import Damaged, UnsafeChange, UserError
from vla.train.run import differences

STATE = "training_state"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `step`: steps done; the next batch starts at position `step * batch_size`. `updates`: those applied.

    There is no generator to restore: all randomness is a function of seed, position and step.
    """

    step: int
    updates: int
    batch_size: int
    seed: int
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """One job per folder: refuses a second. The kernel drops the lock with its process, however that ends.

    A POSIX lock: it is the process's own, where `flock` would live on in the loader processes of a killed one.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(f"{out} is in use by process {file.read().strip() or '?'}. Wait for it, or choose another --out.") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for partial in (out / "checkpoints").glob(".*.partial"):  # of a save that was killed
            shutil.rmtree(partial)
        yield


def save(out: Path, contents: Contents, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], progress: Progress, keep: int) -> Path:
    """Writes the step's folder, points `last` to it, and removes all but the newest `keep`. Returns the acting checkpoint."""
    folder = out / "checkpoints" / f"{progress.step:06d}"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_checkpoint(temporary / MODEL, contents, weights)
        write_folder(temporary / STATE, lambda part: _write_state(part, state, progress))
        if folder.exists():  # a damaged one, or the same step once more
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _point(out / "checkpoints" / "last", folder.name)
    for old in steps_saved(out)[:-keep]:
        shutil.rmtree(old)
    return folder / MODEL


def newest(out: Path, say: Callable[[str], None]) -> Path | None:
    """The newest step whose every byte is what its manifest says. Damaged ones are named and passed over, never removed."""
    folders = steps_saved(out)
    for folder in reversed(folders):
        problems = [f"{part}: {line}" for part in (STATE, MODEL) for line in folder_problems(folder / part)]
        if not problems:
            return folder
        say(f"damaged: {folder}: {'; '.join(problems)}")
    if folders:
        raise Damaged(
            f"no sound checkpoint is left in {out}: {[folder.name for folder in folders]} are damaged. Start again with another --out."
        )
    return None


def load_state(folder: Path) -> tuple[dict[str, Tensor], Progress]:
    """What `save` wrote, already verified by `newest`."""
    data = json.loads((folder / STATE / "progress.json").read_text())
    if data.pop("format_version") != FORMAT_VERSION:
        raise UserError(f"{folder} has another format of training state; this version reads {FORMAT_VERSION}")
    return load_file(folder / STATE / "state.safetensors"), Progress(**data)


def record_run(out: Path, facts: Mapping[str, Any], fresh: bool, allow_changed: bool, say: Callable[[str], None]) -> None:
    """Writes run.json. A resumed run's differences are said, and refused where they would change its result unasked."""
    path = out / "run.json"
    if not fresh and path.is_file():
        unsafe, harmless = differences(json.loads(path.read_text()), json.loads(json.dumps(facts)))
        for line in (*harmless, *unsafe):
            say(f"changed since the last start: {line}")
        if unsafe and not allow_changed:
            raise UnsafeChange(f"the run differs from the one in {out}: {'; '.join(unsafe)}. Choose another --out, or add --allow-changed.")
    part = path.with_name(".run.json.partial")
    part.write_text(json.dumps(facts, indent=1))
    part.replace(path)


def _write_state(folder: Path, state: Mapping[str, Tensor], progress: Progress) -> None:
    save_tensors(folder / "state.safetensors", state)
    (folder / "progress.json").write_text(json.dumps({"format_version": FORMAT_VERSION, **asdict(progress)}, indent=1))


def _point(link: Path, name: str) -> None:
    part = link.with_name(".last.partial")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(name)
        part.replace(link)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # a mounted bucket, say, has no links
            raise
