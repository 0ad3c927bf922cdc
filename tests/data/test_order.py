from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.data.keyed import mix, permute, uniform
from vla.data.order import Order, OrderSource
from vla.data.quota import PERIOD, plan
from vla.errors import UserError

WEIGHTS = st.lists(st.floats(1e-3, 10), min_size=1, max_size=12)


def sources(weights, samples=100, caps=None, shards=1):
    caps = caps or [None] * len(weights)
    sizes = [samples] * len(weights) if isinstance(samples, int) else samples
    split = [np.array([len(part) for part in np.array_split(np.arange(n), shards)]) for n in sizes]
    return [OrderSource(f"s{i}", w, n, cap) for i, (w, n, cap) in enumerate(zip(weights, split, caps, strict=True))]


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(size, key):
    out = permute(np.arange(size), np.full(size, size), np.array([key], np.uint64))
    assert sorted(out.tolist()) == list(range(size))


def test_permutations_of_large_sets_and_mixed_sizes():
    rng = np.random.default_rng(0)
    size = rng.integers(1, 2**40, 10_000)
    index = (rng.random(10_000) * size).astype(np.int64)
    key = rng.integers(0, 2**63, 10_000).astype(np.uint64)
    out = permute(index, size, key)
    assert (out >= 0).all() and (out < size).all()
    alone = [int(permute(index[i : i + 1], size[i : i + 1], key[i : i + 1])[0]) for i in range(50)]
    assert out[:50].tolist() == alone


def test_permutations_look_random():
    """Over keys, every place is equally likely for every index; neighbours are not kept; two keys share no more than chance."""
    size, keys = 10, 20_000
    out = permute(np.tile(np.arange(size), keys), np.full(size * keys, size), np.repeat(mix(np.arange(keys)), size)).reshape(keys, size)
    counts = np.stack([np.bincount(out[:, i], minlength=size) for i in range(size)])
    chi2 = ((counts - keys / size) ** 2 / (keys / size)).sum(1)
    assert chi2.max() < 40  # 9 degrees of freedom: 1e-5 tail is 40
    assert abs((np.diff(out, axis=1) == 1).mean() - 0.1) < 0.01
    big = permute(np.arange(5000), np.full(5000, 5000), np.array([1], np.uint64))
    assert abs(np.corrcoef(np.arange(5000), big)[0, 1]) < 0.06


def test_uniform_numbers():
    values = uniform(7, np.arange(100_000))
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005 and abs(values.var() - 1 / 12) < 0.002


@settings(max_examples=20, deadline=None)
@given(weights=WEIGHTS, block=st.integers(1, 400))
def test_every_block_and_every_prefix_is_within_one_draw_of_its_share(weights, block):
    total_PS = plan(weights, [None] * len(weights), block)[0].total_PS
    period_draws = total_PS[-1]
    assert period_draws.sum() == block * PERIOD and (period_draws > 0).all()
    np.testing.assert_allclose(period_draws, np.array(weights) / sum(weights) * block * PERIOD, atol=len(weights) + 1)
    ideal = np.arange(PERIOD + 1)[:, None] * period_draws / PERIOD
    assert (np.abs(total_PS - ideal) < 1).all()
    quotas = np.diff(total_PS, axis=0)
    assert (quotas.sum(1) == block).all()
    assert (np.abs(quotas - period_draws / PERIOD) < 1).all()


@settings(max_examples=15, deadline=None)
@given(weights=WEIGHTS, block=st.integers(5, 300), seed=st.integers(0, 2**32), window=st.sampled_from([None, 1, 3]))
def test_a_block_holds_its_quotas_and_an_epoch_every_sample_once(weights, block, seed, window):
    samples = [10 + 7 * i for i in range(len(weights))]
    order = Order(sources(weights, samples, shards=4), seed, block, window)
    source, index = order.at(np.arange(20 * block))
    for b in range(20):
        found = np.bincount(source[b * block : (b + 1) * block], minlength=len(weights))
        np.testing.assert_array_equal(found, order.quotas(b))
    for s, n in enumerate(samples):
        drawn = index[source == s]
        counts = np.bincount(drawn, minlength=n)  # whole epochs and a part of one
        assert len(counts) == n and counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(order.drawn(20 * block), np.bincount(source, minlength=len(weights)))


def test_one_source_gives_each_sample_exactly_once_an_epoch():
    for window in (None, 2):
        order = Order(sources([1.0], 1000, shards=7), 3, block=100, window=window)
        _, index = order.at(np.arange(5000))
        for epoch in range(5):
            assert sorted(index[epoch * 1000 : (epoch + 1) * 1000].tolist()) == list(range(1000))
        assert (index[:1000] != index[1000:2000]).mean() > 0.95


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_split_of_the_positions_sees_the_same_order(data):
    order = Order(sources([1.0, 2.5, 0.1], [40, 1000, 3], caps=[5, None, None]), 11, block=50)
    want = order.at(np.arange(2000))
    order = Order(sources([1.0, 2.5, 0.1], [40, 1000, 3], caps=[5, None, None]), 11, block=50)
    world, batch = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 33))
    for rank in range(world):
        start = data.draw(st.integers(0, 1500))
        some = np.arange(start + rank, min(start + 40 * world * batch, 2000), world)
        some = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(some)
        source, index = order.at(some)
        np.testing.assert_array_equal(source, want[0][some])
        np.testing.assert_array_equal(index, want[1][some])


def test_a_window_keeps_reads_within_its_shards():
    order = Order(sources([1.0], 4000, shards=40), 5, block=100, window=4)
    _, index = order.at(np.arange(4000))
    shard = index // 100
    for start in range(0, 4000, 400):
        # A block is permuted, so up to a block of the neighbouring window mixes in at the border.
        assert len(set(shard[start + 100 : start + 300].tolist())) <= 4
    assert sorted(index.tolist()) == list(range(4000))
    assert len(set(shard[:100].tolist())) == 4


@pytest.mark.thorough
@settings(max_examples=15, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=6),
    epochs=st.lists(st.one_of(st.none(), st.floats(0.05, 30)), min_size=6, max_size=6),
    block=st.integers(1, 200),
)
def test_caps_are_reached_exactly_and_never_passed(weights, epochs, block):
    caps = epochs[: len(weights)]
    order = Order(sources(weights, 30, caps=caps), 1, block)
    limits = [None if cap is None else max(int(cap * 30), 1) for cap in caps]
    if order.length is not None:
        assert order.length == sum(limits)
    many = min(order.length or 40_000, 40_000)
    source, _ = order.at(np.arange(many))
    drawn = np.bincount(source, minlength=len(weights))
    for s, limit in enumerate(limits):
        assert limit is None or drawn[s] <= limit
        if order.length is not None and many == order.length:
            assert drawn[s] == limit
    if order.length is not None:
        with pytest.raises(UserError, match="outside the order"):
            order.at(np.array([order.length]))


def test_a_capped_source_leaves_its_place_to_the_others_in_proportion():
    order = Order(sources([6.0, 3.0, 1.0], 100, caps=[2, None, None]), 1, block=100)
    source, _ = order.at(np.arange(5000))
    assert (source == 0).sum() == 200 and (source[:300] == 0).sum() == 180 and not (source[400:] == 0).any()
    assert abs((source[400:] == 1).mean() - 0.75) < 0.002


def test_a_source_may_have_a_window_of_its_own():
    """Its samples then come from two shards at a time; the other source's are those of an order without windows."""
    plain = sources([1.0, 1.0], [700, 600], shards=7)
    own = [plain[0], replace(plain[1], window=2)]
    source, index = Order(own, 5, block=100).at(np.arange(1200))
    want_source, want_index = Order(plain, 5, block=100).at(np.arange(1200))
    np.testing.assert_array_equal(source, want_source)
    np.testing.assert_array_equal(index[source == 0], want_index[source == 0])
    drawn = index[source == 1]
    assert sorted(drawn.tolist()) == list(range(600))
    end = np.cumsum(plain[1].samples_per_shard)
    first_window = np.searchsorted(end, drawn[:150], side="right")  # three blocks; two shards hold more than 170
    assert len(set(first_window.tolist())) == 2
    with pytest.raises(UserError, match="at least 1"):
        Order([replace(plain[0], window=0)], 0)


def test_adding_a_source_reshuffles_nothing():
    one = Order(sources([1.0], 500), 9, block=200)
    two = Order(sources([1.0, 1.0], 500), 9, block=400)
    source, index = two.at(np.arange(400))
    assert sorted(index[source == 0].tolist()) == sorted(one.at(np.arange(200))[1].tolist())
    assert sorted(index[source == 1].tolist()) != sorted(index[source == 0].tolist())


def test_the_order_is_frozen():
    frozen = permute(np.arange(5), np.full(5, 5), mix(9, 1, 0))
    assert frozen.tolist() == [1, 4, 0, 2, 3], "the order of every run ever started has changed"


def test_seeds_differ_and_substitutes_are_a_function_of_position():
    a, b = (Order(sources([1.0, 1.0], 1000), seed) for seed in (1, 2))
    assert (a.at(np.arange(1000))[1] != b.at(np.arange(1000))[1]).mean() > 0.95
    drawn = [a.substitute(p, 1, 0) for p in range(500)]
    assert drawn == [a.substitute(p, 1, 0) for p in range(500)] and min(drawn) >= 0 and max(drawn) < 1000
    assert len(set(drawn)) > 350 and drawn != [a.substitute(p, 1, 1) for p in range(500)]


@pytest.mark.parametrize("bad", [[0.0], [-1.0, 2.0], [float("nan")]])
def test_bad_weights_are_refused(bad):
    with pytest.raises(UserError, match="positive"):
        Order(sources(bad), 0)


def test_empty_or_repeated_sources_are_refused():
    with pytest.raises(UserError, match="empty: \\['s0'\\]"):
        Order(sources([1.0], 0), 0)
    with pytest.raises(UserError, match="unique"):
        Order(sources([1.0]) * 2, 0)
