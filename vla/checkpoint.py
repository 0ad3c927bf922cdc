"""A checkpoint: a folder that acts alone. Complete or invisible, and checked before a weight is used.

    model.safetensors   weights, fp32 or bf16; of a large model several files and an index (`vla/weights.py`)
    config.json         format_version, model (kinds), embodiments and normalisers by value, observed times, the run that made it
    golden.json         what it did with observations that a seed gives (`vla/golden.py`); in exported ones
    README.md           the model card of an exported one, which people may edit: the manifest leaves it out
    manifest.json       sha256 and bytes of every other file; its presence means that the folder is complete

Written to a temporary sibling, flushed to disk, then renamed. The manifest detects damage, not malice.

A change of what config.json means raises FORMAT_VERSION and adds a rule to MIGRATIONS, so that every older version stays readable; a newer
one is refused. `tests/core/frozen` holds a folder of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.collate import Collate
from vla.config import from_json, to_json
from vla.decoders.base import with_evaluations
from vla.device import device_here
from vla.embodiment import Embodiment
from vla.errors import Damaged, UserError
from vla.model import VLA, Model
from vla.normalize import RobotNormalizer
from vla.roster import Roster
from vla.weights import MAX_SHARD_BYTES, read_weights, save_weights, weight_table
from vla.weights import save_tensors as save_tensors

FORMAT_VERSION = 2
CARD = "README.md"
MODEL = "pretrained_model"
"""What acts, in the folder of a run's step (`checkpoints/000500`); what resuming needs stands beside it."""


@dataclass(frozen=True)
class Contents:
    """Everything a checkpoint says beside its weights. `run`: JSON facts of the run that made it, for people. `offsets_s`: times of the
    frames that an observation shows, seconds relative to now."""

    model: Model
    embodiments: tuple[Embodiment, ...]
    normalizers: Mapping[str, RobotNormalizer]
    run: Mapping[str, Any] = field(default_factory=dict)
    offsets_s: tuple[float, ...] = (0.0,)

    @property
    def roster(self) -> Roster:
        """Of its embodiments."""
        return Roster.of(self.embodiments)

    @property
    def untrained(self) -> bool:
        """Whether it was made to be fine-tuned, and no decoder of it has seen an action: it must not act."""
        return bool(self.run.get("untrained"))

    def build(self) -> VLA:
        """The model, with fresh weights."""
        return self.model.build(self.roster)

    def collate(self, model: VLA) -> Collate:
        """What makes batches for `model`, in training and serving alike."""
        return Collate(
            self.embodiments,
            self.normalizers,
            model.backbone.collate,
            model.decoder.latent_codes,
            model.decoder.text_tokens,
            pairs=model.align is not None,
            state_in_words=self.model.state.in_words,
        )

    def to_json(self) -> dict:
        """What `config.json` holds: everything but the weights, by value."""
        return {
            "format_version": FORMAT_VERSION,
            "model": to_json(self.model),
            "embodiments": [robot.to_json() for robot in self.embodiments],
            "normalizers": {name: n.to_json() for name, n in self.normalizers.items()},
            "offsets_s": list(self.offsets_s),
            "run": dict(self.run),
        }

    @staticmethod
    def from_json(data: Mapping) -> Contents:
        """The inverse of `to_json`, also for older format versions. UserError for a newer one, and for a kind that no table knows."""
        if "embodiments" not in data:
            raise UserError(
                "this folder holds no policy: its config.json names no embodiments. A run's folder or its pretrained_model does."
            )
        data = _migrated(data)
        return Contents(
            from_json(data["model"]),
            tuple(Embodiment.from_json(row) for row in data["embodiments"]),
            {name: RobotNormalizer.from_json(row) for name, row in data["normalizers"].items()},
            data["run"],
            tuple(map(float, data["offsets_s"])),
        )


def _times_of_the_run(data: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 knew the times of the observed frames from the run alone."""
    return {**data, "offsets_s": data["run"].get("history_s", [0.0])}


MIGRATIONS: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _times_of_the_run}
"""Format version -> config.json of that version as one of the next."""


def _migrated(data: Mapping[str, Any]) -> Mapping[str, Any]:
    version = data.get("format_version")
    if version != FORMAT_VERSION and version not in MIGRATIONS:
        known = f"{', '.join(map(str, MIGRATIONS))} and {FORMAT_VERSION}"
        raise UserError(f"checkpoint format {version}; this version of vla reads {known}. Update it, or export the checkpoint again.")
    for step in range(int(version), FORMAT_VERSION):
        data = MIGRATIONS[step](data)
    return data


def save_checkpoint(
    folder: Path,
    contents: Contents,
    weights: Mapping[str, Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Writes the folder; an existing one is replaced only once the new one is complete on disk. `beside`: further files, name -> text."""

    def write(temporary: Path) -> dict[str, str]:
        digests = save_weights(temporary, weights, max_shard_bytes)
        (temporary / "config.json").write_text(json.dumps(contents.to_json(), indent=1))
        for name, text in (beside or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        return digests

    return write_folder(folder, write)


def load_checkpoint(folder: str | Path) -> tuple[Contents, dict[str, Tensor]]:
    """Checks the manifest, then reads. A run's folder stands for its last checkpoint.

    Raises UserError (no checkpoint there) or Damaged (naming the file).
    """
    folder = verify_folder(acting(Path(folder)))
    return read_contents(folder), {name: tensor for part in read_weights(folder) for name, tensor in part.items()}


def read_contents(folder: Path) -> Contents:
    """What config.json says, without a look at any other file. UserError, with the folder's name, where it is none of ours."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json, so it is no checkpoint of vla; give the folder of one, or of a run")
    try:
        return Contents.from_json(json.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        error.args = (f"{folder}: {error}",)
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is not readable ({type(error).__name__}: {error}); copy the checkpoint again") from error


def acting(folder: Path) -> Path:
    """The folder that acts: itself, that of the step it is, or the newest checkpoint of the run it is."""
    saved = steps_saved(folder)
    step = saved[-1] if saved else folder
    return step / MODEL if (step / MODEL).is_dir() else folder


def steps_saved(run: Path) -> list[Path]:
    """Folders of a run's complete steps, oldest first, whether or not their bytes are still sound."""
    return sorted((path for path in (run / "checkpoints").glob("*") if path.name.isdigit() and path.is_dir()), key=lambda p: int(p.name))


def write_folder(folder: Path, write: Callable[[Path], Mapping[str, str] | None]) -> Path:
    """`write(temporary folder)`, then manifest, flush, rename. A failure (no space, say) leaves what was there before untouched.

    `write` returns the sha256 of those files that were hashed while they were written, by name. The manifest vouches for every file but a
    model card.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with saving(folder, temporary):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        known = write(temporary) or {}
        files = {str(path.relative_to(temporary)): path for path in sorted(temporary.rglob("*")) if path.is_file()}
        for path in files.values():
            _flush(path)
        vouched = {name: path for name, path in files.items() if path.name != CARD}
        rows = {name: {"sha256": known.get(name) or sha256(path), "bytes": path.stat().st_size} for name, path in vouched.items()}
        (temporary / "manifest.json").write_text(json.dumps({"files": rows}, indent=1))
        for path in (temporary / "manifest.json", temporary):
            _flush(path)
        put_in_place(temporary, folder)
        _flush(folder.parent)
    return folder


def put_in_place(temporary: Path, folder: Path) -> None:
    """Renames; what stood there goes only once the new one does."""
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def saving(folder: Path, temporary: Path) -> Iterator[None]:
    """What the system refuses inside is one line that says what is free; `temporary` is gone afterwards."""
    try:
        with writing(folder):
            yield
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses inside is a UserError of one line that says what is free where `path` lies."""
    try:
        yield
    except OSError as error:
        there = next(parent for parent in path.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(there).free
        raise UserError(f"could not save {path}: {error.strerror}. {free / 1e6:.0f} MB are free there; older saves are intact.") from error


def verify_folder(folder: Path) -> Path:
    """Raises unless every file of the manifest is there, byte for byte."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no checkpoint at {folder}. Give a run's folder, or one with manifest.json and model.safetensors.")
    problems = folder_problems(folder)
    if problems:
        raise Damaged(f"checkpoint {folder} is damaged: {'; '.join(problems)}. Use an earlier one, or copy it again.")
    return folder


def folder_problems(folder: Path) -> list[str]:
    """What is wrong with a manifest folder, one line a file; empty when all is well."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return ["no manifest.json (incomplete, or not a checkpoint)"]
    try:
        rows = json.loads(manifest.read_text())["files"]
        expected = {str(name): (str(row["sha256"]), int(row["bytes"])) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return ["manifest.json is not readable"]
    problems = []
    for name, (digest, size) in expected.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{name}: a name outside the folder")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != size:
            problems.append(f"{name}: {path.stat().st_size} bytes, not {size}")
        elif sha256(path) != digest:
            problems.append(f"{name}: contents altered")
    return problems


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest_310(file)


def _digest_310(file: Any) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_model(folder: str | Path, device: str | torch.device = "cpu", evaluations: int | None = None) -> tuple[Contents, VLA]:
    """Contents and the model in evaluation mode with its weights, which are read a file at a time. `evaluations`: of the network for a
    chunk, instead of as many as stored; no weight depends on it."""
    where = device_here(device)  # before gigabytes are read
    folder = verify_folder(acting(Path(folder)))
    contents = read_contents(folder)
    if evaluations is not None:
        contents = replace(contents, model=replace(contents.model, decoder=with_evaluations(contents.model.decoder, evaluations)))
    model = contents.build()
    wrong = misfits(folder, model)
    if wrong:
        raise Damaged(f"{folder}: weights do not fit its model: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")
    for part in read_weights(folder):
        model.load_state_dict(part, strict=False)  # what is missing here is in another file: `misfits` saw all of them
    return contents, model.to(where).eval()


def misfits(folder: Path, model: VLA) -> list[str]:
    """Names of tensors that are missing in the folder, left over there, or of another shape; no weight is read."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = weight_table(folder)
    return [name for name in sorted({*shapes, *stored}) if name not in stored or shapes.get(name) != stored[name].shape]
