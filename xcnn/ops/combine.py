"""Several maps into one: the sum that a residual connection takes, and the concatenation of branches."""

from collections.abc import Sequence

from xcnn._array import Array, namespace
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample

__all__ = ["add", "concat"]


@op("x other", samples=[sample({"x": (2, 3, 4), "other": (2, 3, 4)})])
def add(x: Array, other: Array) -> Result:
    """Add two arrays of the same shape (nothing is broadcast, unlike PyTorch's `add`).

    Parameters
    ----------
    x, other : the same shape and dtype, floating point.

    Returns
    -------
    y : the same shape.
    backward : dy -> (dx, dother), both of them dy itself. It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError
        Where the two differ.
    """
    namespace("add", x=x, other=other)
    if x.shape != other.shape:
        raise ShapeError(f"add: other must have the shape of x {tuple(x.shape)}, got {tuple(other.shape)}")

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return dy if needs[0] else None, dy if needs[1] else None

    return x + other, backward


@op(
    "*xs",
    samples=[
        sample({"xs": [(2, 3), (1, 3), (4, 3)]}),
        sample({"xs": [(2, 1, 4), (2, 3, 4)]}, dim=1),
        sample({"xs": [(2, 3), (2, 2)]}, dim=-1),
    ],
)
def concat(xs: Sequence[Array], dim: int = 0) -> Result:
    """Join arrays along one of their axes.

    Parameters
    ----------
    xs : at least one array, floating point, of one dtype; all of one shape but for `dim`.
    dim : the axis to join. Feature maps (n, c, h, w) join their channels along axis 1.

    Returns
    -------
    y : the sizes along `dim` added up.
    backward : dy -> one gradient per array, each a slice of dy. It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where the arrays do not fit each other, there are none, or they have no such axis.
    """
    if not isinstance(xs, Sequence) or len(xs) == 0:
        raise UsageError(f"concat: xs must be a sequence of at least one array, got {type(xs).__name__}")
    xp = namespace("concat", **{f"xs[{i}]": x for i, x in enumerate(xs)})
    rank = xs[0].ndim
    if not -rank <= dim < rank:
        raise UsageError(f"concat: dim must be an axis of xs[0] {tuple(xs[0].shape)}, got {dim!r}")
    axis = dim % rank
    before, after = xs[0].shape[:axis], xs[0].shape[axis + 1 :]
    for i, x in enumerate(xs):
        if x.ndim != rank or x.shape[:axis] != before or x.shape[axis + 1 :] != after:
            raise ShapeError(
                f"concat: xs[{i}] must have the shape of xs[0] {tuple(xs[0].shape)} but for axis {axis}, "
                f"got {tuple(x.shape)}"
            )
    sizes = [x.shape[axis] for x in xs]

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        gradients: list[Array | None] = []
        start = 0
        for size, needed in zip(sizes, needs, strict=True):
            part = (*(slice(None),) * axis, slice(start, start + size), ...)
            gradients.append(dy[part] if needed else None)
            start += size
        return tuple(gradients)

    return xp.concat(list(xs), axis=axis), backward
