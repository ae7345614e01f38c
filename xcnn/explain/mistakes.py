"""Mistakes: the classes that are confused most, and the wrong answers of which the network is most certain."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn._check import check_shape, integer, shown
from xcnn.errors import ShapeError, UsageError, explained
from xcnn.explain.target import as_host

__all__ = ["ConfusedPair", "certain_mistakes", "confused_pairs"]


class ConfusedPair(NamedTuple):
    """A class that is taken for another one.

    Attributes
    ----------
    true, predicted : the names of both.
    count : how many examples.
    share : their share of the examples of the true class.
    """

    true: str
    predicted: str
    count: int  # type: ignore[assignment]
    share: float


@explained
def confused_pairs(confusion: Any, classes: Sequence[str], count: int = 10) -> list[ConfusedPair]:
    """Return the pairs of classes that are confused most often, the most frequent first.

    Parameters
    ----------
    confusion : counts (classes, classes), a row per true class, a column per predicted one, as of `Metrics.confusion`.
    classes : the names.
    count : the largest number of pairs; those that never occur are left out.

    Raises
    ------
    ShapeError, UsageError
        If the counts are not those of these classes, or `count` is out of range.

    Notes
    -----
    As fastai's `most_confused`. Of pairs with the same count, those with the larger share come first.

    Examples
    --------
    >>> confused_pairs([[8, 2], [1, 3]], ["cat", "dog"])[0]
    ConfusedPair(true='cat', predicted='dog', count=2, share=0.2)
    """
    counts, names = as_host("confused_pairs", "confusion", confusion), [str(name) for name in classes]
    check_shape("confused_pairs", (len(names), len(names)), f"of {len(names)} classes", confusion=counts)
    integer("confused_pairs", "count", count, minimum=0)
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        raise UsageError(f"confused_pairs: confusion must be counts, integers of at least 0, got {shown(confusion)}")
    rows = counts.sum(axis=1)
    found = [
        ConfusedPair(names[i], names[j], int(counts[i, j]), float(counts[i, j] / rows[i]))
        for i, j in zip(*counts.nonzero(), strict=True)
        if i != j
    ]
    return sorted(found, key=lambda pair: (-pair.count, -pair.share))[:count]


@explained
def certain_mistakes(probabilities: Any, labels: Any, count: int = 16) -> np.ndarray:
    """Return the indices of the wrong answers of which the network is most certain, the most certain first.

    Parameters
    ----------
    probabilities : (n, classes), as `Trainer.predict` returns; the largest number is the answer, also of scores.
    labels : the true classes (n,), integers; those below 0 count as no label.
    count : the largest number of indices.

    Returns
    -------
    Integers of the host, at most `count`.

    Raises
    ------
    ShapeError, UsageError
        If the arrays are not as above, or `count` is out of range.

    Notes
    -----
    As the "top losses" of fastai; of a wrong answer, it is its own probability that counts.

    Examples
    --------
    >>> certain_mistakes([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], [1, 1, 0])
    array([0, 2])
    """
    scores = as_host("certain_mistakes", "probabilities", probabilities)
    true = as_host("certain_mistakes", "labels", labels)
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise ShapeError(f"certain_mistakes: probabilities must be (n, classes), got {tuple(scores.shape)}")
    check_shape("certain_mistakes", (len(scores),), "one per row of probabilities", labels=true)
    if true.dtype.kind not in "iu":
        raise UsageError(f"certain_mistakes: labels must be integers, got {shown(labels)}")
    integer("certain_mistakes", "count", count, minimum=0)
    said = scores.argmax(axis=1)
    wrong = np.flatnonzero((said != true) & (true >= 0))
    order = np.argsort(-scores[wrong, said[wrong]].astype(np.float64), kind="stable")
    return np.asarray(wrong[order][:count])
