"""A run is one frozen object. A recipe is a Python file that defines `RUN = Run(...)`; a variant is a `replace(...)`."""

from __future__ import annotations

import difflib
import importlib.util
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vla.backbones.adapters import LoRA
from vla.config import check_types, to_json
from vla.data.augment import Augment
from vla.data.mixture import Mixture
from vla.embodiment import Embodiment
from vla.errors import UnknownName, UserError
from vla.latent_action.run import LatentRun
from vla.model import Model
from vla.normalize import METHODS, Method
from vla.train.features import Features
from vla.train.optim import WSD, AdamW, Constant, Cosine, Zero
from vla.train.ranks import TIMEOUT_S

PRECISIONS = ("fp32", "bf16")
TRACKERS = ("wandb", "trackio")

HARMLESS: tuple[str, ...] = ("name", "log_every", "save_every", "keep_last", "validate_every", "val_batches", "tensorboard", "max_skips")
HARMLESS += (
    "workers",
    "threads",
    "microbatch",
    "zero",
    "probe",
    "trackers",
    "keep_best",
    "async_save",
    "timeout_s",
    "compiled",
    "source_gradients",
    "features",
)
"""Settings that a resumed run may change without asking: they alter no update beyond the rounding of sums."""


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and how long. Paths are relative to the data root, the recipe's folder or the working folder.

    `mixture`: path of a mixture file, or the object. `embodiments`: names or .py files, in bank order. `batch_size`: samples per
    optimizer step over all ranks and micro-batches; `microbatch`: most samples of one forward pass on one rank (None: all of the
    rank's share). `model`: None takes that of the checkpoint `init`. `init`: folder of a checkpoint to start from; `init_parts`:
    which top modules to carry (None: all that it has, but for another decoder; (): its architecture alone, fresh).
    `freeze`: prefixes of parameter names. `lora`: adapters in the backbone, whose adapted weights stand still. `history_s`: times of the
    observed frames relative to now. `goal_gap_s`: (least, most) seconds ahead of an image that tells half of the samples what to do,
    instead of words (vla/goals.py); samples without a frame so far ahead are told by words. `latents`: name of the latent codes that
    `vla label` wrote.
    `spike_sigmas`: how far out a loss or gradient norm is skipped (vla/train/spikes.py; 0: only what is
    not finite). `max_skips`: skipped updates in a row before the run stops.
    `keep_last`, `keep_best`: checkpoints that stay, the newest and those with the lowest held-out loss. `async_save`: save while training
    goes on, for another copy of its state in the host's memory. `timeout_s`: how long ranks wait for one that says nothing.
    `compiled`: torch.compile on the layers (plain torch). `features`: with a frozen backbone, what it makes of each observation is computed
    once and kept on disk (vla/train/features.py).
    `augment`: what training images go through (`vla.data.augment`: PI0, OPENVLA, OCTO, or your own); validation and acting never.
    `probe`: validating also asks what other instructions do to the loss, in two more forward passes a batch (vla/train/probe.py).
    `source_gradients`: validating also asks whose gradient a batch's is, in a backward pass for each source (vla/train/validate.py).
    `trackers`: services that the log goes to as well, `wandb` or `trackio` (they send it where their own settings say).
    `workers`: loader processes; with 0 a thread prepares the next batches. `threads`: of one forward pass on a CPU (0: torch's choice).
    """

    name: str
    mixture: str | Mixture
    embodiments: tuple[str | Embodiment, ...]
    steps: int
    batch_size: int
    model: Model | None = None
    optim: AdamW = field(default_factory=AdamW)
    schedule: Cosine | WSD | Constant = field(default_factory=Cosine)
    microbatch: int | None = None
    ema_decay: float | None = 0.999
    precision: str = "fp32"
    seed: int = 0
    init: str | None = None
    init_parts: tuple[str, ...] | None = None
    freeze: tuple[str, ...] = ()
    lora: LoRA | None = None
    normalization: Method = "quantile"
    history_s: tuple[float, ...] = (0.0,)
    goal_gap_s: tuple[float, float] | None = None
    latents: str | None = None
    augment: Augment | None = None
    validate_every: int = 0
    val_batches: int = 8
    probe: bool = True
    source_gradients: bool = False
    save_every: int = 0
    keep_last: int = 2
    keep_best: int = 0
    async_save: bool = True
    log_every: int = 20
    max_skips: int = 10
    spike_sigmas: float = 10.0
    timeout_s: float = TIMEOUT_S
    compiled: bool = False
    features: Features | None = None
    zero: Zero | None = None
    workers: int = 0
    threads: int = 0
    tensorboard: bool = False
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model | None):
            raise UserError(
                f"run '{self.name}': model must be a vla.model.Model, such as Model(Tiny(), Parallel()) or preset('pi0').model(), "
                f"not a {type(self.model).__name__}"
            )
        if isinstance(self.embodiments, str) or not self.embodiments:
            raise UserError(f"run '{self.name}': embodiments must be a tuple of robots, such as ('metaworld_sawyer',)")
        check_types(self)
        if self.precision not in PRECISIONS:
            raise UnknownName("precision", self.precision, PRECISIONS)
        if self.normalization not in METHODS[:2]:
            raise UnknownName("normalization", self.normalization, METHODS[:2])
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise UnknownName("tracker", tracker, TRACKERS)
        for name in ("steps", "batch_size", "microbatch", "keep_last", "log_every", "max_skips"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"run '{self.name}': {name} must be at least 1, not {getattr(self, name)}")
        for name in ("validate_every", "val_batches", "save_every", "keep_best", "workers", "threads", "spike_sigmas"):
            if not getattr(self, name) >= 0:
                raise UserError(f"run '{self.name}': {name} must not be negative (0: never, or as the machine has it)")
        if self.keep_best and not (self.validate_every and self.save_every and self.save_every % self.validate_every == 0):
            raise UserError(
                f"run '{self.name}': keep_best needs the held-out loss of what is saved: "
                "set validate_every, and save_every to a multiple of it"
            )
        if not 0 <= self.seed < 2**31:
            raise UserError(f"run '{self.name}': seed must be from 0 to 2**31 - 1, not {self.seed}")
        if self.timeout_s <= 0:
            raise UserError(f"run '{self.name}': timeout_s must be above 0, not {self.timeout_s}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"run '{self.name}': ema_decay must be in (0, 1), or None; not {self.ema_decay}")
        if max(self.history_s, default=1) != 0 or list(self.history_s) != sorted(self.history_s):
            raise UserError(f"run '{self.name}': history_s must rise and end at 0.0 (now), not {self.history_s}")
        if self.model is None and self.init is None:
            raise UserError(f"run '{self.name}' has neither a model nor a checkpoint to start from (init)")

    def check(self, world: int = 1) -> None:
        """Raises UserError, naming the nearest sizes that work, unless the batch divides over `world` ranks."""
        unit = world * (self.microbatch or 1)
        if self.batch_size % unit:
            low = self.batch_size // unit * unit
            near = " or ".join(str(size) for size in (low, low + unit) if size)
            pieces = f"{world} ranks" + (f" x micro-batches of {self.microbatch}" if self.microbatch else "")
            raise UserError(f"run '{self.name}': a batch of {self.batch_size} does not divide over {pieces}. Use --batch-size {near}.")

    def microbatches(self, world: int) -> int:
        """Forward passes per rank and optimizer step."""
        return self.batch_size // (world * (self.microbatch or self.batch_size // world))

    def to_json(self) -> dict[str, Any]:
        """Plain facts of the run. Robots and mixtures given as objects are recorded by value elsewhere, here by name."""
        names = tuple(robot.name if isinstance(robot, Embodiment) else robot for robot in self.embodiments)
        mixture = self.mixture if isinstance(self.mixture, str) else self.mixture.name
        return to_json(replace(self, embodiments=names, mixture=mixture))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(unsafe, harmless) changes between two runs' JSON, one line each: `optim.lr: 0.001 -> 0.01`."""
    before, after = _flat(old), _flat(new)
    # A contrastive loss compares the samples of one forward pass with each other.
    compared = any(key.startswith("model.align.") for key in {*before, *after})
    unsafe: list[str] = []
    harmless: list[str] = []
    for key in sorted({*before, *after}):
        if before.get(key, "absent") != after.get(key, "absent"):
            line = f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
            name = key.split(".")[0]
            (harmless if name in HARMLESS and not (compared and name == "microbatch") else unsafe).append(line)
    return unsafe, harmless


def load_recipe(recipe: str | Path) -> Run | LatentRun:
    """Runs a recipe file, which is code that the user named, and returns its `RUN`; for `FILE.py:NAME` its variant of that name.

    Mistakes in it become one line.
    """
    name, colon, variant = str(recipe).partition(".py:")
    path = Path(f"{name}.py" if colon else recipe)
    if not path.is_file():
        folders = {path.parent, Path("pretrain"), Path("finetune")}
        recipes = {found for folder in folders for found in folder.glob("*.py")}
        fix = "" if recipes else f"Looked from {Path.cwd()}: recipes are named by their path, the project's own from its root."
        raise UnknownName("recipe", path, recipes, fix)
    spec = importlib.util.spec_from_file_location(f"vla_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        error.args = (f"{_line(path, error)}: {error}",)
        raise
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (TypeError, NameError, AttributeError, ImportError, ValueError) as error:
        raise UserError(f"{_line(path, error)}: {error}.{_hint(path, error)}") from error
    runs = {key: value for key, value in vars(module).items() if isinstance(value, (Run, LatentRun))}
    if "RUN" not in runs:
        raise UserError(f"{path} defines no RUN. A recipe ends with RUN = Run(...); see finetune/forkme.py.")
    if (variant or "RUN") not in runs:
        raise UnknownName(f"variant of {path}", variant, runs)
    return runs[variant or "RUN"]


def _line(path: Path, error: BaseException) -> str:
    """`recipe.py, line 12`: the deepest frame that is in the recipe."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path.resolve()]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _hint(path: Path, error: BaseException) -> str:
    """What to do about a mistake that is made often."""
    names = [f.name for f in fields(Run)]
    if isinstance(error, ModuleNotFoundError) and error.name and (path.parent / f"{error.name}.py").is_file():
        return f" If it holds parts of the model, name it: --plugin {path.parent / error.name}.py"
    if "Run" not in str(error):
        return ""
    near = difflib.get_close_matches(str(error).partition("'")[2].rstrip("'"), names, n=1)
    return (f" Did you mean {near[0]}?" if near else "") + f" Settings of a Run: {', '.join(names)}."


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, Mapping):
        return {key: value for name, item in data.items() for key, value in _flat(item, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): list(data) if isinstance(data, tuple) else data}
