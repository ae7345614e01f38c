"""The threads that kernels share."""

import itertools
import os
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from test_kernels_processes import run

from xcnn import Trainer, nn, optim, threads


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


def test_parts_may_be_cut_into_parts_again() -> None:
    """With every thread waiting for another one, as long as there is anything to wait for."""
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


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_blas_is_held_while_a_trainer_runs(method: str) -> None:
    held = []

    class Watch(nn.Module):
        def forward(self, x: Any, train: bool = True) -> Any:
            held.append(threads.blas_is_held())
            return x, lambda dy, need_dx: dy

    model = nn.Sequential(Watch(), nn.Linear(3, 2))
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1))
    x = np.ones((4, 3), np.float32)
    getattr(trainer, method)(x if method == "predict" else [(x, np.zeros(4, np.int64))])
    assert held == [True]
    assert not threads.blas_is_held()


def test_blas_is_held_until_the_last_has_left() -> None:
    first, second = threads.one_blas_thread(), threads.one_blas_thread()
    before = _blas_threads()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads.blas_is_held()
    assert set(_blas_threads()) == {1}
    second.__exit__(None, None, None)
    assert not threads.blas_is_held()
    assert _blas_threads() == before


def _blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


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
