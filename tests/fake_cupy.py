"""A fake CuPy with fake GPUs, which is as strict as the real one.

The arrays are those of a private copy of array-api-strict, modified to behave as CuPy's do:

- Every thread has a current device, 0 at first. Creation functions use it and ignore `device=`.
- An operation on arrays of another device raises, as between GPUs that cannot read each other's memory.
- Kernels and graphs run when their stream is synchronized, and a capture only records them.
- A device object stores the device to return to, and `use` makes it current permanently.

`Fake.broken` and `Fake.wrong` set what fails on a GPU; `Fake.tried` records what was tried.
"""

import importlib.util
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xcnn import _cuda, _dispatch

CREATION = ["arange", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like"]
CREATION += ["zeros", "zeros_like"]


class Fake:
    """A machine with fake GPUs.

    Attributes
    ----------
    count : number of GPUs.
    no_driver : the error that counting the GPUs raises.
    broken : errors that operations on a GPU raise, by (index, operation).
    wrong : operations with wrong results, as (index, operation).
    tried : the operations so far, as (index, operation).
    freed : the devices whose memory pool was freed.
    made : all streams.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.no_driver: Exception | None = None
        self.broken: dict[tuple[int, str], Exception] = {}
        self.wrong: set[tuple[int, str]] = set()
        self.tried: list[tuple[int, str]] = []
        self.freed: list[int] = []
        self.made: list[Stream] = []
        self._local = threading.local()

    @property
    def current(self) -> int:
        """The current device of this thread."""
        return getattr(self._local, "device", 0)

    @current.setter
    def current(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._local.device = index

    @property
    def streams(self) -> list["Stream"]:
        """The stack of streams that this thread has entered, above the default one."""
        if not hasattr(self._local, "streams"):
            self._local.streams = [Stream()]
        return self._local.streams

    def attempt(self, what: str) -> bool:
        """Record an operation on the current device; return whether its result will be right."""
        key = (self.current, what)
        self.tried.append(key)
        if key in self.broken:
            raise self.broken[key]
        return key not in self.wrong


machine = Fake(0)


def install(monkeypatch: pytest.MonkeyPatch, count: int = 2) -> Fake:
    """Install a machine with `count` GPUs and its CuPy until the test ends."""
    global machine
    machine = Fake(count)
    namespace = _namespace()
    monkeypatch.setitem(sys.modules, "cupy", _cupy(namespace))
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", namespace)
    monkeypatch.setitem(_dispatch._KERNELS, namespace, {})  # CUDA sources are not for these arrays
    monkeypatch.setattr(_cuda, "PROVEN", set())
    return machine


def _cupy(namespace: ModuleType) -> ModuleType:
    runtime = SimpleNamespace(
        getDeviceCount=_count,
        getDeviceProperties=_properties,
        driverGetVersion=lambda: 12080,
        runtimeGetVersion=lambda: 12090,
    )
    cupy: Any = ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.ndarray = type("ndarray", (), {})  # array_api_compat looks for it
    cupy.asarray, cupy.RawKernel = namespace.asarray, RawKernel
    cupy.cuda = SimpleNamespace(
        Device=namespace.asarray(0).device.__class__,
        Stream=Stream,
        runtime=runtime,
        nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)),
    )
    cupy.get_default_memory_pool = lambda: SimpleNamespace(
        free_all_blocks=lambda: machine.freed.append(machine.current)
    )
    cupy.get_default_pinned_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    return cupy


def _count() -> int:
    if machine.no_driver is not None:
        raise machine.no_driver
    return machine.count


def _properties(index: int) -> dict[str, Any]:
    if (index, "properties") in machine.broken:
        raise machine.broken[index, "properties"]
    return {"name": b"NVIDIA Pretence %d" % index, "major": 9, "minor": index, "warpSize": 32}


_MADE: list[ModuleType] = []


def _namespace() -> ModuleType:
    """Return a replacement for `array_api_compat.cupy`, one for all tests: libraries cache namespaces by array type."""
    if not _MADE:
        _MADE.append(_make_namespace())
    return _MADE[0]


def _make_namespace() -> ModuleType:
    original = pytest.importorskip("array_api_strict")
    spec = importlib.util.spec_from_file_location(
        "strict_for_cupy", original.__file__, submodule_search_locations=[str(Path(original.__file__).parent)]
    )
    strict: Any = importlib.util.module_from_spec(spec)
    sys.modules["strict_for_cupy"] = strict
    spec.loader.exec_module(strict)

    class Device(strict.Device):
        def __init__(self, device: Any = None) -> None:
            self.id = machine.current if device is None else int(device)
            self._device = f"device{self.id + 1}"
            self._stack: list[int] = []

        def __int__(self) -> int:
            return self.id

        def __enter__(self) -> "Device":
            self._stack.append(machine.current)
            self.use()
            return self

        def __exit__(self, *args: object) -> None:
            machine.current = self._stack.pop()

        def use(self) -> None:
            machine.current = self.id

        @property
        def mem_info(self) -> Any:
            with self:
                return machine.attempt("memory") and ((machine.current + 1) << 30, 80 << 30)

        def __repr__(self) -> str:
            return f"<CUDA Device {self.id}>"

    namespace: Any = ModuleType("array_api_compat.cupy")
    vars(namespace).update({name: value for name, value in vars(strict).items() if not name.startswith("_")})
    namespace.__array_namespace_info__ = strict.__array_namespace_info__
    for name in CREATION:
        setattr(namespace, name, _on_current(getattr(strict, name), Device))

    def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Any:
        copy = copy if isinstance(obj, array_type) else True  # arrays of the host are copied
        return strict.asarray(obj, dtype=dtype, device=Device(), copy=copy)

    namespace.asarray, array_type = asarray, type(strict.ones(1))
    _dress(array_type, namespace, Device)
    return namespace


def _on_current(create: Callable[..., Any], device_type: type) -> Callable[..., Any]:
    def created(*args: Any, device: Any = None, **options: Any) -> Any:
        return create(*args, device=device_type(), **options)

    return created


def _dress(array_type: Any, namespace: ModuleType, device_type: type) -> None:
    """Make the arrays behave as CuPy's do."""
    new = array_type._new

    def checked_new(cls: type, x: Any, /, device: Any) -> Any:
        device = device if isinstance(device, device_type) else device_type()
        _same(device.id)
        return new(x, device=device)

    def in_place(method: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: Any, *args: Any) -> Any:
            _same(self.device.id)
            return method(self, *args)

        return changed

    def trying(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def tried(self: Any, other: Any) -> Any:
            right, result = machine.attempt(what), method(self, other)
            if not right:
                result._array[...] = 0
            return result

        return tried

    def get(self: Any) -> np.ndarray:
        _same(self.device.id)  # a past error of CuPy, for arrays that are not contiguous
        machine.streams[-1].synchronize()
        return np.array(self._array)

    array_type._new = classmethod(checked_new)
    array_type.__setitem__ = in_place(array_type.__setitem__)
    array_type.__iadd__ = in_place(array_type.__iadd__)
    array_type.__mul__ = trying("elementwise", array_type.__mul__)
    array_type.__matmul__ = trying("matmul", array_type.__matmul__)
    array_type.__array_namespace__ = lambda self, api_version=None: namespace
    array_type.__len__ = lambda self: self.shape[0]
    array_type.get = get


def _same(index: int) -> None:
    if index != machine.current:
        raise ValueError(
            f"The device where the array resides ({index}) is different from the current device ({machine.current}). "
            "Peer access is unavailable between these devices."
        )


class Stream:
    """A queue of work; made without arguments, it is the default stream."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking = non_blocking
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        machine.made.append(self)

    def __enter__(self) -> "Stream":
        machine.streams.append(self)
        return self

    def __exit__(self, *args: object) -> None:
        assert machine.streams.pop() is self

    def synchronize(self) -> None:
        if self.captured is not None:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
        while self.queue:
            self.queue.pop(0)()

    def begin_capture(self) -> None:
        if not self.non_blocking:
            raise RuntimeError("cudaErrorStreamCaptureImplicit: the default stream cannot be captured")
        self.captured = []

    def end_capture(self) -> "Graph":
        assert self.captured is not None, "nothing is being captured"
        nodes, self.captured = self.captured, None
        if (machine.current, "launch in capture") in machine.broken:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        return Graph(nodes if machine.attempt("graph_capture") else [])

    def put(self, work: Callable[[], None]) -> None:
        if self.captured is None:
            self.queue.append(work)
            return
        if not machine.attempt("launch in capture"):
            self.queue.append(work)  # also runs at once
        self.captured.append(work)


class Graph:
    """Captured work."""

    def __init__(self, nodes: list[Callable[[], None]]) -> None:
        self.nodes = nodes

    def launch(self, stream: Stream) -> None:
        stream.queue.extend(self.nodes)


class RawKernel:
    """Runs C code of the form `if (i < n) x[i] = EXPRESSION;`, one thread after another."""

    def __init__(self, code: str, name: str) -> None:
        assert re.search(rf'extern "C" __global__ void {name}\(float\* x, int n\)', code)
        self.expression = re.sub(r"(\d)f\b", r"\1", re.search(r"if \(i < n\) x\[i\] = (.+);", code)[1])
        self.loaded = False

    def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[Any, Any]) -> None:
        x, n = args
        assert isinstance(n, np.int32)
        _same(x.device.id)
        stream = machine.streams[-1]
        if not self.loaded:
            assert stream.captured is None, "a kernel cannot be loaded while capturing"
            self.right, self.loaded = machine.attempt("compilation"), True

        def work() -> None:
            values = x._array
            for i in range(min(n, grid[0] * block[0])):
                values[i] = eval(self.expression, {}, {"x": values, "i": i}) if self.right else 0

        stream.put(work)
