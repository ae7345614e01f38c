"""What processes tell each other when they end, without MPI; tests/test_parallel_mpi.py has real ones."""

import fake_processes

from xcnn.parallel.failure import Ending, fail

LONG, SHORT = 60.0, 0.2


def test_processes_that_end_alike_know_each_other():
    def end(processes):
        ending = Ending(processes)
        together = ending.meet(2, ["wrong", "lost", "wrong"][processes.rank], LONG)
        return together, ending.alike(), sorted(ending.left()), [ending.failed(rank) for rank in ending.left()]

    assert fake_processes.run(3, end) == [
        (True, [0, 2], [1, 2], [True, True]),
        (True, [1], [0, 2], [True, True]),
        (True, [0, 2], [0, 1], [True, True]),
    ]


def test_a_process_that_does_not_end_is_not_waited_for_after_an_error():
    def end(processes):
        ending = Ending(processes)
        if processes.rank == 1:
            return ending.meet(1, "lost", SHORT)
        while not ending.left():  # it computes
            pass
        return ending.failed(1)

    assert fake_processes.run(2, end) == [True, False]


def test_an_end_without_an_error_is_none():
    def end(processes):
        ending = Ending(processes)
        return ending.meet(), ending.alike(), [ending.failed(rank) for rank in ending.left()]

    assert fake_processes.run(2, end) == [(True, [0, 1], [False])] * 2


def test_one_process_fails_as_ever():
    said = []
    assert fail(3, "lost", said.append) == 3
    assert fail(141, "", said.append) == 141
    assert said == ["lost"]
