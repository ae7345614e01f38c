"""Parts of a batch in lockstep: where a batch norm of one needs the numbers of all, they wait for each other.

The parts of this process take turns in threads, of which one runs at a time: each computes up to the next meeting, and
then the next part does. So modules of any code can be interrupted inside. The parts of the main thread meet those of
other processes.
"""

import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from xcnn._array import Array, namespace_of, zeros
from xcnn.errors import UsageError
from xcnn.ops._parts import part
from xcnn.training.processes import Processes

__all__ = ["gathered", "lockstep"]

T = TypeVar("T")

_TAG = 32_000
"""The tag of exchanges between batch norms."""


class _Stopped(BaseException):
    """Ends a task that waits for others which have failed; no code that expects errors catches it."""


def lockstep(
    tasks: Sequence[Callable[[], T]], gather: Callable[[list[Array]], Array], remember: Callable[[], Callable[[], None]]
) -> list[T]:
    """Call functions whose batch norms use the statistics of all parts, and return their results in order.

    All of them must call the same batch norms in the same order. The first exception of one ends all, and is raised.
    When this returns, no other thread is left.

    Parameters
    ----------
    tasks : at least one function without arguments. The first one runs in this thread.
    gather : takes an array of each task and returns those of all parts, stacked. It is called in this thread.
    remember : returns a function that restores what a task changes and another one must not see: each begins with what
        is there now, and continues with what it has left.
    """
    return _Lockstep(tasks, gather, remember).run()


def gathered(processes: Processes, counts: Sequence[int], values: list[Array]) -> Array:
    """Return the arrays of all parts, stacked in their order, of which process k has `counts[k]`, this one `values`."""
    xp = namespace_of(values[0])
    own = xp.stack(values)
    shapes = [(count, *own.shape[1:]) for count in counts]
    found = [own if k == processes.rank else zeros(xp, shape, own) for k, shape in enumerate(shapes)]
    others = [k for k, count in enumerate(counts) if count and k != processes.rank]
    if others:
        sends, receives = [(k, own) for k in others], [(k, found[k]) for k in others]
        processes.wait(processes.exchange(sends, receives, _TAG))
    return own if len(found) == 1 else xp.concat(found)


class _Lockstep(Generic[T]):
    """One call of `lockstep`.

    Task k waits until its `turns[k]` can be acquired, and passes the turn on by a release of the next one. The last
    passes it to the main thread, that of task 0, which so has all values before it returns from a meeting.
    """

    def __init__(
        self,
        tasks: Sequence[Callable[[], T]],
        gather: Callable[[list[Array]], Array],
        remember: Callable[[], Callable[[], None]],
    ) -> None:
        self.tasks, self.gather, self.remember = tasks, gather, remember
        self.turns = [threading.Lock() for _ in tasks]
        self.values: list[Any] = [None] * len(tasks)
        self.results: list[Any] = [None] * len(tasks)
        self.ended = [False] * len(tasks)
        self.all: Any = None
        self.error: BaseException | None = None
        self.stopping = False
        self.start: Callable[[], None] = remember()

    def run(self) -> list[T]:
        threads = [self.thread(k) for k in range(1, len(self.tasks))]
        for turn in self.turns:
            turn.acquire()
        try:
            for thread in threads:
                thread.start()
            self.call(0)
            self.round()
            if not all(self.ended):
                raise self.apart()
        except _Stopped:
            pass
        except BaseException as error:
            self.error = self.error or error
        finally:
            self.stop(threads)
        first, self.error = self.error, None
        try:
            if first is not None:
                raise first
        finally:
            del first  # as its traceback refers to this frame, which would keep the arrays of all parts
        return self.results

    def thread(self, k: int) -> threading.Thread:
        """Return the thread of a task, with the context of this one: how floating-point errors are handled."""
        run = functools.partial(contextvars.copy_context().run, self.work, k)
        return threading.Thread(target=run, name=f"xcnn part {k}", daemon=True)

    def call(self, k: int) -> None:
        with part(functools.partial(self.meet, k)):
            self.results[k] = self.tasks[k]()
        self.ended[k] = True

    def work(self, k: int) -> None:
        """Run a task other than the first."""
        try:
            self.wait(k)
            self.start()
            self.call(k)
        except _Stopped:
            return
        except BaseException as error:
            self.error = self.error or error
            self.pass_to(0)
        else:
            self.pass_to(k + 1)

    def meet(self, k: int, value: Array) -> Array:
        """Return the arrays of all parts, of which `value` is that of task k."""
        self.values[k] = value
        proceed = self.remember()
        if k == 0:
            self.round()
            if any(self.ended):
                raise self.apart()
            self.all = self.gather(self.values)
        else:
            self.pass_to(k + 1)
            self.wait(k)
        proceed()
        return self.all

    def round(self) -> None:
        """Let all other tasks reach their next meeting, or their end."""
        if len(self.tasks) > 1:
            self.pass_to(1)
            self.wait(0)

    def pass_to(self, k: int) -> None:
        with contextlib.suppress(RuntimeError):  # it was released by `stop`
            self.turns[k % len(self.turns)].release()

    def wait(self, k: int) -> None:
        self.turns[k].acquire()
        if self.stopping or self.error is not None:
            raise _Stopped

    def stop(self, threads: Sequence[threading.Thread]) -> None:
        """End all other threads; each does so at its next meeting. A signal meanwhile does not end this one before."""
        self.stopping = True
        while True:
            try:
                for k in range(len(self.turns)):
                    self.pass_to(k)
                for thread in threads:
                    if thread.is_alive():
                        thread.join()
                return
            except BaseException as error:
                self.error = self.error or error

    def apart(self) -> UsageError:
        return UsageError(
            "sync_batch_norm: the parts of a batch must go through the same batch norms, and these do not; let no "
            "layer depend on the numbers, or switch it off"
        )
