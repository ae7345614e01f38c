"""The GPU that a device string means, and what CuPy and PyTorch report about it.

Nothing else in `xcnn.compare` calls CUDA. The libraries are imported inside functions, as they may be missing.
"""

import contextlib
import importlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from xcnn.devices import LIBRARIES, device

__all__ = ["CPU", "GAUGES", "Gauge", "describe", "entered", "gauge", "hardware", "kind"]

CPU = "cpu"
"""What `hardware` returns for the processor."""


@dataclass(frozen=True)
class Gauge:
    """What a library reports about a GPU.

    Attributes
    ----------
    name : name of the GPU.
    version : version of the library.
    tf32 : whether float32 matrices are multiplied in TF32 inside `setting`.
    setting : function that returns the context in which the library computes on this GPU.
    mark : function that records an event after the work submitted so far, and returns it.
    elapsed : function that returns the milliseconds between two events.
    synchronize : function that waits until the GPU has done all work.
    reset : function that resets the peak of memory.
    held : function that returns the bytes in the library's pool at the peak, in use or not.
    """

    name: str
    version: str
    tf32: bool
    setting: Callable[[], AbstractContextManager[object]]
    mark: Callable[[], Any]
    elapsed: Callable[[Any, Any], float]
    synchronize: Callable[[], object]
    reset: Callable[[], object]
    held: Callable[[], int]


def _cupy(index: int) -> Gauge:
    cupy = importlib.import_module(LIBRARIES["cuda"].module)
    cuda = cupy.cuda
    return Gauge(
        name=cuda.runtime.getDeviceProperties(index)["name"].decode(),
        version=cupy.__version__,
        tf32=os.environ.get("CUPY_TF32", "0") not in ("", "0"),
        setting=contextlib.nullcontext,  # `Device.active` selects the GPU
        mark=lambda: cuda.get_current_stream().record(),
        elapsed=cuda.get_elapsed_time,
        synchronize=lambda: cuda.Device(index).synchronize(),
        reset=lambda: None,  # the pool keeps freed memory, so its size is its peak
        held=lambda: cupy.get_default_memory_pool().total_bytes(),
    )


def _torch(index: int) -> Gauge:
    torch = importlib.import_module(LIBRARIES["torch"].module)
    cuda = torch.cuda

    def mark() -> Any:
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextlib.contextmanager
    def setting() -> Iterator[None]:
        switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [switch.allow_tf32 for switch in switches]
        try:
            for switch in switches:
                switch.allow_tf32 = False  # cuDNN's is on by default
            with cuda.device(index):
                yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.allow_tf32 = value

    return Gauge(
        name=cuda.get_device_name(index),
        version=torch.__version__,
        tf32=False,
        setting=setting,
        mark=mark,
        elapsed=lambda start, end: float(start.elapsed_time(end)),
        synchronize=lambda: cuda.synchronize(index),
        reset=lambda: cuda.reset_peak_memory_stats(index),
        held=lambda: int(cuda.max_memory_reserved(index)),
    )


GAUGES: dict[str, Callable[[int], Gauge]] = {"cuda": _cupy, "torch": _torch}
"""Functions from a GPU's number to its gauge, by the library of `devices.LIBRARIES`."""


def hardware(spec: str) -> str:
    """Return the hardware that a device string means, for any library.

    >>> [hardware(spec) for spec in ("cpu", "torch", "cuda", "cuda:1", "torch:cuda:0", "jax:cpu")]
    ['cpu', 'cpu', 'cuda:0', 'cuda:1', 'cuda:0', 'cpu']
    """
    found = re.search(r"\b(?:cuda|gpu)\b(?::(\d+))?", spec)
    return f"cuda:{found[1] or 0}" if found else CPU


def kind(spec: str) -> str:
    """Return the kind of hardware that a device string means: `"cpu"` or `"cuda"`."""
    return hardware(spec).partition(":")[0]


def gauge(spec: str) -> Gauge | None:
    """Return the gauge of a device's GPU; None on the CPU, and for a library that is not in `GAUGES`.

    Raises
    ------
    DeviceError
        If the device cannot be used.
    """
    device(spec)
    where, row = hardware(spec), GAUGES.get(spec.partition(":")[0])
    return None if where == CPU or row is None else row(int(where.partition(":")[2]))


@contextlib.contextmanager
def entered(spec: str) -> Iterator[None]:
    """Select a device inside a `with` block, in which PyTorch computes without TF32."""
    found = gauge(spec)
    with device(spec).active(), contextlib.nullcontext() if found is None else found.setting():
        yield


def describe(specs: Sequence[str]) -> list[dict[str, Any]]:
    """Return records of the GPUs among devices: name, driver, library, its version, and whether it uses TF32.

    Unknown values are None.
    """
    found = {spec: gauge(spec) for spec in specs if hardware(spec) != CPU}
    driver = _driver() if found else None
    return [
        {
            "device": spec,
            "name": one and one.name,
            "driver": driver,
            "library": LIBRARIES[spec.partition(":")[0]].module,
            "version": one and one.version,
            "tf32": one and one.tf32,
        }
        for spec, one in found.items()
    ]


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, or None if `nvidia-smi` does not report it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None
