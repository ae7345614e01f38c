"""Cross entropy of rows of logits with class indices, in two kernels forward and one backward.

Weights, smoothing and other shapes are left to the portable code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cuda._launch import launch, launch_blocks, supports
from xcnn.kernels.cuda._library import empty, namespace

__all__ = ["cross_entropy"]


@kernel(namespace)
def cross_entropy(
    x: Any,
    target: Any,
    weight: Any | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    by_labels: bool,
) -> Any:
    """Compute the cross entropy of rows of logits with class indices."""
    if not by_labels or weight is not None or smoothing or reduction == "none" or x.ndim != 2:
        return NotImplemented
    if not supports(x) or target.dtype == np.uint64:
        return NotImplemented
    rows, classes = x.shape
    p, losses, count, loss = (empty(shape, x.dtype) for shape in (x.shape, rows, (), ()))
    target = target.astype(np.int64, order="C", copy=True)  # a copy: the caller may change the labels before backward
    launch_blocks("entropies", rows, x, target, ignore_index, p, losses, classes)
    launch_blocks("total_loss", 1, losses, target, ignore_index, loss, count, rows, reduction == "mean")

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return None, None, None
        dx = empty(p.shape, p.dtype)
        launch("entropy_gradient", dx.size, p, target, ignore_index, dy, count, dx, rows, classes)
        return dx, None, None

    return loss, backward
