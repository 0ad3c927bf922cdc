"""Hub ids and folders: the right family, by value, pinned; every refusal names its fix. A server on this machine plays the hub."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.backbones.families import FAMILIES, quick, tokenizer_json
from tests.parts import ROBOTS, contents, observation
from vla.backbones.adapters import LoRA
from vla.backbones.film import FiLM
from vla.backbones.library import Origin
from vla.backbones.paligemma import PaliGemma
from vla.backbones.parse import library_config, library_model
from vla.backbones.pretrained import FAMILIES as KNOWN
from vla.backbones.pretrained import from_pretrained
from vla.backbones.prismatic import Prismatic
from vla.backbones.smolvlm import SmolVLM
from vla.checkpoint import load_model, save_checkpoint
from vla.decoders.parallel import Parallel
from vla.errors import SchemaError, UnknownName, UserError

PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}
QWEN = {**PROCESSOR, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
PROCESSORS = {
    "paligemma": PROCESSOR,
    "paligemma2": PROCESSOR,
    "smolvlm": {**PROCESSOR, "resample": 1, "size": {"longest_edge": 32}},
    "qwen2_5_vl": {**QWEN, "min_pixels": 64, "max_pixels": 576},
    "qwen3_vl": {**PROCESSOR, "size": {"shortest_edge": 64, "longest_edge": 576}},
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def states(backbone) -> torch.Tensor:
    tokens = backbone.embed(backbone.collate([observation(ROBOTS[0], np.random.default_rng(0), side=32)]))
    return backbone(tokens).x_BSD


def published(name: str, folder: Path) -> Path:
    """A folder as `save_pretrained` of the library leaves it, with tokenizer and image processor."""
    torch.manual_seed(0)
    config = FAMILIES[name]
    if name == "prismatic":
        return published_prismatic(folder)
    library_model(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    return folder


def published_prismatic(folder: Path) -> Path:
    """OpenVLA's layout: uncut towers, `scale_factor`, a Llama with its head."""
    import timm
    from transformers import LlamaForCausalLM

    config = FAMILIES["prismatic"]
    library = config.library
    folder.mkdir(exist_ok=True)
    weights = {f"projector.{key}": t for key, t in config.build().projector.state_dict().items()}
    llama = LlamaForCausalLM(library_config({"model_type": "llama", **library["text_config"]}))
    weights |= {f"language_model.{key}": t for key, t in llama.state_dict().items()}
    for attribute, name, sizes in zip(
        ("featurizer", "fused_featurizer"), library["timm_model_ids"], library["timm_overrides"], strict=True
    ):
        tower = timm.create_model(name, num_classes=0, img_size=16, **sizes)
        renamed = {key.replace(".gamma", ".scale_factor"): t for key, t in tower.state_dict().items()}
        weights |= {f"vision_backbone.{attribute}.{key}": t for key, t in renamed.items()}
    save_file({key: t.contiguous().clone() for key, t in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**library, "model_type": "openvla", "auto_map": {"AutoConfig": "evil.OpenVLAConfig"}}))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    three = {
        "means": [[0.485, 0.456, 0.406], [0.5] * 3],
        "stds": [[0.229, 0.224, 0.225], [0.5] * 3],
        "image_resize_strategy": "resize-naive",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(three))
    return folder


@torch.no_grad()
@pytest.mark.parametrize("name", quick("paligemma2", "qwen2_5_vl", "prismatic"))
def test_a_folder_of_the_library_becomes_a_backbone(name, tmp_path):
    folder = published(name, tmp_path / "published")
    config = from_pretrained(str(folder), prompt=FAMILIES[name].prompt)
    want = FAMILIES[name]
    assert type(config) is type(want) and config.tokenizer == want.tokenizer and config.origin == Origin(str(folder))
    assert config.pixels == want.pixels
    backbone = config.build().eval()
    assert "tensors" in backbone.load_pretrained()[0]
    if name == "prismatic":
        theirs = load_file(folder / "model.safetensors")
        assert torch.equal(backbone.language.layers[1].mlp.up_proj.weight, theirs["language_model.model.layers.1.mlp.up_proj.weight"])
        gamma = backbone.vision.featurizer.blocks[0].ls1.gamma
        assert torch.equal(gamma, theirs["vision_backbone.featurizer.blocks.0.ls1.scale_factor"])
        assert "tensors" in replace(config, film=FiLM()).build().load_pretrained()[0]  # whose maps are new
        return
    torch.manual_seed(0)
    plain = want.build().eval()
    whole = library_model(want)
    whole = type(whole).from_pretrained(folder)
    for part, attribute in backbone.library_parts.items():
        getattr(plain, part).load_state_dict(getattr(whole, attribute).state_dict())
    torch.testing.assert_close(states(backbone), states(plain), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("how", ["whole", "in memory"])
@pytest.mark.parametrize("name", [name for name in quick("paligemma2", "qwen2_5_vl", "prismatic") if name != "prismatic"])
def test_weights_are_found_under_any_name_that_the_library_gives_them(name, how, tmp_path):
    """`save_pretrained` of the model with its head, which may rename; and a file of `state_dict`, as trainers gather it."""
    import transformers

    config, folder = FAMILIES[name], published(name, tmp_path / "published")
    whole = getattr(transformers, config.library_class.replace("Model", "ForConditionalGeneration"))(library_config(config.library))
    whole.save_pretrained(folder)
    if how == "in memory":
        save_file({key: t.clone() for key, t in whole.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = from_pretrained(str(folder), prompt=config.prompt).build()
    backbone.load_pretrained()
    for part, attribute in backbone.library_parts.items():
        theirs = getattr(whole.model, attribute).state_dict()
        mine = getattr(backbone, part).state_dict()
        assert theirs and all(torch.equal(mine[key], tensor) for key, tensor in theirs.items() if key in mine) and set(mine) <= set(theirs)


@torch.no_grad()
def test_pretrained_weights_go_under_adapters_and_into_empty_models(tmp_path):
    from vla.backbones.empty import build_empty

    folder = published("smolvlm", tmp_path / "published")
    config = from_pretrained(str(folder), prompt=FAMILIES["smolvlm"].prompt)
    plain, adapted, empty = config.build().eval(), replace(config, lora=LoRA(rank=2)).build().eval(), build_empty(config).eval()
    for backbone in (plain, adapted, empty):
        backbone.load_pretrained()
    torch.testing.assert_close(states(adapted), states(plain))
    torch.testing.assert_close(states(empty), states(plain))


def test_a_checkpoint_of_ours_needs_neither_hub_nor_folder(tmp_path):
    folder = published("qwen3_vl", tmp_path / "published")
    config = from_pretrained(str(folder), prompt=FAMILIES["qwen3_vl"].prompt)
    made = contents(Parallel(), backbone=config)
    model = made.build().eval()
    model.backbone.load_pretrained()
    save_checkpoint(tmp_path / "ours", made, model.state_dict())
    shutil.rmtree(folder)
    found, loaded = load_model(tmp_path / "ours")
    assert found.model == made.model
    with torch.no_grad():
        torch.testing.assert_close(states(loaded.backbone), states(model.backbone), atol=0, rtol=0)


def test_another_family_an_unknown_one_and_no_model_are_named(tmp_path):
    folder = published("smolvlm", tmp_path / "smol")
    with pytest.raises(UserError, match="is a 'smolvlm' model: load it by SmolVLM.from_pretrained, not PaliGemma's"):
        PaliGemma.from_pretrained(str(folder))
    assert isinstance(SmolVLM.from_pretrained(str(folder)), SmolVLM)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(
        UnknownName, match="unknown backbone family 'llava'. Choices: openvla, paligemma, prismatic, qwen2_5_vl, qwen3_vl, smolvlm"
    ):
        from_pretrained(str(folder))
    assert set(KNOWN) == {"openvla", "paligemma", "prismatic", "qwen2_5_vl", "qwen3_vl", "smolvlm"}
    with pytest.raises(UserError, match="neither a folder here nor a hub id"):
        from_pretrained("no such folder")
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text(json.dumps(FAMILIES["smolvlm"].library))
    with pytest.raises(UserError, match="has no tokenizer.json; files there: config.json"):
        from_pretrained(str(folder))


def test_weights_of_another_shape_or_model_and_pickles_are_refused(tmp_path):
    folder = published("smolvlm", tmp_path / "smol")
    config = from_pretrained(str(folder))
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))
    save_file({**weights, key: torch.zeros(3, 3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SchemaError, match=r"layers.1.mlp.up_proj.weight' has the shape \(3, 3\), not \(48, 32\)"):
        config.build().load_pretrained()
    save_file({k: t for k, t in weights.items() if k != key}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SchemaError, match="weights of another model. Missing: .*layers.1.mlp.up_proj.weight"):
        config.build().load_pretrained()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*.safetensors"):
        config.build().load_pretrained()
    folder = published("prismatic", tmp_path / "prismatic")
    config = Prismatic.from_pretrained(str(folder))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "projector.fc1.bias": torch.zeros(3), "strange": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(SchemaError, match=r"'projector.fc1.bias' has the shape \(3,\)"):
        config.build().load_pretrained()
    save_file({**weights, "strange": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(SchemaError, match=r"left over: \['strange'\]"):
        config.build().load_pretrained()


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: acme/gated is gated, acme/model is the server's folder, and there is nothing else."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        folder = self.server.folder
        if "acme/gated" in self.path:
            return self._send(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"}, b"")
        if folder is None or "acme/model" not in self.path:
            return self._send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"")
        if self.path.startswith("/api/"):
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            tree = [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in sizes.items()]
            repository = {"id": "acme/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in sizes]}
            info = tree if "/tree/" in self.path else repository
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode() if body else b"")
        data = (folder / self.path.split("/")[-1].split("?")[0]).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        return self._send(200, headers, data, with_body=body)

    def _send(self, status: int, headers: dict[str, str], data: bytes, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.folder = None
    Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.constants

    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()


@torch.no_grad()
def test_a_pinned_hub_id_becomes_a_backbone(hub, tmp_path):
    """Configuration, tokenizer and weights over the hub's own protocol; afterwards, the cache serves without it."""
    hub.folder = published("smolvlm", tmp_path / "published")
    (hub.folder / "modeling_evil.py").write_text("raise SystemExit")
    config = from_pretrained("acme/model", revision=COMMIT, prompt=FAMILIES["smolvlm"].prompt)
    assert config.origin == Origin("acme/model", COMMIT)
    one, two = config.build().eval(), SmolVLM.from_pretrained(str(hub.folder), prompt=FAMILIES["smolvlm"].prompt).build().eval()
    assert one.load_pretrained() == [f"backbone from acme/model at {COMMIT[:8]}: {len(one.state_dict())} tensors"]
    two.load_pretrained()
    torch.testing.assert_close(states(one), states(two), atol=0, rtol=0)
    cached = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink() or path.suffix in (".py", ".json"))
    assert "modeling_evil.py" not in cached and "config.json" in cached


def test_hub_ids_must_be_pinned_and_gates_name_their_key(hub, monkeypatch):
    with pytest.raises(UserError, match="acme/model: a hub id without a pinned revision.*40 hexadecimal digits"):
        from_pretrained("acme/model")
    with pytest.raises(UserError, match="pinned revision"):
        from_pretrained("acme/model", revision="main")
    with pytest.raises(
        UserError, match=r"acme/gated is gated: accept its licence at https://huggingface.co/acme/gated, then `hf auth login`"
    ):
        from_pretrained("acme/gated", revision=COMMIT)
    config = replace(FAMILIES["smolvlm"], origin=Origin("acme/gated", COMMIT))
    with pytest.raises(UserError, match="acme/gated is gated"):
        config.build().load_pretrained()
    with pytest.raises(UserError, match="pinned revision"):
        replace(config, origin=Origin("acme/gated")).build().load_pretrained()
    with pytest.raises(UserError, match="no model 'acme/absent' on the hub"):
        from_pretrained("acme/absent", revision=COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub cannot be reached"):
        from_pretrained("acme/model", revision=COMMIT)
