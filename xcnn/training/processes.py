"""The processes that train together, as a trainer sees them: this one alone, unless it is given others."""

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, Self

import numpy as np

from xcnn import errors
from xcnn._array import Array
from xcnn.errors import XcnnError

__all__ = ["ALONE", "Done", "Message", "Processes"]

Message = tuple[int, Array]
"""The number of another process, and a contiguous array that is sent to it or filled by it."""

Done = Callable[[], bool]
"""Returns whether an exchange has ended. It must be called until then, as it may be what moves the data."""

_SPIN, _NAP, _LONGEST = 200e-6, 50e-6, 1e-3
"""Seconds for which a process asks again at once, and that it then sleeps, first and at most."""


class Processes:
    """The processes that train together. This class is one process alone; `xcnn.parallel` has others.

    A subclass sets `rank` and `size`, and defines `exchange` and `abort`.

    Attributes
    ----------
    rank : the number of this process, from 0.
    size : how many there are.
    local_rank : the number of this process among those of its host.
    waited : the seconds for which this process has waited for others.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    waited: float = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int = 0) -> Done:
        """Begin to send arrays to other processes and to receive arrays from them.

        Each process that is sent an array must receive one of the same size and dtype, in an exchange with the same
        tag. Those with one tag between two processes are matched in order. Until the exchange has ended, the arrays
        that are sent must not be changed, nor those that are received be read.

        Parameters
        ----------
        sends, receives : pairs of another process and an array: of the host, or of the device that this process uses.
        tag : a number from 0 to 32,767.

        Returns
        -------
        A function that returns whether the exchange has ended; it must be called until then. For arrays of a device, it
        may have ended in the order of the device's work, before the host sees the numbers.
        """
        raise NotImplementedError(f"{type(self).__name__} must define exchange(sends, receives, tag)")

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # the copy of a trainer trains with the same processes

    def beside(self) -> contextlib.AbstractContextManager[object]:
        """Return a context for computing with arrays that have come, beside what this process computes meanwhile.

        On a device, what is computed inside follows the exchanges, and the rest does not wait for it before `wait`.
        """
        return contextlib.nullcontext()

    def abort(self, code: int) -> NoReturn:
        """End all processes at once; `code` is the exit code of each that can still choose one."""
        os._exit(code)

    def mine(self, count: int) -> range:
        """Return which of `count` things, numbered from 0, are those of this process: its `share`."""
        return self.share(count, self.rank)

    def share(self, count: int, rank: int) -> range:
        """Return which of `count` things are those of a process: consecutive ones; shares differ by one at most."""
        return range(rank * count // self.size, (rank + 1) * count // self.size)

    def wait(self, done: Done) -> None:
        """Wait until an exchange has ended. Signals are handled meanwhile, and other processes may use the core."""
        start, nap = time.perf_counter(), _NAP
        while not done():
            if time.perf_counter() - start > _SPIN:
                time.sleep(nap)
                nap = min(1.5 * nap, _LONGEST)
        self.waited += time.perf_counter() - start

    def begin_gather(self, array: np.ndarray, tag: int = 0) -> tuple[list[np.ndarray], Done]:
        """Begin to gather arrays, of one shape and dtype; return them, in the order of the processes, and when."""
        array = np.ascontiguousarray(array)
        found = [array if rank == self.rank else np.empty_like(array) for rank in range(self.size)]
        others = [rank for rank in range(self.size) if rank != self.rank]
        if not others:
            return found, lambda: True
        return found, self.exchange([(k, array) for k in others], [(k, found[k]) for k in others], tag)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the arrays that the processes pass, of one shape and dtype, in their order."""
        found, done = self.begin_gather(array)
        self.wait(done)
        return found

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Return what the processes pass, of any length, in their order."""
        sizes = [int(size[0]) for size in self.gather(np.asarray([len(content)], np.int64))]
        room = np.zeros(max(sizes), np.uint8)
        room[: len(content)] = np.frombuffer(content, np.uint8)
        return [found[:size].tobytes() for found, size in zip(self.gather(room), sizes, strict=True)]

    def of_first(self, function: Callable[[], str]) -> str:
        """Return in all processes what `function()` returns in the first one, the only one that calls it.

        An XcnnError that it raises there is raised in all.
        """
        if self.size == 1:
            return function()
        said: dict[str, str] = {}
        error: XcnnError | None = None
        if self.rank == 0:
            try:
                said = {"returns": function()}
            except XcnnError as raised:
                error = raised
                said = {"kind": type(error).__name__, "says": str(error), "setting": getattr(error, "setting", "")}
        said = json.loads(self.gather_bytes(json.dumps(said).encode())[0])
        if error is not None:
            raise error
        if "says" in said:
            kind = getattr(errors, said["kind"], XcnnError)
            raise errors.UsageError(said["says"], setting=said["setting"]) if said["setting"] else kind(said["says"])
        return said["returns"]

    def gather_rows(self, rows: np.ndarray | None) -> np.ndarray | None:
        """Return the rows of all processes, one after the other; None is no row."""
        file = io.BytesIO()
        if rows is not None:
            np.save(file, rows, allow_pickle=False)
        contents = filter(None, self.gather_bytes(file.getvalue()))
        found = [np.load(io.BytesIO(content), allow_pickle=False) for content in contents]
        return np.concatenate(found) if found else None


ALONE = Processes()
"""This process alone."""
