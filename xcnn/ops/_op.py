"""Ops: the contract of an op, the table of all ops, and the sample inputs that each one carries.

An op is a pure function `y, backward = op(arrays, options)`. `backward(dy, needs=None)` returns one gradient per array
argument, in order: None where `needs` is False, where the argument was None, or where there is no gradient (labels).

`docs/extending.md` shows how to write an op. To add one to this package, write it in a file of `ops/` under
`@op(...)`, list it in `ops/__init__.py`, and add a naive float64 loop of the same name to `tests/reference.py`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np

from xcnn._array import Array, is_array, namespace_of
from xcnn.errors import DtypeError, ShapeError, UsageError, unknown, wrong_call

__all__ = [
    "OPS",
    "Backward",
    "Draw",
    "Gradients",
    "Op",
    "Result",
    "Sample",
    "along",
    "captured",
    "labels",
    "op",
    "op_of_ranks",
    "positive",
    "probabilities",
    "sample",
]

Gradients = tuple[Any, ...]  # an Array or None each; Any, so that a caller may use a requested gradient without a check
Result = tuple[Array, Callable[..., Gradients]]
F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
Apart = bool | Callable[[tuple[int, ...], dict[str, Any]], bool]


class Backward:
    """The backward pass of one call of an op: a function of `dy` that may be called any number of times.

    It is called as `backward(dy, needs)`, where `dy` is the gradient of the loss with respect to `y`, of the same
    shape, dtype and library; if `y` is a 0-d loss, `dy` may be left out and is 1. `needs` holds one bool per array
    argument, True to compute its gradient; None computes all. It returns a tuple with one gradient, or None, per
    array argument.
    """

    __slots__ = ("_count", "_function", "_loss", "_name", "dtype", "shape", "xp")

    def __init__(self, name: str, y: Array, count: int, function: Callable[..., Any] | None) -> None:
        self._name, self._count = name, count
        self._function: Any = function
        try:
            self.xp: ModuleType = namespace_of(y)
        except TypeError:
            raise UsageError(f"{name}: an op must return an array and its backward, got {type(y).__name__}") from None
        self.shape, self.dtype = y.shape, y.dtype
        self._loss = y if y.shape == () else None

    def checked(self, dy: Array | None) -> Array:
        """Return dy, or 1 for None, after checking that it fits y."""
        if dy is None:
            if self._loss is None:
                raise ShapeError(f"{self._name}: only a 0-d y may omit dy; pass one of shape {tuple(self.shape)}")
            dy = self._loss**0  # 1, even if the loss is NaN; ones_like takes microseconds
        try:
            accepted = namespace_of(dy) is self.xp and dy.dtype == self.dtype
        except TypeError:
            accepted = False
        if not accepted:
            came = f"{type(dy).__name__} of {getattr(dy, 'dtype', 'no dtype')}"
            raise DtypeError(f"{self._name}: dy must be a {self.xp.__name__} array of {self.dtype} like y, got {came}")
        if dy.shape != self.shape:
            raise ShapeError(f"{self._name}: dy must have the shape of y {tuple(self.shape)}, got {tuple(dy.shape)}")
        return dy

    def __call__(self, dy: Array | None = None, needs: Sequence[bool] | None = None) -> Gradients:
        dy = self.checked(dy)
        if needs is None:
            needs = (True,) * self._count
        elif (type(needs) is not tuple and not isinstance(needs, Sequence)) or len(needs) != self._count:
            raise UsageError(f"{self._name}: needs takes {self._count} bools, one per array argument, got {needs!r}")
        gradients = self._function(dy, needs)
        if type(gradients) is not tuple or len(gradients) != self._count:
            came = f"{len(gradients)}" if type(gradients) is tuple else type(gradients).__name__
            raise UsageError(f"{self._name}: backward must return a tuple of {self._count} gradients, got {came}")
        return gradients

    def saved(self) -> dict[str, Array]:
        """Return the arrays that this backward keeps alive, by the names they have in the op's source."""
        return captured(self._function)

    def __repr__(self) -> str:
        return f"<backward of {self._name}, dy {tuple(self.shape)} {self.dtype}>"


def captured(function: Callable[..., Any]) -> dict[str, Array]:
    """Return the arrays in a closure, and in the closures that it calls, by variable name.

    `slope.y` is the array y that `slope` keeps, the backward of another op that the closure calls.
    """
    if hasattr(function, "saved"):
        return cast(dict[str, Array], function.saved())
    arrays: dict[str, Array] = {}
    names = function.__code__.co_freevars if hasattr(function, "__code__") else ()
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # a name that is not bound (yet)
            continue
        if is_array(value):
            arrays[name] = value
        elif hasattr(value, "saved"):  # a backward pass of another op or of a module
            arrays |= {f"{name}.{inner}": array for inner, array in value.saved().items()}
        elif hasattr(value, "__code__") and value is not function:
            arrays |= captured(value)
    return arrays


@dataclass(frozen=True)
class Draw:
    """How one sample array is drawn.

    Attributes
    ----------
    shape : shape of the array.
    kind : `"normal"` for standard normal numbers; `"labels"`, `"positive"` or `"probabilities"` for the numbers that
        the functions of these names describe.
    high : number of classes, for labels.
    """

    shape: tuple[int, ...]
    kind: str = "normal"
    high: int = 0

    def array(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a float64 array, or an int64 array of labels."""
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
    """Return a `Draw` of class indices from 0 to `high` - 1."""
    return Draw(shape, "labels", high)


def positive(*shape: int) -> Draw:
    """Return a `Draw` of numbers between 0.5 and 2."""
    return Draw(shape, "positive")


def probabilities(*shape: int) -> Draw:
    """Return a `Draw` of numbers that sum to 1 along axis 1, or along the only axis."""
    return Draw(shape, "probabilities")


@dataclass(frozen=True)
class Sample:
    """One example call of an op.

    Attributes
    ----------
    arrays : how each array argument is drawn, by name; None for one that is left out.
    options : the other arguments.
    """

    arrays: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the array arguments as host arrays (float64, labels int64): a list where the op takes many."""
        return {name: _each(lambda spec: spec.array(rng), value) for name, value in self.arrays.items()}


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """Call a function with a value, or with each entry of a list; None stays None."""
    if isinstance(value, list):
        return [function(one) for one in value]
    return None if value is None else function(value)


def sample(arrays: dict[str, Any], **options: Any) -> Sample:
    """Return an example call of an op.

    Parameters
    ----------
    arrays : how each array argument is drawn, by name: a shape for standard normal numbers; `labels(...)`,
        `positive(...)` or `probabilities(...)`; a list of these for an argument of many arrays; None for an argument
        that is left out.
    **options : the other arguments of the call.

    Examples
    --------
    >>> sample({"x": (2, 3)}, p=0.5)
    Sample(arrays={'x': Draw(shape=(2, 3), kind='normal', high=0)}, options={'p': 0.5})
    """

    def spec(value: Any) -> Any:
        return Draw(value) if isinstance(value, tuple) else value

    return Sample({name: _each(spec, value) for name, value in arrays.items()}, options)


@dataclass(frozen=True)
class Op:
    """One row of the table of ops.

    Attributes
    ----------
    name : name of the function.
    function : the op as users call it.
    arrays, saves, constants, samples : as given to `op`.
    variadic : whether the only array argument is a sequence of arrays.
    apart : as given to `op`.
    """

    name: str
    function: Callable[..., Any]
    arrays: tuple[str, ...]
    saves: tuple[str, ...]
    constants: tuple[str, ...]
    samples: tuple[Sample, ...]
    variadic: bool = False
    apart: Apart = False

    def is_apart(self, shape: tuple[int, ...], options: dict[str, Any]) -> bool:
        """Return whether this call, with arrays of this shape, computes each example by itself; see `op`."""
        return bool(self.apart(shape, options)) if callable(self.apart) else self.apart


OPS: dict[str, Op] = {}
"""Every op by name."""


def op(
    arrays: str, *, saves: str = "", constants: str = "", samples: Sequence[Sample] = (), apart: Apart = False
) -> Callable[[F], F]:
    """Decorate a function to make it an op, and add it to `OPS`.

    The function returns `(y, backward)`, where `backward(dy, needs)` gets one bool per array argument and returns one
    gradient, or None, per array argument as a tuple. If the function has several results, `y` is a tuple of them, and
    `dy` belongs to the first.

    Parameters
    ----------
    arrays : names of the array arguments, separated by spaces, in the order of the gradients; the first is the
        function's first argument. `*xs` stands for one argument that is a sequence of arrays.
    saves : names of the arrays that backward keeps in memory, as the function's source calls them; `y?` for one that is
        kept depending on the options.
    constants : names of floating-point arrays without a gradient, such as running statistics. Integer arrays have none
        in any case.
    samples : example calls, which `xcnn.testing.check_op` and `xcnn compare` run.
    apart : whether the op computes each example by itself: entry i of y along axis 0 depends on the entries i of its
        arrays of that many axes alone, and how it is computed on shapes and options alone, not on the numbers. Then a
        graph may check a call once for all with the same shapes, and cut batches for inference. If it depends on the
        call, a function of the shape of the first array and the options by name.

    Raises
    ------
    UsageError
        If the names do not fit the function or the samples, or another module has an op of this name. A reloaded
        module replaces its own ops.
    """
    for argument, value in (("arrays", arrays), ("saves", saves), ("constants", constants)):
        if not isinstance(value, str):
            raise UsageError(f"op: {argument} must be a string of names separated by spaces, got {value!r}")
    if not isinstance(samples, Sequence) or not all(isinstance(one, Sample) for one in samples):
        raise UsageError(f"op: samples must be a list of ops.sample(...), got {samples!r}")

    def register(function: F) -> F:
        name = function.__name__
        names = tuple(arrays.replace("*", "").split())
        variadic = arrays.startswith("*")
        parameters = inspect.signature(function).parameters
        if not names or names[0] != next(iter(parameters), "") or not parameters.keys() >= {*names}:
            raise UsageError(
                f"{name}: arrays must name arguments of the function, its first one first; it takes "
                f"{', '.join(parameters)}, got {arrays!r}"
            )
        for constant in constants.split():
            if constant not in names:
                raise unknown(f"constant of {name}", constant, names)
        for one in samples:
            for key in (*one.arrays, *one.options):
                if key not in (names if key in one.arrays else parameters):
                    raise unknown(f"argument in a sample of {name}", key, parameters)
            for key in names:
                if key not in one.arrays and parameters[key].default is not None:
                    raise UsageError(f"{name}: a sample lacks the array argument {key!r}")
        if name in OPS and OPS[name].function.__module__ != function.__module__:
            home = OPS[name].function.__module__
            raise UsageError(f"{name}: there is an op of this name already, in {home}; choose another name")

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
            except TypeError:
                wrong = wrong_call(name, function, args, kwargs)
                if wrong is None:
                    raise
                raise wrong from None
            if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
                raise UsageError(f"{name}: an op must return (y, backward), got {type(result).__name__}")
            y, backward = result
            count = len(args[0] if args else kwargs[names[0]]) if variadic else len(names)
            return y, Backward(name, y[0] if type(y) is tuple else y, count, backward)

        filled = tuple(Sample({key: one.arrays.get(key) for key in names}, one.options) for one in samples)
        OPS[name] = Op(name, called, names, tuple(saves.split()), tuple(constants.split()), filled, variadic, apart)
        return cast(F, called)

    return register


def along(option: str) -> Callable[[tuple[int, ...], dict[str, Any]], bool]:
    """Return the rule for `apart` of an op along the axes that an option names: it is True if they exclude axis 0."""

    def rule(shape: tuple[int, ...], options: dict[str, Any]) -> bool:
        dims = options[option]
        return dims is not None and all(dim % len(shape) for dim in (dims if isinstance(dims, Sequence) else (dims,)))

    return rule


def op_of_ranks(
    function: Callable[Concatenate[int, P], Result],
    arrays: str,
    saves: str,
    samples: Callable[[int], Sequence[Sample]],
    apart: bool = False,
) -> tuple[Callable[P, Result], Callable[P, Result], Callable[P, Result]]:
    """Return three ops for one, two and three spatial axes: `conv1d`, `conv2d` and `conv3d` of `_conv_nd`.

    The function and `samples` take the number of spatial axes, the rank, as their first argument. `apart` says whether
    images of a batch (n, c, *sizes) are computed apart.
    """

    def of_rank(rank: int) -> Callable[P, Result]:
        one: Any = functools.partial(function, rank)
        one.__signature__, one.__wrapped__ = inspect.signature(one), function
        one.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if name != "rank"}
        one.__name__ = one.__qualname__ = function.__name__.lstrip("_").replace("_nd", f"{rank}d")
        one.__module__, one.__doc__ = function.__module__, function.__doc__
        batch = (lambda shape, options: len(shape) == rank + 2) if apart else False
        return cast(Callable[P, Result], op(arrays, saves=saves, samples=samples(rank), apart=batch)(one))

    return of_rank(1), of_rank(2), of_rank(3)
