"""Functions of each number: exponential, logarithm, roots and powers, the error function, and signs."""

import math
from collections.abc import Callable, Sequence
from types import ModuleType

from xcnn._array import Array, namespace
from xcnn._check import number
from xcnn.ops._erf import erf as _erf
from xcnn.ops._formula import clip, formula
from xcnn.ops._op import Draw, Gradients, Result, op, positive, sample

__all__ = ["abs", "erf", "exp", "log", "negative", "power", "softsign", "sqrt"]

_X, _POSITIVE = Draw((2, 3, 4)), positive(2, 3, 4)

_Function = Callable[[ModuleType, Array], Array]


def _elementwise(
    name: str, summary: str, forward: _Function, keeps: str, slope: _Function, x: Draw = _X
) -> Callable[[Array], Result]:
    """Return the op of a formula without parameters."""
    apply = formula(name, forward, slope, keeps)

    def function(x: Array) -> Result:
        return apply(x)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{summary}\n\nArguments, shapes and errors are those of `relu`. Backward keeps {keeps}.\n"
    return op("x", saves=keeps, samples=[sample({"x": x})], apart=True)(function)


exp = _elementwise("exp", "Apply the exponential function.", lambda xp, x: xp.exp(x), "y", lambda xp, y: y)
log = _elementwise(
    "log", "Take the natural logarithm of positive numbers.",
    lambda xp, x: xp.log(x), "x", lambda xp, x: 1.0 / x, _POSITIVE,
)  # fmt: skip
sqrt = _elementwise(
    "sqrt", "Take the square root. The slope at 0 is infinite.",
    lambda xp, x: xp.sqrt(x), "y", lambda xp, y: 0.5 / y, _POSITIVE,
)  # fmt: skip
abs = _elementwise(
    "abs", "Take the magnitude. The slope at 0 is 0.",
    lambda xp, x: xp.abs(x), "x", lambda xp, x: xp.sign(x),
)  # fmt: skip
erf = _elementwise(
    "erf", "Apply the error function `2 / sqrt(pi) * integral of exp(-t^2) from 0 to x`.",
    _erf, "x", lambda xp, x: 2.0 / math.sqrt(math.pi) * xp.exp(-(clip(xp, x, -30.0, 30.0) ** 2)),
)  # fmt: skip
softsign = _elementwise(
    "softsign", "Apply `y = x / (1 + abs(x))`, which lies between -1 and 1.",
    lambda xp, x: x / (1.0 + xp.abs(x)), "x", lambda xp, x: (1.0 / (1.0 + xp.abs(x))) ** 2,
)  # fmt: skip


@op("x", samples=[sample({"x": _X})], apart=True)
def negative(x: Array) -> Result:
    """Change the sign. Arguments, shapes and errors are those of `relu`. Backward keeps nothing."""
    namespace("negative", x=x)
    return -x, lambda dy, needs: (-dy if needs[0] else None,)


@op(
    "x",
    saves="x?",
    samples=[sample({"x": _POSITIVE}, exponent=-1.5), sample({"x": _X}, exponent=3), sample({"x": _X}, exponent=0)],
    apart=True,
)
def power(x: Array, exponent: float) -> Result:
    """Raise each number to a constant power.

    Parameters
    ----------
    x : floating-point array of any shape.
    exponent : a number. Unless it is an integer, y is NaN where x is negative.

    Returns
    -------
    y : the shape of x, 1 for the exponent 0.
    backward : dy -> (dx,), with slope `exponent * x**(exponent - 1)`. It keeps x, or nothing for the exponent 0.

    Raises
    ------
    UsageError, DtypeError
        If exponent is not a finite number, or x is not a floating-point array.
    """
    namespace("power", x=x)
    exponent = number("power", "exponent", exponent, "(-inf, inf)")
    if exponent == 0.0:
        return x**0.0, lambda dy, needs: (dy * 0.0 if needs[0] else None,)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (dy * (exponent * x ** (exponent - 1.0)) if needs[0] else None,)

    return x**exponent, backward
