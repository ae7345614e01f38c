"""What CuPy can do on the GPUs here: abilities that are tried, their results checked, and what is known of each GPU.

That there is a GPU promises little: the libraries behind a kind of operation may be missing, too old for it, or wrong.
CuPy itself is given by the caller, who can say how to get it.
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
    """Something that a GPU has to be able to do.

    Attributes
    ----------
    words : what errors and tables call it.
    probe : tries it with CuPy on the current device and returns what came of it, on the host.
    expected : what has to come, as lists of numbers that float32 holds exactly.
    required : whether a GPU without it is of no use.
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
    """Give what launches a kernel of our own that replaces each number of x by 2 x + 1."""
    kernel, n = cupy.RawKernel(_KERNEL, "xcnn_probe"), np.int32(_NUMBERS.size)

    def launch() -> None:
        kernel((1,), (32,), (x, n))

    return launch


def _compilation(cupy: Any) -> np.ndarray:
    # CuPy finds the compiled kernel on disk the next time, but asks NVRTC for its version in every process.
    x = cupy.asarray(_NUMBERS)
    _launcher(cupy, x)()
    return _host(x)


def _graph_capture(cupy: Any) -> np.ndarray:
    stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
    with stream:
        x = cupy.asarray(_NUMBERS)
        launch = _launcher(cupy, x)
        launch()  # compiles and loads the kernel, which capturing forbids
        stream.begin_capture()
        try:
            launch()  # is noted, not done
        except Exception:
            with contextlib.suppress(Exception):  # of a capture that is broken; why it broke says more
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
"""Everything that is tried, in this order, by a name for machines."""

PROVEN: set[tuple[int, str]] = set()
"""The abilities that worked once in this process, with the index of the GPU: they are not tried again."""


def fault(cupy: Any, index: int, name: str) -> str:
    """Try an ability on a GPU, and say in one line why it fails; the line is empty where it works."""
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


def require(cupy: Any, index: int, mend: str) -> None:
    """Check that a GPU is there and has the abilities that it needs.

    Raises
    ------
    DeviceError
        Where it has not; it says which of them fails, and the mend.
    """
    count = _count(cupy)
    if index >= count:
        some = f"there are {count} GPUs here, numbered from 0" if count > 1 else "there is one GPU here, cuda:0"
        raise DeviceError(f"cuda:{index}: {some if count else 'CuPy sees no GPU'}")
    for name, ability in ABILITIES.items():
        if ability.required and (reason := fault(cupy, index, name)):
            full = any(words in reason.lower() for words in ("out of memory", "alloc_failed"))
            mend = "see what else uses its memory (nvidia-smi)" if full else f"reinstall CuPy: {mend}"
            raise DeviceError(f"cuda:{index}: {ability.words} fail ({reason}); {mend}")


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
    """What is known of one GPU; None where the GPU, or CuPy, does not tell.

    Attributes
    ----------
    device : the string that opens it, such as `cuda:0`.
    name : of the model.
    compute_capability : of the hardware, such as `9.0`.
    driver : the newest CUDA that the driver knows, such as `12.8`.
    runtime : the CUDA that CuPy is built with.
    nvrtc : the CUDA of the compiler that CuPy has found.
    memory_free, memory_total : bytes.
    faults : why an ability fails, by its name in `ABILITIES`, in one line that is empty where it works.
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
    """Tell of every GPU that CuPy sees, trying all abilities on each.

    Raises
    ------
    DeviceError
        Where there is no driver.
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
    """Give the name of a GPU's model, if it tells."""
    return _known(lambda: str(cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()))


def _memory(cupy: Any, index: int) -> tuple[int, int]:
    with cupy.cuda.Device(index):
        free, total = cupy.cuda.runtime.memGetInfo()
    return free, total


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _known(ask: Callable[[], T]) -> T | None:
    """Ask for a fact; what is broken does not tell, but keeps its row."""
    try:
        return ask()
    except Exception:
        return None


def line(error: Exception) -> str:
    """Give the first line of what an exception says, or its type where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
