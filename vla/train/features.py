"""Features of a frozen backbone: what it makes of a sample's observation is computed once, kept on disk, and read from then on.

A decoder that trains on a backbone that stands still asks it the same thing in every epoch. So before the first step the backbone runs over
each observation that the run will see and nobody has kept yet. From then on batches carry what that gave (`Batch.seen`): no picture is
decoded, and the backbone runs over proprioception, whose map learns, and the decoder's own tokens alone, behind what was kept.

That is the same training only where the pass gives the same each time and sees nothing that learns. `remember` finds out, by what the parts
do and not by which they are, and refuses the rest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla import __version__
from vla.backbones.base import Hidden, one_of_few, visible
from vla.backbones.remembered import rows_of
from vla.config import check_types, to_json
from vla.data.batches import LOOK_AHEAD, from_thread
from vla.data.mixture import Source
from vla.data.pipeline import Pipeline
from vla.embodiment import Embodiment
from vla.errors import UserError
from vla.model import VLA
from vla.tensor_file import bytes_of
from vla.train.feature_store import Column, NotKept, Store
from vla.train.ranks import Ranks
from vla.types import Batch, Sample

if TYPE_CHECKING:  # they hold what is here
    from vla.train.job import Job
    from vla.train.run import Run

Key = tuple[int, int]
FACTS = "facts.json"
SAID_EVERY_S = 30.0
ROUNDING = 1e-2
"""By so much of their largest number two passes over the same tokens may differ."""


@dataclass(frozen=True)
class Features:
    """`folder`: where features are kept, for any number of runs (beside the working folder; all ranks must see it). `limit_gb`: what may
    lie there in all; a run that would need more is refused before it starts."""

    folder: str
    limit_gb: float = 100.0

    def __post_init__(self) -> None:
        check_types(self)
        if not self.folder or self.limit_gb <= 0:
            raise UserError(f"features need a folder and a limit_gb above 0; got folder '{self.folder}' and limit_gb {self.limit_gb}")


def refuse(run: Run, model: VLA) -> None:
    """UserError where features of this run's backbone cannot stand for the backbone."""
    trained = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    why = ""
    if trained:
        why = f"its backbone is trained ({trained[0]}), so what it makes of an image changes with each step: set freeze=('backbone',)"
    elif run.augment is not None:
        why = "augmented images differ each time they are seen: set augment=None"
    elif run.goal_gap_s is not None or model.align is not None:
        why = "a goal image is drawn anew each time a sample is seen: leave goal_gap_s and align out"
    elif not model.decoder.shares_prefix:
        why = "its decoder lets the observation's tokens see its own (whole=True), so their states are different with each target"
    elif run.zero is not None:
        why = "under DeepSpeed all ranks run each pass together; a frozen backbone leaves it little to spread: train with zero=None"
    if why:
        raise UserError(f"run '{run.name}' cannot keep features: {why}, or features=None")


class Memory:
    """The features of a run's samples, where batches take them from. `knows`, `collate` run in loader processes."""

    def __init__(self, job: Job, store: Store, embedding: torch.dtype) -> None:
        self._job, self._store, self._embedding = job, store, embedding
        self._collate = replace(job.collate, unseen=True)
        self._salts = {source.name: _salt(source, job.contents.embodiments) for source in job.mixture.sources}
        self.pipeline: Pipeline = job.train.leaving_out(self.knows)

    def knows(self, source: str, episode: str, step: int, instruction: str) -> bool:
        """Whether the features of that sample are kept."""
        return self._store.has(self._key(source, episode, step, instruction))

    def key(self, sample: Sample) -> Key:
        """Whose features these are: the dataset's bytes, the robot and its cameras, where and when, and what was said."""
        return self._key(sample.source, sample.episode, sample.step, sample.observation.instruction)

    def collate(self, samples: list[Sample]) -> Batch:
        """A batch whose observations are features, still as bytes (`typed`)."""
        batch = self._collate.samples(samples, self._job.sources)
        try:
            fit = one_of_few if self._job.model.backbone.few_sizes else int
            return replace(batch, seen=self._store.read([self.key(sample) for sample in samples], fit))
        except NotKept as error:
            lost = next(sample for sample in samples if not self._store.has(self.key(sample)))
            at = f"source '{lost.source}', episode '{lost.episode}' step {lost.step}"
            raise UserError(
                f"{self._store.folder} has no features of {at}: did files go? Start again (--resume): they are made up for"
            ) from error

    def typed(self, batch: Batch) -> Batch:
        """The bytes as the numbers that they are."""
        assert batch.seen is not None
        raw = dict(batch.seen)
        length_B = raw.pop("length_B")
        seen: dict[str, Tensor] = {name: _numbers(raw[name], column) for name, column in self._store.columns.items()}
        seen["valid_BS"] = torch.arange(seen["position_BS"].shape[1]) < length_B[:, None]
        # What was embedded is not kept. No number stands for it, so that whoever reads it finds out.
        seen["x_BSD"] = torch.full_like(seen["state_BSD"], torch.nan, dtype=self._embedding)
        return replace(batch, seen=seen)

    def _key(self, source: str, episode: str, step: int, instruction: str) -> Key:
        text = "\0".join((self._salts[source], episode, str(step), instruction))
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def remember(run: Run, job: Job, ranks: Ranks, start: int, say: Callable[[str], None]) -> Memory:
    """Collective. Computes and keeps what the run's steps from `start` on will ask for and is not kept yet.

    Raises UserError where features cannot stand for the backbone, or would not fit, before any is computed.
    """
    refuse(run, job.model)
    maker = _Maker(run, job, ranks, min(start, run.steps - 1), say)
    ranks.all_do(maker.open)
    return maker.fill()


class _Maker:
    """Computes features. Public methods are called by every rank, in this order: `open`, `fill`."""

    def __init__(self, run: Run, job: Job, ranks: Ranks, start: int, say: Callable[[str], None]) -> None:
        self._run, self._job, self._ranks, self._say = run, job, ranks, say
        self._positions = range(start * run.batch_size, run.steps * run.batch_size)
        self._size = run.batch_size // ranks.world // run.microbatches(ranks.world)
        assert run.features is not None
        self._setting = run.features
        self._weights = ranks.first_does(lambda: _weights(job.model))

    def open(self) -> None:
        """Finds out what is to be kept, what is kept already, and whether the rest will fit."""
        batch = self._job.batch(self._job.train.samples(self._positions[: self._size])).to(self._ranks.device)
        _check_state(self._job.model, batch)
        hidden, embedding = self._pass(batch)
        self._check_drawn(batch, hidden)
        rows = rows_of(hidden, self._job.model.reads)
        columns = {name: Column(tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in rows[0].items()}
        row_bytes = sum(tensor.nbytes for row in rows for tensor in row.values()) / len(rows)
        top, facts = Path(self._setting.folder), self._facts(columns)
        text = json.dumps(facts, sort_keys=True)
        folder = top / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._store = Store(folder, columns)
        if not (folder / FACTS).is_file():
            self._store.note(FACTS, text)
        elif (folder / FACTS).read_text() != text:
            raise UserError(f"{folder} says that it is of another backbone ({FACTS} was altered): delete the folder")
        self._memory = Memory(self._job, self._store, embedding)
        wanted = self._wanted()
        self._missing = {key: position for key, position in wanted.items() if not self._store.has(key)}
        self._check_room(top, folder, row_bytes, len(wanted))

    def fill(self) -> Memory:
        """Computes what is missing, each rank its share."""
        rank, world = self._ranks.rank, self._ranks.world
        mine = [position for key, position in self._missing.items() if key[1] % world == rank]
        done, began, said = 0, time.perf_counter(), time.perf_counter()
        with closing(from_thread(self._made(mine), 2)) as made:
            while True:
                samples = self._ranks.all_do(lambda: next(made, []))
                if not self._ranks.sum(torch.tensor(float(len(samples)), device=self._ranks.device)):
                    break
                self._ranks.all_do(partial(self._keep, samples))
                done += len(samples)
                if time.perf_counter() - said > SAID_EVERY_S:
                    said = time.perf_counter()
                    self._say(f"features: {done:,} of {len(mine):,}, {done / (said - began):.0f} a second on each of {world} ranks")
        self._ranks.all_do(partial(self._keep, []))
        self._ranks.all_do(self._store.refresh)  # behind the others' flush
        return self._memory

    def _made(self, positions: list[int]) -> Iterator[list[Sample]]:
        """Samples at these positions, with pictures; and of those that another had to stand for, what stands for them wherever they come
        up again, which depends on the position."""
        spoilt: set[Key] = set()
        memory, pipeline = self._memory, self._job.train
        for at in range(0, len(positions), self._size):
            some = positions[at : at + self._size]
            samples, bad = pipeline.collect(pipeline.look_up(some))
            pipeline.quarantine.add(len(samples) + len(bad), bad)
            if bad:
                spoilt |= {key for key, position in self._missing.items() if position in some} - {memory.key(each) for each in samples}
            yield samples
        if spoilt:
            again = [sample.position for sample in self._blind() if memory.key(sample) in spoilt]
            for at in range(0, len(again), self._size):
                yield pipeline.collect(pipeline.look_up(again[at : at + self._size]))[0]

    def _keep(self, samples: list[Sample]) -> None:
        """Computes and takes what is new; what was taken is written when it is much, or when there is no more."""
        new = {self._memory.key(sample): sample for sample in samples}
        new = {key: sample for key, sample in new.items() if not self._store.has(key)}
        rows: list[dict[str, Tensor]] = []
        if new:
            hidden, _ = self._pass(self._job.batch(list(new.values())).to(self._ranks.device))
            rows = rows_of(hidden, self._job.model.reads)
        try:
            for key, row in zip(new, rows, strict=True):
                self._store.add(key, row)
                self._room -= sum(tensor.nbytes for tensor in row.values())
            if not samples or self._room < 0:
                self._store.flush()
        except OSError as error:
            raise UserError(f"features cannot be written in {self._store.folder}: {error}. Free space, or set another folder") from error
        if self._room < 0:  # the first batch's observations were shorter than others
            limit = f"features have reached their limit_gb of {self._setting.limit_gb:g}"
            raise UserError(f"run '{self._run.name}': {limit}: raise it and start again, what is there is kept")

    def _pass(self, batch: Batch, training: bool = False) -> tuple[Hidden, torch.dtype]:
        """What the backbone makes of a batch's observations, and the type of what it embeds them as."""
        model: VLA = self._job.model
        model.train(training)
        with torch.no_grad(), torch.autocast(self._ranks.device.type, torch.bfloat16, enabled=self._run.precision == "bf16"):
            tokens = model.backbone.embed(batch.inputs)
            hidden = model.backbone(tokens)
        model.train()
        return hidden, tokens.x_BSD.dtype

    def _check_drawn(self, batch: Batch, hidden: Hidden) -> None:
        valid_BS = hidden.tokens.valid_BS
        want, found = hidden.x_BSD[valid_BS].float(), self._pass(batch, training=True)[0].x_BSD[valid_BS].float()
        if not torch.allclose(found, want, rtol=0, atol=ROUNDING * float(want.abs().amax().clamp(min=1e-6))):
            why = (
                "in training its backbone gives something else than in acting (dropout, or norms over the batch), so features are not fixed"
            )
            raise UserError(f"run '{self._run.name}' cannot keep features: {why}: switch that off in the backbone's configuration")

    def _check_room(self, top: Path, folder: Path, row_bytes: float, wanted: int) -> None:
        others = [each for each in top.iterdir() if each.is_dir() and each != folder]
        used, old = _size([folder]), _size(others)
        need = row_bytes * len(self._missing)
        self._say(
            f"features: {wanted:,} observations of {row_bytes / 1e3:.1f} kB; {wanted - len(self._missing):,} are in {folder}, "
            f"{len(self._missing):,} are to be computed ({need / 1e9:.2f} GB)"
        )
        if others:
            names = ", ".join(sorted(each.name for each in others)[:3])
            self._say(
                f"note: {top} also holds features of other backbones or settings ({names}: {old / 1e9:.2f} GB), which are not used here"
            )
        fix = (
            f"delete what is not used there, raise it, or let the decoder read less of the backbone (now {', '.join(self._store.columns)})"
        )
        if used + old + need > self._setting.limit_gb * 1e9:
            raise UserError(
                f"run '{self._run.name}': its features need {need / 1e9:.3g} GB beside the {(used + old) / 1e9:.3g} GB in {top}, whose "
                f"limit_gb is {self._setting.limit_gb:g}: {fix}"
            )
        self._room = (self._setting.limit_gb * 1e9 - used - old) / self._ranks.world
        free = shutil.disk_usage(top).free
        if need > free:
            raise UserError(
                f"run '{self._run.name}': its features need {need / 1e9:.3g} GB; {free / 1e9:.3g} GB are free in {top}. Free some"
            )

    def _wanted(self) -> dict[Key, int]:
        """The observations that the run will see, each with the first position that shows it."""
        found: dict[Key, int] = {}
        for sample in self._blind():
            found.setdefault(self._memory.key(sample), sample.position)
        return found

    def _blind(self) -> Iterator[Sample]:
        """All samples of the run, without pictures."""
        pipeline = self._job.train.leaving_out(lambda *_: True)
        for at in range(self._positions.start, self._positions.stop, LOOK_AHEAD):
            yield from pipeline.collect(pipeline.look_up(range(at, min(at + LOOK_AHEAD, self._positions.stop))))[0]

    def _facts(self, columns: Mapping[str, Column]) -> dict[str, Any]:
        """All that features depend on, but for the sample."""
        contents = self._job.contents
        state = contents.model.state
        said = {name: one.to_json() for name, one in contents.normalizers.items()} if state.in_words else {}
        return {
            "version": [1, __version__],
            "backbone": to_json(contents.model.backbone),
            "weights": self._weights,
            "precision": self._run.precision,
            "history_s": list(self._run.history_s),
            "state": {"config": to_json(state), "normalizers": said},
            "reads": to_json(self._job.model.reads),
            "columns": {name: column.to_json() for name, column in columns.items()},
        }


def _check_state(model: VLA, batch: Batch) -> None:
    """UserError where the observation's tokens stand or see otherwise for the state that comes with them."""
    if model.state_in is None:
        return
    with torch.no_grad():
        seen = model.backbone.embed(batch.inputs)
        whole = model.prefix(replace(batch, state_mask_BP=torch.ones_like(batch.state_mask_BP)))
    first, rest = whole.slice(0, len(seen)), whole.slice(len(seen), len(whole))
    stands = all(torch.equal(a, b) for a, b in zip(seen._core()[1:], first._core()[1:], strict=True))
    if not stands or bool(visible(first, rest).any()):
        raise UserError(
            "features are kept of an observation that knows nothing of the state, whose map is trained; this one's tokens see it, or "
            "make room for it: let it stand behind (state=StateTokens()), give it to the decoder (DiT(state_in_suffix=True)), or to none "
            "(state=NoState())"
        )


def _weights(model: VLA) -> str:
    """sha256 of the backbone's weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in bytes_of(tensor):
            digest.update(part)
    return digest.hexdigest()


def _salt(source: Source, robots: Sequence[Embodiment]) -> str:
    """What tells a source's observations from another's with the same episodes: its bytes, whose they are, and what is shown of them."""
    recorded = source.dataset.info.robot
    robot = next((each for each in robots if recorded is not None and each.name == recorded.name), None)
    cameras = robot.cameras if robot is not None else source.cameras or source.dataset.cameras
    return json.dumps([source.dataset.digest, robot.name if robot else "", list(cameras)])


def _numbers(raw_BSX: Tensor, column: Column) -> Tensor:
    return raw_BSX.view(column.dtype).unflatten(2, column.shape) if column.shape else raw_BSX.view(column.dtype)[..., 0]


def _size(folders: list[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir() if path.is_file())
