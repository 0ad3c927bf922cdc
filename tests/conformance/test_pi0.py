"""Our pi0 against `transformers`' own PI0ForConditionalGeneration with the same weights: loss, gradients, and sampled actions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vla.backbones.base import AttentionShape, Backbone, Hidden, Tokens, prefix_tokens
from vla.backbones.masks import attention_mask
from vla.backbones.recording_cache import RecordingCache, watch
from vla.decoders.base import total_loss
from vla.decoders.conditioning import LayerKeysValues
from vla.decoders.dit import DiT
from vla.diffusion.flow import Flow
from vla.roster import Roster
from vla.torchvision_cpu import prepare_torchvision
from vla.types import ActionSpec, Target

B, T, A, P, VIEWS, WORDS = 3, 6, 5, 4, 2, 5
IMAGE_TOKEN = 63


@pytest.fixture(scope="module")
def theirs():
    prepare_torchvision()
    from transformers import PI0Config, PI0ForConditionalGeneration

    text = {"model_type": "gemma", "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {**text, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 64},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
                "projection_dim": 32,
                "vision_use_head": False,
            },
            "image_token_id": IMAGE_TOKEN,
            "projection_dim": 32,
        },
        dit_config={**text, "hidden_size": 24, "intermediate_size": 48, "vocab_size": 64, "hidden_activation": "gelu_pytorch_tanh"},
        chunk_size=T,
        max_action_dim=A,
        max_state_dim=P,
    )
    torch.manual_seed(0)
    model = PI0ForConditionalGeneration(config).eval()
    with torch.no_grad():  # the library starts norms at exactly one and weights tiny: parity must not hold by smallness
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


class PaliGemmaOf(Backbone):
    """The vision-language model inside theirs, as a backbone: what its own wrapper in vla/backbones does, without the pixels."""

    def __init__(self, theirs: torch.nn.Module) -> None:
        super().__init__()
        self.theirs = [theirs.model]  # in a list: its parameters are not ours
        self.language = theirs.model.vlm.language_model
        self.width = self.language.config.hidden_size
        watch(self.language.layers)

    @property
    def attention(self) -> AttentionShape:
        c = self.language.config
        return AttentionShape(
            c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rope_parameters["rope_theta"]
        )

    def collate(self, observations):
        raise NotImplementedError

    def embed(self, inputs):
        names = ("input_ids", "pixel_values", "pixel_attention_mask")
        return prefix_tokens(self.theirs[0].embed_prefix(*(inputs[name] for name in names)), inputs["attention_mask"].bool())

    def forward(self, tokens: Tokens, cache: Hidden | None = None) -> Hidden:
        seen = tokens if cache is None else cache.tokens.cat(tokens)
        recorder = RecordingCache(len(self.language.layers), *((cache.keys, cache.values) if cache else ()))
        out = self.language(
            inputs_embeds=tokens.x_BSD,
            attention_mask=attention_mask(tokens, seen, "sdpa"),
            position_ids=tokens.position_BS,
            past_key_values=recorder,
            use_cache=False,
        )
        return Hidden(seen, out.last_hidden_state, *recorder.close())


class Given:
    """A `Noise` that gives what the test says: normal draws, and times by pi0's convention."""

    def __init__(self, eps_BKTA: Tensor, tau_BK: Tensor) -> None:
        self.eps, self.tau = eps_BKTA, tau_BK

    def normal(self, stream: str, *shape: int) -> Tensor:
        return self.eps.reshape(B, *shape)

    def uniform(self, stream: str, *shape: int) -> Tensor:
        return ((self.tau.double() - 0.001) / 0.999) ** 1.5


def ours_of(theirs, samples: int = 1):
    """The decoder with their weights, and the map from each of our parameters to the same thing of theirs."""
    config = DiT(
        path=Flow(times="pi0", reverse=True),
        conditioning=LayerKeysValues(width=24, mlp_width=48, style="gemma"),
        samples_per_context=samples,
        evaluations=10,
        state_in_suffix=True,
    )
    backbone = PaliGemmaOf(theirs)
    decoder = config.build(backbone.width, Roster(("robot",), T, A, P))
    decoder.bind(backbone)
    named = dict(decoder.named_parameters())
    embed = theirs.embed_action_time
    where = {
        "step_TD": lambda read: torch.zeros(T, 24),  # pi0 has no embedding of steps beside the rotary positions
        "action_in.weight_EIO": lambda read: read(embed.action_in_proj.weight).T[None],
        "action_in.bias_EO": lambda read: read(embed.action_in_proj.bias)[None],
        "state_in.weight_EIO": lambda read: read(embed.state_proj.weight).T[None],
        "state_in.bias_EO": lambda read: read(embed.state_proj.bias)[None],
        "out.weight_EIO": lambda read: read(theirs.action_out_proj.weight).T[None],
        "out.bias_EO": lambda read: read(theirs.action_out_proj.bias)[None],
        "conditioning.expert.norm.weight_D": lambda read: read(theirs.model.dit.norm.weight, 1),
    }
    for name, linear in (("time_mix.0", embed.action_time_mlp_in), ("time_mix.2", embed.action_time_mlp_out)):
        where[f"{name}.weight"] = lambda read, m=linear: read(m.weight)
        where[f"{name}.bias"] = lambda read, m=linear: read(m.bias)
    for index, layer in enumerate(theirs.model.dit.layers):
        at, mlp = layer.self_attn, layer.mlp
        for name, parts, offset in (
            ("norm1.weight_D", [layer.input_layernorm], 1),  # Gemma's norms multiply by 1 + weight
            ("norm2.weight_D", [layer.post_attention_layernorm], 1),
            ("q.weight", [at.q_proj], 0),
            ("kv.weight", [at.k_proj, at.v_proj], 0),
            ("out.weight", [at.o_proj], 0),
            ("mlp.up.weight", [mlp.gate_proj, mlp.up_proj], 0),
            ("mlp.down.weight", [mlp.down_proj], 0),
        ):
            where[f"conditioning.expert.blocks.{index}.{name}"] = lambda read, p=parts, o=offset: torch.cat([read(m.weight, o) for m in p])
    assert set(where) == set(named), set(where) ^ set(named)
    with torch.no_grad():
        for name, take in where.items():
            named[name].copy_(take(lambda parameter, offset=0: parameter.detach() + offset))
    return backbone, decoder, named, where


def inputs(seed: int = 0):
    """Two cameras, of which the last row has one; words of different lengths, padded on the right."""
    draw = torch.Generator().manual_seed(seed)
    patches = 4
    cameras = torch.tensor([[True, True], [True, True], [True, False]])
    ids, attend = torch.zeros(B, VIEWS * patches + WORDS, dtype=torch.int64), torch.zeros(B, VIEWS * patches + WORDS, dtype=torch.int64)
    for row, words in enumerate((5, 3, 4)):
        images = int(cameras[row].sum()) * patches
        ids[row, :images] = IMAGE_TOKEN
        ids[row, images : images + words] = torch.randint(1, 60, (words,), generator=draw)
        attend[row, : images + words] = 1
    return {
        "input_ids": ids,
        "attention_mask": attend,
        "pixel_values": torch.randn(B, VIEWS, 3, 16, 16, generator=draw),
        "pixel_attention_mask": cameras,
    }, {
        "state": torch.randn(B, P, generator=draw),
        "actions": torch.randn(B, T, A, generator=draw),
        "noise": torch.randn(B, T, A, generator=draw),
        "timestep": torch.tensor([0.25, 0.8125, 0.0625]),
    }


def prefix_of(backbone, seen, state):
    prefix = backbone.embed(seen)
    valid = torch.ones(B, 1, dtype=torch.bool)
    return Tokens(*prefix._core(), extras={"state_BFP": state[:, None], "state_valid_BF": valid})


def target_of(actions):
    everything = torch.ones(B, T, A, dtype=torch.bool)
    spec = ActionSpec(torch.zeros(B, dtype=torch.int64), everything)
    return Target(actions, everything, spec, torch.zeros(B, 0, dtype=torch.int64), torch.zeros(B, dtype=torch.bool))


def test_loss_and_every_gradient_agree(theirs):
    seen, robot = inputs()
    theirs.zero_grad()
    want = theirs(**seen, **robot).loss
    want.backward()
    language = theirs.model.vlm
    want_language = {name: p.grad.clone() for name, p in language.named_parameters() if p.grad is not None}
    want_expert = {id(p): p.grad.clone() for p in theirs.parameters() if p.grad is not None}

    backbone, decoder, named, where = ours_of(theirs)
    theirs.zero_grad()
    noise = Given(robot["noise"], robot["timestep"][:, None])
    found = total_loss(decoder.loss(backbone, prefix_of(backbone, seen, robot["state"]), target_of(robot["actions"]), noise))
    found.backward()
    assert abs(found.item() - want.item()) < 1e-4 * abs(want.item())
    compared = 0
    for name, parameter in named.items():
        if name != "step_TD":
            torch.testing.assert_close(
                parameter.grad, where[name](lambda p, offset=0: want_expert[id(p)]), atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
            compared += 1
    for name, parameter in language.named_parameters():
        if name in want_language and want_language[name].abs().sum() > 0:
            torch.testing.assert_close(parameter.grad, want_language[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
            compared += 1
    assert compared > 50


def test_sampled_actions_agree(theirs):
    seen, robot = inputs(1)
    want = theirs.sample_actions(robot["state"], noise=robot["noise"], num_steps=10, **seen)
    backbone, decoder, *_ = ours_of(theirs)
    like = target_of(robot["actions"]).spec
    with torch.no_grad():
        found = decoder.sample(backbone, prefix_of(backbone, seen, robot["state"]), like, Given(robot["noise"], robot["timestep"][:, None]))
    assert (found - want).abs().max() < 1e-4
    assert want.abs().max() > 0.5  # and they say something


def test_eight_noise_samples_give_the_mean_of_eight_losses(theirs):
    """K samples per context are K runs of theirs with the same observation."""
    seen, robot = inputs(2)
    K = 4
    eps_BKTA = torch.randn(B, K, T, A, generator=torch.Generator().manual_seed(3))
    tau_BK = (torch.arange(B * K).view(B, K) + 1) / 16.0
    with torch.no_grad():
        alone = [theirs(**seen, **{**robot, "noise": eps_BKTA[:, k], "timestep": tau_BK[:, k]}).loss for k in range(K)]
        backbone, decoder, *_ = ours_of(theirs, samples=K)
        prefix = prefix_of(backbone, seen, robot["state"])
        found = total_loss(decoder.loss(backbone, prefix, target_of(robot["actions"]), Given(eps_BKTA, tau_BK)))
    assert abs(found.item() - torch.stack(alone).mean().item()) < 1e-4 * found.item()
