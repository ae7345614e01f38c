"""Finding where numbers stop being finite.

Every step checks its loss and gradients once. If one is not finite, the batch runs again with every layer observed.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from xcnn._array import Array, is_kind, namespace_of
from xcnn._dispatch import body
from xcnn.devices import on_host, to_numpy
from xcnn.errors import DivergedError
from xcnn.nn import Module
from xcnn.nn._observe import observing

__all__ = ["divergence", "look"]

Function = Callable[..., tuple[Any, Any]]


def look(numbers: Sequence[Any], gradients: Sequence[Array | None] = ()) -> tuple[list[Any], bool]:
    """Return numbers of a batch as Python numbers, and whether the first is finite and all gradients are.

    The host waits for the device once. The first number is a loss. Each may be an array, whose sum is returned, with
    counts below 2**24 each; a Python number; or None, which stays None.
    """
    loss, there = numbers[0], [array for array in gradients if array is not None]
    first = loss
    if on_host(loss):  # all others are on one device
        first = next(iter(there or [one for one in numbers if one is not None and not on_host(one)]), loss)
    if on_host(first):
        # The fastest sum that NumPy has; it may overflow.
        finite = all(math.isfinite(np.vdot(array, array)) or not _nan_or_inf(array) for array in there)
        seen = [_sum(number) for number in numbers]
        return seen, math.isfinite(seen[0]) and finite
    xp = namespace_of(first)
    # In the dtype of the loss, to keep its bits; half precision cannot hold the counts.
    dtype = xp.float64 if first.dtype == xp.float64 else xp.float32
    asked = [xp.reshape(number, (-1,)) for number in numbers if number is not None and not on_host(number)]
    parts = [xp.astype(number, dtype, copy=False) for number in asked]
    if there:
        parts.append(_totals(xp, there, dtype))
    came, made = to_numpy(xp.concat(parts)), []
    for number in numbers:
        if number is None or on_host(number):
            made.append(_sum(number))
            continue
        size = math.prod(number.shape)
        total, came = _sum(came[:size]), came[size:]
        made.append(int(total) if is_kind(xp, number.dtype, "integral") else total)
    totals = zip(there, came.tolist(), strict=True)
    return made, math.isfinite(made[0]) and all(math.isfinite(total) or not _nan_or_inf(a) for a, total in totals)


def _sum(number: Any) -> Any:
    """Return the sum of a NumPy array as a Python number, and other values as they are."""
    if not isinstance(number, np.ndarray | np.generic):
        return number
    if number.size != 1:
        number = np.sum(number, dtype=np.float64 if number.dtype.kind == "f" else np.int64)
    value = number.item()
    return float(value) if number.dtype.kind == "f" else value


@body
def _totals(xp: ModuleType, arrays: Sequence[Array], dtype: Any) -> Array:
    """Return the sum of each array, in one array. It is finite only if all entries are, but may overflow."""
    with np.errstate(all="ignore"):  # for libraries that compute with NumPy
        return xp.stack([xp.astype(xp.sum(array), dtype, copy=False) for array in arrays])


def _nan_or_inf(value: Any) -> str:
    """Return "nan" or "inf" if an array, or one of a tuple, holds one; otherwise an empty string."""
    for array in value if isinstance(value, tuple | list) else (value,):
        if array is None:
            continue
        xp = namespace_of(array)
        if is_kind(xp, array.dtype, "real floating") and not bool(xp.all(xp.isfinite(array))):
            return "nan" if bool(xp.any(xp.isnan(array))) else "inf"
    return ""


def divergence(
    model: Module, loss: Function, value: float, parts: Sequence[tuple[Array, Array]], sure: bool = True
) -> DivergedError | None:
    """Run a batch again with every layer observed, and return the error that names where numbers stop being finite.

    Buffers and random streams must be in their state from before the batch, and are changed. All gradients are cleared.
    `value` is the loss; if it is finite, a gradient is not. `parts` are the pairs (x, y) in which the batch is run.
    Unless it is `sure` that one of them is at fault, None is returned if no layer has such a gradient.
    """
    lost = not math.isfinite(value)
    what = f"the loss is {value}" if lost else f"a gradient is not finite, the loss is {value:.4g}"
    for arrays in parts:
        for kind, array in zip(("examples", "targets"), arrays, strict=True):
            if odd := _nan_or_inf(array):
                return DivergedError(f"{what}: the {kind} hold {odd}; check the data")
    with np.errstate(all="ignore"):  # NumPy has already warned about the same numbers
        found = _first_number(model, parts) if lost else _first_gradient(model, loss, parts, sure)
    if not found:
        return None
    return DivergedError(f"{what}: {found}; lower the learning rate, clip the gradients, or check the data")


def _first_number(model: Module, parts: Sequence[tuple[Array, Array]]) -> str:
    """Run a batch forward, as in training, and describe the first output that is not finite."""
    found: list[str] = []

    def observer(name: str, layer: Module) -> Function:
        forward = layer.forward

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, backward = forward(x, train)
            if not found and _nan_or_inf(y):
                found.append(
                    f"{_called(name, layer)} returned the first numbers that are not finite{_reason(layer, x)}"
                )
            return y, backward

        return observed

    with observing(model, observer):
        for x, _ in parts:
            output, _ = model.forward(x, train=True)
            if found:
                return found[0]
            if _nan_or_inf(output):
                return "the model's output is not finite, though every layer's is"
    return "every layer's output is finite, so the loss itself is the first number that is not"


def _reason(layer: Module, x: Any) -> str:
    """Describe the weights and the input of a layer whose output is not finite."""
    for name, parameter in layer.named_parameters():
        if odd := _nan_or_inf(parameter.data):
            return f": its {name} holds {odd}"
    if odd := _nan_or_inf(x):
        return f": its input holds {odd}"
    return ", from finite inputs and weights" if any(layer.named_parameters()) else ", from finite inputs"


def _first_gradient(model: Module, loss: Function, parts: Sequence[tuple[Array, Array]], sure: bool) -> str:
    """Run a batch forward and back, as in training, and describe the first gradient that is not finite.

    If no layer has one, the gradient of the parameters is it if that is `sure`; otherwise the text is empty.
    """
    bad = [name for name, slot in model.named_parameters() if _nan_or_inf(slot.grad)]
    model.zero_grad()
    found: list[str] = []

    def observer(name: str, layer: Module) -> Function:
        forward, called = layer.forward, _called(name, layer)

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, backward = forward(x, train)

            def watched(dy: Any, need_dx: bool = True) -> Any:
                if not found and _nan_or_inf(dy):
                    found.append(f"the first one is that of the output of {called}")
                dx = backward(dy, need_dx)
                made = {**{key: slot.grad for key, slot in layer.named_parameters()}, "input": dx}
                for key, grad in made.items():
                    if not found and _nan_or_inf(grad):
                        found.append(f"the first one is that of the {key} of {called}")
                return dx

            return y, watched

        return observed

    with observing(model, observer):
        for x, y in parts:
            output, backward = model.forward(x, train=True)
            dy = loss(output, y)[1]()[0]
            if not found and _nan_or_inf(dy):
                found.append("the first one is that of the model's output, from the loss")
            backward(dy, need_dx=False)
    model.zero_grad()
    return next(iter(found), f"the first one is that of {bad[-1]}" if sure else "")


def _called(name: str, layer: Module) -> str:
    kind = type(layer).__name__
    return f"layer {name} ({kind})" if name else f"the {kind}"
