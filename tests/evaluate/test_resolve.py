"""A policy given as an object is evaluated as its checkpoint is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests.parts import DECODERS, TINY, unit_normalizer
from vla.checkpoint import Contents
from vla.evaluate.resolve import resolve
from vla.evaluate.runner import evaluate
from vla.model import Model
from vla.policy import Policy
from vla.sim.suites import load_suite

TOY = str(Path(__file__).with_name("toy_suite.py"))


def test_an_object_sees_pictures_of_the_size_that_its_folder_does(tmp_path):
    suite = load_suite(TOY)
    model = Model(replace(TINY, image_size=24), DECODERS["parallel"])
    holds = Contents(model, (suite.embodiment,), {suite.embodiment.name: unit_normalizer(suite.embodiment)})
    policy = Policy(holds, holds.build())
    policy.save_pretrained(tmp_path / "model")
    by_folder, by_object = (resolve(given, suite, "cpu")[1] for given in (tmp_path / "model", policy))
    assert by_folder["image_size"] == by_object["image_size"] == 24
    assert evaluate(policy, TOY, ["easy"], 1, workers=1).image_size == 24


def test_objects_are_told_apart_by_their_weights():
    suite = load_suite(TOY)
    holds = Contents(Model(TINY, DECODERS["parallel"]), (suite.embodiment,), {suite.embodiment.name: unit_normalizer(suite.embodiment)})
    policy = Policy(holds, holds.build())
    facts = [resolve(policy, suite, "cpu")[1] for _ in range(2)]
    with torch.no_grad():
        next(policy.model.parameters()).flatten()[0] += 0.01
    facts.append(resolve(policy, suite, "cpu")[1])
    assert facts[0] == facts[1] and facts[0]["fingerprint"] != facts[2]["fingerprint"]
