"""Peak memory of `vla import openvla`, on a synthetic checkpoint of the published layout whose files are sparse (zeros that take no disk).

    python benchmarks/import_memory.py --layers 2 --width 1024 --json
    python benchmarks/import_memory.py --layers 2 --width 1024 --preset cogact_b --json   # the same folder by `vla import vlm`
    python benchmarks/import_memory.py --json            # OpenVLA-7B: 15 GB of disk for the result, which is removed again

The peak is of the importing process alone (`ru_maxrss`), libraries included; `above_libraries_mb` is what the import itself added.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILE_BYTES = 4 << 30
"""Of one shard, about."""


def main() -> None:
    """Writes a checkpoint of OpenVLA's names and shapes and imports it in a process of its own; prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096, help="of Llama, a multiple of 128")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--preset", default="", help="import it as a vision-language model with this fresh decoder instead")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--import-here", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.import_here:
        print(json.dumps(imported(*args.import_here, args.preset)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        source, out = Path(scratch) / "published", Path(scratch) / "ours"
        source_bytes = publish(source, args.width, args.layers)
        started = time.perf_counter()
        command = [sys.executable, __file__, "--preset", args.preset, "--import-here", str(source), str(out)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        found |= {"seconds": round(time.perf_counter() - started, 1), "width": args.width, "layers": args.layers}
        found |= {"source_mb": round(source_bytes / 1e6)}
    print(json.dumps(found) if args.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


def publish(folder: Path, width: int, layers: int) -> int:
    """Names and shapes of OpenVLA in bfloat16; bytes of all tensors."""
    import torch

    from vla.backbones.published import published
    from vla.torchvision_cpu import prepare_torchvision

    prepare_torchvision()
    import timm
    from transformers import LlamaConfig, LlamaForCausalLM

    text = {"model_type": "llama", "vocab_size": 32064, "hidden_size": width, "num_hidden_layers": layers, "pad_token_id": 32000}
    text |= {"intermediate_size": int(width * 2.6875), "num_attention_heads": width // 128, "num_key_value_heads": width // 128}
    library = published("openvla/openvla-7b").library
    with torch.device("meta"):
        modules = {"language_model": LlamaForCausalLM(LlamaConfig(**{k: v for k, v in text.items() if k != "model_type"}))}
        for name, tower in zip(("featurizer", "fused_featurizer"), library["timm_model_ids"], strict=True):
            modules[f"vision_backbone.{name}"] = timm.create_model(tower, num_classes=0, img_size=224)
    shapes = {f"{p}.{k}".replace(".gamma", ".scale_factor"): tuple(t.shape) for p, m in modules.items() for k, t in m.state_dict().items()}
    for name, (rows, columns) in {"fc1": (8704, 2176), "fc2": (width, 8704), "fc3": (width, width)}.items():
        shapes |= {f"projector.{name}.weight": (rows, columns), f"projector.{name}.bias": (rows,)}
    folder.mkdir()
    files: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(2 * math.prod(each) for each in files[-1].values()) > FILE_BYTES:
            files.append({})
        files[-1][name] = shape
    where = {}
    for index, part in enumerate(files):
        file = f"model-{index + 1:05}-of-{len(files):05}.safetensors"
        sparse(folder / file, part)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    numbers = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "min": [-2.0] * 7, "max": [2.0] * 7, "mask": [True] * 6 + [False]}
    config = {"model_type": "openvla", "vision_backbone_id": "dinosiglip-vit-so-224px", "image_sizes": [224, 224], "text_config": text}
    (folder / "config.json").write_text(json.dumps({**config, "norm_stats": {"bridge_orig": {"action": numbers}}}))
    vocabulary = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    pixels = {"means": [[0.485, 0.456, 0.406], [0.5] * 3], "stds": [[0.229, 0.224, 0.225], [0.5] * 3]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**pixels, "image_resize_strategy": "resize-naive"}))
    return sum(2 * math.prod(shape) for shape in shapes.values())


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros that are not written."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def imported(source: Path, out: Path, preset: str) -> dict[str, float]:
    """Peak memory of importing it here, beyond that of the libraries."""
    from vla.backbones.empty import build_empty
    from vla.backbones.published import published
    from vla.embodiment import load_embodiment
    from vla.interop.formats import import_checkpoint
    from vla.interop.source import Source

    build_empty(published("openvla/openvla-7b"))  # the libraries are loaded
    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = import_checkpoint("vlm" if preset else "openvla", Source(source, load_embodiment("widowx"), preset=preset), out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = (out / "model.safetensors").stat().st_size
    found = {"peak_mb": round(peak * 1024 / 1e6), "above_libraries_mb": round((peak - libraries) * 1024 / 1e6)}
    return {**found, "result_mb": round(size / 1e6), "tensors": report.taken, "left_out": sum(report.left.values())}


if __name__ == "__main__":
    main()
