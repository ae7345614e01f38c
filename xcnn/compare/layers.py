"""The error of each leaf layer of a network on a device, against the same layer in a wider dtype.

The network runs once on the host in float64. From this run, each layer's input and the gradient of its output are
rounded to the dtype under test and passed to the device and to the reference, so errors do not add up across layers.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.compare.budget import Reference, errors, reference
from xcnn.compare.finding import Finding
from xcnn.compare.op import called, op_name, place, run_op
from xcnn.devices import Device
from xcnn.nn._observe import observing
from xcnn.ops._op import OPS
from xcnn.parameter import Buffer

__all__ = ["Call", "layer_errors", "layer_reference", "traced"]


@dataclass
class Call:
    """A call of a leaf layer in the float64 run.

    Attributes
    ----------
    name : dotted name of the layer.
    layer : the layer as it was before the call.
    x, y : its input and output.
    train : whether it ran as in training.
    dy : the gradient of y; None if nothing asked for it.
    """

    name: str
    layer: nn.Module
    x: Any
    y: Any
    train: bool
    dy: Any = None

    def gradient(self, shape: tuple[int, ...]) -> Any:
        """Return the gradient of y, zeros if there is none."""
        return np.zeros(shape) if self.dy is None else self.dy


def layer_errors(
    model: nn.Module,
    x: np.ndarray,
    target: np.ndarray,
    devices: Sequence[Device],
    dtype: str = "float32",
    loss: str = "cross_entropy",
) -> Iterator[Finding]:
    """Yield the error of every result and gradient of every layer, and of the loss, on every device.

    Layers that are not a single op are left out: those that compute nothing (`Identity`), those that call no op, and
    subclasses whose `forward` does more than call the op on x.

    Parameters
    ----------
    model : the network, on the host; it is not changed.
    x : batch of images (n, c, h, w), on the host.
    target : second argument of the loss, on the host.
    devices : devices to run on.
    dtype : `"float32"` or `"float64"`.
    loss : name of the loss in `ops`.

    Raises
    ------
    UsageError
        If the dtype or loss is unknown. The message names the nearest one.
    """
    loss = op_name(loss)
    model = copy.deepcopy(model).to("cpu", "float64")
    with traced(model) as calls:
        y, backward = model.forward(x.astype(np.float64), train=True)
        _, loss_backward = OPS[loss].function(y, target)
        backward(loss_backward()[0])
    for call in calls:
        if call.dy is None or (wanted := layer_reference(call, dtype)) is None:
            continue
        for device in devices:
            for error in errors(wanted, _run(call, wanted, device)):
                yield Finding(call.name, type(call.layer).__name__, wanted.op, device.name, dtype, error)
    wanted = reference(loss, {"x": y, "target": target}, {}, np.ones, dtype)
    for device in devices:
        for error in errors(wanted, run_op(wanted, device)):
            yield Finding("loss", loss, loss, device.name, dtype, error)


@contextlib.contextmanager
def traced(model: nn.Module) -> Iterator[list[Call]]:
    """Record the calls of the leaf layers in a `with` block, in the order of the forward pass."""
    calls: list[Call] = []

    def observer(name: str, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
        forward = layer.forward

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            before = copy.deepcopy(layer)
            del vars(before)["forward"]
            y, backward = forward(x, train)
            call = Call(name, before, x, y, train)
            calls.append(call)

            def keep(dy: Any, need_dx: bool = True) -> Any:
                call.dy = dy
                return backward(dy, need_dx)

            return y, keep

        return observed

    with observing(model, observer):
        yield calls


def layer_reference(call: Call, dtype: str) -> Reference | None:
    """Return the reference of a call of a layer of a single op; None for other layers."""
    layer: Any = copy.deepcopy(call.layer)
    if not isinstance(layer, nn.Layer):
        known = called(layer)
        if known is None or not type(layer).forward.__module__.startswith("xcnn.nn."):
            return None
        op, _, options = known
        if isinstance(layer, nn.Apply):
            options |= {"training": call.train} if "training" in options else {}
            names, several = OPS[op].arrays, isinstance(call.x, tuple | list)
            if OPS[op].variadic:
                arrays = {names[0]: list(call.x)}
            else:
                arrays = dict(zip(names, call.x, strict=False)) if several else {names[0]: call.x}
            numbers = {name: np.asarray(options.pop(name)) for name in names if name in options}
            wanted = reference(op, arrays | numbers, options, call.gradient, dtype)
            for name in numbers:  # which have no gradient
                wanted.tensors.pop(f"d{name}", None)
            return wanted
        arrays = {"x": list(call.x)}
        return reference(op, arrays, {}, call.gradient, dtype, lambda arrays: layer.forward(tuple(arrays["x"])))
    seen: list[tuple[Any, dict[str, Any], Any]] = []

    def spy(x: Any, **arguments: Any) -> Any:
        given = copy.deepcopy(arguments)  # before dropout advances its generator
        y, backward = type(layer)._op(x, **arguments)
        seen.append((x, given, y[0] if type(y) is tuple else y))
        return y, backward

    vars(layer)["_op"] = spy  # shadows the op of this instance only
    y, _ = layer.forward(call.x, call.train)
    if len(seen) != 1 or seen[0][0] is not call.x or seen[0][2] is not y:
        return None
    op, options = type(layer)._op.__name__, seen[0][1]
    arrays = {"x": call.x} | {name: options.pop(name) for name in OPS[op].arrays[1:]}
    return reference(op, arrays, options, call.gradient, dtype)


def _run(call: Call, wanted: Reference, device: Device) -> dict[str, Any]:
    """Run a layer forward and backward on a device; return its results and gradients by name, on the host."""
    dtype, layer = wanted.dtype, copy.deepcopy(call.layer).to(device, wanted.dtype)
    several = isinstance(call.x, tuple | list)
    names: list[str] = []
    inputs: list[Any] = []
    for name, array in wanted.call.arrays.items():
        if array is None:
            continue
        many = isinstance(array, list)
        names += [f"d{name}[{i}]" for i in range(len(array))] if many else [f"d{name}"]
        inputs += array if many else [array]
    with device.active():
        placed = tuple(place(array, device, dtype) for array in (inputs if several else inputs[:1]))
        y, backward = layer.forward(placed if several else placed[0], call.train)
        dx = backward(place(wanted.call.dy, device, dtype))
    found = {"y": y, **dict(zip(names, dx if several else (dx,), strict=False))}
    found |= {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    found |= {name: slot.data for name, slot in vars(layer).items() if isinstance(slot, Buffer)}
    return {name: device.to_numpy(array) for name, array in found.items() if array is not None}
