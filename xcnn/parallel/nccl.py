"""NCCL through CuPy: one process for each GPU, whose arrays go from GPU to GPU.

Not one line of this file has run on a GPU yet. Tests run it with a pretended CuPy, whose streams take their work in any
order that events allow, and check that CuPy 14 has the functions that it calls.
"""

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from xcnn.devices import Device, device, on_host
from xcnn.errors import DeviceError, DtypeError
from xcnn.training.processes import Done, Message, Processes

__all__ = ["NCCL", "device_of", "with_gpus"]


class NCCL(Processes):
    """Processes of which each computes on a GPU of its own.

    Arrays of the GPU are exchanged by NCCL, on a stream beside that of the computation; arrays of the host by `host`.
    All processes must open it, at the same point of the program. NCCL knows no tags: exchanges of arrays of the GPU
    between two processes must begin in the same order in both.

    Parameters
    ----------
    host : the same processes, such as `MPI()`.
    where : the GPU of this process, and of no other.

    Raises
    ------
    DeviceError
        If the device is no GPU of CuPy, or CuPy finds no NCCL.
    """

    def __init__(self, host: Processes, where: Device) -> None:
        self.rank, self.size, self.local_rank = host.rank, host.size, host.local_rank
        self._host, self._device = host, where
        if not where.name.startswith("cuda:"):
            raise DeviceError(f"NCCL: where must be a GPU such as cuda:0, got {where.name}")
        self._cuda = importlib.import_module("cupy").cuda
        with warnings.catch_warnings(action="ignore"):  # if it does not find the library
            self._nccl = importlib.import_module("cupy.cuda.nccl")
        if not self._nccl.available:
            raise DeviceError("NCCL: CuPy finds no NCCL; pip install nvidia-nccl-cu12 (or -cu13, as that of CuPy)")
        with where.active():
            name = host.gather_bytes(self._nccl.get_unique_id() if self.rank == 0 else b"")[0]
            self._communicator = self._nccl.NcclCommunicator(self.size, name, self.rank)
            self._stream = self._cuda.Stream(non_blocking=True)
        self._held: list[Any] = []  # the arrays of exchanges that the computation has not waited for

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int = 0) -> Done:
        """Begin to exchange arrays. Those of the GPU are ready in the order of its work, without the host waiting.

        The function that is returned makes the current stream wait for them.
        """
        kept, given = ([one for one in pairs if on_host(one[1])] for pairs in (sends, receives))
        sends, receives = ([one for one in pairs if not on_host(one[1])] for pairs in (sends, receives))
        others = self._host.exchange(kept, given, tag) if kept or given else None
        came = self._begin(sends, receives) if sends or receives else None

        def done() -> bool:
            if came is not None:
                self._current().wait_event(came)
            return others is None or others()

        return done

    def _begin(self, sends: Sequence[Message], receives: Sequence[Message]) -> Any:
        """Put an exchange on the stream, and return the event of its end."""
        for _, array in (*sends, *receives):
            if not array.flags.c_contiguous:
                raise DtypeError(f"NCCL: exchange takes contiguous arrays, got one of the strides {array.strides}")
        stream, calls = self._stream, self._communicator
        with self._device.active():
            stream.wait_event(self._current().record(self._event()))  # what is computed so far, and written or read
            # One group, whose messages do not wait for each other. CuPy's memory must not be used again meanwhile.
            self._held += [array for _, array in (*sends, *receives)]
            self._nccl.groupStart()
            try:
                for call, messages in ((calls.send, sends), (calls.recv, receives)):
                    for other, array in messages:
                        call(array.data.ptr, array.nbytes, self._nccl.NCCL_UINT8, other, stream.ptr)
            finally:
                self._nccl.groupEnd()
            return stream.record(self._event())

    def beside(self) -> contextlib.AbstractContextManager[object]:
        """Return a context that computes on the stream of the exchanges."""
        return self._on_stream()

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        with self._device.active(), self._stream:
            yield

    def wait(self, done: Done) -> None:
        """Wait until an exchange has ended on the host; on the GPU, let what follows wait for all that have begun."""
        super().wait(done)
        with self._device.active():
            self._current().wait_event(self._stream.record(self._event()))
            self._held.clear()  # CuPy gives their memory to later work of the stream that has made them

    def abort(self, code: int) -> NoReturn:
        """End all processes at once."""
        self._host.abort(code)

    def _current(self) -> Any:
        return self._cuda.get_current_stream()

    def _event(self) -> Any:
        return self._cuda.Event(disable_timing=True)


def device_of(processes: Processes, spec: str | Device) -> Device:
    """Open the device of this process: of several on a host that are given `cuda`, each has the GPU of its number."""
    opened = device(spec)
    if processes.size > 1 and opened.name.startswith("cuda:") and spec in ("cuda", "auto"):
        return device(f"cuda:{processes.local_rank}")
    return opened


def with_gpus(host: Processes, where: Device) -> Processes:
    """Return processes that exchange the arrays of their devices: by NCCL if these are GPUs of several processes.

    Raises
    ------
    DeviceError
        If CuPy finds no NCCL.
    """
    return NCCL(host, where) if host.size > 1 and where.name.startswith("cuda:") else host
