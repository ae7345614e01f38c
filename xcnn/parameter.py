"""The arrays that modules own: parameters, which optimizers update, and buffers."""

from xcnn._array import Array, is_array, namespace_of
from xcnn.errors import DtypeError

__all__ = ["Buffer", "Parameter"]


class _Slot:
    """A place for an array."""

    __slots__ = ("data",)

    def __init__(self, data: Array) -> None:
        if not is_array(data):
            raise DtypeError(f"{type(self).__name__}: data must be an array, got {type(data).__name__}")
        self.data = data

    def __repr__(self) -> str:
        return f"{type(self).__name__}{tuple(self.data.shape)}"


class Parameter(_Slot):
    """A trainable array.

    Parameters
    ----------
    data : the initial value, an array; it is copied.

    Attributes
    ----------
    data : the current value. An optimizer may write the next value into the same array; copy it to keep the numbers.
    updates : number of optimizer steps that have changed it.
    grad : the sum of the gradients since the last `zero_grad`, of the shape of `data`, or None.

    Raises
    ------
    DtypeError
        If `data` is not an array.
    """

    __slots__ = ("grad", "updates")

    def __init__(self, data: Array) -> None:
        super().__init__(data)
        self.data = namespace_of(data).asarray(data, copy=True)
        self.grad: Array | None = None
        self.updates = 0

    def accumulate(self, grad: Array) -> None:
        """Add the gradient of one backward pass."""
        self.grad = grad if self.grad is None else self.grad + grad


class Buffer(_Slot):
    """An array that belongs to a module's state but is not trained, such as running statistics.

    Parameters
    ----------
    data : the initial value, an array; it is not copied.

    Raises
    ------
    DtypeError
        If `data` is not an array.
    """

    __slots__ = ()
