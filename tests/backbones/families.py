"""Tiny random configurations of the library's real classes, with tokenizers made here: nothing is fetched."""

from __future__ import annotations

from functools import cache

from vla.backbones.images import Pixels
from vla.backbones.library import LibraryConfig
from vla.backbones.paligemma import PaliGemma
from vla.backbones.prismatic import Prismatic
from vla.backbones.prompts import Prompt, pack_tokenizer
from vla.backbones.qwen_vl import CLIP_MEAN, CLIP_STD, IMAGE, Qwen3VL, Qwen25VL
from vla.backbones.smolvlm import SmolVLM

VOCABULARY = 320
SPECIAL = ("<pad>", "<s>", "</s>", "<bos>", "<eos>", "<image>", "<loc0001>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
SPECIAL += ("<|vision_end|>", "<|image_pad|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


@cache
def tokenizer_json() -> str:
    """Byte-level BPE, a few merges, and the special tokens of all families."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["open the door close it push"] * 3, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return made.to_str()


TOKENIZER = pack_tokenizer(tokenizer_json())
SHORT = {"tokenizer": TOKENIZER, "prompt": Prompt("<bos>{images}{instruction}\n")}
LLAMA = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0}
SIGLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
QWEN = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
QWEN_TOWER = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32}
QWEN_IDS = {"image_token_id": 291, "vision_start_token_id": 289, "vision_end_token_id": 290, "video_token_id": 300}
VIT = {"depth": 3, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


def paligemma(gemma: str = "gemma", **changes) -> PaliGemma:
    text = {**LLAMA, "model_type": gemma, "head_dim": 8, "num_key_value_heads": 1}
    if gemma == "gemma2":
        text |= {"sliding_window": 128, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    vision = {**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 32}
    library = {"model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": 32, "hidden_size": 32}
    return PaliGemma({**library, "image_token_index": 285, "vocab_size": VOCABULARY}, tokenizer=TOKENIZER, **changes)


def qwen25(**changes) -> Qwen25VL:
    vision = {**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1], "model_type": "qwen2_5_vl_vision"}
    library = {"model_type": "qwen2_5_vl", "text_config": {**QWEN, "model_type": "qwen2_5_vl_text"}, "vision_config": vision, **QWEN_IDS}
    pixels = Pixels(CLIP_MEAN, CLIP_STD, least_pixels=8 * 8, most_pixels=24 * 24)
    return Qwen25VL(library, **{**SHORT, "prompt": Prompt("{images}{instruction}\n", image=IMAGE), "pixels": pixels, **changes})


def qwen3(**changes) -> Qwen3VL:
    vision = {**QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1], "model_type": "qwen3_vl_vision"}
    text = {**QWEN, "model_type": "qwen3_vl_text", "head_dim": 8}
    library = {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, **QWEN_IDS}
    pixels = Pixels(least_pixels=8 * 8, most_pixels=24 * 24)
    return Qwen3VL(library, **{**SHORT, "prompt": Prompt("{images}{instruction}\n", image=IMAGE), "pixels": pixels, **changes})


def smolvlm(**changes) -> SmolVLM:
    vision = {**SIGLIP, "image_size": 32, "patch_size": 8, "model_type": "smolvlm_vision"}
    library = {"model_type": "smolvlm", "text_config": {**LLAMA, "model_type": "llama"}, "vision_config": vision, "scale_factor": 2}
    library |= {"image_token_id": 285, "pad_token_id": 0, "tie_word_embeddings": False}
    pixels = Pixels(filter="lanczos", longest=32)
    return SmolVLM(library, **{**SHORT, "prompt": Prompt("<|im_start|>User:{images}{instruction}"), "pixels": pixels, **changes})


def prismatic(towers: int = 2, **changes) -> Prismatic:
    names = ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"][:towers]
    library = {"model_type": "prismatic", "timm_model_ids": names, "image_sizes": [16, 16][:towers], "timm_overrides": [VIT, VIT][:towers]}
    prompt = Prompt("<s>{images}In: {instruction}?\nOut:", lower=True, append=(7,))
    return Prismatic({**library, "text_config": dict(LLAMA)}, **{**SHORT, "prompt": prompt, **changes})


def quick(*names: str) -> list:
    """All families, those that are not named in the slow tests alone."""
    import pytest

    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


FAMILIES: dict[str, LibraryConfig] = {
    "paligemma": paligemma(),
    "paligemma2": paligemma("gemma2"),
    "qwen2_5_vl": qwen25(),
    "qwen3_vl": qwen3(),
    "smolvlm": smolvlm(),
    "prismatic": prismatic(),
}
