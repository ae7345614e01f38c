"""What `xcnn.explain` finds over a whole data set: statistics of activations, mistakes, and embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcnn.errors import ShapeError, UsageError, explained, printable
from xcnn.explain import ConfusedPair, LayerStatistics
from xcnn.plots._canvas import DARK, GREY, Canvas, fitted, host, number, pixels, width_of, wrapped
from xcnn.plots._figure import COLOURS

__all__ = ["activation_statistics", "certain_mistakes", "confused_pairs", "embedding"]

_ROWS = 40
"""The most rows of layers or of pairs."""

_NAMED = 20
"""The most classes that have a colour and a name of their own."""

_POINTS = 300
"""Above this number, the points of an SVG are an image."""


@explained
def activation_statistics(rows: Sequence[LayerStatistics], path: str | Path, title: str = "") -> Path:
    """Draw the activations of every layer: their mean and spread, the share of zeros, dead and saturated units.

    Of more than 40 layers, those are drawn in which something can be dead or saturated, and then those spread evenly.

    Parameters
    ----------
    rows : what `xcnn.explain.activation_statistics` returns; at least one.
    """
    who = "activation_statistics"
    if not rows:
        raise UsageError(f"{who}: rows must be at least one layer, got none")
    every, rows = len(rows), _some(rows)
    canvas, names = Canvas(), 2.3
    columns = {"mean ± spread": names, "zeros": names + 2.9}
    dies, saturates = any(row.dead is not None for row in rows), any(row.saturated is not None for row in rows)
    columns |= {"dead units": names + 4.2} if dies else {}
    columns |= {"saturated": names + 4.2 + 1.3 * dies} if saturates else {}
    for name, x in columns.items():
        canvas.text(x, -0.05, name, 9, bold=True)
    finite = [abs(v) for row in rows for v in (row.mean - row.std, row.mean + row.std) if np.isfinite(v)]
    most, wide = max(finite, default=0.0) or 1.0, 0.6
    middle = columns["mean ± spread"] + 1.25
    for k, row in enumerate(rows):
        y = 0.2 + 0.23 * k
        canvas.text(0, y, f"{row.name} {row.layer}", 8.5, most=names - 0.1)
        low, high = ((row.mean + side * row.std) / most * 1.2 for side in (-1, 1))
        if np.isfinite(low) and np.isfinite(high):
            canvas.box(middle + low, y - 0.06, max(high - low, 0.012), 0.12, "#9ec1e0", None)
            canvas.box(middle + row.mean / most * 1.2 - 0.012, y - 0.09, 0.024, 0.18, COLOURS[0], None)
        else:
            canvas.text(middle, y, "not finite", 8, "center", colour=COLOURS[4])
        _bar(canvas, columns["zeros"], y, row.zeros, f"{row.zeros:.0%}", "#aaaaaa", wide)
        if row.dead is not None:
            share = row.dead / row.units if row.units else 0.0
            _bar(canvas, columns["dead units"], y, share, f"{row.dead:,} of {row.units:,}", COLOURS[1], wide)
        if row.saturated is not None:
            _bar(canvas, columns["saturated"], y, row.saturated, f"{row.saturated:.0%}", COLOURS[3], wide)
    end = 0.2 + 0.23 * len(rows)
    canvas.line([(middle, 0.1), (middle, end - 0.05)], GREY, 0.8)
    canvas.text(middle, end + 0.04, "0", 8, "center", colour=GREY)
    for side in (-1, 1):
        canvas.text(middle + side * 1.2, end + 0.04, number(side * most), 8, "center", colour=GREY)
    canvas.reach(max(columns.values()) + 1.1, end + 0.1)
    dead = sum(row.dead or 0 for row in rows)
    count = f"Dead units here: {dead:,}" if dead else "No unit is dead here"
    some = f"{len(rows)} of {every:,} layers. " if len(rows) < every else ""
    caption = (
        f"{some}Blue: the mean of a layer's activations, and one standard deviation to each side; it should neither "
        "vanish nor explode from layer to layer. Zeros are normal after a ReLU."
    )
    if dies:
        caption += (
            " A unit is dead if it was zero for every example: no gradient has passed, so it has learned nothing from "
            f"them. {count}."
        )
    if saturates:
        caption += " Saturated is a sigmoid or tanh near its bounds, where its slope, and the gradient, is almost zero."
    return canvas.save(who, path, title or "Activations of every layer", caption)


def _some(rows: Sequence[LayerStatistics]) -> list[LayerStatistics]:
    if len(rows) <= _ROWS:
        return list(rows)
    telling = [k for k, row in enumerate(rows) if row.dead is not None or row.saturated is not None]
    if len(telling) > _ROWS or not telling:
        telling = telling or list(range(len(rows)))
        return [rows[telling[k]] for k in np.unique(np.linspace(0, len(telling) - 1, _ROWS).round().astype(int))]
    return [rows[k] for k in telling]


def _bar(canvas: Canvas, x: float, y: float, share: float, words: str, colour: str, wide: float) -> None:
    canvas.box(x, y - 0.07, wide, 0.14, None, GREY, 0.5)
    if share > 0:
        canvas.box(x, y - 0.07, max(wide * min(share, 1.0), 0.012), 0.14, colour, None)
    canvas.text(x + wide + 0.06, y, words, 7.5)


@explained
def confused_pairs(
    pairs: Sequence[ConfusedPair], path: str | Path, images: Sequence[Any] | None = None, title: str = ""
) -> Path:
    """Draw the classes that are confused most, as bars, with examples.

    Parameters
    ----------
    pairs : what `xcnn.explain.confused_pairs` returns; at least one.
    images : for each pair some of its images (n, c, h, w), of which up to five are drawn.
    """
    who = "confused_pairs"
    pairs = [ConfusedPair(*pair) for pair in pairs]
    if not pairs:
        raise UsageError(f"{who}: pairs must be at least one pair of classes, got none")
    if images is not None and len(images) != len(pairs):
        raise UsageError(f"{who}: images must be {len(pairs)} arrays, one per pair, got {len(images)}")
    canvas, most = Canvas(), max(pair.count for pair in pairs) or 1
    every, pairs = len(pairs), pairs[:_ROWS]
    left = min(3.9, max(width_of(_pair(pair), 9, True) for pair in pairs)) + 0.2
    step = 0.28 if images is None else 0.66
    canvas.text(0, -0.02, "true class → what the network says", 8, colour=GREY)
    words = [f"{pair.count:,}, {pair.share:.1%} of {pair.true}" for pair in pairs]
    ends = [1.5 * p.count / most + min(2.3, width_of(printable(w), 8)) for p, w in zip(pairs, words, strict=True)]
    beside = left + max(ends) + 0.3
    for k, pair in enumerate(pairs):
        y = 0.18 + step * k + step / 2
        canvas.text(0, y, _pair(pair), 9, bold=True, most=left - 0.1)
        canvas.box(left, y - 0.08, 1.5 * pair.count / most, 0.16, COLOURS[1], None)
        canvas.text(left + 1.5 * pair.count / most + 0.08, y, words[k], 8, most=2.3)
        if images is not None:
            shown = host(who, "images", images[k], 4) if len(images[k]) else np.zeros((0, 1, 1, 1))
            for i, image in enumerate(shown[:5]):
                _thumb(canvas, beside + 0.64 * i, y - 0.29, 0.58, image)
    caption = f"{len(pairs)} of {every:,} pairs. " if len(pairs) < every else ""
    caption += (
        "A bar counts the test images of one class that the network takes for another one; the percentage says how "
        "many of all images of the true class these are. Pairs that look alike to you, too, are no surprise; others "
        "may be wrong labels, or too few examples of a kind."
    )
    return canvas.save(who, path, title or "The classes that are confused most", caption)


def _pair(pair: ConfusedPair) -> str:
    return " → ".join(fitted(name, 1.7, 9, True) for name in (pair.true, pair.predicted))


def _thumb(canvas: Canvas, x: float, y: float, side: float, image: np.ndarray) -> None:
    """Draw an image into a square."""
    h, w = image.shape[1:]
    height, width = side * h / max(h, w), side * w / max(h, w)
    left, top = x + (side - width) / 2, y + (side - height) / 2
    canvas.image(left, top, width, height, pixels(image))
    canvas.box(left, top, width, height, edge=GREY, line=0.5)


@explained
def certain_mistakes(
    images: Any,
    probabilities: Any,
    labels: Any,
    classes: Sequence[str],
    path: str | Path,
    title: str = "",
) -> Path:
    """Draw wrongly classified images, with their class, the answer, and how certain the network was of it.

    Parameters
    ----------
    images : (n, c, h, w), those at the indices that `xcnn.explain.certain_mistakes` returns; at most 40 are drawn.
    probabilities : (n, classes), of these.
    labels : (n,), their true classes.
    classes : the names.
    """
    who = "certain_mistakes"
    shown, p = host(who, "images", images, 4), host(who, "probabilities", probabilities, 2)
    true = host(who, "labels", labels, 1).astype(int)
    if not len(shown) == len(p) == len(true):
        came = f"{len(shown)}, {len(p)} and {len(true)}"
        raise ShapeError(f"{who}: images, probabilities and labels must be equally many, got {came}")
    if p.shape[1] != len(classes) or not (true.min() >= 0 and true.max() < len(classes)):
        raise UsageError(f"{who}: labels and the columns of probabilities must be of the {len(classes)} classes")
    every, shown, p, true = len(shown), shown[:_ROWS], p[:_ROWS], true[:_ROWS]
    canvas, side = Canvas(), 1.15
    columns = min(8, len(shown))
    lines = 1 if all(len(str(name)) < 12 for name in classes) else 2
    step = side + 0.2 + 0.16 * (2 * lines + 1)
    for k in range(len(shown)):
        row, column = divmod(k, columns)
        x, y = column * (side + 0.14), row * step
        _thumb(canvas, x, y, side, shown[k])
        said = int(p[k].argmax())
        words = [(f"says {classes[said]}", True, lines), (f"{p[k, said]:.1%} certain", False, 1)]
        words.append((f"true: {classes[true[k]]}", False, lines))
        down = y + side + 0.1
        for text, bold, most in words:
            parts = wrapped(text, side, 8)
            parts = [*parts[: most - 1], " ".join(parts[most - 1 :])] if len(parts) > most else parts
            for part in parts:
                canvas.text(x, down, part, 8, bold=bold, most=side)
                down += 0.16
    right = int(sum(p[k].argmax() == true[k] for k in range(len(shown))))
    caption = f"The first {len(shown)} of {every:,}. " if len(shown) < every else ""
    caption += (
        "The wrong answers of which the network was most certain. Look at each: is the label right? Would you have "
        "known? A network that is certain and wrong has learned something that does not hold."
    )
    if right:
        caption += f" {right:,} of these answers are right."
    return canvas.save(who, path, title or "The most certain mistakes", caption)


@explained
def embedding(
    points: Any, labels: Any, classes: Sequence[str], path: str | Path, title: str = "", method: str = "pca"
) -> Path:
    """Draw points in the plane, coloured by class, with the name of each class in the middle of its points.

    Of more than 20 classes, those with the most points have colours and names, and the others are grey.

    Parameters
    ----------
    points : (n, 2), what `xcnn.explain.embed` returns.
    labels : (n,), the classes of the points.
    classes : their names.
    method : how they were computed, for the caption.
    """
    who = "embedding"
    found, kinds = host(who, "points", points, 2), host(who, "labels", labels, 1).astype(int)
    if found.shape != (len(kinds), 2):
        raise ShapeError(f"{who}: points must have shape {(len(kinds), 2)}, one row per label, got {found.shape}")
    if not np.isfinite(found).all():
        raise UsageError(f"{who}: points must be finite")
    if kinds.min() < 0 or kinds.max() >= len(classes):
        raise UsageError(f"{who}: labels must be from 0 to {len(classes) - 1}, one of the {len(classes)} classes")
    low, high = found.min(0), found.max(0)
    scale = 5.6 / max(float((high - low).max()), 1e-12)
    places = (found - low) * scale
    width, height = (max(1.0, float(size)) for size in places.max(0))
    places[:, 1] = height - places[:, 1]
    canvas = Canvas(6.0)
    counts = np.bincount(kinds, minlength=len(classes))
    named = [k for k in np.argsort(-counts, kind="stable")[:_NAMED].tolist() if counts[k]]
    colours = _many(len(named))
    size = float(np.clip(4000 / len(found), 3, 22))
    others = ~np.isin(kinds, named)
    raster = len(found) > _POINTS
    canvas.axes.scatter(*places[others].T, s=size, color="#999999", linewidths=0, rasterized=raster)
    # In a random but fixed order, so that no class lies on top of all others.
    order = np.random.default_rng(0).permutation(len(found))
    order = order[~others[order]]
    place = {k: i for i, k in enumerate(named)}
    canvas.axes.scatter(
        *places[order].T,
        s=size,
        c=[colours[place[k]] for k in kinds[order]],
        linewidths=0,
        alpha=0.8,
        rasterized=raster,
    )
    canvas.reach(width, height + 0.05)
    canvas.reach(0, -0.05)
    spots: list[tuple[float, float, float]] = []
    for k in named:
        x, y = (float(middle) for middle in np.median(places[kinds == k], axis=0))
        name = fitted(str(classes[k]), 1.5, 9, True)
        wide = width_of(name, 9, True) + 0.12
        while any(abs(x - a) < (wide + w) / 2 and abs(y - b) < 0.21 for a, b, w in spots):
            y += 0.07
        spots.append((x, y, wide))
        _label(canvas, x, y, name, wide, colours[place[k]])
    how = {
        "pca": "Principal components: the view from the side on which the points differ most. Points that are far "
        "apart here are far apart; some that look close lie one behind the other.",
        "tsne": "t-SNE keeps neighbours together. Distances between groups, and their sizes, mean nothing.",
        "umap": "UMAP keeps neighbours together. Distances between groups, and their sizes, mean little.",
    }.get(method, f"The places were computed by {method}.")
    caption = (
        f"Each of the {len(found):,} points is an image, placed by what the network computes for it just before it "
        "decides; images that are alike to the network are near each other. Classes that the network tells apart are "
        f"groups of their own. {how}"
    )
    if others.any():
        caption += f" Grey: {np.sum(counts > 0) - len(named):,} more classes."
    return canvas.save(who, path, title or "What is alike to the network", caption)


def _many(count: int) -> list[str]:
    """Return colours for many classes."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["tab10" if count <= 10 else "tab20"](k)) for k in range(count)]


def _label(canvas: Canvas, x: float, y: float, name: str, width: float, colour: str) -> None:
    """Write the name of a class on a light ground, in the middle of its points."""
    canvas.box(x - width / 2, y - 0.1, width, 0.2, "#ffffffd9", colour, 1.0, layer=4)
    canvas.text(x, y, name, 9, "center", colour=DARK, bold=True, layer=5)
