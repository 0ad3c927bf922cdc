"""LAPO, LAPA, UniVLA and villa-X as recipes: their tiny variants train, report and label through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vla.cli import main
from vla.data.latents import read_latents
from vla.data.reader import Dataset
from vla.latent_action.checkpoint import load_latent
from vla.latent_action.label import label_hash
from vla.latent_action.moving_distractor import write_moving_distractor
from vla.train.run import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_moving_distractor(root / "video", 8, seed=0, labelled=True)
    return root


def train(recipe: str, data: Path, out: Path, *more: str) -> int:
    return main(["train", str(ROOT / "pretrain" / recipe), "--data-root", str(data), "--out", str(out), *more])


@pytest.mark.parametrize(
    "preset", [pytest.param("lapo", marks=pytest.mark.thorough), "lapa", pytest.param("villa_x", marks=pytest.mark.thorough)]
)
def test_a_preset_trains_reports_and_labels(preset, data, tmp_path, capsys):
    out = tmp_path / preset
    assert train(f"{preset}.py:tiny", data, out, "--steps", "20") == 0
    model = load_latent(out)
    health = json.loads((out / "health.json").read_text())
    source = health["sources"]["video"]
    assert 0 < health["perplexity_share"] <= 1 and len(source["probe_r2"]["displacement/place"]) == 2
    assert np.array(source["count"]).shape == (model.codes, model.vocabulary) and source["without_code"] == 0
    assert Image.open(out / "codes.png").size[0] == 13 * 66
    capsys.readouterr()
    assert main(["label", str(out), str(data / "video"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    video = Dataset.open(data / "video")
    assert answer["latents"] == label_hash(model) and read_latents(video, label_hash(model)).min() >= 0
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["prediction"] < 1 and ("proprio" in rows[-1]) == (preset == "villa_x")


@pytest.mark.thorough
def test_two_stages(data, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train("univla.py:tiny1", data, first, "--steps", "20") == 0
    assert train("univla.py:tiny2", data, second, "--steps", "20") == 2
    assert "--init" in capsys.readouterr().err
    assert train("univla.py:tiny1", data, second, "--init", str(first)) == 2
    assert train("univla.py:tiny2", data, second, "--steps", "20", "--init", str(first)) == 0
    one, two = load_latent(first), load_latent(second)
    assert two.first is not None
    frozen, trained = two.first.state_dict(), one.state_dict()
    assert frozen and all(torch.equal(tensor, trained[name]) for name, tensor in frozen.items())
    assert not any(name.startswith(("decoder", "language")) for name in frozen)
    assert main(["label", str(second), str(data / "video")]) == 0


def test_another_first_stage_is_refused(data, tmp_path, capsys):
    assert train("lapo.py:tiny", data, tmp_path / "lapo", "--steps", "5") == 0
    assert train("univla.py:tiny2", data, tmp_path / "second", "--init", str(tmp_path / "lapo")) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_run_for_a_gpu_says_so_without_one(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train("lapa.py", data, tmp_path / "out") == 2
    assert "tiny variant" in capsys.readouterr().err


def test_sizes_are_the_published_ones():
    lapa, univla, villa, lapo = (load_recipe(ROOT / f"pretrain/{name}.py").model for name in ("lapa", "univla", "villa_x", "lapo"))
    assert (lapa.features.size, lapa.encoder.patch, lapa.quantizer.codes, lapa.quantizer.vocabulary) == (256, 32, 4, 8)
    assert lapa.quantizer.width == 32 and lapa.gap_s == (30 / 12, 30 / 12)
    assert (univla.quantizer.codes, univla.quantizer.vocabulary, univla.quantizer.width) == (4, 16, 128)
    assert univla.first_stage.quantizer == univla.quantizer and univla.first_stage.language is not None
    assert (villa.quantizer.codes, villa.quantizer.vocabulary, villa.quantizer.width) == (4, 32, 128)
    assert len(villa.history_s) + 2 == 8 and [row[0] for row in villa.proprio.robots] == ["metaworld_sawyer", "fetch"]
    assert (lapo.quantizer.codes, lapo.quantizer.vocabulary, lapo.quantizer.width) == (4, 64, 16)
