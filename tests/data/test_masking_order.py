"""Orders computed position by position: bijections, without a pattern, without memory."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from minialbert.data.masking import permuted


def order(count, seed=0, epoch=0):
    return np.array([permuted(position, count, seed=seed, epoch=epoch) for position in range(count)])


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (42, 0), (42, 7), (2**64 - 1, 2**64 - 1)])
def test_every_small_order_is_a_permutation(seed, epoch):
    for count in range(1, 301):
        assert sorted(order(count, seed, epoch)) == list(range(count)), count


@pytest.mark.parametrize("count", [2**31 - 1, 2_100_000_000, 2**63 + 5])
def test_no_two_positions_of_a_long_order_meet(count):
    generator = random.Random(0)
    positions = {
        *range(5000),
        *range(count - 5000, count),
        *(generator.randrange(count) for _ in range(20_000)),
    }
    values = {permuted(position, count, seed=1, epoch=0) for position in positions}
    assert len(values) == len(positions) and min(values) >= 0 and max(values) < count
    # They fall evenly over the whole range, though half of the positions are neighbours.
    buckets = Counter(value * 50 // count for value in values)
    assert stats.chisquare([buckets[bucket] for bucket in range(50)]).pvalue > 1e-4


def test_every_permutation_of_four_is_as_likely_as_the_others():
    drawn = Counter(tuple(order(4, seed)) for seed in range(12_000))
    assert len(drawn) == 24
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-4


def z(values, mean, deviation):
    """Standard errors between the mean of the values and the one expected."""
    return abs(np.mean(values) - mean) / (deviation / np.sqrt(len(values)))


def test_an_order_has_no_pattern():
    # Means and deviations over uniform permutations of n: |p(i) - i| and |p(i+1) - p(i)| have means (n² - 1) / 3n and
    # (n + 1) / 3; fixed points and successors are nearly Poisson with mean 1; the rank correlation has variance
    # 1 / (n - 1).
    count, orders = 997, [order(997, seed) for seed in range(150)]
    places = np.arange(count)
    uniform = np.random.default_rng(0)
    shuffles = [uniform.permutation(count) for _ in range(150)]
    for statistic, mean in (
        (lambda p: np.abs(p - places).mean(), (count**2 - 1) / (3 * count)),
        (lambda p: np.abs(np.diff(p)).mean(), (count + 1) / 3),
        (lambda p: (p == places).sum(), 1.0),
        (lambda p: (np.diff(p) == 1).sum(), (count - 1) / count),
        (lambda p: np.corrcoef(p, places)[0, 1], 0.0),
        (lambda p: np.corrcoef(p[1:], p[:-1])[0, 1], -1 / count),
    ):
        values, expected = [statistic(p) for p in orders], [statistic(p) for p in shuffles]
        assert z(values, mean, np.std(values)) < 4.5
        assert 0.7 < np.std(values) / np.std(expected) < 1.4


def test_position_and_value_are_independent():
    # Ten by ten cells of a permutation have 81 degrees of freedom, and 1/n more variance than a table of draws.
    values = []
    for seed in range(100):
        cells = np.histogram2d(np.arange(2000), order(2000, seed), bins=10)[0]
        values.append(((cells - 20) ** 2 / 20).sum())
    assert z(values, 81 * 2000 / 1999, np.sqrt(2 * 81)) < 4.5


def test_other_seeds_epochs_and_lengths_give_unrelated_orders():
    base = order(4000, 5, 1)
    for other in (order(4000, 6, 1), order(4000, 5, 2), order(4000, 1, 5), order(4001, 5, 1)[:4000]):
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(4000)
        assert (base == other).sum() < 12  # one is expected


def test_known_orders_stay_as_they_are():
    # A change of the scheme would break the resumption of older runs.
    assert order(12, 42, 0).tolist() == [9, 8, 2, 1, 10, 4, 7, 6, 3, 0, 11, 5]
    assert permuted(10**9, 2_100_000_000, seed=42, epoch=3) == 1648586334


def test_no_memory_grows_with_the_length():
    permuted(0, 10, seed=0, epoch=0)
    tracemalloc.start()
    try:
        for position in range(100):
            permuted(position, 10**12, seed=0, epoch=0)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_positions_outside():
    for position in (-1, 5):
        with pytest.raises(IndexError, match=f"position {position} of 5"):
            permuted(position, 5, seed=0, epoch=0)
