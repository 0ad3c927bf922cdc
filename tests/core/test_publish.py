"""A checkpoint that is handed on: golden actions, the model card, the hub's conventions, adapters merged, and what `vla check` says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from tests.parts import DECODERS, ROBOTS, TINY, contents, observation
from tests.repo.blocks import blocks, mistakes
from vla.audit import check_checkpoint
from vla.backbones.adapters import LoRA
from vla.checkpoint import load_model, save_checkpoint, sha256
from vla.cli import main
from vla.errors import Damaged, UserError
from vla.golden import GOLDEN
from vla.policy import Policy
from vla.publish import Publishing, publish

RUN = {
    "name": "tidy",
    "step": 7,
    "mixture": "tidy.yaml",
    "data": {"val_fraction": 0.02},
    "sources": [
        {"name": "shelf", "robot": "wide", "share": 1.0, "episodes": 12, "hours": 0.5, "supervision": "actions", "licence": "CC-BY-4.0"}
    ],
}


def made(folder: Path, decoder="parallel", **changes) -> Path:
    """A run of one step, with the training state that is not handed on."""
    torch.manual_seed(0)
    holds = replace(contents(DECODERS[decoder]), run=RUN, **changes)
    model = holds.build()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # it starts at zero: no change yet
            torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(folder / "checkpoints" / "000007" / "pretrained_model", holds, model.state_dict())
    (folder / "checkpoints" / "000007" / "training_state").mkdir()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """As the command writes it, with a score."""
    out = tmp_path_factory.mktemp("exported")
    acting = run / "checkpoints" / "000007" / "pretrained_model"
    rate = {"successes": 8, "episodes": 10, "rate": 0.8, "low": 0.49, "high": 0.94}
    score = {"kind": "evaluation", "suite": "shelves", "command": "vla eval made --suite shelves", "success": rate, "tasks": {"tidy": rate}}
    (out / "score.json").write_text(json.dumps({**score, "policy": {"name": "made", "manifest_sha256": sha256(acting / "manifest.json")}}))
    said = ["--licence", "apache-2.0", "--scores", str(out / "score.json"), "--max-shard-size", "40KB"]
    assert main(["export", "checkpoint", str(run), str(out / "tidy"), *said]) == 0
    return out / "tidy"


def test_what_is_handed_on_acts_and_has_nothing_of_training(run, exported):
    names = {path.name for path in exported.iterdir()}
    assert {"README.md", "config.json", "golden.json", "manifest.json", "model.safetensors.index.json"} <= names
    assert not any("training" in name or "state" in name for name in names)
    seen = observation(ROBOTS[1], np.random.default_rng(0))
    before, after = (Policy.load(folder).act_batch([seen], [3])[0].action_TA for folder in (run, exported))
    np.testing.assert_array_equal(before, after)


def test_the_card_says_robots_data_limits_scores_and_its_code_is_true(exported, tmp_path):
    text = (exported / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0" and head["library_name"] == "vla" and head["pipeline_tag"] == "robotics"
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.8
    for line in (
        "| shelf | wide | 100.0% | 12 | 0.50 | actions | CC-BY-4.0 |",
        "| shelves | tidy | 8/10 | 80.0% | 49.0% – 94.0% |",
        "| command | move | 5 | command | step | step | -1 .. 1 |",
        "| step | 7 |",
    ):
        assert line in text, line
    assert not mistakes(blocks(Path("card.md"), text), tmp_path)
    (exported / "README.md").write_text(text + "\nA note.\n")  # people edit cards: the manifest leaves them out
    assert Policy.load(exported, verify=True)
    (exported / "README.md").write_text(text)


def test_a_score_of_another_checkpoint_is_refused(run, exported, tmp_path):
    with pytest.raises(UserError, match="is a score of made, not of"):
        publish(exported, tmp_path / "out", Publishing(scores=(exported.parent / "score.json",)))
    with pytest.raises(UserError, match="exists; remove it"):
        publish(run, exported)


def test_golden_actions_see_what_a_manifest_cannot(exported, tmp_path):
    folder = tmp_path / "copy"
    holds, model = load_model(exported)
    golden = {GOLDEN: (exported / GOLDEN).read_text()}
    save_checkpoint(folder, holds, model.state_dict(), beside=golden)
    assert not findings(folder, verify=True)
    stretched = replace(holds.normalizers["wide"].action, offset=(0.0,) * 5, scale=(1.1,) * 5)
    wrong = replace(holds, normalizers={**holds.normalizers, "wide": replace(holds.normalizers["wide"], action=stretched)})
    save_checkpoint(folder, wrong, model.state_dict(), beside=golden)  # every byte as its manifest says, and 10% off
    with pytest.raises(Damaged, match="does not act as it did .* wide, seed 1: actions moved by .* of their range"):
        Policy.load(folder, verify=True)
    assert main(["check", str(folder)]) == 0 and main(["check", str(folder), "--verify"]) == 1


def findings(folder: Path, verify: bool = False) -> list[dict]:
    return [finding.to_json() for finding in check_checkpoint(folder, verify).findings]


def test_golden_actions_do_not_depend_on_the_policys_seed(exported):
    assert Policy.load(exported, seed=5, verify=True).seed == 5


@pytest.mark.parametrize("decoder", ["flow", "tokens"])
def test_decoders_that_draw_noise_are_golden_too(tmp_path, decoder):
    policy = Policy.load(made(tmp_path / "run", decoder))
    folder = policy.save_pretrained(tmp_path / "saved")
    assert Policy.from_pretrained(folder, verify=True)


def test_check_says_what_a_checkpoint_is_and_what_is_wrong_with_it(run, tmp_path, capsys):
    assert main(["check", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["facts"]["robots"] == ["narrow (10 Hz, third_person/wrist)", "wide (10 Hz, third_person/wrist)"]
    assert report["facts"]["step"] == 7 and report["facts"]["stored as"] == ["F32"] and report["counts"] == {"golden": 1}
    holds, model = load_model(run)
    weights = dict(model.state_dict())
    weights["decoder.query_TD"] = torch.full_like(weights["decoder.query_TD"], float("nan"))
    del weights["decoder.out.bias_EO"]
    silent = replace(holds, embodiments=(holds.embodiments[0], replace(holds.embodiments[1], limits=None)))
    found = findings(save_checkpoint(tmp_path / "bad", silent, weights), verify=True)
    assert [row["kind"] for row in found] == ["limits", "weights", "weights", "golden"]
    assert "decoder.out.bias_EO" in found[1]["detail"] and found[2]["where"] == "decoder.query_TD"
    other = replace(holds, normalizers={"narrow": holds.normalizers["narrow"]})
    assert "there are some for narrow" in findings(save_checkpoint(tmp_path / "other", other, model.state_dict()))[0]["detail"]
    assert main(["check", str(tmp_path / "other")]) == 1


class FakeHub:
    """What `push_to_hub` asks of `huggingface_hub.HfApi`, on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []

    def create_repo(self, repo_id, **how):
        self.asked.append((repo_id, how))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **how):
        shutil.copytree(folder_path, self.folder / repo_id)
        return SimpleNamespace(oid="c0ffee" * 6 + "cafe")


def test_to_the_hub_and_back(exported, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path)
    commit = Policy.load(exported).push_to_hub("me/tidy", private=True, api=hub)
    assert hub.asked == [("me/tidy", {"repo_type": "model", "private": True, "exist_ok": True})] and len(commit) == 40

    def download(repo_id, revision, allow_patterns):
        assert revision == commit and "*.safetensors" in allow_patterns
        return str(tmp_path / repo_id)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path / "me")
    assert Policy.from_pretrained("me/tidy", revision=commit, verify=True).contents.run["name"] == "tidy"
    with pytest.raises(UserError, match="without a pinned revision may change under you"):
        Policy.from_pretrained("me/tidy")
    with pytest.raises(UserError, match="neither a folder here nor a hub id"):
        Policy.from_pretrained("nowhere")
    with pytest.raises(UserError, match="give owner/name"):
        Policy.load(exported).push_to_hub("tidy", api=hub)


def test_adapters_are_merged_only_where_nothing_moves(tmp_path, monkeypatch):
    adapted = replace(TINY, lora=LoRA(rank=2, parts=("language",)))
    run = made(tmp_path / "run", model=replace(contents(DECODERS["parallel"]).model, backbone=adapted))
    plain = publish(run, tmp_path / "merged", Publishing(merge_adapters=True))
    assert plain.contents.model.backbone == TINY and not any("lora" in name for name in plain.model.state_dict())
    rows = [observation(of, np.random.default_rng(0)) for of in ROBOTS]
    before, after = (policy.act_batch(rows, [1, 2]) for policy in (Policy.load(run), plain))
    for was, now in zip(before, after, strict=True):
        np.testing.assert_allclose(was.action_TA, now.action_TA, atol=1e-4)
    with torch.no_grad():  # the adapters do something: without them it acts otherwise
        bare = Policy.load(run)
        for name, parameter in bare.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert np.abs(bare.act_batch(rows, [1, 2])[1].action_TA - before[1].action_TA).max() > 1e-3
    import vla.backbones.adapters as adapters

    honest = adapters._merged_weights
    monkeypatch.setattr(
        adapters, "_merged_weights", lambda b: {n: t * 1.01 if n.endswith("up.weight") else t for n, t in honest(b).items()}
    )
    with pytest.raises(UserError, match="merging moved the outputs by .* the adapters stay apart"):
        publish(run, tmp_path / "drifted", Publishing(merge_adapters=True))
    assert not (tmp_path / "drifted").exists()


def test_weights_may_be_stored_in_half_the_bytes(run, tmp_path):
    half = publish(run, tmp_path / "half", Publishing(dtype="bf16"))
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * sum(t.nbytes for t in half.model.state_dict().values())
    with pytest.raises(UserError, match="unknown dtype 'fp8'"):
        publish(run, tmp_path / "other", Publishing(dtype="fp8"))


ALONE = """
import sys
sys.modules["deepspeed"] = sys.modules["peft"] = sys.modules["accelerate"] = None  # importing them fails
import numpy as np
from vla.policy import Policy
from vla.types import Observation
policy = Policy.from_pretrained(sys.argv[1], verify=True)
robot = policy.contents.embodiments[0]
images = {role: np.zeros((2, 16, 16, 3), np.uint8) for role in robot.cameras}
chunk = policy.act(Observation(images, np.zeros((2, robot.state.size)), "tidy up", robot.name, (-0.1, 0.0)))
assert chunk.action_TA.shape == (robot.horizon, robot.action.size)
print(sorted(name for name in sys.modules if name.startswith(("vla.train", "vla.convert", "deepspeed.", "datasets", "tensorflow"))))
"""


@pytest.mark.thorough
def test_acting_needs_neither_deepspeed_nor_any_part_of_training(exported):
    done = subprocess.run([sys.executable, "-c", ALONE, str(exported)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
