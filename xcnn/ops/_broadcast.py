"""Broadcasting, which the array API does in every elementwise function, and its transpose, which it lacks."""

from types import ModuleType

from xcnn._array import Array, sum_over

__all__ = ["broadcast_shape", "sum_to"]


def broadcast_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that two shapes broadcast to, or None if they do not.

    >>> broadcast_shape((3, 1), (2,))
    (3, 2)
    """
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True))
    if any(m != n and 1 not in (m, n) for m, n in pairs):
        return None
    return tuple(n if m == 1 else m for m, n in pairs)


def sum_to(xp: ModuleType, dy: Array, shape: tuple[int, ...]) -> Array:
    """Return the gradient of an array of `shape` from that of the array it was broadcast to."""
    if dy.shape == shape:
        return dy
    lead = dy.ndim - len(shape)
    repeated = [axis for axis in range(dy.ndim) if axis < lead or (shape[axis - lead] == 1 != dy.shape[axis])]
    return xp.reshape(sum_over(xp, dy, tuple(repeated)), shape)
