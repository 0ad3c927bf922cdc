"""The denoiser's options: mutual invisibility of noise samples, guidance, warm starts, mixtures, sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.backbones.families import FAMILIES
from tests.parts import DECODERS, SOURCES, TINY, contents, samples
from vla.backbones.base import AttentionShape
from vla.decoders.conditioning import CrossAttention, InContext, LayerKeysValues, Pooled
from vla.decoders.dit import DiT
from vla.decoders.dit_pass import Pass
from vla.decoders.expert import Expert, ExpertShape
from vla.decoders.mixture import ExpertMixture
from vla.diffusion.base import Warm
from vla.diffusion.ddpm import DDPM
from vla.diffusion.flow import Flow
from vla.errors import UserError
from vla.noise import Noise
from vla.types import ActionSpec

DENOISERS = [name for name, config in DECODERS.items() if isinstance(config, DiT)]


def made(config, backbone=TINY, count: int = 4):
    torch.manual_seed(0)
    holds = contents(config, backbone)
    model = holds.build()
    return model, holds.collate(model).samples(samples(count, unlabelled=False), SOURCES)


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("family", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_noise_samples_of_one_context_are_mutually_invisible(family, name):
    """Whatever the conditioning: another sample's noisy actions and time move nothing, and K samples at once are K runs of one."""
    model, batch = made(replace(DECODERS[name], samples_per_context=3), {"tiny": TINY, **FAMILIES}[family])
    decoder, K = model.decoder, 3
    B, T, A = batch.target.action_BTA.shape
    draw = torch.Generator().manual_seed(1)
    x_BKTA, t_BK = torch.randn(B, K, T, A, generator=draw), torch.rand(B, K, generator=draw) * 0.9
    like, seen_BK = batch.spec, torch.zeros(B, K, dtype=torch.bool)
    with torch.no_grad():
        context = decoder.conditioning.prepare(model.backbone, model.prefix(batch))
        together = Pass(decoder, context, like, seen_BK, None)(x_BKTA, t_BK)
        other_x, other_t = x_BKTA.clone(), t_BK.clone()
        other_x[:, 1], other_t[:, 1] = 3 - other_x[:, 1], 0.95
        moved = Pass(decoder, context, like, seen_BK, None)(other_x, other_t)
        apart = Pass(decoder, context, like, seen_BK[:, :1], None)
        alone = [apart(x_BKTA[:, k : k + 1], t_BK[:, k : k + 1]) for k in range(K)]
    torch.testing.assert_close(together[:, [0, 2]], moved[:, [0, 2]], atol=1e-6 if family == "tiny" else 1e-5, rtol=0)
    assert (together[:, 1] - moved[:, 1])[like.mask_BTA].abs().max() > 1e-3
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "conditioning", [InContext(), CrossAttention(32, 2, 2), LayerKeysValues(32, 64), Pooled(32, 2, 2)], ids=lambda c: c.kind.split(".")[1]
)
def test_a_dropped_context_is_not_seen_at_all(conditioning):
    """What classifier-free guidance calls unconditional: the observation moves nothing, the null token does."""
    model, batch = made(DiT(conditioning=conditioning, condition_dropout=0.5, guidance=2.0))
    decoder, other = model.decoder, made(DiT(conditioning=conditioning, condition_dropout=0.5), count=4)[1]
    inputs = {name: (255 - value if value.dtype == torch.uint8 else value) for name, value in other.inputs.items()}
    other = replace(batch, inputs=inputs)
    B, T, A = batch.target.action_BTA.shape
    x_BKTA, t_BK = torch.randn(B, 1, T, A, generator=torch.Generator().manual_seed(1)), torch.full((B, 1), 0.5)

    def predict(of, dropped: bool):
        context = decoder.conditioning.prepare(model.backbone, model.prefix(of))
        return Pass(decoder, context, of.spec, torch.full((B, 1), dropped), None)(x_BKTA, t_BK)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("out.weight"):  # residual branches start small
                parameter.mul_(20)
        torch.testing.assert_close(predict(batch, True), predict(other, True), atol=1e-6, rtol=0)
        assert (predict(batch, False) - predict(other, False)).abs().max() > 1e-4
        before = predict(batch, True)
        decoder.null_D += 1
        assert (predict(batch, True) - before).abs().max() > 1e-4


def test_guidance_extrapolates_from_the_null_prediction():
    config = DiT(path=Flow(times="uniform"), conditioning=Pooled(32, 2, 2), condition_dropout=0.1, guidance=1.5, evaluations=1)
    model, batch = made(config)
    noise, B = Noise(batch.position_B, 2), 4
    with torch.no_grad():
        found = model.sample(batch, noise)
        eps = noise.normal("eps", *batch.target.action_BTA.shape[1:])
        context = model.decoder.conditioning.prepare(model.backbone, model.prefix(batch))
        run = lambda dropped: Pass(model.decoder, context, batch.spec, torch.full((B, 1), dropped), None)(  # noqa: E731
            eps[:, None], torch.zeros(B, 1)
        )[:, 0]
        want = eps + run(True) + 1.5 * (run(False) - run(True))
    torch.testing.assert_close(found, want * batch.spec.mask_BTA)
    with pytest.raises(UserError, match="condition_dropout"):
        made(DiT(guidance=1.5))


def test_conditions_are_dropped_as_often_as_asked():
    model, _ = made(DiT(conditioning=Pooled(32, 2, 2), condition_dropout=0.1, samples_per_context=8))
    dropped_BK = model.decoder._dropped(type("Pooled", (), {"cache": None}), Noise(torch.arange(2000)))
    assert abs(dropped_BK.float().mean().item() - 0.1) < 0.01
    assert (dropped_BK.any(1) & ~dropped_BK.all(1)).float().mean() > 0  # each noise sample for itself


@pytest.mark.parametrize(
    "path", [Flow(), Flow(predict="data"), DDPM(steps=20, predict="data", clip=None)], ids=("velocity", "data", "ddpm")
)
def test_a_warm_start_spends_its_steps_near_the_guess(path):
    """From a guess at t = 0.8, one step of an oracle that knows the answer lands on it; at t -> 1 nothing but the guess is left."""
    solver = path.build()
    draw = torch.Generator().manual_seed(0)
    eps, guess, answer = (torch.randn(3, 4, 2, generator=draw) for _ in range(3))
    asked = []

    def oracle(x, t):
        asked.append(t[0].item())
        return answer if path.predict == "data" else (answer - x) / (1 - t).view(-1, 1, 1)

    torch.testing.assert_close(solver.solve(oracle, eps, 2, warm=Warm(guess, 0.8)), answer, atol=1e-4, rtol=1e-4)
    assert len(asked) == 2 and asked[0] == pytest.approx(0.8, abs=0.06) and asked[1] == pytest.approx(0.9, abs=0.06)
    still = lambda x, t: x if path.predict == "data" else torch.zeros_like(x)  # noqa: E731
    near = solver.solve(still, eps, 1, warm=Warm(guess, 0.95))
    assert (near - guess).abs().mean() < (eps - guess).abs().mean() / 2


def test_a_decoder_takes_a_warm_start():
    model, batch = made(DiT(evaluations=2))
    like, noise = batch.spec, Noise(batch.position_B)
    with torch.no_grad():
        prefix = model.prefix(batch)
        cold = model.decoder.sample(model.backbone, prefix, like, noise)
        warm = model.decoder.sample(model.backbone, prefix, like, noise, warm=Warm(batch.target.action_BTA, 0.9))
    error = lambda x: ((x - batch.target.action_BTA).abs() * like.mask_BTA).mean()  # noqa: E731
    assert error(warm) < error(cold) / 2


def test_the_noise_level_alone_chooses_the_experts():
    torch.manual_seed(0)
    mixture = ExpertMixture(lambda: _Scale(8), 4, 2, 8)
    x, condition = torch.randn(3, 6, 8), torch.randn(3, 2, 8)
    weights = mixture.weights(condition)
    assert ((weights > 0).sum(-1) == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2))
    want = sum(w[..., None] * e(x) for w, e in zip(weights.repeat_interleave(3, 1).unbind(-1), mixture.experts, strict=True))
    torch.testing.assert_close(mixture(x, condition), want)
    assert mixture.balance(torch.randn(4000, 8)) < 1.5
    with torch.no_grad():
        mixture.router.weight.zero_()
        mixture.router.weight[:, 0] = torch.tensor([1.0, 0.9, -3, -3])
    assert mixture.balance(torch.ones(10, 8) * 5) > 1.9  # two of four do all the work
    with pytest.raises(UserError, match="1..4"):
        ExpertMixture(lambda: _Scale(8), 4, 5, 8)


class _Scale(torch.nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x, condition=None):
        return super().forward(x)


def test_the_balance_loss_undoes_a_collapse():
    torch.manual_seed(0)
    mixture = ExpertMixture(lambda: _Scale(8), 4, 1, 8)
    condition_ND = torch.randn(512, 8) + 2
    with torch.no_grad():
        mixture.router.weight[0] += 1  # one expert takes all
    optimizer = torch.optim.Adam([mixture.router.weight], lr=0.02)
    share = lambda: (mixture.weights(condition_ND) > 0).float().mean(0)  # noqa: E731
    assert share()[0] > 0.95 and mixture.balance(condition_ND) > 3
    for _ in range(100):
        optimizer.zero_grad()
        mixture.balance(condition_ND).backward()
        optimizer.step()
    assert share().max() < 0.6 and mixture.balance(condition_ND) < 1.2


def test_the_balance_loss_is_the_same_for_every_sample_and_batch():
    model, batch = made(DiT(conditioning=CrossAttention(32, 1, 2), experts=4, top_k=1, samples_per_context=2))
    value = lambda rows: model(batch[rows], Noise(batch.position_B[rows], 5)).parts["balance"]  # noqa: E731
    one, all_ = value(slice(0, 1)), value(slice(0, 4))
    torch.testing.assert_close(one.sum / one.weight, all_.sum / all_.weight)
    assert all_.weight == 4


@pytest.mark.parametrize("size, want_M", [("S", 13), ("B", 89), ("L", 308)])
def test_sizes_are_those_that_cogact_publishes(size, want_M):
    """Li et al. 2024: action modules of 13M, 89M and 308M parameters, beside a backbone of width 4096."""
    from vla.roster import Roster

    config = DiT(path=DDPM(steps=100), conditioning=Pooled.dit(size, read="last"), time="token", condition_dropout=0.1)
    with torch.device("meta"):
        decoder = config.build(4096, Roster(("robot",), 16, 7, 7))
    count = sum(p.numel() for p in decoder.parameters())
    assert abs(count / 1e6 - want_M) < 0.6 + 0.01 * want_M, f"{count / 1e6:.1f}M"
    assert decoder.path.alphas_cumprod_K.device.type == "cpu"  # no weight: it must be there when weights come later


def test_the_expert_of_pi0_has_its_published_size():
    """Black et al. 2024: "~300M parameters"; Gemma's layers at width 1024, MLP 4096, depth 18, 8 heads, 1 KV head, head width 256."""
    gemma_2b = AttentionShape(layers=18, heads=8, kv_heads=1, head_width=256, rope_theta=10_000.0)
    config = DiT(conditioning=LayerKeysValues(width=1024, mlp_width=4096), state_in_suffix=True)
    from vla.roster import Roster

    with torch.device("meta"):
        decoder = config.build(2048, Roster(("robot",), 50, 32, 32))
        decoder.bind(type("Gemma2B", (), {"attention": gemma_2b}))
    layer = 1024 * (8 + 2) * 256 + 8 * 256 * 1024 + 3 * 1024 * 4096 + 2 * 1024
    expert = sum(p.numel() for p in decoder.conditioning.parameters())
    assert expert == 18 * layer + 1024 == 311_464_960
    heads = sum(p.numel() for p in decoder.parameters()) - expert
    assert heads == 3 * (32 * 1024) + 1024 * 2 + 32 + 2 * 1024 * 1024 + 1024 + 1024 * 1024 + 1024 + 50 * 1024


def test_interleaved_layers_look_at_text_and_images_in_turn():
    torch.manual_seed(0)
    from vla.backbones.base import prefix_tokens, suffix_tokens

    expert = Expert(ExpertShape.of(16, 4, 2, "dit", context_width=8, interleaved=True)).eval()
    image_BS = torch.tensor([[True, True, False, False, False]])
    context = replace(prefix_tokens(torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)), extras={"image_BS": image_BS})
    suffix = suffix_tokens(context, torch.randn(1, 3, 16), causal=False)
    cache = expert.remember(context)
    layers = expert(suffix, cache).layers
    for column, first in ((0, 2), (3, 0)):  # an image moves layer 2 first, a word layer 0
        x_BSD = context.x_BSD.clone()
        x_BSD[:, column] += 3
        moved = expert(suffix, expert.remember(context.with_x(x_BSD))).layers
        changed = [not torch.allclose(a, b, atol=1e-7) for a, b in zip(layers, moved, strict=True)]
        assert changed == [layer >= first for layer in range(4)]


def test_steps_that_do_not_exist_and_wrong_choices():
    for config, words in (
        (DiT(time="now"), "adaptive, mix, token"),
        (DiT(time="adaptive"), "time='mix'"),
        (DiT(conditioning=Pooled(32, 2, 3)), "3 heads"),
        (DiT(conditioning=Pooled(32, 2, 2, style="gpt")), "dit, gemma, llama"),
        (DiT(conditioning=LayerKeysValues(32, 64, style="dit")), "rotary"),
        (DiT(path=DDPM(predict="score")), "data, noise, velocity"),
    ):
        with pytest.raises(UserError, match=words):
            contents(config).build()
    model, batch = made(DiT(state_in_suffix=True, conditioning=LayerKeysValues(32, 64)))
    assert model.state_in is None and "state_BFP" in model.prefix(batch).given
    nobody = ActionSpec(batch.spec.embodiment_B, torch.zeros_like(batch.spec.mask_BTA))
    with torch.no_grad():
        assert (model.decoder.sample(model.backbone, model.prefix(batch), nobody, Noise(batch.position_B)) == 0).all()


@pytest.mark.parametrize("name", DENOISERS)
def test_what_is_found_once_for_all_evaluations_is_what_each_would_find(name):
    model, batch = made(DECODERS[name])
    decoder, noise = model.decoder, Noise(batch.position_B)
    grid = decoder.path.grid(2)
    x_BKTA = decoder._pad(noise.normal("eps", *batch.target.action_BTA.shape[1:]))[:, None]
    dropped = torch.zeros(len(x_BKTA), 1, dtype=torch.bool)
    with torch.no_grad():
        context = decoder.conditioning.prepare(model.backbone, model.prefix(batch))
        planned = Pass(decoder, context, batch.spec, dropped, None, grid)
        for step, now in enumerate(grid):
            alone = Pass(decoder, context, batch.spec, dropped, None)(x_BKTA, torch.full_like(dropped, now, dtype=torch.float32))
            torch.testing.assert_close(planned(x_BKTA, torch.zeros_like(dropped).float(), step), alone, atol=1e-5, rtol=1e-4)
