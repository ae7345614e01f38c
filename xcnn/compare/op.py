"""The errors of the results and gradients of an op on a device, over its samples."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xcnn import nn
from xcnn._plugins import find
from xcnn.compare.budget import Reference, call_op, errors, reference, tensors
from xcnn.compare.finding import Finding
from xcnn.compare.scales import each
from xcnn.devices import Device
from xcnn.errors import UsageError
from xcnn.ops._op import OPS

__all__ = ["called", "op_errors", "op_name", "place", "run_op"]


def op_name(op: str | Callable[..., Any]) -> str:
    """Return the name in `OPS` of an op, given as a function, by name, or as `package.module:name` to import."""
    if isinstance(op, str) and op in OPS:
        return op
    function = find("op", op, OPS) if isinstance(op, str) else op
    name = getattr(function, "__name__", "")
    if name not in OPS or OPS[name].function is not function:
        raise UsageError(f"op {op!r}: expected a function made an op by @ops.op, got {type(function).__name__}")
    return name


_JOINS: dict[type[nn.Module], str] = {nn.Add: "add", nn.Multiply: "multiply", nn.Concat: "concat"}


def called(module: nn.Module) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    """Return what a module of one op gives it, as `Layer.bound` does; None for other modules."""
    if isinstance(module, nn.Layer):
        return module.bound()
    if isinstance(module, nn.Apply):
        parameters = inspect.signature(OPS[module.op].function).parameters.items()
        own = {name: one.default for name, one in parameters if name not in OPS[module.op].arrays}
        return module.op, {}, {**own, **module.given}
    return next(((op, {}, module.options()) for join, op in _JOINS.items() if isinstance(module, join)), None)


def op_errors(op: str | Callable[..., Any], device: Device, dtype: str = "float32") -> Iterator[Finding]:
    """Run every sample of an op on a device, and yield the error of each result and gradient.

    Parameters
    ----------
    op : an op, its name, or `package.module:name` for one of another package.
    device : where to run it.
    dtype : `"float32"` or `"float64"`.

    Raises
    ------
    UsageError
        If the op or dtype is unknown. The message names the nearest one.
    """
    name = op_name(op)
    for number, sample in enumerate(OPS[name].samples):
        rng = np.random.default_rng([0, number])
        wanted = reference(name, sample.draw(rng), sample.options, functools.partial(_normal, rng), dtype)
        for error in errors(wanted, run_op(wanted, device)):
            yield Finding(name, f"sample {number}", name, device.name, dtype, error)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape))


def run_op(wanted: Reference, device: Device) -> dict[str, Any]:
    """Run the op of a reference on a device; return its results and gradients by name, on the host."""
    call = wanted.call
    with device.active():
        arrays = each(functools.partial(place, device=device, dtype=wanted.dtype), call.arrays)
        y, backward = call_op(wanted.op, call.options, arrays)
        gradients = backward(place(call.dy, device, wanted.dtype))
    found = tensors(arrays, y if type(y) is tuple else (y,), gradients)
    return {name: device.to_numpy(array) for name, array in found.items()}


def place(array: Any, device: Device, dtype: str) -> Any:
    """Move a host array to a device: numbers in `dtype`, labels unchanged."""
    return device.asarray(array.astype(dtype) if array.dtype.kind == "f" else array)
