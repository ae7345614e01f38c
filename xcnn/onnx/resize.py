"""ONNX's Resize and Upsample: a layer of ours where there is one, else a product with a matrix along each axis."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.onnx.call import Call, Unsupported
from xcnn.onnx.operators import operator
from xcnn.onnx.operators_shapes import along

__all__: list[str] = []


@dataclass(frozen=True)
class _Axis:
    """How one axis changes: its place, its size before and after, and the factor between them."""

    place: int
    size: int
    out: int
    scale: float


@dataclass(frozen=True)
class _How:
    """The options of Resize that say which pixels make one, with the names of the operator."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude: bool
    antialias: bool

    def places(self, axis: _Axis) -> np.ndarray:
        """Return where on the old axis the centres of the new pixels lie."""
        i, size, scale = np.arange(axis.out), axis.size, axis.scale
        match self.coordinates:
            case "half_pixel":
                return (i + 0.5) / scale - 0.5
            case "pytorch_half_pixel":
                return (i + 0.5) / scale - 0.5 if axis.out > 1 else i * 0.0
            case "half_pixel_symmetric":
                return size / 2 * (1 - axis.out / (scale * size)) + (i + 0.5) / scale - 0.5
            case "asymmetric":
                return i / scale
            case "align_corners":
                return i * (size - 1) / (scale * size - 1) if axis.out > 1 else i * 0.0
        raise Unsupported(f"its coordinates are {self.coordinates!r}")

    def taken(self, axis: _Axis) -> np.ndarray:
        """Return the pixels that the mode `nearest` takes."""
        if self.rounding not in _ROUNDED:
            raise Unsupported(f"its nearest_mode is {self.rounding!r}")
        pixels: np.ndarray = np.clip(_ROUNDED[self.rounding](self.places(axis)), 0, axis.size - 1).astype(int)
        return pixels

    def matrix(self, axis: _Axis) -> np.ndarray:
        """Return the shares of the old pixels (columns) in the new ones (rows)."""
        matrix = np.zeros((axis.out, axis.size))
        rows = np.arange(axis.out)[:, None]
        if self.mode == "nearest":
            matrix[rows, self.taken(axis)[:, None]] = 1.0
            return matrix
        if self.mode not in ("linear", "cubic"):
            raise Unsupported(f"its mode is {self.mode!r}")
        stretch = min(axis.scale, 1.0) if self.antialias else 1.0
        reach = math.ceil((1 if self.mode == "linear" else 2) / stretch)
        places = self.places(axis)[:, None]
        pixels = np.floor(places).astype(int) + np.arange(-reach, reach + 1)
        shares = self._kernel(np.abs(pixels - places) * stretch)
        if self.exclude:
            shares = shares * ((pixels >= 0) & (pixels < axis.size))
        np.add.at(matrix, (rows, np.clip(pixels, 0, axis.size - 1)), shares)
        matrix /= matrix.sum(1, keepdims=True)
        return matrix

    def _kernel(self, t: np.ndarray) -> np.ndarray:
        """Return the weight of a pixel at a distance of t; for `cubic`, that of Keys 1981."""
        a = self.cubic
        near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((t - 5) * t + 8) * t * a - 4 * a
        weights: np.ndarray = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        return np.maximum(1 - t, 0.0) if self.mode == "linear" else weights


_ROUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}

_NEAREST: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "nearest": lambda i, step: i * step,
    "nearest-exact": lambda i, step: (i + 0.5) * step,
}
"""The places that our modes of interpolation take, before they are rounded down."""


def _mode(how: _How, axes: list[_Axis], rank: int) -> dict[str, Any] | None:
    """Return the options of our layer that does the same, or None."""
    if how.antialias:
        return None
    if how.mode == "nearest":
        for mode, places in _NEAREST.items():
            ours = [np.minimum(np.floor(places(np.arange(a.out), 1 / a.scale)), a.size - 1) for a in axes]
            if all(np.array_equal(pixels, how.taken(axis)) for pixels, axis in zip(ours, axes, strict=True)):
                return {"mode": mode}
        return None
    corners = how.coordinates == "align_corners"
    half = how.coordinates in ("half_pixel", "pytorch_half_pixel")
    same = all(abs(a.scale * a.size - a.out) < 1e-6 if corners else a.out > 1 or a.size == 1 for a in axes)
    if how.mode != "linear" or how.exclude or not (corners or half) or not same:
        return None
    return {"mode": ("linear", "bilinear", "trilinear")[rank - 3], "align_corners": corners}


@operator("Resize", "Upsample")
def _resize(call: Call) -> str:
    rank, sizes, outs = call.rank(), call.shape(), call.result()
    old = call.op == "Upsample" or call.opset < 11
    how = _How(
        call.option("mode", "nearest"),
        "asymmetric" if old else call.option("coordinate_transformation_mode"),
        "floor" if old else call.option("nearest_mode"),
        call.option("cubic_coeff_a", -0.75),
        bool(call.option("exclude_outside", 0)),
        bool(call.option("antialias", 0)),
    )
    named = [call.axis(axis) for axis in call.option("axes") or range(rank)]
    scales = call.option("scales") or []
    if scales and len(scales) != len(named):
        raise Unsupported(f"its scales must be {len(named)} numbers, got {scales}")
    factors = dict(zip(named, scales, strict=False))
    axes, maps = [], tuple(factors.get(k, 1.0) for k in range(2, rank))
    for k, (size, out) in enumerate(zip(sizes, outs, strict=True)):
        if size is not None and out is not None and size > 0:
            axes.append(_Axis(k, size, out, factors.get(k, out / size)))
    ours = 3 <= rank <= 5 and sizes[:2] == outs[:2]
    if len(axes) < rank - (sizes[0] is None):
        if not ours or (how.mode, how.coordinates, how.rounding) != ("nearest", "asymmetric", "floor") or not scales:
            raise Unsupported("it depends on sizes that the file leaves open; give the shape of the input")
        return call.add(nn.Upsample(scale_factor=maps))
    for axis in axes:
        call.network.budget.take((axis.out, 64), 8)
    options = _mode(how, axes[-(rank - 2) :], rank) if ours else None
    if options is not None:
        target: dict[str, Any] = {"scale_factor": maps} if scales else {"size": tuple(outs[2:])}
        return call.add(nn.Upsample(**target, **options))
    changed = [axis for axis in axes if axis.out != axis.size or axis.scale != 1]
    node = call.input()
    for axis in changed:
        call.network.budget.take((axis.out, axis.size), 16)
        node = along(call, node, axis.place, how.matrix(axis), "" if axis is changed[-1] else str(axis.place))
    return node
