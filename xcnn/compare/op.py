"""The errors of the results and gradients of an op on a device, over its samples."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from xcnn._plugins import find
from xcnn.compare.budget import Reference, errors, reference, tensors
from xcnn.compare.finding import Finding
from xcnn.compare.scales import Arrays, each
from xcnn.devices import Device
from xcnn.errors import UsageError
from xcnn.ops._op import OPS

__all__ = ["call_op", "op_errors", "op_name", "place", "run_op"]


def op_name(op: str | Callable[..., Any]) -> str:
    """Return the name in `OPS` of an op, which is given itself, by name, or as `package.module:name` to import."""
    if isinstance(op, str) and op in OPS:
        return op
    function = find("op", op, OPS) if isinstance(op, str) else op
    name = getattr(function, "__name__", "")
    if name not in OPS or OPS[name].function is not function:
        raise UsageError(f"op {op!r}: expected a function made an op by @ops.op, got {type(function).__name__}")
    return name


def op_errors(op: str | Callable[..., Any], device: Device, dtype: str = "float32", seed: int = 0) -> Iterator[Finding]:
    """Run every sample of an op on a device, and yield the error of each result and gradient.

    Parameters
    ----------
    op : an op, its name, or `package.module:name` for one of another package.
    device : where to run it.
    dtype : `"float32"` or `"float64"`.
    seed : seed of the numbers in the samples.

    Raises
    ------
    UsageError
        If the op is unknown; the error names the nearest.
    """
    name = op_name(op)
    for number, sample in enumerate(OPS[name].samples):
        rng = np.random.default_rng([seed, number])
        drawn, options = sample.draw(rng), sample.options
        arrays = {argument: drawn[argument] for argument in OPS[name].arrays}  # in the order of the gradients
        wanted = reference(
            name, functools.partial(call_op, name, options), arrays, options, functools.partial(_normal, rng), dtype
        )
        for error in errors(wanted, run_op(name, options, wanted, device, dtype), dtype):
            yield Finding(name, f"sample {number}", name, device.name, dtype, error)


def call_op(name: str, options: Mapping[str, Any], arrays: Arrays) -> tuple[Any, Any]:
    """Call an op by name."""
    y, backward = OPS[name].function(**arrays, **options)
    return y, backward


def run_op(name: str, options: Mapping[str, Any], call: Reference, device: Device, dtype: str) -> dict[str, Any]:
    """Run an op on a device with the arrays and dy of a reference; return its tensors by name, on the host."""
    with device.active():
        y, backward = call_op(name, options, each(functools.partial(place, device=device, dtype=dtype), call.arrays))
        gradients = backward(place(call.dy, device, dtype))
    found = tensors(call.arrays, y if type(y) is tuple else (y,), gradients)
    return {name: device.to_numpy(array) for name, array in found.items()}


def place(array: Any, device: Device, dtype: str) -> Any:
    """Move a host array to a device: numbers in `dtype`, labels unchanged."""
    return device.asarray(array.astype(dtype) if array.dtype.kind == "f" else array)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape))
