"""What is said of a step that cannot be taken: where numbers stop being finite, or which batch memory is too small for.

A good step pays for one look at its gradients. What a bad one did is found by taking it again with every layer watched.
"""

import gc
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from xcnn._array import Array, is_kind, namespace_of
from xcnn._dispatch import body
from xcnn.devices import Device, free_memory, on_host, out_of_memory, to_numpy
from xcnn.errors import DivergedError, OutOfMemoryError
from xcnn.nn import Buffer, Module
from xcnn.nn._observe import observing

__all__ = ["divergence", "look", "memory_error", "ran_out", "remember", "within_memory"]

T = TypeVar("T")

Backward = Callable[..., Any]
Function = Callable[..., tuple[Any, Backward]]


def _nothing() -> None:
    pass


def remember(buffers: Sequence[Buffer], random: Sequence[Module]) -> Callable[[], None]:
    """Note buffers and the random streams of some modules, and return the function that puts them back."""
    if not buffers and not random:
        return _nothing
    arrays = [buffer.data for buffer in buffers]
    streams = [stream.bit_generator for module in random for _, stream in module.named_generators()]
    states = [stream.state for stream in streams]

    def put_back() -> None:
        for buffer, array in zip(buffers, arrays, strict=True):
            buffer.data = array
        for stream, state in zip(streams, states, strict=True):
            stream.state = state

    return put_back


def look(loss: Any, right: Any = None, gradients: Sequence[Array | None] = ()) -> tuple[float, int | None, bool]:
    """Read what is to be known of a batch, waiting for the device once.

    Parameters
    ----------
    loss : a number, or an array of one.
    right : how many answers are right (exact below 2**24), likewise, or None.
    gradients : floating-point arrays; None is passed over.

    Returns
    -------
    The loss, how many are right, and whether the gradients hold finite numbers alone.
    """
    there = [array for array in gradients if array is not None]
    first = there[0] if there and on_host(loss) else loss  # gradients are all on one device
    if on_host(first):
        finite = True
        for array in there:
            if not math.isfinite(np.vdot(array, array)) and not _finite(array):  # no other sum is as fast
                finite = False
                break
        return float(loss), None if right is None else int(right), finite
    xp = namespace_of(first)
    # In the dtype of the loss, whose bits must not change; but half precision cannot count.
    dtype = xp.float64 if first.dtype == xp.float64 else xp.float32
    asked = [number for number in (loss, right) if number is not None and not on_host(number)]
    parts = [xp.astype(xp.reshape(number, (1,)), dtype, copy=False) for number in asked]
    if there:
        parts.append(_totals(xp, there, dtype))
    seen = to_numpy(xp.concat(parts)).tolist()
    value = float(loss) if on_host(loss) else seen.pop(0)
    if right is not None:
        right = int(right if on_host(right) else seen.pop(0))
    if not math.isfinite(value):
        return value, right, False
    return value, right, all(math.isfinite(total) or _finite(a) for a, total in zip(there, seen, strict=True))


@body
def _totals(xp: ModuleType, arrays: Sequence[Array], dtype: Any) -> Array:
    """Give a number for each array, in one array, that is finite only where all of the array's numbers are.

    It may overflow where they are: then they have to be looked at.
    """
    with np.errstate(all="ignore"):  # of libraries that compute with NumPy
        return xp.stack([xp.astype(xp.sum(array), dtype, copy=False) for array in arrays])


def _finite(value: Any) -> bool:
    """Say whether an array, or each of a tuple, holds no nan and no infinity."""
    return not _strange(value)


def _strange(value: Any) -> str:
    """Say what an array, or one of a tuple, holds that is no finite number: nan, inf, or nothing."""
    for array in value if isinstance(value, tuple | list) else (value,):
        if array is None:
            continue
        xp = namespace_of(array)
        if is_kind(xp, array.dtype, "real floating") and not bool(xp.all(xp.isfinite(array))):
            return "nan" if bool(xp.any(xp.isnan(array))) else "inf"
    return ""


def divergence(model: Module, loss: Function, value: float, x: Array, y: Array) -> DivergedError:
    """Take a batch again, with every layer watched, and return the error that says where numbers stop being finite.

    Buffers and random streams must be those from before the batch; they move on. All gradients are forgotten.

    Parameters
    ----------
    model : the network.
    loss : `(output, target) -> (loss, backward)`.
    value : the loss; where it is finite, a gradient is not.
    x, y : the batch, on the device.
    """
    lost = not math.isfinite(value)
    what = f"the loss is {value}" if lost else f"a gradient is not finite, the loss is {value:.4g}"
    for kind, array in (("images", x), ("targets", y)):
        if odd := _strange(array):
            return DivergedError(f"{what}: the {kind} hold {odd}; check the data")
    with np.errstate(all="ignore"):  # NumPy has warned of the same numbers already
        found = _first_number(model, x) if lost else _first_gradient(model, loss, x, y)
    return DivergedError(f"{what}: {found}; lower the learning rate, clip the gradients, or check the data")


def _first_number(model: Module, x: Array) -> str:
    """Run a batch forward, as in training, and say where the first number that is not finite is."""
    found: list[str] = []

    def observer(name: str, layer: Module) -> Function:
        forward = layer.forward

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, backward = forward(x, train)
            if not found and not _finite(y):
                found.append(f"{_called(name, layer)} gave the first numbers that are not finite{_reason(layer, x)}")
            return y, backward

        return observed

    with observing(model, observer):
        output, _ = model.forward(x, train=True)
    if found:
        return found[0]
    if not _finite(output):
        return "the model's output is not finite, though every layer's is"
    return "every layer's output is finite, so the loss itself is the first number that is not"


def _reason(layer: Module, x: Any) -> str:
    """Say what a layer had when it gave numbers that are not finite."""
    for name, parameter in layer.named_parameters():
        if odd := _strange(parameter.data):
            return f": its {name} holds {odd}"
    if odd := _strange(x):
        return f": its input holds {odd}"
    return ", from finite inputs and weights" if any(layer.named_parameters()) else ", from finite inputs"


def _first_gradient(model: Module, loss: Function, x: Array, y: Array) -> str:
    """Run a batch forward and back, as in training, and say which gradient is the first that is not finite."""
    ruined = [name for name, slot in model.named_parameters() if not _finite(slot.grad)]
    model.zero_grad()
    found: list[str] = []

    def observer(name: str, layer: Module) -> Function:
        forward, called = layer.forward, _called(name, layer)

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, backward = forward(x, train)

            def watched(dy: Any, need_dx: bool = True) -> Any:
                if not found and not _finite(dy):
                    found.append(f"{called} was given the first, that of its output")
                dx = backward(dy, need_dx)
                made = {**{key: slot.grad for key, slot in layer.named_parameters()}, "input": dx}
                for key, grad in made.items():
                    if not found and not _finite(grad):
                        found.append(f"{called} gave the first, that of its {key}")
                return dx

            return y, watched

        return observed

    with observing(model, observer):
        output, backward = model.forward(x, train=True)
        dy = loss(output, y)[1]()[0]
        if not _finite(dy):
            found.append("the loss gave the first, that of the model's output")
        backward(dy, need_dx=False)
    model.zero_grad()
    return next(iter(found), f"{ruined[-1]} has the first")


def _called(name: str, layer: Module) -> str:
    kind = type(layer).__name__
    return f"layer {name} ({kind})" if name else f"the {kind}"


def within_memory(function: Callable[..., T], images: Any, *rest: Any, where: Device, option: str) -> T:
    """Call a function with a batch of images; where memory runs out, free what the call took and say so.

    Raises
    ------
    OutOfMemoryError
        See `memory_error`.
    """
    try:
        return function(images, *rest)
    except Exception as error:
        if not ran_out(error, where):
            raise
    raise memory_error(images, where, option)  # out here nothing holds the exception any more


def ran_out(error: Exception, where: Device) -> bool:
    """Say whether memory ran out, and if so, let go of the arrays that the exception holds by its traceback."""
    if not out_of_memory(error, where):
        return False
    link: BaseException | None = error
    while link is not None:
        link.__traceback__, link = None, link.__context__
    return True


def memory_error(images: Any, where: Device, option: str, updating: bool = False) -> OutOfMemoryError:
    """Give freed memory back to the device and return the error that says what to try.

    Parameters
    ----------
    images : the batch.
    where : the device whose memory ran out.
    option : what sets the batch size.
    updating : whether the optimizer was at work.
    """
    gc.collect()
    free_memory(where)
    n, *size = images.shape if hasattr(images, "shape") else np.shape(images)
    smaller = f"a batch size of {n // 2} ({option})" if n > 1 else "smaller images"
    return OutOfMemoryError(
        f"out of memory on {where.name} with {n} image{'s' * (n > 1)} of {tuple(size)} at a time: "
        f"try {smaller}, or a smaller network{'; some weights have changed already' * updating}"
    )
