"""JAX on the CPU: one jitted function for a whole step, its buffers donated, in both memory layouts."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xcnn import nn
from xcnn._check import integers
from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Step
from xcnn.errors import unknown

__all__ = ["opened"]

Arrays = dict[str, Any]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Give the step of JAX in the memory layout `way`, `"NCHW"` or `"NHWC"`; its threads are the environment's."""
    import jax
    import jax.numpy as jnp

    network = case.network()
    arrays = {name: _placed(array, way) for name, array in network.state_dict().items()}
    trained = {name for name, _ in network.named_parameters()}
    x, y = case.arrays()
    images, labels = jnp.asarray(x.transpose(0, 2, 3, 1) if way == "NHWC" else x), jnp.asarray(y)

    def loss_of(weights: Arrays, statistics: Arrays, images: Any, labels: Any) -> tuple[Any, Arrays]:
        run = _Pass(weights | statistics, way, train=True)
        scores = jax.nn.log_softmax(run(network, "", images))
        return -jnp.mean(scores[jnp.arange(len(labels)), labels]), statistics | run.updates

    def train(weights: Arrays, velocity: Arrays, statistics: Arrays, *batch: Any) -> tuple[Any, ...]:
        (loss, statistics), grads = jax.value_and_grad(loss_of, has_aux=True)(weights, statistics, *batch)
        velocity = {name: MOMENTUM * velocity[name] + grads[name] for name in grads}
        return loss, {name: weights[name] - case.lr * velocity[name] for name in weights}, velocity, statistics

    def infer(arrays: Arrays, images: Any) -> Any:
        return _Pass(arrays, way, train=False)(network, "", images)

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
    """Give the weights of a convolution in the order of axes that fits the layout, all else as it is."""
    import jax.numpy as jnp

    return jnp.asarray(array.transpose(2, 3, 1, 0) if layout == "NHWC" and array.ndim == 4 else array)


class _Pass:
    """One forward pass through a network of xcnn's in JAX's operations, while JAX traces it.

    `updates` are the running statistics that come of it.
    """

    def __init__(self, arrays: Arrays, layout: str, train: bool) -> None:
        self.arrays, self.layout, self.train = arrays, layout, train
        self.updates: Arrays = {}
        self.maps = (layout.index("H"), layout.index("W"))

    def __call__(self, module: Any, name: str, x: Any) -> Any:
        if type(module) not in _LAYERS:
            raise unknown("layer of JAX's", type(module).__name__, (kind.__name__ for kind in _LAYERS))
        return _LAYERS[type(module)](self, module, f"{name}." if name else "", x)

    def by_channel(self, array: Any) -> Any:
        return array if self.layout == "NHWC" else array[:, None, None]

    def on_maps(self, values: Any, other: Any) -> tuple[Any, ...]:
        """Give a value per axis: `values` for height and width, `other` for the rest."""
        return tuple(values[self.maps.index(axis)] if axis in self.maps else other for axis in range(4))


def _sequential(run: _Pass, m: Any, name: str, x: Any) -> Any:
    for key, child in m.children():
        x = run(child, name + key, x)
    return x


def _residual(run: _Pass, m: Any, name: str, x: Any) -> Any:
    ways = dict(m.children())
    shortcut = run(ways["shortcut"], name + "shortcut", x) if "shortcut" in ways else x
    return run(ways["body"], name + "body", x) + shortcut


def _conv(run: _Pass, m: Any, name: str, x: Any) -> Any:
    from jax import lax

    y = lax.conv_general_dilated(
        x,
        run.arrays[name + "weight"],
        integers("conv", "stride", m.stride, 2),
        [(p, p) for p in integers("conv", "padding", m.padding, 2, 0)],
        rhs_dilation=integers("conv", "dilation", m.dilation, 2),
        dimension_numbers=(run.layout, "HWIO" if run.layout == "NHWC" else "OIHW", run.layout),
        feature_group_count=m.groups,
    )
    return y if m.bias is None else y + run.by_channel(run.arrays[name + "bias"])


def _linear(run: _Pass, m: Any, name: str, x: Any) -> Any:
    y = x @ run.arrays[name + "weight"].T
    return y if m.bias is None else y + run.arrays[name + "bias"]


def _batch_norm(run: _Pass, m: Any, name: str, x: Any) -> Any:
    import jax.numpy as jnp

    weight, bias, mean, var = (run.arrays[name + key] for key in ("weight", "bias", "running_mean", "running_var"))
    if run.train:
        old_mean, old_var, count = mean, var, x.size / m.num_features
        mean, var = jnp.mean(x, (0, *run.maps)), jnp.var(x, (0, *run.maps))
        run.updates[name + "running_mean"] = old_mean + m.momentum * (mean - old_mean)
        run.updates[name + "running_var"] = old_var + m.momentum * (var * count / (count - 1) - old_var)
    scale = weight / jnp.sqrt(var + m.eps)
    return x * run.by_channel(scale) + run.by_channel(bias - mean * scale)


def _max_pool(run: _Pass, m: Any, name: str, x: Any) -> Any:
    from jax import lax

    size = integers("pool", "kernel_size", m.kernel_size, 2)
    stride = size if m.stride is None else integers("pool", "stride", m.stride, 2)
    padding = [(p, p) for p in integers("pool", "padding", m.padding, 2, 0)]
    window = run.on_maps(size, 1), run.on_maps(stride, 1), run.on_maps(padding, (0, 0))
    return lax.reduce_window(x, -np.inf, lax.max, *window)


def _relu(run: _Pass, m: Any, name: str, x: Any) -> Any:
    import jax

    return jax.nn.relu(x)


def _flatten(run: _Pass, m: Any, name: str, x: Any) -> Any:
    if run.layout == "NHWC" and x.ndim == 4:  # the linear layer's weights know the other order
        x = x.transpose(0, 3, 1, 2)
    return x.reshape(len(x), -1)


_LAYERS: dict[type[nn.Module], Callable[[_Pass, Any, str, Any], Any]] = {
    nn.Sequential: _sequential,
    nn.Residual: _residual,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.GlobalAvgPool: lambda run, m, name, x: x.mean(run.maps),
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
}
"""What computes each of our layers that the named networks use, with the options that they use."""
