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
from xcnn.compare.op import op_name, place, run_op
from xcnn.compare.scales import Arrays
from xcnn.devices import Device
from xcnn.nn._layer import Layer
from xcnn.nn._observe import observing
from xcnn.ops._op import OPS
from xcnn.parameter import Buffer

__all__ = ["layer_errors"]

_JOINS: dict[type[nn.Module], str] = {nn.Add: "add", nn.Concat: "concat"}
"""The ops of the layers that take several arrays."""


@dataclass
class _Call:
    """A call of a leaf layer in the float64 run: the layer before the call, its input, and the gradient of y."""

    name: str
    layer: nn.Module
    x: Any
    dy: Any = None

    def gradient(self, shape: tuple[int, ...]) -> Any:
        return self.dy


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
    with _traced(model) as calls:
        y, backward = model.forward(x.astype(np.float64), train=True)
        _, loss_backward = OPS[loss].function(y, target)
        backward(loss_backward()[0])
    for call in calls:
        if (known := _single_op(call)) is None:
            continue
        op, arrays, options, function = known
        wanted = reference(op, arrays, options, call.gradient, dtype, function)
        for device in devices:
            for error in errors(wanted, _run(call, wanted, device)):
                yield Finding(call.name, type(call.layer).__name__, op, device.name, dtype, error)
    wanted = reference(loss, {"x": y, "target": target}, {}, np.ones, dtype)
    for device in devices:
        for error in errors(wanted, run_op(wanted, device)):
            yield Finding("loss", loss, loss, device.name, dtype, error)


@contextlib.contextmanager
def _traced(model: nn.Module) -> Iterator[list[_Call]]:
    """Record the calls of the leaf layers in a `with` block, in the order of the forward pass."""
    calls: list[_Call] = []

    def observer(name: str, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
        forward = layer.forward

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            before = copy.deepcopy(layer)
            del vars(before)["forward"]
            call = _Call(name, before, x)
            calls.append(call)
            y, backward = forward(x, train)

            def keep(dy: Any, need_dx: bool = True) -> Any:
                call.dy = dy
                return backward(dy, need_dx)

            return y, keep

        return observed

    with observing(model, observer):
        yield calls


def _single_op(call: _Call) -> tuple[str, Arrays, dict[str, Any], Callable[[Arrays], Any] | None] | None:
    """Return the `op`, `arrays`, `options` and `function` of `reference` for a layer of a single op, else None."""
    layer: Any = copy.deepcopy(call.layer)
    if call.dy is None:
        return None
    for join, op in _JOINS.items():
        if isinstance(layer, join) and type(layer).forward is join.forward:
            return op, {"x": list(call.x)}, {}, lambda arrays: layer.forward(tuple(arrays["x"]))
    if not isinstance(layer, Layer):
        return None
    seen: list[tuple[Any, dict[str, Any], Any]] = []

    def spy(x: Any, **arguments: Any) -> Any:
        given = copy.deepcopy(arguments)  # before dropout advances its generator
        y, backward = type(layer)._op(x, **arguments)
        seen.append((x, given, y[0] if type(y) is tuple else y))
        return y, backward

    vars(layer)["_op"] = spy  # shadows the op of this instance only
    y, _ = layer.forward(call.x)
    if len(seen) != 1 or seen[0][0] is not call.x or seen[0][2] is not y:
        return None
    op, options = type(layer)._op.__name__, seen[0][1]
    return op, {"x": call.x} | {name: options.pop(name) for name in OPS[op].arrays[1:]}, options, None


def _run(call: _Call, wanted: Reference, device: Device) -> dict[str, Any]:
    """Run a layer forward and backward on a device; return its results and gradients by name, on the host."""
    dtype, x = wanted.dtype, wanted.call.arrays["x"]
    layer, several = copy.deepcopy(call.layer).to(device, dtype), isinstance(x, list)
    with device.active():
        y, backward = layer.forward(tuple(place(a, device, dtype) for a in x) if several else place(x, device, dtype))
        dx = backward(place(wanted.call.dy, device, dtype))
    found = {"y": y} | ({f"dx[{i}]": one for i, one in enumerate(dx)} if several else {"dx": dx})
    found |= {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    found |= {name: slot.data for name, slot in vars(layer).items() if isinstance(slot, Buffer)}
    return {name: device.to_numpy(array) for name, array in found.items() if array is not None}
