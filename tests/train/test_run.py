"""Runs, recipes and schedules: what is wrong is said in one line before anything starts."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.toy import toy_run
from vla import config
from vla.alignment import Align
from vla.errors import SchemaError, UnknownName, UserError
from vla.train.optim import WSD, AdamW, Constant, Cosine, Zero
from vla.train.run import differences, load_recipe


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"precision": "fp16"}, "bf16, fp32"),
        ({"normalization": "minmax"}, "quantile, zscore"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1.5}, "steps must be int"),
        ({"seed": True}, "seed must be int"),
        ({"seed": 2**31}, "seed must be from 0 to"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"embodiments": "narrow"}, "a tuple of robots"),
        ({"history_s": (0.0, -0.5)}, "end at 0.0"),
        ({"model": None}, "neither a model nor a checkpoint"),
        ({"model": "pi0"}, "model must be a vla.model.Model.* not a str"),
        ({"workers": -1}, "workers must not be negative"),
        ({"microbatch": -4}, "microbatch must be at least 1"),
        ({"microbatch": 2.0}, "microbatch must be int"),
        ({"spike_sigmas": math.nan}, "spike_sigmas must not be negative"),
        ({"freeze": "backbone"}, r"freeze must be tuple\[str, ...\], not 'backbone'"),
        ({"history_s": 0.0}, r"history_s must be tuple\[float"),
        ({"goal_gap_s": 2.0}, r"goal_gap_s must be tuple\[float, float\]"),
        ({"ema_decay": "0.9"}, "ema_decay must be float"),
        ({"optim": "adamw"}, "optim must be AdamW"),
        ({"schedule": "cosine"}, "schedule must be Cosine"),
        ({"zero": 2}, "zero must be Zero"),
        ({"lora": True}, "lora must be LoRA"),
        ({"features": "runs/features"}, "features must be Features"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, says):
    with pytest.raises(UserError, match=says):
        toy_run(**changes)


@pytest.mark.parametrize(
    ("batch_size", "microbatch", "world", "near"),
    [(10, None, 4, "8 or 12"), (3, None, 4, "4"), (24, 5, 2, "20 or 30")],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(batch_size, microbatch, world, near):
    with pytest.raises(UserError, match=f"--batch-size {near}[.]"):
        toy_run(batch_size=batch_size, microbatch=microbatch).check(world)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_a_batch_is_ranks_times_microbatches(world, count, size):
    run = toy_run(batch_size=world * count * size, microbatch=size)
    run.check(world)
    assert run.microbatches(world) == count


def test_only_what_changes_an_update_is_unsafe():
    old = toy_run().to_json()
    same = json.loads(json.dumps(old))
    assert differences(old, same) == ([], [])
    new = toy_run(log_every=7, zero=Zero(2), optim=AdamW(lr=0.1), schedule=Constant()).to_json()
    unsafe, harmless = differences(same, new)
    assert "optim.lr: 0.003 -> 0.1" in unsafe and "schedule.kind: schedule.cosine -> schedule.constant" in unsafe
    assert "log_every: 1 -> 7" in harmless and "zero.stage: absent -> 2" in harmless


def test_micro_batches_matter_where_samples_are_compared_with_each_other():
    halves = {"batch_size": 8, "microbatch": 4}
    assert differences(toy_run(batch_size=8).to_json(), toy_run(**halves).to_json())[0] == []
    align = replace(toy_run().model, align=Align())
    unsafe, _ = differences(toy_run(batch_size=8, model=align).to_json(), toy_run(**halves, model=align).to_json())
    assert unsafe == ["microbatch: None -> 4"]


@pytest.mark.parametrize("schedule", [Cosine(10, final=0.1), WSD(10, decay_steps=30, final=0.1), Constant(10)])
def test_schedules_warm_up_to_the_peak_and_end_where_they_should(schedule):
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert factors[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(1.0 if isinstance(schedule, Constant) else 0.1, abs=0.04)
    middle = {"schedule.cosine": 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 50 / 90)), "schedule.wsd": 1.0, "schedule.constant": 1.0}
    assert factors[60] == pytest.approx(middle[schedule.kind])


def test_zero_settings_come_from_a_number_or_deepspeeds_own_block(tmp_path):
    assert Zero.of("0") is None and Zero.of("3") == Zero(3)
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 2, "overlap_comm": true}}')
    assert Zero.of(str(path)) == Zero(2, {"overlap_comm": True})
    path.write_text('{"zero_optimization": {"stage": 2}, "train_batch_size": 8}')
    with pytest.raises(UserError, match="train_batch_size"):
        Zero.of(str(path))
    for wrong in ("4", "zero.json"):
        with pytest.raises(UnknownName, match="0, 1, 2, 3"):
            Zero.of(wrong)


RECIPE = """
from tests.train.toy import toy_run
from dataclasses import replace
RUN = toy_run({})
LONGER = replace(RUN, steps=99)
"""


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Own:
    kind: ClassVar[str] = "test.own_part"
"""


def test_a_recipe_is_a_file_with_a_run_and_its_variants(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE.format("steps=5"))
    assert load_recipe(path).steps == 5
    assert load_recipe(f"{path}:LONGER").steps == 99
    with pytest.raises(UnknownName, match="LONGER, RUN"):
        load_recipe(f"{path}:SHORTER")
    with pytest.raises(UnknownName, match=r"mine\.py"):
        load_recipe(tmp_path / "mime.py")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (RECIPE.format("stepz=5"), r"mine.py, line 4: .*stepz.*Did you mean steps[?] Settings of a Run: name, mixture"),
        (RECIPE.format("precision='fp64'"), "line 4: unknown precision 'fp64'"),
        (RECIPE.format("nothing"), "line 4: name 'nothing' is not defined"),
        ("RUN = (", "line 1"),
        ("import no_such_module", "line 1: No module"),
        ("STEPS = 5", "defines no RUN"),
    ],
)
def test_mistakes_in_a_recipe_name_their_line(tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as raised:
        load_recipe(path)
    assert raised.value.exit_code == 2 and "\n" not in str(raised.value)


def test_a_relative_path_names_the_line_too_and_a_plug_in_beside_is_pointed_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(RECIPE.format("stepz=5"))
    with pytest.raises(UserError, match=r"^mine.py, line 4: "):
        load_recipe("mine.py")
    Path("one_query.py").write_text("")
    Path("mine.py").write_text("from one_query import OneQuery")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    with pytest.raises(UserError, match=r"line 1: No module named 'one_query'.*name it: --plugin one_query.py"):
        load_recipe("mine.py")


def test_a_plug_in_is_imported_by_its_files_name_and_is_one_class(tmp_path, monkeypatch):
    (tmp_path / "own_part_of_mine.py").write_text(PLUGIN)
    (tmp_path / "mine.py").write_text(
        RECIPE.format("") + "from own_part_of_mine import Own\nassert Own.kind == 'test.own_part'\nOWN = Own\n"
    )
    monkeypatch.setattr(config, "_PLUGINS", dict(config._PLUGINS))
    config.load_plugin(str(tmp_path / "own_part_of_mine.py"))
    try:
        assert load_recipe(tmp_path / "mine.py").steps > 0
        assert sys.modules["own_part_of_mine"].Own is config.find_kind("test.own_part")
    finally:
        del sys.modules["own_part_of_mine"]


def test_a_setting_of_the_wrong_type_is_named():
    with pytest.raises(SchemaError, match="lr must be float"):
        AdamW(lr="1e-3")
    with pytest.raises(SchemaError, match="scales must be Mapping"):
        AdamW(scales={"backbone": "0.1"})
    assert toy_run(freeze=["backbone"], ema_decay=None, history_s=(-1, 0)).freeze == ["backbone"]  # a list for a tuple, an int for a float


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Cosine(warmup_steps=0.03), "warmup_steps must be int"),  # a share of the run, elsewhere: here 33 times the peak rate
        (lambda: Cosine(warmup_steps=-1), "steps of 0 or more"),
        (lambda: WSD(decay_steps=-1), "steps of 0 or more"),
        (lambda: WSD(final=2.0), "0 to 1 of the peak"),
        (lambda: Constant(warmup_steps=0.5), "warmup_steps must be int"),
        (lambda: AdamW(grad_clip=-1.0), "grad_clip of 0"),  # would turn every gradient round
        (lambda: AdamW(weight_decay=math.nan), "weight_decay"),
        (lambda: AdamW(eps=0.0), "0 < eps"),
        (lambda: Zero(2, {"offload_optimizer": True}), "offload_optimizer must be a block"),
    ],
)
def test_a_rate_or_a_clip_that_would_undo_training_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_a_block_of_zero_that_is_null_is_none():
    assert Zero(2, {"offload_optimizer": None}).device_of("offload_optimizer") == "none"
    assert Zero(2, {"offload_optimizer": {"device": "cpu"}}).device_of("offload_optimizer") == "cpu"


def test_where_there_are_no_recipes_the_folder_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match=f"Choices: none. Looked from {tmp_path}: .*from its root"):
        load_recipe("pretrain/demo.py")
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(UnknownName, match=r"'mien.py'. Choices: mine.py.$"):
        load_recipe("mien.py")
