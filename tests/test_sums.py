"""Sums over the parts of a batch: one tree for any number of processes."""

import fake_processes
import numpy as np
import pytest

from xcnn.training.processes import Processes
from xcnn.training.sums import Sum, _levels

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11, 16])
def test_sums_have_one_tree(count):
    """Against a tree that is written down: halves of a power of two on the left."""
    arrays = RNG.standard_normal((count, 9)).astype(np.float32)

    def tree(first, stop):
        if stop - first == 1:
            return arrays[first].copy()
        half = 1 << ((stop - first - 1).bit_length() - 1)
        return tree(first, first + half) + tree(first + half, stop)

    def summed(processes):
        total = Sum(processes, count, 5, arrays[0], 9)
        for k in processes.mine(count):
            total.add(k, arrays[k].copy())
        total.start()
        processes.wait(total.advance)
        return total.total

    wanted = tree(0, count).tobytes()
    for size in (1, 2, 3, 4, 7):
        assert all(one.tobytes() == wanted for one in fake_processes.run(size, summed))


def test_shares_are_cut_into_nodes():
    for count in range(1, 20):
        for size in range(1, 9):
            fake = Processes()
            fake.size = size
            nodes = [node for rank in range(size) for node in _levels(fake.share(count, rank))]
            ends = [0, *(first + (1 << level) for first, level in nodes)]
            assert [first for first, _ in nodes] == ends[:-1]
            assert ends[-1] == count
            assert all(first % (1 << level) == 0 for first, level in nodes)
