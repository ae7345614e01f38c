"""What feeds a neuron: the numbers of the layer before it from which its value is computed, and how."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn import nn
from xcnn._array import is_array
from xcnn.devices import to_numpy
from xcnn.explain import Call
from xcnn.nn._calls import calls
from xcnn.ops._formula import FORMULAS
from xcnn.ops._window import window_axes
from xcnn.ops.pool import pool_axes

__all__ = ["Array", "Feeds", "feeds"]

Array = npt.NDArray[Any]
Feeds = tuple[dict[str, Any], dict[str, Array]]

_MOVED = ("flatten", "unflatten", "reshape")
_ADAPTIVE = ("global_avg_pool", "global_max_pool", "adaptive_avg_pool2d", "adaptive_max_pool2d")
_SAME = {"prelu", "power", "negative", "stochastic_depth", "dropout", "dropout1d", "dropout2d", "dropout3d", *FORMULAS}
_SAME |= {"add", "subtract", "multiply", "divide", "maximum", "minimum"}


def feeds(call: Call, index: tuple[int, ...]) -> Feeds:
    """Return what a neuron is computed from.

    Parameters
    ----------
    call : the call of its layer, for one example.
    index : its place in the output without the batch axis.

    Returns
    -------
    what : `kind` says how the numbers belong together:

        - `conv`: `window` times `weight` is `products`, (channels, rows, columns); their sum and `bias`, if not None,
          are the value. The window begins at `start` (row, column) of the maps of `size` (h, w), maybe in the padding,
          on the channels from `first` on, and has the spacing `dilation`.
        - `linear`: the same with vectors.
        - `max`, `mean`: of `window` (rows, columns), NaN outside the map; with `start` and `dilation` as above.
        - `norm`: `(inputs[0] - mean) / deviation * weight + bias`.
        - `same`: computed from the numbers `inputs` at the same place of the layer's inputs.
        - `moved`: the number `inputs[0]` at the place `source` of the layer's input.
        - `other`: from more than fits here.
    arrays : the arrays that `kind` names.
    """
    module: Any = call.module
    name, options = ("identity", {}) if type(module) is nn.Identity else calls(module) or ("", {})
    arrays = call.x if isinstance(call.x, tuple | list) else [call.x]
    inputs = [to_numpy(x)[0] for x in arrays if is_array(x) and x.ndim]
    alone, x = is_array(call.x), inputs[0] if inputs else np.zeros(0)
    if options.get("activation") is not None:
        return {"kind": "other"}, {}
    if alone and name == "conv2d" and x.ndim == 3:
        return _conv(module, options, x, index)
    if alone and name == "linear" and x.ndim == 1:
        weight = to_numpy(module.weight.data)[index[0]]
        found = {"window": x, "weight": weight, "products": x * weight}
        return {"kind": "linear", "bias": _bias(module, index[0])}, found
    if alone and name in _ADAPTIVE and x.ndim == 3:
        return _adaptive(name, x, index, tuple(call.y.shape[2:]))
    if alone and name in ("max_pool2d", "avg_pool2d") and x.ndim == 3 and options.get("divisor_override") is None:
        return _pool(name, options, x, index)
    if alone and name in _MOVED and x.size == math.prod(call.y.shape[1:]):
        at = np.ravel_multi_index(index, tuple(call.y.shape[1:]))
        source = tuple(map(int, np.unravel_index(at, x.shape)))
        return {"kind": "moved", "inputs": [float(x[source])], "source": source}, {}
    if any(one.shape != tuple(call.y.shape[1:]) for one in inputs):
        return {"kind": "other"}, {}
    if alone and name == "batch_norm" and not options["training"]:
        return _norm(module, float(x[index]), index[0]), {}
    if alone and type(module) is nn.Normalize:
        mean, std = (float(values[index[0]]) for values in (module.mean, module.std))  # type: ignore[index]
        constants = {"mean": mean, "deviation": std, "weight": 1.0, "bias": 0.0}
        return {"kind": "norm", "inputs": [float(x[index])], **constants}, {}
    if name == "identity" or name in _SAME:
        return {"kind": "same", "inputs": [float(one[index]) for one in inputs]}, {}
    return {"kind": "other"}, {}


def _bias(module: Any, channel: int) -> float | None:
    return None if module.bias is None else float(to_numpy(module.bias.data)[channel])


def _cut(x: Any, axes: Any, place: tuple[int, ...], padding: float) -> tuple[Array, list[int], list[int]]:
    """Return the window of maps (c, h, w) from which the output at a place is computed, its start and its spacing.

    What a pool's `ceil_mode` adds to the padding is NaN.
    """
    window: Any = np.full((x.shape[0], *(axis.kernel for axis in axes)), padding, x.dtype)
    starts = [at * axis.stride - axis.before for at, axis in zip(place, axes, strict=True)]
    for taps in itertools.product(*(range(axis.kernel) for axis in axes)):
        at = [start + tap * axis.dilation for start, tap, axis in zip(starts, taps, axes, strict=True)]
        if all(0 <= i < axis.size for i, axis in zip(at, axes, strict=True)):
            window[(slice(None), *taps)] = x[(slice(None), *at)]
        elif any(i >= axis.size + axis.after - axis.grown for i, axis in zip(at, axes, strict=True)):
            window[(slice(None), *taps)] = np.nan
    return window, starts, [axis.dilation for axis in axes]


def _conv(module: Any, options: dict[str, Any], x: Array, index: tuple[int, ...]) -> Feeds:
    weights = to_numpy(module.weight.data)
    weight = weights[index[0]]
    how = options["stride"], options["padding"], options["dilation"]
    axes = window_axes("conv2d", x.shape[1:], weight.shape[1:], *how)
    first = index[0] // (len(weights) // options["groups"]) * len(weight)
    window, start, dilation = _cut(x[first : first + len(weight)], axes, index[1:], 0.0)
    what = {"kind": "conv", "bias": _bias(module, index[0]), "first": first, "start": start, "dilation": dilation}
    what["size"] = list(x.shape[1:])
    return what, {"window": window, "weight": weight, "products": window * weight}


def _pool(name: str, options: dict[str, Any], x: Array, index: tuple[int, ...]) -> Feeds:
    how = (options[key] for key in ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))
    axes = pool_axes(name, x.shape[1:], *how)
    counted = name == "avg_pool2d" and options["count_include_pad"]
    window, start, dilation = _cut(x[index[0]][None], axes, index[1:], 0.0 if counted else np.nan)
    return {"kind": _reduced(name), "start": start, "dilation": dilation}, {"window": window[0]}


def _adaptive(name: str, x: Array, index: tuple[int, ...], sizes: tuple[int, ...]) -> Feeds:
    """Return the part of a map that a pool with a given number of outputs joins, all of it if there are no sizes."""
    places = zip(index[1:] or (0, 0), sizes or (1, 1), x.shape[1:], strict=True)
    rows, columns = (slice(i * n // out, -(-(i + 1) * n // out)) for i, out, n in places)
    what = {"kind": _reduced(name), "start": [rows.start, columns.start], "dilation": [1, 1]}
    return what, {"window": x[index[0], rows, columns]}


def _reduced(name: str) -> str:
    return "max" if "max" in name else "mean"


def _norm(module: Any, value: float, channel: int) -> dict[str, Any]:
    mean, variance = (float(to_numpy(s.data)[channel]) for s in (module.running_mean, module.running_var))
    scale, shift = (
        default if slot is None else float(to_numpy(slot.data)[channel])
        for slot, default in ((module.weight, 1.0), (module.bias, 0.0))
    )
    deviation = (variance + module.eps) ** 0.5
    return {"kind": "norm", "inputs": [value], "mean": mean, "deviation": deviation, "weight": scale, "bias": shift}
