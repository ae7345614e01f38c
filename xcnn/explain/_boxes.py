"""How the boxes of receptive fields pass through each op.

Every number has a box, its first and last index along each axis of the input. The boxes of a layer are computed from
those of its input: a window takes the smallest first and the largest last index of what it covers, and so does a sum.
If the first indices are stored with the opposite sign, all of this is one operation, the maximum.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from xcnn._array import Array, is_array
from xcnn.explain.trace import Call
from xcnn.nn import Identity, Normalize
from xcnn.nn._calls import calls
from xcnn.ops._formula import FORMULAS
from xcnn.ops._op import OPS
from xcnn.ops._window import Axes, along, resized, transposed_axes, window_axes
from xcnn.ops.pool import pool_axes

__all__ = ["Line", "Reach", "image", "nothing", "passed", "whole"]

_Windows = Iterable[tuple[int | Fraction, int | Fraction, int | Fraction]]
"""Of a line, for each axis: how many numbers a window covers, how many are from one to the next, and before the first.

Behind upsampling, windows may be a fraction apart.
"""


class Line(NamedTuple):
    """The boxes along one axis if they have one size and distance: number i sees `start + i * jump` and on.

    They are not cut at the border of the image.
    """

    size: int | Fraction
    jump: int | Fraction
    start: int | Fraction


class Reach(NamedTuple):
    """The boxes of an array (1, c, ...).

    Attributes
    ----------
    ends : (2 * axes, c, ...), for each axis of the input the negative of the first index, and the index after the last;
        -inf for no index. An axis of size 1 stands for equal numbers.
    lines : the boxes along each axis of maps in step with the image; None of other arrays.
    exact : False if unknown code came before, which may use all of its input, and so is taken to.
    """

    ends: Array
    lines: tuple[Line, ...] | None
    exact: bool = True


def image(sizes: tuple[int, ...]) -> Reach:
    """Return the boxes of the input: each pixel sees itself."""
    grid = np.indices(sizes, dtype=np.float32)
    ends = np.stack([end for index in grid for end in (-index, index + 1)])[:, None]
    return Reach(ends, (Line(1, 1, 0),) * len(sizes))


def whole(y: Array, sizes: tuple[int, ...]) -> Reach:
    """Return the boxes of an array of which nothing is known."""
    ends = np.asarray([end for size in sizes for end in (0, size)], np.float32)
    return Reach(ends.reshape(-1, *(1,) * (y.ndim - 1)), None, exact=False)


def nothing(y: Array, sizes: tuple[int, ...]) -> Reach:
    """Return the boxes of an array that does not depend on the input."""
    return Reach(np.full((2 * len(sizes), *(1,) * (y.ndim - 1)), -np.inf, np.float32), None)


def passed(call: Call, y: Array, known: Mapping[int, Reach | None], sizes: tuple[int, ...]) -> Reach | None:
    """Return the boxes of the output y of a layer from those that are known by the id of an array.

    None stands for an array that does not depend on the input.
    """
    arrays = [x for x in (call.x if isinstance(call.x, tuple | list) else [call.x]) if is_array(x)]
    found = [(x, known.get(id(x), whole(x, sizes))) for x in arrays]
    taken = [(x, reach) for x, reach in found if reach is not None]
    if not taken:
        return None
    plain = isinstance(call.module, Identity | Normalize)
    name, options = ("identity", {}) if plain else calls(call.module, watched=True) or ("", {})
    rule = _RULES.get(name)
    if rule is None or y is not call.y or y.shape[0] != 1 or any(x.ndim < 2 for x, _ in taken):
        return whole(y, sizes)
    inputs = [one._replace(ends=np.broadcast_to(one.ends, (len(one.ends), *x.shape[1:]))) for x, one in taken]
    made = rule(_Layer(call, name, options, inputs))
    if made is None or made.ends.ndim != y.ndim:
        return whole(y, sizes)
    ends = made.ends
    if ends.shape[1] > 1 and bool((ends == ends[:, :1]).all()):
        ends = ends[:, :1]
    return Reach(ends, made.lines, all(reach.exact for _, reach in taken))


class _Layer(NamedTuple):
    """A call of a layer, its op with the options, and the boxes of those of its inputs that depend on the image.

    These have an entry for each number, so that their shapes are those of the arrays, but for the first axis.
    """

    call: Call
    name: str
    options: dict[str, Any]
    inputs: list[Reach]

    @property
    def ends(self) -> Array:
        return self.inputs[0].ends

    @property
    def lines(self) -> tuple[Line, ...] | None:
        return self.inputs[0].lines

    @property
    def kernel(self) -> tuple[int, ...]:
        """The shape of the weight."""
        held = getattr(self.call.module, "weight", None)
        return tuple(map(int, (self.call.x[1] if held is None else held.data).shape))

    def moved(self, **options: Any) -> Array:
        """Return the boxes of what an op moves without computing."""
        y, _ = OPS[self.name].function(np.ascontiguousarray(self.ends), **self.options | options)
        return np.asarray(y)

    def windows(self, ends: Array, windows: _Windows) -> Reach:
        """Return the boxes of windows of maps, and their lines: the closed form."""
        made = [
            Line(size + (extent - 1) * jump, stride * jump, start - before * jump)
            for (size, jump, start), (extent, stride, before) in zip(self.lines or (), windows, strict=False)
        ]
        return Reach(ends, tuple(made) if len(made) == ends.ndim - 2 else None)


_Rule = Callable[[_Layer], Reach | None]


def _same(layer: _Layer) -> Reach:
    """Each number sees what its own place in the inputs does; with several inputs, the shapes broadcast."""
    rank = max(reach.ends.ndim for reach in layer.inputs)
    ends = [one.reshape(len(one), *(1,) * (rank - one.ndim), *one.shape[1:]) for one, _, _ in layer.inputs]
    return Reach(functools.reduce(np.maximum, ends), _joined(layer.inputs))


def _joined(inputs: Sequence[Reach]) -> tuple[Line, ...] | None:
    """Return the lines that hold those of all inputs, None if they are not in step."""
    lines = []
    if any(reach.lines is None for reach in inputs) or len({reach.ends.shape[2:] for reach in inputs}) > 1:
        return None
    for along_axis in zip(*(reach.lines or () for reach in inputs), strict=True):
        start, end = min(line.start for line in along_axis), max(line.start + line.size for line in along_axis)
        if len({line.jump for line in along_axis}) > 1:
            return None
        lines.append(Line(end - start, along_axis[0].jump, start))
    return tuple(lines)


def _concat(layer: _Layer) -> Reach | None:
    call, dim = layer.call, layer.options["dim"] % layer.call.y.ndim
    if dim == 0 or len(layer.inputs) != len(call.x):
        return None
    ends = np.concatenate([reach.ends for reach in layer.inputs], axis=dim)
    return Reach(ends, _joined(layer.inputs) if dim == 1 else None)


def _folded(ends: Array, axes: Axes) -> Array:
    """Return the boxes of windows along the last axes."""
    for dim, axis in enumerate(axes, -len(axes)):
        padded: Array = np.full(resized(ends.shape, dim, axis.padded), -np.inf, np.float32)
        padded[along(dim, slice(axis.before, axis.before + axis.size))] = ends
        ends = functools.reduce(np.maximum, [padded[along(dim, axis.tap(i))] for i in range(axis.kernel)])
    return ends


def _all_channels(ends: Array, groups: int, outs: int) -> Array:
    """Return the boxes of `outs` channels that each see all channels of their group."""
    shape = ends.shape
    joined = ends.reshape(shape[0], groups, -1, *shape[2:]).max(axis=2)
    return joined if groups == 1 else np.repeat(joined, outs // groups, axis=1)


def _conv(layer: _Layer) -> Reach:
    outs, _, *kernel = layer.kernel
    o, sizes = layer.options, layer.ends.shape[2:]
    axes = window_axes(layer.name, sizes, tuple(kernel), o["stride"], o["padding"], o["dilation"])
    ends = _folded(_all_channels(layer.ends, o["groups"], outs), axes)
    return layer.windows(ends, [(axis.extent, axis.stride, axis.before) for axis in axes])


def _conv_transpose(layer: _Layer) -> Reach:
    _, outs, *kernel = layer.kernel
    o, ends = layer.options, layer.ends
    how = o["stride"], o["padding"], o["output_padding"], o["dilation"]
    axes = transposed_axes(layer.name, ends.shape[2:], tuple(kernel), *how)
    ends = _all_channels(ends, o["groups"], outs * o["groups"])
    for dim, axis in enumerate(axes, -len(axes)):
        new: Array = np.full(resized(ends.shape, dim, axis.padded), -np.inf, np.float32)
        for i in range(axis.kernel):
            part = new[along(dim, axis.tap(i))]
            np.maximum(part, ends, out=part)
        ends = new[along(dim, slice(axis.before, axis.before + axis.size))]
    return layer.windows(
        ends,
        [
            (-(-axis.extent // axis.stride), Fraction(1, axis.stride), (axis.extent - 1 - axis.before) // axis.stride)
            for axis in axes
        ],
    )


def _pool(layer: _Layer) -> Reach:
    o, sizes = layer.options, layer.ends.shape[2:]
    axes = pool_axes(layer.name, sizes, o["kernel_size"], o["stride"], o["padding"], o["dilation"], o["ceil_mode"])
    return layer.windows(_folded(layer.ends, axes), [(axis.extent, axis.stride, axis.before) for axis in axes])


def _adaptive_pool(layer: _Layer) -> Reach:
    ends, pairs = layer.ends, list(zip(layer.ends.shape[2:], layer.call.y.shape[2:], strict=True))
    for dim, (n, out) in enumerate(pairs, -len(pairs)):
        windows = [slice(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]
        ends = np.concatenate([ends[along(dim, one)].max(axis=dim, keepdims=True) for one in windows], axis=dim)
    even = all(n % out == 0 and (out > 1 or n == 1) for n, out in pairs)
    return layer.windows(ends, [(n // out, n // out, 0) for n, out in pairs] if even else ())


def _over(layer: _Layer, axes: Iterable[int], keep: bool) -> Reach | None:
    """Each number sees all of some axes; the axes are dropped, or kept with the size 1."""
    dims = tuple(axis % layer.ends.ndim for axis in axes)
    if 0 in dims:
        return None
    lines = layer.lines if all(dim == 1 for dim in dims) and keep else None
    return Reach(layer.ends.max(axis=dims, keepdims=keep), lines)


def _reduction(layer: _Layer) -> Reach | None:
    dim = layer.options["dim"]
    axes = range(layer.ends.ndim) if dim is None else dim if isinstance(dim, Sequence) else (dim,)
    return _over(layer, axes, layer.options["keepdim"])


def _spatial(layer: _Layer) -> range:
    return range(2, layer.ends.ndim)


def _norm(option: str) -> _Rule:
    """Return the rule of a norm that uses the statistics of its input if an option says so."""
    return lambda layer: _over(layer, _spatial(layer), keep=True) if layer.options[option] else _same(layer)


def _group_norm(layer: _Layer) -> Reach:
    ends, groups = layer.ends, layer.options["num_groups"]
    ends = _all_channels(ends.max(axis=tuple(_spatial(layer)), keepdims=True), groups, ends.shape[1])
    return Reach(ends, None)


def _response_norm(layer: _Layer) -> Reach:
    size, ends = layer.options["size"], np.moveaxis(layer.ends, 1, -1)
    axes = window_axes(layer.name, ends.shape[-1:], (size,), 1, ((size // 2, (size - 1) // 2),))
    return Reach(np.moveaxis(_folded(ends, axes), -1, 1), layer.lines)


def _reshaped(layer: _Layer) -> Reach:
    return Reach(layer.ends.reshape(len(layer.ends), *layer.call.y.shape[1:]), None)


def _permuted(layer: _Layer) -> Reach | None:
    return Reach(layer.moved(), None) if layer.options["dims"][0] % layer.ends.ndim == 0 else None


def _part(layer: _Layer) -> Reach | None:
    o, dim = layer.options, layer.options["dim"] % layer.ends.ndim
    if dim == 0:
        return None
    windows = [(1, 1, 0)] * (layer.ends.ndim - 2)
    if dim > 1:
        windows[dim - 2] = 1, o["step"], -range(layer.ends.shape[dim])[o["start"] : o["stop"] : o["step"]].start
    return layer.windows(layer.moved(), windows)


def _padded(layer: _Layer) -> Reach | None:
    pads, axes = layer.options["pad"], layer.ends.ndim - 2
    if any(pads[2 * (axes + 1) :]):
        return None
    before = [*pads[::2], *(0,) * axes][:axes]
    return layer.windows(layer.moved(value=-math.inf), [(1, 1, left) for left in reversed(before)])


def _interpolated(layer: _Layer) -> Reach:
    o, ends, windows = layer.options, layer.ends, list[tuple[Any, Any, Any]]()
    factors, linear, rank = o["scale_factor"], not o["mode"].startswith("nearest"), ends.ndim - 2
    mode = {"mode": "linear", "align_corners": o["align_corners"]} if linear else {"mode": o["mode"]}
    for i, dim in enumerate(range(-rank, 0)):
        n, out = ends.shape[dim], layer.call.y.shape[dim]
        factor = None if factors is None else factors[i] if isinstance(factors, Sequence) else factors
        to = {"size": int(out)} if factor is None else {"scale_factor": float(factor)}
        mixed, _ = OPS["interpolate"].function(np.eye(n)[:, None], **to, **mode)  # of each pixel alone
        used = mixed[:, 0] != 0
        first, last = used.argmax(axis=0), n - 1 - used[::-1].argmax(axis=0)
        ends = np.maximum(ends.take(first, axis=dim), ends.take(last, axis=dim))
        step = Fraction(n, int(out)) if factor is None else 1 / Fraction(float(factor))
        if o["align_corners"]:
            windows.append((1 + int((last > first).any()), Fraction(n - 1, max(int(out) - 1, 1)), 0))
        else:
            windows.append((1 + int((last > first).any()), step, (1 - step) / 2 if linear else 0))
    return layer.windows(ends, windows)


def _shuffled(layer: _Layer) -> Reach:
    step = Fraction(1, layer.options["upscale_factor"])
    return layer.windows(layer.moved(), [(1, step, 0)] * 2)


def _unshuffled(layer: _Layer) -> Reach:
    r = layer.options["downscale_factor"]
    return layer.windows(layer.moved(), [(r, r, 0)] * 2)


def _of_ranks(name: str, rule: _Rule) -> dict[str, _Rule]:
    return {f"{name}{rank}d": rule for rank in (1, 2, 3)}


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(["identity", "prelu", "power", "negative", "dropout", "stochastic_depth", *FORMULAS], _same),
    **dict.fromkeys(["add", "subtract", "multiply", "divide", "maximum", "minimum"], _same),
    **_of_ranks("dropout", _same),
    **_of_ranks("conv", _conv),
    **_of_ranks("conv_transpose", _conv_transpose),
    **_of_ranks("max_pool", _pool),
    **_of_ranks("avg_pool", _pool),
    **_of_ranks("adaptive_avg_pool", _adaptive_pool),
    **_of_ranks("adaptive_max_pool", _adaptive_pool),
    **dict.fromkeys(["global_avg_pool", "global_max_pool"], lambda layer: _over(layer, _spatial(layer), False)),
    **dict.fromkeys(["mean", "sum"], _reduction),
    **dict.fromkeys(["softmax", "log_softmax"], lambda layer: _over(layer, (layer.options["dim"],), True)),
    **dict.fromkeys(["flatten", "unflatten", "reshape"], _reshaped),
    "concat": _concat,
    "linear": lambda layer: _over(layer, (-1,), True),
    "batch_norm": _norm("training"),
    "instance_norm": _norm("use_input_stats"),
    "group_norm": _group_norm,
    "layer_norm": lambda layer: _over(layer, range(-len(layer.options["normalized_shape"]), 0), True),
    "local_response_norm": _response_norm,
    "permute": _permuted,
    "slice": _part,
    "pad": _padded,
    "interpolate": _interpolated,
    "pixel_shuffle": _shuffled,
    "pixel_unshuffle": _unshuffled,
    "channel_shuffle": lambda layer: Reach(layer.moved(), layer.lines),
}
"""How the boxes of an op follow from those of its inputs; the input of an op that has no rule is taken whole."""
