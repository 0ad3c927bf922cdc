"""A value that chooses among samples: what it learns, what it chooses, and whose it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parts import DECODERS, ROBOTS, TINY, contents, observation, unit_normalizer
from vla.checkpoint import Contents, save_checkpoint
from vla.cli import main
from vla.decoders.dit import DiT
from vla.errors import UserError
from vla.evaluate.result import read_result
from vla.execute.several import Several
from vla.execute.value import Decisions, Value, explained, learn
from vla.model import Model
from vla.policy import Policy
from vla.sim.suites import load_suite

TOY = str(Path(__file__).parents[1] / "evaluate" / "toy_suite.py")


def policy(decoder, holds=None) -> Policy:
    torch.manual_seed(0)
    holds = holds or contents(decoder, TINY)
    model = holds.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return Policy(holds, model)


class Likes(Value):
    """The chunk whose first number is largest, whatever it is told of the state."""

    def forward(self, state_BD, action_BTA):
        return action_BTA[:, 0, 0]


def test_the_best_of_the_samples_is_taken_and_one_of_them_is_the_policys_own():
    rng = np.random.default_rng(0)
    seen, keys = [observation(ROBOTS[1], rng) for _ in range(6)], list(range(6))
    alone = policy(DECODERS["flow"])
    ranked = Several(alone, 4, Likes(TINY.width, 4, 5))
    chosen, own = (torch.tensor(np.stack([c.action_TA for c in each.act_batch(seen, keys)])) for each in (ranked, alone))
    first, of_own = chosen[:, 0, 0], own[:, 0, 0]
    assert bool((first >= of_own - 1e-6).all()) and int((first > of_own + 1e-3).sum()) >= 3
    apart = torch.tensor(np.stack([ranked.act_batch([one], [key])[0].action_TA for one, key in zip(seen, keys, strict=True)]))
    torch.testing.assert_close(apart, chosen, atol=1e-5, rtol=0)


def test_nothing_to_choose_is_said():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="one chunk an observation, so that there is nothing to choose"):
        Several(policy(DECODERS["parallel"]), 2, Likes(TINY.width, 4, 5)).act_batch([observation(ROBOTS[0], rng)], [1])
    with pytest.raises(UserError, match="at least 2 of them, not 1; give --samples 8"):
        Several(policy(DECODERS["flow"]), 1, Likes(TINY.width, 4, 5))


def decisions(episodes: int, seed: int) -> Decisions:
    """Success is likelier the more a chunk points to where the state says."""
    generator = torch.Generator().manual_seed(seed)
    state_ND = torch.randn(8 * episodes, 6, generator=generator)
    action_NTA = torch.rand(8 * episodes, 3, 2, generator=generator) * 2 - 1
    good_N = (state_ND[:, 0] * action_NTA[:, 0, 0] > 0).float()
    return Decisions(state_ND, action_NTA, good_N, torch.arange(8 * episodes) // 8)


def test_it_learns_which_chunk_suits_which_state():
    value = learn(decisions(150, 0), steps=200)
    assert explained(value, decisions(50, 1)) > 0.2  # neither state nor chunk alone says anything
    tried = decisions(50, 1)
    assert explained(value, tried[tried.return_N == 0]) is None  # a share of no variance came out as minus some billions
    one, two = (learn(decisions(9, 0), steps=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_rollouts_of_one_outcome_teach_nothing():
    found = decisions(2, 0)
    with pytest.raises(UserError, match="every rollout came to the same end"):
        learn(Decisions(found.state_ND, found.action_NTA, torch.zeros(16), found.episode_N), steps=1)


def test_a_value_belongs_to_its_checkpoint(tmp_path):
    path = tmp_path / "value.safetensors"
    value = Value(4, 3, 2)
    value.save(path, "a" * 64)
    again, like = Value.load(path, "a" * 64), (torch.ones(1, 4), torch.ones(1, 3, 2))
    assert torch.equal(again(*like), value.eval()(*like))
    with pytest.raises(UserError, match="learned for another checkpoint"):
        Value.load(path, "b" * 64)
    path.write_text("none")
    for wrong in (path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="give a file that `vla train-value` wrote"):
            Value.load(wrong, "a" * 64)


@pytest.mark.thorough
def test_learned_from_rollouts_and_used_in_an_evaluation(tmp_path, capsys):
    robot = load_suite(TOY).embodiment
    made = policy(None, Contents(Model(TINY, DiT(evaluations=2)), (robot,), {robot.name: unit_normalizer(robot)}))
    folder = save_checkpoint(tmp_path / "checkpoint", made.contents, made.model.state_dict())
    suite = tmp_path / "near.py"
    suite.write_text(  # a third of the episodes begin where they end, so that there are always successes and failures
        "from dataclasses import replace\n"
        "from vla.sim.suites import load_suite\n"
        f"_whole = load_suite({TOY!r})\n"
        "SUITE = replace(_whole, tasks=(replace(_whole.task('easy'), options={'near_m': 0.2}),))\n"
    )
    out, like = tmp_path / "value.safetensors", f"{folder} --suite {suite} --workers 1"
    assert main(f"train-value {like} --episodes 20 --steps 20 --out {out}".split()) == 0
    assert "of the returns of held-out episodes" in capsys.readouterr().out
    line = f"eval {like} --episodes 2 --samples 3 --value {out}"
    rows = []
    for slots in (1, 2):
        assert main([*line.split(), "--slots", str(slots), "--json", str(tmp_path / "r.json")]) == 0
        result = read_result(tmp_path / "r.json")
        rows.append(result.rows)
        assert result.policy["samples"] == 3 and len(result.policy["value_sha256"]) == 64
    assert rows[0] == rows[1]
    capsys.readouterr()
    assert main(f"eval {like} --samples 3".split()) == 2 and "--samples goes with --value" in capsys.readouterr().err
    assert main(f"eval random --suite {suite} --samples 3 --value {out}".split()) == 2 and "for a checkpoint" in capsys.readouterr().err
