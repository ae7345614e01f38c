"""The sum of the gradients of a batch's parts in the order of a tree, in one pass over all arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cuda._launch import launch, supports
from xcnn.kernels.cuda._library import address, empty, namespace

__all__ = ["tree_sum"]

_MOST, _DEPTH = 64, 32
"""How many arrays, and sums at a time, `Terms` and the kernel in tree.cu have room for."""

_TERMS = np.dtype([("address", "u8", _MOST), ("folds", "i4", _MOST), ("count", "i8")], align=True)


def _folds(nodes: Sequence[tuple[int, int, Any]]) -> tuple[list[int], int]:
    """Return how often the last two sums are added after each node, and how many sums there are at most."""
    folds, open_ones, most = list[int](), list[tuple[int, int]](), 0
    for first, level, _ in nodes:
        most, count = max(most, len(open_ones) + 1), 0
        while open_ones and open_ones[-1] == (first - (1 << level), level) and first >> level & 1:
            (first, _), level, count = open_ones.pop(), level + 1, count + 1
        open_ones.append((first, level))
        folds.append(count)
    folds[-1] += len(open_ones) - 1
    return folds, most


@kernel(namespace)
def tree_sum(nodes: Sequence[tuple[int, int, Any]]) -> Any:
    """Add up the parts."""
    arrays = [array for *_, array in nodes]
    if len(nodes) > _MOST or not supports(*arrays) or not all(array.flags.c_contiguous for array in arrays):
        return NotImplemented
    folds, most = _folds(nodes)
    if most > _DEPTH or any(array.dtype != arrays[0].dtype for array in arrays):
        return NotImplemented
    terms = np.zeros((), _TERMS)
    terms["address"][: len(arrays)], terms["folds"][: len(arrays)] = [address(a) for a in arrays], folds
    terms["count"] = len(arrays)
    total = empty(arrays[0].shape, arrays[0].dtype)
    launch("tree_sum", total.size, terms, total, total.size)
    return total
