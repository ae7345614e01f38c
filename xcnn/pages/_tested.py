"""What the test of a run shows: confusion matrix, figures of each class, confused pairs and certain mistakes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn import explain
from xcnn.data import Dataset, Loader, to_float
from xcnn.pages._html import MOST_ROWS, Content, bar, element, figure, folded, name, note, table
from xcnn.pages._pictures import seen
from xcnn.runs import Restored
from xcnn.training import LOSSES, Metrics
from xcnn.training.evaluation import evaluate
from xcnn.training.terminal import percent

__all__ = ["Tested", "classes_known", "mistakes", "tested"]

_PAIRS, _EXAMPLES, _MISTAKES = 6, 6, 24
"""Confused pairs, images of each, and certain mistakes on a page."""

_TILE = 112
"""The largest height and width of these images, in pixels."""


class Tested(NamedTuple):
    """The results of a test.

    Attributes
    ----------
    data : the test images.
    metrics : over all of them.
    probabilities : (n, classes).
    labels : (n,).
    """

    data: Dataset
    metrics: Metrics
    probabilities: np.ndarray
    labels: np.ndarray


def tested(restored: Restored, watch: Callable[[int, Metrics], None] | None) -> Tested:
    """Test the weights on the test images; `watch` is called as by `Restored.evaluate`.

    Raises
    ------
    XcnnError
        If there are no test images, or they do not fit the network.
    """
    data = restored.test_set()
    kept: list[tuple[np.ndarray, np.ndarray]] = []

    def keep(labels: np.ndarray, probabilities: np.ndarray) -> float:
        kept.append((labels, probabilities))
        return 0.0

    metrics = evaluate(
        restored.model,
        Loader(data, shuffle=False, workers=2 * data.lazy),
        LOSSES["cross_entropy"],
        restored.device,
        watch=None if watch is None else lambda seen: watch(len(data), seen),
        metrics={"kept": keep},
    )
    ((labels, probabilities),) = kept
    return Tested(data, metrics, probabilities, labels)


def classes_known(tested: Tested, classes: Sequence[str]) -> Content:
    """Return the confusion matrix and the figures of each class."""
    counts = tested.metrics.confusion
    if counts is None:
        return note(f"With {len(classes):,} classes there is no confusion matrix.")
    parts: list[Any] = []
    if len(classes) <= MOST_ROWS:
        parts.append(_confusion(counts, classes))
    else:
        parts.append(
            note(
                f"A table of {len(classes)} x {len(classes)} classes is too large to read; the next section shows "
                "the classes that are confused most."
            )
        )
    figures = tested.metrics.per_class()
    rows = [
        (name(label), percent(p), percent(r), bar(r), percent(f1), f"{n:,}")
        for label, p, r, f1, n in zip(classes, *(column.tolist() for column in figures), strict=True)
    ]
    head = ("class", "precision", "recall", "", "F1", "images")
    said = element(
        "p",
        "Recall: of the images of a class, the share that is found. Precision: of the answers of a class, the "
        "share that is right. F1 is the harmonic mean of both, which is low if one of them is.",
    )
    shown = table("Each class", head, rows, numbers=(1, 2, 4, 5))
    parts += [element("h3", "Each class"), said]
    parts.append(folded(shown, len(classes), "classes"))
    return parts


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> Content:
    """Return the confusion matrix as a table whose cells are shaded."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(classes), dtype=bool)
    worst = max(0.1, float(np.max(shares[~right], initial=0.0)))  # otherwise few errors would be as strong as many
    rows = []
    for i, label in enumerate(classes):
        cells: list[Any] = [name(label)]
        for j in range(len(classes)):
            count = int(counts[i, j])
            kind = "none" if not count else "right" if i == j else None
            share = shares[i, j] / (1.0 if i == j else worst)
            style = f"--share:{share:.3f}" if count else None
            cells.append(element("td", f"{count:,}", class_=kind, style=style))
        rows.append(cells)
    head = ["true class", *map(name, classes)]
    said = element(
        "p",
        "A row is a true class, a column an answer: how often this answer was given for images of that class. Right "
        "answers are on the diagonal, in blue; mistakes are in red, the stronger the larger their share of the row.",
    )
    return [said, table("Confusion matrix: true classes in rows, answers in columns", head, rows, class_="confusion")]


def mistakes(tested: Tested, classes: Sequence[str]) -> Content:
    """Return the most confused pairs and the most certain mistakes, with images."""
    labels = tested.labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return note("The targets of this data set are shares of several classes, so no answer is simply wrong.")
    said = tested.probabilities.argmax(axis=1)
    wrong = np.flatnonzero((said != labels) & (labels >= 0))  # those below 0 count as no label
    if not len(wrong):
        return element("p", "There are none: every test image is classified rightly.")
    certain = tested.probabilities[np.arange(len(said)), said]
    parts: list[Any] = []
    if tested.metrics.confusion is not None:
        parts.append(element("h3", "The classes that are confused most"))
        numbered = [str(k) for k in range(len(classes))]  # several classes may have the same name
        for one in explain.confused_pairs(tested.metrics.confusion, numbered, _PAIRS):
            i, j = int(one.true), int(one.predicted)
            these = [int(k) for k in wrong if labels[k] == i and said[k] == j]
            these.sort(key=lambda k: -certain[k])
            text = [
                element("strong", name(classes[i]), " taken for ", name(classes[j])),
                f": {one.count:,} time{'s' * (one.count != 1)}, {one.share:.1%} of the images of this class.",
            ]
            parts.append(element("p", text))
            parts.append(_tiles(tested, these[:_EXAMPLES], classes))
    worst = [int(k) for k in explain.certain_mistakes(tested.probabilities, labels, _MISTAKES)]
    parts += [
        element("h3", "The mistakes of which it is most certain"),
        element(
            "p",
            f"{len(worst)} of {len(wrong):,} mistakes. Look for what they share: images that are labelled wrongly, "
            "cut off, unusual, or that belong to two classes at once.",
        ),
        _tiles(tested, worst, classes),
    ]
    return parts


def _tiles(tested: Tested, places: Sequence[int], classes: Sequence[str]) -> Content:
    """Return images with their true class and the answer."""
    if len(tested.data.shape) != 3:
        return None
    images = to_float(tested.data.gather(np.asarray(places))[0])
    tiles = []
    for k, image in zip(places, images, strict=True):
        said = int(tested.probabilities[k].argmax())
        true, answer, sure = classes[tested.labels[k]], classes[said], float(tested.probabilities[k, said])
        alt = f"test image {k}: {true}, taken for {answer}"
        place = element("span", f"image {k}", class_="faint")
        caption = [name(true), ", said ", name(answer), f" {_sure(sure)}", element("br"), place]
        tiles.append(figure(seen(image, alt, "", _TILE), caption, class_="tile"))
    return element("div", tiles, class_="row")


def _sure(probability: float) -> str:
    """Return a probability in a few letters."""
    return "over 99%" if probability > 0.99 else f"{probability:.0%}"
