"""The steps of a network on small arrays, forward: each number, and where it comes from.

The functions take plain matrices, such as a digit, a filter of `Conv2d`, and what `xcnn.explain.trace` keeps of each
layer. Numbers are written into the cells as long as they can be read; larger matrices, such as a digit of 28x28, are
shaded, and only the window in question has its numbers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcnn.errors import explained
from xcnn.plots._canvas import GREY, MARK, Canvas, host, number, numbers, signed
from xcnn.plots._figure import COLOURS
from xcnn.plots._matrices import (
    CELL,
    NUMBERS,
    SHADED,
    Table,
    arrow_to,
    cell_of,
    channels_of,
    frame_windows,
    largest,
    mark,
    matrix,
    names_of,
    padded,
    places_of,
    product,
    shade_of,
    sign,
    size_formula,
    soft,
    truth_of,
    windows_of,
    winners_of,
)

__all__ = ["convolution", "pooling", "relu", "softmax"]


@explained
def convolution(
    image: Any,
    filter: Any,
    position: Any,
    path: str | Path,
    *,
    padding: int = 0,
    stride: int = 1,
    bias: float = 0.0,
    title: str = "",
) -> Path:
    """Draw how a convolution computes numbers of its map: the window, the products with the filter, and their sum.

    Parameters
    ----------
    image, filter : (h, w), or (c, h, w) with up to three channels.
    position : (row, column) in the map, or a sequence of them, which are drawn below each other. The map is filled up
        to the last of them, row by row.
    padding : the number of rows and columns of zeros at each edge.
    stride : by how many pixels the window moves.
    bias : the number that is added to each sum.
    """
    name = "convolution"
    image, filter = channels_of(name, "image", image), channels_of(name, "filter", filter)
    _, windows = windows_of(name, image, filter, padding, stride)
    result = np.einsum("ijckl,ckl->ij", windows, filter) + bias
    places = places_of(name, position, result.shape)
    channels, fh, fw = filter.shape
    canvas, y = Canvas(), 0.0
    shade, small = shade_of(image), max(image.shape[1:]) + 2 * padding <= NUMBERS
    cell = CELL if small else SHADED / (max(image.shape[1:]) + 2 * padding)
    for i, j in places:
        top, x = y, 0.0
        height = (image.shape[1] + 2 * padding) * cell
        apart = max(height, fh * CELL) + 0.4
        for c in range(channels):
            here, middle = top + c * apart, top + c * apart + min(height, max(height, fh * CELL)) / 2
            colour = f", {('red', 'green', 'blue')[c]}" if channels == 3 else ""
            canvas.text(0, here - 0.11, f"image{colour}", 8)
            padded(canvas, 0, here, image[c], padding, cell, shade)
            mark(canvas, 0, here, cell, (i * stride, j * stride), (fh, fw))
            y0 = y0_window = max(here, middle - fh * CELL / 2)
            x, _ = matrix(canvas, (image.shape[2] + 2 * padding) * cell + 0.4, y0, "window", windows[i, j, c], shade)
            x, _ = matrix(canvas, sign(canvas, x, y0 + fh * CELL / 2, "×"), y0, "filter", filter[c], signed)
            products = windows[i, j, c] * filter[c]
            x, _ = matrix(canvas, sign(canvas, x, y0 + fh * CELL / 2, "="), y0, "products", products, signed)
            y = max(y, here + height, y0 + fh * CELL)
        middle = (top + y) / 2
        end = x
        x += 0.15
        canvas.arrow([(x, middle), (x + 0.3, middle)])
        x += 0.4
        width = canvas.text(x, middle - 0.16, "sum", 8)
        written = number(result[i, j])
        width = max(width, canvas.text(x, middle, written, 12, bold=True, colour=MARK))
        if bias:
            width = max(width, canvas.text(x, middle + 0.18, f"with bias {number(bias)}", 7))
        x += width + 0.1
        canvas.arrow([(x, middle), (x + 0.3, middle)])
        x += 0.4
        last = i * result.shape[1] + j
        known = np.arange(result.size).reshape(result.shape) <= last
        side = cell_of(result) if small else max(cell, SHADED / 60)
        y0 = max(top, middle - result.shape[0] * side / 2)
        _, below = matrix(canvas, x, y0, f"map, row {i}, column {j}", result, signed, side, known)
        mark(canvas, x, y0, side, (i, j))
        y = max(y, below)
        if filter.size <= 9:
            left, seen = (image.shape[2] + 2 * padding) * cell + 0.4, windows[i, j]
            a, b = ([text for part in several for text in numbers(part)] for several in (seen, filter))
            sum_ = " + ".join(map(product, a, b)) + (f" + {number(bias)}" if bias else "")
            exact = np.array_equal([*map(float, a), *map(float, b)], [*seen.ravel(), *filter.ravel()])
            words = f"{sum_} {'=' if exact else '≈'} {written}"
            y = max(y, canvas.lines(left, y0_window + fh * CELL + 0.1, words, end - left, 8))
        y += 0.5
    h, w = image.shape[1:]
    caption = (
        f"The filter lies on a window of the image (orange). Each number of the window is multiplied by the number of "
        "the filter that lies on it, and the sum of the products becomes one number of the map. Then the window moves "
        f"on by {stride} pixel{'s' * (stride > 1)}, to the end of the row, and goes on in the next one. "
    )
    if channels > 1:
        caption += "The sum is over all channels: there is one map for all of them. "
    if padding:
        ring = "a ring of zeros is" if padding == 1 else f"{padding} rings of zeros are"
        caption += f"Around the image {ring} added (padding {padding}), so that the window reaches its edges. "
    sizes = {"rows": size_formula(h, fh, padding, stride), "columns": size_formula(w, fw, padding, stride)}
    said = "rows and columns: " + sizes["rows"] if len(set(sizes.values())) == 1 else ""
    caption += (
        f"Size of the map, {said}." if said else f"Size of the map, rows: {sizes['rows']}, columns: {sizes['columns']}."
    )
    return canvas.save(name, path, title or "Convolution: multiply and add", caption)


@explained
def pooling(x: Any, path: str | Path, *, size: int = 2, stride: int | None = None, title: str = "") -> Path:
    """Draw max pooling: the windows, the winner of each, and the smaller map of winners.

    Parameters
    ----------
    x : (h, w), a map.
    size : of the window.
    stride : by how many pixels it moves; by default its size.
    """
    values = host("pooling", "x", x, 2)
    maxima, winners, size, stride = winners_of("pooling", values, size, stride)
    canvas, cell, shade = Canvas(), cell_of(values), shade_of(values)
    right, below = matrix(canvas, 0, 0, "the map", values, shade)
    frame_windows(canvas, 0, 0, cell, maxima.shape, size, stride)
    for at in winners.reshape(-1, 2):
        mark(canvas, 0, 0, cell, at)
    side = cell if cell >= 0.25 else 2 * cell if 2 * cell * max(maxima.shape) < 2.5 else cell
    middle = below / 2
    start = arrow_to(canvas, right, middle, f"{size}x{size} windows,\nthe largest of each")
    matrix(canvas, start, max(0.0, middle - maxima.shape[0] * side / 2), "winners", maxima, shade, side)
    lost = 1 - len({tuple(at) for at in winners.reshape(-1, 2).tolist()}) / values.size
    caption = (
        f"Max pooling keeps the largest number of each window of {size}x{size} (orange) and forgets the others, here "
        f"{lost:.0%} of all numbers, and where exactly in the window it was. The map becomes smaller, and small "
        "shifts of the image matter less. If two are equally large, the first one wins."
    )
    return canvas.save("pooling", path, title or "Max pooling: the largest number of each window", caption)


@explained
def relu(x: Any, path: str | Path, *, title: str = "") -> Path:
    """Draw ReLU: negative numbers become zero.

    Parameters
    ----------
    x : (h, w), a map.
    """
    values = host("relu", "x", x, 2)
    canvas, cell = Canvas(), cell_of(values)
    most = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    right, below = matrix(canvas, 0, 0, "before", values, lambda part: signed(part, most))
    start = arrow_to(canvas, right, below / 2, "max(0, x)")
    after = np.maximum(values, 0)
    matrix(canvas, start, 0, "after", after, lambda part: signed(part, most))
    negative = values < 0
    if cell >= 0.25:
        for at in np.argwhere(negative):
            mark(canvas, start, 0, cell, at)
    framed = " (framed)" if cell >= 0.25 else ""
    caption = (
        f"ReLU keeps positive numbers (red) and sets negative ones (blue) to zero{framed}: here {negative.sum():,} "
        f"of {values.size:,}. Without it, several layers in a row could compute no more than a single one."
    )
    return canvas.save("relu", path, title or "ReLU: negative numbers become zero", caption)


@explained
def softmax(
    scores: Any, path: str | Path, *, classes: Sequence[str] | None = None, truth: int | None = None, title: str = ""
) -> Path:
    """Draw how softmax turns scores into probabilities, with a bar for each; of many classes, the likeliest.

    Parameters
    ----------
    scores : (classes,).
    classes : their names.
    truth : index of the true class, for the loss.
    """
    z = host("softmax", "scores", scores, 1)
    names = names_of("softmax", classes, z.size)
    truth = None if truth is None else truth_of("softmax", truth, z.size)
    powers, p = soft("softmax", z)
    shown, best = largest(p, truth), int(p.argmax())
    canvas = Canvas()
    table = Table(canvas, [names[k] for k in shown], ["score z", "exp(z - max)", "p"])
    for k in shown:
        colour = COLOURS[2] if k == truth else COLOURS[0] if k == best else "#aaaaaa"
        table.row(names[k], (z[k], powers[k], p[k]), p[k], colour, k in (truth, best))
    canvas.box(table.bars, 0.12, 0, table.y, line=0.8)
    y = table.y + 0.3
    if len(shown) < z.size:
        canvas.text(
            0,
            y,
            f"the {len(shown)} likeliest of {z.size:,} classes; all others together: {number(1 - p[shown].sum())}",
            8,
            colour=GREY,
        )
        y += 0.22
    canvas.text(0, y, f"max = {number(z.max())}, sum of exp(z - max) = {number(powers.sum())}", 8, colour=GREY)
    caption = (
        "The scores z may be any numbers. exp makes all of them positive, and larger scores much larger; divided by "
        "their sum, they are probabilities p, which add up to 1. Subtracting the largest score first changes no p, and "
        "keeps exp from overflowing. "
    )
    if truth is not None:
        loss = np.log(powers.sum()) - (z[truth] - z.max())  # also where p is too small for a number
        caption += (
            f"The true class (green) has p = {number(p[truth])}; the loss is -log p = {number(loss)}: "
            "zero if the network is certain and right, large if it is certain and wrong."
        )
    else:
        caption += f"The network's answer is the largest p (blue): {names[best]}."
    return canvas.save("softmax", path, title or "Softmax: from scores to probabilities", caption)
