"""Random calls of ops, drawn by hypothesis, with the same call in PyTorch: one strategy per family of ops."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

__all__ = ["FAMILIES", "Call"]


@dataclass
class Call:
    """One call of an op, and the call that it is compared with.

    Attributes
    ----------
    arrays : shapes or arrays by argument name, or a list of them; None for an array that is left out.
    torch : the same in PyTorch, called as torch(F, *tensors, **options); by default `F.<name>`.
    seed : seed of the arrays and of dy.
    constants : names of arrays without a gradient, such as labels.
    """

    name: str
    arrays: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    torch: Callable[..., Any] | None = None
    seed: int = 0
    constants: tuple[str, ...] = ()

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw numbers for all shapes in `arrays`."""

        def draw(spec: Any) -> Any:
            if isinstance(spec, list):
                return [draw(one) for one in spec]
            return np.asarray(rng.standard_normal(spec)) if isinstance(spec, tuple) else spec

        return {name: draw(spec) for name, spec in self.arrays.items()}

    def in_torch(self, torch: Any, arrays: dict[str, Any]) -> tuple[Any, list[Any]]:
        """Run it in PyTorch; return y and all input tensors in order."""

        def tensor(name: str, array: Any) -> Any:
            if isinstance(array, list):
                return [tensor(name, one) for one in array]
            varies = name not in self.constants and array is not None and array.dtype.kind == "f"
            return None if array is None else torch.tensor(array, requires_grad=varies)

        tensors = [tensor(name, array) for name, array in arrays.items()]
        theirs = self.torch or (lambda F, *args, **options: getattr(F, self.name)(*args, **options))
        y = theirs(torch.nn.functional, *tensors, **self.options)
        return y, [one for value in tensors for one in (value if isinstance(value, list) else [value])]


seeds = st.integers(0, 2**32 - 1)
ranks = st.sampled_from([1, 2, 3])


def per_axis(rank: int, low: int, high: int) -> st.SearchStrategy[Any]:
    """Draw an integer, or one integer per axis."""
    numbers = st.integers(low, high)
    return numbers | st.tuples(*[numbers] * rank)


def spread(value: Any, rank: int) -> tuple[Any, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def torch_pads(pairs: Any) -> list[int]:
    """Return pairs (before, after) per axis in the order of `F.pad`: last axis first."""
    return [side for pair in reversed(pairs) for side in pair]


def batch(draw: Any) -> tuple[int, ...]:
    """Draw a batch axis of 0, 1 or 2 images, or none."""
    return draw(st.sampled_from([(), (0,), (1,), (2,), (2,)]))


def sizes(draw: Any, least: Any) -> tuple[int, ...]:
    """Draw map sizes, from the smallest that the kernel fits in."""
    return tuple(draw(st.integers(max(1, low), max(1, low) + 4)) for low in least)


@st.composite
def convolutions(draw: Any) -> Call:
    rank = draw(ranks)
    groups, multiple, channels = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * rank))
    stride, dilation = draw(per_axis(rank, 1, 3)), draw(per_axis(rank, 1, 2))
    extents = [d * (k - 1) + 1 for d, k in zip(spread(dilation, rank), kernel, strict=True)]
    padding = draw(
        st.just("same")
        | st.just("valid")
        | per_axis(rank, 0, 2)
        | st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * rank)
    )
    if padding == "same":
        maps = sizes(draw, [1] * rank)
        counts = [-(-n // s) for n, s in zip(maps, spread(stride, rank), strict=True)]
        totals = [
            max((count - 1) * s + extent - n, 0)
            for count, s, extent, n in zip(counts, spread(stride, rank), extents, maps, strict=True)
        ]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(0, 0)] * rank if padding == "valid" else [spread(p, 2) for p in spread(padding, rank)]
        maps = sizes(draw, [extent - sum(pair) for extent, pair in zip(extents, pairs, strict=True)])

    def padded_first(F: Any, x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        """Pad first: PyTorch convolves only with symmetric padding, and with 'same' only at stride 1."""
        conv = getattr(F, f"conv{rank}d")
        if isinstance(padding, str) and (padding == "valid" or stride == 1):
            return conv(x, weight, bias, **options)
        return conv(F.pad(x, torch_pads(pairs)), weight, bias, **{**options, "padding": 0})

    return Call(
        f"conv{rank}d",
        {
            "x": (*batch(draw), channels * groups, *maps),
            "weight": (multiple * groups, channels, *kernel),
            "bias": draw(st.sampled_from([None, (multiple * groups,)])),
        },
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
        padded_first,
        draw(seeds),
    )


@st.composite
def transposed_convolutions(draw: Any) -> Call:
    rank = draw(ranks)
    groups, outs, channels = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * rank))
    stride, dilation = draw(per_axis(rank, 1, 3)), draw(per_axis(rank, 1, 2))
    axes = list(zip(spread(stride, rank), spread(dilation, rank), kernel, strict=True))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d, _ in axes)
    padding = tuple(draw(st.integers(0, 2)) for _ in axes)
    least = [
        1 + max(0, -(-(2 * p - d * (k - 1) - e) // s)) for (s, d, k), p, e in zip(axes, padding, extra, strict=True)
    ]
    return Call(
        f"conv_transpose{rank}d",
        {
            "x": (*batch(draw), channels * groups, *(min(n, 6) for n in sizes(draw, least))),
            "weight": (channels * groups, outs, *kernel),
            "bias": draw(st.sampled_from([None, (outs * groups,)])),
        },
        {
            "stride": stride,
            "padding": padding,
            "output_padding": extra,
            "groups": groups,
            "dilation": dilation,
        },
        seed=draw(seeds),
    )


@st.composite
def pools(draw: Any) -> Call:
    rank, kind = draw(ranks), draw(st.sampled_from(["max", "avg"]))
    kernel_size = draw(per_axis(rank, 1, 3))
    kernel = spread(kernel_size, rank)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    options = {
        "kernel_size": kernel_size,
        "stride": draw(st.none() | per_axis(rank, 1, 4)),
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
    }
    dilation = (1,) * rank
    if kind == "max":
        options["dilation"] = draw(per_axis(rank, 1, 3))
        dilation = spread(options["dilation"], rank)
    else:
        options["count_include_pad"] = draw(st.booleans())
        if rank > 1:
            options["divisor_override"] = draw(st.sampled_from([None, None, 1, 5]))
    if draw(st.booleans()):
        return wide_pool(draw, kind, rank, kernel_size, options)
    least = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if options["ceil_mode"]:  # even the first window may be incomplete
        least = [low - s + 1 for low, s in zip(least, spread(options["stride"] or kernel, rank), strict=True)]
    # The positions of a dilated window may all miss a small map; PyTorch then writes out of bounds.
    least = [max(low, d) for low, d in zip(least, dilation, strict=True)]
    if kind == "avg" and rank == 3:
        least = list(kernel)  # PyTorch's check ignores the padding here
    lead = draw(st.sampled_from([(3,), (1, 2), (2, 1), (2, 3), (0, 2)]))
    x: Any = (*lead, *sizes(draw, least))
    seed = draw(seeds)
    if kind == "max" and draw(st.booleans()):  # few distinct numbers, so that there are ties
        x = np.random.default_rng(seed).choice([-np.inf, -1.0, 0.0, 2.0], size=x, p=[0.1, 0.3, 0.3, 0.3])
    return Call(f"{kind}_pool{rank}d", {"x": x}, options, seed=seed)


def wide_pool(draw: Any, kind: str, rank: int, kernel_size: Any, options: dict[str, Any]) -> Call:
    """Draw pools that PyTorch lacks: asymmetric padding, padding of more than half a window, dilated averages.

    In PyTorch the map is padded first, and a dilated average is a convolution with ones.
    """
    options = {**options, "ceil_mode": False, "dilation": draw(per_axis(rank, 1, 2))}
    kernel, dilation = spread(kernel_size, rank), spread(options["dilation"], rank)
    stride = kernel if options["stride"] is None else spread(options["stride"], rank)
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    pairs = tuple((draw(st.integers(0, e - 1)), draw(st.integers(0, e - 1))) for e in extents)
    options["padding"] = pairs
    maps = sizes(draw, [max(e - sum(pair), d) for e, pair, d in zip(extents, pairs, dilation, strict=True)])
    shape = (*draw(st.sampled_from([(3,), (1, 2), (2, 3)])), *maps)

    def largest(F: Any, x: Any, **_: Any) -> Any:
        padded = F.pad(x, torch_pads(pairs), value=-math.inf)
        return getattr(F, f"max_pool{rank}d")(padded, kernel, stride, 0, dilation)

    def sums(F: Any, x: Any) -> Any:
        rows = F.pad(x, torch_pads(pairs)).reshape(-1, 1, *(n + sum(pair) for n, pair in zip(maps, pairs, strict=True)))
        y = getattr(F, f"conv{rank}d")(rows, x.new_ones(1, 1, *kernel), None, stride, 0, dilation)
        return y.reshape(*shape[:-rank], *y.shape[2:])

    def mean(F: Any, x: Any, **_: Any) -> Any:
        count = options.get("divisor_override") or math.prod(kernel)
        if not options["count_include_pad"] and options.get("divisor_override") is None:
            count = sums(F, x.detach() * 0 + 1)
        return sums(F, x) / count

    return Call(f"{kind}_pool{rank}d", {"x": shape}, options, largest if kind == "max" else mean, draw(seeds))


@st.composite
def whole_map_pools(draw: Any) -> Call:
    rank = draw(ranks)
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 3)), *sizes(draw, [1] * rank))
    kind = draw(st.sampled_from(["adaptive_avg", "adaptive_max", "global_avg", "global_max"]))
    if kind.startswith("adaptive"):
        numbers = st.integers(1, 6)
        size = draw(numbers | st.tuples(*[numbers | st.none()] * rank)) if rank > 1 else draw(numbers)
        return Call(f"{kind}_pool{rank}d", {"x": shape}, {"output_size": size}, seed=draw(seeds))

    def reduced(F: Any, x: Any) -> Any:
        flat = x.flatten(2)
        return flat.mean(dim=2) if kind == "global_avg" else flat.max(dim=2).values

    return Call(f"{kind}_pool", {"x": shape}, {}, reduced, draw(seeds))


@st.composite
def pads(draw: Any) -> Call:
    mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    rank = draw(ranks)
    maps = sizes(draw, [3] * rank)
    low = draw(st.sampled_from([0, -1]))  # -1 crops
    most = {"constant": lambda n: 3, "replicate": lambda n: 4, "reflect": lambda n: n - 1, "circular": lambda n: n}[
        mode
    ]
    sides = [draw(st.integers(low, most(n + low))) for n in reversed(maps) for _ in range(2)]
    options = {"pad": tuple(sides), "mode": mode}
    if mode == "constant":
        options["value"] = draw(st.sampled_from([0.0, -1.5]))
    return Call("pad", {"x": (draw(st.integers(1, 2)), 2, *maps)}, options, seed=draw(seeds))


@st.composite
def resizes(draw: Any) -> Call:
    """Draw interpolations, except where PyTorch disagrees with itself: sizes that a broken factor keeps or doubles."""
    rank = draw(ranks)
    maps, shape = sizes(draw, [1] * rank), (draw(st.integers(0, 2)), 2)
    mode = draw(st.sampled_from(["nearest", "nearest-exact", ("linear", "bilinear", "trilinear")[rank - 1]]))
    options: dict[str, Any] = {"mode": mode}
    if mode.endswith("linear"):
        options["align_corners"] = draw(st.sampled_from([None, False, True]))
    if draw(st.booleans()):
        options["size"] = draw(per_axis(rank, 1, 11))
    else:
        kept = {
            1.0: lambda n: True,
            2.0: lambda n: True,
            3.0: lambda n: True,
            1.7: lambda n: n > 1,
            2.6: lambda n: n > 1,
        }
        factors = [draw(st.sampled_from([f for f, usable in kept.items() if usable(n)])) for n in maps]
        options["scale_factor"] = tuple(factors) if len({*factors}) > 1 else factors[0]
    return Call("interpolate", {"x": (*shape, *maps)}, options, seed=draw(seeds))


@st.composite
def pixel_shuffles(draw: Any) -> Call:
    r, lead = draw(st.integers(1, 3)), draw(st.sampled_from([(), (2,), (2, 1)]))
    c, h, w = (draw(st.integers(1, 3)) for _ in range(3))
    if draw(st.booleans()):
        return Call("pixel_shuffle", {"x": (*lead, c * r * r, h, w)}, {"upscale_factor": r}, seed=draw(seeds))
    return Call("pixel_unshuffle", {"x": (*lead, c, h * r, w * r)}, {"downscale_factor": r}, seed=draw(seeds))


shapes = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def activations(draw: Any) -> Call:
    name, options = draw(
        st.sampled_from(
            [
                ("relu", {}),
                ("leaky_relu", {}),
                ("leaky_relu", {"negative_slope": 0.0}),
                ("leaky_relu", {"negative_slope": 0.3}),
                ("leaky_relu", {"negative_slope": 1.5}),
                ("elu", {}),
                ("elu", {"alpha": 0.0}),
                ("elu", {"alpha": 2.0}),
                ("celu", {"alpha": 0.5}),  # PyTorch keeps 1 / alpha for its gradient in float32
                ("selu", {}),
                ("softsign", {}),
                ("gelu", {}),
                ("gelu", {"approximate": "tanh"}),
                ("silu", {}),
                ("sigmoid", {}),
                ("tanh", {}),
                ("relu6", {}),
                ("hardtanh", {}),
                ("hardtanh", {"min_val": -0.5, "max_val": 3.0}),
                ("hardsigmoid", {}),
                ("hardsigmoid", {"alpha": 0.2, "beta": 0.4}),
                ("hardswish", {}),
                ("softplus", {}),
                ("softplus", {"beta": 2.5, "threshold": 1.0}),
                ("mish", {}),
                ("prelu", {}),
            ]
        )
    )
    seed, scale = draw(seeds), draw(st.sampled_from([1.0, 10.0, 1e3]))
    arrays: dict[str, Any] = {"x": scale * np.random.default_rng(seed).standard_normal(draw(shapes))}
    if name == "prelu":
        arrays["weight"] = (draw(st.sampled_from([1, *arrays["x"].shape[1:2]])),)
    return Call(name, arrays, options, _torch_gate if name == "hardsigmoid" else None, seed=seed)


def _torch_gate(F: Any, x: Any, alpha: float = 1 / 6, beta: float = 0.5) -> Any:
    """Return what PyTorch's hardsigmoid does, whose own gradient has a factor of 1/6 in float32, for all options."""
    return F.hardtanh(alpha * x + beta, 0.0, 1.0)


@st.composite
def elementwise(draw: Any) -> Call:
    """Draw calls of the functions of each number, where they are finite."""
    name, seed = draw(st.sampled_from(["abs", "erf", "exp", "log", "negative", "power", "sqrt"])), draw(seeds)
    options = {"exponent": draw(st.sampled_from([-2, -0.5, 0, 0.5, 1, 2, 2.5, 3]))} if name == "power" else {}
    x = 3.0 * np.random.default_rng(seed).standard_normal(draw(shapes))
    if name in ("log", "sqrt") or options.get("exponent", 0) % 1:
        x = np.abs(x) + 0.01
    theirs = "pow" if name == "power" else name
    return Call(name, {"x": np.asarray(x)}, options, lambda F, x, **to: getattr(F.torch, theirs)(x, **to), seed)


@st.composite
def softmaxes(draw: Any) -> Call:
    shape = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    rank = max(1, len(shape))
    dim = draw(st.integers(-rank, rank - 1))
    seed, scale = draw(seeds), draw(st.sampled_from([1.0, 1e4]))
    x = np.asarray(scale * np.random.default_rng(seed).standard_normal(shape))
    return Call(draw(st.sampled_from(["softmax", "log_softmax"])), {"x": x}, {"dim": dim}, seed=seed)


@st.composite
def shape_ops(draw: Any) -> Call:
    """Draw calls of linear, matmul, flatten, concat, and dropout in evaluation."""
    kind, seed = draw(st.sampled_from(["linear", "matmul", "flatten", "concat", "dropout"])), draw(seeds)
    lead = draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    if kind == "linear":
        o, i = draw(st.integers(1, 3)), draw(st.integers(1, 4))
        bias = draw(st.sampled_from([None, (o,)]))
        return Call("linear", {"x": (*lead, i), "weight": (o, i), "bias": bias}, seed=seed)
    if kind == "matmul":
        n, k, m = (draw(st.integers(0, 3)) for _ in range(3))
        x, other = draw(st.sampled_from([(k,), (*lead, n, k)])), draw(st.sampled_from([(k,), (k, m), (*lead, k, m)]))
        if len(x) > 2 and draw(st.booleans()):
            x = (1, *x[1:]) if draw(st.booleans()) else x[1:]
        return Call(kind, {"x": x, "other": other}, {}, lambda F, x, other: F.torch.matmul(x, other), seed)
    if kind == "flatten":
        shape = (2, *lead, 3)
        start = draw(st.integers(0, len(shape) - 1))
        end = draw(st.integers(start, len(shape) - 1)) - draw(st.sampled_from([0, len(shape)]))
        options = {"start_dim": start, "end_dim": end}
        return Call("flatten", {"x": shape}, options, lambda F, x, **dims: x.flatten(**dims), seed)
    if kind == "concat":
        dim = draw(st.integers(0, len(lead)))
        xs = [(*lead[:dim], n, *lead[dim:]) for n in draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))]
        dim -= draw(st.sampled_from([0, len(lead) + 1]))
        return Call("concat", {"xs": xs}, {"dim": dim}, _torch_cat, seed)
    return Call("dropout", {"x": lead}, {"training": False, "rng": seed}, lambda F, x, training, rng: x * 1, seed)


def _torch_cat(F: Any, xs: Any, dim: int) -> Any:
    return F.torch.cat(xs, dim)


@st.composite
def pairs(draw: Any) -> Call:
    """Draw calls of ops of two arrays that broadcast."""
    names = ["add", "subtract", "multiply", "divide", "maximum", "minimum"]
    name, seed = draw(st.sampled_from(names)), draw(seeds)
    lead = draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    sizes = [draw(st.sampled_from([(n, n), (1, n), (n, 1)])) for n in lead]
    x, other = ([pair[i] for pair in sizes] for i in range(2))
    if draw(st.booleans()):
        other = other[draw(st.integers(0, len(lead))) :]
    x, other = draw(st.permutations([tuple(x), tuple(other)]))
    arrays: dict[str, Any] = {"x": x, "other": other}
    if name == "divide":
        arrays["other"] = np.asarray(np.random.default_rng(seed).uniform(0.5, 2, other))
    if name in ("maximum", "minimum"):  # of small integers, of which many are equal
        rng = np.random.default_rng(seed)
        arrays = {key: np.asarray(rng.integers(-1, 2, shape), float) for key, shape in arrays.items()}
    return Call(name, arrays, {}, lambda F, x, other: getattr(F.torch, name)(x, other), seed)


@st.composite
def moves(draw: Any) -> Call:
    """Draw calls of permute, reshape, slice and channel_shuffle."""
    name, seed = draw(st.sampled_from(["permute", "reshape", "slice", "channel_shuffle"])), draw(seeds)
    shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple))
    rank = len(shape)
    if name == "permute":
        dims = tuple(dim - draw(st.sampled_from([0, rank])) for dim in draw(st.permutations(range(rank))))
        return Call(name, {"x": shape}, {"dims": dims}, lambda F, x, dims: x.permute(dims), seed)
    if name == "reshape":
        sizes = list(draw(st.permutations([*shape, 1])))
        place = draw(st.integers(0, rank))
        if math.prod(sizes[:place] + sizes[place + 1 :]):
            sizes[place] = draw(st.sampled_from([-1, sizes[place]]))
        return Call(name, {"x": shape}, {"shape": tuple(sizes)}, lambda F, x, shape: x.reshape(shape), seed)
    if name == "channel_shuffle":
        g, c = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        return Call(name, {"x": (draw(st.integers(1, 2)), g * c, *shape[:2], 2)}, {"groups": g}, seed=seed)
    ends = st.none() | st.integers(-7, 7)
    options = {"start": draw(ends), "stop": draw(ends), "step": draw(st.sampled_from([1, 2, 3, -1, -2, -5]))}
    options = {key: value for key, value in options.items() if value is not None}

    def indexed(F: Any, x: Any, dim: int, start: Any = None, stop: Any = None, step: int = 1) -> Any:
        """Take the indices one by one: PyTorch has no negative steps."""
        return x.index_select(dim, F.torch.arange(x.shape[dim])[np.arange(x.shape[dim])[start:stop:step].copy()])

    return Call(name, {"x": shape}, {"dim": draw(st.integers(-rank, rank - 1)), **options}, indexed, seed)


@st.composite
def reductions(draw: Any) -> Call:
    name, seed = draw(st.sampled_from(["mean", "sum"])), draw(seeds)
    shape = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    rank = len(shape)
    options: dict[str, Any] = {"keepdim": draw(st.booleans())}
    if rank and draw(st.booleans()):
        dims = draw(st.lists(st.integers(0, rank - 1), min_size=1, unique=True))
        dims = tuple(dim - draw(st.sampled_from([0, rank])) for dim in dims)
        options["dim"] = dims[0] if len(dims) == 1 else dims

    def theirs(F: Any, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        return getattr(F.torch, name)(x, dim, keepdim=keepdim)

    return Call(name, {"x": shape}, options, theirs, seed)


@st.composite
def norms(draw: Any) -> Call:
    kind = draw(st.sampled_from(["batch", "layer", "group", "instance", "local_response"]))
    n = draw(st.integers(1 if kind == "instance" else 0, 3))  # PyTorch's instance norm crashes on an empty batch
    g, per = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    maps = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    shape, seed = (n, g * per, *maps), draw(seeds)
    if kind == "local_response":
        options = {"size": draw(st.integers(1, 5)), "alpha": draw(st.sampled_from([1e-4, 2.0])), "k": 0.5}
        return Call("local_response_norm", {"x": shape}, options, seed=seed)
    options = {"eps": draw(st.sampled_from([1e-5, 0.1]))}
    of = shape[1:2]
    if kind == "layer":
        of = shape[draw(st.integers(0, len(shape) - 1)) :]
        options["normalized_shape"] = of
    elif kind == "group":
        options["num_groups"] = g
    weight, bias = draw(st.sampled_from([(None, None), (of, of), (of, None), (None, of)]))
    arrays: dict[str, Any] = {"x": shape, "weight": weight, "bias": bias}
    adds, bends = draw(st.booleans()), draw(st.booleans())
    # Without a residual or bias, a number may be its mean: either side of the edge of ReLU is then right.
    activation = options["activation"] = "relu" if bends and (adds or bias) else None

    def after(F: Any, y: Any, residual: Any) -> Any:
        y = y if residual is None else y + residual
        return F.relu(y) if activation else y

    def copied(F: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, **options: Any) -> Any:
        """Copy the running statistics, which PyTorch changes, for the next call."""
        stored = None if mean is None else mean.clone(), None if var is None else var.clone()
        del options["activation"]
        return after(F, getattr(F, f"{kind}_norm")(x, *stored, weight, bias, **options), residual)

    several = math.prod(maps) > 1
    if kind in ("group", "instance") and not several:  # PyTorch refuses groups of one element
        arrays["x"] = (*shape, 2)
    if kind in ("batch", "instance"):
        own = "training" if kind == "batch" else "use_input_stats"
        training = draw(st.booleans()) and (several or n != 1 or kind == "instance")
        options |= {own: training, "momentum": draw(st.sampled_from([0.1, 0.7]))}
        rng = np.random.default_rng(seed)
        mean, var = rng.standard_normal(of), rng.uniform(0.5, 2, of)
        if training and draw(st.booleans()):
            mean = var = None
        arrays = {**arrays, "running_mean": mean, "running_var": var}
        arrays = {name: arrays[name] for name in ("x", "running_mean", "running_var", "weight", "bias")}
        arrays["residual"] = arrays["x"] if adds else None
        return Call(f"{kind}_norm", arrays, options, copied, seed, ("running_mean", "running_var"))

    def by_name(F: Any, x: Any, weight: Any, bias: Any, residual: Any, **options: Any) -> Any:
        if weight is None and bias is not None:  # the gradient of PyTorch's group_norm crashes on a bias alone
            weight = bias.detach() * 0 + 1
        del options["activation"]
        return after(F, getattr(F, f"{kind}_norm")(x, weight=weight, bias=bias, **options), residual)

    arrays["residual"] = arrays["x"] if adds else None
    return Call(f"{kind}_norm", arrays, options, by_name, seed)


@st.composite
def classification_losses(draw: Any) -> Call:
    kind = draw(st.sampled_from(["labels", "probabilities", "nll"]))
    classes, seed = draw(st.integers(1, 4)), draw(seeds)
    rng = np.random.default_rng(seed)
    lead = draw(st.sampled_from([(), (0,), (1,), (2,), (5,)]))
    maps = draw(st.sampled_from([(), (), (3,), (2, 2)])) if lead else ()
    shape = (*lead, classes, *maps)
    weight = rng.uniform(0.2, 2.0, classes) if draw(st.booleans()) else None
    options: dict[str, Any] = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    if kind != "nll":
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
    if kind == "probabilities":
        target = rng.uniform(0.1, 1.0, shape)
        target /= target.sum(axis=len(lead), keepdims=True)
    else:
        target = np.asarray(rng.integers(0, classes, (*lead, *maps)))
        if target.size and draw(st.booleans()):  # ignore the label of one row, but not of the only row
            options["ignore_index"] = draw(st.sampled_from([-100, 0, classes - 1]))
            others = target.ravel()
            if others.size > 1 and options["ignore_index"] == -100:
                others[0] = -100
    x = draw(st.sampled_from([1.0, 1e4])) * rng.standard_normal(shape)
    name = "nll_loss" if kind == "nll" else "cross_entropy"

    return Call(name, {"x": x, "target": target, "weight": weight}, options, seed=seed, constants=("weight",))


@st.composite
def elementwise_losses(draw: Any) -> Call:
    name, seed, shape = draw(st.sampled_from(["mse_loss", "l1_loss", "huber_loss", "bce"])), draw(seeds), draw(shapes)
    options = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    if name == "huber_loss":
        options["delta"] = draw(st.sampled_from([0.25, 1.0, 3.0]))
    if name != "bce":
        return Call(name, {"x": shape, "target": shape}, options, seed=seed)
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 2, draw(st.sampled_from([shape, shape[-1:], (1,)]))) if draw(st.booleans()) else None
    pos_weight = rng.uniform(0.5, 2, draw(st.sampled_from([shape[-1:], (1,)]))) if draw(st.booleans()) else None
    x = draw(st.sampled_from([1.0, 1e4])) * rng.standard_normal(shape)
    arrays = {"x": x, "target": rng.uniform(0, 1, shape), "weight": weight, "pos_weight": pos_weight}

    def ordered(F: Any, x: Any, target: Any, weight: Any, pos_weight: Any, reduction: str) -> Any:
        return F.binary_cross_entropy_with_logits(x, target, weight, reduction=reduction, pos_weight=pos_weight)

    return Call("binary_cross_entropy_with_logits", arrays, options, ordered, seed, ("weight", "pos_weight"))


FAMILIES = [
    convolutions,
    transposed_convolutions,
    pools,
    whole_map_pools,
    pads,
    resizes,
    pixel_shuffles,
    activations,
    elementwise,
    softmaxes,
    shape_ops,
    pairs,
    moves,
    reductions,
    norms,
    classification_losses,
    elementwise_losses,
]
