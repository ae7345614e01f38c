"""Normalisations of all kinds: a pass for mean and variance and one that normalises; backward has two passes as well.

The work is divided into units, each of which needs nothing of the others: the images' rows of a channel for batch norm,
a group of channels of an image or a vector of features for the others. Both passes of a unit follow each other, while
it is in the cache (`_normalise.py`). Maps of few pixels would make short rows: batch norm then joins those of several
channels, the others take all pixels of a group as one row.
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
from xcnn.kernels.cpu._share import binding, plain, share, supports, whole
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.kernels.cpu.elementwise import applying, clamp, sloping

__all__ = ["moments", "norm", "norm_gradient", "norm_inference", "running_statistics"]

_DOUBLE, _UNLIMITED = np.dtype(np.float64), (-math.inf, math.inf)

_AXES = (0, 2), (2, 3), (1,)

_LIMITED = ("relu", "relu6", "hardtanh")
"""Activations whose slope is 1 between two limits of y, and 0 elsewhere."""

_GROUP_BYTES = 8 * BYTES
"""The least bytes of a row of a group norm."""

_ADJACENT, _JOINED = 1 << 16, 1 << 12
"""About how many bytes of an image's maps batch norm reads before it goes on to the next image; of joined rows."""

_TOGETHER = 4096
"""About how many numbers of groups are read before they are normalised."""


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


@functools.lru_cache(maxsize=256)
def _layout(shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int) -> _Layout:
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    table = dict.fromkeys(TABLE, 0) | {"rows": 1, "tile": 1, "together": 1, "period": 1}
    repeats, lanes, options = 1, BYTES // itemsize, tuple[str, ...]()
    if axes == (0, 2):
        n, c, p = shape
        table |= {"unit": p, "rows": n, "step": c * p, "row": p, "period": c, "of_unit": 1, "count": n * p, "units": c}
        if p * itemsize < BYTES * min(n, 4):  # short rows would leave many lanes unused
            options, together = ("joined",), min(-(-_JOINED // (p * itemsize)), c)
            slots, width = -(-c // -(-BYTES // (p * itemsize))), (together * p // lanes + 2) * lanes
            table |= {"tile": max(8, math.isqrt(n) * (itemsize // 8)), "width": width}  # see `_sums.py`
        else:
            together = min(max(_ADJACENT // (p * itemsize), 1), -(-c // 8))
            slots = -(-c // together)  # eight at least, so that threads can share the work
        table |= {"together": together, "slots": slots, "parameters": c}
    else:
        n, g, s, p = shape if len(shape) == 4 else (shape[0], 1, shape[1], 1)
        c, units = g * s, n * g
        table |= {"unit": s * p, "period": g, "of_unit": s, "count": s * p, "units": units}
        slots = math.isqrt(units)  # sums of sums (see `_sums.py`)
        if p * itemsize >= _GROUP_BYTES:
            table |= {"rows": s, "step": p, "row": p, "of_row": 1, "slots": slots, "slot": 2 * c, "parameters": c}
        else:
            repeats, options = p, ("wide", "short")[: 1 + (s * p * itemsize <= _GROUP_BYTES)]
            slots = min(slots, max(2, n // 8))  # more would take as much memory as x
            table |= {"row": s * p, "of_unit": s * p, "together": 1 + _TOGETHER // (s * p), "slots": slots}
            columns = (c * p // lanes + 2) * lanes  # room for whole vectors at the end of a row
            table |= {"slot": 2 * columns, "parameters": columns}
    numbers = np.array([table[name] for name in TABLE], np.int64)
    of_unit = table["rows"] if table["of_row"] else 1
    most = -(-table["units"] // table["slots"])
    room = 8 * table["width"] or 2 * lanes * max(of_unit, min(table["together"], most))
    return _Layout(
        numbers, kept, c * repeats, table["parameters"], repeats, table["slots"] if table["slot"] else 1,
        table["slots"], room, options,
    )  # fmt: skip


def _options(layout: _Layout, **flags: bool) -> tuple[str, ...]:
    """Return the options of compiled code."""
    return *layout.options, *(name for name, flag in flags.items() if flag)


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
    shape, dtype, limits, work = x.shape, x.dtype, clamp(activation), 3 * x.size // 2
    low, high = limits or _UNLIMITED
    options = _options(layout, given=given, residual=has_residual, limited=(low, high) != _UNLIMITED)
    call, table, room, parts = norm_forward(dtype.itemsize, *options), layout.table, layout.room, layout.parts
    apply = None if activation is None or limits else applying(activation, dtype.itemsize)

    def run(x: Any, weight: Any, bias: Any, mean: Any, var: Any, rstd: Any, residual: Any) -> Any:
        source, y = np.ascontiguousarray(x), np.empty(shape, dtype)
        addend = np.ascontiguousarray(residual) if has_residual else source
        scale, shift = _parameter(weight, layout, 1, dtype), _parameter(bias, layout, 0, dtype)

        def units(first: int, last: int) -> None:
            sums = scratch(0, "sums of norms", room, _DOUBLE)
            call(table, source, addend, y, scale, shift, mean, var, rstd, sums, eps, low, high, first, last)

        share(units, work, n=parts)
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


@whole(_bind)
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
    if view.axes not in _AXES or not supports(x):
        return NotImplemented
    shape, dtype, work, constant, has_residual = x.shape, x.dtype, 2 * x.size, given is not None, residual is not None
    layout = _layout(view.shape, view.axes, dtype.itemsize)
    kept = layout.kept
    weight_shape, bias_shape = (None if array is None else array.shape for array in (weight, bias))
    call = _forward(x, eps, layout, constant, has_residual, activation)
    low, high, limited = _ends(activation)
    slope = None if limited else sloping(activation, dtype.itemsize)

    @functools.cache
    def asked(needs: tuple[bool, ...]) -> tuple[Any, ...]:  # the table is not among what a backward pass keeps
        layout = _layout(view.shape, view.axes, dtype.itemsize)
        wants_weight, wants_bias = needs[1] and weight_shape is not None, needs[2] and bias_shape is not None
        writes, sums = needs[3] and has_residual and limited, wants_weight or wants_bias or (needs[0] and not constant)
        options = _options(
            layout, limited=limited, residual=writes, given=constant, gradient=needs[0], sums=writes or sums
        )
        compiled, gives = norm_backward(dtype.itemsize, *options), needs[3] and has_residual
        return compiled, layout, wants_weight, wants_bias, writes, gives

    def run(
        x: Any, weight: Any, bias: Any, eps: Any, view: Any, given: Any = None, residual: Any = None, *_: Any
    ) -> Any:
        if given is None:
            mean, var = np.empty(kept, dtype), np.empty(kept, dtype)
        else:
            mean, var = (np.array(one).reshape(kept) for one in given)
        rstd = np.empty(kept, dtype)
        result = call(x, weight, bias, mean, var, rstd, residual)
        y = None if activation is None else result  # backward keeps it

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            compiled, layout, wants_weight, wants_bias, writes, wants_residual = asked(tuple(needs))
            source, above = plain(x), plain(dy)
            if slope is not None:
                above, given = np.empty(shape, dtype), above
                slope(above, y, given, serial=False)
            dresidual = np.empty(shape, dtype) if writes else above if wants_residual else None
            dx = np.empty(shape, dtype) if needs[0] else None
            shared = np.zeros((layout.slots, 2, layout.columns), dtype)
            means = np.empty((2, *kept), dtype)
            scale, seen = _parameter(weight, layout, 1, dtype), y if limited else source
            outs = [source if array is None else array for array in (dresidual, dx)]

            def slots(first: int, last: int) -> None:
                sums = scratch(0, "sums of norms", layout.room, _DOUBLE)
                compiled(
                    layout.table, source, above, seen, *outs, scale, mean, rstd, *means, shared, sums, low, high,
                    first, last,
                )  # fmt: skip

            share(slots, work, n=layout.parts)
            total = (shared[0] if len(shared) == 1 else shared.sum(axis=0, dtype=np.float64))[:, : layout.parameters]
            if layout.repeats > 1:
                total = total.reshape(2, -1, layout.repeats).sum(axis=2)
            dweight = total[1].astype(dtype, copy=False).reshape(weight_shape) if wants_weight else None
            dbias = total[0].astype(dtype, copy=False).reshape(bias_shape) if wants_bias else None
            return dx, dweight, dbias, dresidual

        return result, backward, mean, var

    return run


@kernel(np)
def moments(x: np.ndarray, view: Any) -> Any:
    """Return mean and variance of each channel of a batch, after the first pass of `norm`."""
    if view.axes != (0, 2) or not supports(x):
        return NotImplemented
    layout, dtype, source = _layout(view.shape, view.axes, x.itemsize), x.dtype, plain(x)
    call, table = norm_forward(dtype.itemsize, *_options(layout, moments=True)), layout.table
    found = [np.empty(layout.kept, dtype) for _ in range(3)]
    parameters = [_parameter(None, layout, default, dtype) for default in (1, 0)]

    def units(first: int, last: int) -> None:
        sums = scratch(0, "sums of norms", layout.room, _DOUBLE)
        call(table, source, source, source, *parameters, *found, sums, 0.0, *_UNLIMITED, first, last)

    share(units, x.size, n=layout.parts)
    return found[0], found[1]


@kernel(np)
def norm_gradient(
    x: np.ndarray,
    dy: np.ndarray,
    y: np.ndarray | None,
    weight: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    shift: np.ndarray,
    slope: np.ndarray,
    view: Any,
    activation: tuple[Any, ...] | None,
) -> Any:
    """Return the gradient of channels of a batch by the second pass of the backward pass of `norm`."""
    if view.axes != (0, 2) or not supports(x):
        return NotImplemented
    layout, dtype, source, above = _layout(view.shape, view.axes, x.itemsize), x.dtype, plain(x), plain(dy)
    low, high, limited = _ends(activation)
    y = None if y is None else plain(y)
    if activation is not None and not limited:
        above, given, sloped = np.empty(x.shape, dtype), above, sloping(activation, dtype.itemsize)
        assert sloped is not None, "there is an activation"
        sloped(above, y, given, serial=False)
    call = norm_backward(dtype.itemsize, *_options(layout, limited=limited, gradient=True))
    dx, seen, scale = np.empty(x.shape, dtype), y if limited else source, _parameter(weight, layout, 1, dtype)
    operands = [np.ascontiguousarray(one) for one in (mean, rstd, shift, slope)]

    def units(first: int, last: int) -> None:
        sums = scratch(0, "sums of norms", layout.room, _DOUBLE)
        call(layout.table, source, above, seen, source, dx, scale, *operands, sums, sums, low, high, first, last)

    share(units, 2 * x.size, n=layout.parts)
    return dx


def _ends(activation: tuple[Any, ...] | None) -> tuple[float, float, bool]:
    """Return the limits of y at and beyond which the slope is 0, and whether it is 1 between them."""
    limited = activation is not None and activation[0] in _LIMITED
    low, high = (clamp(activation) if limited else None) or (math.nan, math.nan)
    # An infinite y has a slope.
    return low, math.nan if activation is not None and activation[0] == "relu" else high, limited


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


@whole()
def running_statistics(
    running_mean: np.ndarray, running_var: np.ndarray, mean: np.ndarray, var: np.ndarray, momentum: float, unbias: float
) -> Any:
    """Move both statistics in one pass."""
    shape, dtype = mean.shape, mean.dtype
    if not all(supports(array) and array.dtype == dtype for array in (running_mean, running_var, mean, var)):
        return NotImplemented
    loop = traced(_moved, None, (EACH, EACH), (True,) * 4, (None,) * 3, mean.itemsize)
    if loop is None:
        return NotImplemented
    call, size, numbers = loop.call, mean.size, (1.0 - momentum, momentum, momentum * unbias)

    def run(*given: Any) -> Any:
        results = np.empty(shape, dtype), np.empty(shape, dtype)
        call(*results, *map(np.ascontiguousarray, given[:4]), size, *numbers)
        return results

    return run
