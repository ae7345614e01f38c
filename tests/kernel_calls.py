"""Random calls of the bodies that have a kernel for the CPU: one function `(rng, exact)` per body, in `CALLS`.

`exact` asks for numbers whose sums and products have no rounding errors in float32: eighths, at most 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn._dispatch import FORMULAS
from xcnn.ops import combine
from xcnn.ops._normalise import View
from xcnn.ops._window import transposed_axes, window_axes
from xcnn.ops.activation import _PRELU
from xcnn.ops.pad import MODES, _copies
from xcnn.ops.pool import _counts, pool_axes

__all__ = ["CALLS", "BodyCall", "Seed"]

Rng = np.random.Generator


@dataclass
class Seed:
    """A generator that is made anew for each call; `drawn` numbers are drawn first."""

    seed: int
    drawn: int

    def generator(self) -> Rng:
        generator = np.random.default_rng(self.seed)
        generator.random(self.drawn, dtype=np.float32)
        return generator


@dataclass
class BodyCall:
    """The arguments of a body, in which arrays are float64 or integers.

    Attributes
    ----------
    gradients : how many there are; -1 if the result has no backward.
    exact : whether results have no rounding errors in float32.
    activation : where it is in the arguments, and the numbers at which its slope jumps.
    """

    arguments: tuple[Any, ...]
    gradients: int = 1
    exact: bool = False
    activation: tuple[int, tuple[float, ...]] | None = None


def integer(rng: Rng, low: int, high: int) -> int:
    """Return an integer from low to high, small ones more often."""
    return int(low + (high - low + 1) * rng.random() ** 2)


def one(rng: Rng, *choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def numbers(rng: Rng, shape: tuple[int, ...], exact: bool) -> np.ndarray:
    return np.asarray(rng.integers(-8, 9, shape) / 8 if exact else rng.standard_normal(shape))


def activations(exact: bool) -> list[Any]:
    """Return activations whose slope is a function of y; if exact, those that do not round eighths."""
    simple = [None, ("relu",), ("relu6",), ("hardtanh", -0.5, 2.0), ("leaky_relu", 0.25)]
    return simple if exact else [*simple, ("hardsigmoid", 0.25, 0.4), ("sigmoid",), ("tanh",)]


KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "hardtanh": (-0.5, 2.0), "leaky_relu": (0.0,), "hardsigmoid": (-1.6, 2.4)}


def jumps(place: int, activation: Any) -> tuple[int, tuple[float, ...]] | None:
    return (place, KINKS.get(activation[0], ())) if activation else None


def windows(rng: Rng, numbers: float) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], int]:
    """Draw the maps and the kernel of a convolution, and the options of its windows, and about how many products."""
    rank = one(rng, 1, 2, 2, 2, 3)
    kind = one(rng, "single", "any", "any", "any", "square", "three")
    most = {1: 9, 2: 5, 3: 3}[rank]
    kernel = (1,) * rank if kind == "single" else tuple(integer(rng, 1, most) for _ in range(rank))
    kernel = (3 if kind == "three" else kernel[0],) * rank if kind in ("square", "three") else kernel
    plain = kind == "three" or rng.random() < 0.5
    stride = (1,) * rank if plain else tuple(one(rng, 1, 1, 2, 2, 3, 4) for _ in range(rank))
    dilation = (1,) * rank if plain else tuple(one(rng, 1, 1, 2, 3) for _ in range(rank))
    pads = tuple((int(rng.integers(0, 4)), int(rng.integers(0, 4))) for _ in range(rank))
    padding = one(rng, "same", "valid", pads, tuple(k // 2 for k in kernel))
    largest = max(2, int((numbers / math.prod(kernel)) ** (1 / rank)))
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    maps = tuple(extent + integer(rng, 0, min(largest, 150)) for extent in extents)
    if rng.random() < 0.07:  # as many windows as pixels, not all of them on the map
        sizes = zip(maps, stride, extents, strict=True)
        padding = tuple((0, (n - 1) * s + extent - n) for n, s, extent in sizes)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return maps, kernel, options, math.prod(kernel) * math.prod(maps)


def channels(rng: Rng, budget: float) -> tuple[int, int, int]:
    """Draw groups and the channels of each, of x and of y."""
    if rng.random() < 0.3:  # depthwise
        return integer(rng, 1, int(min(130, max(2, budget)))), 1, one(rng, 1, 1, 1, 2, 3)
    groups = one(rng, 1, 1, 1, 2, 3, 5)
    most = int(max(2, min(140, budget / groups)))
    cg = integer(rng, 1, most)
    return groups, cg, integer(rng, 1, int(max(2, min(140, budget / groups / cg))))


def images(rng: Rng, budget: float) -> int:
    return integer(rng, 1, int(max(2, min(70, budget))))


def convolution(rng: Rng, exact: bool, transposed: bool = False) -> tuple[Any, ...]:
    """Draw x, weight, bias, windows and groups."""
    budget = 10 ** rng.uniform(2, 6.3)
    maps, kernel, options, work = windows(rng, budget / 10)
    groups, cg, og = channels(rng, budget / work)
    n = images(rng, budget / (work * groups * cg * og))
    if transposed:
        options["padding"] = tuple(min(int(rng.integers(0, 3)), k - 1) for k in kernel)
        options["output_padding"] = tuple(int(rng.integers(0, s)) for s in options["stride"])
        sizes = tuple(max(1, -(-m // s)) + 2 for m, s in zip(maps, options["stride"], strict=True))
        axes = transposed_axes("fuzz", sizes, kernel, **options)
        shape, bias = (n, groups * og, *sizes), (groups * cg,)
    else:
        axes = window_axes("fuzz", maps, kernel, **options)
        shape, bias = (n, groups * cg, *maps), (groups * og,)
    weight = numbers(rng, (groups * og, cg, *kernel), exact)
    return numbers(rng, shape, exact), weight, one(rng, None, numbers(rng, bias, exact)), axes, groups


def conv(rng: Rng, exact: bool) -> BodyCall:
    *arrays, axes, groups = convolution(rng, exact)
    activation = one(rng, *activations(exact))
    return BodyCall((*arrays, axes, groups, activation), 3, exact, jumps(5, activation))


def conv_transpose(rng: Rng, exact: bool) -> BodyCall:
    return BodyCall(convolution(rng, exact, transposed=True), 3, exact)


def followers(rng: Rng, o: int, shape: tuple[int, ...], exact: bool) -> tuple[Any, Any, Any]:
    """Draw norm, residual and any activation that does not multiply errors of rounding without limit."""
    vector = lambda: rng.standard_normal(o)  # noqa: E731
    norm = None
    if not exact and rng.random() < 0.6:
        norm = vector(), rng.uniform(0.3, 2, o), one(rng, None, vector()), one(rng, None, vector()), one(rng, 1e-5, 0.1)
    activation = one(rng, *activations(exact)) if exact or rng.random() < 0.5 else formula(rng, STEEP)
    return norm, one(rng, None, numbers(rng, shape, exact)), activation


def conv_inference(rng: Rng, exact: bool) -> BodyCall:
    x, weight, bias, axes, groups = convolution(rng, exact)
    shape = (len(x), len(weight), *(axis.out for axis in axes))
    return BodyCall((x, weight, bias, *followers(rng, len(weight), shape, exact), axes, groups), -1, exact)


def matrices(rng: Rng) -> tuple[int, int, int]:
    budget = 10 ** rng.uniform(1, 6.5)
    n = integer(rng, 1, int(min(600, budget)))
    i = integer(rng, 1, int(min(1500, max(2, budget / n))))
    n, i, o = (int(v) for v in rng.permutation([n, i, integer(rng, 1, int(min(1100, max(2, budget / n / i))))]))
    return (n, i, o) if rng.random() < 0.8 else (one(rng, 1, 2, 4, 5), i, o)


def linear(rng: Rng, exact: bool) -> BodyCall:
    n, i, o = matrices(rng)
    lead = one(rng, (n,), (n,), (1, n), (2, -(-n // 2)), ())
    arrays = numbers(rng, (*lead, i), exact), numbers(rng, (o, i), exact), one(rng, None, numbers(rng, (o,), exact))
    activation = one(rng, *activations(exact))
    return BodyCall((*arrays, activation), 3, exact, jumps(3, activation))


def linear_inference(rng: Rng, exact: bool) -> BodyCall:
    n, i, o = matrices(rng)
    lead = one(rng, (n,), (1, n), (2, -(-n // 2)), ())
    arrays = numbers(rng, (*lead, i), exact), numbers(rng, (o, i), exact), one(rng, None, numbers(rng, (o,), exact))
    return BodyCall((*arrays, *followers(rng, o, (*lead, o), exact)), -1, exact)


def matmul(rng: Rng, exact: bool) -> BodyCall:
    n, k, m = matrices(rng)
    if rng.random() < 0.3:
        return BodyCall((numbers(rng, (n, k), exact), numbers(rng, (k, m), exact)), 2, exact)
    n, k, m = (min(v, 70) for v in (n, k, m))
    batch = tuple(integer(rng, 1, 5) for _ in range(integer(rng, 1, 3)))
    leads = [tuple(1 if rng.random() < 0.3 else size for size in batch) for _ in range(2)]
    leads = [lead[int(rng.integers(len(lead) + 1)) :] if rng.random() < 0.3 else lead for lead in leads]
    return BodyCall((numbers(rng, (*leads[0], n, k), exact), numbers(rng, (*leads[1], k, m), exact)), 2, exact)


def shape_of(rng: Rng, most: int = 5, budget: float = 0.0) -> tuple[int, ...]:
    """Draw the shape of an array of one axis or several, of up to about 60,000 numbers."""
    left, shape = budget or 10 ** rng.uniform(0, 4.8), []
    for _ in range(int(rng.integers(1, most + 1))):
        shape.append(integer(rng, 1, int(min(3000, max(1, left)))))
        left /= shape[-1]
    return tuple(int(v) for v in rng.permutation(shape))


STEEP = "exp", "log", "sqrt"
"""Activations of any slope: near 0, or of large numbers."""


def formula(rng: Rng, but: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """Draw any activation, but not some, with parameters."""
    name = one(rng, *(name for name in FORMULAS if name not in but))
    options: dict[str, list[tuple[Any, ...]]] = {
        "leaky_relu": [(0.0,), (0.3,), (1.5,)],
        "hardtanh": [(-0.5, 3.0), (1.0, 2.0)],
        "hardsigmoid": [(0.2, 0.4), (3.0, -2.0)],
        "softplus": [(2.5, 1.0), (0.1, 30.0)],
        "elu": [(0.0,), (2.0,)],
        "celu": [(0.7,)],
        "gelu": [("tanh",)],
    }
    return (name, *FORMULAS[name].check("fuzz", *one(rng, (), *options.get(name, []))))


SPECIAL = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 0.5, 2.0, 20.0, -20.0, 88.8, -104.0, 709.9, -746.0, 1e30, -1e30]
"""Numbers at which a formula may go wrong."""


def elementwise(rng: Rng, exact: bool) -> BodyCall:
    shape, activation = shape_of(rng), formula(rng)
    x = one(rng, 1.0, 10.0, 1e-6, 100.0) * rng.standard_normal(shape)
    if activation[0] in ("log", "sqrt") and rng.random() < 0.7:
        x = np.abs(x) + 1e-3
    chosen = rng.random(shape) < one(rng, 0.0, 0.3)
    return BodyCall((np.where(chosen, rng.choice(SPECIAL, shape), x), activation))


def pair(rng: Rng, exact: bool) -> BodyCall:
    name = one(rng, "_ADD", "_SUBTRACT", "_MULTIPLY", "_DIVIDE", "_MAXIMUM", "_MINIMUM", "PRELU")
    rule = _PRELU if name == "PRELU" else getattr(combine, name)
    shape = shape_of(rng)
    kind = one(rng, "same", "ones", "trailing", "any", "channel", "same" if rule is _PRELU else "number")
    shapes: list[tuple[int, ...]] = [shape, shape]
    if kind == "ones":
        shapes[1] = tuple(1 if rng.random() < 0.5 else n for n in shape)
    elif kind == "trailing":
        shapes[1] = shape[int(rng.integers(len(shape) + 1)) :]
    elif kind == "any":
        shapes = [tuple(1 if rng.random() < 0.3 else n for n in shape) for _ in range(2)]
    elif kind == "channel":
        shapes[1] = (*shape[1:2], *(1,) * len(shape[2:]))
    if kind in ("ones", "trailing", "any") and rng.random() < 0.3:
        shapes.reverse()
    x, other = (numbers(rng, one_shape, exact) for one_shape in shapes)
    if name == "_DIVIDE":
        other, exact = np.asarray(np.abs(other) + 0.5), False
    given: Any = float(other.flat[0]) if kind == "number" else other
    activation = one(rng, *activations(exact), None, None) if name == "_ADD" else None
    return BodyCall((x, given, rule, activation), 2, exact, jumps(3, activation))


def softmax(rng: Rng, exact: bool) -> BodyCall:
    shape = shape_of(rng, 4)
    return BodyCall((one(rng, 1.0, 30.0) * rng.standard_normal(shape), int(rng.integers(len(shape)))))


def cross_entropy(rng: Rng, exact: bool) -> BodyCall:
    n, classes = integer(rng, 1, 300), integer(rng, 1, one(rng, 12, 150, 3000))
    maps = one(rng, (), (), (integer(rng, 1, 3),), (integer(rng, 1, 12), integer(rng, 1, 120)))
    n = max(1, min(n, 60_000 // (classes * math.prod(maps))))
    shape = (n, classes, *maps)
    target = rng.integers(0, classes, (n, *shape[2:])).astype(one(rng, np.int64, np.int32, np.uint8, np.int16))
    target = target % classes if classes < 128 else np.asarray(target % 128)
    ignored = one(rng, -100, int(target.flat[0]))
    if target.dtype == np.int64 and ignored == -100:
        target[rng.random(target.shape) < 0.2] = -100
    weight = rng.uniform(0.2, 2, classes) if rng.random() < 0.1 else None
    x = one(rng, 1.0, 30.0) * rng.standard_normal(shape)
    return BodyCall(
        (x, target, weight, ignored, one(rng, "mean", "sum", "mean", "none"), one(rng, 0.0, 0.0, 0.1), True), 3
    )


def norm(rng: Rng, exact: bool) -> BodyCall:
    n, g, s = (integer(rng, 1, most) for most in one(rng, (40, 8, 20), (4, 2, 150), (3, 40, 3), (60, 3, 3)))
    pixels = integer(rng, 1, int(max(2, min(3000, 10 ** rng.uniform(1, 5) / (n * g * s)))))
    maps = one(rng, (pixels,), (pixels, 1), (1, pixels), (2, pixels)) if pixels > 1 else ()
    shape, count = (n, g * s, *maps), math.prod(maps)
    kind = one(rng, "batch", "given", "group", "instance", "layer", "features", "given")
    given = None
    if kind in ("batch", "given"):
        view, of = View((n, g * s, count), (0, 2), (1, g * s, 1)), (g * s,)
        if kind == "given":
            given = rng.standard_normal(g * s), rng.uniform(0.3, 2, g * s)
    elif kind in ("group", "instance"):
        g, s = (g * s, 1) if kind == "instance" else (g, s)
        view, of = View((n, g, s, count), (2, 3), (1, g, s, 1)), (g * s,)
    else:
        of = shape[1:] if kind == "layer" else shape[-1:]
        size = math.prod(of)
        view = View((math.prod(shape) // size, size), (1,), (1, size))
    weight, bias = (one(rng, None, rng.standard_normal(of)) for _ in range(2))
    x = one(rng, 0.0, 0.0, 30.0) + one(rng, 1.0, 5.0) * rng.standard_normal(shape)
    eps = one(rng, 1e-5, 0.1)
    eps = 1.0 if view.count == 1 else eps  # a large factor of terms that cancel shows the rounding errors of all codes
    arguments = x, weight, bias, eps, view, given, one(rng, None, rng.standard_normal(shape))
    activation = one(rng, *activations(False), None, None)
    return BodyCall((*arguments, activation), 4, activation=jumps(7, activation))


def _batch(rng: Rng) -> tuple[np.ndarray, View]:
    """Draw a batch of maps, and how batch norm views it."""
    n, c, size = (integer(rng, 1, most) for most in one(rng, (40, 64, 20), (4, 150, 900), (60, 3, 3)))
    x = one(rng, 0.0, 0.0, 30.0) + one(rng, 1.0, 5.0) * rng.standard_normal((n, c, size))
    return x, View((n, c, size), (0, 2), (1, c, 1))


def moments(rng: Rng, exact: bool) -> BodyCall:
    return BodyCall(_batch(rng), -1)


def norm_gradient(rng: Rng, exact: bool) -> BodyCall:
    x, view = _batch(rng)
    z, of = 4 * rng.standard_normal(x.shape), (x.shape[1],)
    activation, y = one(
        rng,
        (None, None),
        (("relu",), np.maximum(z, 0)),
        (("relu6",), np.clip(z, 0, 6)),
        (("sigmoid",), 1 / (1 + np.exp(-z))),
    )
    mean, shift, slope, weight = (rng.standard_normal(of) for _ in range(4))
    rstd = rng.uniform(0.3, 2, of)
    return BodyCall((x, rng.standard_normal(x.shape), y, weight, mean, rstd, shift, slope, view, activation), -1)


def norm_inference(rng: Rng, exact: bool) -> BodyCall:
    shape = (integer(rng, 1, 40), integer(rng, 1, 100), *shape_of(rng, 3, 100)[: integer(rng, 0, 3)])
    norm = None
    while norm is None:
        norm, residual, activation = followers(rng, shape[1], shape, False)
    return BodyCall((rng.standard_normal(shape), norm, residual, activation), -1)


def pooled(rng: Rng) -> tuple[tuple[int, ...], Any, bool]:
    """Draw the shape of x, the windows of a pool, and whether it pools only pixels of the map."""
    while True:
        maps, kernel, options, work = windows(rng, 10 ** rng.uniform(1, 4))
        stride = one(rng, options["stride"], kernel, None)
        extents = [d * (k - 1) + 1 for d, k in zip(options["dilation"], kernel, strict=True)]
        pads = tuple((int(rng.integers(0, e)), int(rng.integers(0, e))) for e in extents)
        padding = one(rng, "valid", "same", pads, tuple(e // 2 for e in extents))
        if rng.random() < 0.1:
            kernel, stride, padding, maps = maps, None, "valid", maps
        try:
            ceil = bool(rng.integers(2))
            axes = pool_axes("fuzz", maps, kernel, stride, padding, options["dilation"], ceil)
        except Exception:  # 'same' pads more than a window
            continue
        lead = one(rng, (images(rng, 20), integer(rng, 1, 20)), (integer(rng, 1, 300),))
        lead = lead if math.prod(lead) * work < 3e6 else (1, integer(rng, 1, 3))
        return (*lead, *maps), axes, bool(rng.integers(2))


def running_statistics(rng: Rng, exact: bool) -> BodyCall:
    means, variances = rng.standard_normal((2, c := integer(rng, 1, 300))), rng.uniform(0, 2, (2, c))
    return BodyCall((means[0], variances[0], means[1], variances[1], rng.random(), 1 + rng.random()), -1)


def max_pool(rng: Rng, exact: bool) -> BodyCall:
    shape, axes, _ = pooled(rng)
    x = rng.choice([-np.inf, -1.0, 0.0, 2.0], size=shape, p=[0.1, 0.3, 0.3, 0.3])
    return BodyCall((x if exact else numbers(rng, shape, bool(rng.integers(2))), axes), exact=exact)


def global_max(rng: Rng, exact: bool) -> BodyCall:
    shape = integer(rng, 1, 5), integer(rng, 1, 9), integer(rng, 1, 200)
    x = rng.choice([-np.inf, -1.0, 0.0, 2.0], size=shape, p=[0.7, 0.1, 0.1, 0.1])
    return BodyCall((x if exact else numbers(rng, shape, bool(rng.integers(2))),), exact=exact)


def avg_pool(rng: Rng, exact: bool) -> BodyCall:
    shape, axes, include = pooled(rng)
    counts = tuple(_counts(axis, include) for axis in axes)
    divisor = one(rng, None, None, 1, 5)
    if any(0 in of_axis for of_axis in counts):
        divisor = divisor or 3
    return BodyCall((numbers(rng, shape, exact), axes, counts, divisor))


def adaptive(rng: Rng, exact: bool) -> BodyCall:
    rank = one(rng, 1, 2, 2, 3)
    maps = tuple(integer(rng, 1, (200, 30, 9)[rank - 1]) for _ in range(rank))
    plan = tuple((size, integer(rng, 1, 9)) for size in maps)
    return BodyCall((numbers(rng, (*one(rng, (3, 5), (40,), (2, 1)), *maps), exact), plan), exact=exact)


def adaptive_avg(rng: Rng, exact: bool) -> BodyCall:
    return BodyCall(adaptive(rng, exact).arguments)


def reduction(rng: Rng, exact: bool) -> BodyCall:
    shape = shape_of(rng, 4)
    first = int(rng.integers(len(shape)))
    axes = tuple(range(first, len(shape))) if rng.random() < 0.7 else (first,)
    return BodyCall((numbers(rng, shape, exact), axes, bool(rng.integers(2)), rng.random() < 0.8))


def permuted(rng: Rng, exact: bool) -> BodyCall:
    shape = shape_of(rng, 6)
    return BodyCall((rng.standard_normal(shape), tuple(int(v) for v in rng.permutation(len(shape)))), 1, True)


def joined(rng: Rng, exact: bool) -> BodyCall:
    before, after = shape_of(rng, 2, 300.0), shape_of(rng, 2, 300.0)
    sizes = [integer(rng, 1, 9) for _ in range(integer(rng, 1, 4))]
    return BodyCall((len(before), *(rng.standard_normal((*before, size, *after)) for size in sizes)), -1, True)


def pad(rng: Rng, exact: bool) -> BodyCall:
    shape, mode, plan = shape_of(rng), one(rng, *MODES), []
    for dim in range(-1, -1 - integer(rng, 1, len(shape)), -1):
        size = shape[dim]
        most = min(9, int(min(99, MODES[mode].largest(size))))
        sides = [integer(rng, -min(2, (size - 1) // 2), most) for _ in range(2)]
        if max(0, *sides) > MODES[mode].largest(size + sum(min(0, side) for side in sides)):
            sides = [0, most]
        if any(sides):
            plan.append((dim, size, size + sum(sides), _copies(size, *sides, MODES[mode])))
    if not plan:
        return pad(rng, exact)
    return BodyCall((numbers(rng, shape, exact), tuple(plan), one(rng, 0.0, 0.5, math.nan, -math.inf)), 1, True)


def added(rng: Rng, exact: bool) -> BodyCall:
    shape = shape_of(rng, 4)
    return BodyCall((rng.standard_normal(shape), rng.standard_normal(shape[rng.random() < 0.1 :])), -1, True)


def interpolate(rng: Rng, exact: bool) -> BodyCall:
    rank = one(rng, 1, 2, 2, 3)
    maps = tuple(integer(rng, 1, (200, 40, 9)[rank - 1]) for _ in range(rank))
    outs = tuple(one(rng, size, 2 * size, max(1, size // 2), integer(rng, 1, 50 // rank)) for size in maps)
    mode, align = one(rng, "nearest", "nearest-exact", "linear", "linear"), bool(rng.integers(2))
    mode = ("linear", "bilinear", "trilinear")[rank - 1] if mode == "linear" else mode
    axes = zip(maps, outs, strict=True)
    plan = tuple((dim, (n, out, n / out, mode, align)) for dim, (n, out) in enumerate(axes, -rank) if n != out)
    lead = integer(rng, 1, 10), integer(rng, 1, 10)
    if not plan:
        return interpolate(rng, exact)
    return BodyCall((numbers(rng, (*lead, *maps), exact), plan))


def dropout(rng: Rng, exact: bool) -> BodyCall:
    shape = one(rng, shape_of(rng), (integer(rng, 65_000, 300_000),))
    seed = Seed(int(rng.integers(1 << 32)), integer(rng, 0, 3))
    return BodyCall((numbers(rng, shape, exact), one(rng, 0.0, 0.1, 0.5, 0.9, 1.0), seed), 1)


CALLS: dict[str, Callable[[Rng, bool], BodyCall]] = {
    "conv": conv,
    "conv_inference": conv_inference,
    "conv_transpose": conv_transpose,
    "linear": linear,
    "linear_inference": linear_inference,
    "matmul": matmul,
    "elementwise": elementwise,
    "pair": pair,
    "softmax": softmax,
    "log_softmax": softmax,
    "cross_entropy": cross_entropy,
    "norm": norm,
    "moments": moments,
    "norm_gradient": norm_gradient,
    "norm_inference": norm_inference,
    "running_statistics": running_statistics,
    "global_max": global_max,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "adaptive_avg": adaptive_avg,
    "adaptive_max": adaptive,
    "reduction": reduction,
    "permuted": permuted,
    "joined": joined,
    "pad": pad,
    "added": added,
    "interpolate": interpolate,
    "dropout": dropout,
}
