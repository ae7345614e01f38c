"""Sums of many terms, in blocks, so that no rounding error grows with their number.

A sum that is added up term by term is off by up to K / 2 eps of the magnitudes of its K terms, and comes near to that
where the terms are alike. Sums of about sqrt(K) blocks of about sqrt(K) terms stay below sqrt(K) eps.
"""

import math

import numpy as np

from xcnn.kernels.cpu._compile import compiled

__all__ = ["BLOCK", "add_rows"]

BLOCK = 4096
"""Terms of a block where they lie side by side and are added as vectors, which are several sums themselves."""


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
