"""What makes a function an op: the contract, the table of all ops, and the sample inputs each one carries.

An op is a pure function `y, backward = op(arrays, options)`. `backward(dy, needs=None)` returns one gradient per array
argument, in order: None where `needs` has False, where the argument was None, or where no gradient exists (labels).

To add an op: write the function in its file under `@op(...)`, list it in `ops/__init__.py`, and give a naive float64
loop of the same name in `tests/reference.py`. The generated tests do the rest.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np

from xcnn._array import Array, is_array, namespace_of
from xcnn.errors import DtypeError, ShapeError, UsageError

__all__ = [
    "OPS",
    "Backward",
    "Draw",
    "Gradients",
    "Op",
    "Result",
    "Sample",
    "captured",
    "labels",
    "op",
    "positive",
    "probabilities",
    "sample",
]

Gradients = tuple[Any, ...]  # an Array or None each; spelled so that a caller who asked for one need not prove it
Result = tuple[Array, Callable[..., Gradients]]
F = TypeVar("F", bound=Callable[..., Any])


class Backward:
    """The backward pass of one op call: a function of `dy` that may be called any number of times.

    Parameters of a call
    --------------------
    dy : gradient of the loss with respect to `y`, of the same shape, dtype and library. May be left out where `y` is a
        0-d loss; it is then 1.
    needs : one bool per array argument, True where its gradient is wanted; None wants all.

    Returns
    -------
    A tuple with one gradient, or None, per array argument.
    """

    __slots__ = ("_count", "_function", "_loss", "_name", "dtype", "shape", "xp")

    def __init__(self, name: str, y: Array, count: int, function: Callable[[Array, Sequence[bool]], Gradients]) -> None:
        self._name, self._count, self._function = name, count, function
        self.xp: ModuleType = namespace_of(y)
        self.shape, self.dtype = y.shape, y.dtype
        self._loss = y if y.shape == () else None

    def __call__(self, dy: Array | None = None, needs: Sequence[bool] | None = None) -> Gradients:
        if dy is None:
            if self._loss is None:
                raise ShapeError(f"{self._name}: only a 0-d y may omit dy; pass one of shape {tuple(self.shape)}")
            dy = self._loss**0  # 1, of NaN too; ones_like takes microseconds
        elif not self._accepts(dy):
            came = f"{type(dy).__name__} of {getattr(dy, 'dtype', 'no dtype')}"
            raise DtypeError(f"{self._name}: dy must be a {self.xp.__name__} array of {self.dtype} like y, got {came}")
        elif dy.shape != self.shape:
            raise ShapeError(f"{self._name}: dy must have the shape of y {tuple(self.shape)}, got {tuple(dy.shape)}")
        if needs is None:
            needs = (True,) * self._count
        elif (type(needs) is not tuple and not isinstance(needs, Sequence)) or len(needs) != self._count:
            raise UsageError(f"{self._name}: needs takes {self._count} bools, one per array argument, got {needs!r}")
        return self._function(dy, needs)

    def _accepts(self, dy: Any) -> bool:
        try:
            return namespace_of(dy) is self.xp and bool(dy.dtype == self.dtype)
        except TypeError:
            return False

    def saved(self) -> dict[str, Array]:
        """Return the arrays that this backward keeps alive, by the names they have in the op's source."""
        return captured(self._function)

    def __repr__(self) -> str:
        return f"<backward of {self._name}, dy {tuple(self.shape)} {self.dtype}>"


def captured(function: Callable[..., Any]) -> dict[str, Array]:
    """Return the arrays in a closure, and in the closures that it calls, by variable name."""
    arrays: dict[str, Array] = {}
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # a name that is not bound (yet)
            continue
        if isinstance(value, Backward):
            arrays |= value.saved()
        elif is_array(value):
            arrays[name] = value
        elif hasattr(value, "__code__") and value is not function:
            arrays |= captured(value)
    return arrays


@dataclass(frozen=True)
class Draw:
    """How to draw one sample array: standard normal unless `kind` says otherwise."""

    shape: tuple[int, ...]
    kind: str = "normal"
    high: int = 0

    def array(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a float64 array, or an int64 one for labels."""
        match self.kind:
            case "labels":
                return rng.integers(0, self.high, self.shape)
            case "positive":
                return rng.uniform(0.5, 2.0, self.shape)
            case "probabilities":
                p = rng.uniform(0.1, 1.0, self.shape)
                return cast(np.ndarray, p / p.sum(axis=1 if len(self.shape) > 1 else 0, keepdims=True))
            case _:
                return rng.standard_normal(self.shape)


def labels(*shape: int, high: int) -> Draw:
    """Class indices 0 .. high - 1."""
    return Draw(shape, "labels", high)


def positive(*shape: int) -> Draw:
    """Numbers between 0.5 and 2."""
    return Draw(shape, "positive")


def probabilities(*shape: int) -> Draw:
    """Numbers that sum to 1 along the class axis."""
    return Draw(shape, "probabilities")


@dataclass(frozen=True)
class Sample:
    """One example call of an op: how to draw each array argument, and the options."""

    arrays: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the array arguments as host arrays (float64, labels int64): a list where the op takes many."""
        return {name: _draw(spec, rng) for name, spec in self.arrays.items()}


def _draw(spec: Any, rng: np.random.Generator) -> Any:
    if isinstance(spec, list):
        return [_draw(one, rng) for one in spec]
    return spec if spec is None else spec.array(rng)


def sample(arrays: dict[str, Any], **options: Any) -> Sample:
    """Shorthand for a `Sample`: a tuple is the shape of a standard normal array, a list stands for many arrays.

    >>> sample({"x": (2, 3)}, p=0.5)
    Sample(arrays={'x': Draw(shape=(2, 3), kind='normal', high=0)}, options={'p': 0.5})
    """

    def spec(value: Any) -> Any:
        if isinstance(value, list):
            return [spec(one) for one in value]
        return Draw(value) if isinstance(value, tuple) else value

    return Sample({name: spec(value) for name, value in arrays.items()}, options)


@dataclass(frozen=True)
class Op:
    """One row of the table of ops."""

    name: str
    function: Callable[..., Any]
    arrays: tuple[str, ...]
    saves: tuple[str, ...]
    samples: tuple[Sample, ...]


OPS: dict[str, Op] = {}
"""Every op by name."""


def op(arrays: str, *, saves: str = "", samples: Sequence[Sample] = ()) -> Callable[[F], F]:
    """Make a function an op and enter it in `OPS`.

    Parameters
    ----------
    arrays : names of the array arguments, in the order of the gradients; `*xs` for one argument that is a sequence of
        arrays.
    saves : names of the arrays that backward keeps alive, as they are called in the source; `y?` where options
        decide.
    samples : example calls, which tests and `xcnn compare` run.

    The function itself returns `y, backward` with a plain `backward(dy, needs)`; where it returns more than one result,
    `y` is a tuple whose first entry `dy` belongs to.
    """
    names = tuple(arrays.split())
    variadic = names[0].startswith("*")

    def register(function: F) -> F:
        name = function.__name__

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            y, backward = function(*args, **kwargs)
            count = len(args[0] if args else kwargs[names[0][1:]]) if variadic else len(names)
            return y, Backward(name, y[0] if type(y) is tuple else y, count, backward)

        OPS[name] = Op(name, checked, tuple(n.lstrip("*") for n in names), tuple(saves.split()), tuple(samples))
        return cast(F, checked)

    return register
