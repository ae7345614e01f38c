"""What a device string means: one table of array libraries, how to open each, and how arrays move.

    cpu                   NumPy
    cuda, cuda:1          CuPy on an NVIDIA GPU
    torch, torch:cuda:0   PyTorch's arrays
    jax                   JAX's arrays
    strict                array-api-strict: nothing but the standard
    strict:device1        the same on a pretended device, from which nothing reaches the host unasked
    strict:no_float64     the same on one without float64
    auto                  cuda if it truly works, else cpu

Another array-API library is one more `Library` in `LIBRARIES`. No transfer is implicit: arrays move by `asarray` and
`to_numpy` alone.
"""

import contextlib
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from xcnn._array import Array, namespace_of, on_device
from xcnn._cuda import Gpu, line, name_of, report, require
from xcnn.errors import DeviceError, DtypeError, UsageError, XcnnError, unknown

__all__ = [
    "LIBRARIES",
    "Device",
    "Gpu",
    "Library",
    "device",
    "devices",
    "free_memory",
    "gpus",
    "like",
    "on_host",
    "out_of_memory",
    "to_numpy",
]


@dataclass(frozen=True)
class Device:
    """An opened device.

    Attributes
    ----------
    name : the full string that opens it (`cuda:0`). A pickle or a deep copy of a device is opened by it again.
    xp : its array-API namespace.
    handle : what the library's creation functions take as `device=`.
    summary : one line for people.
    """

    name: str
    xp: ModuleType
    handle: Any = field(hash=False)  # CuPy's devices have no hash
    summary: str

    def __reduce__(self) -> tuple[Any, ...]:
        return device, (self.name,)

    def asarray(self, array: Any) -> Array:
        """Copy a host array to this device.

        Its dtype stays, but integers become 32 bits wide where the device has none of 64 (labels, counters).

        Raises
        ------
        DtypeError
            For a dtype that the device does not have, such as float64 on JAX's by default; nothing is rounded unasked.
        """
        return _place(self.xp, array, self.handle)

    def to_numpy(self, array: Array) -> np.ndarray:
        """Copy an array of this device to the host."""
        return to_numpy(array)

    def active(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which new arrays are made on this device; it may be nested.

        What moves arrays, trains, evaluates and compares enters it by itself. Only CuPy needs it, and there only other
        GPUs than the first: its operations and creation functions go by a current device, which every thread has for
        itself. So call ops and layers on `cuda:1` inside `with device.active():`. Opening a device does not make it
        current, for then the one that was opened last would take the arrays meant for the others.
        """
        return on_device(self.handle)

    def __repr__(self) -> str:
        return f"device({self.name!r})"


@dataclass(frozen=True)
class Library:
    """One row of the table: an array library and how to reach its devices.

    Attributes
    ----------
    module : what to import.
    mend : how to get it, where the import fails.
    open : gives the device for the part of the string after the name; raises DeviceError with a reason.
    to_numpy : copies one of its arrays to the host.
    wider : how to get a dtype that its devices lack by default; empty where there is no way.
    no_memory : what its RuntimeErrors say where memory ran out; a MemoryError needs no words.
    free : gives the memory that it keeps of freed arrays back to the device.
    """

    module: str
    mend: str
    open: Callable[[str], Device]
    to_numpy: Callable[[Array], np.ndarray]
    wider: str = ""
    no_memory: tuple[str, ...] = ()
    free: Callable[[], object] = lambda: None


def _cpu(rest: str) -> Device:
    if rest:
        raise UsageError(f"device 'cpu:{rest}': the CPU takes no number; write 'cpu'")
    compiled = ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        compiled = f", kernels compiled by Numba {importlib.metadata.version('numba')}"
    return Device("cpu", np, "cpu", f"NumPy {np.__version__}{compiled}")


def _cuda(rest: str) -> Device:
    index = _index("cuda", rest)
    cupy = _import("cuda")
    require(cupy, index, LIBRARIES["cuda"].mend)
    xp = importlib.import_module("array_api_compat.cupy")
    return Device(
        f"cuda:{index}", xp, cupy.cuda.Device(index), f"CuPy {cupy.__version__} on {name_of(cupy, index) or 'a GPU'}"
    )


def _cuda_to_numpy(array: Array) -> np.ndarray:
    with on_device(array.device):
        return np.asarray(array.get())


def _free_cuda() -> None:
    cupy = _import("cuda")
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


def _torch(rest: str) -> Device:
    torch = _import("torch")
    rest = rest or "cpu"
    try:
        handle = torch.device(rest)
    except RuntimeError:
        raise unknown("device", f"torch:{rest}", ("torch", "torch:cpu", "torch:cuda", "torch:cuda:0")) from None
    try:
        torch.zeros(1, device=handle).item()
    except Exception as error:
        mend = "install a build of PyTorch that can, or use torch:cpu"
        raise DeviceError(f"torch:{rest}: PyTorch cannot use it ({line(error)}); {mend}") from None
    xp = importlib.import_module("array_api_compat.torch")
    return Device(f"torch:{rest}", xp, handle, f"PyTorch {torch.__version__}")


def _jax(rest: str) -> Device:
    jax = _import("jax")
    rest = rest or "cpu"
    kind, _, number = rest.partition(":")
    index = _index(f"jax:{kind}", number)
    try:
        found = jax.devices(kind)
    except RuntimeError as error:
        mend = "install a build of JAX that can, or use jax:cpu"
        raise DeviceError(f"jax:{rest}: JAX cannot use it ({line(error)}); {mend}") from None
    if index >= len(found):
        raise DeviceError(f"jax:{rest}: JAX has {len(found)} devices of this kind here, numbered from 0")
    return Device(f"jax:{rest}", importlib.import_module("jax.numpy"), found[index], f"JAX {jax.__version__}")


def _strict(rest: str) -> Device:
    strict = _import("strict")
    try:
        handle = strict.Device(rest or "CPU_DEVICE")
    except ValueError:
        names = [str(one).split("'")[1] for one in strict.__array_namespace_info__().devices()]
        raise unknown("device", f"strict:{rest}", ["strict", *(f"strict:{name}" for name in names[1:])]) from None
    name = f"strict:{rest}" if rest else "strict"
    return Device(name, strict, handle, f"array-api-strict {strict.__version__}")


def _strict_to_numpy(array: Array) -> np.ndarray:
    strict = importlib.import_module("array_api_strict")
    return np.asarray(array.to_device(strict.Device("CPU_DEVICE")))


LIBRARIES: dict[str, Library] = {
    "cpu": Library("numpy", "pip install numpy", _cpu, np.asarray),
    "cuda": Library(
        "cupy",
        "pip install 'xcnn[cuda12]' (or cuda13, by your driver)",
        _cuda,
        _cuda_to_numpy,
        no_memory=("out of memory", "ALLOC_FAILED"),  # CUDA's own words and its libraries'; the pool has a MemoryError
        free=_free_cuda,
    ),
    "torch": Library(
        "torch",
        "pip install torch",
        _torch,
        lambda array: array.detach().cpu().numpy(),
        no_memory=("out of memory", "can't allocate memory", "ALLOC_FAILED"),
        free=lambda: _import("torch").cuda.empty_cache(),  # does nothing where CUDA is not in use
    ),
    "jax": Library(
        "jax",
        "pip install jax",
        _jax,
        np.asarray,
        "JAX_ENABLE_X64=1 in the environment switches it on",
        no_memory=("RESOURCE_EXHAUSTED",),
    ),
    "strict": Library("array_api_strict", "pip install array-api-strict", _strict, _strict_to_numpy),
}
"""Every array library by the first part of its device strings."""


def device(spec: str | Device) -> Device:
    """Open a device by its string; an opened one is returned as it is.

    Raises
    ------
    UsageError
        For a string that names no device; it names the nearest.
    DeviceError
        For a device that cannot be used here; it says what is missing and the mend.
    """
    if isinstance(spec, Device):
        return spec
    if not isinstance(spec, str):
        raise UsageError(f"device takes a string such as 'cpu', or an opened device, got {spec!r}")
    name, _, rest = spec.partition(":")
    if name == "auto" and not rest:
        try:
            return device("cuda")
        except DeviceError:
            return device("cpu")
    if name not in LIBRARIES:
        raise unknown("device", spec, [*LIBRARIES, "auto"], {"gpu": "cuda", "cupy": "cuda", "numpy": "cpu"})
    return LIBRARIES[name].open(rest)


def devices() -> dict[str, Device | DeviceError]:
    """Try the first device of every library: the opened device, or the error that says why not and what to do."""
    found: dict[str, Device | DeviceError] = {}
    for name in LIBRARIES:
        try:
            found[name] = device(name)
        except DeviceError as error:
            found[name] = error
    return found


def gpus() -> list[Gpu]:
    """Report on every GPU that CuPy sees, one that cannot be used included; where it sees none, `devices` says why."""
    try:
        return report(_import("cuda"))
    except DeviceError:
        return []


def to_numpy(array: Array) -> np.ndarray:
    """Copy an array of any library to the host."""
    moved = LIBRARIES[_library(namespace_of(array))].to_numpy(array)
    return np.array(moved, order="C")  # a copy even where the library would share its memory


def like(array: np.ndarray, other: Array) -> Array:
    """Copy a host array to the library, device and dtype of `other`."""
    xp = namespace_of(other)
    # Convert on the host, as the device may lack the dtype that comes; but the host may lack the one wanted (bfloat16).
    host = getattr(np, str(other.dtype).rpartition(".")[2], array.dtype)
    where = array_api_compat.device(other)
    with on_device(where):
        return xp.astype(_place(xp, array.astype(host), where), other.dtype, copy=False)


_ON_HOST = (np.ndarray, np.generic, float, int)


def on_host(array: Array | float) -> bool:
    """Say whether reading a number from an array, or a plain number, costs no synchronisation with a device."""
    return isinstance(array, _ON_HOST)


def out_of_memory(error: Exception, where: Device) -> bool:
    """Say whether an exception that computing on a device raised means that memory ran out, and nobody said so yet."""
    if isinstance(error, XcnnError):
        return False
    row = _row(where)
    said = isinstance(error, RuntimeError) and row is not None and any(words in str(error) for words in row.no_memory)
    return said or isinstance(error, MemoryError)


def free_memory(where: Device) -> None:
    """Give what a device's library keeps of the memory of freed arrays back, so that it can be used for any others."""
    row = _row(where)
    if row is not None:
        with where.active():  # CuPy's pool frees what it keeps on the current device alone
            row.free()


def _row(where: Device) -> Library | None:
    """Give the table's row of a device, if it is of a library in the table."""
    return LIBRARIES.get(where.name.partition(":")[0])


def _place(xp: ModuleType, array: Any, handle: Any) -> Array:
    # A private copy: the result must not change when the caller's buffer does, and may come from a read-only one.
    host = np.array(array)
    # Every device has the narrow dtypes, NumPy whatever NumPy has (long double), and asking takes microseconds.
    if host.dtype.itemsize > 4 and xp is not np:
        host = _fitting(xp, host, handle)
    with on_device(handle):
        return xp.asarray(host, device=handle)


def _fitting(xp: ModuleType, host: np.ndarray, handle: Any) -> np.ndarray:
    """Give a host array in a dtype that the device has: its own, or int32 for wider integers that fit into it."""
    if host.dtype.name in xp.__array_namespace_info__().dtypes(device=handle):
        return host
    narrow = np.iinfo(np.int32)
    if host.dtype.kind in "iu" and (not host.size or (host.min() >= narrow.min and host.max() <= narrow.max)):
        return host.astype(np.int32)
    wider = LIBRARIES[_library(xp)].wider
    mend = f" ({wider})" if wider else ""
    raise DtypeError(
        f"{_library(xp)} has no {host.dtype} on {handle}{mend}; convert the array to a narrower dtype first"
    )


def _library(xp: ModuleType) -> str:
    """Give the table's name of the library that a namespace belongs to, such as jax.numpy or array_api_compat.torch."""
    module = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    for name, library in LIBRARIES.items():
        if library.module == module:
            return name
    raise DtypeError(
        f"{module} is no array library of xcnn.devices.LIBRARIES; add it there, so that its arrays can move"
    )


def _import(name: str) -> Any:
    library = LIBRARIES[name]
    try:
        return importlib.import_module(library.module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == library.module
        reason = "is not installed" if missing else f"does not import ({line(error)})"
        raise DeviceError(f"{name}: the package {library.module} {reason}; {library.mend}") from None


def _index(name: str, rest: str) -> int:
    if not rest:
        return 0
    if not rest.isdecimal():
        raise UsageError(f"device '{name}:{rest}': expected a device number after the colon, as in '{name}:0'")
    return int(rest)
