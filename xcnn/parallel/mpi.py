"""MPI through mpi4py, which is imported when `MPI` is opened."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from xcnn import threads
from xcnn._check import shown
from xcnn.errors import DtypeError, XcnnError
from xcnn.parallel.failure import TAG, end_together, watch
from xcnn.parallel.launch import initialised, launch, let_read, library_name
from xcnn.training.processes import Done, Message, Processes

__all__ = ["MPI", "processes"]

_MOST = 2**30
"""The most bytes of a message. Before MPI 4, whose functions not all libraries have, their number has 31 bits."""

_MOST_CORES = 4096

_LOOK, _GRACE = 0.5, 3.0
"""Seconds after which a process that waits looks whether the other one has ended, and that it then still waits."""


class MPI(Processes):
    """The processes that `mpiexec` or `srun` has started together, over MPI.

    All processes must open it, at the same point of the program. An exception that ends one of them then ends all, and
    so does a process that exits while another one waits for it; a process that ends first waits for the others. The
    processes of a host share its cores: `get_num_threads` is divided among those that may use the same ones.

    Attributes
    ----------
    local_rank : the number of this process among those of the same host, such as for the number of a GPU.
    local_size : how many processes of the job the host has.
    library : name and version of the MPI library.

    Raises
    ------
    DeviceError
        If mpi4py or an MPI library is missing, or the library is not that of the launcher.
    """

    def __init__(self) -> None:
        if launch() is not None:
            end_together()
        self._api = initialised()
        self._world = self._api.COMM_WORLD.Dup()  # whose messages are ours alone
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        host = self._world.Split_type(self._api.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = host.Get_rank(), host.Get_size()
        self.library = library_name(self._api.Get_library_version())
        threads.share_cores(_sharing(host))
        _unname_memory()  # all processes of the host have come: they have waited for each other
        host.Free()
        self._open: dict[int, list[Any]] = {}  # MPI uses their arrays: they live on though the caller forgets them
        self._numbers = itertools.count()
        self._ending = watch(self) if self.size > 1 else None

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int = 0) -> Done:
        """Begin to send NumPy arrays to other processes and to receive some from them."""
        api, comm, number = self._api, self._world, next(self._numbers)
        requests = [comm.Irecv([part, api.BYTE], other, tag) for other, array in receives for part in _parts(array)]
        requests += [comm.Isend([part, api.BYTE], other, tag) for other, array in sends for part in _parts(array)]
        self._open[number] = requests
        others, look, left = {rank for rank, _ in (*sends, *receives)}, time.monotonic() + _LOOK, set[int]()

        def done() -> bool:
            nonlocal look, left
            if number not in self._open:
                return True
            if api.Request.Testall(requests):
                del self._open[number]
                return True
            if tag != TAG and self._ending is not None and time.monotonic() > look:
                if left:
                    raise XcnnError(
                        f"process {self.rank} waits for process {min(left)}, which has ended: all processes must take "
                        "the same steps"
                    )
                left = {rank for rank in self._ending.left() & others if not self._ending.failed(rank)}
                # What they sent before may still be on its way.
                look = time.monotonic() + (_GRACE if left else _LOOK)
            return False

        return done

    def abort(self, code: int) -> NoReturn:
        """End all processes at once."""
        let_read()
        self._api.COMM_WORLD.Abort(code)
        os._exit(code)


@functools.cache
def processes() -> Processes:
    """Return the processes that were started together with this one, by `mpiexec` or `srun`.

    Without such a launcher it is this process alone, and mpi4py is not imported.

    Raises
    ------
    DeviceError
        If there is a launcher, and mpi4py or an MPI library is missing or is not that of the launcher.
    """
    if launch() is None:
        return Processes()
    return MPI()


def _parts(array: Any) -> Iterator[np.ndarray]:
    """Yield the bytes of an array, in as many parts as MPI can send."""
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"MPI: exchange takes NumPy arrays, got {shown(array)}; copy those of a device to the host")
    if not array.flags.c_contiguous:
        raise DtypeError(f"MPI: exchange takes contiguous arrays, got one of the strides {array.strides}")
    flat = array.reshape(-1).view(np.uint8)
    return (flat[first : first + _MOST] for first in range(0, flat.size, _MOST))


def _sharing(host: Any) -> int:
    """Return how many processes of a host, this one included, may use a core that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    mine = np.zeros(_MOST_CORES, np.bool_)
    mine[[core for core in (affinity(0) if affinity is not None else {0}) if core < _MOST_CORES]] = True
    every = np.empty((host.Get_size(), _MOST_CORES), np.bool_)
    host.Allgather(mine, every)
    return max(1, int((every & mine).any(axis=1).sum()))


def _unname_memory() -> None:
    """Remove the name of the memory that MPICH shares between the processes of a host, which all have mapped.

    It removes the name itself at a normal end. Each job that is killed would leave some megabytes, and in a container
    twenty of them would fill the 64 MB that are usual.
    """
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for path in {line.split()[-1] for line in maps if "/dev/shm/mpich_shm_" in line}:
            with contextlib.suppress(OSError):  # another process was first
                os.unlink(path)
