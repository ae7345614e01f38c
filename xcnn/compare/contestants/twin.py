"""PyTorch's twin of a network: the same graph and weights, with PyTorch's functions found by the names of the ops."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from xcnn import nn
from xcnn._check import is_integer
from xcnn.compare.contestants import bound
from xcnn.errors import UsageError
from xcnn.nn._plan import names
from xcnn.ops._formula import FORMULAS
from xcnn.ops._op import OPS
from xcnn.ops._window import window_axes
from xcnn.ops.pool import pool_axes
from xcnn.parameter import Buffer, Parameter

__all__ = ["activated", "functions", "twin"]


def twin(module: nn.Module) -> Any:
    """Return PyTorch's module for one of xcnn's, with copies of its weights, in training mode.

    Containers become modules that call their nodes one after the other, layers call the function of their op.

    Raises
    ------
    UsageError
        If PyTorch has no function for an op, or a class overrides the computation.
    """
    import torch
    from torch import nn as t

    found, made = functions(), {}

    class Graph(t.Module):  # type: ignore[misc]
        """`nn.Graph`. A result is released after its last use."""

        def __init__(self, nodes: Sequence[tuple[str, Any, Any]], inputs: Any, output: Any) -> None:
            super().__init__()
            self._inputs, self._output, needed = inputs, output, {*names(output)}
            self._steps: list[tuple[str, str, Any, set[str]]] = []
            for number, (name, node, sources) in reversed([*enumerate(nodes)]):
                if name in needed:
                    setattr(self, f"node{number}", node)  # PyTorch allows no dots
                    self._steps.insert(0, (name, f"node{number}", sources, {*names(sources)} - needed))
                    needed.update(names(sources))

        def forward(self, x: Any) -> Any:
            values = {self._inputs: x} if isinstance(self._inputs, str) else dict(zip(self._inputs, x, strict=True))

            def taken(sources: str | Sequence[str]) -> Any:
                return values[sources] if isinstance(sources, str) else tuple(values[name] for name in sources)

            for name, attribute, sources, done in self._steps:
                node = getattr(self, attribute)
                values[name] = node(taken(sources)) if isinstance(node, t.Module) else node
                for source in done:
                    del values[source]
            return taken(self._output)

    class Call(t.Module):  # type: ignore[misc]
        """A module of one op: a function called with the input, or several, the arrays and the options."""

        def __init__(self, function: Callable[..., Any], slots: dict[str, Any], options: dict[str, Any]) -> None:
            super().__init__()
            for name, slot in slots.items():
                setattr(self, name, slot)
            self._function, self._slots = function, tuple(slots)
            self._modes = [name for name in ("training", "use_input_stats") if name in options]
            self._options = {name: value for name, value in options.items() if name not in ("rng", *self._modes)}

        def forward(self, x: Any) -> Any:
            named = {name: getattr(self, name) for name in self._slots} | dict.fromkeys(self._modes, self.training)
            return self._function(*(x if isinstance(x, tuple) else (x,)), **named, **self._options)

    def batch_norm(slots: dict[str, Any], options: dict[str, Any]) -> Any:
        """Return PyTorch's layer, which counts batches."""
        layer = t.BatchNorm2d(1, options["eps"], options["momentum"], False, slots["running_mean"] is not None)
        layer._check_input_dim = lambda x: None  # maps of any rank
        for name, slot in slots.items():
            setattr(layer, name, slot)
        return layer

    def tensor(slot: Parameter | Buffer | None) -> Any:
        if slot is not None and id(slot) not in made:
            copied = torch.from_numpy(slot.data.copy())
            made[id(slot)] = t.Parameter(copied, slot.trainable) if isinstance(slot, Parameter) else t.Buffer(copied)
        return None if slot is None else made[id(slot)]  # shared arrays stay shared

    def converted(module: Any, overwrites: bool = False) -> Any:
        """Return the twin of a module, which may write over its input if `overwrites`."""
        if isinstance(module, Parameter | Buffer):
            return tensor(module)
        op, held, options = bound(module, "PyTorch")
        if isinstance(module, nn.Graph):
            plan, free = module._plan, _unshared(module)
            nodes = [(name, converted(node, name in free), sources) for name, node, sources in plan.nodes]
            if [plan.inputs, *(name for name, *_ in nodes)] == [*(sources for *_, sources in nodes), plan.output]:
                return t.Sequential(*(node for _, node, _ in nodes))
            return Graph(nodes, plan.inputs, plan.output)
        if isinstance(module, nn.Identity):
            return t.Identity()
        if isinstance(module, nn.Normalize):
            constants = {"mean": module.mean, "std": module.std}
            slots = {name: t.Buffer(torch.tensor(value)) for name, value in constants.items()}
            return Call(_normalize, slots, {})
        slots = {name: tensor(slot) for name, slot in held.items()}
        numbers = [torch.tensor(options.pop(name)) for name in OPS[op].arrays if name in options] if op else []
        if numbers:
            return Call(lambda x: found[op](x, *numbers), {}, {})
        activation = options.pop("activation", None)
        if isinstance(module, nn.Apply) and len(OPS[op].arrays) > 2:
            raise UsageError(f"bench: for PyTorch, Apply takes ops of up to two arrays only, got {op}")
        if op != "batch_norm" and op not in found:
            what = f"the op {op} of " if op else ""
            raise UsageError(f"bench: PyTorch has no function for {what}{type(module).__name__}")
        options |= {"inplace": True} if overwrites else {}
        layer = batch_norm(slots, options) if op == "batch_norm" else Call(found[op], slots, options)
        return t.Sequential(layer, Call(activated(activation), {}, {})) if activation else layer

    return converted(module)


_IN_PLACE = {"relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "elu", "leaky_relu"}
"""The ops that PyTorch's functions can apply in place, as its own networks do."""

_UNREAD = ("conv", "linear", "batch_norm", "add")
"""Beginnings of the names of ops whose results PyTorch does not keep for their backward passes."""


def _unshared(graph: nn.Graph) -> set[str]:
    """Return the nodes that may be applied in place: activations of results that nothing else reads."""
    nodes = {name: module for name, module, _ in graph._plan.nodes}
    uses = Counter(name for _, _, inputs in graph._plan.nodes for name in names(inputs))
    uses.update(names(graph._plan.output))
    return {
        name
        for name, module, inputs in graph._plan.nodes
        if isinstance(inputs, str) and uses[inputs] == 1 and inputs in nodes
        if _op(module) in _IN_PLACE and _op(nodes[inputs]).startswith(_UNREAD)
    }


def _op(module: Any) -> str:
    """Return the name of the op whose result is that of a module, or ""."""
    while isinstance(module, nn.Graph):
        ends = {name: node for name, node, _ in module._plan.nodes}
        output = module._plan.output
        module = ends.get(output) if isinstance(output, str) else None
    return "" if module is None else bound(module, "PyTorch")[0]


_NAMESAKES = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d conv_transpose1d conv_transpose2d conv_transpose3d dropout dropout1d dropout2d dropout3d elu
    flatten gelu group_norm hardswish hardtanh interpolate leaky_relu linear local_response_norm
    log_softmax mish pad pixel_shuffle pixel_unshuffle prelu relu relu6 sigmoid silu softmax softplus tanh
    abs channel_shuffle celu divide erf exp log matmul maximum mean minimum negative permute reshape selu softsign sqrt
    subtract sum
"""
"""The ops for which PyTorch has a function of the same name and arguments."""


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Return PyTorch's functions by the names of ops: `function(*arrays, **options)`, without `rng` and `activation`.

    Arrays after the input are passed by name. Losses and batch norm, which has a module, are left out.
    """
    import torch
    from torch.nn import functional as F

    windowed: dict[str, Callable[..., Any]] = {"conv": _conv, "max_pool": _max_pool, "avg_pool": _avg_pool}
    return {
        **{name: getattr(F, name, None) or getattr(torch, name) for name in _NAMESAKES.split()},
        **{
            f"{kind}{rank}d": functools.partial(call, getattr(F, f"{kind}{rank}d"), F.pad, rank)
            for kind, call in windowed.items()
            for rank in (1, 2, 3)
        },
        "add": lambda *xs: functools.reduce(torch.add, xs),
        "multiply": lambda *xs: functools.reduce(torch.multiply, xs),
        "concat": lambda *xs, dim=0: torch.cat(xs, dim),
        "global_avg_pool": lambda x: torch.mean(x, tuple(range(2, x.ndim))),
        "global_max_pool": lambda x: torch.amax(x, tuple(range(2, x.ndim))),
        "hardsigmoid": _hardsigmoid,
        "instance_norm": _instance_norm,
        "layer_norm": lambda x, normalized_shape, **others: F.layer_norm(
            x, [normalized_shape] if is_integer(normalized_shape) else normalized_shape, **others
        ),
        "power": lambda x, exponent: torch.pow(x, exponent),
        "slice": _slice,
        "stochastic_depth": _stochastic_depth,
        "unflatten": lambda x, dim, unflattened_size: torch.unflatten(x, dim, unflattened_size),
    }


def activated(activation: str | tuple[Any, ...]) -> Callable[[Any], Any]:
    """Return PyTorch's function of x for the option `activation` of an op."""
    name, *options = (activation,) if isinstance(activation, str) else activation
    found = functions()
    if name not in found:
        raise UsageError(f"bench: PyTorch has no function for the activation {name}")
    return lambda x: found[name](x, *FORMULAS[name].check("bench", *options))


def _normalize(x: Any, mean: Any, std: Any) -> Any:
    shape = (-1, *(1,) * (x.ndim - 2))
    return (x - mean.reshape(shape)) / std.reshape(shape)


def _per_axis(padding: Any) -> bool:
    """Return whether padding is an integer or one per axis, which is what PyTorch's functions take."""
    return is_integer(padding) or (not isinstance(padding, str) and all(map(is_integer, padding)))


def _padded(pad: Any, x: Any, axes: Any, value: float = 0.0) -> Any:
    return pad(x, [side for axis in reversed(axes) for side in (axis.before, axis.after)], value=value)


def _conv(function: Any, pad: Any, rank: int, x: Any, weight: Any, padding: Any, **options: Any) -> Any:
    if not _per_axis(padding):
        sizes, kernel = tuple(x.shape)[-rank:], tuple(weight.shape)[2:]
        axes = window_axes("PyTorch", sizes, kernel, options["stride"], padding, options["dilation"])
        even = all(axis.before == axis.after for axis in axes)
        x, padding = (x, tuple(axis.before for axis in axes)) if even else (_padded(pad, x, axes), 0)
    return function(x, weight, padding=padding, **options)


def _max_pool(
    function: Any,
    pad: Any,
    rank: int,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Any:
    if not _per_axis(padding):
        axes = pool_axes("PyTorch", tuple(x.shape)[-rank:], kernel_size, stride, padding, dilation, ceil_mode)
        x, padding, ceil_mode = _padded(pad, x, axes, -math.inf), 0, False
    return function(x, kernel_size, stride, padding, dilation, ceil_mode)


def _avg_pool(
    function: Any,
    pad: Any,
    rank: int,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    **options: Any,
) -> Any:
    if rank == 1 and options.pop("divisor_override") is not None:
        raise UsageError("bench: for PyTorch, avg_pool1d takes no divisor_override")
    if not _per_axis(padding) or dilation not in (1, (1,) * rank):
        sizes = tuple(x.shape)[-rank:]
        axes = pool_axes("PyTorch", sizes, kernel_size, stride, padding, dilation, options["ceil_mode"])
        counted = options["count_include_pad"] or options.get("divisor_override") is not None
        if not counted or any(axis.dilation > 1 or axis.grown for axis in axes):
            raise UsageError(
                "bench: for PyTorch, an average pool takes no dilation, and padding that differs on both sides only "
                f"with count_include_pad and without ceil_mode, got padding {padding!r} and dilation {dilation!r}"
            )
        x, padding = _padded(pad, x, axes), 0
    return function(x, kernel_size, stride, padding, **options)


def _hardsigmoid(x: Any, alpha: float, beta: float, inplace: bool = False) -> Any:
    import torch

    if (alpha, beta) == (1 / 6, 0.5):
        return torch.nn.functional.hardsigmoid(x, inplace)
    return torch.clamp(alpha * x + beta, 0, 1)


def _instance_norm(x: Any, running_mean: Any, use_input_stats: bool, momentum: float | None, **others: Any) -> Any:
    from torch.nn import functional as F

    others |= {"use_input_stats": use_input_stats or running_mean is None, "momentum": momentum or 0.0}
    return F.instance_norm(x, running_mean=running_mean, **others)


def _slice(x: Any, dim: int, start: int | None, stop: int | None, step: int = 1) -> Any:
    if step > 0:
        return x[(*(slice(None),) * (dim % x.ndim), slice(start, stop, step))]
    chosen = range(*slice(start, stop, step).indices(x.shape[dim]))
    return x.index_select(dim, x.new_tensor(chosen).long())


def _stochastic_depth(x: Any, p: float, training: bool) -> Any:
    if not training or not p:
        return x
    kept = x.new_empty((len(x), *(1,) * (x.ndim - 1))).bernoulli_(1 - p)
    return x * (kept if p == 1 else kept.div_(1 - p))
