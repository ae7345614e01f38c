"""A fake GPU for `xcnn bench`: NumPy arrays under the name `cuda:0`, with fixed clocks and memory.

It replaces the code that calls CUDA; all other code runs as with a GPU, in this process and in its workers.
"""

import contextlib
import dataclasses
import importlib
import itertools
import operator
import os
from pathlib import Path

import numpy as np

from xcnn.compare import gpu, worker
from xcnn.compare.contestants import copy, sgemm
from xcnn.devices import LIBRARIES, Device

__all__ = ["COMMAND", "ELAPSED", "GROWN", "Event", "gauge", "install"]

COMMAND = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fake_gpu; fake_gpu.install(); "
COMMAND += worker.COMMAND

ELAPSED = 7000.0
"""Milliseconds between any two events."""

GROWN = 5 * 2**20
"""Bytes by which the memory has grown at every reading."""


class Event:
    waited_for = False

    def synchronize(self):
        self.waited_for = True


def elapsed(start, end):
    assert end.waited_for, "read before the event was synchronized"
    return ELAPSED


def gauge(index):
    return gpu.Gauge(
        name="Pretended GPU",
        version="99.9",
        tf32=bool(os.environ.get("CUPY_TF32")),
        setting=contextlib.nullcontext,
        mark=Event,
        elapsed=elapsed,
        synchronize=lambda: None,
        reset=lambda: None,
        held=itertools.count(2**20, GROWN).__next__,
    )


def open_cuda(rest):
    return Device(f"cuda:{rest or 0}", np, "cpu", "a pretended GPU")


def open_torch(rest):
    """PyTorch without Triton."""
    torch = importlib.import_module("torch")

    def compile(model, mode, dynamic):
        raise RuntimeError("backend='inductor' raised:\nTritonMissing: Cannot find Triton.\n\nSet FLAG for more")

    if rest.startswith("cuda"):
        torch.compile = compile
    return Device(f"torch:{rest}", importlib.import_module("array_api_compat.torch"), torch.device("cpu"), "")


def install(setattr=setattr, setitem=operator.setitem):
    """Install the fake GPU; pass the functions of `monkeypatch` to have it removed after the test."""
    setitem(LIBRARIES, "cuda", dataclasses.replace(LIBRARIES["cpu"], module="cupy", open=open_cuda))
    setitem(gpu.GAUGES, "cuda", gauge)
    if not os.environ.get("XCNN_TRUE_TORCH"):
        setitem(LIBRARIES, "torch", dataclasses.replace(LIBRARIES["torch"], open=open_torch))
        setitem(gpu.GAUGES, "torch", gauge)
    setitem(sgemm.SIZES, "cuda", 64)
    setattr(copy, "BYTES", 2**16)
