"""Exercises of chapter 9: array libraries and rounding.

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/09.py
"""

from typing import Any

import numpy as np

from xcnn import ops


def relative_error(came: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest error, divided by the largest absolute value of the exact numbers."""
    raise NotImplementedError


def careful_sum(numbers: np.ndarray) -> np.float32:
    """Return the sum of float32 numbers, a float32, with an error below a millionth, with float32 arithmetic alone.

    A loop `total = total + number` is wrong by more: its total grows, and its gaps with it. One way is to split the
    numbers into two halves, and to sum each half in the same way; another is to keep what each addition has lost
    (W. Kahan, 1965).
    """
    raise NotImplementedError


@ops.op("x", saves="x", samples=[ops.sample({"x": (5,)}), ops.sample({"x": (2, 3, 4)})])
def soft_step(x: Any) -> Any:
    """Return y = x / (1 + |x|) and its backward, for arrays of any library: an op.

    Write `abs(x)`, not `np.abs(x)`: it works for arrays of every library. The slope of y is 1 / (1 + |x|)^2.
    Return y and a function backward(dy, needs), which returns a tuple with one gradient, or (None,) if needs[0] is
    False. backward may use x, but not y: `saves` above names what it keeps. The check is the one that the ops of xcnn
    pass.
    """
    raise NotImplementedError
