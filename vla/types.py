"""What flows through the house: Episode -> Sample -> Batch -> Loss, and Observation -> Chunk.

Legend of shape letters, used in names everywhere:
B batch · V view (one camera role) · F history frame (newest last) · H W image · L text · S sequence · D width ·
T action time · A action width · P proprioceptive state width · N latent codes · K noise samples per context · E embodiments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:  # numpy-only users (collection, conversion) never pay for torch
    from torch import Tensor

Supervision = Literal["actions", "tracks", "hands", "none"]
SUPERVISION: tuple[Supervision, ...] = ("actions", "tracks", "hands", "none")


@dataclass(frozen=True)
class Geometry:
    """What is known of a camera beside its image: `intrinsics` (3, 3) of a pinhole camera, in pixels of that image; `depth` (F, H', W') in
    metres along its axis, at any size, NaN or 0 where it saw nothing. None: unknown."""

    intrinsics: np.ndarray | None = None
    depth: np.ndarray | None = None


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one decision.

    `images`: role -> uint8 (F, H, W, 3), RGB, newest frame last. `state`: float64 (F, P), packed by the embodiment's state
    space in physical units; width 0 where the source has none (video). `offsets_s`: the frames' times relative to now, <= 0.
    `geometry`: role -> what else is known of it, for backbones that look at it.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    embodiment: str
    offsets_s: tuple[float, ...] = (0.0,)
    geometry: Mapping[str, Geometry] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """Actions to execute: float64 (T, A) in the embodiment's command space (physical units), one row per 1/rate_hz."""

    action_TA: np.ndarray
    embodiment: str
    rate_hz: Fraction


@dataclass(frozen=True)
class Continuation:
    """What a robot does while its next chunk is computed: the rest of the one before.

    `command_RA`: float64 (R, A), R >= 1, in the command space; row 0 is for the step that the new chunk's first row is for. `frozen`: rows
    that will have been sent before the new chunk arrives, so that it must begin with them; 0..R. Rows from there to R are trusted less and
    less, those after R not at all. `warm`: decoders that denoise start from these rows noised to this time in [0, 1) (0 is noise, 1 is
    data) instead of from noise alone.
    """

    command_RA: np.ndarray
    frozen: int
    warm: float = 0.0


@dataclass(frozen=True)
class Frames:
    """Encoded images of one camera: `jpeg[i]` was seen at step `step[i]` (rising; a camera may be slower than control)."""

    step: np.ndarray
    jpeg: tuple[bytes, ...]


@dataclass(frozen=True)
class VideoFrames:
    """Images of one camera as one mp4 (`vla.data.gop.encode_mp4`): its i-th picture was seen at step `step[i]` (rising). The times
    inside the file mean nothing. Without a picture, `mp4` is empty."""

    step: np.ndarray
    mp4: bytes


@dataclass(frozen=True)
class Span:
    """One text (an instruction, or reasoning), valid for steps start <= i < stop."""

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class Episode:
    """One recorded episode, as collectors and converters produce it and the shard writer stores it.

    `state`: float64 (steps, P) or None; `action`: float64 (steps, A) or None, physical units, in the frames as recorded.
    `action[i]` is the command issued at step i, after the observation of step i. `time_s`: float64 (steps,), rising. `reasoning`: what is
    to be said before acting, at some or all steps.
    `info`: JSON-able facts for people (task, seed, success, expert); training never reads it.
    """

    id: str
    embodiment: str
    rate_hz: Fraction
    supervision: Supervision
    instructions: tuple[Span, ...]
    time_s: np.ndarray
    frames: Mapping[str, Frames | VideoFrames]
    state: np.ndarray | None = None
    action: np.ndarray | None = None
    licence: str = "unknown"
    source: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    reasoning: tuple[Span, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.time_s)


@dataclass(frozen=True)
class Sample:
    """One training example, in physical units; which order position it is, and where it came from.

    `action_TA`: float64 (T, A) in the embodiment's learned frames (`Embodiment.encode`), or None without action labels;
    `valid_T`: bool, False past the end of the episode. `latent_N`: int64 codes (`vla label`), or None.
    `future`: images a fixed time ahead, role -> uint8 (H, W, 3); only where the pipeline was asked for frame pairs.
    `reasoning`: what is to be said before acting ("the drawer is closed: first open it"), or ''.
    """

    position: int
    source: str
    episode: str
    step: int
    observation: Observation
    action_TA: np.ndarray | None
    valid_T: np.ndarray
    latent_N: np.ndarray | None = None
    future: Mapping[str, np.ndarray] | None = None
    gap_s: float = 0.0
    reasoning: str = ""


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same mappings, tuples and dataclasses with other tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map_tensors(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value


@dataclass(frozen=True)
class _Tensors:
    """Mixin: a dataclass of tensors that moves as one."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return map_tensors(self, lambda tensor: tensor.to(*args, **kwargs))

    def __getitem__(self, rows: Any) -> Any:
        """The chosen batch rows of every tensor."""
        return map_tensors(self, lambda tensor: tensor[rows])


@dataclass(frozen=True)
class ActionSpec(_Tensors):
    """Which actions are asked for: `embodiment_B` int64 rows of the model's roster, `mask_BTA` bool, True where real."""

    embodiment_B: Tensor
    mask_BTA: Tensor


@dataclass(frozen=True)
class Prior(_Tensors):
    """Actions that a new chunk has to agree with: `action_BTA` float32, normalised; `weight_BT` float32, 1 where they are certain, 0
    where nothing is known. `warm_B`: time in [0, 1) from which to denoise them, 0 for not at all."""

    action_BTA: Tensor
    weight_BT: Tensor
    warm_B: Tensor


@dataclass(frozen=True)
class Target(_Tensors):
    """What a decoder learns from. Zero wherever the mask is False, so that padding can never leak.

    `action_BTA`: float32, normalised; `spec.mask_BTA` says which entries exist at all; `label_BTA` bool, which are labelled
    (a sample without action labels has none). `latent_BN`: int64 codes; `has_latent_B`: bool. `text_BL`: int64 ids of what is to be said
    before acting, 0 where there is none (vla/reasoning.py); None if the decoder says nothing.
    """

    action_BTA: Tensor
    label_BTA: Tensor
    spec: ActionSpec
    latent_BN: Tensor
    has_latent_B: Tensor
    text_BL: Tensor | None = None


def cat(rows: Sequence[Any]) -> Any:
    """One dataclass of tensors with the rows of all, in order; what is None in one must be so in all."""
    import torch

    if isinstance(rows[0], torch.Tensor):
        return torch.cat(list(rows))
    if isinstance(rows[0], Mapping):
        return {key: cat([row[key] for row in rows]) for key in rows[0]}
    if isinstance(rows[0], _Tensors):
        return replace(rows[0], **{f.name: cat([getattr(row, f.name) for row in rows]) for f in fields(rows[0])})
    assert all(row is None for row in rows)
    return None


@dataclass(frozen=True)
class Pair(_Tensors):
    """The same samples told the other way: `inputs` by words where the batch's are by a goal image (`by_goal_B`), and by a goal image
    elsewhere. `paired_B`: those that can be told both ways; of the others, `inputs` repeat the batch's."""

    inputs: Mapping[str, Tensor]
    by_goal_B: Tensor
    paired_B: Tensor


@dataclass(frozen=True)
class Batch(_Tensors):
    """Tensors of B samples of any mixture of embodiments.

    `inputs`: the backbone's own (uint8 images, token ids, masks); `state_BFP` float32 normalised with `state_mask_BP` bool. `pair`: for
    models that align goals. `seen`: what a backbone that stands still has made of the observations (vla/backbones/remembered.py), instead
    of `inputs`, which are then empty.
    """

    inputs: Mapping[str, Tensor]
    state_BFP: Tensor
    state_mask_BP: Tensor
    spec: ActionSpec
    target: Target | None
    source_B: Tensor
    position_B: Tensor
    pair: Pair | None = None
    seen: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class WeightedSum:
    """A loss as (weighted sum, weight), both scalar tensors. Never a local mean: a mean would weigh ranks, not samples."""

    sum: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Loss:
    """Named parts, and each sample's share for the books.

    The total is sum over parts of `scale[name] * part.sum / part.weight`, with weights summed over ranks and accumulation
    steps first. `sample_sum_B` and `sample_weight_B` (detached) split the first part by sample.
    """

    parts: Mapping[str, WeightedSum]
    scale: Mapping[str, float]
    sample_sum_B: Tensor
    sample_weight_B: Tensor
