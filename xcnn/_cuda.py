"""Facts about the GPUs of this machine, and tests of what CuPy can do on each.

A GPU that exists may still be unusable: libraries that CuPy needs for some operations may be missing or too old. CuPy
itself is an argument, as only the caller knows how to install it.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from xcnn.errors import DeviceError

__all__ = ["ABILITIES", "PROVEN", "Ability", "Gpu", "fault", "line", "name_of", "report", "require"]

T = TypeVar("T")

_KERNEL = """
extern "C" __global__ void xcnn_probe(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = 2.0f * x[i] + 1.0f;
}
"""
_NUMBERS = np.arange(4, dtype=np.float32)


@dataclass(frozen=True)
class Ability:
    """An ability of a GPU.

    Attributes
    ----------
    words : its description in errors and tables.
    probe : function that tries it with CuPy on the current device and returns the result on the host.
    expected : the correct result, as lists of numbers that float32 represents exactly.
    required : whether a GPU without it cannot be used.
    """

    words: str
    probe: Callable[[Any], Any]
    expected: list[Any]
    required: bool = True


def _elementwise(cupy: Any) -> Any:
    return (cupy.asarray(_NUMBERS) * 2 + 1).get()


def _matmul(cupy: Any) -> Any:
    a = np.arange(6, dtype=np.float32)
    return (cupy.asarray(a.reshape(2, 3)) @ cupy.asarray(a.reshape(3, 2))).get()


def _launcher(cupy: Any, x: Any) -> Callable[[], object]:
    """Return a function that launches `_KERNEL`, which replaces each number of x by 2 x + 1."""
    return functools.partial(cupy.RawKernel(_KERNEL, "xcnn_probe"), (1,), (32,), (x, np.int32(_NUMBERS.size)))


def _compilation(cupy: Any) -> Any:
    # Even if CuPy finds the compiled kernel on disk, it calls NVRTC, for its version.
    x = cupy.asarray(_NUMBERS)
    _launcher(cupy, x)()
    return x.get()


def _graph_capture(cupy: Any) -> Any:
    stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
    with stream:
        x = cupy.asarray(_NUMBERS)
        launch = _launcher(cupy, x)
        launch()  # compiles and loads the kernel, which is not allowed during capture
        stream.begin_capture()
        try:
            launch()  # is recorded, not executed
        except Exception:
            with contextlib.suppress(Exception):  # the first error is more informative
                stream.end_capture()
            raise
        graph = stream.end_capture()
        graph.launch(stream)
        graph.launch(stream)
        return x.get()  # waits for the stream


ABILITIES: dict[str, Ability] = {
    "elementwise": Ability("elementwise operations", _elementwise, [1.0, 3.0, 5.0, 7.0]),
    "matmul": Ability("matrix products", _matmul, [[10.0, 13.0], [28.0, 40.0]]),
    "compilation": Ability("compiled kernels", _compilation, [1.0, 3.0, 5.0, 7.0]),
    "graph_capture": Ability("captured graphs", _graph_capture, [7.0, 15.0, 23.0, 31.0], required=False),
}
"""Every ability by name, in the order in which they are tried."""

PROVEN: set[tuple[int, str]] = set()
"""Index of the GPU and name of each ability that has worked in this process; it is not tried again."""


def fault(cupy: Any, index: int, name: str) -> str:
    """Try an ability on a GPU; return "" if it works, otherwise the reason for the failure in one line."""
    if (index, name) in PROVEN:
        return ""
    ability = ABILITIES[name]
    try:
        with cupy.cuda.Device(index):
            came = ability.probe(cupy).tolist()
    except Exception as error:
        return line(error)
    if came != ability.expected:
        return f"the result is {came}, expected {ability.expected}"
    PROVEN.add((index, name))
    return ""


def require(cupy: Any, index: int, hint: str) -> None:
    """Raise a DeviceError unless a GPU exists and has all required abilities; `hint` says how to install CuPy."""
    count = _count(cupy)
    if index >= count:
        some = f"there are {count} GPUs here, numbered from 0" if count > 1 else "there is one GPU here, cuda:0"
        raise DeviceError(f"cuda:{index}: {some if count else 'CuPy sees no GPU'}")
    for name, ability in ABILITIES.items():
        if ability.required and (reason := fault(cupy, index, name)):
            full = any(words in reason.lower() for words in ("out of memory", "alloc_failed"))
            advice = "check with nvidia-smi which processes use its memory" if full else f"reinstall CuPy: {hint}"
            raise DeviceError(f"cuda:{index}: {ability.words} fail ({reason}); {advice}")


def _count(cupy: Any) -> int:
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        if "NoDevice" in line(error):
            raise DeviceError(f"cuda: CuPy sees no GPU ({line(error)})") from None
        lacks = "no CUDA driver, or one that is too old"
        raise DeviceError(f"cuda: CuPy finds {lacks} ({line(error)}); install a newer NVIDIA driver") from None


@dataclass(frozen=True)
class Gpu:
    """Facts about one GPU; None if unknown.

    Attributes
    ----------
    device : the string that opens it, such as `cuda:0`.
    name : name of the model.
    compute_capability : compute capability of the hardware, such as `9.0`.
    driver : newest CUDA version that the driver supports, such as `12.8`.
    runtime : CUDA version that CuPy was built with.
    nvrtc : CUDA version of the compiler that CuPy found.
    memory_free, memory_total : in bytes.
    faults : the reason, in one line, why an ability fails, or "" if it works; by name in `ABILITIES`.
    """

    device: str
    name: str | None
    compute_capability: str | None
    driver: str | None
    runtime: str | None
    nvrtc: str | None
    memory_free: int | None
    memory_total: int | None
    faults: dict[str, str]

    @property
    def usable(self) -> bool:
        """Whether `device` can be opened."""
        return not any(self.faults[name] for name, ability in ABILITIES.items() if ability.required)


def report(cupy: Any) -> list[Gpu]:
    """Try all abilities on every GPU that CuPy sees, and return facts about each; raise an error without a driver."""
    return [_gpu(cupy, index) for index in range(_count(cupy))]


def _gpu(cupy: Any, index: int) -> Gpu:
    runtime = cupy.cuda.runtime
    free, total = _known(lambda: cupy.cuda.Device(index).mem_info) or (None, None)
    return Gpu(
        f"cuda:{index}",
        name=name_of(cupy, index),
        compute_capability=_known(lambda: "{major}.{minor}".format(**runtime.getDeviceProperties(index))),
        driver=_known(lambda: _version(runtime.driverGetVersion())),
        runtime=_known(lambda: _version(runtime.runtimeGetVersion())),
        nvrtc=_known(lambda: "{}.{}".format(*cupy.cuda.nvrtc.getVersion())),
        memory_free=free,
        memory_total=total,
        faults={name: fault(cupy, index, name) for name in ABILITIES},
    )


def name_of(cupy: Any, index: int) -> str | None:
    """Return the name of the model of a GPU, or None."""
    return _known(lambda: str(cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _known(ask: Callable[[], T]) -> T | None:
    """Return the result of `ask`, or None if it fails, so that a broken GPU is still reported."""
    try:
        return ask()
    except Exception:
        return None


def line(error: Exception) -> str:
    """Return the first line of the message of an exception, or its type if it has none."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
