"""Ops that move numbers and compute none: other shapes, axes in another order, and parts of an axis."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace, set_slice, zeros
from xcnn._check import axis, integers, is_integer, shown
from xcnn._dispatch import binds, body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, along, op, sample

__all__ = ["flatten", "permute", "permuted", "reshape", "slice", "split_sizes", "unflatten"]

_slice = slice  # the builtin, whose name the op takes


@body
def _reshape(xp: ModuleType, x: Array, sizes: tuple[int, ...]) -> Result:
    """Return x in another shape, a view if the library can make one."""
    shape = x.shape
    return xp.reshape(x, sizes), lambda dy, needs: (xp.reshape(dy, shape) if needs[0] else None,)


@binds(_reshape)
def _bind_reshape(xp: ModuleType, x: Array, sizes: tuple[int, ...]) -> Any:
    return xp.reshape  # of the same arguments


@op(
    "x",
    samples=[sample({"x": (2, 3, 4)}), sample({"x": (2, 3, 4, 5)}, start_dim=-3, end_dim=2)],
    apart=along("start_dim"),
)
def flatten(x: Array, start_dim: int = 1, end_dim: int = -1) -> Result:
    """Join the axes from `start_dim` to `end_dim` into one.

    Parameters
    ----------
    x : floating-point array of any shape.
    start_dim : the first axis to join. The default keeps the batch axis, as PyTorch's layer does; the default of
        PyTorch's function is 0.
    end_dim : the last axis to join.

    Returns
    -------
    y : x with one axis in place of the joined ones, in row-major order; a view of x if the library can make one.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    UsageError, DtypeError
        If x has no such axes in this order, or is not a floating-point array.
    """
    xp = namespace("flatten", x=x)
    shape = x.shape
    first, last = axis("flatten", "start_dim", start_dim, shape), axis("flatten", "end_dim", end_dim, shape)
    if first > last:
        raise UsageError(f"flatten: x {tuple(shape)} has no axes {start_dim} to {end_dim} in this order")
    return _reshape(xp, x, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))


@op("x", samples=[sample({"x": (2, 6, 3)}, dim=-2, unflattened_size=(1, 3, 2))], apart=along("dim"))
def unflatten(x: Array, dim: int, unflattened_size: Sequence[int]) -> Result:
    """Split one axis into several, as for the maps of a transposed convolution behind a linear layer.

    Parameters
    ----------
    x : floating-point array of at least one axis.
    dim : the axis to split.
    unflattened_size : the sizes of the new axes, whose product is the size of `dim`.

    Returns
    -------
    y : x with the new axes in place of `dim`, in row-major order; a view of x if the library can make one.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, UsageError, DtypeError
        If the product is another, x has no axis `dim`, or an argument is not as above.
    """
    xp = namespace("unflatten", x=x)
    shape, dim = x.shape, axis("unflatten", "dim", dim, x.shape)
    sizes = split_sizes("unflatten", unflattened_size)
    if math.prod(sizes) != shape[dim]:
        place = f"axis {dim} of x {tuple(shape)}"
        raise ShapeError(f"unflatten: unflattened_size must multiply to {shape[dim]}, {place}, got {sizes}")
    return _reshape(xp, x, (*shape[:dim], *sizes, *shape[dim + 1 :]))


def split_sizes(caller: str, unflattened_size: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the new axes, of which there is at least one."""
    rank = max(1, len(unflattened_size)) if isinstance(unflattened_size, Sequence) else 1
    return integers(caller, "unflattened_size", unflattened_size, rank)


def _keeps_first(shape: tuple[int, ...], options: dict[str, Any]) -> bool:
    first, *sizes = options["shape"]
    return bool(first == -1 and math.prod(sizes) == math.prod(shape[1:]))


@op("x", samples=[sample({"x": (2, 3, 4)}, shape=(-1, 6, 2)), sample({"x": (2, 3)}, shape=(-1,))], apart=_keeps_first)
def reshape(x: Array, shape: Sequence[int]) -> Result:
    """Arrange the numbers in another shape, in row-major order.

    Parameters
    ----------
    x : floating-point array of any shape.
    shape : the sizes of the axes of y. One of them may be -1, which stands for as many as are left; for a batch of any
        size it is the first one.

    Returns
    -------
    y : the numbers of x; a view of x if the library can make one.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, UsageError, DtypeError
        If x has more or fewer numbers, shape is not such sizes, or x is not a floating-point array.
    """
    xp = namespace("reshape", x=x)
    own = x.shape
    sizes = integers("reshape", "shape", shape, len(shape) if isinstance(shape, Sequence) else 1, -1)
    known, given = math.prod(size for size in sizes if size != -1), sizes.count(-1)
    count = math.prod(own)
    if given > 1:
        raise UsageError(f"reshape: shape may have one -1, got {sizes}")
    if (known == 0 or count % known) if given else known != count:
        raise ShapeError(f"reshape: shape must hold the {count} numbers of x {tuple(own)}, got {sizes}")
    return _reshape(xp, x, tuple(count // known if size == -1 else size for size in sizes))


@body
def permuted(xp: ModuleType, x: Array, order: tuple[int, ...]) -> Result:
    """Return x with its axes in another order."""
    back = tuple(order.index(dim) for dim in range(len(order)))
    return xp.permute_dims(x, order), lambda dy, needs: (permuted(xp, dy, back)[0] if needs[0] else None,)


def _leaves_first(shape: tuple[int, ...], options: dict[str, Any]) -> bool:
    return options["dims"][0] in (0, -len(shape))


@op("x", samples=[sample({"x": (2, 3, 4)}, dims=(2, 0, -2)), sample({"x": (2, 3)}, dims=(0, 1))], apart=_leaves_first)
def permute(x: Array, dims: Sequence[int]) -> Result:
    """Put the axes into another order, as from (n, c, h, w) to (n, h, w, c).

    Parameters
    ----------
    x : floating-point array of any shape.
    dims : the axes of x in their new order, each once; `(0, 2, 3, 1)` moves the channels of images to the end.

    Returns
    -------
    y : axis i of y is axis `dims[i]` of x; a view of x if the library can make one, or a copy, in which compiled code
        puts what will be read one after another.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    UsageError, DtypeError
        If dims is not such an order, or x is not a floating-point array.
    """
    xp = namespace("permute", x=x)
    rank = x.ndim
    entries = tuple(dims) if isinstance(dims, Sequence) else (None,)
    order = tuple(int(dim) % rank for dim in entries if is_integer(dim) and -rank <= dim < rank)
    if len(order) != len(entries) or sorted(order) != list(range(rank)):
        raise UsageError(f"permute: dims must name each axis of x {tuple(x.shape)} once, got {shown(dims)}")
    return permuted(xp, x, order)


@body
def _part(xp: ModuleType, x: Array, part: tuple[Any, ...], flipped: int | None) -> Result:
    """Return a slice of x, with one axis reversed unless `flipped` is None."""
    shape = x.shape

    def flip(array: Array) -> Array:
        return array if flipped is None else xp.flip(array, axis=flipped)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (set_slice(zeros(xp, shape, dy), part, flip(dy)) if needs[0] else None,)

    return flip(x[part]), backward


@op(
    "x",
    samples=[
        sample({"x": (2, 5, 3)}, dim=1, start=1, stop=-1, step=2),
        sample({"x": (2, 5)}, dim=-1, start=None, stop=0, step=-2),
        sample({"x": (4, 2)}, dim=0, start=2),
    ],
    apart=along("dim"),
)
def slice(x: Array, dim: int, start: int | None = None, stop: int | None = None, step: int = 1) -> Result:
    """Take a part of one axis: `x[start:stop:step]` along `dim`, with the meaning that Python gives to it.

    Parameters
    ----------
    x : floating-point array of at least one axis.
    dim : the axis.
    start, stop : the first index, and the first one that is not taken. Negative ones count from the end, those beyond
        the ends stand for the ends, and so does None.
    step : an integer other than 0; a negative one reverses the axis.

    Returns
    -------
    y : x with fewer indices, or none, along `dim`; a view of x if the library can make one.
    backward : dy -> (dx,), which is 0 where nothing was taken. It keeps nothing.

    Raises
    ------
    UsageError, DtypeError
        If x has no axis `dim`, an argument is not such an integer, or x is not a floating-point array.
    """
    xp = namespace("slice", x=x)
    shape, dim = x.shape, axis("slice", "dim", dim, x.shape)
    for name, value in (("start", start), ("stop", stop)):
        if value is not None and not is_integer(value):
            raise UsageError(f"slice: {name} must be an integer or None, got {shown(value)}")
    if not is_integer(step) or step == 0:
        raise UsageError(f"slice: step must be an integer other than 0, got {shown(step)}")
    taken = range(shape[dim])[start:stop:step]
    low, high = (min(taken), max(taken) + 1) if taken else (0, 0)
    part = (*(_slice(None),) * dim, _slice(low, high, abs(step)), ...)
    return _part(xp, x, part, dim if step < 0 else None)  # PyTorch and the array API have no steps backwards
