"""Receptive fields: the part of the input that each number of a layer can depend on.

Every number has a box, its first and last index along each axis of the input. The boxes of a layer are computed from
those of its input: a window takes the smallest first and the largest last index of what it covers, and so does a sum.
If the first indices are stored with the opposite sign, all of this is one operation, the maximum.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xcnn._array import Array, is_array
from xcnn._check import is_integer, shown
from xcnn.devices import like
from xcnn.errors import UsageError, explained
from xcnn.explain.trace import Call, trace
from xcnn.nn import Identity, Module, Normalize
from xcnn.nn._calls import calls
from xcnn.ops._formula import FORMULAS
from xcnn.ops._op import OPS
from xcnn.ops._window import Axes, along, resized, transposed_axes, window_axes
from xcnn.ops.pool import pool_axes

__all__ = ["Field", "Line", "fields_of_calls", "receptive_fields"]


class Line(NamedTuple):
    """The boxes along one axis if they have one size and distance: number i sees `start + i * jump` and on.

    They are not cut at the border of the image.
    """

    size: float
    jump: float
    start: float


@dataclass(frozen=True)
class Field:
    """The receptive fields of a module.

    Attributes
    ----------
    name : dotted name of the module.
    layer : its class.
    shape : shape of its output without the batch axis.
    size : pixels along each axis of the input that a number sees, as if the image had no end; for layers that have no
        maps in step with the image, such as linear ones, the most inside the image.
    jump : pixels of the input from one number to the next along each axis, the product of the strides; None for layers
        without maps in step with the image.
    start : first pixel that the first number sees along each axis, negative in the padding; None as for `jump`.
    exact : False if a layer of unknown code came before, which may use all of its input, and so is taken to.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    size: tuple[float, ...]
    jump: tuple[float, ...] | None
    start: tuple[float, ...] | None
    exact: bool
    _ends: Array = field(repr=False)

    @explained
    def window(self, position: Sequence[int] | int = ()) -> tuple[slice, ...]:
        """Return the box of one number inside the image, one slice per axis of the input.

        Parameters
        ----------
        position : index of the number in the output without the batch axis, or without the channel, too, for the box of
            all channels there.

        Returns
        -------
        Slices that are empty if the number depends on no pixel, as it sees only padding.

        Raises
        ------
        UsageError
            If there is no such number.

        Examples
        --------
        >>> from xcnn import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2))
        >>> pool = receptive_fields(model, (1, 8, 8))["1"]
        >>> pool.size, pool.jump, pool.window((0, 1))
        ((4, 4), (2, 2), (slice(0, 3, None), slice(1, 5, None)))
        """
        place: tuple[Any, ...] = tuple(position) if isinstance(position, Sequence) else (position,)
        sizes = self.shape[1:] if len(place) == len(self.shape) - 1 else self.shape
        fits = len(place) == len(sizes) and all(is_integer(i) for i in place)
        fits = fits and all(0 <= i < n for i, n in zip(place, sizes, strict=True))
        if not fits:
            wanted = f"an index of the output {self.shape}, with or without the channel"
            raise UsageError(f"window: position must be {wanted}, got {shown(position)}")
        axes = self._ends.shape[len(self._ends.shape) - len(place) :]
        there = (0 if n == 1 else i for i, n in zip(place, axes, strict=True))
        found = self._ends[(..., *there)]
        ends = found if found.ndim == 1 else found.max(axis=1)
        return tuple(_slice(-first, end) for first, end in zip(ends[::2], ends[1::2], strict=True))


def _slice(first: float, end: float) -> slice:
    return slice(int(first), int(end)) if end > first else slice(0, 0)


@explained
def receptive_fields(model: Module, shape: Sequence[int]) -> dict[str, Field]:
    """Return the receptive fields of all modules of a network, in the order in which their outputs are computed.

    They hold for every number exactly, also at the border, behind upsampling and in any graph; but they are boxes, and
    with dilation not every pixel inside counts. They say what a number may depend on; how much it does is another
    matter: W. Luo et al., Understanding the effective receptive field in deep convolutional neural networks, 2016.

    Parameters
    ----------
    model : the network, on any device.
    shape : shape of one input (c, *sizes).

    Returns
    -------
    A dict by dotted name; of a module that is called several times, the last call.

    Raises
    ------
    UsageError
        If `shape` is not as above.

    Notes
    -----
    A. Araujo, W. Norris and J. Sim, Computing receptive fields of convolutional neural networks, 2019, has the closed
    form of `size`, `jump` and `start`, https://distill.pub/2019/computing-receptive-fields.
    """
    return {field.name: field for field in fields_of_calls(model, shape) if field is not None}


def fields_of_calls(model: Module, shape: Sequence[int]) -> list[Field | None]:
    """Return the same for each of `Trace.calls`, None for one whose output is not an array."""
    if not isinstance(model, Module):
        raise UsageError(f"receptive_fields: model must be a module, got {shown(model)}")
    if not isinstance(shape, Sequence) or len(shape) < 2 or not all(is_integer(n) and n > 0 for n in shape):
        raise UsageError(f"receptive_fields: shape must be that of one input, (c, h, w), got {shown(shape)}")
    sizes = tuple(map(int, shape[1:]))
    host = np.zeros((1, *shape), np.float32)
    first = next(iter(model.parameters()), None)
    found = trace(model, host if first is None else like(host, first.data))
    known: dict[int, _Reach | None] = {id(slot.data): None for slot in model.parameters()}
    known |= {id(slot.data): None for _, slot in model.named_buffers()}
    known[id(found.x)] = _image(sizes)
    fields: list[Field | None] = []
    for call in found.calls:
        for y in call.y if isinstance(call.y, tuple) else (call.y,):
            if is_array(y) and id(y) not in known:
                known[id(y)] = _reach(call, y, known, sizes) if call.leaf else _whole(y, sizes)
        reach = known[id(call.y)] or _nothing(call.y, sizes) if is_array(call.y) else None
        fields.append(None if reach is None else _field(call, reach, len(sizes)))
    return fields


class _Reach(NamedTuple):
    """The boxes of an array (1, c, ...).

    Attributes
    ----------
    ends : (2 * axes, c, ...), for each axis of the input the negative of the first index, and the index after the last;
        -inf for no index. An axis of size 1 stands for equal numbers.
    lines : the boxes along each axis of maps in step with the image; None of other arrays.
    exact : as of `Field`.
    """

    ends: Array
    lines: tuple[Line, ...] | None
    exact: bool = True


def _image(sizes: tuple[int, ...]) -> _Reach:
    """Return the boxes of the input: each pixel sees itself."""
    grid = np.indices(sizes, dtype=np.float32)
    ends = np.stack([end for index in grid for end in (-index, index + 1)])[:, None]
    return _Reach(ends, (Line(1.0, 1.0, 0.0),) * len(sizes))


def _whole(y: Array, sizes: tuple[int, ...]) -> _Reach:
    """Return the boxes of an array of which nothing is known."""
    ends = np.asarray([end for size in sizes for end in (0, size)], np.float32)
    return _Reach(ends.reshape(-1, *(1,) * (y.ndim - 1)), None, exact=False)


def _nothing(y: Array, sizes: tuple[int, ...]) -> _Reach:
    """Return the boxes of an array that does not depend on the input."""
    return _Reach(np.full((2 * len(sizes), *(1,) * (y.ndim - 1)), -np.inf, np.float32), None)


def _field(call: Call, reach: _Reach, axes: int) -> Field:
    extents = np.maximum(reach.ends[::2] + reach.ends[1::2], 0)
    most = extents.reshape(axes, -1).max(axis=1).tolist()
    size, jump, start = map(_plain, zip(*reach.lines, strict=True)) if reach.lines else (_plain(most), None, None)
    shape = tuple(map(int, call.y.shape[1:]))
    return Field(call.name, type(call.module).__name__, shape, size, jump, start, reach.exact, reach.ends)


def _plain(values: Sequence[float]) -> tuple[float, ...]:
    """Return numbers as integers where they are: behind upsampling, they may be fractions."""
    return tuple(int(value) if float(value).is_integer() else float(value) for value in values)


def _reach(call: Call, y: Array, known: dict[int, _Reach | None], sizes: tuple[int, ...]) -> _Reach | None:
    """Return the boxes of the output of a layer, None if it does not depend on the input."""
    arrays = list(call.x) if isinstance(call.x, tuple | list) else [call.x]
    found = [known.get(id(x), _whole(x, sizes)) for x in arrays if is_array(x)]
    taken = [(x, reach) for x, reach in zip(arrays, found, strict=True) if reach is not None]
    if not taken:
        return None
    name, options = ("identity", {}) if isinstance(call.module, Identity | Normalize) else _op(call.module)
    rule = _RULES.get(name)
    if rule is None or y is not call.y or y.shape[0] != 1 or any(x.ndim < 2 for x, _ in taken):
        return _whole(y, sizes)
    grown = [reach._replace(ends=_grown(reach.ends, x)) for x, reach in taken]
    made = rule(_Layer(call, options, grown))
    if made is None or made.ends.ndim != y.ndim or made.ends.shape[0] != 2 * len(sizes):
        return _whole(y, sizes)
    ends = made.ends
    if ends.ndim > 1 and ends.shape[1] > 1 and bool((ends == ends[:, :1]).all()):
        ends = ends[:, :1]
    return _Reach(ends, made.lines, all(reach.exact for _, reach in taken))


def _op(module: Module) -> tuple[str, dict[str, Any]]:
    known = calls(module, watched=True)
    return ("", {}) if known is None else known


def _grown(ends: Array, x: Array) -> Array:
    """Return boxes with an entry for every number of x, without copies."""
    return np.broadcast_to(ends, (ends.shape[0], *x.shape[1:]))


class _Layer(NamedTuple):
    """A call of a layer, the options of its op, and the boxes of those of its inputs that depend on the image."""

    call: Call
    options: dict[str, Any]
    inputs: list[_Reach]

    @property
    def ends(self) -> Array:
        return self.inputs[0].ends

    @property
    def lines(self) -> tuple[Line, ...] | None:
        return self.inputs[0].lines

    @property
    def name(self) -> str:
        return _op(self.call.module)[0]

    @property
    def kernel(self) -> tuple[int, ...]:
        """The shape of the weight."""
        held = getattr(self.call.module, "weight", None)
        weight = self.call.x[1] if held is None else held.data
        return tuple(map(int, weight.shape))

    def moved(self, **options: Any) -> Array:
        """Return the boxes of what an op moves without computing."""
        y, _ = OPS[self.name].function(np.ascontiguousarray(self.ends), **self.options | options)
        return np.asarray(y)


_Rule = Callable[[_Layer], _Reach | None]


def _same(layer: _Layer) -> _Reach:
    """Each number sees what its own place in the inputs does; with several inputs, the shapes broadcast."""
    ends = functools.reduce(np.maximum, [reach.ends for reach in layer.inputs])
    return _Reach(ends, _joined(layer.inputs))


def _joined(inputs: Sequence[_Reach]) -> tuple[Line, ...] | None:
    """Return the lines that hold those of all inputs, None if they are not in step."""
    lines = []
    if any(reach.lines is None for reach in inputs):
        return None
    for along_axis in zip(*(reach.lines or () for reach in inputs), strict=True):
        start, end = min(line.start for line in along_axis), max(line.start + line.size for line in along_axis)
        if len({line.jump for line in along_axis}) > 1:
            return None
        lines.append(Line(end - start, along_axis[0].jump, start))
    return tuple(lines)


def _concat(layer: _Layer) -> _Reach | None:
    call, dim = layer.call, layer.options["dim"] % layer.call.y.ndim
    if dim == 0 or len(layer.inputs) != len(call.x):
        return None
    ends = np.concatenate([reach.ends for reach in layer.inputs], axis=dim)
    return _Reach(ends, _joined(layer.inputs) if dim == 1 else None)


def _folded(ends: Array, axes: Axes) -> Array:
    """Return the boxes of windows."""
    for dim, axis in enumerate(axes, -len(axes)):
        padded: Array = np.full(resized(ends.shape, dim, axis.padded), -np.inf, np.float32)
        padded[along(dim, slice(axis.before, axis.before + axis.size))] = ends
        ends = functools.reduce(np.maximum, [padded[along(dim, axis.tap(i))] for i in range(axis.kernel)])
    return ends


def _stepped(lines: tuple[Line, ...] | None, axes: Axes) -> tuple[Line, ...] | None:
    """Return the lines of windows: the closed form."""
    if lines is None or len(lines) != len(axes):
        return None
    return tuple(
        Line(size + (axis.extent - 1) * jump, jump * axis.stride, start - axis.before * jump)
        for (size, jump, start), axis in zip(lines, axes, strict=True)
    )


def _all_channels(ends: Array, groups: int, outs: int) -> Array:
    """Return the boxes of `outs` channels that each see all channels of their group."""
    shape = ends.shape
    joined = ends.reshape(shape[0], groups, -1, *shape[2:]).max(axis=2)
    return joined if groups == 1 else np.repeat(joined, outs // groups, axis=1)


def _conv(layer: _Layer) -> _Reach:
    outs, _, *kernel = layer.kernel
    o, sizes = layer.options, layer.ends.shape[2:]
    axes = window_axes(layer.name, sizes, tuple(kernel), o["stride"], o["padding"], o["dilation"])
    return _Reach(_folded(_all_channels(layer.ends, o["groups"], outs), axes), _stepped(layer.lines, axes))


def _conv_transpose(layer: _Layer) -> _Reach:
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
    lines = None
    if layer.lines is not None and len(layer.lines) == len(axes):
        lines = tuple(
            Line(
                size + (-(-axis.extent // axis.stride) - 1) * jump,
                jump / axis.stride,
                start - (axis.extent - 1 - axis.before) // axis.stride * jump,
            )
            for (size, jump, start), axis in zip(layer.lines, axes, strict=True)
        )
    return _Reach(ends, lines)


def _pool(layer: _Layer) -> _Reach:
    o, sizes = layer.options, layer.ends.shape[2:]
    how = o["kernel_size"], o["stride"], o["padding"], o["dilation"], o["ceil_mode"]
    axes = pool_axes(layer.name, sizes, *how)
    return _Reach(_folded(layer.ends, axes), _stepped(layer.lines, axes))


def _adaptive_pool(layer: _Layer) -> _Reach:
    ends, sizes, outs = layer.ends, layer.ends.shape[2:], layer.call.y.shape[2:]
    for dim, out in enumerate(outs, -len(outs)):
        n = ends.shape[dim]
        windows = [slice(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]
        ends = np.concatenate([ends[along(dim, one)].max(axis=dim, keepdims=True) for one in windows], axis=dim)
    whole = any(n % out or out == 1 < n for n, out in zip(sizes, outs, strict=True))
    axes = None if whole else window_axes("", sizes, tuple(n // out for n, out in zip(sizes, outs, strict=True)))
    if axes is not None:
        axes = tuple(axis._replace(stride=axis.kernel) for axis in axes)
    return _Reach(ends, None if axes is None else _stepped(layer.lines, axes))


def _over(layer: _Layer, axes: Sequence[int], keep: bool) -> _Reach | None:
    """Each number sees all of some axes; the axes are dropped, or kept with the size 1."""
    dims = tuple(axis % layer.ends.ndim for axis in axes)
    if 0 in dims:
        return None
    lines = layer.lines if all(dim == 1 for dim in dims) and keep else None
    return _Reach(layer.ends.max(axis=dims, keepdims=keep), lines)


def _reduction(layer: _Layer) -> _Reach | None:
    dim = layer.options["dim"]
    axes = range(layer.ends.ndim) if dim is None else dim if isinstance(dim, Sequence) else (dim,)
    return _over(layer, axes, layer.options["keepdim"])


def _spatial(layer: _Layer) -> tuple[int, ...]:
    return tuple(range(2, layer.ends.ndim))


def _group_norm(layer: _Layer) -> _Reach:
    groups, shape = layer.options["num_groups"], layer.ends.shape
    parts = layer.ends.reshape(shape[0], groups, shape[1] // groups, *shape[2:])
    most = np.broadcast_to(parts.max(axis=tuple(range(2, parts.ndim)), keepdims=True), parts.shape)
    return _Reach(most.reshape(shape), None)


def _norm(option: str) -> _Rule:
    """Return the rule of a norm that uses the statistics of its input if an option says so."""
    return lambda layer: _over(layer, _spatial(layer), keep=True) if layer.options[option] else _same(layer)


def _reshaped(layer: _Layer) -> _Reach:
    return _Reach(layer.ends.reshape(layer.ends.shape[0], *layer.call.y.shape[1:]), None)


def _permuted(layer: _Layer) -> _Reach | None:
    return _Reach(layer.moved(), None) if layer.options["dims"][0] % layer.ends.ndim == 0 else None


def _part(layer: _Layer) -> _Reach | None:
    o, dim, lines = layer.options, layer.options["dim"] % layer.ends.ndim, layer.lines
    if dim == 0:
        return None
    if lines is not None and dim > 1:
        first = range(layer.ends.shape[dim])[o["start"] : o["stop"] : o["step"]].start
        size, jump, start = lines[dim - 2]
        lines = (*lines[: dim - 2], Line(size, jump * o["step"], start + first * jump), *lines[dim - 1 :])
    return _Reach(layer.moved(), lines)


def _padded(layer: _Layer) -> _Reach | None:
    pads, lines, axes = layer.options["pad"], layer.lines, layer.ends.ndim - 2
    if len(pads) > 2 * axes and any(pads[2 * axes :]):
        return None
    if lines is not None:
        before = [*pads[::2], *(0,) * axes][:axes]
        lines = tuple(
            Line(size, jump, start - left * jump)
            for (size, jump, start), left in zip(lines, reversed(before), strict=True)
        )
    return _Reach(layer.moved(value=-math.inf), lines)


def _interpolated(layer: _Layer) -> _Reach:
    o, ends, lines = layer.options, layer.ends, []
    rank = ends.ndim - 2
    factors = o["scale_factor"]
    linear = not o["mode"].startswith("nearest")
    for i, dim in enumerate(range(-rank, 0)):
        n, out = ends.shape[dim], layer.call.y.shape[dim]
        factor = None if factors is None else factors[i] if isinstance(factors, Sequence) else factors
        to = {"size": int(out)} if factor is None else {"scale_factor": float(factor)}
        mode = {"mode": "linear", "align_corners": o["align_corners"]} if linear else {"mode": o["mode"]}
        mixed, _ = OPS["interpolate"].function(np.eye(n)[:, None], **to, **mode)  # of each pixel alone
        used = mixed[:, 0] != 0
        first, last = used.argmax(axis=0), n - 1 - used[::-1].argmax(axis=0)
        ends = np.maximum(ends.take(first, axis=dim), ends.take(last, axis=dim))
        if layer.lines is not None:
            size, jump, start = layer.lines[i]
            moved = (n / out - 1) / 2 * jump if linear and n != out else 0.0
            lines.append(Line(size + jump * (linear and n != out), jump * n / out, start + moved))
    return _Reach(ends, tuple(lines) if layer.lines is not None else None)


def _shuffled(layer: _Layer) -> _Reach:
    r, lines = layer.options["upscale_factor"], layer.lines
    return _Reach(layer.moved(), lines and tuple(Line(size, jump / r, start) for size, jump, start in lines))


def _unshuffled(layer: _Layer) -> _Reach:
    r, lines = layer.options["downscale_factor"], layer.lines
    return _Reach(
        layer.moved(), lines and tuple(Line(size + (r - 1) * jump, jump * r, start) for size, jump, start in lines)
    )


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
    "local_response_norm": lambda layer: _over(layer, (1,), True),
    "permute": _permuted,
    "slice": _part,
    "pad": _padded,
    "interpolate": _interpolated,
    "pixel_shuffle": _shuffled,
    "pixel_unshuffle": _unshuffled,
    "channel_shuffle": lambda layer: _Reach(layer.moved(), layer.lines),
}
"""How the boxes of an op follow from those of its inputs; the input of an op that has no rule is taken whole."""
