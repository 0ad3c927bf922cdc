"""From latent actions to a robot's: a readout (UniVLA), a head put in its place (LAPA), both denoised together (villa-X)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.latent_action.dots import CONFIG
from tests.parts import TINY
from vla.checkpoint import load_checkpoint
from vla.data.mixture import Mixture
from vla.data.reader import Dataset
from vla.decoders.base import total_loss
from vla.decoders.latent import LatentActions
from vla.decoders.latent_flow import LatentFlow
from vla.decoders.parallel import Parallel
from vla.errors import StatsMissing, UserError
from vla.latent_action.label import label
from vla.model import Model
from vla.noise import Noise
from vla.policy import Policy
from vla.train.job import assemble
from vla.train.loop import train
from vla.train.optim import AdamW, Constant
from vla.train.run import Run

SIZES = {"codes": CONFIG.quantizer.codes, "vocabulary": CONFIG.quantizer.vocabulary}


@pytest.fixture(scope="module", name="recipe")
def _recipe(dots, trained, tmp_path_factory):
    """A run on a robot and video without actions, both with codes of one model, in folders of their own."""
    root = tmp_path_factory.mktemp("coded")
    folders = [shutil.copytree(folder, root / folder.name) for folder in dots]
    datasets = [Dataset.open(folder) for folder in folders]
    names = {label(dataset, trained[0]).hash for dataset in datasets}
    mixture = Mixture.of(dict.fromkeys(folders, 1.0), "dots", 0.0)
    return Run(
        "to_robot",
        mixture,
        (datasets[0].info.robot,),
        steps=60,
        batch_size=16,
        model=Model(TINY, LatentActions(**SIZES, heads=2, readout_depth=1)),
        latents=names.pop(),
        optim=AdamW(lr=3e-3),
        schedule=Constant(),
        ema_decay=None,
        log_every=10,
        threads=1,
    )


def losses(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["parts"] for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module", name="pretrained")
def _pretrained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained")
    return train(recipe, out), out


def test_a_readout_learns_beside_the_codes(pretrained):
    rows = losses(pretrained[1])
    assert rows[-1]["latent"] < 0.98 * rows[0]["latent"] and rows[-1]["l1"] < rows[0]["l1"]


def test_queries_of_the_readout_see_the_codes_and_are_not_seen(recipe, tmp_path):
    torch.manual_seed(0)
    asks = replace(recipe, model=Model(TINY, LatentActions(**SIZES, steps_per_query=2)))
    job = assemble(asks, None, tmp_path, "size", None)
    model, decoder = job.model.eval(), job.model.decoder
    batch = job.batch(job.train.samples(range(6)))
    with torch.no_grad():
        prefix = model.prefix(batch)
        alone, whole = decoder.think(model.backbone, prefix), decoder.think(model.backbone, prefix, batch.spec)
        torch.testing.assert_close(whole.x_BSD[:, : len(alone.tokens)], alone.x_BSD)
        before = decoder.read(whole, batch.spec)
        decoder.latent_ND += 1.0
        after = decoder.read(decoder.think(model.backbone, prefix, batch.spec), batch.spec)
    assert not torch.allclose(before, after, atol=1e-3)


def test_few_labels_teach_what_codes_mean_as_far_as_codes_tell(recipe, tmp_path):
    """The first number of an action is what the codes say, the second is noise: the one is trusted, the other is not."""
    job = assemble(replace(recipe, model=Model(TINY, LatentActions(**SIZES, taught_scale=1.0))), None, tmp_path, "size", None)
    target, meaning = job.batch(job.train.samples(range(600))).target, job.model.decoder.meaning
    assert float(meaning.trust_EA.max()) > 0  # fitted on the run's own first samples
    worth_K = torch.linspace(-1, 1, SIZES["vocabulary"])
    action_BTA = torch.stack([worth_K[target.latent_BN[:, 0]], Noise(torch.arange(600)).normal("noise", 1)[:, 0]], dim=-1)
    action_BTA = action_BTA[:, None].expand_as(target.action_BTA)
    few = replace(target, action_BTA=action_BTA * target.label_BTA)
    meaning.fit(few)
    assert float(meaning.trust_EA[0, 0]) > 0.7 and float(meaning.trust_EA[0, 1]) < 0.3
    meant_BTA, _ = meaning(few)
    assert float((meant_BTA - action_BTA)[..., 0].abs().mean()) < 0.2
    kept = meaning.weight_EXTA.clone()
    meaning.fit(replace(few, label_BTA=torch.zeros_like(few.label_BTA)))
    assert torch.equal(meaning.weight_EXTA, kept)


@pytest.fixture(scope="module", name="watched")
def _watched(recipe, tmp_path_factory):
    """What the recipe's run learns from the video alone: codes, and no action of any robot."""
    out = tmp_path_factory.mktemp("watched")
    mixture = Mixture.of(
        [source.dataset.folder for source in recipe.mixture.sources if source.dataset.info.supervision == "none"], "video", 0.0
    )
    video = replace(recipe, mixture=mixture, steps=20)
    return train(video, out), out, video


def test_codes_alone_teach_a_policy_that_does_not_act_yet(watched, tmp_path):
    result, out, video = watched
    rows = losses(out)
    assert rows[-1]["latent"] < rows[0]["latent"] and "l1" not in rows[-1]
    with pytest.raises(UserError, match="has learned no actions yet. First"):
        Policy.load(result.checkpoint)
    again = train(replace(video, steps=24), out, resume=True, allow_changed=True)
    assert load_checkpoint(again.checkpoint)[0].untrained
    with pytest.raises(UserError, match=r"its sources have no actions, and a decoder.parallel learns no codes\. Add a source"):
        assemble(replace(video, model=Model(TINY, Parallel())), None, tmp_path, "size", None)
    with pytest.raises(StatsMissing, match="no statistics for 'dot'"):
        assemble(replace(video, latents=None), None, tmp_path, "size", None)


def test_a_robot_starts_from_codes_alone_with_numbers_of_its_own(watched, dots, tmp_path):
    tuned = replace(watched[2], model=Model(TINY, Parallel()), latents=None, mixture=Mixture.of([dots[0]], "robot", 0.0))
    job = assemble(replace(tuned, init=str(watched[1])), None, tmp_path, "size", None)
    _, weights = load_checkpoint(watched[1])
    carried = {name: tensor for name, tensor in job.model.state_dict().items() if name.startswith("backbone.")}
    assert carried and all(torch.equal(tensor, weights[name]) for name, tensor in carried.items())
    assert job.contents.normalizers == assemble(tuned, None, tmp_path, "size", None).contents.normalizers
    assert not job.contents.untrained and any("fresh: decoder" in note for note in job.notes)


@pytest.mark.thorough
def test_a_head_put_in_the_place_of_the_latent_one_keeps_the_backbone(recipe, pretrained, dots, tmp_path):
    tuned = replace(
        recipe,
        model=Model(TINY, Parallel()),
        latents=None,
        mixture=Mixture.of([dots[0]], "robot", 0.0),
        init=str(pretrained[0].checkpoint),
    )
    job = assemble(tuned, None, tmp_path, "size", None)
    old = Policy.load(pretrained[0].checkpoint).model
    for name, tensor in old.backbone.state_dict().items():
        torch.testing.assert_close(job.model.backbone.state_dict()[name], tensor, rtol=0, atol=0)
    assert any("fresh: decoder" in note for note in job.notes)
    train(tuned, tmp_path / "out")
    rows = losses(tmp_path / "out")
    assert rows[-1]["l1"] < rows[0]["l1"]


@pytest.mark.thorough
def test_codes_and_actions_are_denoised_together(recipe, tmp_path):
    result = train(replace(recipe, model=Model(TINY, LatentFlow(**SIZES, evaluations=3))), tmp_path / "out")
    rows = losses(tmp_path / "out")
    assert rows[-1]["latent"] < 0.9 * rows[0]["latent"] and rows[-1]["denoise"] < rows[0]["denoise"]
    policy = Policy.load(result.checkpoint)
    batch = policy.collate.observations([s.observation for s in assemble(recipe, None, tmp_path, "size", None).train.samples(range(6))])
    prefix, noise = policy.model.prefix(batch), Noise(batch.position_B)
    with torch.no_grad():
        code_BN, action_BTA = policy.model.decoder.sample_both(policy.model.backbone, prefix, batch.spec, noise)
    assert code_BN.shape == (6, SIZES["codes"]) and int(code_BN.max()) < SIZES["vocabulary"] and action_BTA.isfinite().all()


def test_a_sample_without_codes_learns_beside_their_tokens_as_acting_has_them(recipe, tmp_path):
    job = assemble(replace(recipe, model=Model(TINY, LatentFlow(**SIZES))), None, tmp_path, "size", None)
    batch = job.batch(job.train.samples(range(6)))
    nothing_B = torch.zeros_like(batch.target.has_latent_B)
    other_BN = (batch.target.latent_BN + 1) % SIZES["vocabulary"]
    found = []
    for latent_BN in (batch.target.latent_BN, other_BN):
        target = replace(batch.target, latent_BN=latent_BN, has_latent_B=nothing_B)
        loss = total_loss(job.model(replace(batch, target=target), Noise(batch.position_B)))
        found.append(torch.autograd.grad(loss, job.model.decoder.code_in.weight)[0])
    assert found[0].abs().max() > 0 and torch.equal(*found)  # there, and noise whatever stands where no code is


def test_actions_look_at_codes_and_codes_at_no_action(recipe, tmp_path):
    """Another robot action in the noise moves no code; another code moves the actions."""
    torch.manual_seed(0)
    job = assemble(replace(recipe, model=Model(TINY, LatentFlow(**SIZES))), None, tmp_path, "size", None)
    model = job.model.eval()
    batch = job.batch(job.train.samples(range(6)))
    context = model.decoder.conditioning.prepare(model.backbone, model.prefix(batch))
    x_BKX = model.decoder._eps(Noise(batch.position_B), 1)
    codes, places = SIZES["codes"] * SIZES["vocabulary"], model.decoder._places(context, batch.spec, 1)

    def predict(x):
        return model.decoder._predict(context, x, torch.full((6, 1), 0.5), batch.spec, places)

    with torch.no_grad():
        plain, moved_action, moved_code = x_BKX, x_BKX.clone(), x_BKX.clone()
        moved_action[..., codes:] += 1
        moved_code[..., :codes] += 1
        want, after_action, after_code = predict(plain), predict(moved_action), predict(moved_code)
    torch.testing.assert_close(after_action[..., :codes], want[..., :codes], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after_code[..., codes:], want[..., codes:], atol=1e-4)
