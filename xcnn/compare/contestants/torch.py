"""PyTorch: its twin of the network and fused SGD, the fastest; both memory formats; eager, compiled or captured.

Several processes train with `DistributedDataParallel` over gloo, with its defaults, but for gradients that are views of
its buckets, which saves copies.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xcnn import nn
from xcnn._dispatch import kernels
from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Group, Passes, Step
from xcnn.compare.contestants.twin import twin
from xcnn.devices import device as open_device

__all__ = ["alone", "opened", "updating"]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str, group: Group | None = None) -> Iterator[Step]:
    """Yield the step of PyTorch on a device, in a way of `PEERS`."""
    import torch

    where = open_device(device).handle
    kernels(np)  # makes the C library keep freed memory, as in xcnn's process; PyTorch is faster on the CPU with it
    threads, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    layout, _, how = way.partition(" ")
    torch.set_num_threads(1 if how == "1 thread" else case.threads)
    torch.backends.cudnn.benchmark = True  # tries cuDNN's algorithms once for the shapes, which do not change
    try:
        if group is not None:
            meeting = f"file://{group.folder}/torch"
            torch.distributed.init_process_group("gloo", meeting, rank=group.rank, world_size=group.size)
        yield _stepper(case, where, layout, _MODES.get(how), group)
        if group is not None:
            torch.distributed.destroy_process_group()
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = tuned


_MODES = {"compiled": "default", "graphs": "reduce-overhead"}
"""The mode of `torch.compile` by way. `reduce-overhead` captures CUDA graphs, for networks bound by launches."""


def _stepper(case: Case, where: Any, layout: str, mode: str | None, group: Group | None) -> Step:
    import torch

    last = torch.channels_last if len(case.shape) == 3 else torch.channels_last_3d
    order = last if layout == "channels_last" else torch.contiguous_format
    rows = slice(None) if group is None else group.rows(case.batch)
    x, y = (torch.from_numpy(array[rows]).to(where) for array in case.arrays())
    model, x = twin(case.network()).to(where, memory_format=order), x.contiguous(memory_format=order)
    model.train(case.mode == "train")
    if mode is not None:
        if where.type == "cpu" and case.mode == "infer":  # constant weights: batch norm is folded, weights are packed
            torch._inductor.config.freezing = True
        model = torch.compile(model, mode=mode, dynamic=False)
    if group is not None:
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    def infer() -> Any:
        with torch.inference_mode():
            return model(x).cpu().numpy()

    if case.mode == "infer":
        return infer if mode is None else _settled(infer)
    optimizer = _sgd(case, model.parameters())

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return train if mode is None else _settled(train)


_MOST = 10
"""The most steps that are tried for one that compiles nothing."""


def _settled(step: Step) -> Step:
    """Return a step whose first call repeats it until nothing is compiled, so that no measured one compiles."""
    from torch._dynamo.utils import compilation_time_metrics as compiled  # an entry per pass of each compilation

    left = _MOST

    def settled() -> Any:
        nonlocal left
        while left:
            before = sum(map(len, compiled.values()))
            value = step()
            if sum(map(len, compiled.values())) > before:
                left -= 1
                continue
            left = 0
            return value
        return step()

    return settled


def _sgd(case: Case, parameters: Any) -> Any:
    import torch

    return torch.optim.SGD(parameters, lr=case.lr, momentum=MOMENTUM, fused=True)


def alone(case: Case, device: str, way: str, module: nn.Module, x: Any, wanted: Sequence[bool]) -> Passes:
    """Return the passes of a part of the network, not compiled; see `contestants`."""
    import torch

    where, last, train = open_device(device).handle, way.startswith("channels_last"), case.mode == "train"
    orders = {4: torch.channels_last, 5: torch.channels_last_3d} if last else {}

    def placed(array: np.ndarray) -> Any:
        order = orders.get(array.ndim, torch.contiguous_format)
        return torch.from_numpy(np.ascontiguousarray(array)).to(where).contiguous(memory_format=order)

    model, several = twin(module).to(where), isinstance(x, tuple)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous(memory_format=orders.get(parameter.ndim, torch.contiguous_format))
    model.train(train)
    inputs = [placed(one) for one in (x if several else (x,))]
    for one, needed in zip(inputs, wanted, strict=True):
        one.requires_grad_(train and needed)
    given = tuple(inputs) if several else inputs[0]
    parameters = list(model.parameters())

    def forward() -> Any:
        with contextlib.nullcontext() if train else torch.inference_mode():
            return model(given)

    def clear() -> None:
        for one in (*parameters, *inputs):
            one.grad = None

    def backward(y: Any, dy: Any) -> None:
        if y.requires_grad:
            y.backward(dy)

    return Passes(forward, backward, placed, parameters, clear)


def updating(case: Case, parameters: Sequence[Any]) -> Step:
    """Return the update of parameters."""
    step: Step = _sgd(case, parameters).step
    return step
