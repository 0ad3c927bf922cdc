"""Random checkpoints in the exact layouts that other projects publish, at small sizes: names, shapes, files. And a robot for them."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.backbones.families import TOKENIZER, tokenizer_json
from vla.backbones.prompts import unpack_tokenizer
from vla.embodiment import Embodiment, Field, Space
from vla.torchvision_cpu import prepare_torchvision
from vla.types import Observation

WORDS, WIDTH, EMPTY_PIECE = 32000, 32, 29871
STATISTICS = {
    "action": {
        "mean": [0.0] * 7,
        "std": [0.1] * 7,
        "min": [-0.2, -0.3, -0.1, -0.5, 0.1, -0.6, 0.0],
        "max": [0.3, 0.2, 0.4, 0.5, 0.1, 0.5, 1.0],
        "q01": [-0.1, -0.2, -0.05, -0.3, 0.1, -0.4, 0.0],
        "q99": [0.12, 0.1, 0.25, 0.3, 0.1, 0.4, 1.0],
        "mask": [True] * 6 + [False],
    },
    "num_transitions": 100,
    "num_trajectories": 5,
}


def robot(cameras: tuple[str, ...] = ("third_person",), action: int = 7, state: int = 8, frame: str = "step") -> Embodiment:
    """An arm whose limits hide nothing."""
    fields = (Field("move", action - 1, "command", frame), Field("gripper", 1, "open01"))
    return Embodiment(
        name="arm",
        cameras=cameras,
        state=Space((Field("move", action - 1, "command"), Field("more", state - action + 1, "rad"))),
        command=Space(fields),
        action=Space(fields),
        rate_hz=Fraction(5),
        horizon=3,
        limits=((-9.0, 9.0),) * action,
    )


def observation(of: Embodiment, seed: int = 0, side: int = 16, text: str = "open the door") -> Observation:
    rng = np.random.default_rng(seed)
    images = {role: rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8) for role in of.cameras}
    return Observation(images, rng.uniform(-0.5, 0.5, (1, of.state.size)), text, of.name)


def randomise(tensors: dict[str, Tensor], seed: int = 0, std: float = 0.1) -> dict[str, Tensor]:
    """Norms and LayerScale about 1, the rest normal, so that nothing agrees by being small."""
    draw = torch.Generator().manual_seed(seed)
    about_one = ("norm", "gamma", "scale_factor", "ln")
    return {
        name: torch.randn(t.shape, generator=draw) * std + (1.0 if any(part in name for part in about_one) and t.dim() == 1 else 0.0)
        for name, t in tensors.items()
    }


def shard(folder: Path, tensors: dict[str, Tensor], files: int = 2) -> None:
    """`model-0000i-of-0000n.safetensors` and their index."""
    where, names = {}, sorted(tensors)
    per = math.ceil(len(names) / files)
    for index in range(files):
        file = f"model-{index + 1:05}-of-{files:05}.safetensors"
        part = names[index * per : (index + 1) * per]
        save_file({name: tensors[name].contiguous().clone() for name in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))


VIT = {"depth": 3, "embed_dim": 64, "num_heads": 1, "patch_size": 8}
SIGLIP_VIT = {"depth": 4, "embed_dim": 72, "num_heads": 1, "patch_size": 8}
TOWERS = (("featurizer", "vit_large_patch14_reg4_dinov2.lvd142m", VIT), ("fused_featurizer", "vit_so400m_patch14_siglip_224", SIGLIP_VIT))


def towers() -> dict[str, torch.nn.Module]:
    """Whole, as they are published; only what a policy reads is cut from them."""
    prepare_torchvision()
    import timm

    return {name: timm.create_model(timm_name, num_classes=0, img_size=16, **size).eval() for name, timm_name, size in TOWERS}


def llama(vocabulary: int, width: int = WIDTH, heads: int = 2, **changes):
    prepare_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=512, pad_token_id=0, **sizes, **changes)).eval()


def projector(width: int) -> dict[str, Tensor]:
    first, vision = 4 * 136, 136
    shapes = {"fc1": (first, vision), "fc2": (width, first), "fc3": (width, width)}
    return {
        f"{name}.{kind}": torch.empty(shape if kind == "weight" else shape[:1])
        for name, shape in shapes.items()
        for kind in ("weight", "bias")
    }


def openvla(folder: Path, files: int = 2, codes: int = 256) -> dict[str, Tensor]:
    """OpenVLA's Hugging Face layout. Returns the tensors."""
    folder.mkdir()
    vocabulary = WORDS + 64
    tensors = {f"projector.{name}": t for name, t in projector(WIDTH).items()}
    tensors |= {f"language_model.{name}": t for name, t in llama(vocabulary).state_dict().items()}
    for name, tower in towers().items():
        tensors |= {f"vision_backbone.{name}.{key.replace('.gamma', '.scale_factor')}": t for key, t in tower.state_dict().items()}
    tensors = randomise(tensors)
    shard(folder, tensors, files)
    text = {"model_type": "llama", "vocab_size": vocabulary, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0}
    config = {
        "model_type": "openvla",
        "timm_model_ids": [timm_name for _, timm_name, _ in TOWERS],
        "timm_overrides": [size for *_, size in TOWERS],
        "image_sizes": [16, 16],
        "pad_to_multiple_of": 64,
        "n_action_bins": codes,
        "text_config": text,
        "norm_stats": {"bridge_orig": STATISTICS, "fractal": STATISTICS},
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    pixels = {"means": [[0.485, 0.456, 0.406], [0.5] * 3], "stds": [[0.229, 0.224, 0.225], [0.5] * 3]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**pixels, "image_resize_strategy": "resize-naive"}))
    return tensors


def say_also(folder: Path, words: tuple[str, ...]) -> None:
    """Puts special words behind the tokenizer's 32,000, as fine-tuning adds them: `<PAD>`, then these."""
    from tokenizers import AddedToken, Tokenizer

    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary |= {row["content"]: row["id"] for row in data["added_tokens"]}  # an added word keeps its id if the model knows it
    vocabulary |= {f"~{i}~": i for i in set(range(WORDS)) - set(vocabulary.values())}
    made = Tokenizer.from_str(json.dumps(data))
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in ("<PAD>", *words)])
    assert made.token_to_id(words[0]) == WORDS + 1
    (folder / "tokenizer.json").write_text(made.to_str())


def ids_of(text: str) -> list[int]:
    return unpack_tokenizer(TOKENIZER).encode(text, add_special_tokens=False).ids
