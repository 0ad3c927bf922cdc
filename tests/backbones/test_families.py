"""The prefix of each family against the library's own forward pass: same words, same images, same hidden states."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from tests.backbones.families import FAMILIES, VOCABULARY, paligemma, prismatic, qwen3, qwen25, smolvlm
from tests.parts import ROBOTS, observation
from vla.backbones.base import prefix_tokens, suffix_tokens
from vla.backbones.library import freeze_parts
from vla.backbones.parse import library_config, library_model
from vla.config import from_json, to_json
from vla.errors import SchemaError, UnknownName, UserError
from vla.torchvision_cpu import prepare_torchvision
from vla.types import Observation

TEXTS = ("open", "close the big door now", "push")
IMAGE_ID = {"paligemma": 285, "paligemma2": 285, "smolvlm": 285, "qwen2_5_vl": 291, "qwen3_vl": 291}
LIBRARY_FAMILIES = tuple(IMAGE_ID)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    return {name: config.build().eval() for name, config in FAMILIES.items()}


def rows(seed: int = 0, side: int = 16) -> list[Observation]:
    """Two views of two frames; the second row has one view alone."""
    rng = np.random.default_rng(seed)
    found = [observation(ROBOTS[0], rng, side=side, text=text) for text in TEXTS]
    one = dict(list(found[1].images.items())[:1])
    return [found[0], Observation(one, found[1].state, found[1].instruction, found[1].embodiment, found[1].offsets_s), found[2]]


def whole_model(name: str, backbone):
    """The library's composite with the backbone's weights."""
    whole = library_model(backbone.config).eval()
    for part, attribute in backbone.library_parts.items():
        getattr(whole, attribute).load_state_dict(getattr(backbone, part).state_dict())
    whole.language_model.set_attn_implementation("eager") if name == "paligemma2" else None
    return whole


def processor(name: str, backbone):
    prepare_torchvision()
    from transformers import Qwen2VLImageProcessor, SiglipImageProcessor, SmolVLMImageProcessor

    pixels = backbone.config.pixels
    if name.startswith("paligemma"):
        return SiglipImageProcessor(size={"height": 16, "width": 16})
    if name == "smolvlm":
        return SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False)
    size = {"shortest_edge": pixels.least_pixels, "longest_edge": pixels.most_pixels}
    side = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    return Qwen2VLImageProcessor(**side, image_mean=list(pixels.mean), image_std=list(pixels.std))


def library_states(name: str, backbone, observations: list[Observation], inputs, suffix: int = 0) -> torch.Tensor:
    """Final states of the library's own forward pass; the last `suffix` tokens are causal in any family."""
    images = [[frame for view in obs.images.values() for frame in view] for obs in observations]
    processed = processor(name, backbone)(
        images=images if name == "smolvlm" else [each for row in images for each in row], return_tensors="pt"
    )
    patch = inputs["patch_BS"]
    given = {"input_ids": torch.where(patch >= 0, IMAGE_ID[name], inputs["token_BS"]), "attention_mask": inputs["token_valid_BS"].long()}
    if name.startswith("paligemma"):
        given["token_type_ids"] = torch.zeros_like(patch)
        given["token_type_ids"][:, patch.shape[1] - suffix :] = 1
    if name.startswith("qwen"):
        given["mm_token_type_ids"] = (patch >= 0).int()
    return whole_model(name, backbone)(**given, **processed, use_cache=False).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("name", LIBRARY_FAMILIES)
def test_states_are_the_librarys(made, name):
    """Several images, rows of different lengths and numbers of images; < 1e-5 in fp32. Measured: 5e-7."""
    backbone, observations = made[name], rows(side=32 if name == "smolvlm" else 16)  # no resizing here: that rounds
    inputs = backbone.collate(observations)
    tokens = backbone.embed(inputs)
    assert not tokens.valid_BS.all()
    want = library_states(name, backbone, observations, inputs)
    torch.testing.assert_close(backbone(tokens).x_BSD[tokens.valid_BS], want[tokens.valid_BS], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", LIBRARY_FAMILIES)
def test_words_after_a_prefix_are_where_the_library_puts_them(made, name):
    """A causal suffix after the cache of a batch with padding: the states of the longer text, row by row without padding."""
    backbone, words = made[name], torch.tensor([[10, 11, 12]])
    observations = rows(side=32 if name == "smolvlm" else 16)
    inputs = backbone.collate(observations)
    tokens = backbone.embed(inputs)
    suffix = suffix_tokens(tokens, backbone.language.embed_tokens(words.expand(3, -1)), causal=True)
    got = backbone(suffix, cache=backbone(tokens)).x_BSD
    for row, obs in enumerate(observations):
        alone = backbone.collate([obs])
        longer = {"patch_BS": -torch.ones_like(words), "token_BS": words, "token_valid_BS": torch.ones_like(words).bool()}
        longer = {key: torch.cat([alone[key], tensor], dim=1) for key, tensor in longer.items()}
        want = library_states(name, backbone, [obs], longer, suffix=3)[0, -3:]
        torch.testing.assert_close(got[row], want, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("towers", [1, 2])
def test_prismatic_merges_as_openvla_does(towers):
    """Uncut timm towers, [beginning, patches, text], the library's Llama."""
    import timm
    from transformers import LlamaModel

    backbone = prismatic(towers).build().eval()
    library = backbone.config.library
    observations = rows()
    inputs = backbone.collate(observations)
    language = LlamaModel(library_config({"model_type": "llama", **library["text_config"]})).eval()
    language.load_state_dict(backbone.language.state_dict())
    features = []
    named = zip(library["timm_model_ids"], library["timm_overrides"], backbone.vision.towers(), backbone._tower_pixels(), strict=True)
    for name, sizes, cut, pixels in named:
        tower = timm.create_model(name, num_classes=0, img_size=16, **sizes).eval()
        tower.load_state_dict(cut.state_dict(), strict=False)
        image = inputs["image_BVFHW3"].flatten(0, 2).permute(0, 3, 1, 2) / 255
        image = (image - torch.tensor(pixels.mean).view(3, 1, 1)) / torch.tensor(pixels.std).view(3, 1, 1)
        features.append(tower.get_intermediate_layers(image, n={len(tower.blocks) - 2})[0])
        assert len(tower.blocks) == len(cut.blocks) + 1
    patches = backbone.projector(torch.cat(features, dim=-1)).unflatten(0, (3, 4)).flatten(1, 2)
    tokens = backbone.embed(inputs)
    states = backbone(tokens).x_BSD
    for row, obs in enumerate(observations):
        ids = torch.tensor(backbone.encoder.ids(obs.instruction, []))
        words = language.embed_tokens(ids)
        count = patches.shape[1] if len(obs.images) == 2 else patches.shape[1] // 2
        whole = torch.cat([words[:1], patches[row, :count], words[1:]])
        want = language(inputs_embeds=whole[None]).last_hidden_state[0]
        torch.testing.assert_close(states[row, : len(want)], want, atol=1e-5, rtol=0)
        assert int(tokens.valid_BS[row].sum()) == len(want)


@torch.no_grad()
@pytest.mark.parametrize("name", LIBRARY_FAMILIES)
def test_pixels_are_the_librarys(made, name):
    """From another size and proportion, on a CPU: the library's image processor to rounding (a GPU may differ by a level of 255)."""
    backbone = made[name]
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(40) * 3, np.arange(56) * 2)[..., None] + rng.integers(0, 40, (40, 56, 3))
    image = ramp.astype(np.uint8)[None]
    seen = {}
    tower = backbone.vision.embeddings if name == "smolvlm" else backbone.vision
    hook = tower.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs, first=(*args, None)[0]), with_kwargs=True)
    backbone.embed(backbone.collate([Observation({"third_person": image}, np.zeros((1, 3)), "open", "narrow")]))
    hook.remove()
    processed = processor(name, backbone)(images=[[image[0]]] if name == "smolvlm" else [image[0]], return_tensors="pt")
    got = seen.get("pixel_values", seen["first"])
    want = processed["pixel_values"].flatten(0, 1) if name == "smolvlm" else processed["pixel_values"]
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    if name.startswith("qwen"):
        assert seen["grid_thw"].tolist() == processed["image_grid_thw"].tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_view_is_as_if_it_had_never_been(made, name):
    """Alone, beside rows with more views, and with a roster of cameras: the same states. Sizes may differ within a batch."""
    backbone = made[name]
    observations = rows()
    alone = backbone.embed(backbone.collate(observations[1:2]))
    together = backbone.embed(backbone.collate(observations))
    want = backbone(alone).x_BSD[alone.valid_BS]
    torch.testing.assert_close(backbone(together).x_BSD[1][together.valid_BS[1]], want, atol=1e-5, rtol=1e-5)
    mixed = [rows(side=24)[0], observations[1]]
    inputs = backbone.collate(mixed)
    assert "image_size_BV2" in inputs
    sizes = backbone.embed(inputs)
    torch.testing.assert_close(backbone(sizes).x_BSD[1][sizes.valid_BS[1]], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_roster_of_cameras_orders_views_and_refuses_strangers(made):
    backbone = copy.copy(made["paligemma"])
    obs = rows()[0]
    swapped = Observation(dict(reversed(obs.images.items())), obs.state, obs.instruction, obs.embodiment, obs.offsets_s)
    backbone.config = paligemma(cameras=("wrist", "left", "third_person"))
    one, two = (backbone.embed(backbone.collate([each])) for each in (obs, swapped))
    assert torch.equal(one.x_BSD, two.x_BSD)
    backbone.config = FAMILIES["paligemma"]
    assert not torch.equal(backbone.embed(backbone.collate([obs])).x_BSD, one.x_BSD)  # wrist came second here
    backbone.config = paligemma(cameras=("wrist",))
    with pytest.raises(UnknownName, match="camera 'third_person'.*wrist"):
        backbone.collate([obs])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_runs_without_images(made, name):
    """A rank whose batch has no image must touch the same parameters as the others: their gradients are zero, not absent."""
    backbone = made[name]
    blind = [Observation({}, obs.state, obs.instruction, obs.embodiment, obs.offsets_s) for obs in rows()[:2]]
    tokens = backbone.embed(backbone.collate(blind))
    backbone(tokens).x_BSD[tokens.valid_BS].square().sum().backward()
    grads = {key: p.grad for key, p in backbone.named_parameters()}
    backbone.zero_grad()
    assert all(grad is not None for grad in grads.values()), [key for key, grad in grads.items() if grad is None]
    assert all(not grad.any() for key, grad in grads.items() if key.startswith(("vision.", "projector.")))
    assert grads["language.layers.0.self_attn.q_proj.weight"].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_exactly_what_is_not_frozen(made, name):
    backbone = copy.deepcopy(made[name])
    tokens_of = lambda: backbone.embed(backbone.collate(rows()))  # noqa: E731
    for frozen in (("vision",), ("vision", "projector"), ("language.layers.0",)):
        for p in backbone.parameters():
            p.requires_grad_(True)
        freeze_parts(backbone, frozen)
        backbone.zero_grad()
        tokens = tokens_of()
        backbone(tokens).x_BSD[tokens.valid_BS].square().sum().backward()
        for key, p in backbone.named_parameters():
            assert (p.grad is not None) == p.requires_grad, key
        merger = {id(p) for module in backbone.part("projector") for p in module.parameters()}
        still = {id(p) for p in backbone.parameters() if not p.requires_grad}
        vision = {id(p) for p in backbone.vision.parameters()} - merger
        want = {("vision",): vision, ("vision", "projector"): vision | merger}
        assert still == want.get(frozen, {id(p) for p in backbone.language.layers[0].parameters()})
    with pytest.raises(UnknownName, match="part to freeze 'visoin'.*projector"):
        freeze_parts(backbone, ("visoin",))


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_changes_no_loss_and_no_gradient(made, name):
    """Prefix, then two groups of suffixes after its cache; gradients flow into keys and values that were recorded inside."""
    backbone = copy.deepcopy(made[name]).train()
    inputs = backbone.collate(rows())
    found = []
    for on in (False, True):
        backbone.set_gradient_checkpointing(on)
        backbone.zero_grad()
        tokens = backbone.embed(inputs)
        x = torch.randn(3, 4, backbone.width, generator=torch.Generator().manual_seed(1))
        prefix = backbone(tokens)
        hidden = backbone(suffix_tokens(tokens, x, causal=False, samples=2), cache=prefix)
        total = hidden.x_BSD.square().sum() + sum(t.square().sum() for t in (*prefix.layers, *prefix.keys, *prefix.values))
        total.backward()
        found.append((float(total.detach()), {key: p.grad.clone() for key, p in backbone.named_parameters() if p.grad is not None}))
    (loss, want), (again, got) = found
    assert loss == pytest.approx(again, rel=1e-6) and set(want) == set(got)
    for key, grad in want.items():
        torch.testing.assert_close(got[key], grad, atol=1e-4, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_what_enters_the_next_one(made, name):
    """The library's own record of hidden states, where it has one that is right (Qwen3-VL's misses the deep features)."""
    backbone = made[name]
    tokens = backbone.embed(backbone.collate(rows()))
    hidden = backbone(tokens)
    torch.testing.assert_close(backbone.language.norm(hidden.layers[-1]), hidden.x_BSD)
    assert len(hidden.layers) == len(hidden.keys) == len(hidden.values) == backbone.attention.layers
    shape = backbone.attention
    assert hidden.keys[0].shape == (3, shape.kv_heads, len(tokens), shape.head_width)
    state = hidden.layers[0]
    key = backbone.language.layers[1].self_attn.v_proj(backbone.language.layers[1].input_layernorm(state))
    torch.testing.assert_close(key.unflatten(-1, (shape.kv_heads, -1)).transpose(1, 2), hidden.values[1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["paligemma", "qwen2_5_vl", "qwen3_vl", "smolvlm", "prismatic"])
def test_attention_implementations_agree(made, name):
    """sdpa with a boolean mask, eager with an additive one, flex with its block mask (forward alone on a CPU)."""
    backbone = copy.deepcopy(made[name])
    tokens = backbone.embed(backbone.collate(rows()))
    suffix = suffix_tokens(tokens, torch.randn(3, 4, backbone.width), causal=False, samples=2)
    both = tokens.cat(suffix)
    want = backbone(both).x_BSD[both.valid_BS]
    backbone._set_attention("eager")
    torch.testing.assert_close(backbone(both).x_BSD[both.valid_BS], want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(backbone(suffix, cache=backbone(tokens)).x_BSD, backbone(both).last(4), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_flex_attention_agrees(made, name):
    backbone = copy.deepcopy(made[name])
    tokens = backbone.embed(backbone.collate(rows()))
    want = backbone(tokens).x_BSD[tokens.valid_BS]
    backbone._set_attention("flex_attention")
    torch.testing.assert_close(backbone(tokens).x_BSD[tokens.valid_BS], want, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_suffix_compiles_whole(made, name):
    """Nothing in the suffix's step breaks the graph: the mask, the recording and the library's model are one."""
    backbone = made[name]
    tokens = backbone.embed(backbone.collate(rows()))
    prefix = backbone(tokens)
    suffix = suffix_tokens(tokens, torch.randn(3, 4, backbone.width), causal=False, samples=2)
    compiled = torch.compile(lambda suffix, cache: backbone(suffix, cache=cache).x_BSD, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(suffix, prefix), backbone(suffix, cache=prefix).x_BSD, atol=1e-6, rtol=1e-6)


def test_flash_needs_its_package_and_softcaps_refuse_sdpa(made):
    backbone = copy.deepcopy(made["paligemma2"])
    assert backbone.language.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="caps its attention scores"):
        backbone._set_attention("sdpa")
    with pytest.raises(UserError, match="flash-attn package"):
        backbone._set_attention("flash_attention_2")
    with pytest.raises(UnknownName, match="attention implementation 'fast'"):
        smolvlm(attention="fast")


@torch.no_grad()
def test_a_sequence_beyond_a_sliding_window_is_refused(made):
    backbone = made["paligemma2"]
    tokens = prefix_tokens(torch.zeros(1, 129, backbone.width), torch.ones(1, 129, dtype=torch.bool))
    with pytest.raises(SchemaError, match="129 tokens .* 128"):
        backbone(tokens)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_keeps_positions_exact(made, name):
    """Weights, states, keys and values in bf16; rotary frequencies in fp32, or far positions would drift."""
    backbone = copy.deepcopy(made[name]).bfloat16()
    tokens = backbone.embed(backbone.collate(rows()))
    hidden = backbone(tokens)
    assert {t.dtype for t in (hidden.x_BSD, hidden.keys[0], hidden.values[0], *backbone.parameters())} == {torch.bfloat16}
    for key, buffer in made[name].language.rotary_emb.named_buffers():
        assert torch.equal(backbone.language.rotary_emb.get_buffer(key), buffer) and buffer.dtype == torch.float32
    want = made[name](made[name].embed(made[name].collate(rows()))).x_BSD
    error = (hidden.x_BSD.float() - want)[tokens.valid_BS].square().mean().sqrt() / want[tokens.valid_BS].square().mean().sqrt()
    assert error < 0.02
    again = backbone(suffix_tokens(tokens, torch.zeros(3, 2, 32).bfloat16(), causal=True), cache=hidden)
    assert again.x_BSD.dtype == torch.bfloat16


@torch.no_grad()
def test_heads():
    tied, untied = paligemma().build(), smolvlm(head=True).build()
    x = torch.randn(2, 3, 32)
    assert tied.logits(x).shape == untied.logits(x).shape == (2, 3, VOCABULARY)
    ids = torch.tensor([5, 9])
    torch.testing.assert_close(untied.logits(x, ids), untied.logits(x)[..., ids])
    with pytest.raises(UserError, match="head=True"):
        smolvlm().build().logits(x)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_configurations_come_back_from_json(config):
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_configuration_of_another_family_is_refused():
    with pytest.raises(UserError, match="Qwen25VL is for qwen2_5_vl, not for a configuration of 'qwen3_vl'"):
        type(qwen25())(qwen3().library)


def test_a_library_too_old_is_refused(monkeypatch):
    from transformers.modeling_layers import GradientCheckpointingLayer

    monkeypatch.delattr(GradientCheckpointingLayer, "_can_checkpoint_with_cache")
    with pytest.raises(UserError, match=r"need transformers 5.15 or newer, this is 5\."):
        smolvlm().build()
