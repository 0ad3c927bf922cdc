"""Several decoders on one backbone: invisible to each other, insulated where asked, one of them acting; and reasoning before acting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.backbones.families import FAMILIES
from tests.parts import DECODERS, SOURCES, TINY, contents, samples
from vla.backbones.base import suffix_tokens
from vla.decoders.base import total_loss
from vla.decoders.conditioning import CrossAttention, LayerKeysValues, Pooled
from vla.decoders.dit import DiT
from vla.decoders.joint import Joint, OncePerPrefix, Part
from vla.decoders.latent import LatentActions
from vla.decoders.parallel import Parallel
from vla.decoders.reasoning import ReasonThenAct
from vla.decoders.tokens import AutoregressiveTokens
from vla.errors import UserError
from vla.noise import Noise
from vla.reasoning import END, FIRST_BYTE, text_ids, text_of

FLOW = DiT(conditioning=LayerKeysValues(32, 64), samples_per_context=2)


def made(config, count: int = 5, backbone=TINY):
    torch.manual_seed(0)
    holds = contents(config, backbone)
    model = holds.build()
    return model, holds.collate(model).samples(samples(count), SOURCES)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "parts",
    [
        (Part("tokens", AutoregressiveTokens()), Part("flow", FLOW)),
        (Part("in_context", DiT(samples_per_context=2)), Part("parallel", Parallel())),
        (Part("latent", LatentActions(codes=2, vocabulary=4, heads=2, readout_depth=1)), Part("masked", DECODERS["masked"])),
    ],
    ids=lambda parts: "+".join(part.name for part in parts),
)
@pytest.mark.parametrize("family", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_each_part_learns_as_if_it_were_alone(family, parts):
    """Loss and gradients of a joint decoder are the sums of its parts': no part's tokens move another's."""
    model, batch = made(Joint(parts), backbone={"tiny": TINY, **FAMILIES}[family])
    noise, decoder = Noise(batch.position_B, 3), model.decoder
    joint = model(batch, noise)
    found = gradients(model, total_loss(joint))
    want = {}
    for index, part in enumerate(parts):
        alone = decoder.parts[part.name].loss(model.backbone, model.prefix(batch), batch.target, noise.fold(index))
        for name, value in alone.parts.items():
            torch.testing.assert_close(joint.parts[f"{part.name}/{name}"].sum, value.sum, atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(joint.parts[f"{part.name}/{name}"].weight, value.weight)
        for name, gradient in gradients(model, total_loss(alone)).items():
            want[name] = want.get(name, 0) + gradient
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, want[name], atol=1e-5, rtol=1e-4 if family == "tiny" else 1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_knowledge_insulation_stops_the_flow_at_the_backbone_and_nothing_else():
    tokens = Part("tokens", AutoregressiveTokens())
    model, batch = made(Joint((tokens, Part("flow", FLOW, insulated=True))))
    noise = Noise(batch.position_B, 3)
    loss = model(batch, noise)
    flow = loss.parts["flow/denoise"]
    reached = gradients(model, flow.sum / flow.weight)
    assert not [name for name, g in reached.items() if not name.startswith("decoder.parts.flow.") and g.abs().sum() > 0]
    assert all(g.abs().sum() > 0 for name, g in reached.items() if name.startswith("decoder.parts.flow."))
    # The tokens train the backbone as they do alone, and the flow's own loss is that of an uninsulated one.
    together = gradients(model, total_loss(model(batch, noise)))
    alone = model.decoder.parts["tokens"].loss(model.backbone, model.prefix(batch), batch.target, noise.fold(0))
    for name, gradient in gradients(model, total_loss(alone)).items():
        if name.startswith("backbone."):
            torch.testing.assert_close(together[name], gradient, atol=1e-5, rtol=1e-4)
    free = model.decoder.parts["flow"].loss(model.backbone, model.prefix(batch), batch.target, noise.fold(1))
    torch.testing.assert_close(loss.parts["flow/denoise"].sum, free.parts["denoise"].sum, atol=1e-4, rtol=1e-5)


def test_what_runs_in_the_backbone_cannot_be_insulated():
    model, batch = made(Joint((Part("tokens", AutoregressiveTokens()), Part("dita", DiT(), insulated=True))))
    with pytest.raises(UserError, match="'dita' runs its own tokens through the backbone"):
        model(batch, Noise(batch.position_B))
    fine, batch = made(Joint((Part("a", Parallel()), Part("b", DiT(conditioning=Pooled(32, 2, 2, read="last")), insulated=True))))
    assert total_loss(fine(batch, Noise(batch.position_B))).isfinite()


def test_one_part_acts_and_another_may_be_chosen(tmp_path):
    from vla.checkpoint import load_model, save_checkpoint

    config = Joint((Part("tokens", AutoregressiveTokens()), Part("flow", FLOW)), acts="tokens")
    model, batch = made(config)
    noise = Noise(batch.position_B)
    save_checkpoint(tmp_path / "c", contents(config, TINY), model.state_dict())
    _, loaded = load_model(tmp_path / "c")
    with torch.no_grad():
        by_tokens = loaded.eval().sample(batch, noise)
        alone = model.decoder.parts["tokens"].sample(model.backbone, model.prefix(batch), batch.spec, noise.fold(0))
        loaded.decoder.acts = "flow"
        by_flow = loaded.sample(batch, noise)
    assert torch.equal(by_tokens, alone) and not torch.equal(by_tokens, by_flow)


def test_a_pass_over_prefix_and_suffix_is_one_after_the_shared_prefix():
    model, batch = made(Parallel())
    prefix = model.prefix(batch)
    shared, calls = OncePerPrefix(model.backbone, prefix), []
    model.backbone.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    x = torch.randn(len(batch.position_B), 3, TINY.width)
    want = model.backbone(prefix.cat(suffix_tokens(prefix, x, causal=True)))
    found = shared(shared.prefix.cat(suffix_tokens(shared.prefix, x, causal=True)))
    assert calls == [len(prefix) + 3, 3]
    torch.testing.assert_close(found.x_BSD, want.x_BSD, atol=1e-5, rtol=1e-5)
    for a, b in zip((*found.layers, *found.keys), (*want.layers, *want.keys), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_wrong_joints_are_refused():
    for parts, words in (
        ((), "distinct names"),
        ((Part("a", Parallel()), Part("a", Parallel())), "distinct names"),
        ((Part("a.b", Parallel()),), "distinct names"),
        ((Part("a", Parallel()), Part("b", replace(FLOW, state_in_suffix=True))), "proprioception"),
    ):
        with pytest.raises(UserError, match=words):
            contents(Joint(parts)).build()
    with pytest.raises(UserError, match="flow, tokens"):
        contents(Joint((Part("tokens", AutoregressiveTokens()), Part("flow", FLOW)), acts="dit")).build()


def test_text_is_bytes_and_reads_back():
    assert text_ids(["ab", "", "abcd"], 3).tolist() == [
        [FIRST_BYTE + 97, FIRST_BYTE + 98, END],
        [0, 0, 0],
        [FIRST_BYTE + b for b in b"abc"],
    ]
    assert [text_of(row) for row in text_ids(["öffne die Tür", ""], 20)] == ["öffne die Tür", ""]
    assert text_of([FIRST_BYTE + 0xC3, END]) == "�"


REASONING = ReasonThenAct(DiT(path=DECODERS["flow_data"].path, conditioning=CrossAttention(32, 2, 2), evaluations=2), length=8)


@pytest.mark.thorough
def test_it_learns_what_to_say_and_says_it_token_by_token():
    model, _ = made(REASONING)
    batch = contents(REASONING, TINY).collate(model).samples(samples(6, unlabelled=False), SOURCES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(80):
        part = model(batch, Noise(batch.position_B, step)).parts["text"]
        optimizer.zero_grad()
        (part.sum / part.weight).backward()
        optimizer.step()
    with torch.no_grad():
        said = model.decoder.say(model.backbone, model.prefix(batch))
    wanted = [sample.reasoning for sample in samples(6, unlabelled=False)]
    assert [s for s, w in zip(said, wanted, strict=True) if w] == [w for w in wanted if w]


def test_what_is_said_modulates_the_actions_and_silence_changes_nothing():
    model, batch = made(REASONING)
    noise, decoder = Noise(batch.position_B, 2), model.decoder
    with torch.no_grad():
        plain = decoder.action.sample(model.backbone, model.prefix(batch), batch.spec, noise)
        assert torch.equal(model.sample(batch, noise), plain)  # nor does anything that is said before it is learned what it means
        torch.nn.init.normal_(decoder.film.weight, std=0.1)
        denoise = lambda target: decoder.loss(model.backbone, model.prefix(batch), target, noise).parts["denoise"].sum  # noqa: E731
        silent = replace(batch.target, text_BL=torch.zeros_like(batch.target.text_BL))
        other = replace(batch.target, text_BL=torch.where(batch.target.text_BL > 0, FIRST_BYTE + 120, 0))
        bare = decoder.action.loss(model.backbone, model.prefix(batch), batch.target, noise).parts["denoise"].sum
        torch.testing.assert_close(denoise(silent), bare)
        assert abs(denoise(batch.target) - bare) > 1e-3 and abs(denoise(other) - denoise(batch.target)) > 1e-4
    loss = model(batch, noise)
    part = loss.parts["denoise"]
    reached = gradients(model, part.sum / part.weight)
    assert reached["decoder.text_in.weight"].abs().sum() > 0  # the action loss reaches the reasoning


def test_actions_without_a_text_are_learned_as_they_are_acted_after_saying_nothing():
    model, batch = made(REASONING, count=8)
    noise, decoder, target = Noise(batch.position_B, 2), model.decoder, batch.target
    torch.nn.init.normal_(decoder.film.weight, std=0.1)
    spoken_B, acts_B = target.text_BL[:, 0] > 0, target.label_BTA.flatten(1).any(1)
    silent_B = acts_B & ~spoken_B
    assert silent_B.any() and (spoken_B & acts_B).any() and (~acts_B).any()
    assert decoder.weights(target, noise)["text"] == (target.text_BL > 0).sum() + silent_B.sum()  # the end, and nothing of video
    bare = decoder.action.loss(model.backbone, model.prefix(batch), target, noise)
    found = decoder.loss(model.backbone, model.prefix(batch), target, noise)
    torch.testing.assert_close(found.sample_sum_B[silent_B], bare.sample_sum_B[silent_B])
    assert ((found.sample_sum_B - bare.sample_sum_B).abs()[spoken_B & acts_B] > 1e-4).all()
    with torch.no_grad():
        prefix = model.prefix(batch)
        plain = decoder.action.sample(model.backbone, prefix, batch.spec, noise)
        assert (model.sample(batch, noise) - plain).abs().max() > 1e-3
        decoder.head.bias[END] = 1e3
        assert set(decoder.say(model.backbone, prefix)) == {""} and torch.equal(model.sample(batch, noise), plain)


@pytest.mark.thorough
def test_a_mixed_batch_is_learned_and_acted_alike():
    """With words for some samples alone, it says nothing for the others, and acts as well as it has learned to."""
    config = ReasonThenAct(DiT(path=DECODERS["flow_data"].path, conditioning=CrossAttention(32, 2, 2), evaluations=2), length=10)
    torch.manual_seed(0)
    holds = contents(config, TINY)
    model, rows = holds.build(), samples(8, unlabelled=False)
    batch = holds.collate(model).samples(rows, SOURCES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0)
    for step in range(250):
        optimizer.zero_grad()
        total_loss(model(batch, Noise(batch.position_B, step))).backward()
        optimizer.step()
    with torch.no_grad():
        prefix = model.eval().prefix(batch)
        assert model.decoder.say(model.backbone, prefix) == [row.reasoning for row in rows]
        error_BTA = (model.sample(batch, Noise(batch.position_B)) - batch.target.action_BTA).abs() * batch.target.label_BTA
    for some_B in (torch.tensor([bool(row.reasoning) == spoken for row in rows]) for spoken in (False, True)):
        assert error_BTA[some_B].sum() / batch.target.label_BTA[some_B].sum() < 0.15


def test_saying_token_by_token_is_saying_at_once():
    """The states that modulate the actions when acting are those of teacher forcing with the same words."""
    model, batch = made(REASONING)
    decoder, prefix = model.decoder, model.prefix(batch)
    with torch.no_grad():
        id_BL, state_BLD, said_BL = decoder._say(model.backbone, prefix)
        shown_BL = torch.cat([torch.full_like(id_BL[:, :1], END), id_BL[:, :-1]], dim=1)
        suffix = suffix_tokens(prefix, decoder.text_in(shown_BL), causal=True, valid_BS=said_BL)
        want = model.backbone(prefix.cat(suffix)).last(id_BL.shape[1])
    torch.testing.assert_close(state_BLD[said_BL], want[said_BL], atol=1e-5, rtol=1e-5)
