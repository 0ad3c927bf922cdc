"""Backbones whose transformer is a language model of `transformers`, called unpatched: embeddings in, one mask, one recording cache.

A family (paligemma, qwen_vl, smolvlm, prismatic) says how images become features and where they stand. Everything here serves all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla.backbones.adapters import LoRA, inject
from vla.backbones.base import AttentionShape, Backbone, Hidden, Tokens
from vla.backbones.ego3d import Ego3D, Positions3D
from vla.backbones.flash import dispatch
from vla.backbones.four_bit import quantize
from vla.backbones.images import Pixels, Shown, per_channel, stack_images
from vla.backbones.masks import IMPLEMENTATIONS, attention_mask, flash_form
from vla.backbones.parse import by_value, library_config
from vla.backbones.prompts import Prompt, PromptEncoder
from vla.backbones.recording_cache import RecordingCache, watch
from vla.config import check_types
from vla.errors import SchemaError, UnknownName, UserError
from vla.types import Observation

PARTS = ("vision", "projector", "language", "head")


@dataclass(frozen=True)
class Origin:
    """Where pretrained weights come from: a hub id at a revision (the commit's 40 digits), or a local folder."""

    kind: ClassVar[str] = "origin"
    source: str
    revision: str = ""


@dataclass(frozen=True)
class LibraryConfig(ABC):
    """`library`: the library's own configuration by value; every size comes from it. `tokenizer`: packed by value (`pack_tokenizer`).

    `cameras`: the roster of roles, in the order of their images ((): as they come). `attention`: an implementation of the library, or
    `auto`: flash-attn where it is installed and the mask is one it takes, else sdpa, else eager. `freeze`: parts (vision, projector,
    language, head) or prefixes of parameter names. `lora`: adapters beside frozen weights. `ego3d`: 3-D positions of patches, where an
    observation has depth or depth is estimated. `head`: keep the vocabulary head of its own that a model without tied embeddings has.
    `four_bit`: the language model's linear maps in 4 bits, frozen (QLoRA). `origin`: where `load_pretrained` reads weights.
    """

    library: Mapping[str, Any]
    tokenizer: str = ""
    prompt: Prompt = field(default_factory=lambda: Prompt("{images}{instruction}"))
    pixels: Pixels = field(default_factory=Pixels)
    cameras: tuple[str, ...] = ()
    attention: str = "auto"
    gradient_checkpointing: bool = False
    freeze: tuple[str, ...] = ()
    lora: LoRA | None = None
    ego3d: Ego3D | None = None
    head: bool = False
    four_bit: bool = False
    origin: Origin | None = None

    model_types: ClassVar[tuple[str, ...]] = ()
    """What `model_type` says in the library's configurations of this family."""

    def __post_init__(self) -> None:
        check_types(self)
        found = self.library.get("model_type")
        if found not in self.model_types:
            raise UserError(f"{type(self).__name__} is for {' or '.join(self.model_types)}, not for a configuration of '{found}'")
        if self.attention not in ("auto", *IMPLEMENTATIONS):
            raise UnknownName("attention implementation", self.attention, ("auto", *IMPLEMENTATIONS))

    @classmethod
    def from_pretrained(cls, source: str, revision: str = "", **changes: Any) -> Any:
        """The configuration of a hub id at a revision, or of a local folder: sizes, tokenizer, pixels and prompt by value.

        Weights follow when a run starts (`load_pretrained`). `changes`: further settings. Raises UserError: another family, a missing
        revision, gated or missing files, with the fix.
        """
        from vla.backbones.pretrained import read_config

        return read_config(source, revision, cls, **changes)

    @classmethod
    def library_of(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """`library`, from a published config.json: what stands there, and the library's defaults for what does not."""
        return by_value(library_config(data))

    @classmethod
    def pixels_of(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that a published preprocessor_config.json tells, beside the family's defaults."""
        from vla.backbones.pretrained import pixels_of

        return {"pixels": pixels_of(data, cls.default_pixels())}

    @classmethod
    def default_pixels(cls) -> Pixels:
        """The family's own."""
        (made,) = (f.default_factory for f in fields(cls) if f.name == "pixels")
        assert callable(made)
        return made()

    @abstractmethod
    def build(self) -> LibraryBackbone:
        """The backbone with fresh weights, frozen and adapted as the configuration says."""


class LibraryBackbone(Backbone):
    """`vision` -> `projector` -> `language` (-> `head`): modules of the library under names that all families share."""

    causal: ClassVar[bool] = True
    """How the family was pretrained: blocks 0, 1, 2, ... or all 0."""
    first_position: ClassVar[int] = 0
    published: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Module of ours -> how the names of its tensors begin in published files, by the versions of the library that wrote them."""

    vision: nn.Module
    language: Any
    projector: nn.Module | None
    head: nn.Module | None

    def __init__(self, config: LibraryConfig) -> None:
        super().__init__()
        self.config = config
        self._make()
        self.ego3d: Positions3D | None = None if config.ego3d is None else self._positions3d(config.ego3d)
        self.width = self.language.config.hidden_size
        self.depth = len(self.language.layers)
        self._set_attention(config.attention)
        for layer in self.language.layers:
            layer._can_checkpoint_with_cache = True  # our cache bears a layer that runs twice; else the library drops it
        watch(self.language.layers)
        freeze_parts(self, config.freeze)
        if config.lora is not None:
            inject(self, config.lora)
        if config.four_bit:
            quantize(self)
        self.set_gradient_checkpointing(config.gradient_checkpointing)

    # What a family says.

    def published_weights(self, origin: Origin) -> dict[str, Tensor]:
        """The tensors at `origin` under our names. UserError or SchemaError where they are not this backbone's."""
        from vla.backbones.pretrained import library_weights

        return library_weights(self, origin)

    @abstractmethod
    def _make(self) -> None:
        """Sets `vision`, `projector`, `language`, `head` from `self.config.library`."""

    @abstractmethod
    def patches(self, height: int, width: int) -> int:
        """Soft tokens of one image of this size."""

    @abstractmethod
    def _see(self, inputs: Mapping[str, Tensor], longest: int) -> tuple[Tensor, dict[str, Tensor]]:
        """All images -> features (images, longest, D), filled up behind an image's own, and further features that become extras."""

    def published_names(self, name: str) -> tuple[str, ...]:
        """What published files may call a tensor of ours, or those that begin like `name`."""
        part, _, rest = name.partition(".")
        return tuple(f"{start}{rest}" for start in self.published[part])

    def cut(self) -> tuple[str, ...]:
        """How the names of tensors begin, as ours would, that a published model has and a policy never reads."""
        return ()

    def _tower_pixels(self) -> tuple[Pixels, ...]:
        """How each of the family's towers wants its images."""
        return (self.config.pixels,)

    def _grid3d(self) -> tuple[int, int]:
        """Patches along a side of the tower's grid, and the width of its features. Raises UserError where there is no such grid."""
        raise UserError(
            f"{type(self).__name__} has no square grid of patches to place in space: ego3d is for PaliGemma, Prismatic and SmolVLM"
        )

    def part(self, name: str) -> tuple[nn.Module, ...]:
        """The modules of a part (`PARTS`)."""
        module = getattr(self, name)
        return () if module is None else (module,)

    def _place(self, ids: Sequence[int], images: Sequence[tuple[int, int]]) -> dict[str, list]:
        """Positions of one prompt, as further tensors of `collate`. `images`: the size of each."""
        return {"position_BS": list(range(self.first_position, self.first_position + len(ids)))}

    def _added(self, tokens: Tokens) -> Sequence[Tensor]:
        """(B, S, width) each, to add to what comes out of the first language layers."""
        return ()

    def _positions(self, tokens: Tokens) -> Tensor:
        return tokens.position_BS

    # What holds for all.

    @cached_property
    def encoder(self) -> PromptEncoder:
        return PromptEncoder(self.config.prompt, self.config.tokenizer)

    @property
    def dtype(self) -> torch.dtype:
        return self.language.embed_tokens.weight.dtype

    @property
    def attention(self) -> AttentionShape:
        """Of the language model, from its own configuration."""
        config, layer = self.language.config, self.language.layers[0].self_attn
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        return AttentionShape(self.depth, heads, kv_heads, layer.head_dim, float(config.rope_parameters["rope_theta"]))

    def collate(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """`image_BVFHW3` uint8 (see `stack_images`), `token_BS`, `token_valid_BS`, `position_BS`, and `patch_BS`: which of the row's image
        features stands there, -1 for a word. Views that a row lacks take no token."""
        inputs, roles = stack_images(observations, self.config.cameras)
        frames = inputs["image_BVFHW3"].shape[2]
        if self.ego3d is not None:
            inputs |= self.ego3d.config.collate(observations, roles, self.ego3d.side)
        longest = self._longest(inputs)
        rows = []
        for obs, mine in zip(observations, roles, strict=True):
            sizes = [obs.images[role].shape[1:3] for role in mine for _ in range(frames)]
            counts = [self.patches(*size) for size in sizes]
            ids = self.encoder.ids(obs.instruction, counts)
            features = (image * longest + patch for image, count in enumerate(counts) for patch in range(count))
            patch = [next(features) if token < 0 else -1 for token in ids]  # images are in order in every template
            rows.append({"token_BS": [max(token, 0) for token in ids], "patch_BS": patch, **self._place(ids, sizes)})
        valid = [[True] * len(row["token_BS"]) for row in rows]
        inputs["token_valid_BS"] = _right_padded(valid, False)
        for name, fill in {name: -1 if name == "patch_BS" else 0 for name in rows[0]}.items():
            inputs[name] = _right_padded([row[name] for row in rows], fill)
        return inputs

    def embed(self, inputs: Mapping[str, Tensor]) -> Tokens:
        """Words and image features in their places; group 0. Every module runs, also for a batch without images; views that a row lacks
        do not."""
        words_BSD = self.language.embed_tokens(inputs["token_BS"])
        shown, longest = Shown.of(inputs, self.few_sizes), self._longest(inputs)
        features, more = self._see(shown.inputs, longest)
        patch_BS = inputs["patch_BS"]
        (B, S), frames = patch_BS.shape, inputs["image_BVFHW3"].shape[2]
        from_image = (patch_BS >= 0)[..., None]

        def put(features_IPD: Tensor, words: Tensor | None) -> Tensor:
            row_BMD = shown.placed(features_IPD.unflatten(0, (-1, frames))).reshape(B, -1, features_IPD.shape[-1])
            there = row_BMD.gather(1, patch_BS.clamp(min=0)[..., None].expand(-1, -1, row_BMD.shape[-1]))
            return torch.where(from_image, there.to(words_BSD.dtype), torch.zeros_like(there) if words is None else words)

        index_BS = torch.arange(S, device=patch_BS.device).expand(B, S)
        zero_BS = torch.zeros_like(index_BS)
        extras = {"image_BS": patch_BS >= 0, **{name: put(tensor, None) for name, tensor in more.items()}}
        extras |= {name: inputs[name] for name in inputs if name.startswith("axis_offset")}
        valid_BS = inputs["token_valid_BS"]
        x_BSD = put(features, words_BSD)
        lead_BS = index_BS - valid_BS.sum(1, keepdim=True) + len(self.config.prompt.lead) + 1
        block_BS = index_BS if self.causal else lead_BS.clamp(min=0) * valid_BS
        return Tokens(x_BSD, valid_BS, block_BS, zero_BS, inputs["position_BS"], extras)

    def forward(self, tokens: Tokens, cache: Hidden | None = None) -> Hidden:
        """The library's language model over `tokens` after what `cache` holds."""
        seen = tokens if cache is None else cache.tokens.cat(tokens)
        self._check_length(len(seen))
        before = (cache.keys, cache.values) if cache is not None else ((), ())
        recorder = RecordingCache(self.depth, *before, self._added(tokens))
        out = self.language(
            inputs_embeds=tokens.x_BSD,
            position_ids=self._positions(tokens),
            past_key_values=recorder,
            use_cache=False,
            **self._mask(tokens, seen),
        )
        return Hidden(seen, out.last_hidden_state, *recorder.close())

    def logits(self, x_BSD: Tensor, ids: Tensor | None = None) -> Tensor:
        """Final states -> scores of the vocabulary, or of the tokens `ids` alone. Raises UserError without a head (`head=True`)."""
        tied = getattr(self.language.config, "tie_word_embeddings", False) or self.config.library.get("tie_word_embeddings", False)
        if self.head is None and not tied:
            raise UserError("this backbone was built without its vocabulary head: set head=True in its configuration")
        weight = self.language.embed_tokens.weight if self.head is None else self.head.weight
        scores = nn.functional.linear(x_BSD, (weight if ids is None else weight[ids]).to(x_BSD.dtype))
        cap = getattr(self.language.config, "final_logit_softcapping", None)
        return scores if cap is None else torch.tanh(scores / cap) * cap

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Of vision and language layers; non-reentrant, so that keys and values recorded in a layer keep their gradient."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = on
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def load_pretrained(self) -> list[str]:
        """Reads the weights of `config.origin`. Raises UserError where there is none, or they do not fit."""
        if self.config.origin is None:
            return []
        from vla.backbones.pretrained import read_weights

        return read_weights(self, self.config.origin)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Other precisions are for weights: rotary frequencies in bf16 would turn by half a radian after 300 tokens."""
        kept = [(module, name, buffer) for module in self.modules() for name, buffer in module.named_buffers(recurse=False)]
        super()._apply(fn, recurse)
        for module, name, before in kept:
            after = module.get_buffer(name)
            if name in module._non_persistent_buffers_set and after.dtype != before.dtype:
                module._buffers[name] = before.to(after.device)
        return self

    def _longest(self, inputs: Mapping[str, Tensor]) -> int:
        """Soft tokens of the image that has most of them in this batch."""
        if "image_size_BV2" in inputs:
            return max(self.patches(*size) for size in set(map(tuple, inputs["image_size_BV2"].flatten(0, 1).tolist())))
        return self.patches(*inputs["image_BVFHW3"].shape[3:5])

    def _positions3d(self, config: Ego3D) -> Positions3D:
        if any(pixels.fit != "stretch" for pixels in self._tower_pixels()):
            raise UserError("ego3d knows where a patch lies in an image that was stretched to the tower's square: set pixels.fit='stretch'")
        return config.build(*self._grid3d())

    def _placed(self, features_NPD: Tensor, images_N3HW: Tensor, pixels: Pixels, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features of the tower's grid, with what is known of where its patches lie. `images_N3HW`: as the tower takes them."""
        if self.ego3d is None:
            return features_NPD
        mean, std = (per_channel(each, images_N3HW.device) for each in (pixels.mean, pixels.std))
        return features_NPD + self.ego3d(inputs, images_N3HW.float() * std + mean, features_NPD.dtype)

    def _set_attention(self, wanted: str) -> None:
        """Chooses the implementation of the language model; vision keeps the library's choice."""
        from transformers.utils import is_flash_attn_2_available

        # Some versions of the library run Gemma 2 under sdpa all the same, and drop the cap in silence.
        capped = getattr(self.language.config, "attn_logit_softcapping", None) is not None
        plain = "sdpa" if self.language._supports_sdpa and not capped else "eager"
        flash = is_flash_attn_2_available()
        if wanted.startswith("flash") and not flash:
            raise UserError(f"{wanted} needs the flash-attn package and a GPU: install it, or choose attention='auto'")
        if wanted == "sdpa" and plain == "eager":
            raise UserError(f"{type(self.language).__name__} caps its attention scores, which sdpa cannot: choose eager or flex_attention")
        if wanted == "flex_attention":
            self.language._supports_flex_attn = True  # Qwen-VL does, and does not say so
        self._plain = plain if wanted == "auto" or wanted.startswith("flash") else wanted
        self._flash = ("flash_attention_2" if wanted == "auto" else wanted) if flash and wanted in ("auto", *IMPLEMENTATIONS[3:]) else None
        self.language.set_attn_implementation(self._flash or self._plain)
        if self._flash:
            dispatch(self._flash)

    def _mask(self, query: Tokens, key: Tokens) -> dict[str, Any]:
        """The mask as arguments of the language model."""
        form = flash_form(query, key) if self._flash and self._flash_runs(query.x_BSD) else None
        if form is None:
            return {"attention_mask": attention_mask(query, key, self._plain)}
        return {"attention_mask": form[0], "is_causal": form[1]}

    def _flash_runs(self, x_BSD: Tensor) -> bool:
        """Its kernels are for GPUs and half precision."""
        half = x_BSD.dtype in (torch.float16, torch.bfloat16)
        return x_BSD.is_cuda and (half or torch.is_autocast_enabled("cuda"))

    def _check_length(self, length: int) -> None:
        """One mask serves every layer: a window that would cut this sequence is not in it."""
        window = getattr(self.language.config, "sliding_window", None)
        if window and "sliding_attention" in (getattr(self.language.config, "layer_types", None) or ()) and length > window:
            raise SchemaError(
                f"{length} tokens are more than the {window} that this model's sliding layers see; use fewer or smaller images"
            )


def freeze_parts(backbone: LibraryBackbone, names: Sequence[str]) -> None:
    """No gradient for parts, or for parameters whose dotted name starts with a given one. Unknown names list the choices.

    A part is itself alone, also where the projector stands inside the tower.
    """
    projector = {id(p) for module in backbone.part("projector") for p in module.parameters()}
    for name in names:
        if name in PARTS:
            inside = {id(p) for module in backbone.part(name) for p in module.parameters()} - (projector if name == "vision" else set())
            chosen = [p for p in backbone.parameters() if id(p) in inside]
        else:
            chosen = [p for key, p in backbone.named_parameters() if f"{key}.".startswith(f"{name}.")]
        if not chosen and name != "head":
            raise UnknownName("part to freeze", name, PARTS, "Or the beginning of a parameter's name, such as language.layers.0.")
        for p in chosen:
            p.requires_grad_(False)


def _right_padded(rows: list[list], fill: Any) -> Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
