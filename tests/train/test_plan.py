"""What a dry run says of a run, without its device."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backbones import families
from tests.parts import DECODERS, TINY
from tests.train.toy import toy_run
from vla.decoders.parallel import Parallel
from vla.errors import UserError
from vla.model import Model
from vla.noise import Noise
from vla.train import plan
from vla.train.job import assemble
from vla.train.memory import activation_bytes

LIBRARY = Model(families.paligemma(), Parallel())


def test_a_small_run_is_checked_whole_and_needs_no_table(shards):
    text = "\n".join(plan.dry_run(toy_run(freeze=("backbone",)), shards, shards, world=4))
    for fact in ("8 = 4 ranks x 1 micro-batches x 2", "backbone 17,640 frozen", "GFLOP a sample", "memory: ", "what fits: anything"):
        assert fact in text
    with pytest.raises(UserError, match="does not divide over 3 ranks"):
        plan.dry_run(toy_run(), shards, shards, world=3)


def test_a_large_model_is_never_built(shards, monkeypatch):
    monkeypatch.setattr(plan, "MOST_BUILT", 1000)
    monkeypatch.setattr(plan, "SMALL", 0)
    lines = plan.dry_run(toy_run(model=LIBRARY, precision="bf16"), shards, shards, world=2)
    text = "\n".join(lines)
    assert "too large to be built" in text and "operations: " in text
    table = lines[next(number for number, line in enumerate(lines) if line.startswith("what fits")) + 2 :]
    names = [line[2:36].strip() for line in table]
    spreads = ("plain torch", "ZeRO-1", "ZeRO-2", "ZeRO-3")
    assert names == [f"{method}, {spread}" for method in ("full (the run's own)", "LoRA", "frozen backbone") for spread in spreads]


def test_activations_on_the_meta_device_are_those_of_the_real_pass(shards):
    job = assemble(toy_run(), shards, shards)
    batch = job.batch(job.train.samples(range(4)))
    real = activation_bytes(job.model, lambda: job.model(batch, Noise(batch.position_B, 0)))
    assert plan.measure(job.model, batch, "fp32").activations == pytest.approx(real / 4, rel=0.25)  # kernels of attention keep other things
    assert not any(p.is_meta for p in job.model.parameters())


def test_gradient_checkpointing_and_freezing_keep_less(shards):
    kept = {}
    for name, on in (("plain", False), ("checkpointed", True)):
        backbone = replace(LIBRARY.backbone, gradient_checkpointing=on)
        job = assemble(toy_run(model=Model(backbone, Parallel())), shards, shards, most_parameters=0)
        batch = job.batch(job.train.samples(range(1)))
        kept[name] = plan.measure(job.model, batch, "fp32", operations=False).activations
        job.model.backbone.requires_grad_(False)
        kept[f"frozen {name}"] = plan.measure(job.model, batch, "fp32", operations=False).activations
    assert kept["checkpointed"] < 0.8 * kept["plain"] and kept["frozen plain"] < kept["plain"]


def test_a_model_that_cannot_be_counted_says_why(shards):
    lines = plan.dry_run(toy_run(model=Model(TINY, DECODERS["mixture"])), shards, shards, world=2)  # sends tokens where a number says
    assert "operations and activations are not known" in lines[-1] and "meta" in lines[-1]
    assert "activations come on top" in lines[-2]


SEVEN_BILLION = """
from tests.backbones import families
from tests.train.toy import Model, Parallel, toy_run
from vla.backbones.published import published

BACKBONE = published("openvla/openvla-7b", tokenizer=families.TOKENIZER, gradient_checkpointing=True)
RUN = toy_run(model=Model(BACKBONE, Parallel()), batch_size=512, precision="bf16", steps=1000)
"""


@pytest.mark.slow
def test_seven_billion_parameters_on_64_ranks_are_planned_in_little_memory(shards, tmp_path):
    (tmp_path / "big.py").write_text(SEVEN_BILLION)
    (tmp_path / "toy.yaml").write_text((shards / "toy.yaml").read_text())
    command = [sys.executable, "-m", "vla", "train", "big.py", "--dry-run", "--world", "64", "--zero", "3", "--data-root", str(shards)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "7,366,929,066 trained" in done.stdout and "LoRA, ZeRO-3" in done.stdout
    assert "512 = 64 ranks" in done.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2e6  # kB
