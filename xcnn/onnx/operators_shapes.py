"""ONNX's operators that rearrange, repeat or leave out numbers: rows of the table `operators.OPERATORS`."""

import math

import numpy as np

from xcnn import nn
from xcnn.onnx.call import Call, Shape, Unsupported
from xcnn.onnx.operators import axes_of, of_rank, operator

__all__ = ["along"]

_MOST = 64
"""The most copies or parts that one node becomes."""


def _reshape(call: Call, x: str, sizes: Shape, wanted: Shape, suffix: str = "") -> str:
    """Add a node that gives x, of these sizes, another shape, in which the size of the batch stays open."""
    places = [i for i, size in enumerate(wanted) if size is None]
    if not places and wanted and sizes and sizes[0] == wanted[0] == call.network.batch() and 0 not in wanted:
        places = [0]  # the file was written for one size of the batch; the others are the product of the rest
    if len(places) > 1:
        raise Unsupported("its result has several sizes that the file leaves open")
    shape = tuple(-1 if i in places else size for i, size in enumerate(wanted))
    rest = [size for size in sizes[1:] if size is not None]
    if len(wanted) == 2 and places == [0] and 0 < len(rest) == len(sizes) - 1 and wanted[1] == math.prod(rest):
        return call.add(nn.Flatten(), x, suffix=suffix)
    return call.add(nn.Apply("reshape", shape=shape), x, suffix=suffix)


@operator("Reshape", "Squeeze", "Unsqueeze", "Flatten")
def _reshaped(call: Call) -> str:
    sizes, wanted = call.shape(), call.result()
    if sizes == wanted and sizes.count(None) < 2:
        return call.input()
    if wanted.count(None) > 1 and sizes.count(None) > 1:
        return _by_rule(call, sizes)
    return _reshape(call, call.input(), sizes, wanted)


def _by_rule(call: Call, sizes: Shape) -> str:
    """Add a node for maps of any size, if what the file says can be said without their sizes."""
    if call.op == "Flatten" and call.axis(call.option("axis")) == 1:
        return call.add(nn.Flatten())
    if call.op == "Reshape" and not call.option("allowzero", 0):
        shape = call.option("shape")
        kept = next((i for i, size in enumerate(shape) if size != 0), len(shape))
        if shape[kept:] == [-1] and kept < len(sizes):
            return call.add(nn.Flatten(kept))
    raise Unsupported("its result has several sizes that the file leaves open")


@operator("Transpose")
def _transpose(call: Call) -> str:
    dims = tuple(call.option("perm") or reversed(range(call.rank())))
    return call.input() if dims == tuple(range(len(dims))) else call.add(nn.Apply("permute", dims=dims))


@operator("ReduceMax")
def _reduce_max(call: Call) -> str:
    rank = call.rank()
    if rank in (3, 4, 5) and axes_of(call) == tuple(range(2, rank)) and call.option("keepdims"):
        return call.add(of_rank((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), rank - 2)(1))
    axes = axes_of(call) or (() if call.option("noop_with_empty_axes", 0) else tuple(range(rank)))
    sizes = [size for size in (call.shape()[axis] for axis in axes) if size is not None]
    if not axes:
        return call.input()
    if len(sizes) < len(axes):
        raise Unsupported("it takes the maximum along axes whose sizes the file leaves open")
    if 0 in sizes:
        raise Unsupported("it takes the maximum of nothing")
    dims = (*(k for k in range(rank) if k not in axes), *axes)
    row = nn.Apply("reshape", shape=(-1, 1, math.prod(sizes)))
    node = call.chain(nn.Apply("permute", dims=dims), row, nn.AdaptiveMaxPool1d(1))
    return _reshape(call, node, (call.shape()[0], 1, 1), call.result())


@operator("Expand")
def _expand(call: Call) -> str:
    sizes, wanted = call.shape(), call.result()
    if sizes == wanted:
        return call.input()
    old = (*(1,) * (len(wanted) - len(sizes)), *sizes)
    grown = tuple(1 if new == size else new or 0 for new, size in zip(wanted, old, strict=True))
    if 0 in grown[1:]:
        raise Unsupported("it repeats its input as often as a size that the file leaves open")
    node = call.input()
    if grown[0] == 0:
        node, grown = call.add(nn.Add(), node, _zeros(call, len(wanted)), suffix="batch"), (1, *grown[1:])
    if {*grown} == {1} and len(sizes) == len(wanted):
        return node
    call.network.budget.take(grown, 4)
    return call.add(nn.Add(), node, call.array(np.zeros(grown), "zeros"))


def _zeros(call: Call, rank: int) -> str:
    """Add nodes that give one 0 for each row of the batch, such as that to which a network adds its class token."""
    network = call.network
    batches = (name for name in network.inputs if (network.shape(name) or (0,))[0] is None)
    start = next(batches, None)
    if start is None:
        raise Unsupported("it repeats its input as often as the batch is long")
    first = nn.Apply("slice", dim=1, start=0, stop=1)
    zero, rows = nn.Apply("multiply", other=0.0), nn.Apply("reshape", shape=(-1, *(1,) * (rank - 1)))
    return call.add(rows, call.chain(nn.Flatten(), first, zero, start=start), suffix="rows")


@operator("Tile")
def _tile(call: Call) -> str:
    repeats = call.option("repeats")
    if len(repeats) != call.rank() or math.prod(repeats) > _MOST or min(repeats) < 1:
        raise Unsupported(f"its repeats must be one number per axis, and {_MOST} copies at most, got {repeats}")
    node = call.input()
    for axis, count in enumerate(repeats):
        if count > 1:
            node = call.add(nn.Concat(axis), *(node,) * count, suffix=str(axis))
    return node


@operator("Concat")
def _concat(call: Call) -> str:
    nodes = [call.input(i) for i in range(len(call))]
    return nodes[0] if len(nodes) == 1 else call.add(nn.Concat(call.axis(call.option("axis"))), *nodes)


def _slice(call: Call, x: str, axis: int, part: tuple[int, int, int], suffix: str = "") -> str:
    """Add a node that takes a slice `(start, stop, step)` of x along an axis, if it is not all of input 0's."""
    size = call.shape()[axis]
    if size is not None and slice(*part).indices(size) == (0, size, 1):
        return x
    start, stop, step = part
    return call.add(nn.Apply("slice", dim=axis, start=start, stop=stop, step=step), x, suffix=suffix)


@operator("Slice")
def _sliced(call: Call) -> str:
    starts, ends = call.option("starts"), call.option("ends")
    axes = call.option("axes") or list(range(len(starts)))
    steps = call.option("steps") or [1] * len(starts)
    node = call.input()
    for i, (start, end, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        last = i == len(starts) - 1
        node = _slice(call, node, call.axis(axis), (start, end, step), "" if last else str(i))
    return node


@operator("Split")
def _split(call: Call) -> list[str]:
    axis, nodes, start = call.axis(call.option("axis")), [], 0
    for i in range(len(call.node.output)):
        size = call.result(i)[axis]
        if size is None:
            raise Unsupported("it splits an axis whose size the file leaves open")
        suffix = str(i) if i else ""
        nodes.append(_slice(call, call.input(), axis, (start, start + size, 1), suffix))
        start += size
    return nodes


def _counts(call: Call) -> bool:
    """Return whether Gather takes all numbers of a row in their order: PyTorch's `as_strided` may be a reshape."""
    for values in (call.network.first, call.network.second):
        data, indices = values[call.node.input[0]].shape, values[call.node.input[1]].data
        if data is None or indices is None or data != (indices.size,):
            return False
        if not np.array_equal(indices.ravel(), np.arange(indices.size)):
            return False
    return True


@operator("Gather")
def _gather(call: Call) -> str:
    if _counts(call):
        return _reshape(call, call.input(), call.shape(), call.result())
    axis, indices = call.axis(call.option("axis")), call.option("indices")
    size = call.shape()[axis]
    several = np.ravel(indices).tolist()
    if not several or not all(type(i) is int for i in several):
        raise Unsupported("it has no indices")
    if size is None:
        if several[0] < 0 or len(several) > 1:
            raise Unsupported("it takes entries of an axis whose size the file leaves open")
    elif not all(-size <= i < size for i in several):
        raise Unsupported(f"its indices must be below {size}, got {several}")
    places = [i if size is None else i % size for i in several]
    step = places[1] - places[0] if len(places) > 1 else 1
    if step and places == list(range(places[0], places[0] + step * len(places), step)):
        last = places[-1] + (1 if step > 0 else -1)
        suffix = "" if np.ndim(indices) == 1 else "part"
        node = _slice(call, call.input(), axis, (places[0], last if last >= 0 else -(2**31), step), suffix)
    elif len(places) <= _MOST:
        parts = [_slice(call, call.input(), axis, (i, i + 1, 1), str(k)) for k, i in enumerate(places)]
        node = call.add(nn.Concat(axis), *parts)
    else:
        call.network.budget.take((len(places), size or 0), 16)
        chosen = np.zeros((len(places), size or 0))
        chosen[np.arange(len(places)), places] = 1
        node = along(call, call.input(), axis, chosen)
    if np.ndim(indices) == 1:
        return node
    sizes = (*call.shape()[:axis], len(places), *call.shape()[axis + 1 :])
    return _reshape(call, node, sizes, call.result())


def along(call: Call, node: str, axis: int, matrix: np.ndarray, suffix: str = "") -> str:
    """Add nodes that multiply a matrix with the numbers along an axis of a node of the rank of input 0."""
    last, name = call.rank() - 1, f"matrix{axis}"
    if axis == last:
        return call.add(nn.Apply("matmul"), node, call.array(matrix.T, name), suffix=suffix)
    if axis == last - 1:
        return call.add(nn.Apply("matmul"), call.array(matrix, name), node, suffix=suffix)
    dims = list(range(last + 1))
    dims[axis], dims[last] = last, axis
    turn = nn.Apply("permute", dims=tuple(dims))
    node = call.add(turn, node, suffix=f"{suffix}turned")
    node = call.add(nn.Apply("matmul"), node, call.array(matrix.T, name), suffix=f"{suffix}product")
    return call.add(turn, node, suffix=suffix)


_PADS = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""ONNX's names of the ways to pad, and ours."""


@operator("Pad")
def _pad(call: Call) -> str:
    mode = _PADS.get(call.option("mode", "constant"))
    if mode is None:
        raise Unsupported(f"its mode is {call.option('mode')!r}")
    value = call.option("constant_value" if call.opset >= 11 else "value", 0.0)
    rank, sides = call.rank(), call.option("pads")
    axes = [call.axis(axis) for axis in call.option("axes") or range(rank)]
    if len(sides) != 2 * len(axes):
        raise Unsupported(f"its pads must be {2 * len(axes)} numbers, got {sides}")
    pairs = dict(zip(axes, zip(sides[: len(axes)], sides[len(axes) :], strict=True), strict=True))
    padded = [axis for axis in range(rank) if any(pairs.get(axis, ()))]
    if not padded:
        return call.input()
    pad = tuple(side for axis in reversed(range(padded[0], rank)) for side in pairs.get(axis, (0, 0)))
    return call.add(nn.Pad(pad, mode, float(np.reshape(value, -1)[0])))


@operator("DepthToSpace", "SpaceToDepth")
def _pixels(call: Call) -> str:
    r, (n, c, h, w) = call.option("blocksize"), call.shape()
    if call.op == "DepthToSpace" and call.option("mode", "DCR") == "CRD":
        return call.add(nn.PixelShuffle(r))
    if c is None or h is None or w is None or r < 1:
        raise Unsupported("it depends on sizes that the file leaves open")
    if call.op == "SpaceToDepth" and call.option("mode", "DCR") == "CRD":
        return call.add(nn.PixelUnshuffle(r))
    if call.op == "DepthToSpace":
        split, order = (n, r, r, c // r**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, c, h // r, r, w // r, r), (0, 3, 5, 1, 2, 4)
    node = _reshape(call, call.input(), (n, c, h, w), split, "split")
    node = call.add(nn.Apply("permute", dims=order), node, suffix="turned")
    return _reshape(call, node, tuple(split[i] for i in order), call.result())
