"""The threads that kernels share."""

import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from test_kernels_processes import run

from xcnn import ops, threads
from xcnn._dispatch import BODIES
from xcnn.kernels.cpu._blas import _libraries, _Library, one_blas_thread


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = threads.get_num_threads()
    threads.set_num_threads(2)
    yield
    threads.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_exception_of_a_part_is_raised_and_the_pool_lives_on(n: int) -> None:
    threads.set_num_threads(n)
    done: list[int] = []

    def task(part: int) -> None:
        if part == 3:
            raise KeyError("part 3")
        done.append(part)

    for _ in range(3):
        with pytest.raises(KeyError, match="part 3"):
            threads.parallel(task, 8)
        done.clear()
        threads.parallel(done.append, 8)
        assert sorted(done) == list(range(8))


@pytest.mark.parametrize("n", [0, -1, True, 1.5, "2", None])
def test_a_strange_number_of_threads_is_refused(n: Any) -> None:
    with pytest.raises(ValueError, match=r"^set_num_threads: n must be an integer of at least 1, got [^\n]*$"):
        threads.set_num_threads(n)
    assert threads.get_num_threads() == 2


def test_a_number_that_is_set_while_cores_are_counted_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_threads", 0)

    def count(pid: int) -> range:
        threads.set_num_threads(3)
        return range(7)

    monkeypatch.setattr(os, "sched_getaffinity", count, raising=False)
    threads._cores.cache_clear()
    try:
        threads.get_num_threads()
        assert threads.get_num_threads() == 3
    finally:
        threads._cores.cache_clear()


def test_parts_of_parts_run_in_order_on_their_thread() -> None:
    threads.set_num_threads(2)
    seen: dict[int, list[int]] = {p: [] for p in range(4)}
    homes: dict[int, set[int]] = {p: set() for p in range(4)}

    def outer(p: int) -> None:
        threads.parallel(lambda q: (seen[p].append(q), homes[p].add(threading.get_ident()), time.sleep(0.001)), 5)

    threads.parallel(outer, 4)
    assert seen == {p: list(range(5)) for p in range(4)}
    assert all(len(home) == 1 for home in homes.values())
    done: list[int] = []
    with threads.serially(), threads.serially():
        threads.parallel(done.append, 6)
    assert done == list(range(6))
    with pytest.raises(KeyError), threads.serially():
        raise KeyError
    barrier = threading.Barrier(2, timeout=10)  # parts run at the same time again
    threads.parallel(lambda part: barrier.wait(), 2)


def test_parts_may_be_cut_into_parts_again() -> None:
    """Although every thread waits for another one."""
    threads.set_num_threads(2)
    done: list[tuple[int, int]] = []
    outside = threading.Thread(
        target=threads.parallel,
        args=(lambda p: threads.parallel(lambda q: (time.sleep(0.001), done.append((p, q))), 4), 4),
        daemon=True,
    )
    outside.start()
    outside.join(30)
    assert not outside.is_alive(), "the threads wait for each other"
    assert sorted(done) == list(itertools.product(range(4), range(4)))


def test_two_parts_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=10)
    for _ in range(3):
        threads.parallel(lambda part: meeting.wait(), 2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores can be taken from a process")
def test_by_default_there_are_as_many_threads_as_cores_that_the_process_may_use() -> None:
    code = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
from xcnn.threads import get_num_threads
print(get_num_threads())
"""
    for n in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
        assert int(run(code, str(n))) == n


def test_parallel_waits_for_the_others_after_an_exception() -> None:
    both, ended = threading.Barrier(2, timeout=10), []

    def task(part: int) -> None:
        both.wait()
        if threading.current_thread() is threading.main_thread():
            raise KeyError(part)
        time.sleep(0.05)
        ended.append(part)

    with pytest.raises(KeyError):
        threads.parallel(task, 2)
    assert len(ended) == 1


def test_an_interrupt_that_follows_the_end_of_what_is_waited_for_is_returned() -> None:
    class Acquired:
        """A lock that another thread releases; then this one acquires it, and is interrupted."""

        released = False

        def acquire(self) -> None:
            if self.released:
                threading.Event().wait()
            offer.accept()
            raise KeyboardInterrupt

        def release(self) -> None:
            self.released = True

    offer, found = threads._Offer(int), list[Any]()
    offer._done = Acquired()  # type: ignore[assignment]
    waits = threading.Thread(target=lambda: found.append(offer.wait()), daemon=True)
    waits.start()
    waits.join(10)
    assert [type(error) for error in found] == [KeyboardInterrupt]


@pytest.mark.skipif(os.name == "nt", reason="a process cannot interrupt itself")
def test_an_interrupt_while_parallel_waits_is_raised_after_the_others_have_stopped() -> None:
    both, ended = threading.Barrier(2, timeout=10), []

    def task(part: int) -> None:
        both.wait()
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            ended.append(part)

    with pytest.raises(KeyboardInterrupt):
        threads.parallel(task, 2)
    assert len(ended) == 1
    threads.parallel(lambda part: ended.append(part), 2)
    assert len(ended) == 3


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_the_number_of_threads_may_change_while_parts_run() -> None:
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for n in (1, 3, 2):
                threads.set_num_threads(n)

    other = threading.Thread(target=change, daemon=True)
    other.start()
    try:
        for _ in range(1000):
            done: list[int] = []
            threads.parallel(done.append, 4)
            assert sorted(done) == [0, 1, 2, 3]
    finally:
        ended.set()
        other.join()


TRAINED = """
import hashlib, os, sys
if sys.argv[1] != "all":
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # before NumPy counts the cores, as under taskset
import numpy as np
from xcnn import Trainer, models, nn, optim, set_num_threads

def wide():
    layers = nn.Flatten(), nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10)
    return nn.Sequential(*layers)

for name, build in (("lenet5", lambda: models.build("lenet5")), ("wide", wide)):
    rng = np.random.default_rng(0)
    batches = [(rng.random((64, 1, 28, 28), np.float32), rng.integers(0, 10, 64)) for _ in range(8)]
    initial = {
        key: rng.uniform(-0.05, 0.05, array.shape).astype(np.float32) for key, array in build().state_dict().items()
    }
    for threads in (1, 2, 4):
        set_num_threads(threads)
        for how in ("step", "fit"):
            model = build()
            model.load_state_dict(initial)
            trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
            if how == "fit":
                trainer.fit(batches)
            else:
                for x, y in batches:
                    trainer.step(x, y)
            weights = b"".join(array.tobytes() for array in model.state_dict().values())
            print(name, hashlib.sha256(weights).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores can be taken from a process")
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "columns"])
def test_steps_and_fit_give_the_same_weights_on_any_number_of_threads_and_cores(compiled: bool) -> None:
    code = TRAINED if compiled else f"import sys\nsys.modules['llvmlite'] = None\n{TRAINED}"
    lines = [line for cores in ("all", "one") for line in run(code, cores).splitlines()]
    assert len(lines) == 2 * 2 * 3 * 2
    assert len(set(lines)) == 2, lines  # one for each network


def _blas_threads() -> list[int]:
    """Return the numbers of threads of NumPy's BLAS; SciPy and others may have loaded libraries of their own."""
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return [pool["num_threads"] for pool in [p for p in pools if "numpy" in p["filepath"]] or pools]


@pytest.fixture
def blas_threads() -> Iterator[Callable[[], set[int]]]:
    """Set BLAS to two threads, and yield a function that returns how many it has."""
    with threadpoolctl.threadpool_limits(2, "blas"):
        if set(_blas_threads()) != {2}:
            pytest.skip("threadpoolctl does not know this BLAS")
        yield lambda: set(_blas_threads())


@pytest.mark.parametrize("op", ["linear", "conv2d", "conv_transpose2d"])
def test_portable_products_run_on_one_thread_of_blas(
    op: str, blas_threads: Callable[[], set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    body, seen = BODIES[op.removesuffix("2d")], []

    def watched(*arguments: Any) -> Any:
        seen.append(blas_threads())
        y, backward = body(*arguments)

        def watched_backward(*arguments: Any) -> Any:
            seen.append(blas_threads())
            return backward(*arguments)

        return y, watched_backward

    monkeypatch.setitem(BODIES, op.removesuffix("2d"), watched)
    x = np.ones((2, 3) if op == "linear" else (2, 3, 4, 4), np.float16)  # which no other kernel takes
    y, backward = getattr(ops, op)(x, x[:, :3] if op == "linear" else np.ones((3, 3, 1, 1), np.float16))
    assert blas_threads() == {2}
    backward(y)
    assert seen == [{1}, {1}]
    assert blas_threads() == {2}


def test_products_outside_kernels_keep_their_number_of_threads(blas_threads: Callable[[], set[int]]) -> None:
    x = np.ones((64, 500), np.float32)
    y, backward = ops.linear(x, np.ones((500, 500), np.float32))
    assert blas_threads() == {2}
    backward(y)
    assert blas_threads() == {2}
    with pytest.raises(KeyError), one_blas_thread:
        raise KeyError
    assert blas_threads() == {2}


def test_blas_is_held_after_an_interrupt_while_it_was_released(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def put(threads: int) -> None:
        if threads == 2 and 2 not in calls:
            calls.append(2)
            raise KeyboardInterrupt
        calls.append(threads)

    monkeypatch.setattr(one_blas_thread, "libraries", [_Library(lambda: 2, put)])
    with pytest.raises(KeyboardInterrupt), one_blas_thread:
        pass
    with one_blas_thread:
        assert calls == [1, 2, 1]
    assert calls == [1, 2, 1, 2]


@pytest.mark.usefixtures("switching")
def test_blas_is_held_until_the_last_thread_has_left(blas_threads: Callable[[], set[int]]) -> None:
    seen = set()
    counters = [library.get for library in _libraries()]

    def enter() -> None:
        for _ in range(500):
            with one_blas_thread:
                seen.update(get() for get in counters)

    others = [threading.Thread(target=enter) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert seen == {1}
    assert blas_threads() == {2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_of_a_process_that_multiplies_has_the_threads_that_it_had() -> None:
    code = """
import os, threading, warnings
import numpy as np
from xcnn import ops
from xcnn.kernels.cpu._blas import _libraries, one_blas_thread
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
(library, *_) = _libraries()
library.put(2)
inside, leave = threading.Event(), threading.Event()

def multiply():
    with one_blas_thread, one_blas_thread.lock:  # as if it was just entering
        inside.set()
        leave.wait()

other = threading.Thread(target=multiply)
other.start()
inside.wait()
if not (child := os.fork()):
    before = library.get()
    ops.linear(np.ones((3, 4)), np.ones((2, 4)))
    os._exit(0 if before == library.get() == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert library.get() == 1
leave.set()
other.join()
assert library.get() == 2
"""
    run(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_that_leaves_what_its_parent_entered_holds_blas_again() -> None:
    code = """
import os
from xcnn.kernels.cpu._blas import _libraries, one_blas_thread
(library, *_) = _libraries()
library.put(2)
with one_blas_thread:
    child = os.fork()
if not child:
    with one_blas_thread:
        held = library.get() == 1
    os._exit(0 if held and library.get() == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert library.get() == 2
"""
    run(code)


def test_threads_mind_floating_point_errors_as_their_caller_does() -> None:
    large = np.full(2, 3e38, np.float32)

    def overflow(part: int) -> object:
        time.sleep(0.02)  # so that both threads have some
        return large * large

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        threads.parallel(overflow, 4)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        threads.parallel(overflow, 4)


def test_processes_of_one_host_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_threads", 0)
    monkeypatch.setattr(threads, "_cores", lambda: 5)
    try:
        for processes, share in ((1, 5), (2, 2), (5, 1), (9, 1)):
            threads.share_cores(processes)
            assert threads.get_num_threads() == share
        threads.set_num_threads(3)
        assert threads.get_num_threads() == 3
    finally:
        threads.share_cores(1)
