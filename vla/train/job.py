"""What a run stands on, put together and checked before the first step: robots, data, statistics, normalisers, model."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla.backbones.adapters import over_plain
from vla.checkpoint import Contents, load_checkpoint
from vla.codecs.base import Codec
from vla.collate import Collate
from vla.config import to_json
from vla.data.augment import Augment
from vla.data.mixture import Mixture, Source
from vla.data.pipeline import Pipeline
from vla.data.statistics import compute_stats
from vla.embodiment import Embodiment, load_embodiment
from vla.errors import SchemaError, StatsMissing, UnknownName, UserError
from vla.model import VLA, Model
from vla.noise import Noise
from vla.normalize import RobotNormalizer, StatsKey
from vla.roster import carry_over
from vla.train.features import Memory
from vla.train.ranks import Ranks
from vla.train.recorded import clipped, disagreements
from vla.train.run import Run
from vla.types import Batch, Sample, Target, cat

FIT_ENOUGH = 256
"""Chunks of one robot that a decoder is fitted on, where it comes up too seldom for an even share of what the decoder asks for."""
FIT_LOOKED_AT = 1 << 22
"""Positions of the order that are looked through for a robot, which reads no data."""


@dataclass
class Job:
    """`train`, `held_out` (None without held-out episodes): the samples by position. `facts`: what a resumed run must find unchanged
    beside its settings. `notes`: lines for people. `memory`: where training batches have their observations from, instead of pictures."""

    contents: Contents
    model: VLA
    mixture: Mixture
    train: Pipeline
    held_out: Pipeline | None
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
    goal_share: float = 0.0
    memory: Memory | None = None

    @cached_property
    def collate(self) -> Collate:
        return replace(self.contents.collate(self.model), goal_share=self.goal_share)

    @cached_property
    def sources(self) -> dict[str, int]:
        """Name -> number in the books; the same in both splits."""
        return {source.name: number for number, source in enumerate(self.mixture.sources)}

    @property
    def robots(self) -> tuple[str, ...]:
        return self.contents.roster.names

    def batch(self, samples: list[Sample]) -> Batch:
        """CPU tensors of samples."""
        return self.collate.samples(samples, self.sources)

    def training_batch(self, positions: range) -> Batch:
        """The samples at these positions as a step has them."""
        if self.memory is None:
            return self.batch(self.train.samples(positions))
        return self.memory.typed(self.memory.collate(self.memory.pipeline.samples(positions)))

    def checkpoint(self, step: int) -> Contents:
        """What the acting checkpoint of a step says beside its weights."""
        return replace(self.contents, run={**self.contents.run, "step": step})


def step_batches(run: Run, job: Job, ranks: Ranks, start: int) -> Generator[list[Batch], None, None]:
    """This rank's micro-batches of each step from `start` on, prepared ahead.

    Step s takes positions s * batch_size and on; micro-batch m of rank r the (m * world + r)-th run of them. So together the ranks
    see each position once, whatever their number.
    """
    micro, memory = run.microbatches(ranks.world), job.memory
    made = (job.train if memory is None else memory.pipeline).batches(
        start * run.batch_size,
        batch_size=run.batch_size // ranks.world // micro,
        collate=job.batch if memory is None else memory.collate,
        count=(run.steps - start) * micro,
        rank=ranks.rank,
        world=ranks.world,
        workers=run.workers,
        prefetch=2 * micro,
    )
    for _, first in made:
        batches = [first, *(next(made)[1] for _ in range(micro - 1))]
        yield batches if memory is None else [memory.typed(batch) for batch in batches]


def augmented(augment: Augment, job: Job, batch: Batch, noise: Noise) -> Batch:
    """The batch with its images changed; each sample by its own noise, on the device."""
    images, contents = batch.inputs.get("image_BVFHW3"), job.contents
    if images is None:
        raise UserError("`augment` changes the input image_BVFHW3 (uint8), which this backbone's collate does not give; set augment=None")
    cameras = [robot.cameras for robot in contents.embodiments]
    moved_EV = augment.moved(cameras, images.shape[1], getattr(contents.model.backbone, "cameras", ())).to(images.device)
    robotless_B = ~batch.spec.mask_BTA.any((1, 2))  # video of people stands on the roster's first row, whose cameras are not its own
    moved_BV = moved_EV[batch.spec.embodiment_B] | robotless_B[:, None]
    changed = augment(images, noise, moved_BV, batch.inputs.get("image_size_BV2"))
    return replace(batch, inputs={**batch.inputs, "image_BVFHW3": changed})


def assemble(
    run: Run,
    data_root: Path | None = None,
    near: Path = Path(),
    verify: Literal["full", "size"] = "full",
    resumed: Path | None = None,
    most_parameters: float = float("inf"),
) -> Job:
    """Opens and checks everything that `run` names; `verify`: how much of the data (see `Mixture.load`).

    `resumed`: the acting checkpoint that the run goes on from. Its normalisers hold, and `init`, which may be gone, is not looked at.
    `most_parameters`: a larger model is left on the meta device, without its starting weights, for planning.
    Raises UserError, which names the fix, or Damaged.
    """
    robots = [robot if isinstance(robot, Embodiment) else _embodiment(robot, near) for robot in run.embodiments]
    by_name = {robot.name: robot for robot in robots}
    mixture = run.mixture if isinstance(run.mixture, Mixture) else open_mixture(run.mixture, near, data_root, verify)
    for source in mixture.sources:
        recorded = source.dataset.info.robot
        if recorded is not None and recorded.name not in by_name:
            fix = f"Source '{source.name}' was recorded on it: add it to the run's embodiments, or take the source out of the mixture."
            raise UnknownName("embodiment", recorded.name, by_name, fix)
    train = Pipeline(mixture, by_name, "train", run.seed, history_s=run.history_s, latents=run.latents, goal_gap_s=run.goal_gap_s)
    if train.order.length is not None and train.order.length < run.steps * run.batch_size:
        raise UserError(
            f"run '{run.name}' needs {run.steps * run.batch_size:,} samples; with its caps the mixture '{mixture.name}' has "
            f"{train.order.length:,}. Raise max_epochs there, or lower --steps to {train.order.length // run.batch_size}."
        )
    first = resumed or (find(run.init, near) if run.init else None)
    origin = load_checkpoint(first) if first else None
    learned = origin is not None and not origin[0].untrained and (resumed or run.init_parts != ())
    known = origin[0] if origin and learned else None
    codes_alone = known is None and _codes_alone(run, mixture)
    normalizers, notes = _no_numbers(robots) if codes_alone else _normalizers(run, robots, mixture, known)
    notes += [str(finding) for finding in disagreements(mixture, robots)]
    told = {**run.to_json(), "data": mixture.fingerprint(), "sources": [_told(source) for source in mixture.sources]}
    told |= {"untrained": True} if codes_alone else {}
    contents = Contents(_model(run, origin), tuple(robots), normalizers, told, run.history_s)
    model = _empty(contents, most_parameters)
    if model is not None:
        notes.append("note: the model is too large to be built for this; its starting weights were not looked at")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            model = contents.build()
        if not resumed and (origin is None or (run.init_parts is not None and "backbone" not in run.init_parts)):
            notes += model.backbone.load_pretrained()
        if origin and not resumed:
            notes += _carry(run, model, contents, *origin)
    held_out = _held_out(run, mixture, by_name)
    notes += _unmeasured(run, mixture, held_out)
    if codes_alone and not model.decoder.latent_codes:
        fix = "Add a source with actions, or take a decoder that learns codes, such as LatentActions."
        raise UserError(f"run '{run.name}': its sources have no actions, and a {contents.model.decoder.kind} learns no codes. {fix}")
    if model.decoder.latent_codes and run.latents is None:
        notes.append("note: the decoder can learn latent codes, but the run names none (latents): it learns from actions alone")
    if model.decoder.text_tokens:
        notes += _reasoning_notes(run, mixture)
    facts = {"data": mixture.fingerprint(), "robots": {robot.name: robot.to_json() for robot in robots}}
    job = Job(contents, model, mixture, train, held_out, facts, tuple(notes), 0.5 if run.goal_gap_s else 0.0)
    if model.decoder.fits and not resumed and not next(model.parameters()).is_meta:
        model.decoder.fit(_first_targets(job, min(model.decoder.fits, run.steps * run.batch_size)))
    return job


def _first_targets(job: Job, count: int) -> Target:
    """The targets of the first `count` samples of the run, and of the next ones of robots that come up too seldom among these: the same on
    every rank, and what the decoder is fitted on."""
    positions = [*range(count), *_of_rare_robots(job, count)]
    return cat([job.batch(job.train.samples(positions[at : at + 256])).target for at in range(0, len(positions), 256)])


def _of_rare_robots(job: Job, count: int) -> list[int]:
    """Positions behind the first `count`, until each robot with actions has its share of them, FIT_ENOUGH at most. UserError where one
    does not come up at all."""
    order, infos = job.train.order, {source.name: source.dataset.info for source in job.mixture.sources}
    found = [infos[source.name] for source in order.sources]
    robots = [info.robot.name if info.robot is not None and info.recorded_action is not None else "" for info in found]
    names = sorted(set(robots) - {""})
    robot_S = np.array([names.index(name) if name else -1 for name in robots])
    most = FIT_LOOKED_AT if order.length is None else min(FIT_LOOKED_AT, order.length)
    have_R = np.bincount(robot_S[order.at(np.arange(count))[0]] + 1, minlength=len(names) + 1)[1:]
    samples_R = [sum(s.samples for s, robot in zip(order.sources, robots, strict=True) if robot == name) for name in names]
    lack_R = np.minimum(samples_R, min(FIT_ENOUGH, max(count // max(len(names), 1), 1))) - have_R
    positions: list[int] = []
    for at in range(count, most, 1 << 16):
        if (lack_R <= 0).all():
            break
        robot_N = robot_S[order.at(np.arange(at, min(at + (1 << 16), most)))[0]]
        for robot in np.flatnonzero(lack_R > 0):
            some = np.flatnonzero(robot_N == robot)[: lack_R[robot]]
            positions += (at + some).tolist()
            have_R[robot], lack_R[robot] = have_R[robot] + len(some), lack_R[robot] - len(some)
    if absent := [name for name, have in zip(names, have_R, strict=True) if not have]:
        raise UserError(
            f"the decoder is fitted on each robot's actions, and no sample of {', '.join(absent)} comes up in the first {most:,} of the "
            f"mixture '{job.mixture.name}': raise the weight of its sources, or take them and the robot out of the run"
        )
    return sorted(positions)


def find(path: str, near: Path) -> Path:
    """A recipe's relative path: beside the recipe, else from the working folder."""
    beside = near / path
    return beside if beside.exists() else Path(path)


def show_tree(job: Job, positions: int) -> str:
    """The mixture as plain text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(job.mixture.tree(positions))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def open_mixture(path: str, near: Path, data_root: Path | None, verify: Literal["full", "size"] = "full") -> Mixture:
    """A recipe's mixture file: beside the recipe, from the working folder, or under the data root."""
    found = find(path, near)
    if not found.is_file() and data_root is not None and (data_root / path).is_file():
        found = data_root / path  # written beside the data it names
    return Mixture.load(found, data_root, verify)


def _embodiment(name: str, near: Path) -> Embodiment:
    return load_embodiment(str(find(name, near)) if name.endswith(".py") else name)


def _model(run: Run, origin: tuple[Contents, Mapping[str, Tensor]] | None) -> Model:
    assert run.model is not None or origin is not None  # held by Run
    model = run.model or origin[0].model  # type: ignore[index]
    if run.lora is None:
        return model
    if not hasattr(model.backbone, "lora"):
        raise UserError(f"run '{run.name}': a {model.backbone.kind} takes no adapters; train all of it, or freeze=('backbone',)")
    return replace(model, backbone=replace(model.backbone, lora=run.lora))


def _told(source: Source) -> dict[str, Any]:
    """What a model card says of a source."""
    info = source.dataset.info
    return {
        "name": source.name,
        "robot": info.embodiment["name"] if info.embodiment else None,
        "share": source.share,
        "episodes": len(source.dataset),
        "hours": round(source.dataset.hours, 4),
        "supervision": info.supervision,
        "licence": info.licence,
    }


def _held_out(run: Run, mixture: Mixture, robots: Mapping[str, Embodiment]) -> Pipeline | None:
    if mixture.val_fraction == 0:
        return None
    return Pipeline(mixture, robots, "val", run.seed, history_s=run.history_s, latents=run.latents, goal_gap_s=run.goal_gap_s)


def _unmeasured(run: Run, mixture: Mixture, held_out: Pipeline | None) -> list[str]:
    """What to say of a run that asks for a held-out loss where there is none. UserError where it is to choose by it."""
    if held_out is not None:
        return []
    why = f"the mixture '{mixture.name}' holds no episode out (val_fraction 0)"
    if run.keep_best:
        raise UserError(f"run '{run.name}': keep_best goes by the held-out loss, and {why}. Raise val_fraction, or set keep_best=0")
    return [f"note: {why}: validate_every measures nothing"] if run.validate_every else []


def _normalizers(
    run: Run, robots: list[Embodiment], mixture: Mixture, origin: Contents | None
) -> tuple[dict[str, RobotNormalizer], list[str]]:
    """A robot that the starting checkpoint knows keeps its numbers there, which its weights expect; others get the data's."""
    found = compute_stats(mixture, {robot.name: robot for robot in robots})
    normalizers, notes = {}, [str(finding) for finding in clipped(found, robots)]
    for robot in robots:
        known = origin.normalizers.get(robot.name) if origin is not None else None
        if known is not None and known.key == StatsKey.of(robot):
            normalizers[robot.name] = known
            notes.append(f"{robot.name}: normalised as in the checkpoint, which its weights expect")
        elif robot.name in found:
            normalizers[robot.name] = RobotNormalizer.fit(found[robot.name], robot, run.normalization)
        else:
            fix = "Add a source with its actions, or take it out of the run's embodiments."
            raise StatsMissing(f"no statistics for '{robot.name}': no source of the mixture '{mixture.name}' has its actions. {fix}")
    return normalizers, notes


def _codes_alone(run: Run, mixture: Mixture) -> bool:
    """Whether the run was given codes to learn, and no source of it has actions beside them."""
    return run.latents is not None and not any(source.dataset.info.recorded_action for source in mixture.sources)


def _reasoning_notes(run: Run, mixture: Mixture) -> list[str]:
    """UserError where a decoder that is to say something has nothing to learn it from."""
    silent = [source.name for source in mixture.sources if not source.dataset.reasons]
    if len(silent) == len(mixture.sources):
        fix = "Name its column in a source's card (`reasoning:`) and convert it again, or take a decoder that says nothing."
        raise UserError(f"run '{run.name}': its decoder learns to say reasoning before it acts, and no source has any. {fix}")
    return [f"note: no reasoning in {', '.join(silent)}: the decoder learns to say nothing there"] if silent else []


def _no_numbers(robots: list[Embodiment]) -> tuple[dict[str, RobotNormalizer], list[str]]:
    note = "note: no source has actions: it learns latent codes alone, and acts only after it was fine-tuned with actions (--init)"
    return {robot.name: RobotNormalizer.not_yet(robot) for robot in robots}, [note]


def _empty(contents: Contents, most_parameters: float) -> VLA | None:
    """The model on the meta device, if it has more than so many parameters."""
    if most_parameters == float("inf"):
        return None
    from vla.backbones.empty import build_empty, count_parameters

    model = build_empty(contents.model, contents.roster)
    return model if count_parameters(model) > most_parameters else None


def _carry(run: Run, model: VLA, contents: Contents, old: Contents, weights: Mapping[str, Tensor]) -> list[str]:
    """Loads the parts of the starting checkpoint that the run asks for. Returns what to say about it."""
    top = [name for name, _ in model.named_children()]
    same = to_json(old.model.decoder) == to_json(contents.model.decoder)
    lacks = [name for name in top if model.get_submodule(name).state_dict() and not any(key.startswith(f"{name}.") for key in weights)]
    fitting = tuple(name for name in top if name not in lacks and (same or name != "decoder"))
    parts = fitting if run.init_parts is None else run.init_parts
    carried = adapted = 0
    for part in parts:
        if part not in top:
            raise UnknownName("part of the model (init_parts)", part, top)
        theirs = {name.removeprefix(f"{part}."): tensor for name, tensor in weights.items() if name.startswith(f"{part}.")}
        if part == "decoder":
            theirs = model.decoder.adopt(theirs)
        if part == "backbone":
            theirs = over_plain(model.backbone, theirs)
        try:
            report = carry_over(model.get_submodule(part), contents.roster, theirs, old.roster)
        except SchemaError as error:
            adapted_too = part == "backbone" and getattr(old.model.backbone, "lora", None) is not None
            merged = ", or merge its adapters first (`vla export checkpoint --merge-adapters`)" if adapted_too else ""
            fix = f"Take the checkpoint's model (model=None), leave '{part}' out of init_parts{merged}."
            raise SchemaError(f"run '{run.name}': the {part} of {run.init} does not fit this run's: {error}. {fix}") from error
        for name, module in model.get_submodule(part).named_modules():
            if isinstance(module, Codec):
                module.adopt({key.removeprefix(f"{name}."): tensor for key, tensor in theirs.items() if key.startswith(f"{name}.")})
        carried, adapted = carried + len(report["carried"]), adapted + len(report["adapted"])
    new = [name for name in contents.roster.names if name not in old.roster.names]
    fresh = [name for name in top if name not in parts]
    line = (
        f"from {run.init}: {', '.join(parts) or 'the architecture alone'} ({carried} tensors as they are, {adapted} fitted to these robots)"
    )
    line += f"; new robots: {', '.join(new)}" if new else ""
    without = f", and it has no {' or '.join(lacks)}" if lacks else ""
    return [line + (f"; fresh: {', '.join(fresh)} (the checkpoint's decoder is {old.model.decoder.kind}{without})" if fresh else "")]
