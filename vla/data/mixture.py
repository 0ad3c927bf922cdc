"""Mixtures: which datasets, in which proportion, and why. YAML in, a tree out.

name: demo
why: what this mixture is for
val_fraction: 0.02              # optional; episodes held out, by a hash of their name
weights: shares                 # optional; what a weight is: a share of the draws, or `per_step`: it multiplies the source's steps,
                                # as in the published tables of Octo and OpenVLA
sources:
  - path: demo/sawyer           # a dataset folder under the data root, or a URL (s3://, gs://, https://, hf://, ...: see remote.py);
                                # or `name: sawyer`, the folder of that name
    weight: 3                   # relative to the others of this file; or `steps` for all: in proportion to their size
    max_epochs: 20              # optional: then it leaves, and the others share its place
    cameras: [third_person]     # optional: only these roles (leaving a camera out is a decision, so it is written down)
    window: 16                  # optional: draws go through the shards in windows of so many, which a network or a disk likes
    latents: false              # optional: where a run uses latent codes, this source has none
    why: most tasks
  - foreign: bridge_wds.yaml    # webdataset shards as others publish them, in place: a key map (key_map.py), relative to this file
    weight: 2
  - lerobot: raw/pusht          # a LeRobot folder with videos, in place, under the data root; `card` as `vla convert` takes it, a file
    card: pusht.yaml            # relative to this one
    weight: 1
  - mixture: more_robots.yaml   # another mixture as one weighted source; relative to this file
    weight: 1
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from vla.data.foreign import open_foreign
from vla.data.key_map import KeyMap
from vla.data.reader import Dataset, Pool
from vla.data.remote import is_url, open_dataset
from vla.data.verify import verify as verify_dataset
from vla.errors import Damaged, SchemaError, UnknownName, UserError

if TYPE_CHECKING:
    from rich.tree import Tree

VAL_FRACTION = 0.02
DATA_ROOT_VARIABLE = "VLA_DATA"

_MIXTURE_KEYS = ("name", "why", "val_fraction", "weights", "sources")
_WEIGHTS = ("shares", "per_step")
_SOURCE_KEYS = ("path", "name", "mixture", "weight", "max_epochs", "cameras", "window", "latents", "foreign", "lerobot", "card", "why")


@dataclass(frozen=True)
class Source:
    """One dataset of a mixture. `share` of all draws; the shares of a mixture add up to 1. `window`: shards that its draws go through
    at a time (None: all). `latents`: whether it has the latent codes of a run that uses some."""

    name: str
    dataset: Dataset
    share: float
    max_epochs: float | None = None
    cameras: tuple[str, ...] | None = None
    why: str = ""
    window: int | None = None
    latents: bool = True


@dataclass(frozen=True)
class Mixture:
    """Weighted sources; `children` is how the file is written (sources, and mixtures with their share), for the tree."""

    name: str
    children: tuple[Source | tuple[Mixture, float], ...]
    val_fraction: float = VAL_FRACTION
    why: str = ""

    @staticmethod
    def load(path: str | Path, root: str | Path | None = None, verify: Literal["full", "size"] = "full") -> Mixture:
        """Reads a mixture file and opens every dataset in it.

        `root`: the data root; by default $VLA_DATA, else `data`. `verify`: `full` compares every byte with the manifests before
        a run starts, `size` the sizes only (frames are still checked when they are read). UserError for a wrong file, Damaged
        for a source that fails, always with its name.
        """
        path = Path(path)
        mixture = _Reader(data_root(root), verify, Pool()).mixture(path, ())
        repeated = _repeated([source.name for source in mixture.sources])
        if repeated:
            raise SchemaError(f"{path}: source {repeated} stands in it twice; give one of them another `name`")
        return mixture

    @staticmethod
    def load_what_opens(path: str | Path, root: str | Path | None = None) -> tuple[Mixture | None, list[tuple[str, UserError]]]:
        """For whoever looks at data, not for training: a mixture of the sources that open (None if none does), and those that are damaged
        or out of reach: (place in the file, error). Raises what else `load` raises."""
        reader = _Reader(data_root(root), "size", Pool(), leave_out=True)
        mixture = reader.mixture(Path(path), ())
        return (mixture if mixture.children else None), reader.left_out

    @staticmethod
    def of(
        weights: Mapping[str | Path, float] | Sequence[str | Path], name: str = "mixture", val_fraction: float = VAL_FRACTION
    ) -> Mixture:
        """A mixture of dataset folders, without a file: {folder: weight}, or folders in proportion to their size."""
        pool = Pool()
        datasets = [open_dataset(folder, pool) for folder in weights]
        raw = list(weights.values()) if isinstance(weights, Mapping) else [dataset.anchors for dataset in datasets]
        if not all(0 < weight < float("inf") for weight in raw):
            raise UserError(f"weights {raw} must be positive numbers; take a dataset out instead of giving it no weight")
        children = tuple(Source(d.info.name, d, w / sum(raw)) for d, w in zip(datasets, raw, strict=True))
        repeated = _repeated([child.name for child in children])
        if repeated or not children:
            raise UserError(f"a mixture needs at least one dataset, and distinct names; {repeated or 'nothing'} was given")
        return Mixture(name, children, val_fraction)

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources in file order; shares multiplied through."""
        return tuple(self._flat(1.0))

    def source(self, name: str) -> Source:
        for source in self.sources:
            if source.name == name:
                return source
        raise UnknownName("source", name, [source.name for source in self.sources])

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must find unchanged: names, shares, caps and the digest of every dataset."""
        rows = {s.name: [s.dataset.digest, s.share, s.max_epochs, s.cameras and list(s.cameras)] for s in self.sources}
        facts: dict[str, Any] = {"val_fraction": self.val_fraction, "sources": rows}
        if windows := {s.name: s.window for s in self.sources if s.window is not None}:
            facts["windows"] = windows
        if without := [s.name for s in self.sources if not s.latents]:
            facts["without_latents"] = without
        return facts

    def tree(self, positions: int | None = None) -> Tree:
        """A rich tree: share, hours, steps, licence; with `positions`, how often each source's samples are seen."""
        from vla.data.tree import mixture_tree

        return mixture_tree(self, positions)

    def _flat(self, share: float) -> Iterator[Source]:
        for child in self.children:
            if isinstance(child, Source):
                yield replace(child, share=child.share * share)
            else:
                yield from child[0]._flat(child[1] * share)


def data_root(root: str | Path | None = None) -> Path:
    """The folder that mixtures find datasets under: as given, else $VLA_DATA, else `data`."""
    return Path(root if root is not None else os.environ.get(DATA_ROOT_VARIABLE, "data"))


def source_folders(path: str | Path, root: str | Path | None = None) -> list[tuple[str, Path]]:
    """(name as written, folder) of every local dataset that a mixture file names, without opening any. UserError for a wrong file.

    Those at URLs are not among them: they are compared with their manifests file by file, as they arrive. Nor are foreign shards
    and LeRobot folders, which have no manifest.
    """
    return list(_folders_of(Path(path), data_root(root), ()))


def _folders_of(path: Path, root: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    rows = _read(path, above)["sources"]
    for number, row in enumerate(rows, 1):
        if "mixture" in _check_row(row, f"{path}: source {number}"):
            yield from _folders_of(path.parent / str(row["mixture"]), root, (*above, path.resolve()))
        elif not {"foreign", "lerobot"} & set(row):
            name = str(row.get("name", row.get("path")))
            place = _place(row, root, f"{path}: source {number} ('{name}')", rows)
            if isinstance(place, Path):
                yield name, place


def _read(path: Path, above: tuple[Path, ...]) -> Mapping[str, Any]:
    """One mixture file as plain data, its outer keys checked; `above`: the chain of files that include it."""
    if not path.is_file():
        raise UserError(f"no mixture file {path}; there {_neighbours(path)}")
    if path.resolve() in above:
        raise SchemaError(f"{path} includes itself, by way of {' -> '.join(p.name for p in above)}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    _check_keys(data, _MIXTURE_KEYS, str(path))
    if not isinstance(data.get("sources"), list) or not data["sources"]:
        raise SchemaError(f"{path}: `sources` must be a list of at least one source")
    if data.get("weights", "shares") not in _WEIGHTS:
        raise UnknownName("kind of weights", data["weights"], _WEIGHTS, f"It stands in {path}.")
    if above and data.get("val_fraction") is not None:
        raise SchemaError(f"{path}: val_fraction belongs in the outermost mixture, {above[0].name}")
    return data


def _check_row(row: Any, where: str) -> Mapping[str, Any]:
    _check_keys(row, _SOURCE_KEYS, where)
    extra = sorted(set(row) - {"mixture", "weight", "why"})
    if "mixture" in row and extra:
        raise SchemaError(f"{where}: a mixture takes only `weight` and `why`; remove {extra}")
    if not {"path", "name", "mixture", "foreign", "lerobot"} & set(row):
        raise SchemaError(f"{where} needs one of `path`, `name`, `foreign`, `lerobot` or `mixture`")
    if "foreign" in row and "path" in row:
        raise SchemaError(f"{where}: `foreign` names a key map, and that its shards; remove `path`")
    if {"card", "lerobot"} & set(row) and (not {"card", "lerobot"} <= set(row) or {"path", "foreign"} & set(row)):
        raise SchemaError(f"{where}: `lerobot` names a folder and `card` its card: give both, and neither `path` nor `foreign`")
    return row


def _place(row: Mapping[str, Any], root: Path, where: str, rows: Sequence[Any] = ()) -> Path | str:
    """Where a source lies: a folder, or a URL as written. `rows`: all of the file, so that all that are missing are named at once."""
    place = str(row.get("path", row.get("name")))
    try:
        if is_url(place):
            return place
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    folder = root / place
    if not folder.is_dir():
        hint = f"the data root {root} holds {_folders(root)}. Give --data-root or set {DATA_ROOT_VARIABLE}, or collect or convert it first."
        others = [name for name in _absent(rows, root) if name != place]
        also = f" {len(others)} more of its sources are missing: {', '.join(others)}." if others else ""
        raise UserError(f"{where}: no folder {folder}; {hint}{also}")
    return folder


def _absent(rows: Sequence[Any], root: Path) -> list[str]:
    """Sources of a file that have no folder; what is wrong in another way is left to be found in its turn."""
    places = [str(row.get("path", row.get("name"))) for row in rows if isinstance(row, Mapping) and {"path", "name"} & set(row)]
    return [place for place in places if "://" not in place and not (root / place).is_dir()]


class _Reader:
    """Mixture files -> mixtures with their datasets open."""

    def __init__(self, root: Path, verify: str, pool: Pool, leave_out: bool = False) -> None:
        self.root, self.verify, self.pool, self.leave_out = root, verify, pool, leave_out
        self.left_out: list[tuple[str, UserError]] = []

    def mixture(self, path: Path, above: tuple[Path, ...]) -> Mixture:
        data = _read(path, above)
        rows = data["sources"]
        children, given = [], []
        for number, row in enumerate(rows, 1):
            if (child := self._child_if_it_opens(row, f"{path}: source {number}", path, above, rows)) is not None:
                children.append(child)
                given.append(row.get("weight", 1))
        per_step = data.get("weights") == "per_step"
        weights = _weights(given, [_size(child) for child in children], per_step, str(path)) if children else []
        shared = tuple(
            replace(child, share=weight) if isinstance(child, Source) else (child, weight)
            for child, weight in zip(children, weights, strict=True)
        )
        val_fraction = _number(data.get("val_fraction", VAL_FRACTION), f"{path}: val_fraction", low=0.0)
        return Mixture(str(data.get("name", path.stem)), shared, val_fraction, str(data.get("why", "")))

    def _child_if_it_opens(
        self, row: Any, where: str, path: Path, above: tuple[Path, ...], rows: Sequence[Any]
    ) -> Source | Mixture | None:
        try:
            child = self._child(row, where, path, above, rows)
        except Damaged as error:
            if not self.leave_out:
                raise
            self.left_out.append((where, error))
            return None
        return child if isinstance(child, Source) or child.children else None

    def _child(self, row: Any, where: str, path: Path, above: tuple[Path, ...], rows: Sequence[Any]) -> Source | Mixture:
        if "mixture" in _check_row(row, where):
            return self.mixture(path.parent / str(row["mixture"]), (*above, path.resolve()))
        where = f"{where} ('{row.get('name', row.get('path', row.get('foreign', row.get('lerobot'))))}')"
        if "lerobot" in row:
            dataset = self._lerobot(str(row["lerobot"]), str(row["card"]), path.parent, where)
        elif "foreign" in row:
            dataset = self._foreign(path.parent / str(row["foreign"]), where)
        else:
            dataset = self._open(_place(row, self.root, where, rows), where)
        cameras = row.get("cameras")
        if cameras is not None:
            if not isinstance(cameras, list):
                raise SchemaError(f"{where}: cameras is {cameras!r}; give a list of roles among {', '.join(dataset.cameras)}")
            unknown = sorted(set(map(str, cameras)) - set(dataset.cameras))
            if unknown or not cameras:
                raise UnknownName("camera role", ", ".join(unknown) or "(none)", dataset.cameras, f"{where} names it.")
            cameras = tuple(map(str, cameras))
        epochs = row.get("max_epochs")
        if epochs is not None:
            epochs = _number(epochs, f"{where}: max_epochs", low=0.0)
            if not epochs:
                raise SchemaError(f"{where}: max_epochs is 0; take a source out instead of never drawing from it")
        window, latents = row.get("window"), row.get("latents", True)
        if window is not None and (type(window) is not int or window < 1):
            raise SchemaError(f"{where}: window is {window!r}; give a number of shards, at least 1")
        if not isinstance(latents, bool):
            raise SchemaError(f"{where}: latents is {latents!r}; give false where the source has no latent codes, or leave it out")
        name = str(row.get("name", dataset.info.name))
        return Source(name, dataset, 0.0, epochs, cameras, str(row.get("why", "")), window, latents)

    def _foreign(self, key_map: Path, where: str) -> Dataset:
        try:
            return open_foreign(KeyMap.load(key_map), self.root, self.pool)
        except UserError as error:
            raise _named(error, where) from error

    def _lerobot(self, place: str, card: str, beside: Path, where: str) -> Dataset:
        from vla.convert.card import Card
        from vla.convert.lerobot_inplace import open_in_place

        try:
            return open_in_place(self.root / place, Card.find(beside / card if card.endswith((".yaml", ".yml")) else card), pool=self.pool)
        except UserError as error:
            raise _named(error, where) from error

    def _open(self, folder: Path | str, where: str) -> Dataset:
        # Sizes are compared as a dataset is opened; what is remote is compared as it arrives.
        problems = verify_dataset(folder) if isinstance(folder, Path) and self.verify == "full" else []
        if problems:
            more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise Damaged(f"{where}: {problems[0]}{more}. `vla check {folder}` lists all; a run does not start on damaged data.")
        try:
            return open_dataset(folder, self.pool)
        except UserError as error:
            raise _named(error, where) from error


def _named(error: UserError, where: str) -> UserError:
    """The same kind of error, to the program that called, with its place in front."""
    told = Damaged(f"{where}: {error}") if error.exit_code == Damaged.exit_code else SchemaError(f"{where}: {error}")
    told.exit_code = error.exit_code
    return told


def _weights(given: list[Any], sizes: list[int], per_step: bool, where: str) -> list[float]:
    """Weights as written -> shares that add up to 1."""
    if per_step and any(isinstance(weight, str) for weight in given):
        raise SchemaError(f"{where}: weights {given}: with `weights: per_step` they must be numbers, which multiply each source's steps")
    if all(weight == "steps" for weight in given):
        weights = [float(size) for size in sizes]
    elif any(isinstance(weight, str) for weight in given):
        raise SchemaError(f"{where}: weights {given}: give numbers, or `steps` for every source of the file")
    else:
        weights = [_number(weight, f"{where}: weight", low=0.0) for weight in given]
    if min(weights) <= 0:
        raise SchemaError(f"{where}: weights {given} must be positive; take a source out instead of giving it no weight")
    if per_step:
        weights = [weight * size for weight, size in zip(weights, sizes, strict=True)]
    return [weight / sum(weights) for weight in weights]


def _size(child: Source | Mixture) -> int:
    sources = (child,) if isinstance(child, Source) else child.sources
    return sum(source.dataset.anchors for source in sources)


def _number(value: Any, where: str, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < float("inf"):
        raise SchemaError(f"{where} is {value!r}; give a number of at least {low:g}")
    return float(value)


def _check_keys(data: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(data, Mapping):
        raise SchemaError(f"{where} must be a mapping with keys among {', '.join(known)}")
    for key in data:
        if key not in known:
            raise UnknownName("key", key, known, f"It stands in {where}.")


def _repeated(names: list[str]) -> str:
    return ", ".join(sorted({f"'{name}'" for name in names if names.count(name) > 1}))


def _neighbours(path: Path) -> str:
    found = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return f"are {', '.join(found)}" if found else "are none in that folder"


def _folders(root: Path) -> str:
    found = sorted(str(p.parent.relative_to(root)) for p in root.glob("*/**/dataset.json")) if root.is_dir() else []
    return ", ".join(found[:12]) or "no dataset"
