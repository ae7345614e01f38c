"""A layer for any op, for graphs of ops that have no layer of their own."""

import inspect
from collections.abc import Callable
from typing import Any

from xcnn.errors import UsageError, unknown, wrong_call
from xcnn.nn._module import Module
from xcnn.ops._op import OPS

__all__ = ["Apply"]


class Apply(Module):
    """Apply an op with constant options.

    Parameters
    ----------
    op : the op, or its name in `ops.OPS`.
    **options : the options of the op. The option `training`, of ops that have it, is the argument `train` of `forward`.

    Raises
    ------
    UsageError
        If there is no such op, or it has no such options.

    Notes
    -----
    An op of several arrays takes them as a tuple.

    Examples
    --------
    >>> import numpy as np
    >>> Apply("flatten", start_dim=0)(np.ones((2, 3))).shape
    (6,)
    >>> Apply("add")((np.ones(2), np.ones(2)))
    array([2., 2.])
    """

    def __init__(self, op: str | Callable[..., Any], /, **options: Any) -> None:
        name = getattr(op, "__name__", op)
        if not isinstance(name, str) or name not in OPS or op not in (name, OPS[name].function):
            raise (
                unknown("op", name, OPS) if isinstance(op, str) else UsageError(f"Apply: op must be an op, got {op!r}")
            )
        self.op, self.given = name, options
        arrays = OPS[name].arrays
        signature = inspect.signature(OPS[name].function)
        self._parameters = {key: row.kind for key, row in signature.parameters.items() if key not in arrays}
        for key in options:
            if key not in self._parameters:
                raise unknown(f"option of {name}", key, self._parameters)
        if wrong := wrong_call(name, OPS[name].function, [None] * len(arrays), options):
            raise wrong

    def options(self) -> dict[str, Any]:
        return {"op": self.op, "options": self.given}

    def _arguments(self) -> str:
        return ", ".join([repr(self.op), *(f"{name}={value!r}" for name, value in self.given.items())])

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        row = OPS[self.op]
        options = self.given | ({"training": train} if "training" in self._parameters else {})
        several = isinstance(x, tuple | list)
        arrays = [x] if not several or row.variadic else [*x]
        if len(arrays) > len(row.arrays):
            raise UsageError(f"{self.op}: x must be at most {len(row.arrays)} arrays, got {len(arrays)}")
        y, op_backward = row.function(*arrays, **options)

        def backward(dy: Any, need_dx: bool) -> Any:
            if not need_dx:
                return None
            if row.variadic:
                return op_backward(dy)
            missing = len(row.arrays) - len(arrays)
            grads = op_backward(dy, (True,) * len(arrays) + (False,) * missing)[: len(arrays)]
            return grads if several else grads[0]

        return y, backward
