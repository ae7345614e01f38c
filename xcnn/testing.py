"""Checks of ops and modules, which xcnn's own ops and modules pass: `check_op` and `check_gradients`.

The expected values of each sample are computed once, in float64 on the host: the results by a reference or by the op
itself, the gradients by central differences with a random dy. (With a dy of ones, errors in batch norm and softmax
cancel.) A failed check raises an AssertionError whose message states the place, what was expected, and what was found.
"""

import contextlib
import copy
import functools
import gc
import importlib
import itertools
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from xcnn._array import Array, namespace_of
from xcnn._check import choice, integer
from xcnn._dispatch import portable
from xcnn.devices import Device, device
from xcnn.errors import DeviceError, UsageError, XcnnError
from xcnn.nn import Module
from xcnn.ops import OPS, Op

__all__ = ["BACKENDS", "DIFFERENCES", "Backend", "Case", "Expected", "check_gradients", "check_op", "kept"]

Arrays = dict[str, Any]
"""The arrays of a call by name, or None; those of an argument of many arrays are `name[0]`, `name[1]`, ..."""

DIFFERENCES = 1e-9
"""The allowed error of central differences in float64, relative to the largest gradient."""


@dataclass(frozen=True)
class Backend:
    """One kind of array that ops are checked on.

    Attributes
    ----------
    name : its name in errors.
    spec : the device string.
    wrap : function that is applied to each array on the device.
    run : function that calls `function(*arrays)` for a dtype, compiled or not.
    setting : function of a dtype that returns the context in which its arrays are created and used.
    """

    name: str
    spec: str
    wrap: Callable[[Array], Array] = lambda array: array
    run: Callable[..., Any] = lambda function, dtype, *arrays: function(*arrays)
    setting: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    @property
    def device(self) -> Device:
        """The opened device."""
        return device(self.spec)

    def array(self, host: np.ndarray) -> Array:
        """Copy a host array to the device."""
        return self.wrap(self.device.asarray(host))

    def to_numpy(self, array: Array) -> np.ndarray:
        """Copy an array of the device to the host."""
        return self.device.to_numpy(array)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _strided(array: np.ndarray) -> np.ndarray:
    """Return every second element, back to front, of a buffer that holds NaN in between."""
    if array.ndim == 0:
        return array
    buffer = np.full([2 * n for n in array.shape], np.nan if array.dtype.kind == "f" else -1, dtype=array.dtype)
    view = buffer[(slice(None, None, -2),) * array.ndim]
    view[...] = array
    return view


def _run_jax(function: Callable[..., Any], dtype: str, *arrays: Any) -> Any:
    """Run float32 eagerly and float64 under `jax.jit`; checking both dtypes in both ways would take minutes."""
    return (importlib.import_module("jax").jit(function) if dtype == "float64" else function)(*arrays)


@contextlib.contextmanager
def _jax_x64(dtype: str) -> Iterator[None]:
    """Enable 64-bit numbers in JAX for float64 only; float32 is checked with JAX's default setting."""
    config = importlib.import_module("jax").config
    before = config.jax_enable_x64
    config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        config.update("jax_enable_x64", before)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in [
        Backend("numpy", "cpu"),
        Backend("numpy-portable", "cpu", setting=lambda dtype: portable(np)),
        Backend("numpy-readonly", "cpu", _read_only),
        Backend("numpy-strided", "cpu", _strided),
        Backend("strict", "strict"),
        Backend("strict-device1", "strict:device1"),
        Backend("torch", "torch"),
        Backend("jax", "jax", run=_run_jax, setting=_jax_x64),
        Backend("cupy", "cuda"),
    ]
}
"""The kinds of array on which `check_op` runs, if their libraries are installed.

On the simulated device of `strict-device1`, an op that reads an array on the host, or combines it with one of the
default device, raises an error, as on a GPU.
"""


@dataclass(frozen=True)
class Expected:
    """A sample's inputs and results in float64. The inputs are float32 numbers, and so the same in every dtype."""

    arrays: Arrays
    results: tuple[Any, ...]
    dy: np.ndarray
    gradients: dict[str, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class Case:
    """One sample of one op and its checks.

    Attributes
    ----------
    op : the row of `OPS`.
    number : index of the sample.
    reference : a function of the op's arguments that computes y from float64 arrays in another way; None for the op
        itself.
    """

    op: Op
    number: int
    reference: Callable[..., Any] | None = None

    def __str__(self) -> str:
        return f"{self.op.name}-{self.number}"

    @property
    def _where(self) -> str:
        return f"{self.op.name}: sample {self.number}"

    def call(self, arrays: Arrays) -> tuple[tuple[Any, ...], Any]:
        """Return the op's results as a tuple, and its backward."""
        y, backward = self.op.function(**_arguments(arrays), **self.op.samples[self.number].options)
        return (y if type(y) is tuple else (y,)), backward

    def refer(self, arrays: Arrays) -> tuple[Any, ...]:
        """Return the reference's results as a tuple."""
        if self.reference is None:
            return self.call(arrays)[0]
        y = self.reference(**_arguments(arrays), **self.op.samples[self.number].options)
        return y if type(y) is tuple else (y,)

    @functools.cached_property
    def expected(self) -> Expected:
        """The sample's arrays, in the order of the gradients, and the expected values."""
        rng = np.random.default_rng(sum(map(ord, str(self))))
        drawn = self.op.samples[self.number].draw(rng)
        arrays: Arrays = {}
        for name in self.op.arrays:
            one = drawn[name]
            arrays |= {f"{name}[{i}]": a for i, a in enumerate(one)} if isinstance(one, list) else {name: one}
        arrays = {name: _rounded(array) for name, array in arrays.items()}
        results = self.refer(copy.deepcopy(arrays))
        dy = _rounded(np.asarray(rng.standard_normal(np.shape(results[0]))))

        def loss() -> float:
            return float(np.sum(self.call(copy.deepcopy(arrays))[0][0] * dy))

        gradients = {}
        for name, array in arrays.items():
            constant = array is None or array.dtype.kind != "f" or name.partition("[")[0] in self.op.constants
            gradients[name] = None if constant else _differences(loss, array)
        return Expected(arrays, results, dy, gradients)

    def check_results(self, backend: Backend, dtype: str) -> None:
        """Check values, shapes, dtypes, libraries and devices of results and gradients, and that inputs stay unchanged.

        It is called inside `backend.setting(dtype)`.
        """
        where, want = f"{self._where} on {backend.name}, {dtype}", self.expected
        terms = max(np.size(array) for array in (*want.results, *want.arrays.values()))
        bound = 4 * float(np.finfo(dtype).eps) * math.sqrt(terms)
        inputs: Arrays = {
            name: host if host is None else backend.array(host.astype(dtype) if host.dtype.kind == "f" else host)
            for name, host in {**want.arrays, "dy": want.dy}.items()
        }
        originals = {name: backend.to_numpy(array) for name, array in inputs.items() if array is not None}

        def run(*inputs: Any) -> Any:
            results, backward = self.call(dict(zip(want.arrays, inputs, strict=False)))
            return results, backward(inputs[-1]), backward(inputs[-1])

        with _explained(where), backend.device.active():
            results, gradients, again = backend.run(run, dtype, *inputs.values())
        for name, original in originals.items():
            now = backend.to_numpy(inputs[name])
            if now.tobytes() != original.tobytes():
                _compare(f"{where}: input {name}, which the op must not modify,", now, original, 0.0)
        _require(len(results) == len(want.results), where, "results", len(want.results), len(results))
        for i, (actual, wanted) in enumerate(zip(results, want.results, strict=True)):
            called = f"{where}: y" if len(results) == 1 else f"{where}: y[{i}]"
            _check_array(called, backend, actual, wanted, inputs["dy"], bound)
        for (name, wanted), actual, second in zip(want.gradients.items(), gradients, again, strict=True):
            called = f"{where}: d{name}"
            _check_array(called, backend, actual, wanted, inputs["dy"], bound + DIFFERENCES)
            if actual is not None:
                first = backend.to_numpy(actual)
                _compare(f"{called} of a second call of backward", backend.to_numpy(second), first, 0.0)

    def check_needs(self) -> None:
        """Check that `needs` selects gradients and changes none, in every combination."""
        want = self.expected
        _, backward = self.call(want.arrays)
        full = backward(want.dy)
        for needs in itertools.product((False, True), repeat=len(full)):
            with _explained(f"{self._where} with needs={needs}"):
                gradients = backward(want.dy, needs)
            for name, wanted, actual, need in zip(want.arrays, full, gradients, needs, strict=True):
                where = f"{self._where} with needs={needs} on numpy: d{name}"
                if _are_arrays(where, actual, wanted if need else None):
                    _compare(where, actual, wanted, 0.0)

    def check_saves(self) -> None:
        """Check that backward keeps in memory the arrays that `saves` names, no copies of them, and no others."""
        want, where = self.expected, f"{self._where} on numpy"
        results, backward = self.call(want.arrays)
        saved = backward.saved()
        absent = {name for name, array in want.arrays.items() if array is None}
        declared = {name.rstrip("?") for name in self.op.saves}
        for name in saved.keys() - declared:
            if not any(np.shares_memory(saved[name], saved[other]) for other in saved.keys() & declared):
                saves = " ".join(self.op.saves)
                raise AssertionError(f"{where}: backward keeps {name}, which is not in saves={saves!r}")
        for name in {name for name in self.op.saves if not name.endswith("?")} - absent - saved.keys():
            raise AssertionError(f"{where}: backward does not keep {name}, which saves names; write {name}? if it may")
        known = {**want.arrays, "y": results[0]}
        for name in saved.keys() & known.keys():
            # Labels are few, and a copy is safe from what a caller does to them.
            if known[name].dtype.kind == "f" and not np.shares_memory(saved[name], known[name]):
                raise AssertionError(f"{where}: backward keeps a copy of {name}; keep {name} itself")
        for array in kept(backward):
            if not any(np.shares_memory(array, one) for one in saved.values()):
                shape = tuple(array.shape)
                raise AssertionError(f"{where}: backward keeps an array of shape {shape} that none of its variables is")

    def check_reference(self) -> None:
        """Check that the gradients match the slope of the reference along a random direction of all inputs together."""
        want, rng = self.expected, np.random.default_rng(0)
        directions = {name: rng.standard_normal(d.shape) for name, d in want.gradients.items() if d is not None}

        def moved(step: float) -> float:
            stepped = {name: want.arrays[name] + step * direction for name, direction in directions.items()}
            return float(np.sum(self.refer({**want.arrays, **stepped})[0] * want.dy))

        _, backward = self.call(want.arrays)
        gradients = dict(zip(want.arrays, backward(want.dy), strict=True))
        terms = [gradients[name] * direction for name, direction in directions.items()]
        actual, scale = (sum(float(np.sum(f(term))) for term in terms) for f in (np.asarray, np.abs))
        where = f"{self._where} on numpy: slope of the reference along a random direction"
        _compare(where, np.asarray(actual), np.asarray(_slope(moved)), DIFFERENCES * max(1.0, scale))


def check_op(
    op: Callable[..., Any] | str,
    *,
    reference: Callable[..., Any] | None = None,
    devices: Iterable[str] | None = None,
    dtypes: Sequence[str] = ("float32", "float64"),
) -> None:
    """Check an op on every one of its samples: the contract, and every gradient against central differences.

    For each sample, it checks every element of every gradient, with a random dy; the values of y; shape, dtype, library
    and device of all results; that inputs are not modified and may be read-only or strided; every combination of
    `needs`; and that backward keeps in memory what `saves` names and nothing else.

    Parameters
    ----------
    op : a function decorated with `xcnn.ops.op`, or its name.
    reference : a function of the same arguments that computes y from float64 NumPy arrays in another way, such as with
        plain loops. By default, y is compared with the op's own result in float64 NumPy arrays.
    devices : device strings, such as `["cpu", "torch"]`, or names in `BACKENDS`; by default all backends whose library
        is installed.
    dtypes : dtypes of the arrays, `"float16"`, `"float32"` or `"float64"`.

    Raises
    ------
    AssertionError
        If a check fails. The message names the op, the sample, the library, the array and the element, and states the
        expected and the actual value.
    UsageError, DeviceError
        If the op is unknown or has no samples, or a device cannot be used.

    Examples
    --------
    >>> from xcnn import ops
    >>> check_op(ops.tanh, devices=["cpu"])
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    row = OPS.get(name)
    if row is None or not (isinstance(op, str) or op is row.function):
        raise UsageError(f"check_op: {name} is not an op; decorate it with xcnn.ops.op")
    if not row.samples:
        raise UsageError(f"check_op: {name} has no samples; give ops.op(...) some, samples=[ops.sample(...)]")
    dtypes = [choice("check_op", "dtypes", dtype, ("float16", "float32", "float64")) for dtype in _listed(dtypes)]
    backends = list(_installed()) if devices is None else [_backend(spec) for spec in _listed(devices)]
    for number in range(len(row.samples)):
        case = Case(row, number, reference)
        with _explained(f"{name}: sample {number} on numpy"):
            _ = case.expected
        for backend, dtype in itertools.product(backends, dtypes):
            with backend.setting(dtype):
                case.check_results(backend, dtype)
        case.check_needs()
        case.check_saves()
        if reference is not None:
            case.check_reference()


def check_gradients(f: Callable[..., Any], arrays: Mapping[str, Any] | Sequence[Any], *, seed: int = 0) -> None:
    """Check every element of every gradient of a function or a module against central differences in float64.

    Parameters
    ----------
    f : a function of the arrays that returns `(y, backward)`, as ops do; or a module, whose parameters' gradients are
        checked too. A module is copied, and its random generators are reset before each run, so that dropout drops the
        same elements.
    arrays : the arguments as host arrays, by name or in order. Floating-point arrays are converted to float64; integer
        arrays have no gradient.
    seed : seed of the random dy.

    Raises
    ------
    AssertionError
        If an element differs. The message names the array and the element, and states the expected and the actual
        value.

    Notes
    -----
    `f` must be smooth near the arrays: within 2e-4 of a kink, such as that of ReLU at 0, central differences are wrong,
    and an error means nothing. Choose other arrays, or test with a smooth activation such as tanh.

    Examples
    --------
    >>> import numpy as np
    >>> from xcnn import nn, ops
    >>> check_gradients(ops.tanh, [np.linspace(-1, 1, 5)])
    >>> check_gradients(nn.Linear(3, 2), [np.ones((4, 3))])
    """
    where = getattr(f, "__name__", type(f).__name__)
    rng = np.random.default_rng(integer("check_gradients", "seed", seed, minimum=0))
    if not isinstance(arrays, Mapping | Sequence):
        raise UsageError(f"check_gradients: arrays must be a list or dict of arrays, got {type(arrays).__name__}")
    op = OPS.get(where)
    names = op.arrays if op is not None and op.function is f else ()
    if not isinstance(arrays, Mapping) and len(arrays) <= len(names):
        arrays = dict(zip(names, arrays, strict=False))
    inputs: dict[Any, np.ndarray] = {}
    for name, value in arrays.items() if isinstance(arrays, Mapping) else enumerate(arrays):
        array = np.array(value)
        inputs[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
    parameters: dict[str, np.ndarray] = {}
    if isinstance(f, Module):
        model = copy.deepcopy(f).to("cpu", "float64")
        parameters = {name: parameter.data for name, parameter in model.named_parameters()}
        streams = [(rng.bit_generator, rng.bit_generator.state) for _, rng in model.named_generators()]

        def run() -> tuple[Any, Any]:
            for stream, state in streams:
                stream.state = state
            return model.forward(next(iter(inputs.values())) if len(inputs) == 1 else tuple(inputs.values()))
    else:

        def run() -> tuple[Any, Any]:
            y, backward = f(**inputs) if isinstance(arrays, Mapping) else f(*inputs.values())
            return (y[0] if type(y) is tuple else y), backward

    with _explained(where):
        y, backward = run()
        dy = np.asarray(rng.standard_normal(np.shape(y)))
        gradients = backward(dy)
    several = gradients if isinstance(gradients, tuple | list) else (gradients,)
    found: dict[Any, Any] = dict(zip(names or inputs, several, strict=False))
    if isinstance(f, Module):
        found |= {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, array in {**inputs, **parameters}.items():
        if array.dtype.kind != "f":
            continue
        called = f"{where}: gradient {name}" if isinstance(name, int) else f"{where}: d{name}"
        wanted = _differences(lambda: float(np.sum(run()[0] * dy)), array)
        actual = found.get(name)
        if actual is None and name in parameters and not wanted.any():  # the pass does not use it
            continue
        _are_arrays(called, actual, wanted)
        actual = np.asarray(actual)
        _require(actual.shape == wanted.shape, called, "shape", wanted.shape, actual.shape)
        _compare(called, actual, wanted, 10 * DIFFERENCES, "; a kink of f near the arrays would explain it too")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def _backend(spec: Any) -> Backend:
    return BACKENDS[spec] if isinstance(spec, str) and spec in BACKENDS else Backend(device(spec).name, spec)


def _installed() -> Iterator[Backend]:
    """Yield the backends whose library can be used here."""
    for backend in BACKENDS.values():
        try:
            device(backend.spec)
        except DeviceError:
            continue
        yield backend


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn an error of the code under check into an AssertionError that says where it was raised."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, XcnnError) else f"{type(error).__name__}: "
        raise AssertionError(f"{where}: raised {kind}{next(iter(str(error).splitlines()), '')}") from error


def _are_arrays(where: str, actual: Any, wanted: Any, hint: str = "") -> bool:
    """Return whether both are arrays rather than None; raise an AssertionError if only one is."""
    if wanted is not None and actual is None:
        raise AssertionError(f"{where} must be an array, got None{hint}")
    if wanted is None and actual is not None:
        raise AssertionError(f"{where} must be None, got an array")
    return wanted is not None


def _require(condition: bool, where: str, what: str, wanted: Any, came: Any) -> None:
    if not condition:
        raise AssertionError(f"{where} must have {what} {wanted}, got {came}")


def _compare(where: str, actual: np.ndarray, wanted: Any, bound: float, hint: str = "") -> None:
    """Raise an error that names the worst element, unless all are within `bound` times max(1, the largest)."""
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    allowed = bound * max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    with np.errstate(invalid="ignore"):
        errors = np.abs(actual.astype(np.float64) - wanted)
    errors = np.where((actual == wanted) | (np.isnan(actual) & np.isnan(wanted)), 0.0, errors)
    errors = np.where(np.isnan(errors), np.inf, errors)
    if errors.size and np.max(errors) > allowed:
        index = tuple(int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))
        element = f" at {list(index)}" if index else ""
        close = f" within {allowed:.2g}" if allowed else ""
        raise AssertionError(f"{where}{element} must be {wanted[index]:.9g}{close}, got {actual[index]:.9g}{hint}")


def _check_array(where: str, backend: Backend, actual: Any, wanted: Any, like: Array, bound: float) -> None:
    """Check that a result is an array of the library, device and dtype of `like` with the wanted values, or None."""
    if not _are_arrays(where, actual, wanted, "; name an array that has no gradient in `constants`"):
        return
    try:
        library = namespace_of(actual).__name__
    except TypeError:
        library = type(actual).__name__
    _require(library == namespace_of(like).__name__, where, "library", namespace_of(like).__name__, library)
    homes = [array_api_compat.device(array) for array in (like, actual)]
    _require(homes[0] == homes[1], where, "device", *homes)
    _require(tuple(actual.shape) == np.shape(wanted), where, "shape", np.shape(wanted), tuple(actual.shape))
    dtypes = [str(array.dtype).rpartition(".")[2] for array in (like, actual)]  # PyTorch's begin with "torch."
    _require(actual.dtype == like.dtype, where, "dtype", *dtypes)
    _compare(where, backend.to_numpy(actual), wanted, bound)


def _arguments(arrays: Arrays) -> Arrays:
    """Return the arguments of an op: arrays by name, with a list for those called `name[0]`, `name[1]`, ..."""
    arguments: Arrays = {}
    for name, array in arrays.items():
        argument, bracket, _ = name.partition("[")
        if bracket:
            arguments.setdefault(argument, []).append(array)
        else:
            arguments[name] = array
    return arguments


def _rounded(array: Any) -> Any:
    return array.astype(np.float32).astype(np.float64) if array is not None and array.dtype.kind == "f" else array


def _slope(function: Callable[[float], float]) -> float:
    """Return the derivative at 0 by central differences of fourth order."""
    h = 1e-4
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


def _differences(loss: Callable[[], float], array: np.ndarray) -> np.ndarray:
    """Return the derivative of a loss by every element of an array, which is changed in place and restored."""
    gradient = np.zeros(array.shape)
    for index in np.ndindex(*array.shape):
        old = array[index]

        def moved(step: float, index: tuple[int, ...] = index, old: Any = old) -> float:
            array[index] = old + step
            value = loss()
            array[index] = old
            return value

        gradient[index] = _slope(moved)
    return gradient


def kept(thing: Any) -> Iterator[np.ndarray]:
    """Yield every array of more than one number that an object keeps alive, found through the garbage collector."""
    seen: set[int] = set()
    todo = [thing]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType | str | int | float):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            if one.size > 1:  # a single number does not count
                yield one
        elif isinstance(one, types.FunctionType):  # not its globals
            todo += [cell.cell_contents for cell in one.__closure__ or ()]
            todo += [*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
        else:
            todo += gc.get_referents(one)
