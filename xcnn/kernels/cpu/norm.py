"""Normalisations of all kinds: a pass for mean and variance and one that normalises; backward has two passes as well.

The work is divided into units, each of which needs nothing of the others: the images' rows of a channel for batch norm,
a group of channels of an image or a vector of features for the others. Both passes of a unit follow each other, while
it is in the cache (`_normalise.py`). Maps of few pixels would make short rows: batch norm then works on a copy of which
a channel is one row, the others take all pixels of a group as one row.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._loops import EACH, traced
from xcnn.kernels.cpu._moves import copying
from xcnn.kernels.cpu._normalise import TABLE, norm_backward, norm_forward
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import binding, plain, share, supports
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.kernels.cpu.elementwise import applying, clamp, gradient

__all__ = ["norm", "norm_inference", "running_statistics"]

_DOUBLE, _UNLIMITED = np.dtype(np.float64), (-math.inf, math.inf)

_AXES = (0, 2), (2, 3), (1,)

_LIMITED = ("relu", "relu6", "hardtanh")
"""Activations whose slope is 1 between two limits of y, and 0 elsewhere."""

_BATCH_BYTES, _GROUP_BYTES = 32, 8 * BYTES
"""The least bytes of a row of batch norm, and of a group norm."""

_ADJACENT = 1 << 16
"""About how many bytes of an image's maps batch norm reads before it goes on to the next image."""

_TOGETHER = 4096
"""About how many numbers of groups are read before they are normalised."""

_SLOTS = 8
"""The least slots of batch norm, if there are as many channels, so that threads can share the work."""


class _Layout(NamedTuple):
    """The units of a view.

    Attributes
    ----------
    table : described in `_normalise.py`.
    kept : shape of the means.
    parameters, columns, repeats : how many there are for rows, as many or more with sums, and how often each is
        repeated.
    slots : how many sums there are for dbias and dweight, if rows of several slots share parameters.
    parts : into how many parts the work may be divided.
    room : numbers for the sums of units that are done together.
    options : of compiled code.
    turned : the shape of maps of which the first two axes are exchanged, or none.
    """

    table: np.ndarray
    kept: tuple[int, ...]
    parameters: int
    columns: int
    repeats: int
    slots: int
    parts: int
    room: int
    options: tuple[str, ...]
    turned: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _layout(shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int) -> _Layout:
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    table = dict.fromkeys(TABLE, 0) | {"rows": 1, "together": 1, "period": 1}
    turned: tuple[int, ...] = ()
    repeats, wide, lanes = 1, False, BYTES // itemsize
    if axes == (0, 2):
        n, c, p = shape
        table |= {"period": c, "of_unit": 1, "count": n * p, "units": c, "slots": c, "parameters": c}
        if p * itemsize >= _BATCH_BYTES or n == 1:
            together = min(max(_ADJACENT // (p * itemsize), 1), -(-c // _SLOTS))
            table |= {"unit": p, "rows": n, "step": c * p, "row": p, "together": together, "slots": -(-c // together)}
        else:
            table |= {"unit": n * p, "row": n * p}
            turned = shape
    else:
        n, g, s, p = shape if len(shape) == 4 else (shape[0], 1, shape[1], 1)
        c, units = g * s, n * g
        table |= {"unit": s * p, "period": g, "of_unit": s, "count": s * p, "units": units}
        slots = math.isqrt(units)  # sums of sums (see `_sums.py`)
        if p * itemsize >= _GROUP_BYTES:
            table |= {"rows": s, "step": p, "row": p, "of_row": 1, "slots": slots, "slot": 2 * c, "parameters": c}
        else:
            wide, repeats = True, p
            slots = min(slots, max(2, n // 8))  # more would take as much memory as x
            table |= {"row": s * p, "of_unit": s * p, "together": 1 + _TOGETHER // (s * p), "slots": slots}
            columns = (c * p // lanes + 2) * lanes  # room for whole vectors at the end of a row
            table |= {"slot": 2 * columns, "parameters": columns}
    numbers = np.array([table[name] for name in TABLE], np.int64)
    of_unit = table["rows"] if table["of_row"] else 1
    most = -(-table["units"] // table["slots"])
    options = ("wide", "short")[: 1 + (table["row"] * itemsize <= _GROUP_BYTES)] if wide else ()
    room = 2 * lanes * max(of_unit, min(table["together"], most))
    return _Layout(
        numbers, kept, c * repeats, table["parameters"], repeats, table["slots"] if table["slot"] else 1,
        table["slots"], room, options, turned,
    )  # fmt: skip


def _options(layout: _Layout, **flags: bool) -> tuple[str, ...]:
    """Return the options of compiled code."""
    return *layout.options, *(name for name, flag in flags.items() if flag)


def _turned(a: np.ndarray | None, layout: _Layout) -> Any:
    """Return an array as compiled code takes it: in C order, and with the channels first if they are turned."""
    if a is None or not layout.turned:
        return plain(a)
    return plain(a.reshape(layout.turned).transpose(1, 0, 2))


def _back(a: Any, layout: _Layout, shape: tuple[int, ...]) -> Any:
    """Undo `_turned`."""
    if a is None or not layout.turned:
        return a
    n, c, p = layout.turned
    return plain(a.reshape(c, n, p).transpose(1, 0, 2)).reshape(shape)


@functools.lru_cache(maxsize=256)
def _same(count: int, value: int, dtype: np.dtype) -> np.ndarray:
    return np.full(count, value, dtype)


def _parameter(array: np.ndarray | None, layout: _Layout, default: int, dtype: np.dtype) -> np.ndarray:
    """Return the weight or bias as compiled code takes it."""
    if array is None:
        return _same(layout.parameters, default, dtype)
    return plain(array) if layout.repeats == 1 else _repeated(array, layout)


def _repeated(array: np.ndarray, layout: _Layout) -> np.ndarray:
    """Return each number as often as a row has it."""
    array, repeats, out = np.ascontiguousarray(array), layout.repeats, np.empty(layout.parameters, array.dtype)
    copy: Any = copying(array.itemsize, (array.size, repeats), (1, 0), (repeats, 1))
    copy(array, out)
    return out


def _forward(
    x: np.ndarray, eps: float, layout: _Layout, given: bool, has_residual: bool, activation: tuple[Any, ...] | None
) -> Callable[..., np.ndarray]:
    """Return a function `(x, weight, bias, mean, var, rstd, residual)` for arrays of these shapes.

    It returns y, and sets rstd, and mean and variance unless they are given.
    """
    shape, dtype, limits, work = x.shape, x.dtype, clamp(activation), 3 * x.size
    low, high = limits or _UNLIMITED
    options = _options(layout, given=given, residual=has_residual, limited=(low, high) != _UNLIMITED)
    call, table, room, parts = norm_forward(dtype.itemsize, *options), layout.table, layout.room, layout.parts
    ones, zeros = (_parameter(None, layout, k, dtype) for k in (1, 0))
    turn: Any = functools.partial(_turned, layout=layout) if layout.turned else np.ascontiguousarray
    wide: Any = np.ascontiguousarray if layout.repeats == 1 else functools.partial(_repeated, layout=layout)
    apply = None if activation is None or limits else applying(activation, dtype.itemsize)

    def run(x: Any, weight: Any, bias: Any, mean: Any, var: Any, rstd: Any, residual: Any) -> Any:
        source = turn(x)
        addend, y = turn(residual) if has_residual else source, np.empty(source.shape, dtype)
        scale, shift = ones if weight is None else wide(weight), zeros if bias is None else wide(bias)

        def units(first: int, last: int) -> None:
            sums = scratch(0, "sums of norms", room, _DOUBLE)
            call(table, source, addend, y, scale, shift, mean, var, rstd, sums, eps, low, high, first, last)

        share(units, work, n=parts)
        if layout.turned:
            y = _back(y, layout, shape)
        if apply is not None:
            apply(y, y, serial=False)
        return y

    return run


def _bind(
    x: np.ndarray, weight: Any, bias: Any, eps: float, view: Any, given: Any = None, residual: Any = None,
    activation: Any = None,
) -> Any:  # fmt: skip
    """Bind `norm`."""
    if view.axes not in _AXES or not supports(x) or given is not None:
        return NotImplemented
    layout, dtype = _layout(view.shape, view.axes, x.itemsize), x.dtype
    call, size = _forward(x, eps, layout, False, residual is not None, activation), math.prod(layout.kept)

    def run(x: Any, weight: Any, bias: Any, eps: Any, view: Any, given: Any, residual: Any, _: Any) -> Any:
        return call(x, weight, bias, *np.empty((3, size), dtype), residual)

    return run


@kernel(np, _bind)
def norm(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    view: Any,
    given: tuple[np.ndarray, np.ndarray] | None = None,
    residual: np.ndarray | None = None,
    activation: tuple[Any, ...] | None = None,
) -> Any:
    """Normalise, and return the gradients."""
    axes, shape, dtype, constant = view.axes, x.shape, x.dtype, given is not None
    if axes not in _AXES or not supports(x):
        return NotImplemented
    layout = _layout(view.shape, axes, dtype.itemsize)
    bias_shape, has_residual = None if bias is None else bias.shape, residual is not None
    if given is None:
        mean, var = np.empty(layout.kept, dtype), np.empty(layout.kept, dtype)
    else:
        mean, var = (np.array(one).reshape(layout.kept) for one in given)
    rstd, run = np.empty(mean.shape, dtype), _forward(x, eps, layout, constant, has_residual, activation)
    result = run(x, weight, bias, mean, var, rstd, residual)
    y = None if activation is None else result  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dweight = dbias = None
        layout = _layout(view.shape, axes, dtype.itemsize)
        above, limited, low, high = plain(dy), None, math.nan, math.nan
        if y is not None and activation is not None:
            if activation[0] in _LIMITED:
                limited, (low, high) = y, clamp(activation) or (low, high)
                high = math.nan if activation[0] == "relu" else high  # an infinite y has a slope
            else:
                dy = np.empty(shape, dtype)
                gradient(activation, y, above, dy, serial=False)
                above = dy
        wants_weight, wants_bias = needs[1] and weight is not None, needs[2] and bias_shape is not None
        writes = needs[3] and has_residual and limited is not None
        source, above, limited = _turned(x, layout), _turned(above, layout), _turned(limited, layout)
        dresidual = np.empty(source.shape, dtype) if writes else None
        dx = np.empty(source.shape, dtype) if needs[0] else None
        shared = np.zeros((layout.slots, 2, layout.columns), dtype)
        sums = writes or wants_weight or wants_bias or (needs[0] and not constant)
        options = _options(
            layout, limited=limited is not None, residual=writes, given=constant, gradient=needs[0], sums=sums
        )
        call = norm_backward(dtype.itemsize, *options)
        scale = _parameter(weight, layout, 1, dtype)
        wanted = source, above, limited, dresidual, dx, scale, mean, rstd, shared
        arrays = [source if array is None else array for array in wanted]

        def slots(first: int, last: int) -> None:
            room = scratch(0, "sums of norms", layout.room, _DOUBLE)
            call(layout.table, *arrays, room, low, high, first, last)

        share(slots, 5 * x.size, n=layout.parts)
        dresidual = _back(dresidual, layout, shape) if writes else dy if needs[3] and has_residual else None
        total = (shared[0] if len(shared) == 1 else shared.sum(axis=0, dtype=np.float64))[:, : layout.parameters]
        if layout.repeats > 1:
            total = total.reshape(2, -1, layout.repeats).sum(axis=2)
        if weight is not None and wants_weight:
            dweight = total[1].astype(dtype, copy=False).reshape(weight.shape)
        if wants_bias:
            dbias = total[0].astype(dtype, copy=False).reshape(bias_shape)
        return _back(dx, layout, shape), dweight, dbias, dresidual

    return result, backward, mean, var


@binding
def norm_inference(x: np.ndarray, norm: Any, residual: Any = None, activation: Any = None) -> Any:
    """Normalise by running statistics."""
    if not supports(x):
        return NotImplemented
    layout = _layout((*x.shape[:2], math.prod(x.shape[2:])), (0, 2), x.dtype.itemsize)
    call, dtype = _forward(x, norm[4], layout, True, residual is not None, activation), x.dtype

    def run(x: np.ndarray, norm: Any, residual: Any = None, *_: Any) -> np.ndarray:
        mean, var = np.ascontiguousarray(norm[0]), np.ascontiguousarray(norm[1])
        return call(x, norm[2], norm[3], mean, var, np.empty(mean.shape, dtype), residual)

    return run


def _moved(
    xp: Any, key: Any, mean: Any, var: Any, new_mean: Any, new_var: Any, keep: Any, momentum: Any, of_var: Any
) -> Any:
    return [keep * mean + momentum * new_mean, keep * var + of_var * new_var]


@kernel(np)
def running_statistics(
    running_mean: np.ndarray, running_var: np.ndarray, mean: np.ndarray, var: np.ndarray, momentum: float, unbias: float
) -> Any:
    """Move both statistics in one pass."""
    arrays = running_mean, running_var, mean, var
    if not all(supports(array) and array.dtype == mean.dtype for array in arrays):
        return NotImplemented
    loop = traced(_moved, None, (EACH, EACH), (True,) * 4, (None,) * 3, mean.itemsize)
    if loop is None:
        return NotImplemented
    results = np.empty(mean.shape, mean.dtype), np.empty(mean.shape, mean.dtype)
    loop.call(*results, *map(np.ascontiguousarray, arrays), mean.size, 1.0 - momentum, momentum, momentum * unbias)
    return results
