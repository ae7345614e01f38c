"""Random numbers of examples: what decides them, and their distributions against formulas and NumPy's generators."""

import math

import numpy as np
import pytest

from xcnn.data import Draws
from xcnn.errors import UsageError

DRAW = {
    "random": lambda d: d.random(),
    "random of a size": lambda d: d.random((2, 3)),
    "uniform": lambda d: d.uniform(-1, 3, 2),
    "integers": lambda d: d.integers(-2, 3),
    "normal": lambda d: d.normal(1, 2, 3),
    "normal float32": lambda d: d.normal(size=(3, 5, 5), dtype=np.float32),
    "beta": lambda d: d.beta(0.4, 1.5),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=list(DRAW))
def test_the_other_examples_of_a_batch_have_no_effect(draw):
    indices = np.random.default_rng(0).permutation(200)[:67]
    whole = draw(Draws(3, 1, indices))
    for place in (0, 1, 13, 66):
        assert np.array_equal(draw(Draws(3, 1, indices[place : place + 1])), whole[place : place + 1])
    assert np.array_equal(draw(Draws(3, 1, indices[::-1])), whole[::-1])


@pytest.mark.parametrize("draw", DRAW.values(), ids=list(DRAW))
def test_seed_epoch_index_and_call_decide_the_numbers(draw):
    seen = set()
    for seed in (0, 1, 2**64, 2**64 + 1, 2**200):
        for epoch in (0, 1, 2**64):
            draws = Draws(seed, epoch, [0, 1, 5])
            seen.update(numbers.tobytes() for _ in range(2) for numbers in draw(draws))
    distinct = 5 if draw is DRAW["integers"] else 5 * 3 * 3 * 2
    assert len(seen) == distinct


def test_the_size_of_a_call_has_no_effect_on_the_next():
    small, large = Draws(0, 0, range(4)), Draws(0, 0, range(4))
    assert np.array_equal(small.random(2), large.random(9)[:, :2])
    assert np.array_equal(small.normal(), large.normal())
    small.beta(0.1, 5)
    large.beta(0.1, 0.1)
    assert np.array_equal(small.random(), large.random())


def chi_square(counts):
    """Return how many standard deviations the chi-square statistic of equally likely outcomes is from its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2).sum() / expected - freedom) / math.sqrt(2 * freedom)


def distance(numbers, other):
    """Return the statistic of Kolmogorov and Smirnov for two samples, times sqrt(n m / (n + m)): 1.95 is exceeded once
    in a thousand times."""
    both = np.sort(np.concatenate((numbers, other)))
    ranks = [np.searchsorted(np.sort(sample), both, side="right") / len(sample) for sample in (numbers, other)]
    return abs(ranks[0] - ranks[1]).max() * math.sqrt(len(numbers) * len(other) / len(both))


def test_uniform_numbers_are_uniform_and_independent():
    # Neighbours of each kind: examples, epochs, seeds, calls and places of a call.
    def numbers(seed, epoch):
        draws = Draws(seed, epoch, range(20_000))
        return np.stack((draws.random(), *draws.random(2).T))

    base, first = numbers(0, 0), numbers(0, 0)[0]
    assert base.min() >= 0
    assert base.max() < 1
    assert all(abs(chi_square(np.bincount((256 * row).astype(int)))) < 4 for row in base)
    low = (first * 2**53).astype(np.int64) & 255  # the last bits too
    assert abs(chi_square(np.bincount(low))) < 4
    pairs = {
        "example": (first[:-1], first[1:]),
        "epoch": (first, numbers(0, 1)[0]),
        "seed": (first, numbers(1, 0)[0]),
        "call": (base[0], base[1]),
        "place": (base[1], base[2]),
    }
    for kind, (one, two) in pairs.items():
        cells = 16 * (16 * one).astype(int) + (16 * two).astype(int)
        assert abs(chi_square(np.bincount(cells, minlength=256))) < 4, kind
        assert abs(np.corrcoef(one, two)[0, 1]) < 4 / math.sqrt(len(one)), kind


def test_each_bit_of_a_number_is_as_often_0_as_1():
    words = (Draws(0, 0, range(20_000)).random() * 2**53).astype(np.int64)
    ones = (words[:, None] >> np.arange(53)) & 1
    assert abs(ones.mean(axis=0) - 0.5).max() < 4.5 / (2 * math.sqrt(len(words)))


def test_integers_take_each_value_as_often():
    numbers = Draws(0, 0, range(20_000)).integers(-3, 4)
    assert numbers.dtype == np.int64
    assert abs(chi_square(np.bincount(numbers + 3, minlength=7))) < 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_numbers_are_distributed_as_those_of_numpy(dtype):
    numbers = Draws(0, 0, range(5_000)).normal(1, 2, 3, dtype)
    assert numbers.dtype == dtype
    for column in numbers.T:
        assert distance(column, np.random.default_rng(0).normal(1, 2, 100_000)) < 1.95
    assert abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 4 / math.sqrt(5_000)


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.2), (1, 1), (1e-3, 1e-3), (5, 0.5), (30, 20)])
def test_beta_numbers_are_distributed_as_those_of_numpy(a, b):
    numbers = Draws(0, 0, range(5_000)).beta(a, b)
    assert numbers.min() >= 0
    assert numbers.max() <= 1
    expected = np.random.default_rng(0).beta(a, b, 100_000)
    # Beyond 1e-300 from the ends, where NumPy's numbers underflow.
    assert distance(np.clip(numbers, 1e-30, 1 - 1e-12), np.clip(expected, 1e-30, 1 - 1e-12)) < 1.95


@pytest.mark.parametrize("a", [1e-6, 1e6])
def test_beta_numbers_of_extreme_shapes_are_numbers(a):
    numbers = Draws(0, 0, range(100)).beta(a, a)
    assert ((numbers >= 0) & (numbers <= 1)).all()
    assert 0.3 < numbers.mean() < 0.7


def test_permuted_is_a_random_permutation():
    orders = [tuple(Draws(seed, 0, range(3)).permuted()) for seed in range(1_200)]
    counts = np.asarray([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert abs(chi_square(counts)) < 4


def test_a_batch_may_be_empty():
    draws = Draws(0, 0, np.empty(0, np.int64))
    assert [draw(draws).shape[0] for draw in DRAW.values()] == [0] * len(DRAW)
    assert draws.permuted().shape == (0,)
    assert len(draws) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Draws(-1, 0, [0]), "seed must be an integer"),
        (lambda: Draws(0, 1.5, [0]), "epoch must be an integer"),
        (lambda: Draws(0, 0, [-1]), "indices must be integers"),
        (lambda: Draws(0, 0, [0.5]), "indices must be integers"),
        (lambda: Draws(0, 0, 3), "indices must be integers"),
        (lambda: Draws(0, 0, [0]).integers(3, 3), "got 3 and 3"),
        (lambda: Draws(0, 0, [0]).random(-1), "size must be an integer"),
        (lambda: Draws(0, 0, [0]).beta(0, 1), "beta: a must be a number"),
        (lambda: Draws(0, 0, [0]).normal(dtype=np.int64), "dtype must be float32 or float64"),
    ],
)
def test_invalid_arguments_are_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()
