"""Which of several sampled chunks is executed: the one of which a value learned from rollouts expects most.

V-GPS (Nakamoto et al. 2024) ranks a generalist policy's samples by a critic trained apart, Hume (Song et al. 2025) by one over its own
backbone. Here an MLP reads the mean of the policy's own states of the prefix, which stay as they are, and the normalised chunk.

Deviation: both learn by offline reinforcement learning (Cal-QL). This one learns what became of each chunk in rollouts of the policy that
it will rank, failures included, without bootstrapping: one step of improvement over that policy, and nothing that can diverge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.backbones.base import Tokens
from vla.errors import UserError
from vla.model import VLA
from vla.policy import Policy
from vla.types import Observation, Prior

FORMAT_VERSION = "1"
BATCH, LEARNING_RATE, DECAY = 256, 1e-3, 1e-2


@dataclass(frozen=True)
class Decisions:
    """What was seen and done in rollouts and what came of it, a row each. `state_ND`: as `pooled` gives it; `action_NTA`: normalised;
    `return_N`: discounted by the decisions that were left until success, 0 where the episode failed; `episode_N`: which one, int64."""

    state_ND: Tensor
    action_NTA: Tensor
    return_N: Tensor
    episode_N: Tensor

    def __getitem__(self, rows: Tensor) -> Decisions:
        return Decisions(self.state_ND[rows], self.action_NTA[rows], self.return_N[rows], self.episode_N[rows])

    def __len__(self) -> int:
        return len(self.return_N)


class Value(nn.Module):
    """(state (B, D), normalised chunk (B, T, A)) -> the logit (B,) of the return, 0 to 1, that is to be expected."""

    def __init__(self, width: int, horizon: int, action_width: int, hidden: int = 256) -> None:
        super().__init__()
        self.shape = {"width": width, "horizon": horizon, "action_width": action_width, "hidden": hidden}
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))
        self.net = nn.Sequential(
            nn.Linear(width + horizon * action_width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def forward(self, state_BD: Tensor, action_BTA: Tensor) -> Tensor:
        normal_BD = (state_BD - self.mean_D) / self.scale_D
        return self.net(torch.cat([normal_BD, action_BTA.flatten(1)], dim=1))[:, 0]

    def save(self, path: Path, policy: str) -> None:
        """`policy`: the sha256 of the manifest of the checkpoint whose states it reads."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), path, {"value": FORMAT_VERSION, "policy": policy, "shape": json.dumps(self.shape)})

    @staticmethod
    def load(path: Path, policy: str) -> Value:
        """Raises UserError unless it is a value for this checkpoint."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                told, weights = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {path} as a value ({error}); give a file that `vla train-value` wrote") from error
        if told.get("value") != FORMAT_VERSION:
            raise UserError(f"{path} is no value of format {FORMAT_VERSION}; give a file that `vla train-value` wrote")
        if told["policy"] != policy:
            raise UserError(f"{path} was learned for another checkpoint; run `vla train-value` for this one")
        value = Value(**json.loads(told["shape"]))
        value.load_state_dict(weights)
        return value.eval()


def learn(decisions: Decisions, steps: int, seed: int = 0) -> Value:
    """By cross-entropy of the return. UserError where every decision came to the same: nothing can be learned from that."""
    if len(decisions) < 2 or float(decisions.return_N.max() - decisions.return_N.min()) == 0:
        raise UserError(
            "every rollout came to the same end, so that no chunk is better than another; take tasks with successes and failures"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = Value(decisions.state_ND.shape[1], *decisions.action_NTA.shape[1:])
    value.mean_D.copy_(decisions.state_ND.mean(0))
    value.scale_D.copy_(decisions.state_ND.std(0).clamp(min=1e-4))
    optimizer = torch.optim.AdamW(value.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
    for _ in range(steps):
        part = decisions[torch.randint(len(decisions), (min(BATCH, len(decisions)),), generator=generator)]
        loss = F.binary_cross_entropy_with_logits(value(part.state_ND, part.action_NTA), part.return_N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return value.eval()


@torch.no_grad()
def explained(value: Value, decisions: Decisions) -> float | None:
    """The share of the returns' variance that it predicts; 0 for a constant, below for worse. None where all came to the same."""
    variance = float(decisions.return_N.var(correction=0)) if len(decisions) else 0.0
    if variance == 0:
        return None
    error_N = value(decisions.state_ND, decisions.action_NTA).sigmoid() - decisions.return_N
    return 1 - float(error_N.square().mean()) / variance


class Remembering(Policy):
    """A policy that keeps what it saw and did: by key, the state (D,) and the normalised chunk (T, A)."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.contents, policy.model, policy.seed)
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def _sample(self, observations: Sequence[Observation], keys: Sequence[int], prior: Prior | None = None) -> Tensor:
        action_BTA = super()._sample(observations, keys, prior)
        state_BD = pooled(self.model, self.model.prefix(self.prepared(observations, keys)[0]))
        self.seen |= {key: (state_D.cpu(), action_TA.cpu()) for key, state_D, action_TA in zip(keys, state_BD, action_BTA, strict=True)}
        return action_BTA


@torch.no_grad()
def pooled(model: VLA, prefix: Tokens) -> Tensor:
    """What its backbone makes of observations: float32 (B, D), the mean of the prefix's final states."""
    hidden = model.backbone(prefix)
    valid_BS1 = hidden.tokens.valid_BS[..., None]
    return (hidden.x_BSD * valid_BS1).sum(1).float() / valid_BS1.sum(1)
