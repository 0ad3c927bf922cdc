from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.latent_action.dots import CONFIG, ROBOT, write_dots
from vla.data.reader import Dataset
from vla.errors import Damaged, UserError
from vla.latent_action.checkpoint import load_latent
from vla.latent_action.health import Collapsed, Usage, check_collapse
from vla.latent_action.label import encode_dataset
from vla.latent_action.probe import probe
from vla.latent_action.proprio import Proprio
from vla.latent_action.train import frame_pairs, train_latent


def test_codes_mean_the_true_action(dots, trained):
    model, _ = trained
    labelled = Dataset.open(dots[0])  # episodes that the model has not seen
    code_XN, bad = encode_dataset(labelled, model, 0.2)
    r2 = probe(labelled, code_XN, model.vocabulary, 0.2)
    assert bad == 0 and set(r2) == {"displacement/place", "action/move"}
    assert r2["displacement/place"].min() > 0.7 and r2["action/move"].min() > 0.7
    shuffled = np.random.default_rng(0).permutation(code_XN)
    assert probe(labelled, shuffled, model.vocabulary, 0.2)["action/move"].max() < 0.1
    assert Usage.of(code_XN, model.vocabulary).perplexity_share > 0.6


def test_same_seed_same_weights(dots):
    models = [train_latent(CONFIG, frame_pairs(CONFIG, [dots[1]]).samples, steps=5, batch=8, seed=s) for s in (3, 3, 4)]
    assert models[0].hash() == models[1].hash() != models[2].hash()


def test_a_part_that_no_sample_has_is_left_out_of_the_log(dots, tmp_path):
    config = replace(CONFIG, proprio=Proprio(((ROBOT.name, 2, 2, 10.0),), width=16))
    train_latent(config, frame_pairs(config, [dots[1]]).samples, steps=2, batch=4, log_every=1, out=tmp_path / "run")

    def refuse(what):
        raise AssertionError(f"{what} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all("prediction" in row and "proprio" not in row for row in rows)


def test_ambient_randomness_is_left_alone(dots):
    before = torch.get_rng_state()
    train_latent(CONFIG, frame_pairs(CONFIG, [dots[1]]).samples, steps=2, batch=4)
    assert torch.equal(before, torch.get_rng_state())


def test_still_video_stops_the_run(tmp_path):
    still = write_dots(tmp_path / "still", episodes=6, labelled=False, still=True)
    with pytest.raises(Collapsed, match=r"step \d+: the codes have collapsed.*hardly differ.*gap_s"):
        train_latent(CONFIG, frame_pairs(CONFIG, [still]).samples, steps=20, batch=16, log_every=5, out=tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_diagnosis_names_the_cause():
    collapsed = Usage(np.array([[90.0, 10, 0, 0], [100, 0, 0, 0]]))
    check_collapse(Usage(np.full((2, 4), 5.0)), 0.5, 1.0, 1e-4, 0.5)
    cases = {"hardly differ": (0.5, 0.0), "no better than no change": (0.99, 1.0), "a few entries are enough": (0.4, 1.0)}
    for words, (unexplained, change) in cases.items():
        with pytest.raises(Collapsed, match=words):
            check_collapse(collapsed, unexplained, change, 1e-4, 0.5)


def test_usage():
    even = Usage.of(np.stack([np.arange(8) % 4, np.zeros(8, int)], axis=1), 4)
    np.testing.assert_allclose(even.perplexity_N, [4, 1])
    assert even.perplexity_share == pytest.approx(5 / 8) and even.dead_share == pytest.approx(3 / 8)
    assert (even + even).perplexity_share == pytest.approx(5 / 8)
    assert Usage.of(np.array([[1, 2], [-1, -1]]), 4).count_NK.sum() == 2


def test_log_and_checkpoint(trained):
    model, out = trained
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(25, 151, 25))
    assert rows[-1]["prediction"] < 0.6 * rows[0]["prediction"]
    assert {"loss", "commitment", "perplexity_share", "dead_share", "gradient_norm", "seconds"} <= set(rows[0])
    again = load_latent(out / "model")
    assert again.hash() == model.hash() and again.config == model.config and not again.training


def test_damaged_and_foreign_checkpoints(trained, tmp_path):
    copy = shutil.copytree(trained[1] / "model", tmp_path / "model")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(Damaged, match="model.safetensors"):
        load_latent(copy)
    with pytest.raises(UserError, match="no checkpoint"):
        load_latent(tmp_path / "nothing")


def test_settings_are_checked(dots):
    with pytest.raises(UserError, match="at least"):
        train_latent(CONFIG, frame_pairs(CONFIG, [dots[1]]).samples, steps=0)
    wrong = replace(CONFIG, camera="wrist")
    with pytest.raises(UserError, match="wrist"):
        train_latent(wrong, frame_pairs(CONFIG, [dots[1]]).samples, steps=1, batch=4)
