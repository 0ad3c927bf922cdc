"""Real-time chunking: weights by hand, delays counted in steps, and two ways that stay one across chunks."""

from __future__ import annotations

from fractions import Fraction
from math import e, expm1

import numpy as np
import pytest

from vla.continuing import soft_weights
from vla.embodiment import Embodiment, Field, Space
from vla.errors import UserError
from vla.execute.queue import ChunkQueue
from vla.execute.realtime import Pacer
from vla.types import Chunk

_SPACE = Space((Field("move", 1, "command", "step"),))
ROBOT = Embodiment("arm", ("front",), Space((Field("q", 1, "rad"),)), _SPACE, _SPACE, Fraction(10), 8, ((-1.0, 1.0),))


def chunk(rows) -> Chunk:
    return Chunk(np.asarray(rows, dtype=np.float64)[:, None], "arm", Fraction(10))


def test_weights_by_hand():
    """Horizon 6, 2 committed, 4 rows left: w = 2/3 and 1/3 between, then nothing (equation 5)."""
    soft = [w * expm1(w) / (e - 1) for w in (2 / 3, 1 / 3)]
    np.testing.assert_allclose(soft_weights(6, 2, 4), [1, 1, *soft, 0, 0], rtol=1e-12)
    np.testing.assert_array_equal(soft_weights(4, 0, 0), np.zeros(4))
    np.testing.assert_array_equal(soft_weights(4, 4, 4), np.ones(4))


@pytest.mark.parametrize(("frozen", "rows"), [(3, 2), (-1, 2)])
def test_a_delay_longer_than_the_chunk_is_refused(frozen, rows):
    with pytest.raises(UserError, match="committed of a chunk that has 2 left"):
        soft_weights(8, frozen, rows)


def test_a_late_chunk_continues_and_its_past_is_never_sent():
    pacer, sent = Pacer(ChunkQueue(ROBOT, execute=4), delay=1), []
    assert pacer.due and pacer.begin() is None  # nothing to continue yet
    pacer.finish(chunk(np.arange(8) / 100))
    for _ in range(4):
        assert not pacer.due
        sent.append(pacer.queue.pop()[0])
    assert pacer.due
    continuation = pacer.begin()
    np.testing.assert_allclose(continuation.command_RA[:, 0], [0.04, 0.05, 0.06, 0.07])
    assert continuation.frozen == 1
    assert not pacer.due  # one at a time
    sent += [pacer.queue.pop()[0] for _ in range(3)]  # it takes three steps instead of one
    pacer.finish(chunk(0.5 + np.arange(8) / 100))
    sent.append(pacer.queue.pop()[0])
    np.testing.assert_allclose(sent, [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.53])
    assert pacer.expected == 3  # the longest of late is what the next one is expected to take


def test_the_longest_delay_is_forgotten_after_ten():
    pacer = Pacer(ChunkQueue(ROBOT, execute=1), delay=5)
    for _ in range(11):
        pacer.begin()
        pacer.finish(chunk(np.zeros(8)))
        pacer.queue.pop()
    assert pacer.expected == 0


@pytest.mark.parametrize(("delay", "warm"), [(-1, 0.0), (0, 1.0)])
def test_nonsense_is_refused(delay, warm):
    with pytest.raises(UserError, match="a delay of at least 0"):
        Pacer(ChunkQueue(ROBOT, execute=1), delay, warm)
