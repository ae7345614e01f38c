"""The same steps backward, from the loss to the image: where each gradient comes from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import _check
from xcnn.errors import explained
from xcnn.plots._canvas import GREY, MARK, Canvas, grey, host, number, signed
from xcnn.plots._matrices import (
    CELL,
    FEW,
    NUMBERS,
    PLACES,
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
    product,
    shade_of,
    sign,
    soft,
    truth_of,
    unit_of,
    windows_of,
    winners_of,
)

__all__ = ["convolution_backward", "linear_backward", "pooling_backward", "relu_backward", "softmax_backward"]


@explained
def softmax_backward(
    scores: Any, truth: int, path: str | Path, *, classes: Sequence[str] | None = None, title: str = ""
) -> Path:
    """Draw the gradient of the cross entropy at the scores: dz = p - y.

    Parameters
    ----------
    scores : (classes,).
    truth : index of the true class.
    classes : their names.
    """
    name = "softmax_backward"
    z = host(name, "scores", scores, 1)
    names, truth = names_of(name, classes, z.size), truth_of(name, truth, z.size)
    p = soft(name, z)[1]
    y = np.zeros(z.size)
    y[truth] = 1
    dz = p - y
    shown = largest(dz, truth)
    canvas = Canvas()
    table = Table(canvas, [names[k] for k in shown], ["p", "y", "dz = p - y"])
    for k in shown:
        table.row(names[k], (p[k], y[k], dz[k]), dz[k] / 2, "#2166ac" if dz[k] < 0 else "#b2182b", k == truth, 0.5)
    canvas.box(table.bars + 1.1, 0.12, 0, table.y, line=0.8)
    if len(shown) < z.size:
        words = f"the {len(shown)} largest of {z.size:,}"
        canvas.text(0, table.y + 0.3, words, 8, colour=GREY)
    caption = (
        "y is 1 at the true class and 0 elsewhere. The gradient of the loss at the scores is simply p - y. Gradient "
        f"descent goes against it: the score of {names[truth]}, whose gradient is negative (blue), will rise, all "
        "others (red) will fall, the more the likelier the network thought them. All of them add up to zero."
    )
    if np.abs(dz).max() < 0.01:
        caption += " Here the network is certain and right already: there is almost nothing to learn."
    return canvas.save(name, path, title or "Where the gradient begins: dz = p - y", caption)


@explained
def linear_backward(x: Any, weight: Any, dz: Any, path: str | Path, *, title: str = "") -> Path:
    """Draw the gradients of a fully connected layer: dW = dz x^T, db = dz, dx = W^T dz.

    Parameters
    ----------
    x : (inputs,), its input.
    weight : (outputs, inputs).
    dz : (outputs,), the gradient of its output.
    """
    name = "linear_backward"
    x, weight, dz = host(name, "x", x, 1), host(name, "weight", weight, 2), host(name, "dz", dz, 1)
    dz, unit = unit_of(dz)
    _check.check_shape(name, (dz.size, x.size), "outputs by inputs", weight=weight)
    dweight, dx = np.outer(dz, x), weight.T @ dz
    canvas = Canvas()
    large = max(weight.shape) > NUMBERS
    cell = max(0.022, 4.2 / max(weight.shape)) if large else CELL + 0.14
    tall = cell if not large or dz.size > NUMBERS else 0.16  # cells of a long layer are narrow, not flat

    def bar(left: float, top: float, head: str, values: np.ndarray) -> tuple[float, float]:
        canvas.text(left, top - 0.11, head, 8)
        if not large:
            canvas.grid(left, top, values, cell)
            return left + values.shape[1] * cell, top + values.shape[0] * cell
        height = max(0.16, values.shape[0] * tall)
        canvas.image(left, top, values.shape[1] * cell, height, signed(values))
        canvas.box(left, top, values.shape[1] * cell, height, edge=GREY)
        return left + values.shape[1] * cell, top + height

    column = cell if not large else 0.16
    left = column + 0.85

    def beside(top: float) -> None:
        canvas.text(0, top - 0.11, f"dz = db{unit}", 8)
        if large:
            canvas.image(0, top, column, dz.size * tall, signed(dz[:, None]))
            canvas.box(0, top, column, dz.size * tall, edge=GREY)
        else:
            canvas.grid(0, top, dz[:, None], cell)

    # The gradient of W as a table of products: dz at the left, x on top.
    _, below = bar(left, 0, "x: the input", x[None])
    y = below + 0.3
    beside(y)
    _, below = bar(left, y, "dW = dz x^T: each is the dz of its row times the x of its column", dweight)
    y = below + 0.55
    beside(y)
    _, below = bar(left, y, "W: the weights", weight)
    y = below + 0.3
    _, below = bar(left, y, "dx = W^T dz: each is the sum of its column of W, times dz", dx[None])
    if not large and dz.size <= 4:
        y = below + 0.16
        for k in range(min(2, x.size)):
            terms = " + ".join(product(number(weight[j, k]), number(dz[j])) for j in range(dz.size))
            canvas.text(left, y, f"dx[{k}] = {terms} = {number(dx[k])}", 8)
            y += 0.17
    caption = (
        "A weight connects one input with one score: z = W x + b. The larger the input, the more the weight matters, "
        "so its gradient is the gradient of its score times its input; that of b is dz itself. An input reaches "
        "every score through its column of W; its gradient adds up all these ways. Red is positive, blue negative."
    )
    return canvas.save(name, path, title or "Fully connected layer backward", caption + _said(unit))


@explained
def relu_backward(x: Any, dy: Any, path: str | Path, *, title: str = "") -> Path:
    """Draw which gradients ReLU lets through: those of positive numbers.

    Parameters
    ----------
    x : (h, w), the map that ReLU was applied to.
    dy : (h, w), the gradient of its result.
    """
    name = "relu_backward"
    values, dy = host(name, "x", x, 2), host(name, "dy", dy, 2)
    dy, unit = unit_of(dy)
    _check.check_shape(name, values.shape, "as x", dy=dy)
    dx = np.where(values > 0, dy, 0)
    canvas = Canvas()
    right, below = matrix(canvas, 0, 0, f"gradient dy{unit}", dy, signed)
    right, _ = matrix(canvas, sign(canvas, right, below / 2, "×"), 0, "x > 0", (values > 0) * 1.0, grey)
    right, _ = matrix(canvas, sign(canvas, right, below / 2, "="), 0, "gradient dx", dx, signed)
    caption = (
        "Where the number was positive, ReLU has changed nothing, and the gradient passes as it is. Where it was not, "
        f"the result is zero whatever happens, and no gradient passes: here at {np.sum(values <= 0):,} of "
        f"{values.size:,} places. A ReLU that never passes a gradient cannot learn any more; it is called dead."
    )
    return canvas.save(name, path, title or "ReLU backward: a gate", caption + _said(unit))


@explained
def pooling_backward(
    x: Any, dy: Any, path: str | Path, *, size: int = 2, stride: int | None = None, title: str = ""
) -> Path:
    """Draw where max pooling sends gradients: each to the winner of its window, and zero to all others.

    Parameters
    ----------
    x : (h, w), the map that was pooled.
    dy : the gradient of the pooled map, of its shape.
    size, stride : as in `pooling`.
    """
    name = "pooling_backward"
    values, dy = host(name, "x", x, 2), host(name, "dy", dy, 2)
    dy, unit = unit_of(dy)
    maxima, winners, size, stride = winners_of(name, values, size, stride)
    _check.check_shape(name, maxima.shape, "of the pooled map", dy=dy)
    dx = np.zeros(values.shape)
    np.add.at(dx, tuple(np.moveaxis(winners, -1, 0)), dy)
    canvas, cell = Canvas(), cell_of(values)
    side = cell if cell >= 0.25 else 2 * cell if 2 * cell * max(maxima.shape) < 2.5 else cell
    middle = values.shape[0] * cell / 2
    right, _ = matrix(canvas, 0, max(0.0, middle - dy.shape[0] * side / 2), f"gradient dy{unit}", dy, signed, side)
    start = arrow_to(canvas, right, middle, "to the winner\nof each window")
    right, _ = matrix(canvas, start, 0, "x, its winners", values)
    frame_windows(canvas, start, 0, cell, maxima.shape, size, stride)
    for at in winners.reshape(-1, 2):
        mark(canvas, start, 0, cell, at)
    start = arrow_to(canvas, right, middle, "zero to\nall others")
    matrix(canvas, start, 0, "gradient dx", dx, signed)
    frame_windows(canvas, start, 0, cell, maxima.shape, size, stride)
    for at in winners.reshape(-1, 2) if cell >= 0.25 else ():
        mark(canvas, start, 0, cell, at)
    caption = (
        "Only the winner of a window (orange) made it into the next layer. If it grows a little, so does the pooled "
        "number, so the gradient goes to it as it is. The others could change a little without any effect: zero."
    )
    if stride < size:
        caption += " A number that wins several windows gets the sum."
    return canvas.save(name, path, title or "Max pooling backward: the winner gets the gradient", caption + _said(unit))


@explained
def convolution_backward(
    image: Any,
    filter: Any,
    dy: Any,
    path: str | Path,
    *,
    padding: int = 0,
    stride: int = 1,
    title: str = "",
) -> Path:
    """Draw the gradients of a convolution: of its filter, and of its image.

    The gradient of the filter is the sum over all places of the map: the window that the filter saw, times the gradient
    there. That of the image is the sum of filters: each lies where it lay, times the gradient. Of many places with a
    gradient, those with the largest are drawn.

    Parameters
    ----------
    image, filter : (h, w), or (c, h, w) with up to three channels, of which the first is drawn.
    dy : the gradient of the map, of its shape.
    padding, stride : as in `convolution`.
    """
    name = "convolution_backward"
    image, filter = channels_of(name, "image", image), channels_of(name, "filter", filter)
    dy, unit = unit_of(host(name, "dy", dy, 2))
    full, windows = windows_of(name, image, filter, padding, stride)
    _check.check_shape(name, windows.shape[:2], "of the map", dy=dy)
    fh, fw = filter.shape[1:]
    dfilter = np.einsum("ijckl,ij->ckl", windows, dy)
    spread = np.zeros(full.shape)
    for i, j in np.argwhere(dy):
        spread[:, i * stride : i * stride + fh, j * stride : j * stride + fw] += filter * dy[i, j]
    h, w = image.shape[1:]
    dimage = spread[:, padding : padding + h, padding : padding + w]

    places = np.argwhere(dy)
    order = np.argsort(-np.abs(dy[tuple(places.T)]), kind="stable")
    drawn = places[np.sort(order[:PLACES])]
    first, shade = image[0], shade_of(image)
    tall, wide = h + 2 * padding, w + 2 * padding
    cell = CELL if max(tall, wide) <= FEW else 1.5 / max(tall, wide)
    canvas = Canvas()
    most = float(np.max(np.abs(spread[0]), initial=0.0))

    def whole(values: np.ndarray) -> np.ndarray:
        return signed(values, most)

    top = 0.0
    canvas.text(0, top - 0.36, "1. The gradient of the filter: window times gradient, added up", 9.5, bold=True)
    right = 0.0
    for i, j in drawn:
        height = max(tall * cell, fh * CELL)
        middle = top + height / 2
        canvas.text(0, top - 0.11, "image, window", 8)
        padded(canvas, 0, top, first, padding, cell, shade)
        mark(canvas, 0, top, cell, (i * stride, j * stride), (fh, fw))
        y0 = middle - fh * CELL / 2
        x, _ = matrix(canvas, wide * cell + 0.4, y0, "window", windows[i, j, 0], shade)
        x = sign(canvas, x, middle, "×")
        canvas.text(x, y0 - 0.11, f"gradient dy[{i}, {j}]", 8)
        canvas.text(x, middle + 0.2, unit.removeprefix(", "), 8)
        width = canvas.text(x, middle, number(dy[i, j]), 12, bold=True, colour=MARK)
        x = sign(canvas, max(x + width, x + 0.5), middle, "=")
        right, _ = matrix(
            canvas, max(x, wide * cell + fw * CELL + 2.15), y0, "its share", windows[i, j, 0] * dy[i, j], signed
        )
        top += height + 0.42
    others = len(places) - len(drawn)
    begin = max(0.0, right - fw * CELL)
    if not len(places):
        canvas.text(0, top, "No place of the map has a gradient: everything below is zero.", 9)
        top += 0.4
    words = "sum: gradient of the filter" + (f", with {others:,} other place{'s' * (others > 1)}" if others else "")
    canvas.line([(begin, top - 0.18), (begin + fw * CELL, top - 0.18)])
    canvas.text(begin - 0.12, top + fh * CELL / 2, words, 9, "right")
    canvas.grid(begin, top, dfilter[0], CELL)
    top += fh * CELL + 0.75

    canvas.text(
        0, top - 0.36, "2. The gradient of the image: filter times gradient, where it lay, added up", 9.5, bold=True
    )
    x, y = 0.0, top
    for k, (i, j) in enumerate(drawn):
        alone = np.zeros((tall, wide))
        alone[i * stride : i * stride + fh, j * stride : j * stride + fw] = filter[0] * dy[i, j]
        if x + wide * cell > 7.2 and k:
            x, y = 0.0, y + tall * cell + 0.45
        canvas.text(x, y - 0.11, f"filter × {number(dy[i, j])}", 8)
        there = np.zeros(alone.shape, bool)
        there[i * stride : i * stride + fh, j * stride : j * stride + fw] = True
        canvas.grid(x, y, alone, cell, whole, cell >= 0.25, there)
        mark(canvas, x, y, cell, (i * stride, j * stride), (fh, fw))
        canvas.box(x + padding * cell, y + padding * cell, w * cell, h * cell, edge=GREY)
        x += wide * cell
        x = sign(canvas, x, y + tall * cell / 2, "+" if k + 1 < len(drawn) or others else "=")
    if others:
        width = canvas.text(x, y + tall * cell / 2, f"{others:,} other{'s' * (others > 1)}", 9)
        x = sign(canvas, x + width, y + tall * cell / 2, "=")
    if x + w * cell > 7.6 and drawn.size:
        x, y = 0.0, y + tall * cell + 0.45
        x = sign(canvas, x, y + tall * cell / 2, "=")
    matrix(canvas, x, y + padding * cell, "gradient of the image", dimage[0], whole, cell)
    caption = (
        "The filter is the same at every place, so each place has a say in its gradient: the window that it saw there, "
        "times the gradient of the number that came of it. A pixel was seen by several windows; to each number it gave "
        "itself times a number of the filter, so this number of the filter, times the gradient there, is what comes "
        "back to it. Nothing is turned around: the filter lies as it lay in the forward pass."
    )
    if padding:
        caption += " What falls on the zeros of the padding is dropped."
    if image.shape[0] > 1:
        caption += f" Drawn is the first of {image.shape[0]} channels."
    return canvas.save(
        name, path, title or "Convolution backward: where its gradients come from", caption + _said(unit)
    )


def _said(unit: str) -> str:
    """Return the sentence for a unit."""
    return f" All gradients are{unit.removeprefix(',')}: multiply them by it." if unit else ""
