"""One trainable array and its gradient: what layers own and optimizers update."""

from xcnn._array import Array, namespace_of

__all__ = ["Parameter"]


class Parameter:
    """A trainable array, at first a copy of the one given.

    Attributes
    ----------
    data : the current value. An optimizer step may write the next one into the same array, as it does for NumPy arrays
        where there are kernels, so whoever wants to keep the numbers must copy them, as `state_dict` does.
    updates : how often an optimizer has changed it.
    grad : the gradient summed over the backward passes since the last `zero_grad`, of the shape of `data`, or None.
    """

    __slots__ = ("data", "grad", "updates")

    def __init__(self, data: Array) -> None:
        self.data = namespace_of(data).asarray(data, copy=True)
        self.grad: Array | None = None
        self.updates = 0

    def accumulate(self, grad: Array) -> None:
        """Add one backward pass's gradient."""
        self.grad = grad if self.grad is None else self.grad + grad

    def __repr__(self) -> str:
        return f"Parameter{tuple(self.data.shape)}"
