"""JAX on the CPU: one jitted function for a whole step, with donated buffers, in both memory layouts."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from xcnn import nn
from xcnn._check import integers
from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Step
from xcnn.errors import UsageError

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
    """Return an array with the axes of a convolution's weights in the order that fits the layout."""
    import jax.numpy as jnp

    return jnp.asarray(array.transpose(2, 3, 1, 0) if layout == "NHWC" and array.ndim == 4 else array)


class _Pass:
    """A forward pass through one of the named networks in JAX's operations, for JAX to trace.

    `updates` holds the new running statistics.
    """

    def __init__(self, arrays: Arrays, layout: str, train: bool) -> None:
        self.arrays, self.layout, self.train = arrays, layout, train
        self.updates: Arrays = {}
        self.maps = (layout.index("H"), layout.index("W"))

    def forward(self, m: Any, name: str, x: Any) -> Any:
        """Return the output of a layer, whose arrays have the prefix `name`."""
        import jax

        kind, key = type(m), f"{name}." if name else ""
        if kind is nn.Sequential:
            for child, layer in m.children():
                x = self.forward(layer, key + child, x)
            return x
        if kind is nn.Residual:
            ways = dict(m.children())
            shortcut = self.forward(ways["shortcut"], key + "shortcut", x) if "shortcut" in ways else x
            return self.forward(ways["body"], key + "body", x) + shortcut
        if kind is nn.Conv2d:
            return self._conv(m, key, x)
        if kind is nn.Linear:
            y = x @ self.arrays[key + "weight"].T
            return y if m.bias is None else y + self.arrays[key + "bias"]
        if kind is nn.BatchNorm2d:
            return self._batch_norm(m, key, x)
        if kind is nn.MaxPool2d:
            return self._max_pool(m, x)
        if kind is nn.GlobalAvgPool:
            return x.mean(self.maps)
        if kind is nn.ReLU:
            return jax.nn.relu(x)
        if kind is nn.Flatten:  # in the order of the linear layer's weights
            x = x.transpose(0, 3, 1, 2) if self.layout == "NHWC" and x.ndim == 4 else x
            return x.reshape(len(x), -1)
        raise UsageError(f"bench: there is no {kind.__name__} for JAX")

    def _conv(self, m: Any, key: str, x: Any) -> Any:
        from jax import lax

        y = lax.conv_general_dilated(
            x,
            self.arrays[key + "weight"],
            integers("conv", "stride", m.stride, 2),
            [(p, p) for p in integers("conv", "padding", m.padding, 2, 0)],
            rhs_dilation=integers("conv", "dilation", m.dilation, 2),
            dimension_numbers=(self.layout, "HWIO" if self.layout == "NHWC" else "OIHW", self.layout),
            feature_group_count=m.groups,
        )
        return y if m.bias is None else y + self._per_channel(self.arrays[key + "bias"])

    def _batch_norm(self, m: Any, key: str, x: Any) -> Any:
        import jax.numpy as jnp

        weight, bias, mean, var = (self.arrays[key + n] for n in ("weight", "bias", "running_mean", "running_var"))
        if self.train:
            old_mean, old_var, count = mean, var, x.size / m.num_features
            mean, var = x.mean((0, *self.maps)), x.var((0, *self.maps))
            self.updates[key + "running_mean"] = old_mean + m.momentum * (mean - old_mean)
            self.updates[key + "running_var"] = old_var + m.momentum * (var * count / (count - 1) - old_var)
        scale = weight / jnp.sqrt(var + m.eps)
        return x * self._per_channel(scale) + self._per_channel(bias - mean * scale)

    def _max_pool(self, m: Any, x: Any) -> Any:
        from jax import lax

        def per_axis(values: Any, other: Any) -> tuple[Any, ...]:
            return tuple(values[self.maps.index(axis)] if axis in self.maps else other for axis in range(4))

        size = integers("pool", "kernel_size", m.kernel_size, 2)
        stride = size if m.stride is None else integers("pool", "stride", m.stride, 2)
        padding = [(p, p) for p in integers("pool", "padding", m.padding, 2, 0)]
        window = per_axis(size, 1), per_axis(stride, 1), per_axis(padding, (0, 0))
        return lax.reduce_window(x, -np.inf, lax.max, *window)

    def _per_channel(self, array: Any) -> Any:
        return array if self.layout == "NHWC" else array[:, None, None]
