"""What feeds a neuron: the numbers of the layer before it from which its value is computed, and how."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn import nn
from xcnn._array import is_array
from xcnn.devices import to_numpy
from xcnn.explain import Call
from xcnn.nn.norms import BatchNorm1d, BatchNorm2d, BatchNorm3d
from xcnn.ops._window import window_axes

__all__ = ["Array", "Feeds", "feeds"]

Array = npt.NDArray[Any]
Feeds = tuple[dict[str, Any], dict[str, Array]]

_MAX, _MEAN = (nn.MaxPool2d, nn.GlobalMaxPool), (nn.AvgPool2d, nn.GlobalAvgPool)


def feeds(call: Call, index: tuple[int, ...]) -> Feeds:
    """Return what a neuron is computed from.

    Parameters
    ----------
    call : the call of its layer, for one example.
    index : its place in the output without the batch axis.

    Returns
    -------
    what : `kind` says how the numbers belong together:

        - `conv`: `window` times `weight` is `products`, (channels, rows, columns); their sum and `bias` are the value;
          `biased` says whether the layer has one.
          The window begins at `start` (row, column) of the maps of `size` (h, w), maybe in the padding, on the channels
          from `first` on, and has the spacing `dilation`.
        - `linear`: the same with vectors.
        - `max`, `mean`: of `window` (rows, columns), NaN outside the map; with `start` and `dilation` as above.
        - `norm`: `(inputs[0] - mean) / deviation * weight + bias`.
        - `same`: computed from the numbers `inputs` at the same place of the layer's inputs.
        - `moved`: the number `inputs[0]` at the place `source` of the layer's input.
        - `other`: from more than fits here.
    arrays : the arrays that `kind` names.
    """
    module = call.module
    if not is_array(call.x):
        shared = [to_numpy(x)[0] for x in call.x if is_array(x) and tuple(x.shape) == tuple(call.y.shape)]
        same = len(shared) == len(call.x) and bool(shared)
        return ({"kind": "same", "inputs": [float(x[index]) for x in shared]} if same else {"kind": "other"}), {}
    x = to_numpy(call.x)[0]
    if isinstance(module, nn.Conv2d) and x.ndim == 3:
        return _conv(module, x, index)
    if isinstance(module, nn.Linear) and x.ndim == 1:
        weight = to_numpy(module.weight.data)[index[0]]
        arrays = {"window": x, "weight": weight, "products": x * weight}
        return {"kind": "linear", **_bias(module, index[0])}, arrays
    if isinstance(module, _MAX + _MEAN) and x.ndim == 3:
        return _pool(module, x, index)
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        source = tuple(map(int, np.unravel_index(index[0], x.shape)))
        return {"kind": "moved", "inputs": [float(x[source])], "source": source}, {}
    if x.shape != tuple(call.y.shape[1:]):
        return {"kind": "other"}, {}
    if isinstance(module, BatchNorm1d | BatchNorm2d | BatchNorm3d) and module.running_var is not None:
        return _norm(module, float(x[index]), index[0]), {}
    if isinstance(module, nn.Normalize):
        mean, std = (np.ravel(values)[index[0]] for values in (module.mean, module.std))
        constants = {"mean": float(mean), "deviation": float(std), "weight": 1.0, "bias": 0.0}
        return {"kind": "norm", "inputs": [float(x[index])], **constants}, {}
    alone = not any(True for _ in module.named_parameters()) and not isinstance(module, nn.Softmax)
    return ({"kind": "same", "inputs": [float(x[index])]} if alone else {"kind": "other"}), {}


def _bias(module: Any, channel: int) -> dict[str, float | bool]:
    biased = module.bias is not None
    return {"bias": float(to_numpy(module.bias.data)[channel]) if biased else 0.0, "biased": biased}


def _cut(x: Any, axes: Any, place: tuple[int, ...], outside: float) -> tuple[Array, list[int], list[int]]:
    """Return the window of maps (c, h, w) from which the output at a place is computed, its start and its spacing."""
    window = np.full((x.shape[0], *(axis.kernel for axis in axes)), outside, x.dtype)
    starts = [at * axis.stride - axis.before for at, axis in zip(place, axes, strict=True)]
    for r, s in itertools.product(*(range(axis.kernel) for axis in axes)):
        y, z = (start + tap * axis.dilation for start, tap, axis in zip(starts, (r, s), axes, strict=True))
        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
            window[:, r, s] = x[:, y, z]
    return window, starts, [axis.dilation for axis in axes]


def _conv(module: nn.Conv2d, x: Array, index: tuple[int, ...]) -> Feeds:
    options = module.stride, module.padding, module.dilation
    axes = window_axes("Conv2d", x.shape[1:], module.kernel_size, *options)
    weight = to_numpy(module.weight.data)[index[0]]
    first = index[0] // (module.out_channels // module.groups) * len(weight)
    window, start, dilation = _cut(x[first : first + len(weight)], axes, index[1:], 0.0)
    what = {"kind": "conv", **_bias(module, index[0]), "first": first, "start": start, "dilation": dilation}
    what["size"] = list(x.shape[1:])
    return what, {"window": window, "weight": weight, "products": window * weight}


def _pool(module: Any, x: Array, index: tuple[int, ...]) -> Feeds:
    kind, x = "max" if isinstance(module, _MAX) else "mean", x[index[0]][None]
    if isinstance(module, nn.GlobalAvgPool | nn.GlobalMaxPool):
        return {"kind": kind, "start": [0, 0], "dilation": [1, 1]}, {"window": x[0]}
    _, _, options = module.bound()
    kernel = options["kernel_size"]
    kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    stride = kernel if options["stride"] is None else options["stride"]
    rest = options["padding"], options.get("dilation", 1), options["ceil_mode"]
    axes = window_axes("MaxPool2d", x.shape[1:], kernel, stride, *rest)
    padded = kind == "mean" and options.get("count_include_pad", True)
    window, start, dilation = _cut(x, axes, index[1:], 0.0 if padded else np.nan)
    return {"kind": kind, "start": start, "dilation": dilation}, {"window": window[0]}


def _norm(module: Any, value: float, channel: int) -> dict[str, Any]:
    mean, variance = (float(to_numpy(s.data)[channel]) for s in (module.running_mean, module.running_var))
    scale, shift = (
        default if slot is None else float(to_numpy(slot.data)[channel])
        for slot, default in ((module.weight, 1.0), (module.bias, 0.0))
    )
    deviation = (variance + module.eps) ** 0.5
    return {
        "kind": "norm", "inputs": [value], "mean": mean, "deviation": deviation, "weight": scale, "bias": shift
    }  # fmt: skip
