"""Several samples of one policy: how far they agree, and what is executed of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.execute.test_value import Likes, policy
from tests.parts import DECODERS, ROBOTS, TINY, contents, observation, unit_normalizer
from vla.checkpoint import Contents, save_checkpoint
from vla.cli import main
from vla.decoders.dit import DiT
from vla.errors import UserError
from vla.evaluate.result import read_result
from vla.execute.several import Agreement, Several
from vla.model import Model
from vla.sim.suites import load_suite

TOY = str(Path(__file__).parents[1] / "evaluate" / "toy_suite.py")


def test_agreement_by_hand():
    """Two samples d apart have a standard deviation of d / 2. Numbers that do not exist count neither way."""
    apart_BTA = torch.tensor([[[0.0, 0], [0.2, 0], [0.4, 0], [0.1, 0]], [[0.0, 9], [0.0, 9], [0.0, 9], [0.0, 9]], [[9.0, 9]] * 4])
    mask_BTA = torch.ones(3, 4, 2, dtype=torch.bool)
    mask_BTA[1, :, 1] = False
    drawn_NBTA = torch.stack([apart_BTA, torch.zeros_like(apart_BTA)])
    # Row 0: spreads 0, 0.1, 0.2, 0.05 over sqrt(2), as one of two numbers spreads; a later step that agrees does not count.
    assert Agreement(0.1).steps(drawn_NBTA, mask_BTA).tolist() == [2, 4, 1]
    assert Agreement(0.06).steps(drawn_NBTA, mask_BTA).tolist() == [1, 4, 1]
    assert Agreement(0.15, least=3).steps(drawn_NBTA, mask_BTA).tolist() == [4, 4, 3]
    assert Agreement(0.1, least=9).steps(drawn_NBTA, mask_BTA).tolist() == [4, 4, 4]


def test_a_chunk_is_its_own_beginning_and_depends_on_no_neighbour():
    rng = np.random.default_rng(0)
    seen, keys = [observation(ROBOTS[1], rng) for _ in range(6)], list(range(6))
    alone = policy(DECODERS["flow"])
    batch, noise = alone.prepared(seen, keys)
    drawn = Several(alone, 4, agreement=Agreement(1e9))._drawn(alone.model.prefix(batch), batch.spec, noise, keys, None)
    spread_BT = drawn.detach().var(0, correction=0).mean(-1).sqrt()
    middle = float(spread_BT.amax(1).median()) * 1.001  # half of them are cut
    cautious = Several(alone, 4, agreement=Agreement(middle, least=2))
    cut, whole = cautious.act_batch(seen, keys), alone.act_batch(seen, keys)
    lengths = [len(chunk.action_TA) for chunk in cut]
    assert min(lengths) >= 2 and len(set(lengths)) > 1, lengths
    for short, long in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(short.action_TA, long.action_TA[: len(short.action_TA)])
    for row in range(0, 6, 2):
        pair = cautious.act_batch(seen[row : row + 2], keys[row : row + 2])
        assert [len(chunk.action_TA) for chunk in pair] == lengths[row : row + 2]
    confident = Several(alone, 4, agreement=Agreement(1e9)).act_batch(seen, keys)
    assert all(np.array_equal(a.action_TA, b.action_TA) for a, b in zip(confident, whole, strict=True))


def test_a_value_chooses_which_and_agreement_how_far():
    rng = np.random.default_rng(0)
    seen, keys = [observation(ROBOTS[1], rng) for _ in range(4)], list(range(4))
    alone, likes = policy(DECODERS["flow"]), Likes(TINY.width, 4, 5)
    best = Several(alone, 4, likes).act_batch(seen, keys)
    for chunk, whole in zip(Several(alone, 4, likes, Agreement(1e-9, least=2)).act_batch(seen, keys), best, strict=True):
        np.testing.assert_array_equal(chunk.action_TA, whole.action_TA[:2])


def test_samples_that_happen_to_agree_are_no_mistake():
    """A confident policy that draws says the same again and again; only one that never draws has nothing to choose from."""
    sure = policy(replace(DECODERS["tokens"], temperature=1e-4))
    seen = [observation(ROBOTS[0], np.random.default_rng(0))]
    (same,) = Several(sure, 2, agreement=Agreement(0.1)).act_batch(seen, [1])
    np.testing.assert_array_equal(same.action_TA, sure.act_batch(seen, [1])[0].action_TA)


def test_what_makes_no_sense_is_refused():
    alone = policy(DECODERS["flow"])
    with pytest.raises(UserError, match="give one of them"):
        Several(alone, 4)
    for most, least in ((0.0, 1), (float("nan"), 1), (0.1, 0)):
        with pytest.raises(UserError, match="a spread above 0, for at least 1 command"):
            Agreement(most, least)
    for decoder in ("parallel", "tokens"):
        with pytest.raises(UserError, match="nothing to choose"):
            Several(policy(DECODERS[decoder]), 2, agreement=Agreement(0.1))


def test_in_an_evaluation_the_robot_looks_again_where_samples_part(tmp_path, capsys):
    """More decisions than at a fixed length, and rows that depend on neither slots nor batches."""
    robot = load_suite(TOY).embodiment
    made = policy(None, Contents(Model(TINY, DiT(evaluations=2)), (robot,), {robot.name: unit_normalizer(robot)}))
    folder = save_checkpoint(tmp_path / "checkpoint", made.contents, made.model.state_dict())
    line = f"eval {folder} --suite {TOY} --tasks easy --episodes 2 --execute 4 --workers 1"
    rows = {}
    for name, more in (("fixed", ""), ("far", "--samples 3 --agree 100"), ("near", "--samples 3 --agree 0.01")):
        assert main(f"{line} {more} --json {tmp_path}/{name}.json".split()) == 0
        result = read_result(tmp_path / f"{name}.json")
        rows[name] = result.rows
    assert result.policy["samples"] == 3 and result.policy["agree"] == 0.01
    assert rows["far"] == rows["fixed"] != rows["near"]
    assert all(row.decisions == -(-row.steps // 4) for row in rows["fixed"])
    assert all(row.decisions > -(-row.steps // 4) for row in rows["near"])
    assert main(f"{line} --samples 3 --agree 0.01 --slots 1 --json {tmp_path}/near.json".split()) == 0
    assert read_result(tmp_path / "near.json").rows == rows["near"]
    capsys.readouterr()
    assert main(f"{line} --samples 3 --agree 0.01 --probe latency=0.3".split()) == 2
    assert "3 steps after its observation, when every command of it is over" in capsys.readouterr().err
    assert main(f"{line} --agree 0.1".split()) == 2 and "--samples goes with" in capsys.readouterr().err


def test_contents_are_shared():
    holds = contents(DECODERS["flow"], TINY)
    alone = policy(DECODERS["flow"], holds)
    assert Several(alone, 2, agreement=Agreement(0.1)).contents is holds
