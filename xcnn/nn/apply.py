"""A layer for any op, for graphs of ops that have no layer of their own."""

import inspect
from collections.abc import Callable
from typing import Any

from xcnn._check import number
from xcnn.errors import UsageError, unknown, wrong_call
from xcnn.nn._module import Module
from xcnn.ops._op import OPS

__all__ = ["Apply"]


class Apply(Module):
    """Apply an op with constant options.

    Parameters
    ----------
    op : the op, or its name in `ops.OPS`.
    **options : the options of the op, and numbers in place of arrays after the first, for ops that take them. The
        option `training`, of ops that have it, is the argument `train` of `forward`.

    Raises
    ------
    UsageError
        If there is no such op, it has no such options, or what stands for an array is not a finite number.

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
    >>> Apply("multiply", other=0.5)(np.ones(2))
    array([0.5, 0.5])
    """

    def __init__(self, op: str | Callable[..., Any], /, **options: Any) -> None:
        name = getattr(op, "__name__", op)
        if not isinstance(name, str) or name not in OPS or op not in (name, OPS[name].function):
            raise (
                unknown("op", name, OPS) if isinstance(op, str) else UsageError(f"Apply: op must be an op, got {op!r}")
            )
        self.op, self.given = name, options
        first, *others = OPS[name].arrays
        self._parameters = tuple(key for key in inspect.signature(OPS[name].function).parameters if key != first)
        for key, value in options.items():
            if key not in self._parameters:
                raise unknown(f"option of {name}", key, [option for option in self._parameters if option not in others])
            if key == "training":
                raise UsageError(f"Apply: {name}: training is the argument train of forward, not an option")
            if key in others:
                options[key] = number(f"Apply: {name}", key, value, "(-inf, inf)")
        if wrong := wrong_call(name, OPS[name].function, [None], dict.fromkeys(others) | options):
            raise wrong

    def options(self) -> dict[str, Any]:
        return {"op": self.op, "options": self.given}

    def _arguments(self) -> str:
        return ", ".join([repr(self.op), *(f"{name}={value!r}" for name, value in self.given.items())])

    def _calls(self) -> tuple[str, dict[str, Any]] | None:
        row = OPS[self.op]
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(row.function).parameters.items()
            if name not in row.arrays and parameter.default is not parameter.empty
        }
        return self.op, defaults | self.given | ({"training": False} if "training" in defaults else {})

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        row = OPS[self.op]
        options = self.given | ({"training": train} if "training" in self._parameters else {})
        several = isinstance(x, tuple | list)
        arrays = [x] if not several or row.variadic else [*x]
        most = len(row.arrays) - sum(name in self.given for name in row.arrays)
        if len(arrays) > most:
            raise UsageError(f"{self.op}: x must be at most {most} arrays, got {len(arrays)}")
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
