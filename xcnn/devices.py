"""Devices, named by strings: one table of array libraries, how to open each, and how arrays move.

    cpu                   NumPy
    cuda, cuda:1          CuPy on an NVIDIA GPU
    torch, torch:cuda:0   PyTorch's arrays
    jax                   JAX's arrays
    strict                array-api-strict: only what the standard defines
    strict:device1        the same on a simulated device, whose arrays NumPy cannot read by accident
    strict:no_float64     the same on one without float64
    auto                  cuda if it works, else cpu

To add an array-API library, add a `Library` to `LIBRARIES`; `docs/extending.md` has an example. Arrays are copied
between devices only by `asarray` and `to_numpy`, never implicitly.
"""

import contextlib
import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from xcnn._array import Array, is_array, namespace_of, on_device
from xcnn._cuda import Gpu, line, name_of, report, require
from xcnn._dispatch import switched_off
from xcnn.errors import DeviceError, DtypeError, UsageError, XcnnError, explained, unknown

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
    name : the full string that opens it (`cuda:0`). Pickles and deep copies contain only this string.
    xp : its array-API namespace.
    handle : the `device=` argument of the library's creation functions.
    summary : one line that describes the device.
    """

    name: str
    xp: ModuleType
    handle: Any = field(hash=False)  # CuPy's devices cannot be hashed
    summary: str

    def __reduce__(self) -> tuple[Any, ...]:
        return device, (self.name,)

    def asarray(self, array: Any) -> Array:
        """Copy a host array to this device.

        The dtype stays the same, except that 64-bit integers become 32-bit ones if the device has no 64-bit integers.

        Raises
        ------
        DtypeError
            If the array does not contain numbers, if the device lacks the dtype, such as float64 on JAX by default, or
            if an integer does not fit into 32 bits.
        """
        return _place(self.xp, array, self.handle)

    def to_numpy(self, array: Array) -> np.ndarray:
        """Copy an array of this device to the host."""
        return to_numpy(array)

    def active(self) -> contextlib.AbstractContextManager[object]:
        """Return a context manager that makes this the current device; it can be nested.

        Only CuPy needs it, and only for GPUs other than the first: its operations and creation functions use the
        current device of the thread, which is the first GPU by default. Call ops and layers on `cuda:1` inside
        `with device.active():`. `Trainer` and all functions that copy arrays, evaluate or compare do so themselves.
        """
        return on_device(self.handle)

    def __repr__(self) -> str:
        return f"device({self.name!r})"


@dataclass(frozen=True)
class Library:
    """An array library and how to open its devices.

    Attributes
    ----------
    module : name of the module to import, which begins the name of its arrays' namespace.
    hint : how to install it, for the error if the import fails.
    open : function that takes the part of the device string after `name:` and returns the `Device`, or raises a
        DeviceError with the reason.
    to_numpy : function that copies one of its arrays to the host.
    wider : how to enable dtypes that its devices lack by default, or "".
    no_memory : texts that identify a RuntimeError as lack of memory. A MemoryError needs none.
    free : function that returns the cached memory of freed arrays to the device.
    """

    module: str
    hint: str
    open: Callable[[str], Device]
    to_numpy: Callable[[Array], np.ndarray]
    wider: str = ""
    no_memory: tuple[str, ...] = ()
    free: Callable[[], object] = lambda: None


@functools.cache
def _cpu(rest: str) -> Device:
    if rest:
        raise UsageError(f"device 'cpu:{rest}': the CPU takes no number; write 'cpu'")
    compiled = "without kernels, which need llvmlite: pip install llvmlite"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        compiled = f"kernels compiled by llvmlite {importlib.metadata.version('llvmlite')}"
    if switched_off():
        compiled = "without kernels, as XCNN_KERNELS=off says"
    return Device("cpu", np, "cpu", f"NumPy {np.__version__}, {compiled}")


def _cuda(rest: str) -> Device:
    index = _index("cuda", rest)
    cupy = _import("cuda")
    require(cupy, index, LIBRARIES["cuda"].hint)
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
        hint = "install a build of PyTorch that supports it, or use torch:cpu"
        raise DeviceError(f"torch:{rest}: PyTorch cannot use it ({line(error)}); {hint}") from None
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
        hint = "install a build of JAX that supports it, or use jax:cpu"
        raise DeviceError(f"jax:{rest}: JAX cannot use it ({line(error)}); {hint}") from None
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
        "pip install 'cupy-cuda12x[ctk]' (or cupy-cuda13x, by your driver)",
        _cuda,
        _cuda_to_numpy,
        no_memory=("out of memory", "ALLOC_FAILED"),  # of CUDA and of its libraries
        free=_free_cuda,
    ),
    "torch": Library(
        "torch",
        "pip install torch",
        _torch,
        lambda array: array.detach().cpu().numpy(),
        no_memory=("out of memory", "can't allocate memory", "ALLOC_FAILED"),
        free=lambda: _import("torch").cuda.empty_cache(),  # does nothing if CUDA is not in use
    ),
    "jax": Library(
        "jax",
        "pip install jax",
        _jax,
        np.asarray,
        "set JAX_ENABLE_X64=1 in the environment to enable it",
        no_memory=("RESOURCE_EXHAUSTED",),
    ),
    "strict": Library("array_api_strict", "pip install array-api-strict", _strict, _strict_to_numpy),
}
"""Every array library, by the part of its device strings before the colon."""


@explained
def device(spec: str | Device) -> Device:
    """Open a device by its string. A `Device` is returned unchanged.

    Raises
    ------
    UsageError
        If the string is not the name of a device; the error suggests the nearest name.
    DeviceError
        If the device cannot be used here; the error says what is missing and how to fix it.
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
    """Try to open the first device of every library, and return the device or the error for each."""
    found: dict[str, Device | DeviceError] = {}
    for name in LIBRARIES:
        try:
            found[name] = device(name)
        except DeviceError as error:
            found[name] = error
    return found


def gpus() -> list[Gpu]:
    """Return facts about every GPU that CuPy sees, usable or not. If the list is empty, `devices` says why."""
    try:
        return report(_import("cuda"))
    except DeviceError:
        return []


def to_numpy(array: Array) -> np.ndarray:
    """Copy an array of any library to the host.

    Raises
    ------
    DtypeError
        If `array` is not an array, or its library is not in `LIBRARIES`.
    """
    if not is_array(array):
        raise DtypeError(f"to_numpy: expected an array, got {type(array).__name__}")
    moved = LIBRARIES[_library(namespace_of(array))].to_numpy(array)
    return np.array(moved, order="C")  # a copy even where the library would share its memory


def like(array: np.ndarray, other: Array) -> Array:
    """Copy a host array to the library, device and dtype of `other`."""
    xp = namespace_of(other)
    # Convert on the host, as the device may lack the old dtype, unless NumPy lacks the new one (bfloat16).
    known = xp.__array_namespace_info__().dtypes()
    host = next((name for name, dtype in known.items() if dtype == other.dtype), array.dtype)
    where = array_api_compat.device(other)
    with on_device(where):
        return xp.astype(_place(xp, array.astype(host, copy=False), where), other.dtype, copy=False)


_ON_HOST = (np.ndarray, np.generic, float, int)


def on_host(array: Array | float) -> bool:
    """Return whether a value is a NumPy array or a plain number, which can be read without waiting for a device."""
    return isinstance(array, _ON_HOST)


def out_of_memory(error: Exception, where: Device) -> bool:
    """Return whether an exception means that a device ran out of memory; xcnn's own errors never do."""
    if isinstance(error, XcnnError):
        return False
    row = _row(where)
    known = row is not None and isinstance(error, RuntimeError) and any(text in str(error) for text in row.no_memory)
    return known or isinstance(error, MemoryError)


def free_memory(where: Device) -> None:
    """Return the cached memory of freed arrays to a device."""
    row = _row(where)
    if row is not None:
        with where.active():  # CuPy returns only the memory of the current device
            row.free()


def _row(where: Device) -> Library | None:
    """Return the row of the table for a device, or None."""
    return LIBRARIES.get(where.name.partition(":")[0])


def _place(xp: ModuleType, array: Any, handle: Any) -> Array:
    try:
        host = np.array(array)  # a copy, as the caller may change the array later, and it may be read-only
    except ValueError as error:
        raise DtypeError(f"asarray: expected an array of numbers ({line(error)})") from None
    if host.dtype.kind in "OSUmM":
        raise DtypeError(f"asarray: expected an array of numbers, got {host.dtype}")
    # Every device has the narrow dtypes; checking takes microseconds.
    if host.dtype.itemsize > 4 and xp is not np:
        host = _fitting(xp, host, handle)
    with on_device(handle):
        return xp.asarray(host, device=handle)


def _fitting(xp: ModuleType, host: np.ndarray, handle: Any) -> np.ndarray:
    """Return a host array in a dtype that the device has: the same, or int32 for wider integers that fit."""
    if host.dtype.name in xp.__array_namespace_info__().dtypes(device=handle):
        return host
    narrow = np.iinfo(np.int32)
    if host.dtype.kind in "iu" and (not host.size or (host.min() >= narrow.min and host.max() <= narrow.max)):
        return host.astype(np.int32)
    wider = LIBRARIES[_library(xp)].wider
    hint = f" ({wider})" if wider else ""
    raise DtypeError(
        f"{_library(xp)} has no {host.dtype} on {handle}{hint}; convert the array to a narrower dtype first"
    )


def _library(xp: ModuleType) -> str:
    """Return the name in the table of the library of a namespace, such as `jax.numpy` or `array_api_compat.torch`."""
    module = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    for name, library in LIBRARIES.items():
        if library.module == module:
            return name
    raise DtypeError(f"the array library {module} is not in xcnn.devices.LIBRARIES; add it to move its arrays")


def _import(name: str) -> Any:
    library = LIBRARIES[name]
    try:
        return importlib.import_module(library.module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == library.module
        reason = "is not installed" if missing else f"does not import ({line(error)})"
        raise DeviceError(f"{name}: the package {library.module} {reason}; {library.hint}") from None


def _index(name: str, rest: str) -> int:
    if not rest:
        return 0
    if not rest.isdecimal():
        raise UsageError(f"device '{name}:{rest}': expected a device number after the colon, as in '{name}:0'")
    return int(rest)
