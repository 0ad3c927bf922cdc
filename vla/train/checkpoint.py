"""A run's folder: what is in it, who may write to it, and how training goes on from it.

    run.json, log.jsonl, first_batch.png
    checkpoints/000500/pretrained_model   the acting checkpoint (`vla.checkpoint`), with the EMA's weights if there is one
    checkpoints/000500/training_state     state.safetensors (`Engine.state`) and progress.json, under a manifest
    checkpoints/{last,best} -> 000500     for people, where the file system has links; resuming looks at the folders themselves

A step's folder appears whole or not at all. Nothing here can run code.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vla.checkpoint import (
    MODEL,
    Contents,
    folder_problems,
    put_in_place,
    save_checkpoint,
    save_tensors,
    saving,
    steps_saved,
    write_folder,
    writing,
)
from vla.errors import Damaged, UnsafeChange, UserError
from vla.train.engine import Limits, Update
from vla.train.run import differences
from vla.train.spikes import remembered

STATE = "training_state"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `step`: steps done; the next batch starts at position `step * batch_size`. `updates`: those applied.
    `recent`: loss and gradient norm of the last updates, against which a spike shows. `val_loss`: where held-out data were measured.

    There is no generator to restore: all randomness is a function of seed, position and step.
    """

    step: int
    updates: int
    batch_size: int
    seed: int
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0
    recent: tuple[tuple[float, float], ...] = ()
    val_loss: float | None = None

    def after(self, update: Update, limits: Limits) -> Progress:
        """One step further."""
        done = replace(self, step=self.step + 1, val_loss=None)
        if update.applied:
            return replace(done, updates=self.updates + 1, skipped_in_row=0, recent=remembered(self.recent, update, limits))
        recent = remembered(self.recent, update, limits)
        return replace(done, skipped=self.skipped + 1, skipped_in_row=self.skipped_in_row + 1, recent=recent)


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """One job per folder: refuses a second. The kernel drops the lock with its process, however that ends.

    A POSIX lock: it is the process's own, where `flock` would live on in the loader processes of a killed one. A folder that was made for
    it and in which nothing was written, because of a mistake that was found first, is removed.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / ".lock", "a+")  # noqa: SIM115  # closed below
    except OSError as error:
        raise UserError(f"a run cannot be written in {out}: {error.strerror}. Choose another --out.") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(f"{out} is in use by process {file.read().strip() or '?'}. Wait for it, or choose another --out.") from error
        if not (out / ".lock").exists() or not os.path.samestat(os.fstat(file.fileno()), (out / ".lock").stat()):
            raise UserError(f"{out} was removed by a job that has just failed. Start again.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for partial in [*(out / "checkpoints").glob(".*.partial"), *(out / "checkpoints").glob(".*.replaced")]:  # a killed save's
            partial.unlink() if partial.is_symlink() else shutil.rmtree(partial)
        try:
            yield
        finally:
            if made and [path.name for path in out.iterdir()] == [".lock"]:
                (out / ".lock").unlink()
                out.rmdir()


def save(
    out: Path,
    contents: Contents,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    progress: Progress,
    keep_last: int,
    keep_best: int = 0,
) -> Path:
    """Writes the step's folder, points `last` to it, and removes what need not be kept. Returns the acting checkpoint.

    `keep_best`: so many with the lowest `val_loss` stay beside the newest `keep_last`; `best` points to the first of them.
    """
    folder = out / "checkpoints" / f"{progress.step:06d}"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with saving(folder, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        save_checkpoint(temporary / MODEL, contents, weights)
        write_folder(temporary / STATE, lambda part: _write_state(part, state, progress))
        put_in_place(temporary, folder)  # in the place of a damaged one, if any: a sound one of this step is never written again
        point(out, "last", folder)
        _thin(out, progress.step, keep_last, keep_best)
    return folder / MODEL


def newest(out: Path, say: Callable[[str], None]) -> Path | None:
    """The newest step whose every byte is what its manifest says. Damaged ones are named and passed over, never removed."""
    folders = steps_saved(out)
    for folder in reversed(folders):
        problems = [f"{part}: {line}" for part in (STATE, MODEL) for line in folder_problems(folder / part)] or _strangers(folder)
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
    data = _progress(folder)
    if data.pop("format_version") != FORMAT_VERSION:
        raise UserError(f"{folder} has another format of training state; this version reads {FORMAT_VERSION}")
    data["recent"] = tuple((loss, norm) for loss, norm in data.get("recent", ()))
    return load_file(folder / STATE / "state.safetensors"), Progress(**data)


def point(out: Path, name: str, folder: Path) -> None:
    """A link for people, where the file system has links."""
    link, part = folder.with_name(name), folder.with_name(f".{name}.partial")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(folder.name)
        part.replace(link)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # a mounted bucket, say, has no links
            raise


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
    with writing(path):
        part.write_text(json.dumps(facts, indent=1))
        part.replace(path)


def _write_state(folder: Path, state: Mapping[str, Tensor], progress: Progress) -> dict[str, str]:
    digest = save_tensors(folder / "state.safetensors", state)
    (folder / "progress.json").write_text(json.dumps({"format_version": FORMAT_VERSION, **asdict(progress)}, indent=1))
    return {"state.safetensors": digest}


def _thin(out: Path, step: int, keep_last: int, keep_best: int) -> None:
    """Removes what is neither among the newest nor among the best. What is newer than `step` was damaged, and counts for nothing."""
    folders = [folder for folder in steps_saved(out) if int(folder.name) <= step]
    kept = {*folders[-keep_last:]}
    if keep_best:
        loss = {folder: _val_loss(folder) for folder in folders}
        best = sorted((folder for folder in folders if math.isfinite(loss[folder])), key=lambda folder: (loss[folder], folder))[:keep_best]
        kept |= {*best}
        if best:
            point(out, "best", best[0])
    for folder in folders:
        if folder not in kept:  # out of sight first: half of it must not be seen
            hidden = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
            folder.rename(hidden)
            shutil.rmtree(hidden)


def _strangers(folder: Path) -> list[str]:
    """Parts that are whole but of another step: copied there by hand, or by a backup of mixed age."""
    steps = {STATE: _progress(folder)["step"], MODEL: json.loads((folder / MODEL / "config.json").read_text())["run"].get("step")}
    return [f"{part}: of step {step}, stale" for part, step in steps.items() if step not in (int(folder.name), None)]


def _val_loss(folder: Path) -> float:
    """inf where it was not measured, or where the folder is damaged."""
    try:
        found = _progress(folder).get("val_loss")
    except (OSError, ValueError):
        found = None
    return math.inf if found is None else found


def _progress(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE / "progress.json").read_text())
