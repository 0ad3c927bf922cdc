"""Our pi0 against `transformers`' own PI0ForConditionalGeneration with the same weights: loss, gradients, and sampled actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.backbones.families import paligemma
from vla.backbones.base import Tokens
from vla.decoders.base import total_loss
from vla.decoders.conditioning import LayerKeysValues
from vla.decoders.dit import DiT
from vla.diffusion.flow import Flow
from vla.roster import Roster
from vla.torchvision_cpu import prepare_torchvision
from vla.types import ActionSpec, Observation, Target

B, T, A, P, SIDE = 3, 6, 5, 4, 16
PALIGEMMA = paligemma()
PARTS = {"vision": "vision_tower", "projector": "multi_modal_projector", "language": "language_model"}


@pytest.fixture(scope="module")
def theirs():
    prepare_torchvision()
    from transformers import PI0Config, PI0ForConditionalGeneration

    language = PALIGEMMA.library["text_config"]
    config = PI0Config(
        vlm_config=dict(PALIGEMMA.library),
        dit_config={**language, "hidden_size": 24, "intermediate_size": 48, "hidden_activation": "gelu_pytorch_tanh"},
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


class Given:
    """A `Noise` that gives what the test says: normal draws, and times by pi0's convention."""

    def __init__(self, eps_BKTA: Tensor, tau_BK: Tensor) -> None:
        self.eps, self.tau = eps_BKTA, tau_BK

    def normal(self, stream: str, *shape: int) -> Tensor:
        return self.eps.reshape(B, *shape)

    def uniform(self, stream: str, *shape: int) -> Tensor:
        return ((self.tau.double() - 0.001) / 0.999) ** 1.5


def ours_of(theirs, samples: int = 1):
    """Backbone and decoder with their weights, and the map from each of the decoder's parameters to the same thing of theirs."""
    config = DiT(
        path=Flow(times="pi0", reverse=True),
        conditioning=LayerKeysValues(width=24, mlp_width=48, style="gemma"),
        samples_per_context=samples,
        evaluations=10,
        state_in_suffix=True,
    )
    backbone = PALIGEMMA.build().eval()
    for ours, name in PARTS.items():
        getattr(backbone, ours).load_state_dict(getattr(theirs.model.vlm, name).state_dict())
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


def inputs(backbone, seed: int = 0):
    """Two cameras, of which the last row has one; texts of different lengths. (our inputs, theirs, state and noise)."""
    draw, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    observations = []
    for row, text in enumerate(("open the door", "push", "close it")):
        cameras = ("third_person", "wrist")[: 1 if row == 2 else 2]
        images = {name: rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8) for name in cameras}
        observations.append(Observation(images, np.zeros((1, P)), text, "robot"))
    ours = backbone.collate(observations)
    pixels = torch.zeros(B, 2, 3, SIDE, SIDE)
    for row, seen in enumerate(observations):
        for view, image in enumerate(seen.images.values()):
            pixels[row, view] = torch.from_numpy(image[0]).permute(2, 0, 1) / 255.0 * 2 - 1
    given = {
        "input_ids": torch.where(ours["patch_BS"] >= 0, PALIGEMMA.library["image_token_index"], ours["token_BS"]),
        "attention_mask": ours["token_valid_BS"].long(),
        "pixel_values": pixels,
        "pixel_attention_mask": torch.tensor([[True, True], [True, True], [True, False]]),
    }
    robot = {
        "state": torch.randn(B, P, generator=draw),
        "actions": torch.randn(B, T, A, generator=draw),
        "noise": torch.randn(B, T, A, generator=draw),
        "timestep": torch.tensor([0.25, 0.8125, 0.0625]),
    }
    return ours, given, robot


def prefix_of(backbone, ours, state):
    prefix = backbone.embed(ours)
    valid = torch.ones(B, 1, dtype=torch.bool)
    return Tokens(*prefix._core(), extras=prefix.extras, given={"state_BFP": state[:, None], "state_valid_BF": valid})


def target_of(actions):
    everything = torch.ones(B, T, A, dtype=torch.bool)
    spec = ActionSpec(torch.zeros(B, dtype=torch.int64), everything)
    return Target(actions, everything, spec, torch.zeros(B, 0, dtype=torch.int64), torch.zeros(B, dtype=torch.bool))


def test_loss_and_every_gradient_agree(theirs):
    backbone, decoder, named, where = ours_of(theirs)
    seen, given, robot = inputs(backbone)
    theirs.zero_grad()
    want = theirs(**given, **robot).loss
    want.backward()
    noise = Given(robot["noise"], robot["timestep"][:, None])
    found = total_loss(decoder.loss(backbone, prefix_of(backbone, seen, robot["state"]), target_of(robot["actions"]), noise))
    found.backward()
    assert abs(found.item() - want.item()) < 1e-4 * abs(want.item())
    pairs = {name: (parameter.grad, where[name](lambda p, offset=0: p.grad)) for name, parameter in named.items() if name != "step_TD"}
    for ours, name in PARTS.items():
        their_part = dict(getattr(theirs.model.vlm, name).named_parameters())
        for key, parameter in getattr(backbone, ours).named_parameters():
            if their_part[key].grad is not None and their_part[key].grad.abs().sum() > 0:
                pairs[f"{ours}.{key}"] = (parameter.grad, their_part[key].grad)
    assert len(pairs) > 80 and sum(name.startswith("vision") for name in pairs) > 20
    for name, (mine, reference) in pairs.items():
        torch.testing.assert_close(mine, reference, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_sampled_actions_agree(theirs):
    backbone, decoder, *_ = ours_of(theirs)
    seen, given, robot = inputs(backbone, 1)
    want = theirs.sample_actions(robot["state"], noise=robot["noise"], num_steps=10, **given)
    like = target_of(robot["actions"]).spec
    with torch.no_grad():
        found = decoder.sample(backbone, prefix_of(backbone, seen, robot["state"]), like, Given(robot["noise"], robot["timestep"][:, None]))
    assert (found - want).abs().max() < 1e-4
    assert want.abs().max() > 0.5  # and they say something


def test_several_noise_samples_give_the_mean_of_as_many_losses(theirs):
    """K samples per context are K runs of theirs with the same observation."""
    K = 4
    backbone, decoder, *_ = ours_of(theirs, samples=K)
    seen, given, robot = inputs(backbone, 2)
    eps_BKTA = torch.randn(B, K, T, A, generator=torch.Generator().manual_seed(3))
    tau_BK = (torch.arange(B * K).view(B, K) + 1) / 16.0
    with torch.no_grad():
        alone = [theirs(**given, **{**robot, "noise": eps_BKTA[:, k], "timestep": tau_BK[:, k]}).loss for k in range(K)]
        prefix = prefix_of(backbone, seen, robot["state"])
        found = total_loss(decoder.loss(backbone, prefix, target_of(robot["actions"]), Given(eps_BKTA, tau_BK)))
    assert abs(found.item() - torch.stack(alone).mean().item()) < 1e-4 * found.item()
