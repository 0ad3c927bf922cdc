"""What every action decoder owes, on every backbone. A new decoder is added to tests/parts.py (or by plug-in) and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.backbones.families import FAMILIES
from tests.parts import BACKBONES, DECODERS, ROBOTS, SOURCES, contents, samples
from vla.backbones.base import by_length
from vla.backbones.remembered import rows_of
from vla.backbones.tiny import Tiny
from vla.decoders.base import total_loss
from vla.decoders.conditioning import _LayerKeysValues
from vla.decoders.dit import DiT
from vla.decoders.joint import OncePerPrefix
from vla.noise import Noise
from vla.types import Prior

ALL = {**BACKBONES, **FAMILIES}
QUICK_TO_FIT = ("flow",)
"""The decoder whose overfitting is a quick test."""
THOROUGH_TO_FIT = ("tokens", "parallel", "masked", "latent")
"""One of each other kind; of the rest it is a slow one."""
VARIANTS = ("parallel_folded", "tokens_coarse", "tokens_from_prefix", "masked_whole", "flow_data", "ddpm_pooled", "pi05", "dita", "dit_ada")
VARIANTS += ("joint_in_context",)
"""Settings of decoders that quick tests have in another setting."""
QUICK_ON_ALL = ("joint",)
"""Decoders that quick tests run on every family of backbones: a causal suffix, and K noise samples over its keys and values."""


def cases(fits: bool = False, without: tuple[str, ...] = ()):
    """(backbone, decoder) names; the full product, of which a part is quick."""
    for family in ALL:
        for name in (name for name in DECODERS if name not in without):
            quick = (name in QUICK_TO_FIT if fits else name not in VARIANTS) if family == "tiny" else name in QUICK_ON_ALL and not fits
            thorough = fits and family == "tiny" and name in THOROUGH_TO_FIT
            marks = [] if quick else [pytest.mark.thorough if thorough else pytest.mark.slow]
            yield pytest.param((family, name), id=f"{family}-{name}", marks=marks)


def build(case):
    torch.manual_seed(0)
    holds = contents(DECODERS[case[1]], ALL[case[0]])
    model = holds.build()
    return model, holds.collate(model)


@pytest.fixture(params=cases())
def made(request):
    return build(request.param)


@pytest.fixture(params=cases(without=("oft", "masked_whole")))
def made_sharing(request):
    """Decoders that leave the prefix as it is without them."""
    return build(request.param)


@pytest.fixture(params=cases(without=("masked_whole",)))
def made_blind(request):
    """Decoders whose prefix sees nothing that a target says; `whole` masked diffusion shows it the codes that are not to be found."""
    return build(request.param)


@pytest.fixture(params=cases(fits=True))
def to_fit(request):
    return build(request.param)


def batch_of(collate, rows):
    return collate.samples(rows, SOURCES)


def test_overfits_eight_samples(to_fit):
    model, collate = to_fit
    batch = batch_of(collate, samples(8, unlabelled=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0)
    steps = 300 if isinstance(model.config.backbone, Tiny) else 800  # predicting noise through a library's model takes the most
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        noise = Noise(batch.position_B, step)
        optimizer.zero_grad()
        total_loss(model(batch, noise)).backward()
        optimizer.step(), schedule.step()
    with torch.inference_mode():
        found_BTA = model.eval().sample(batch, Noise(batch.position_B))
    acting = model.decoder.parts[model.decoder.acts] if hasattr(model.decoder, "parts") else model.decoder
    want_BTA, codes = batch.target.action_BTA, getattr(acting, "codes", None)
    if codes is not None:  # a lossy codec is asked for what it can say
        want_BTA = codes.decode(codes.encode(batch.target)[0], replace(batch.spec, mask_BTA=batch.target.label_BTA))
    error = ((found_BTA - want_BTA).abs() * batch.target.label_BTA).sum() / batch.target.label_BTA.sum()
    assert error < 0.12, f"mean error {error:.3f}; guessing the mean gives 0.45"


def test_is_deterministic_and_a_row_ignores_its_neighbours(made):
    model, collate = made
    batch = batch_of(collate, samples(6))
    model.eval()
    with torch.inference_mode():
        noise = Noise(batch.position_B, 7)
        first, again = model.sample(batch, noise), model.sample(batch, noise)
        alone = model.sample(batch[2:3], Noise(batch.position_B[2:3], 7))
    assert torch.equal(first, again)
    torch.testing.assert_close(first[2:3], alone, atol=1e-5, rtol=1e-5)
    assert first.shape == batch.target.action_BTA.shape and first.dtype == torch.float32
    assert (first[~batch.spec.mask_BTA] == 0).all()


def test_it_says_whether_other_noise_gives_another_chunk(made):
    model, collate = made
    batch = batch_of(collate, samples(6))
    model.eval()
    with torch.inference_mode():
        first, *others = (model.sample(batch, Noise(batch.position_B, seed)) for seed in range(4))
    assert model.decoder.draws == any(not torch.equal(first, other) for other in others)


def test_resuming_keeps_what_is_committed_and_is_sampling_where_nothing_is(made):
    model, collate = made
    batch = batch_of(collate, samples(4))
    noise, spec = Noise(batch.position_B, 7), batch.spec
    action_BTA = batch.target.action_BTA.clamp(-0.9, 0.9)
    free_BT, none_B = torch.zeros(action_BTA.shape[:2]), torch.zeros(len(action_BTA))
    held_BT = free_BT.clone()
    held_BT[:, :2] = 1
    model.eval()
    with torch.no_grad():
        sampled = model.sample(batch, noise)
        free = model.resume(batch, noise, Prior(action_BTA, free_BT, none_B))
        held = model.resume(batch, noise, Prior(action_BTA, held_BT, none_B))
    torch.testing.assert_close(free, sampled, atol=1e-4, rtol=1e-4)
    assert torch.equal(held[:, :2], (action_BTA * spec.mask_BTA)[:, :2])
    assert held.isfinite().all() and (held[~spec.mask_BTA] == 0).all()


def test_padded_dimensions_move_neither_loss_nor_gradient(made):
    model, collate = made
    batch = batch_of(collate, samples(6))
    noise = Noise(batch.position_B, 1)
    garbage = torch.where(batch.target.label_BTA, batch.target.action_BTA, 5.0)
    dirty = replace(batch, target=replace(batch.target, action_BTA=garbage))
    grads = []
    for each in (batch, dirty):
        model.zero_grad()
        loss = total_loss(model(each, noise))
        loss.backward()
        grads.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert grads[0][0] > 0


def test_loss_is_a_sum_over_samples(made):
    """Sum and weight of a batch are those of its halves, added: so ranks and accumulation cannot matter."""
    model, collate = made
    batch = batch_of(collate, samples(8))
    whole = model(batch, Noise(batch.position_B, 3))
    halves = [model(batch[rows], Noise(batch.position_B[rows], 3)) for rows in (slice(0, 3), slice(3, 8))]
    for name, part in whole.parts.items():
        torch.testing.assert_close(part.sum, sum(half.parts[name].sum for half in halves), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(part.weight, sum(half.parts[name].weight for half in halves))
    torch.testing.assert_close(whole.sample_sum_B, torch.cat([half.sample_sum_B for half in halves]), atol=1e-4, rtol=1e-4)


def test_weights_are_known_before_the_forward_pass(made):
    model, collate = made
    batch = batch_of(collate, samples(8))
    noise = Noise(batch.position_B, 4)
    loss, weights = model(batch, noise), model.weights(batch, noise)
    assert set(loss.parts) == set(weights) == set(loss.scale)
    assert all(torch.equal(loss.parts[name].weight, weights[name]) for name in weights)


def test_no_labels_at_all_is_zero_loss_through_every_parameter(made):
    """A rank without labels still runs every module, or ZeRO hangs; and learns nothing from it."""
    model, collate = made
    bare = [replace(s, action_TA=None, latent_N=None, reasoning="") for s in samples(4)]
    batch = batch_of(collate, bare)
    reached = reachable(model, batch)
    loss = total_loss(model(batch, Noise(batch.position_B)))
    loss.backward()
    # The balance of a mixture needs labels for its weight alone.
    assert loss.item() == 0
    for name, parameter in model.named_parameters():
        if name in reached or not name.startswith("backbone."):
            assert parameter.grad is not None, f"{name} took no part"
        assert parameter.grad is None or (parameter.grad == 0).all(), name


def reachable(model, batch, final: bool = True) -> set[str]:
    """Names of the backbone's parameters that can have a gradient: through its keys and values, and (`final`) its last states."""
    hidden = model.backbone(model.prefix(batch))
    total = sum((t.square().sum() for t in (*hidden.keys, *hidden.values)), hidden.x_BSD.sum() * 0)
    (total + hidden.x_BSD.square().sum() if final else total).backward()
    found = {f"backbone.{name}" for name, p in model.backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    model.zero_grad()
    return found


def test_gradients_reach_the_backbone_exactly_when_it_is_unfrozen(made):
    model, collate = made
    batch = batch_of(collate, samples(6))
    # Under per-layer conditioning the backbone's last states act on nothing.
    inside = [getattr(decoder, "conditioning", None) for decoder in model.decoder.modules()]
    through_layers_alone = isinstance(model.config.decoder, DiT) and any(isinstance(c, _LayerKeysValues) for c in inside)
    reached = reachable(model, batch, final=not through_layers_alone)
    total_loss(model(batch, Noise(batch.position_B))).backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    expected = {f"backbone.{name}" for name, _ in model.backbone.named_parameters()} - reached
    assert silent == expected, f"{sorted(silent ^ expected)}"
    model.zero_grad()
    model.backbone.requires_grad_(False)
    total_loss(model(batch, Noise(batch.position_B))).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.decoder.parameters())


def test_gradient_checkpointing_changes_nothing(made):
    model, collate = made
    batch = batch_of(collate, samples(6))
    found = []
    for on in (False, True):
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = on
        model.train().zero_grad()
        loss = total_loss(model(batch, Noise(batch.position_B)))
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_cached_equals_uncached(made_sharing):
    """Behind a prefix that ran once and left its cache, a decoder finds the loss, gradients and actions that it finds in joint passes."""
    model, collate = made_sharing
    batch = batch_of(collate, samples(5))
    noise, found = Noise(batch.position_B, 2), []
    for wrap in (lambda backbone, prefix: (backbone, prefix), once):
        model.zero_grad()
        loss = total_loss(model.decoder.loss(*wrap(model.backbone, model.prefix(batch)), batch.target, noise))
        loss.backward()
        with torch.no_grad():
            actions = model.decoder.sample(*wrap(model.backbone, model.prefix(batch)), batch.spec, noise)
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None), actions])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_remembered_equals_computed(made_sharing):
    """On a frozen backbone, what a pass over the observation left, kept as rows, gives the loss and gradients that the pass gives."""
    model, collate = made_sharing
    model.backbone.requires_grad_(False)
    batch = batch_of(collate, samples(5))
    noise, found = Noise(batch.position_B, 2), []
    for each in (batch, remembered(model, batch)):
        model.zero_grad()
        loss = total_loss(model(each, noise))
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 1
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_sizes_of_which_there_are_few_change_nothing(made, monkeypatch):
    """Prefixes, and stacks of images, filled up for layers that are compiled for their size."""
    model, collate = made
    batch, found = batch_of(collate, samples(5)), []
    monkeypatch.setattr("vla.model.one_of_few", lambda length: length + 3)
    for few in (False, True):
        model.backbone.few_sizes = few
        model.zero_grad()
        loss = total_loss(model(batch, Noise(batch.position_B, 2)))
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_rows_in_passes_by_length_are_those_in_one(made, monkeypatch):
    model, collate = made
    rows = samples(6)
    for number, cameras in enumerate((("third_person",), (), ("wrist",))):
        seen = rows[2 * number].observation
        monkeypatch.setattr("vla.collate._ordered", lambda obs, robot: obs)
        images = {role: image for role, image in seen.images.items() if role in cameras}
        rows[2 * number] = replace(rows[2 * number], observation=replace(seen, images=images))
    batch, found = batch_of(collate, rows), []
    monkeypatch.setattr("vla.model.by_length", lambda valid_BS: by_length(valid_BS, 1))
    assert len(by_length(model.prefix(batch).valid_BS, 1)) > 1
    for apart in (False, True):
        model.apart = apart
        model.zero_grad()
        loss = model(batch, Noise(batch.position_B, 2))
        total_loss(loss).backward()
        found.append([loss.sample_sum_B, loss.sample_weight_B, total_loss(loss).detach()])
        found[-1] += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def remembered(model, batch):
    with torch.no_grad():
        rows = rows_of(model.backbone(model.backbone.embed(batch.inputs)), model.reads)
    seen = {name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True) for name in rows[0]}
    length_B1 = torch.tensor([[len(row["position_BS"])] for row in rows])
    seen["valid_BS"] = torch.arange(seen["position_BS"].shape[1]) < length_B1
    return replace(batch, inputs={}, seen={**seen, "x_BSD": torch.full_like(seen["state_BSD"], torch.nan)})


def once(backbone, prefix):
    shared = OncePerPrefix(backbone, prefix)
    return shared, shared.prefix


@pytest.mark.parametrize("name", ["joint", *(pytest.param(name, marks=pytest.mark.slow) for name in DECODERS if name != "joint")])
@pytest.mark.parametrize(
    "family", ["smolvlm", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in ("smolvlm", "paligemma2"))]
)
def test_boolean_and_additive_masks_agree(family, name):
    """sdpa takes the rule as booleans, eager as numbers to add: the same loss and gradients, several groups of suffixes in it."""
    found = []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        holds = contents(DECODERS[name], replace(FAMILIES[family], attention=attention))
        model = holds.build()
        batch = batch_of(holds.collate(model), samples(6))
        loss = total_loss(model(batch, Noise(batch.position_B)))
        loss.backward()
        found.append({"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for key in found[0]:
        torch.testing.assert_close(found[0][key], found[1][key], atol=1e-5, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")


def test_prefix_never_sees_the_suffix(made_blind, monkeypatch):
    """The prefix's states are the same whatever the target is, and those it has alone if it may be shared: on every pass that is made."""
    model, collate = made_blind
    batch = batch_of(collate, samples(4, unlabelled=False))
    prefix = model.prefix(batch)
    alone, seen = model.backbone(prefix).x_BSD, []
    forward = model.backbone.forward

    def spy(tokens, cache=None):
        hidden = forward(tokens, cache)
        if cache is None:
            seen.append(hidden.x_BSD[:, : len(prefix)].detach())
        return hidden

    monkeypatch.setattr(model.backbone, "forward", spy)
    model(batch, Noise(batch.position_B))
    model.sample(batch, Noise(batch.position_B))
    model(replace(batch, target=replace(batch.target, action_BTA=-batch.target.action_BTA)), Noise(batch.position_B))
    assert seen
    for states in seen:
        torch.testing.assert_close(states, alone if model.decoder.shares_prefix else seen[0], atol=1e-5, rtol=1e-5)


def test_survives_a_checkpoint(made, tmp_path):
    from vla.checkpoint import load_model, save_checkpoint

    model, collate = made
    holds = contents(model.config.decoder, model.config.backbone)
    save_checkpoint(tmp_path / "c", holds, model.state_dict())
    again, loaded = load_model(tmp_path / "c")
    assert again.model == holds.model and again.embodiments == ROBOTS
    batch = batch_of(collate, samples(3))
    with torch.inference_mode():
        noise = Noise(batch.position_B)
        assert torch.equal(model.eval().sample(batch, noise), loaded.sample(batch, noise))
