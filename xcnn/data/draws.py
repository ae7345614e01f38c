"""Random numbers of the examples of a batch, which depend neither on the other examples nor on who draws them."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._check import integer, is_integer, number
from xcnn.errors import UsageError, explained

__all__ = ["Draws"]

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1
_CANDIDATES = 16
"""Candidates for a gamma variate; one is accepted with a probability above 0.95, so none is with one below 1e-20."""


class Draws:
    """Random numbers for each example of a batch.

    The numbers of an example are decided by the seed, the epoch, the index of the example and the number of the call
    alone: neither the other examples of the batch nor their order has an effect. Calls are counted from the creation of
    the object, and the size of an earlier call has no effect on a later one.

    A number is a hash of these four: the finaliser of SplitMix64, by which a key is derived from seed, epoch and index,
    and then a 64-bit word from the sum of the key and a word of the call.

    Parameters
    ----------
    seed : an integer of at least 0.
    epoch : an integer of at least 0.
    indices : indices of the examples in their data set, integers (n,) of at least 0.

    Raises
    ------
    UsageError
        If an argument is invalid.

    References
    ----------
    G. L. Steele Jr., D. Lea and C. H. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.

    Examples
    --------
    >>> from xcnn.data import Draws
    >>> numbers = Draws(seed=0, epoch=3, indices=[7, 8, 9]).random()
    >>> bool(numbers[2] == Draws(seed=0, epoch=3, indices=[9]).random()[0])
    True
    """

    @explained
    def __init__(self, seed: int, epoch: int, indices: npt.ArrayLike) -> None:
        seed, epoch = (integer("Draws", *pair, minimum=0) for pair in (("seed", seed), ("epoch", epoch)))
        places = np.asarray(indices)
        if places.ndim != 1 or (places.size and (places.dtype.kind not in "iu" or places.min() < 0)):
            raise UsageError(f"Draws: indices must be integers (n,) of at least 0, got {indices!r}")
        state = 0
        for value in (seed, epoch):
            digits = max(1, -(-value.bit_length() // 64))  # in base 2**64
            for word in (digits, *(value >> 64 * digit for digit in range(digits))):
                state = _mix(_mix(state + _GOLDEN) ^ word)
        self._keys = places.astype(np.uint64)
        self._keys *= np.uint64(_GOLDEN)
        self._keys += np.uint64(state)
        _mix_all(self._keys)
        self._calls = 0

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._keys)

    def random(self, size: int | tuple[int, ...] = ()) -> Floats:
        """Return numbers of a uniform distribution on [0, 1), float64 (n, *size), multiples of 2**-53."""
        words = self._words(size)
        words >>= np.uint64(11)
        numbers = words.astype(np.float64)
        numbers *= 2.0**-53
        return numbers

    def uniform(self, low: npt.ArrayLike, high: npt.ArrayLike, size: int | tuple[int, ...] = ()) -> Floats:
        """Return numbers of a uniform distribution between `low` and `high`, float64 (n, *size)."""
        start, end = (_numbers("uniform", *pair) for pair in (("low", low), ("high", high)))
        return start + (end - start) * self.random(size)

    def integers(self, low: int, high: int, size: int | tuple[int, ...] = ()) -> npt.NDArray[np.int64]:
        """Return integers from `low` to `high` - 1, int64 (n, *size).

        They are rounded down from multiples of 2**-53, so the probabilities of two integers differ by 2**-53 at most.
        """
        if not is_integer(low) or not is_integer(high) or not -(2**52) <= low < high <= 2**52:
            raise UsageError(f"integers: low < high must be integers from -2**52 to 2**52, got {low!r} and {high!r}")
        return (self.random(size) * (high - low)).astype(np.int64) + low

    def normal(
        self,
        loc: npt.ArrayLike = 0.0,
        scale: npt.ArrayLike = 1.0,
        size: int | tuple[int, ...] = (),
        dtype: npt.DTypeLike = np.float64,
    ) -> npt.NDArray[np.floating[Any]]:
        """Return numbers of a normal distribution of mean `loc` and standard deviation `scale`, (n, *size).

        float32 numbers, which are faster, lie within 6 standard deviations of the mean, those of float64 within 7.

        References
        ----------
        G. E. P. Box and M. E. Muller, "A Note on the Generation of Random Normal Deviates", 1958.
        """
        try:
            known = np.dtype(dtype) in (np.float32, np.float64)
        except TypeError:
            known = False
        if not known:
            raise UsageError(f"normal: dtype must be float32 or float64, got {dtype}")
        dtype = np.dtype(dtype)
        scale, loc = _numbers("normal", "scale", scale).astype(dtype), _numbers("normal", "loc", loc).astype(dtype)
        shape = _shape(size)
        count = math.prod(shape)
        words = self._words((count + 1) // 2)  # a word for the radius and the angle of two numbers
        bits = 24 if dtype == np.float32 else 32
        radius = (words >> np.uint64(64 - bits)).astype(dtype)
        angle = ((words & np.uint64(2**32 - 1)) >> np.uint64(32 - bits)).astype(dtype)
        radius += 0.5  # never 0
        radius *= 2.0**-bits
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        angle *= 2 * math.pi * 2.0**-bits
        halves = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), axis=1)[:, :count]
        numbers: npt.NDArray[np.floating[Any]] = halves.reshape(len(self), *shape) * scale
        numbers += loc
        return numbers

    def beta(self, a: float, b: float) -> Floats:
        """Return numbers of a beta distribution, float64 (n,); `a` and `b` lie in [1e-6, 1e6].

        X / (X + Y) has this distribution, where X and Y have gamma distributions with the shapes `a` and `b`.

        References
        ----------
        G. Marsaglia and W. W. Tsang, "A Simple Method for Generating Gamma Variables", 2000.
        """
        a, b = (number("beta", *pair, "[1e-6, 1e6]") for pair in (("a", a), ("b", b)))
        x, y = self._log_gamma(a), self._log_gamma(b)
        return 1 / (1 + np.exp(np.clip(y - x, -700, 700)))

    def permuted(self) -> npt.NDArray[np.int64]:
        """Return a random order of the examples, a permutation of 0 to n - 1, int64 (n,): it depends on the batch."""
        return np.argsort(self._words(()), kind="stable")

    def _log_gamma(self, shape: float) -> Floats:
        """Return logarithms of numbers of a gamma distribution (n,); the numbers may underflow if `shape` is small."""
        d = shape + (shape < 1) - 1 / 3  # that of `shape + 1` below 1
        x = self.normal(size=_CANDIDATES)  # (n, candidates)
        v = np.maximum(1 + x / math.sqrt(9 * d), 1e-100) ** 3  # at 1e-300 nothing is accepted
        threshold = x**2 / 2 + d * (1 - v + np.log(v))
        accepted = np.log(1 - self.random(_CANDIDATES)) < threshold  # 1 - random() is above 0
        first = np.argmax(accepted, axis=1)
        logarithm: Floats = math.log(d) + np.log(v[np.arange(len(self)), first])
        below_one = np.log(1 - self.random())  # drawn for any shape: the number of calls is the same
        return logarithm + below_one / shape if shape < 1 else logarithm

    def _words(self, size: int | tuple[int, ...]) -> Words:
        """Return random 64-bit words (n, *size), those of the next call."""
        shape = _shape(size)
        self._calls += 1
        first = _mix(self._calls * _GOLDEN)
        if not shape:
            words = self._keys + np.uint64(first)
        else:
            call = np.arange(math.prod(shape), dtype=np.uint64)
            call *= np.uint64(_GOLDEN)
            call += np.uint64(first)
            _mix_all(call)  # otherwise, two examples might have parts of one sequence
            words = self._keys.reshape(-1, *(1,) * len(shape)) + call.reshape(shape)
        _mix_all(words)
        return words


def _numbers(caller: str, name: str, value: npt.ArrayLike) -> Floats:
    """Return a number or an array of them as float64."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{caller}: {name} must be a number or an array of them, got {value!r}") from None


def _shape(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return `size` as a tuple of integers of at least 0."""
    entries = size if isinstance(size, tuple) else (size,)
    return tuple(integer("Draws", "size", entry, minimum=0) for entry in entries)


def _mix(word: int) -> int:
    """Return the hash of a word, the finaliser of SplitMix64."""
    word &= _WORD
    word = (word ^ (word >> 30)) * _FIRST & _WORD
    word = (word ^ (word >> 27)) * _SECOND & _WORD
    return word ^ (word >> 31)


def _mix_all(words: Words) -> None:
    """Replace each word by its hash."""
    shifted = words >> np.uint64(30)
    words ^= shifted
    words *= np.uint64(_FIRST)
    np.right_shift(words, np.uint64(27), out=shifted)
    words ^= shifted
    words *= np.uint64(_SECOND)
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted
