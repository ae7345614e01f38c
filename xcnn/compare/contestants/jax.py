"""JAX on the CPU: one compiled function for a step, with donated buffers, in both memory layouts."""

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xcnn import nn
from xcnn._check import is_integer
from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Step, bound
from xcnn.errors import UsageError
from xcnn.ops._formula import FORMULAS
from xcnn.ops._window import window_axes
from xcnn.ops.adaptive import adaptive_avg_pool1d, adaptive_sizes
from xcnn.ops.pool import pool_axes
from xcnn.parameter import Buffer, Parameter

__all__ = ["opened"]

Arrays = dict[str, Any]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Yield the step of JAX in a memory layout, `"NCHW"` or `"NHWC"`. The environment sets the number of threads."""
    import jax
    import jax.numpy as jnp

    network, rank = case.network(), len(case.shape) - 1
    kernels = {f"{name}.weight" for name, one in network.modules() if _is_conv(one)} if way == "NHWC" else set()
    arrays = {
        name: jnp.asarray(np.moveaxis(array, (0, 1), (-1, -2)) if name in kernels else array)
        for name, array in network.state_dict().items()
    }
    trained = {name for name, _ in network.named_parameters()}
    x, y = case.arrays()
    images, labels = jnp.asarray(np.moveaxis(x, 1, -1) if way == "NHWC" else x), jnp.asarray(y)

    def loss_of(weights: Arrays, statistics: Arrays, key: Any, images: Any, labels: Any) -> tuple[Any, Arrays]:
        run = _Pass(weights | statistics, way, rank, key)
        scores = jax.nn.log_softmax(run.plain(run.forward(network, "", images)), axis=1)
        chosen = jnp.take_along_axis(scores, jnp.expand_dims(labels, 1), axis=1)
        return -jnp.mean(chosen), statistics | run.updates

    def train(weights: Arrays, velocity: Arrays, statistics: Arrays, key: Any, *batch: Any) -> tuple[Any, ...]:
        key, own = jax.random.split(key)
        (loss, statistics), grads = jax.value_and_grad(loss_of, has_aux=True)(weights, statistics, own, *batch)
        velocity = {name: MOMENTUM * velocity[name] + grads[name] for name in grads}
        return loss, {name: weights[name] - case.lr * velocity[name] for name in weights}, velocity, statistics, key

    def infer(arrays: Arrays, images: Any) -> Any:
        run = _Pass(arrays, way, rank)
        return run.plain(run.forward(network, "", images))

    if case.mode == "infer":
        scores = jax.jit(infer)
        yield lambda: np.asarray(scores(arrays, images))
        return
    compiled = jax.jit(train, donate_argnums=(0, 1, 2))
    weights = {name: array for name, array in arrays.items() if name in trained}
    velocity = {name: jnp.zeros_like(array) for name, array in weights.items()}
    others = {name: array for name, array in arrays.items() if name not in trained}
    held: Any = (weights, velocity, others, jax.random.key(0))

    def step() -> float:
        nonlocal held
        loss, *held = compiled(*held, images, labels)
        return float(loss)

    yield step


def _is_conv(module: nn.Module) -> bool:
    return bound(module, "JAX")[0] in ("conv1d", "conv2d", "conv3d")


class _Pass:
    """A forward pass in JAX's operations, for JAX to trace; `updates` holds the new running statistics.

    In the layout NHWC, every array with as many axes as the images has axis 1 last. Ops that are not made for that get
    arrays in the usual order, and the compiler removes the transposes that cancel.
    """

    def __init__(self, arrays: Arrays, layout: str, rank: int, key: Any = None) -> None:
        self.arrays, self.rank, self.key, self.train = arrays, rank, key, key is not None
        self.updates: Arrays = {}
        self.last = layout == "NHWC"
        self.maps = tuple(range(1, rank + 1) if self.last else range(2, rank + 2))
        self.channels = -1 if self.last else 1

    def plain(self, x: Any) -> Any:
        """Return an array in the usual order of axes."""
        import jax.numpy as jnp

        return jnp.moveaxis(x, -1, 1) if self.last and x.ndim == self.rank + 2 else x

    def ordered(self, x: Any) -> Any:
        """Return an array in the order of this pass from one in the usual order."""
        import jax.numpy as jnp

        return jnp.moveaxis(x, 1, -1) if self.last and x.ndim == self.rank + 2 else x

    def forward(self, m: Any, key: str, x: Any) -> Any:
        """Return the output of a module, whose arrays have the prefix `key`."""
        if isinstance(m, Parameter | Buffer):
            return self.ordered(self.arrays[key.removesuffix(".")])
        op, slots, options = bound(m, "JAX")
        if isinstance(m, nn.Graph):
            inputs = m._plan.inputs
            values = {inputs: x} if isinstance(inputs, str) else dict(zip(inputs, x, strict=True))
            for name, node, sources in m._plan.nodes:
                taken = values[sources] if isinstance(sources, str) else tuple(values[one] for one in sources)
                values[name] = self.forward(node, f"{key}{name}.", taken)
            output = m._plan.output
            return values[output] if isinstance(output, str) else tuple(values[one] for one in output)
        if isinstance(m, nn.Identity):
            return x
        options, activation = dict(options), options.get("activation")
        options.pop("activation", None)
        y = self._called(op, type(m).__name__, key, x, {name: self.arrays.get(key + name) for name in slots}, options)
        if activation is None:
            return y
        name, *parameters = (activation,) if isinstance(activation, str) else activation
        return _elementwise(name, FORMULAS[name].check("JAX", *parameters), y)

    def _called(self, op: str, kind: str, key: str, x: Any, arrays: Arrays, options: Arrays) -> Any:
        several = isinstance(x, tuple)
        if op in FORMULAS:
            return _elementwise(op, FORMULAS[op].check("JAX", **options), x)
        if op in _AWARE:
            return _AWARE[op](self, x, **({"key": key} if op == "batch_norm" else {}), **arrays, **options)
        if op not in _PLAIN:
            what = f"the op {op} of " if op else ""
            raise UsageError(f"bench: JAX has no function for {what}{kind}")
        plain = map(self.plain, x) if several else (self.plain(x),)
        return self.ordered(_PLAIN[op](*plain, **arrays, **options))

    def _conv(self, x: Any, weight: Any, bias: Any, groups: int, **options: Any) -> Any:
        from jax import lax

        kernel = weight.shape[: self.rank] if self.last else weight.shape[2:]
        axes = window_axes("JAX", self._sizes(x), kernel, **options)
        letters = "DHW"[-self.rank :]
        layout = f"N{letters}C" if self.last else f"NC{letters}"
        y = lax.conv_general_dilated(
            x,
            weight,
            [axis.stride for axis in axes],
            [(axis.before, axis.after) for axis in axes],
            rhs_dilation=[axis.dilation for axis in axes],
            dimension_numbers=(layout, f"{letters}IO" if self.last else f"OI{letters}", layout),
            feature_group_count=groups,
        )
        return y if bias is None else y + self._per_channel(bias, y)

    def _batch_norm(self, x: Any, key: str, eps: float, momentum: float | None, training: bool, **arrays: Any) -> Any:
        import jax.numpy as jnp

        if momentum is None or any(array is None for array in arrays.values()):
            raise UsageError("bench: for JAX, a batch norm takes affine, track_running_stats and a momentum only")
        weight, bias, mean, var = (arrays[name] for name in ("weight", "bias", "running_mean", "running_var"))
        if self.train:
            axes = (0, *self.maps) if x.ndim == self.rank + 2 else (0,)
            old_mean, old_var, count = mean, var, x.size / mean.size
            mean, var = x.mean(axes), x.var(axes)
            self.updates[key + "running_mean"] = old_mean + momentum * (mean - old_mean)
            self.updates[key + "running_var"] = old_var + momentum * (var * count / (count - 1) - old_var)
        scale = weight / jnp.sqrt(var + eps)
        return x * self._per_channel(scale, x) + self._per_channel(bias - mean * scale, x)

    def _pool(self, x: Any, first: Any, reduce: Any, axes: Any) -> Any:
        """Return the reduction of each window."""
        from jax import lax

        def per_axis(values: list[Any], other: Any) -> tuple[Any, ...]:
            return tuple(values[self.maps.index(axis)] if axis in self.maps else other for axis in range(x.ndim))

        return lax.reduce_window(
            x,
            first,
            reduce,
            per_axis([axis.kernel for axis in axes], 1),
            per_axis([axis.stride for axis in axes], 1),
            per_axis([(axis.before, axis.after) for axis in axes], (0, 0)),
            window_dilation=per_axis([axis.dilation for axis in axes], 1),
        )

    def _max_pool(self, x: Any, **options: Any) -> Any:
        from jax import lax

        return self._pool(x, -np.inf, lax.max, pool_axes("JAX", self._sizes(x), **options))

    def _avg_pool(self, x: Any, count_include_pad: bool = True, divisor_override: Any = None, **options: Any) -> Any:
        from jax import lax

        axes = pool_axes("JAX", self._sizes(x), **options)
        count_include_pad &= options["padding"] not in (0, (0,) * self.rank)
        if divisor_override is not None or (options.get("ceil_mode") and count_include_pad):
            raise UsageError("bench: for JAX, an average pool takes no divisor_override, nor ceil_mode with padding")
        sums, size = self._pool(x, 0.0, lax.add, axes), float(math.prod(axis.kernel for axis in axes))
        if count_include_pad:
            return sums / size
        return sums / self._pool(np.ones(x.shape, x.dtype), 0.0, lax.add, axes)

    def _adaptive_avg_pool(self, x: Any, output_size: Any) -> Any:
        import jax.numpy as jnp

        sizes = adaptive_sizes("JAX", self._sizes(x), output_size)
        if set(sizes) == {1}:
            return x.mean(self.maps, keepdims=True)
        for axis, out in zip(self.maps, sizes, strict=True):
            means, _ = adaptive_avg_pool1d(np.eye(x.shape[axis], dtype=x.dtype), out)  # the windows may overlap
            x = jnp.moveaxis(jnp.tensordot(x, means, ([axis], [0])), -1, axis)
        return x

    def _dropout(self, x: Any, p: float, training: bool, rng: Any = None, maps: bool = False) -> Any:
        import jax

        if not self.train or not p:
            return x
        self.key, key = jax.random.split(self.key)
        shape = tuple(1 if maps and axis in self.maps else size for axis, size in enumerate(x.shape))
        return x * jax.random.bernoulli(key, 1 - p, shape) / (1 - p)

    def _prelu(self, x: Any, weight: Any) -> Any:
        import jax.numpy as jnp

        return jnp.where(x > 0, x, (weight if weight.size == 1 else self._per_channel(weight, x)) * x)

    def _sizes(self, x: Any) -> tuple[int, ...]:
        return tuple(x.shape[axis] for axis in self.maps)

    def _per_channel(self, array: Any, x: Any) -> Any:
        return array.reshape([-1 if axis == self.channels % x.ndim else 1 for axis in range(x.ndim)])

    def _concat(self, xs: Any, dim: int = 1) -> Any:
        import jax.numpy as jnp

        if dim != 1:
            raise UsageError(f"bench: for JAX, Concat takes dim 1 only, got {dim}")
        return jnp.concatenate(xs, self.channels if xs[0].ndim == self.rank + 2 else 1)


def _elementwise(op: str, parameters: Sequence[Any], x: Any) -> Any:
    """Apply a formula: JAX's function of the same meaning, or the formula itself."""
    import jax
    import jax.numpy as jnp

    name = {"hardswish": "hard_swish", "softsign": "soft_sign"}.get(op, op)
    if name in ("relu", "relu6", "silu", "sigmoid", "hard_swish", "mish", "selu", "soft_sign"):
        return getattr(jax.nn, name)(x)
    if op in ("elu", "celu", "leaky_relu"):
        return getattr(jax.nn, op)(x, *parameters)
    if op == "gelu":
        return jax.nn.gelu(x, approximate=parameters[0] == "tanh")
    return FORMULAS[op].forward(jnp, x, *parameters)


def _group_norm(x: Any, num_groups: int, weight: Any, bias: Any, eps: float) -> Any:
    grouped = x.reshape(len(x), num_groups, -1)
    y = _standardized(grouped, 2, eps).reshape(x.shape)
    return _affine(y, weight, bias, (-1, *(1,) * (x.ndim - 2)))


def _instance_norm(x: Any, weight: Any, bias: Any, eps: float, running_mean: Any, **options: Any) -> Any:
    if running_mean is not None:
        raise UsageError("bench: for JAX, an instance norm takes no running statistics")
    return _affine(_standardized(x, tuple(range(2, x.ndim)), eps), weight, bias, (-1, *(1,) * (x.ndim - 2)))


def _layer_norm(x: Any, normalized_shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    shape = (normalized_shape,) if is_integer(normalized_shape) else tuple(normalized_shape)
    return _affine(_standardized(x, tuple(range(-len(shape), 0)), eps), weight, bias, shape)


def _standardized(x: Any, axes: Any, eps: float) -> Any:
    import jax

    return (x - x.mean(axes, keepdims=True)) * jax.lax.rsqrt(x.var(axes, keepdims=True) + eps)


def _affine(y: Any, weight: Any, bias: Any, shape: tuple[int, ...]) -> Any:
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    return x @ weight.T + (0 if bias is None else bias)


def _flatten(x: Any, start_dim: int, end_dim: int) -> Any:
    start, end = start_dim % x.ndim, end_dim % x.ndim
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


def _conv_transpose(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    from jax import lax

    rank = x.ndim - 2
    stride = options["stride"]
    stride = (stride,) * rank if is_integer(stride) else tuple(stride)
    others = {key: options[key] for key in ("padding", "output_padding", "dilation", "groups")}
    simple = {"padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    if any(value not in (simple[key], (simple[key],) * rank) for key, value in others.items()):
        raise UsageError("bench: for JAX, a transposed convolution takes a stride only")
    letters = "DHW"[-rank:]
    y = lax.conv_general_dilated(
        x,
        weight[(..., *(slice(None, None, -1),) * rank)],
        (1,) * rank,
        [(k - 1, k - 1) for k in weight.shape[2:]],
        lhs_dilation=stride,
        dimension_numbers=(f"NC{letters}", f"IO{letters}", f"NC{letters}"),
    )
    return _affine(y, None, bias, (-1, *(1,) * rank))


def _channel_shuffle(x: Any, groups: int) -> Any:
    shape = x.shape
    return x.reshape(shape[0], groups, -1, *shape[2:]).swapaxes(1, 2).reshape(shape)


def _interpolate(x: Any, size: Any, scale_factor: Any, mode: str, **options: Any) -> Any:
    import jax

    single = isinstance(scale_factor, int | float)
    factor = (scale_factor,) * (x.ndim - 2) if single else scale_factor
    sizes = tuple(int(n * f) for n, f in zip(x.shape[2:], factor, strict=True)) if factor else size
    sizes = (sizes,) * (x.ndim - 2) if is_integer(sizes) else tuple(sizes)
    if options.get("align_corners") or any(new < n for new, n in zip(sizes, x.shape[2:], strict=True)):
        raise UsageError("bench: for JAX, interpolate enlarges only, without align_corners")
    return jax.image.resize(x, (*x.shape[:2], *sizes), "nearest" if mode == "nearest" else "linear")


def _pad(x: Any, pad: Sequence[int], mode: str, value: float) -> Any:
    import jax.numpy as jnp

    sides = [(0, 0)] * (x.ndim - len(pad) // 2) + [*zip(pad[::2], pad[1::2], strict=True)][::-1]
    if mode == "constant" and min(pad) >= 0:
        return jnp.pad(x, sides, constant_values=value)
    if mode in ("reflect", "replicate") and min(pad) >= 0:
        return jnp.pad(x, sides, mode={"reflect": "reflect", "replicate": "edge"}[mode])
    raise UsageError(f"bench: for JAX, Pad takes constant, reflect and replicate without cropping, got {mode}")


_RANKS = ("1d", "2d", "3d")

_AWARE: dict[str, Callable[..., Any]] = {
    "batch_norm": _Pass._batch_norm,
    "concat": _Pass._concat,
    "global_avg_pool": lambda run, x: x.mean(run.maps),
    "global_max_pool": lambda run, x: x.max(run.maps),
    "dropout": _Pass._dropout,
    "prelu": _Pass._prelu,
    **dict.fromkeys((f"conv{rank}" for rank in _RANKS), _Pass._conv),
    **dict.fromkeys((f"max_pool{rank}" for rank in _RANKS), _Pass._max_pool),
    **dict.fromkeys((f"avg_pool{rank}" for rank in _RANKS), _Pass._avg_pool),
    **dict.fromkeys((f"adaptive_avg_pool{rank}" for rank in _RANKS), _Pass._adaptive_avg_pool),
    **dict.fromkeys((f"dropout{rank}" for rank in _RANKS), functools.partial(_Pass._dropout, maps=True)),
}
"""The methods by the names of the ops, for arrays in the order of the pass: `method(run, x, **arrays, **options)`."""

_PLAIN: dict[str, Callable[..., Any]] = {
    "add": lambda *xs: functools.reduce(operator.add, xs),
    "multiply": lambda *xs, other=1: functools.reduce(operator.mul, xs) * other,
    "channel_shuffle": _channel_shuffle,
    "flatten": _flatten,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "interpolate": _interpolate,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "pad": _pad,
    "permute": lambda x, dims: x.transpose(dims),
    **dict.fromkeys((f"conv_transpose{rank}" for rank in _RANKS), _conv_transpose),
}
"""The functions by the names of the ops, for arrays in the usual order: `function(*xs, **arrays, **options)`."""
