"""Results: learning curves, confusion matrix, a prediction, trials of a search, errors of devices, speeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import _check
from xcnn.errors import UsageError, explained
from xcnn.plots._canvas import fitted
from xcnn.plots._figure import COLOURS, figure, literal, save
from xcnn.runs import Search
from xcnn.training import LRFinder

__all__ = ["comparison", "confusion", "curves", "lr_finder", "prediction", "search", "speeds"]

_LEAST, _MOST = 1e-3, 1e6
"""The ends of the axis of errors."""

_HIDES = 8
"""Above this multiple of the median, the largest loss would press all others onto the axis."""


@explained
def curves(history: Sequence[dict[str, Any]], path: str | Path, title: str = "", chosen: int | None = None) -> Path:
    """Draw loss, accuracy and further metrics of training and validation over the epochs.

    The axis of a metric is logarithmic if its early values would hide the others. Metrics without values are left out.

    Parameters
    ----------
    history : records as `Trainer.fit` returns them; at least one.
    chosen : the epoch whose weights were kept, which is marked.
    """
    if not history:
        raise UsageError("curves: history must be at least one record of fit, got none")
    further = [name.removeprefix("val_") for record in history for name in record if name.startswith("val_")]
    panels = {name: _curves_of(name, history) for name in dict.fromkeys(["loss", "accuracy", *further])}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        raise UsageError("curves: history must have a metric, such as train_loss, in each of its records")
    drawn = figure(4.5 * len(panels), 3.6)
    epochs = [record["epoch"] for record in history]
    for axes, (name, lines) in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, (colour, values) in lines.items():
            axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=label)
        every = np.asarray([values for _, values in lines.values()])
        if every.min() > 0 and every.max() > _HIDES * np.median(every):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_formatter(_plain)
        if chosen is not None:
            axes.axvline(chosen, color="black", linewidth=1, linestyle=":", label=f"chosen: epoch {chosen}")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name.replace("_", " "))
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        if len(epochs) <= 15:
            axes.set_xticks(epochs)
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", alpha=0.3)
    return save("curves", drawn, path, title)


@explained
def lr_finder(result: LRFinder, path: str | Path, title: str = "") -> Path:
    """Draw the loss over the learning rate, with the suggestion.

    Parameters
    ----------
    result : what `xcnn.training.find_lr` returns.
    """
    drawn = figure(6, 3.6)
    axes = drawn.subplots()
    axes.plot(result.lrs, result.losses, color=COLOURS[0])
    if result.suggestion is not None:
        axes.axvline(result.suggestion, color=COLOURS[1], linestyle="--", label=f"suggestion: {result.suggestion:.2g}")
    axes.set_xscale("log")
    start, least = result.losses[0], min(result.losses)
    height = start - least or 1.0
    axes.set_ylim(least - 0.1 * height, start + 0.5 * height)  # a diverging loss would hide the rest
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (moving average)")
    axes.grid(alpha=0.3)
    return save("lr_finder", drawn, path, title)


def _plain(value: float, place: int | None = None) -> str:
    """Return the label of a tick of a logarithmic axis: 0.2 rather than a power of ten, and not for all of them."""
    digits = f"{value:.0e}"
    return f"{value:g}" if digits[0] in "125" else ""


def _curves_of(name: str, history: Sequence[dict[str, Any]]) -> dict[str, tuple[str, list[Any]]]:
    """Return colour and values of a metric by the label of its line, for those that every record has."""
    found = {}
    for key, label, colour in zip(("train", "val"), ("training", "validation"), COLOURS, strict=False):
        values = [record.get(f"{key}_{name}") for record in history]
        if None not in values:
            found[label] = colour, values
    return found


@explained
def confusion(counts: np.ndarray, classes: Sequence[str], path: str | Path, title: str = "") -> Path:
    """Draw a confusion matrix.

    A row is a true class, a column a predicted one. A cell is shaded by its share of its row, on the diagonal in blue
    and beside it, for errors, in red on a scale of its own. Up to 30 classes, the cells contain their counts.

    Parameters
    ----------
    counts : (classes, classes) integers, rows true, columns predicted.
    classes : their names.
    """
    k = len(classes)
    if not k:
        raise UsageError("confusion: classes must be at least one name, got none")
    counts = np.asarray(counts)
    _check.check_shape("confusion", (k, k), f"of {k} classes", counts=counts)
    names = [literal(fitted(str(name), 2.0, 10)) for name in classes]
    side = min(4.5 + 0.25 * k + 0.08 * max(map(len, names)), 16)
    drawn = figure(side + 1, side)
    axes = drawn.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(k, dtype=bool)
    worst = max(0.1, np.max(share[~right], initial=0.0))  # otherwise few errors would be as dark as many
    for colours, hidden, most, meaning, bottom in (
        ("Blues", ~right, 1.0, "right answers, share of the true class", 0.56),
        ("Reds", right, worst, "wrong answers, share of the true class", 0.0),
    ):
        cells = axes.imshow(np.ma.array(share, mask=hidden | (share == 0)), cmap=colours, vmin=0, vmax=most)
        if not np.any(share[~hidden]):
            continue
        place = axes.inset_axes((1.04, bottom, 0.025, 0.44))
        key = drawn.colorbar(cells, cax=place, format=_percent)
        key.set_label(meaning, fontsize=8)
        key.ax.tick_params(labelsize=8)
        key.outline.set_visible(False)
    if k <= 30:
        for i, j in zip(*np.nonzero(counts), strict=True):
            shade = "white" if share[i, j] > 0.5 * (1.0 if i == j else worst) else COLOURS[7]
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8, color=shade)
        long = any(len(name) > 3 for name in names)
        axes.set_xticks(range(k), names, rotation=90 if long else 0)
        axes.set_yticks(range(k), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return save("confusion", drawn, path, title)


def _percent(share: float, place: object = None) -> str:
    """Return the text of a tick."""
    return f"{100 * share:.3g}%"


@explained
def prediction(
    image: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    truth: str | None = None,
    photo: np.ndarray | None = None,
) -> Path:
    """Draw an image and the probabilities of its ten most likely classes.

    Parameters
    ----------
    image : (C, H, W), from 0 to 1, with 1 or 3 channels: what the network sees.
    probabilities : (classes,), of each class.
    classes : their names.
    truth : name of the true class, if it is known.
    photo : (H, W) or (H, W, 3): the picture that `image` was made from, to be drawn beside it.
    """
    drawn = figure(7 if photo is None else 10, 3.4)
    widths = (1, 1.1) if photo is None else (1, 1, 1.1)
    *pictures, right = drawn.subplots(1, len(widths), width_ratios=widths)
    seen = np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image[0]
    for axes, shown, name in zip(
        pictures[::-1],
        (seen, photo),
        (f"what the network sees: {seen.shape[1]} x {seen.shape[0]}", "the photo"),
        strict=False,
    ):
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255 if shown is photo else 1)
        axes.set_axis_off()
        if photo is not None:
            axes.set_title(name, fontsize=9)
    best = int(probabilities.argmax())
    known = "" if truth is None else f" (true class: {fitted(truth, 2.0, 12)})"
    shown = np.sort(np.argsort(-probabilities, kind="stable")[:10])[::-1]
    colours = [COLOURS[0] if i == best else "#bbbbbb" for i in shown]
    bars = right.barh(range(len(shown)), probabilities[shown], color=colours)
    right.set_yticks(range(len(shown)), [literal(fitted(classes[i], 2.0, 10)) for i in shown])
    right.bar_label(bars, labels=[f"{probabilities[i]:.3f}" for i in shown], padding=3, fontsize=8)
    right.set_xlim(0, 1.18)
    right.set_xticks([0, 0.5, 1])
    right.spines["bottom"].set_bounds(0, 1)  # the labels of the bars are beyond
    right.set_xlabel("probability")
    return save("prediction", drawn, path, f"predicted: {fitted(classes[best], 2.0, 12)}{known}")


_STATES = {
    "complete": ("trained to the end", "o", COLOURS[0]),
    "pruned": ("ended early, as worse than the median", "x", COLOURS[6]),
    "failed": ("failed, such as by diverging (upper edge)", "X", COLOURS[1]),
}
"""How the trials of a search are drawn: label, marker and colour."""

_WORST = 30
"""Above this multiple of the best value of a search, trials are drawn at the upper edge."""


@explained
def search(result: Search, path: str | Path, title: str = "") -> Path:
    """Draw the trials of a search: what each reached in their order, and over each setting that was varied.

    Lower is better: the validation loss, or the share of wrong answers if the trials were compared by accuracy.

    Parameters
    ----------
    result : what `xcnn.runs.search` returns, with at least one trial that has a value.
    """
    share = result.monitor.endswith("accuracy")
    values = {one.number: 1 - one.value if share else one.value for one in result.trials if one.value is not None}
    if not values:
        raise UsageError("search: the trials must have at least one value, got none")
    least = min(values.values())
    top = min(max(values.values()), _WORST * least if least > 0 else np.inf)
    shown = [one for one in result.trials if one.ended]
    heights = {one.number: min(values.get(one.number, np.inf), top) for one in shown}
    count = len(result.variables)
    columns = 2 if count == 4 else min(3, count)
    rows = 1 + -(-count // columns)
    drawn = figure(max(6.0, 3.2 * columns), 2.7 * rows)
    from matplotlib.ticker import LogLocator

    grid = drawn.add_gridspec(rows, columns)
    history = drawn.add_subplot(grid[0, :])
    panels = [drawn.add_subplot(grid[1 + k // columns, k % columns]) for k in range(count)]
    order = {one.number: float(one.number) for one in shown}
    places = [order, *(_places(variable, shown) for variable in result.variables)]
    for axes, place in zip((history, *panels), places, strict=True):
        for state, (label, marker, colour) in _STATES.items():
            these = [one.number for one in shown if one.state == state]
            if these:
                height = [heights[number] for number in these]
                axes.scatter([place[k] for k in these], height, s=22, marker=marker, color=colour, label=label)
        if result.best is not None:
            k = result.best.number
            named = f"best: trial {k}"
            axes.scatter([place[k]], [heights[k]], s=120, marker="*", color=COLOURS[2], label=named, zorder=3)
        if least > 0 and top > 2 * least:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    for k, axes in enumerate((history, *panels)):
        if k == 0 or (k - 1) % columns == 0:
            axes.set_ylabel("wrong validation images" if share else "validation loss")
        if share:
            axes.yaxis.set_major_formatter(_percent)
    so_far = np.minimum.accumulate([values[one.number] if one.state == "complete" else np.inf for one in shown])
    known = np.isfinite(so_far)
    numbers = np.asarray([one.number for one in shown])
    history.step(numbers[known], np.minimum(so_far[known], top), where="post", color=COLOURS[0], label="best so far")
    history.set_xlabel("trial, in the order in which they began")
    history.xaxis.get_major_locator().set_params(integer=True)
    for axes, variable in zip(panels, result.variables, strict=True):
        axes.set_xlabel(literal(variable.name))
        if variable.choices:
            axes.set_xticks(range(len(variable.choices)), [literal(text) for text in variable.choices])
            axes.set_xlim(-0.5, len(variable.choices) - 0.5)
        elif variable.log:
            axes.set_xscale("log")
            beside = (variable.high / variable.low) ** 0.04
            axes.set_xlim(variable.low / beside, variable.high * beside)  # the whole range, also where no trial was
            if variable.high < 100 * variable.low:  # otherwise powers of ten are enough
                subs = (1, 2, 5) if variable.high > 10 * variable.low else range(1, 10)
                axes.xaxis.set_major_locator(LogLocator(subs=subs))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter("")
        else:
            beside = 0.04 * (variable.high - variable.low)
            axes.set_xlim(variable.low - beside, variable.high + beside)
            if isinstance(variable.low, int):
                axes.xaxis.get_major_locator().set_params(integer=True)
    return save("search", drawn, path, title)


def _places(variable: Any, trials: Sequence[Any]) -> dict[int, float]:
    """Return where trials are on the axis of a setting; those with the same choice are beside each other."""
    if not variable.choices:
        return {one.number: one.values[variable.name] for one in trials}
    choices = list(variable.choices)
    return {
        one.number: choices.index(one.values[variable.name]) + 0.4 * ((0.618 * one.number) % 1 - 0.5) for one in trials
    }


@explained
def comparison(
    shares: Mapping[str, Mapping[str, float]],
    distances: Mapping[str, Sequence[float]],
    path: str | Path,
    title: str = "",
) -> Path:
    """Draw the errors of devices, and how far their weights diverge from those of the cpu in training.

    Parameters
    ----------
    shares : by device and place (a layer or an op): the share of the error budget in use.
    distances : by device: the relative distance of the weights from those of the cpu run after each step; may be empty.
    """
    places = list(dict.fromkeys(place for row in shares.values() for place in row))
    diverged = {name: steps for name, steps in distances.items() if any(0 < step < np.inf for step in steps)}
    drawn = figure(5 + (3 if diverged else 0), max(3.6, 1.8 + 0.16 * len(places)))
    left, *right = drawn.subplots(1, 2 if diverged else 1, squeeze=False, width_ratios=(1.7, 1) if diverged else None)[
        0
    ]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(shares)}
    for i, (name, row) in enumerate(shares.items()):
        # Errors of 0 are at the left edge, those beyond the axis at the right; devices are slightly above each other.
        values = [min(max(row.get(place, 0.0), _LEAST), _MOST) for place in places]
        rows = [j + 0.6 * (i + 0.5) / len(shares) - 0.3 for j in range(len(places))]
        left.plot(values, rows, ".", color=colours[name], markersize=5, label=name, clip_on=False)
    left.axvline(1, color="black", linewidth=1)
    left.set_xscale("log")
    left.set_xlim(_LEAST, max(2.0, 1.5 * min(_MOST, max(max(row.values()) for row in shares.values()))))
    left.set_ylim(len(places) - 0.5, -0.5)
    left.set_yticks(range(len(places)), places, fontsize=6)
    left.set_xlabel("share of the error budget (1: all of it; left edge: no error)")
    for axes in right:
        for name, steps in diverged.items():
            axes.plot(range(1, len(steps) + 1), steps, color=colours[name], marker="o", markersize=3)
        seen = [step for steps in diverged.values() for step in steps if 0 < step < np.inf]
        axes.set_yscale("log")
        axes.set_ylim(10 ** np.floor(np.log10(min(seen))), 10 ** np.ceil(np.log10(max(seen))))
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("training steps")
        axes.set_ylabel("distance from the cpu run's weights")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_box_aspect(1.2)
        axes.set_anchor("N")
    for axes in (left, *right):
        axes.grid(alpha=0.3)
    return save("comparison", drawn, path, title)


@explained
def speeds(rates: Mapping[str, Mapping[str, tuple[float, float, float]]], path: str | Path, title: str = "") -> Path:
    """Draw how many images per second each contestant processes in each case.

    Parameters
    ----------
    rates : by case and contestant: images per second, and both ends of the line that shows their spread.
    """
    names = list(dict.fromkeys(name for row in rates.values() for name in row))
    drawn = figure(8, 1.6 + 0.3 * len(rates))
    axes = drawn.subplots()
    for i, name in enumerate(names):
        shown = [(j, row[name]) for j, row in enumerate(rates.values()) if name in row]
        height = [j + 0.5 * (i + 0.5) / len(names) - 0.25 for j, _ in shown]
        colour = COLOURS[i % len(COLOURS)]
        axes.hlines(height, [low for _, (_, low, _) in shown], [high for _, (_, _, high) in shown], color=colour)
        axes.plot([rate for _, (rate, _, _) in shown], height, ".", color=colour, markersize=6, label=name)
    axes.set_xscale("log")
    axes.set_ylim(len(rates) - 0.5, -0.5)
    axes.set_yticks(range(len(rates)), [literal(case) for case in rates], fontsize=7)
    axes.set_xlabel("images per second (lines: quartiles of the rounds)")
    axes.grid(axis="x", alpha=0.3)
    return save("speeds", drawn, path, title)
