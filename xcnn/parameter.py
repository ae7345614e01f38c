"""The arrays that modules own: parameters, which optimizers update, and buffers."""

from types import ModuleType

from xcnn._array import Array, namespace_of
from xcnn.errors import DtypeError

__all__ = ["Buffer", "Parameter"]


def _namespace(kind: str, data: Array) -> ModuleType:
    """Return the namespace of an array."""
    try:
        return namespace_of(data)
    except TypeError:
        raise DtypeError(f"{kind}: data must be an array, got {type(data).__name__}") from None


class Parameter:
    """A trainable array.

    Parameters
    ----------
    data : the initial value, an array; it is copied.

    Attributes
    ----------
    data : the current value. An optimizer may write the next value into the same array, as it does for NumPy arrays
        where there are kernels, so copy the numbers to keep them, as `state_dict` does.
    updates : how often an optimizer has changed it.
    grad : the gradient summed over the backward passes since the last `zero_grad`, of the shape of `data`, or None.

    Raises
    ------
    DtypeError
        If `data` is not an array.
    """

    __slots__ = ("data", "grad", "updates")

    def __init__(self, data: Array) -> None:
        self.data = _namespace("Parameter", data).asarray(data, copy=True)
        self.grad: Array | None = None
        self.updates = 0

    def accumulate(self, grad: Array) -> None:
        """Add the gradient of one backward pass."""
        self.grad = grad if self.grad is None else self.grad + grad

    def __repr__(self) -> str:
        return f"Parameter{tuple(self.data.shape)}"


class Buffer:
    """An array that belongs to a module's state but is not trained, such as running statistics.

    Parameters
    ----------
    data : the initial value, an array; it is not copied.

    Raises
    ------
    DtypeError
        If `data` is not an array.
    """

    __slots__ = ("data",)

    def __init__(self, data: Array) -> None:
        _namespace("Buffer", data)
        self.data = data

    def __repr__(self) -> str:
        return f"Buffer{tuple(self.data.shape)}"
