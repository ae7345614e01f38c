"""The abilities of CuPy on the GPUs of this machine, each tried and its result checked, and facts about each GPU.

A GPU that exists may still be unusable: the libraries behind a kind of operation may be missing, too old, or wrong. The
caller imports CuPy and passes it, as only the caller knows how to install it.
"""

import contextlib
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
    """Something that a GPU should be able to do.

    Attributes
    ----------
    words : its description in errors and tables.
    probe : function that tries it with CuPy on the current device and returns the result, on the host.
    expected : the correct result, as lists of numbers that float32 represents exactly.
    required : whether a GPU without it cannot be used.
    """

    words: str
    probe: Callable[[Any], np.ndarray]
    expected: list[Any]
    required: bool = True


def _elementwise(cupy: Any) -> np.ndarray:
    return _host(cupy.asarray(_NUMBERS) * 2 + 1)


def _matmul(cupy: Any) -> np.ndarray:
    a = np.arange(6, dtype=np.float32)
    return _host(cupy.asarray(a.reshape(2, 3)) @ cupy.asarray(a.reshape(3, 2)))


def _launcher(cupy: Any, x: Any) -> Callable[[], None]:
    """Return a function that launches our own kernel, which replaces each number of x by 2 x + 1."""
    kernel, n = cupy.RawKernel(_KERNEL, "xcnn_probe"), np.int32(_NUMBERS.size)

    def launch() -> None:
        kernel((1,), (32,), (x, n))

    return launch


def _compilation(cupy: Any) -> np.ndarray:
    # CuPy may find the compiled kernel on disk, but it asks NVRTC for its version in every process.
    x = cupy.asarray(_NUMBERS)
    _launcher(cupy, x)()
    return _host(x)


def _graph_capture(cupy: Any) -> np.ndarray:
    stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
    with stream:
        x = cupy.asarray(_NUMBERS)
        launch = _launcher(cupy, x)
        launch()  # compiles and loads the kernel, which is not allowed during capture
        stream.begin_capture()
        try:
            launch()  # is recorded, not run
        except Exception:
            with contextlib.suppress(Exception):  # the first error says more
                stream.end_capture()
            raise
        graph = stream.end_capture()
        graph.launch(stream)
        graph.launch(stream)
        return _host(x)  # waits for the stream


def _host(array: Any) -> np.ndarray:
    return np.asarray(array.get())


ABILITIES: dict[str, Ability] = {
    "elementwise": Ability("elementwise operations", _elementwise, [1.0, 3.0, 5.0, 7.0]),
    "matmul": Ability("matrix products", _matmul, [[10.0, 13.0], [28.0, 40.0]]),
    "compilation": Ability("compiled kernels", _compilation, [1.0, 3.0, 5.0, 7.0]),
    "graph_capture": Ability("captured graphs", _graph_capture, [7.0, 15.0, 23.0, 31.0], required=False),
}
"""Every ability by name, in the order in which they are tried."""

PROVEN: set[tuple[int, str]] = set()
"""Index of the GPU and name of the ability, for all that have worked in this process; they are not tried again."""


def fault(cupy: Any, index: int, name: str) -> str:
    """Try an ability on a GPU and return one line that says why it fails, or "" if it works."""
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
    """Check that a GPU exists and has all required abilities.

    Parameters
    ----------
    hint : how to install CuPy.

    Raises
    ------
    DeviceError
        If there is no such GPU, or an ability fails; the error says which one and how to fix it.
    """
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
    faults : one line per ability of `ABILITIES`, by name, that says why it fails; "" if it works.
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
    """Return facts about every GPU that CuPy sees; all abilities are tried on each.

    Raises
    ------
    DeviceError
        If there is no driver.
    """
    return [_gpu(cupy, index) for index in range(_count(cupy))]


def _gpu(cupy: Any, index: int) -> Gpu:
    runtime = cupy.cuda.runtime
    free, total = _known(lambda: _memory(cupy, index)) or (None, None)
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


def _memory(cupy: Any, index: int) -> tuple[int, int]:
    with cupy.cuda.Device(index):
        free, total = cupy.cuda.runtime.memGetInfo()
    return free, total


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _known(ask: Callable[[], T]) -> T | None:
    """Return a fact, or None if it cannot be determined, so that a broken GPU is still reported."""
    try:
        return ask()
    except Exception:
        return None


def line(error: Exception) -> str:
    """Return the first line of the message of an exception, or its type if it has none."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
