"""Distillation into one step: the student keeps the teacher's two modes, which one step of the teacher itself does not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.parts import SOURCES, TINY, contents, samples, unit_normalizer
from vla.backbones.tiny import Tiny
from vla.checkpoint import Contents
from vla.decoders.base import total_loss
from vla.decoders.conditioning import Pooled
from vla.decoders.dit import DiT
from vla.decoders.one_step import OneStep
from vla.diffusion.ddpm import DDPM
from vla.diffusion.flow import Flow
from vla.embodiment import Embodiment, Field, Space
from vla.errors import UserError
from vla.model import Model
from vla.noise import Noise
from vla.types import Observation, Sample

SPACE = Space((Field("move", 1, "m"),))
ROBOT = Embodiment("one", ("top",), SPACE, SPACE, SPACE, Fraction(10), 1, ((-2.0, 2.0),))
BACKBONE = Tiny(width=16, depth=1, heads=1, channels=4, keypoints=4, words=16, image_size=8)
TEACHER = DiT(path=Flow(times="uniform"), conditioning=Pooled(width=48, depth=2, heads=2), samples_per_context=16, evaluations=8)


def two_modes(count: int) -> list[Sample]:
    """One number, near -0.7 or 0.7 half and half; every observation is the same."""
    rng = np.random.default_rng(0)
    seen = Observation({"top": np.zeros((1, 8, 8, 3), np.uint8)}, np.zeros((1, 1)), "go", ROBOT.name)
    value = lambda n: np.array([[(0.7 if n % 2 else -0.7) + rng.normal(0, 0.05)]])  # noqa: E731
    return [Sample(n, "one", "e", n, seen, value(n), np.ones(1, dtype=bool)) for n in range(count)]


def trained(config, model_from=None, steps: int = 400):
    torch.manual_seed(0)
    holds = Contents(Model(BACKBONE, config), (ROBOT,), {ROBOT.name: unit_normalizer(ROBOT)})
    model = holds.build()
    if model_from is not None:
        model.backbone.load_state_dict(model_from.backbone.state_dict())
        model.state_in.load_state_dict(model_from.state_in.state_dict())
        model.decoder.load_state_dict(model.decoder.adopt(model_from.decoder.state_dict()))
        model.backbone.requires_grad_(False), model.state_in.requires_grad_(False)
    batch = holds.collate(model).samples(two_modes(64), {"one": 0})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        total_loss(model(batch, Noise(batch.position_B, step))).backward()
        optimizer.step(), schedule.step()
    return model, holds.collate(model).samples(two_modes(256), {"one": 0})


def actions(model, batch, decoder=None):
    with torch.inference_mode():
        decoder = model.decoder if decoder is None else decoder
        return decoder.sample(model.backbone, model.prefix(batch), batch.spec, Noise(batch.position_B, 77)).flatten()


@pytest.mark.slow
def test_the_student_is_near_the_teacher_in_one_step():
    teacher, batch = trained(TEACHER)
    many = actions(teacher, batch)
    assert (many.abs() - 0.7).abs().mean() < 0.12 and 0.35 < (many > 0).float().mean() < 0.65
    student, _ = trained(OneStep(TEACHER), teacher, steps=300)
    one = actions(student, batch)
    alone = actions(teacher, batch, replace_evaluations(teacher.decoder))
    assert torch.equal(actions(student, batch, student.decoder.teacher), many)  # the teacher stood still
    assert (one - many).abs().mean() < 0.15
    assert (alone - many).abs().mean() > 0.4  # one step of the teacher lands between the modes
    assert ((one > 0) == (many > 0)).float().mean() > 0.9


def replace_evaluations(decoder):
    """The same weights, asked for a single evaluation."""
    decoder.config = replace(decoder.config, evaluations=1)
    return decoder


def test_a_checkpoint_of_a_denoiser_becomes_teacher_and_student():
    config = DiT(path=Flow(predict="data"), conditioning=Pooled(32, 2, 2), condition_dropout=0.2, guidance=1.5, evaluations=4)
    torch.manual_seed(0)
    teacher = contents(config, TINY).build()
    holds = contents(OneStep(config), TINY)
    model = holds.build()
    model.decoder.load_state_dict(model.decoder.adopt(teacher.decoder.state_dict()))
    for part in (model.decoder.teacher, model.decoder.student):
        assert all(torch.equal(a, b) for a, b in zip(part.state_dict().values(), teacher.decoder.state_dict().values(), strict=True))
    batch = holds.collate(model).samples(samples(4), SOURCES)
    noise = Noise(batch.position_B)
    loss = model(batch, noise)
    total_loss(loss).backward()
    assert torch.equal(loss.parts["distil"].weight, model.weights(batch, noise)["distil"]) and loss.parts["distil"].sum > 0
    assert all(p.grad is None for p in model.decoder.teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.decoder.student.parameters())
    own = model.decoder.state_dict()
    assert model.decoder.adopt(own) is own
    with pytest.raises(UserError, match="predicts data"):
        contents(OneStep(DiT(path=DDPM()))).build()
    with pytest.raises(UserError, match="whose spacing is 'trailing'"):
        contents(OneStep(DiT(path=DDPM(predict="velocity", spacing="leading")))).build()
    contents(OneStep(DiT(path=DDPM(predict="data", spacing="leading")))).build()
