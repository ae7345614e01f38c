"""JAX on the CPU: one compiled function for a step, with donated buffers, in both memory layouts."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Step, bound
from xcnn.errors import UsageError
from xcnn.ops._window import window_axes
from xcnn.ops.adaptive import adaptive_avg_pool1d, adaptive_sizes
from xcnn.ops.pool import pool_axes

__all__ = ["opened"]

Arrays = dict[str, Any]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Yield the step of JAX in a memory layout, `"NCHW"` or `"NHWC"`. The environment sets the number of threads."""
    import jax
    import jax.numpy as jnp

    network = case.network()
    arrays = {name: _placed(array, way) for name, array in network.state_dict().items()}
    trained = {name for name, _ in network.named_parameters()}
    x, y = case.arrays()
    images, labels = jnp.asarray(x.transpose(0, 2, 3, 1) if way == "NHWC" else x), jnp.asarray(y)

    def loss_of(weights: Arrays, statistics: Arrays, images: Any, labels: Any) -> tuple[Any, Arrays]:
        run = _Pass(weights | statistics, way, train=True)
        scores = jax.nn.log_softmax(run.forward(network, "", images))
        return -jnp.mean(scores[jnp.arange(len(labels)), labels]), statistics | run.updates

    def train(weights: Arrays, velocity: Arrays, statistics: Arrays, *batch: Any) -> tuple[Any, ...]:
        (loss, statistics), grads = jax.value_and_grad(loss_of, has_aux=True)(weights, statistics, *batch)
        velocity = {name: MOMENTUM * velocity[name] + grads[name] for name in grads}
        return loss, {name: weights[name] - case.lr * velocity[name] for name in weights}, velocity, statistics

    def infer(arrays: Arrays, images: Any) -> Any:
        return _Pass(arrays, way, train=False).forward(network, "", images)

    if case.mode == "infer":
        scores = jax.jit(infer)
        yield lambda: np.asarray(scores(arrays, images))
        return
    compiled = jax.jit(train, donate_argnums=(0, 1, 2))
    weights = {name: array for name, array in arrays.items() if name in trained}
    velocity = {name: jnp.zeros_like(array) for name, array in weights.items()}
    held: Any = (weights, velocity, {name: array for name, array in arrays.items() if name not in trained})

    def step() -> float:
        nonlocal held
        loss, *held = compiled(*held, images, labels)
        return float(loss)

    yield step


def _placed(array: np.ndarray, layout: str) -> Any:
    """Return an array of JAX. The axes of a convolution's weights are put in the order of the layout."""
    import jax.numpy as jnp

    return jnp.asarray(array.transpose(2, 3, 1, 0) if layout == "NHWC" and array.ndim == 4 else array)


class _Pass:
    """A forward pass in JAX's operations, for JAX to trace; `updates` holds the new running statistics."""

    def __init__(self, arrays: Arrays, layout: str, train: bool) -> None:
        self.arrays, self.layout, self.train = arrays, layout, train
        self.updates: Arrays = {}
        self.maps = (layout.index("H"), layout.index("W"))

    def forward(self, m: Any, key: str, x: Any) -> Any:
        """Return the output of a module, whose arrays have the prefix `key`."""
        op, slots, options = bound(m, "JAX")
        if isinstance(m, nn.Graph):
            values = {m._plan.inputs: x}
            for name, node, inputs in m._plan.nodes:
                taken = values[inputs] if isinstance(inputs, str) else tuple(values[one] for one in inputs)
                values[name] = self.forward(node, f"{key}{name}.", taken)
            return values[m._plan.output]
        if isinstance(m, nn.Identity):
            return x
        if op not in _OPS:
            what = f"the op {op} of " if op else ""
            raise UsageError(f"bench: JAX has no function for {what}{type(m).__name__}")
        named = {name: self.arrays.get(key + name) for name in slots}
        activation = options.pop("activation", None)
        if activation not in (None, "relu", ("relu",)):
            raise UsageError(f"bench: JAX has no function for the activation {activation!r} of {type(m).__name__}")
        y = _OPS[op](self, x, key=key, **named, **options) if slots else _OPS[op](self, x, **options)
        return self._relu(y) if activation else y

    def _add(self, xs: Any) -> Any:
        return functools.reduce(operator.add, xs)

    def _linear(self, x: Any, weight: Any, bias: Any, key: str) -> Any:
        return x @ weight.T + (0 if bias is None else bias)

    def _conv(self, x: Any, weight: Any, bias: Any, key: str, groups: int, **options: Any) -> Any:
        from jax import lax

        kernel = weight.shape[:2] if self.layout == "NHWC" else weight.shape[2:]
        axes = window_axes("JAX", self._sizes(x), kernel, **options)
        y = lax.conv_general_dilated(
            x,
            weight,
            [axis.stride for axis in axes],
            [(axis.before, axis.after) for axis in axes],
            rhs_dilation=[axis.dilation for axis in axes],
            dimension_numbers=(self.layout, "HWIO" if self.layout == "NHWC" else "OIHW", self.layout),
            feature_group_count=groups,
        )
        return y if bias is None else y + self._per_channel(bias)

    def _batch_norm(self, x: Any, key: str, eps: float, momentum: float | None, training: bool, **arrays: Any) -> Any:
        import jax.numpy as jnp

        if momentum is None or any(array is None for array in arrays.values()):
            raise UsageError("bench: for JAX, BatchNorm2d takes affine, track_running_stats and a momentum only")
        weight, bias, mean, var = (arrays[name] for name in ("weight", "bias", "running_mean", "running_var"))
        if self.train:
            old_mean, old_var, count = mean, var, x.size / mean.size
            mean, var = x.mean((0, *self.maps)), x.var((0, *self.maps))
            self.updates[key + "running_mean"] = old_mean + momentum * (mean - old_mean)
            self.updates[key + "running_var"] = old_var + momentum * (var * count / (count - 1) - old_var)
        scale = weight / jnp.sqrt(var + eps)
        return x * self._per_channel(scale) + self._per_channel(bias - mean * scale)

    def _max_pool(self, x: Any, **options: Any) -> Any:
        from jax import lax

        axes = pool_axes("JAX", self._sizes(x), **options)

        def per_axis(values: list[Any], other: Any) -> tuple[Any, ...]:
            return tuple(values[self.maps.index(axis)] if axis in self.maps else other for axis in range(4))

        return lax.reduce_window(
            x,
            -np.inf,
            lax.max,
            per_axis([axis.kernel for axis in axes], 1),
            per_axis([axis.stride for axis in axes], 1),
            per_axis([(axis.before, axis.after) for axis in axes], (0, 0)),
            window_dilation=per_axis([axis.dilation for axis in axes], 1),
        )

    def _adaptive_avg_pool(self, x: Any, output_size: Any) -> Any:
        import jax.numpy as jnp

        for axis, out in zip(self.maps, adaptive_sizes("JAX", self._sizes(x), output_size), strict=True):
            means, _ = adaptive_avg_pool1d(np.eye(x.shape[axis], dtype=x.dtype), out)  # the windows may overlap
            x = jnp.moveaxis(jnp.tensordot(x, means, ([axis], [0])), -1, axis)
        return x

    def _global_avg_pool(self, x: Any) -> Any:
        return x.mean(self.maps)

    def _flatten(self, x: Any, start_dim: int, end_dim: int) -> Any:
        if (start_dim, end_dim) != (1, -1):
            raise UsageError(f"bench: for JAX, Flatten takes (1, -1) only, got ({start_dim}, {end_dim})")
        if self.layout == "NHWC" and x.ndim == 4:  # the linear layer's weights are in the order of NCHW
            x = x.transpose(0, 3, 1, 2)
        return x.reshape(len(x), -1)

    def _relu(self, x: Any) -> Any:
        import jax

        return jax.nn.relu(x)

    def _sizes(self, x: Any) -> tuple[int, ...]:
        return tuple(x.shape[axis] for axis in self.maps)

    def _per_channel(self, array: Any) -> Any:
        return array if self.layout == "NHWC" else array[:, None, None]


_OPS: dict[str, Callable[..., Any]] = {
    "add": _Pass._add,
    "linear": _Pass._linear,
    "conv2d": _Pass._conv,
    "batch_norm": _Pass._batch_norm,
    "max_pool2d": _Pass._max_pool,
    "adaptive_avg_pool2d": _Pass._adaptive_avg_pool,
    "global_avg_pool": _Pass._global_avg_pool,
    "flatten": _Pass._flatten,
    "relu": _Pass._relu,
}
"""The methods by the names of the ops: `method(run, x, **arrays, **options)`."""
