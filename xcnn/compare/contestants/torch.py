"""PyTorch: modules of the same names and fused SGD, the fastest; both memory formats; eager, compiled or captured."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from xcnn import nn
from xcnn._dispatch import kernels
from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Step, counterpart
from xcnn.devices import device as open_device
from xcnn.errors import UsageError

__all__ = ["opened"]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Yield the step of PyTorch on a device, in a way of `PEERS`."""
    import torch

    where = open_device(device).handle
    kernels(np)  # makes the C library keep freed memory, as in xcnn's process; PyTorch is faster on the CPU with it
    threads, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    layout, _, how = way.partition(" ")
    torch.set_num_threads(1 if how == "1 thread" else case.threads)
    torch.backends.cudnn.benchmark = True  # tries cuDNN's algorithms once for the shapes, which do not change
    try:
        yield _stepper(case, where, layout, _MODES.get(how))
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = tuned


_MODES = {"compiled": "default", "graphs": "reduce-overhead"}
"""The mode of `torch.compile` by way. `reduce-overhead` captures CUDA graphs, for networks bound by launches."""


def _stepper(case: Case, where: Any, layout: str, mode: str | None) -> Step:
    import torch

    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, y = (torch.from_numpy(array).to(where) for array in case.arrays())
    network = case.network()
    model = _converted(network, _modules())
    model.load_state_dict({name: torch.from_numpy(array) for name, array in network.state_dict().items()})
    model, x = model.to(where, memory_format=order), x.contiguous(memory_format=order)
    model.train(case.mode == "train")
    model = model if mode is None else torch.compile(model, mode=mode)

    def infer() -> Any:
        with torch.inference_mode():
            return model(x).cpu().numpy()

    if case.mode == "infer":
        return infer
    optimizer = torch.optim.SGD(model.parameters(), lr=case.lr, momentum=MOMENTUM, fused=True)

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return train


def _converted(module: Any, table: Mapping[type[nn.Module], Callable[[Any], Any]]) -> Any:
    """Return PyTorch's module for one of xcnn's."""
    return table[counterpart(module, table, "PyTorch")](module)


def _modules() -> dict[type[nn.Module], Callable[[Any], Any]]:
    """Return the functions that make PyTorch's module, by xcnn's class; those of the named networks are there."""
    import torch
    from torch import nn as t

    class Residual(t.Module):  # type: ignore[misc]
        """`body(x) + shortcut(x)`, with the state keys of `nn.Residual`."""

        def __init__(self, body: Any, shortcut: Any = None) -> None:
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x: Any) -> Any:
            return torch.add(self.body(x), x if self.shortcut is None else self.shortcut(x))

    def children(m: Any) -> dict[str, Any]:
        return {name: _converted(child, table) for name, child in m.children() if name != "add"}

    def conv(m: Any) -> Any:
        if np.ndim(m.padding) == 2:
            raise UsageError(f"bench: for PyTorch, Conv2d takes one padding per axis only, got {m.padding}")
        options = {"stride": m.stride, "padding": m.padding, "dilation": m.dilation, "groups": m.groups}
        return t.Conv2d(m.in_channels, m.out_channels, m.kernel_size, bias=m.bias is not None, **options)

    table = {
        nn.Sequential: lambda m: t.Sequential(*children(m).values()),
        nn.Residual: lambda m: Residual(**children(m)),
        nn.Conv2d: conv,
        nn.Linear: lambda m: t.Linear(m.in_features, m.out_features, bias=m.bias is not None),
        nn.BatchNorm2d: lambda m: t.BatchNorm2d(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats),
        nn.MaxPool2d: lambda m: t.MaxPool2d(m.kernel_size, m.stride, m.padding, m.dilation, ceil_mode=m.ceil_mode),
        nn.AdaptiveAvgPool2d: lambda m: t.AdaptiveAvgPool2d(m.output_size),
        nn.GlobalAvgPool: lambda m: t.Sequential(t.AdaptiveAvgPool2d(1), t.Flatten()),
        nn.Flatten: lambda m: t.Flatten(m.start_dim, m.end_dim),
        nn.ReLU: lambda m: t.ReLU(),
    }
    return table
