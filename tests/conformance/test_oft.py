"""OpenVLA-OFT (`prismatic/extern/hf/modeling_prismatic.py`, `models/{action_heads,projectors,film_vit_wrapper}.py`, `vla/constants.py`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.backbones.families import prismatic
from tests.parts import contents, robot
from vla.backbones.empty import build_empty, count_parameters
from vla.decoders.base import total_loss
from vla.decoders.heads import ResNet
from vla.diffusion.ddpm import DDPM
from vla.noise import Noise
from vla.presets import preset
from vla.roster import Roster
from vla.types import Observation, Target

T, A, P = 8, 7, 8
ARM = robot("arm", A, P, T)


def tiny():
    """The published system with small widths: its contents, model and a batch of two prompts of different lengths."""
    chosen = preset("openvla_oft")
    assert chosen.horizon == T  # LIBERO
    torch.manual_seed(0)
    holds = contents(replace(chosen.decoder, head=ResNet(blocks=2, hidden=32)), prismatic(), (ARM,))
    holds = replace(holds, model=replace(holds.model, state=chosen.state))
    model = holds.build()
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            nn.init.normal_(parameter, std=0.2)
    rng = np.random.default_rng(0)
    images = lambda: {role: rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8) for role in ARM.cameras}  # noqa: E731
    seen = [Observation(images(), rng.uniform(-1, 1, (1, P)), text, "arm") for text in ("open the door", "push")]
    return model, holds.collate(model).observations(seen)


@torch.no_grad()
def test_one_sequence_of_patches_state_prompt_zeros_and_an_end_in_which_all_see_all():
    """Beside the library's Llama, called as OFT's fork calls it: no causal mask; a number is read one token ahead of its own."""
    model, batch = tiny()
    found = model.sample(batch, Noise(batch.position_B))
    backbone, inputs = model.backbone, batch.inputs
    features, _ = backbone._see(inputs, backbone.patches(16, 16))
    for row, patches in enumerate(features.unflatten(0, (2, -1))):
        words = inputs["token_valid_BS"][row] & (inputs["patch_BS"][row] < 0)
        text = backbone.language.embed_tokens(inputs["token_BS"][row][words])
        state = model.state_in.second(F.gelu(batch.state_BFP[row] @ model.state_in.first.weight_EIO[0] + model.state_in.first.bias_EO[0]))
        zeros, end = torch.zeros(T * A, backbone.width), model.decoder.closing_1D
        sequence = torch.cat([text[:1], patches.flatten(0, 1), state, text[1:], zeros, end])[None]
        S = sequence.shape[1]
        sees_all = torch.ones(1, 1, S, S, dtype=torch.bool)
        out = backbone.language(inputs_embeds=sequence, attention_mask=sees_all, position_ids=torch.arange(S)[None], use_cache=False)
        read = out.last_hidden_state[:, S - T * A - 2 : S - 2].unflatten(1, (T, A))
        want = model.decoder.out(read, batch.spec[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], want, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_mean_absolute_error():
    model, batch = tiny()
    B = len(batch.spec.embodiment_B)
    labels = torch.zeros(B, 0, dtype=torch.int64), torch.zeros(B, dtype=torch.bool)
    target = Target(torch.randn(B, T, A), batch.spec.mask_BTA, batch.spec, *labels)
    noise = Noise(batch.position_B)
    loss = total_loss(model(replace(batch, target=target), noise))
    torch.testing.assert_close(loss, (model.sample(batch, noise) - target.action_BTA).abs().mean(), atol=1e-6, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "horizon", "action"), [("openvla_oft", 8, 7), pytest.param("openvla_oft_plus", 25, 14, marks=pytest.mark.slow)]
)
def test_sizes_are_the_published_ones(name, horizon, action):
    """`L1RegressionActionHead(4096, 4096)`, `ProprioProjector(4096, P)`, `FiLMedVisionTransformerBlock(llm_dim=4096)`."""
    chosen = preset(name)
    assert chosen.horizon == horizon  # LIBERO, ALOHA
    model = build_empty(chosen.model(), Roster(("arm",), horizon, action, action + (action == 7)))
    linear = lambda width_in, width_out: width_in * width_out + width_out  # noqa: E731
    side = action * 4096
    head = 2 * side + linear(side, 4096) + 2 * (2 * 4096 + linear(4096, 4096)) + 2 * 4096 + linear(4096, action)
    assert count_parameters(model.decoder.out) == head
    assert head == {7: 151_117_831, 14: 268_644_366}[action]
    state = action + (action == 7)
    assert count_parameters(model.state_in) == linear(state, 4096) + linear(4096, 4096)
    if name == "openvla_oft_plus":
        assert [len(film) for film in model.backbone.film.values()] == [23, 26]  # of 24 and 27, whose last ones nothing reads
        assert count_parameters(model.backbone.film) == 23 * 2 * linear(4096, 1024) + 26 * 2 * linear(4096, 1152)


def test_the_diffusion_heads_schedule():
    """`DiffusionActionHead`: DDIMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2"), all 50 steps, clipped to 1."""
    from diffusers import DDIMScheduler

    path, theirs = DDPM(steps=50, spacing="leading", clip=1.0).build(), DDIMScheduler(50, beta_schedule="squaredcos_cap_v2")
    theirs.set_timesteps(50)
    assert path.levels(50) == theirs.timesteps.tolist() == list(range(49, -1, -1))
    draw = torch.Generator().manual_seed(0)
    data, eps, level = torch.rand(50, 4, 3, generator=draw) - 0.5, torch.randn(50, 4, 3, generator=draw), torch.arange(50)
    torch.testing.assert_close(path.corrupt(data, eps, 1 - (level + 1) / 50)[0], theirs.add_noise(data, eps, level), atol=3e-6, rtol=1e-5)
    goal = torch.rand(2, 4, 3, generator=draw) * 1.6 - 0.8

    def noise_of(x, index: int):
        kept = float(path.alphas_cumprod_K[index])
        return (x - kept**0.5 * goal) / (1 - kept) ** 0.5

    x = start = torch.randn(2, 4, 3, generator=draw)
    for index in theirs.timesteps.tolist():
        x = theirs.step(noise_of(x, index), index, x).prev_sample
    found = path.solve(lambda x, t: noise_of(x, int(path.level(t[:1]))), start, 50)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=0)
