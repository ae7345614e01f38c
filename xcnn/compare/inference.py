"""The errors of inference: of each layer in ONNX Runtime, and of whole networks on any device.

ONNX Runtime computes no gradients, and only float32 here. Each layer is exported in its inference form, alone, and run
on the input that it has in a float64 run of the network, rounded to float32.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import nn, onnx
from xcnn._dispatch import portable
from xcnn.compare.budget import WIDE, Expected, error, errors
from xcnn.compare.finding import Finding
from xcnn.compare.layers import Call, layer_reference, traced
from xcnn.compare.op import place
from xcnn.compare.scales import Scale
from xcnn.devices import Device
from xcnn.errors import UsageError

__all__ = ["NETWORK", "RUNTIME", "Runtime", "inference_errors", "network_errors"]

RUNTIME = "onnxruntime"
"""The name of ONNX Runtime in lists of devices."""

NETWORK = "network"
"""What stands for the op in the finding of a whole network."""


@dataclass(frozen=True)
class Runtime:
    """ONNX Runtime on the CPU, which stands beside devices where networks are compared in inference.

    Attributes
    ----------
    name, summary : as of a device.

    Raises
    ------
    UsageError
        If onnx or onnxruntime is not installed.
    """

    name: str = RUNTIME

    def __post_init__(self) -> None:
        onnx.package("onnx")
        onnx.package(RUNTIME)

    @property
    def summary(self) -> str:
        """One line that describes it."""
        return f"ONNX Runtime {onnx.package(RUNTIME).__version__} on the CPU, inference only"

    def run(self, model: nn.Module, x: Any) -> Any:
        """Return the output of a network in float32 for host arrays."""
        several = isinstance(x, tuple)
        shape = tuple(one.shape[1:] for one in x) if several else x.shape[1:]
        session = onnx.Session(onnx.to_model(copy.deepcopy(model).to("cpu", "float32"), shape))
        return session(*(one.astype(np.float32) for one in (x if several else (x,))))


def inference_errors(
    model: nn.Module, x: np.ndarray, runtime: Runtime, tell: Callable[[str], object] = lambda message: None
) -> Iterator[Finding]:
    """Yield the error of y of every layer in ONNX Runtime.

    Parameters
    ----------
    model : the network, on the host; it is not changed.
    x : batch of inputs, on the host.
    runtime : ONNX Runtime.
    tell : called with a sentence for each layer that cannot be exported alone.
    """
    model = copy.deepcopy(model).to("cpu", "float64")
    with traced(model) as calls:
        model(x.astype(np.float64))
    for call in calls:
        if (wanted := layer_reference(call, "float32")) is None:
            continue
        try:
            y = runtime.run(*_alone(call, len(x)))
        except UsageError as refusal:
            tell(f"{call.name} is left out on {runtime.name}: {refusal}")
            continue
        wanted = dataclasses.replace(wanted, tensors={"y": wanted.tensors["y"]})
        for found in errors(wanted, {"y": y}):
            yield Finding(call.name, type(call.layer).__name__, wanted.op, runtime.name, "float32", found)


def _alone(call: Call, batch: int) -> tuple[nn.Module, Any]:
    """Return a layer and its input; inputs without a batch axis, such as parameters, become parts of a graph."""
    if not isinstance(call.x, tuple | list):
        return call.layer, call.x
    named = {f"x{i}": array for i, array in enumerate(call.x)}
    free = tuple(name for name, array in named.items() if array.ndim == call.y.ndim and len(array) == batch)
    if len(free) in (0, len(named)):
        return call.layer, tuple(call.x)
    held = [(name, nn.Buffer(array), ()) for name, array in named.items() if name not in free]
    graph = nn.Graph([*held, ("y", call.layer, tuple(named))], inputs=free if len(free) > 1 else free[0])
    return graph, tuple(named[name] for name in free) if len(free) > 1 else named[free[0]]


def network_errors(
    model: nn.Module,
    x: np.ndarray,
    devices: Sequence[Device | Runtime],
    dtype: str = "float32",
    tell: Callable[[str], object] = lambda message: None,
) -> Iterator[Finding]:
    """Yield the error of the output of a whole network in inference on every device, against a wider dtype.

    The unit of error is eps times the largest magnitude of the output. The bound is ten times the error of the portable
    code on NumPy, and 100.

    Parameters
    ----------
    model : the network, on the host; it is not changed.
    x : batch of inputs, on the host.
    devices : devices to run on.
    dtype : `"float32"` or `"float64"`.
    tell : called with a sentence if the network cannot be exported.
    """
    x = x.astype(dtype)
    with portable(np):
        wide = copy.deepcopy(model).to("cpu", "float64")
        if WIDE[dtype] is not np.float64:
            _widen(wide, WIDE[dtype])
        wanted = _outputs(wide(x.astype(WIDE[dtype])))
        own = _outputs(copy.deepcopy(model).to("cpu", dtype)(x))
    scales = [Scale(float(np.max(np.abs(y), initial=0.0)), 1) for y in wanted]
    bounds = [
        100 + 10 * error("y", Expected(y, scale, 1.0), mine, dtype).units
        for y, scale, mine in zip(wanted, scales, own, strict=True)
    ]
    for device in devices:
        if isinstance(device, Runtime):
            try:
                got = _outputs(device.run(model, x))
            except UsageError as refusal:
                tell(f"the network is left out on {device.name}: {refusal}")
                continue
        else:
            with device.active():
                y = copy.deepcopy(model).to(device, dtype)(place(x, device, dtype))
                got = [device.to_numpy(one) for one in _outputs(y)]
        for i, (y, scale, bound) in enumerate(zip(wanted, scales, bounds, strict=True)):
            found = error(f"y{i or ''}", Expected(y, scale, bound), got[i] if i < len(got) else None, dtype)
            yield Finding(NETWORK, type(model).__name__, NETWORK, device.name, dtype, found)


def _outputs(y: Any) -> list[Any]:
    return list(y) if isinstance(y, tuple) else [y]


def _widen(model: nn.Module, dtype: Any) -> None:
    """Convert floating-point parameters and buffers to a dtype that `Module.to` does not have."""
    for slot in (*model.parameters(), *(buffer for _, buffer in model.named_buffers())):
        slot.data = slot.data.astype(dtype) if slot.data.dtype.kind == "f" else slot.data
