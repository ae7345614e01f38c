"""The arrays that modules own: parameters, which optimizers update, and buffers."""

from collections.abc import Callable

from xcnn._array import Array, is_array, namespace_of
from xcnn._check import flag, shown
from xcnn.errors import DtypeError, ShapeError

__all__ = ["Buffer", "Parameter", "change"]


_change = object()


def change() -> object:
    """Return an object that is another one after any parameter or buffer has got another array, or been frozen."""
    return _change


class _Slot:
    """A place for an array."""

    __slots__ = ("_data", "_trainable")

    def __init__(self, data: Array) -> None:
        self.data = data
        self._trainable = True

    @property
    def data(self) -> Array:
        """The array; see the class."""
        return self._data

    @data.setter
    def data(self, array: Array) -> None:
        global _change
        if not is_array(array):
            raise DtypeError(f"{type(self).__name__}: data must be an array, got {type(array).__name__}")
        self._data, _change = array, object()

    @property
    def trainable(self) -> bool:
        """Whether training changes the array; see the class."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        global _change
        self._trainable, _change = flag(type(self).__name__, "trainable", value), object()

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
    hook : a function that `accumulate` calls with the parameter after it has added a gradient, or None.
    trainable : True at first. A parameter with False is frozen: it gets no gradient, no backward pass computes one for
        it, and optimizers leave it alone. `Module.freeze` freezes a whole module.

    Raises
    ------
    DtypeError
        If `data` is not an array, now or when it is set.
    UsageError
        When `trainable` is set to anything but True or False.
    """

    __slots__ = ("grad", "hook", "updates")

    def __init__(self, data: Array) -> None:
        super().__init__(data)
        self.data = namespace_of(data).asarray(data, copy=True)
        self.grad: Array | None = None
        self.hook: Callable[[Parameter], object] | None = None
        self.updates = 0

    def accumulate(self, grad: Array) -> None:
        """Add the gradient of one backward pass, of the shape of `data`; a frozen parameter ignores it.

        Raises
        ------
        ShapeError
            If it is not an array of this shape.
        """
        if self._trainable:
            if getattr(grad, "shape", None) != self.data.shape:
                raise ShapeError(
                    f"accumulate: grad must be an array of shape {tuple(self.data.shape)}, like data, got {shown(grad)}"
                )
            self.grad = grad if self.grad is None else self.grad + grad
            if self.hook is not None:
                self.hook(self)


class Buffer(_Slot):
    """An array that belongs to a module's state but is not trained, such as running statistics.

    Parameters
    ----------
    data : the initial value, an array; it is not copied.

    Attributes
    ----------
    data : the current value.
    trainable : True at first. A layer with False leaves the buffer as it is in training: batch normalisation then
        normalises by its running statistics in training too.

    Raises
    ------
    DtypeError
        If `data` is not an array, now or when it is set.
    """

    __slots__ = ()
