"""The chunk queue: what reaches the motor, whatever the policy says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla.embodiment import Embodiment, Field, Space
from vla.errors import SchemaError, UserError
from vla.execute.ensemble import AdaptiveEnsemble, TemporalEnsemble, ensemble_of
from vla.execute.queue import ChunkQueue, NoCommand
from vla.types import Chunk

_SPACE = Space((Field("move", 2, "command", "step"),))
ROBOT = Embodiment("arm", ("front",), Space((Field("q", 2, "rad"),)), _SPACE, _SPACE, Fraction(10), 4, ((-1.0, 1.0), (0.0, 2.0)))


def chunk(*rows: float) -> Chunk:
    """A chunk whose both numbers are `rows[i]` at step i."""
    return Chunk(np.repeat(np.array(rows, dtype=float)[:, None], 2, axis=1), "arm", Fraction(10))


def test_executes_k_of_each_chunk_then_asks():
    queue, sent, asked = ChunkQueue(ROBOT, execute=3), [], 0
    for _ in range(7):
        if queue.wants_chunk:
            queue.put(chunk(*(asked / 10 + np.arange(4) / 100)))
            asked += 1
        sent.append(queue.pop()[0])
    assert np.allclose(sent, [0.0, 0.01, 0.02, 0.1, 0.11, 0.12, 0.2])
    assert asked == 3
    assert np.allclose(queue.remaining()[:, 0], [0.21, 0.22, 0.23])


def test_a_chunk_shorter_than_execute_is_replaced_when_it_ends():
    queue = ChunkQueue(ROBOT, execute=10)
    queue.put(chunk(0.1, 0.2))
    queue.pop(), queue.pop()
    assert queue.wants_chunk
    with pytest.raises(NoCommand, match="step 2"):
        queue.pop()


def test_a_late_chunk_never_replays_the_past():
    queue = ChunkQueue(ROBOT, execute=2)
    queue.put(chunk(0.1, 0.2, 0.3, 0.4))
    queue.pop(), queue.pop()
    queue.put(chunk(0.5, 0.6, 0.7, 0.8), first_step=1)  # seen at step 1, ready at step 2
    assert queue.pop()[0] == 0.6


def test_a_chunk_that_was_overtaken_by_a_newer_observations_fills_only_what_that_one_leaves_open():
    queue = ChunkQueue(ROBOT, execute=2)
    queue.put(chunk(0.1, 0.1, 0.1, 0.1))
    queue.pop(), queue.pop()
    queue.put(chunk(0.4, 0.5), first_step=2)  # seen at step 2
    queue.put(chunk(0.2, 0.2, 0.2, 0.2), first_step=1)  # seen at step 1, and later to arrive
    assert np.array_equal(queue.remaining()[:, 0], [0.4, 0.5]) and not queue.wants_chunk
    assert [queue.pop()[0] for _ in range(3)] == [0.4, 0.5, 0.2]
    with pytest.raises(NoCommand, match="step 5"):
        queue.pop()


def test_of_two_chunks_for_one_step_the_last_to_come_is_the_newest():
    queue = ChunkQueue(ROBOT, execute=2)
    for row in (0.1, 0.2):
        queue.put(chunk(row, row))
    assert queue.pop()[0] == 0.2


def test_an_overtaken_chunk_has_its_own_age_in_an_ensemble():
    orders = []
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0)):
        queue = ChunkQueue(ROBOT, execute=1, ensemble=TemporalEnsemble(decay=0.5))
        for start in order:
            queue.put(chunk(*(0.1 * start + np.arange(4) / 100)), first_step=start)
        orders.append([queue.pop()[0] for _ in range(4)])
    assert orders[0] == orders[1] == orders[2]


def test_temporal_ensemble_weighs_the_oldest_most():
    queue = ChunkQueue(ROBOT, execute=1, ensemble=TemporalEnsemble(decay=0.5))
    queue.put(chunk(0.0, 0.2, 0.3, 0.4))
    queue.pop()
    queue.put(chunk(0.8, 0.9, 1.0))
    weights = np.exp([0.0, -0.5])
    assert np.isclose(queue.pop()[0], (weights @ [0.2, 0.8]) / weights.sum())


def test_rotations_are_averaged_as_rotations():
    space = Space((Field("turn", 4, "quat_xyzw"), Field("x", 1, "m")))
    turns = Rotation.from_rotvec(np.deg2rad([[0, 0, 10], [0, 0, 30]])).as_quat()
    turns[1] *= -1  # the same rotation; a mean of numbers would be thrown off by the sign
    mean_A = TemporalEnsemble(0.0).combine(np.concatenate([turns, [[1.0], [3.0]]], axis=1), space)
    assert np.allclose(Rotation.from_quat(mean_A[:4]).as_rotvec(degrees=True), [0, 0, 20])
    assert np.isclose(mean_A[4], 2.0)


def test_chunks_relative_to_their_start_cannot_be_averaged():
    with pytest.raises(UserError, match="'x' is relative"):
        TemporalEnsemble().combine(np.zeros((2, 1)), Space((Field("x", 1, "m", "from_state"),)))


@pytest.mark.parametrize("wrong", [Chunk(np.zeros((4, 2)), "other", Fraction(10)), Chunk(np.zeros((4, 2)), "arm", Fraction(5))])
def test_a_chunk_for_another_robot_or_rate_is_refused(wrong):
    with pytest.raises(SchemaError, match="came to 'arm' at 10 Hz"):
        ChunkQueue(ROBOT, 1).put(wrong)


def test_wrong_width_and_nan_are_refused_and_the_old_chunk_stays():
    queue = ChunkQueue(ROBOT, execute=1)
    queue.put(chunk(0.1, 0.2))
    for bad in (np.zeros((4, 3)), np.full((4, 2), np.nan)):
        with pytest.raises(SchemaError):
            queue.put(Chunk(bad, "arm", Fraction(10)))
    assert queue.pop()[0] == 0.1


def test_execute_must_be_positive():
    with pytest.raises(UserError, match="at least 1"):
        ChunkQueue(ROBOT, 0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(1, 3),
    st.sampled_from([None, TemporalEnsemble(0.01), TemporalEnsemble(-1e6)]),
)
def test_nothing_outside_the_limits_leaves(chunks, execute, ensemble):
    queue = ChunkQueue(ROBOT, execute, ensemble)
    low_A, high_A = np.array(ROBOT.limits).T
    for rows in chunks:
        queue.put(chunk(*rows))
        while not queue.wants_chunk:
            command_A = queue.pop()
            assert np.isfinite(command_A).all() and (low_A <= command_A).all() and (command_A <= high_A).all()


def test_adaptive_ensemble_hand_worked():
    """The newest points along x; one prediction agrees, one is orthogonal, one points back: cosines 1, 0, -1."""
    space = Space((Field("move", 2, "command", "step"),))
    candidate_KA = np.array([[-3.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])  # oldest first
    weight_K = np.exp(0.5 * np.array([-1.0, 0.0, 1.0, 1.0]))
    want_A = weight_K @ candidate_KA / weight_K.sum()
    np.testing.assert_allclose(AdaptiveEnsemble(alpha=0.5, horizon=7).combine(candidate_KA, space), want_A)
    assert AdaptiveEnsemble(alpha=0.5, horizon=2).combine(candidate_KA, space).tolist() == [1.0, 0.0]


def test_ensembles_are_read_from_what_they_say_of_themselves():
    for ensemble in (TemporalEnsemble(0.3), AdaptiveEnsemble(0.2, 3)):
        assert ensemble_of(ensemble.spec) == ensemble
    assert ensemble_of("0.01") == TemporalEnsemble(0.01) and ensemble_of("adaptive") == AdaptiveEnsemble()
    for wrong in ("adaptive:x", "temporal:1:2", "often", "adaptive:0.1:0"):
        with pytest.raises(UserError, match="ensembl"):
            ensemble_of(wrong)
