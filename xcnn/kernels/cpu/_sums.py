"""Sums of many terms, in blocks, so that rounding errors hardly grow with their number.

The error of a sum that is added term by term is up to K / 2 eps times the magnitudes of its K terms, and close to that
if the terms are alike. Sums of about sqrt(K) blocks of about sqrt(K) terms stay below sqrt(K) eps.
"""

import math

import numpy as np

from xcnn.kernels.cpu._compile import compiled

__all__ = ["BLOCK", "add_rows"]

BLOCK = 4096
"""Terms of a block if they are adjacent and added as vectors, whose lanes are separate sums."""


@compiled
def add_rows(rows, total):
    """Set total (columns,) to the sum of rows (n, columns)."""
    n = rows.shape[0]
    step = max(1, int(math.sqrt(n)))
    part = np.empty_like(total)
    total[:] = 0
    for first in range(0, n, step):
        part[:] = 0
        for i in range(first, min(first + step, n)):
            row = rows[i]
            for k in range(row.size):
                part[k] += row[k]
        for k in range(part.size):
            total[k] += part[k]
