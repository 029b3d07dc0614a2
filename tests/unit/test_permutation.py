"""The computed order is a permutation, and as random as numpy's by the same statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotrun.permutation import MAX_N, Permutation

Order = npt.NDArray[np.int64]
LIMIT = 5.0  # standard deviations; keys are fixed, so a pass stays a pass


def excess(counts: npt.NDArray[np.float64], freedom: int) -> float:
    """By how many standard deviations chi-square exceeds its mean for equal expected counts."""
    expected = counts.mean()
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


def dependence(x: Order, y: Order, bins: int = 40) -> float:
    """The excess of a chi-square test that x and y, each uniform, are independent."""
    return excess(np.histogram2d(x, y, bins=bins)[0], (bins - 1) ** 2)


def spotrun_order(n: int, epoch: int) -> Order:
    return Permutation(n, (7, epoch))(range(n))


def numpy_order(n: int, epoch: int) -> Order:
    return np.random.default_rng((7, epoch)).permutation(n)


GOLDEN_10 = [2, 5, 6, 1, 3, 4, 7, 8, 9, 0]
GOLDEN_BILLION = [544579704, 722179423, 251971689, 878274411]
ORDERS = pytest.mark.parametrize("order", [spotrun_order, numpy_order])
SIZES = pytest.mark.parametrize("n", [40_000, 99_991, 1 << 18])


@given(st.integers(1, 5000), st.tuples(st.integers(), st.integers(0)))
def test_every_value_comes_once(n: int, key: tuple[int, int]) -> None:
    assert np.array_equal(np.sort(Permutation(n, key)(range(n))), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 1023, 1024, 1025, 65536, 999_999])
def test_every_value_comes_once_at_the_edges_of_the_grid(n: int) -> None:
    assert np.array_equal(np.sort(Permutation(n, (0, 0))(range(n))), np.arange(n))


def test_a_part_is_the_same_as_in_the_whole() -> None:
    order = Permutation(100_000, (1, 2))
    whole = order(range(100_000))
    assert np.array_equal(order(range(99_000, 99_050)), whole[99_000:99_050])
    assert np.array_equal(order(np.array([5, 4, 5])), whole[[5, 4, 5]])
    assert order([]).size == 0


@pytest.mark.parametrize("n", [10**12, 10**15 + 37, MAX_N])
def test_huge_sizes_stay_in_range_and_spread_evenly(n: int) -> None:
    values = Permutation(n, (0, 3))(n - 1 - np.arange(40_000))
    assert values.min() >= 0 and values.max() < n
    assert np.unique(values).size == 40_000
    assert abs(excess(np.histogram(values, bins=100, range=(0, n))[0].astype(float), 99)) < LIMIT


def test_the_order_of_a_key_never_changes() -> None:
    """Checkpoints hold positions, so a change here would give running jobs other data."""
    assert Permutation(10, (0, 0))(range(10)).tolist() == GOLDEN_10
    assert Permutation(10**9, (1, 2))(range(4)).tolist() == GOLDEN_BILLION


@pytest.mark.parametrize("n", [0, -1, MAX_N + 1])
def test_sizes_that_cannot_be_permuted_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="2\\^60"):
        Permutation(n, (0, 0))


def test_positions_outside_are_refused() -> None:
    for positions in ([10], [-1]):
        with pytest.raises(ValueError, match=r"range\(10\)"):
            Permutation(10, (0, 0))(positions)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_few_items_are_equally_likely(n: int) -> None:
    number = {order: i for i, order in enumerate(permutations(range(n)))}
    drawn = [number[tuple(Permutation(n, (seed, 0))(range(n)).tolist())] for seed in range(3000)]
    assert excess(np.bincount(drawn, minlength=len(number)).astype(float), len(number) - 1) < LIMIT


@ORDERS
@SIZES
def test_a_value_does_not_depend_on_its_position(order: Callable[[int, int], Order], n: int) -> None:
    assert abs(dependence(np.arange(n), order(n, 0))) < LIMIT


@ORDERS
@SIZES
def test_neighbours_are_independent(order: Callable[[int, int], Order], n: int) -> None:
    values = order(n, 0)
    for distance in (1, 2, 64, 512):
        first, second = values[:-distance], values[distance:]
        assert abs(dependence(first, second)) < LIMIT
        assert abs(dependence(first % 40, second % 40)) < LIMIT
        assert abs(np.corrcoef(first, second)[0, 1]) * math.sqrt(n) < LIMIT
    steps = np.abs(np.diff(values)) / n  # the distance of two uniform values: mean 1/3, variance 1/18
    assert abs(steps.mean() - 1 / 3) * math.sqrt(18 * n) < LIMIT


@ORDERS
@SIZES
def test_epochs_and_seeds_are_independent(order: Callable[[int, int], Order], n: int) -> None:
    orders = [order(n, epoch) for epoch in (0, 1, 2, 1000)]
    if order is spotrun_order:
        orders.append(Permutation(n, (8, 0))(range(n)))
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert abs(dependence(first, second)) < LIMIT
            assert (first == second).sum() <= 8  # Poisson with mean 1


@ORDERS
def test_batches_sample_the_whole_range(order: Callable[[int, int], Order]) -> None:
    """The means of 256 consecutive values vary as those of samples without replacement do."""
    n = 1 << 18
    means = order(n, 0).reshape(-1, 256).mean(axis=1) / n
    variance = (1 / 12 / 256) * (1 - 255 / (n - 1))
    assert abs(means.var() / variance - 1) * math.sqrt(means.size / 2) < LIMIT
