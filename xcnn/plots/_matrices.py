"""What the pictures of steps share: matrices with headings, windows, tables with bars, and their checks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from xcnn import _check
from xcnn.errors import ShapeError, UsageError, printable
from xcnn.plots._canvas import GREY, MARK, Canvas, grey, host, number, signed, width_of

__all__ = [
    "CELL", "FEW", "GAP", "NUMBERS", "PLACES", "ROWS", "SHADED", "Table", "arrow_to", "cell_of", "channels_of",
    "frame_windows", "largest", "mark", "matrix", "names_of", "padded", "places_of", "product", "shade_of", "sign",
    "size_formula", "soft", "truth_of", "unit_of", "windows_of", "winners_of",
]  # fmt: skip

NUMBERS = 12
"""The most rows and columns of a matrix whose numbers are written into its cells."""

CELL = 0.36
"""The side of a cell with a number, in inches."""

SHADED = 2.3
"""The side of a matrix without numbers, in inches."""

GAP = 0.42
"""Between two matrices, with the sign that connects them."""

ROWS = 10
"""The most classes that are drawn."""

FEW = 5
"""The most rows and columns of images that are drawn several times."""

PLACES = 4
"""The most places of a map that are drawn one by one."""


def cell_of(values: np.ndarray) -> float:
    side = max(values.shape)
    return CELL if side <= NUMBERS else max(SHADED / side, 0.02)


def shade_of(values: np.ndarray) -> Any:
    """Return how to shade a matrix: as an image, or with a sign if numbers are negative."""
    finite = values[np.isfinite(values)]
    if np.any(finite < 0):
        most = float(np.max(np.abs(finite)))
        return lambda part: signed(part, most)
    high = float(np.max(finite, initial=0.0))
    return lambda part: grey(part, 0.0, high)


def matrix(
    canvas: Canvas,
    x: float,
    y: float,
    head: str,
    values: np.ndarray,
    shade: Any = None,
    cell: float | None = None,
    known: np.ndarray | None = None,
) -> tuple[float, float]:
    """Draw a matrix under a heading, and return the place to the right of it and below it."""
    cell = cell_of(values) if cell is None else cell
    h, w = values.shape
    wide = canvas.text(x, y - 0.11, head, 8)
    canvas.grid(x, y, values, cell, shade or shade_of(values), cell >= 0.25, known)
    return x + max(wide, w * cell), y + h * cell


def sign(canvas: Canvas, x: float, y: float, sign: str) -> float:
    """Draw a sign between two matrices and return where the next one begins."""
    canvas.text(x + GAP / 2, y, sign, 13, "center")
    return x + GAP


def mark(canvas: Canvas, x: float, y: float, cell: float, at: Any, size: tuple[int, int] = (1, 1)) -> None:
    """Frame cells of a matrix at x, y."""
    box = (x + at[1] * cell, y + at[0] * cell, size[1] * cell, size[0] * cell)
    canvas.box(*box, edge=MARK, line=2 if cell > 0.1 else 0.7 if size == (1, 1) else 1.4, layer=3)


def padded(canvas: Canvas, x: float, y: float, image: np.ndarray, padding: int, cell: float, shade: Any) -> None:
    """Draw an image in a frame of zeros, which are empty cells."""
    full = np.pad(image, padding)
    inside = np.pad(np.ones(image.shape, bool), padding)
    numbers = cell >= 0.25
    canvas.grid(x, y, full, cell, shade, numbers, inside)
    if not padding:
        return
    if numbers:
        for i, j in np.argwhere(~inside):
            canvas.text(x + (j + 0.5) * cell, y + (i + 0.5) * cell, "0", 8, "center", colour=GREY)
    h, w = image.shape
    canvas.box(x + padding * cell, y + padding * cell, w * cell, h * cell, line=1.4, layer=2)


def places_of(caller: str, position: Any, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return places of a map, one or several (row, column), after a check."""
    given = np.asarray(position)
    if given.dtype.kind not in "iu" or given.ndim not in (1, 2) or given.shape[-1] != 2 or not given.size:
        raise UsageError(f"{caller}: position must be (row, column) or a sequence of them, got {position!r}")
    places = [(int(i), int(j)) for i, j in given.reshape(-1, 2)]
    for i, j in places:
        if not (0 <= i < shape[0] and 0 <= j < shape[1]):
            wanted = f"a row from 0 to {shape[0] - 1} and a column from 0 to {shape[1] - 1}"
            raise UsageError(f"{caller}: position must be {wanted}, got {(i, j)}")
    return places


def windows_of(
    caller: str, image: np.ndarray, filter: np.ndarray, padding: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the padded image (c, h, w), and its windows (rows, columns, c, kh, kw)."""
    padding = _check.integer(caller, "padding", padding, 0)
    stride = _check.integer(caller, "stride", stride)
    if filter.shape[0] != image.shape[0]:
        raise ShapeError(f"{caller}: filter must have {image.shape[0]} channels as the image, got {filter.shape[0]}")
    full = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    if any(size < width for size, width in zip(full.shape[1:], filter.shape[1:], strict=True)):
        raise ShapeError(f"{caller}: filter must fit into the padded image {full.shape[1:]}, got {filter.shape[1:]}")
    windows = sliding_window_view(full, filter.shape[1:], (1, 2))[:, ::stride, ::stride]
    return full, np.moveaxis(windows, 0, 2)


def channels_of(caller: str, name: str, values: Any) -> np.ndarray:
    """Return an image or a filter as (c, h, w); at most three channels can be drawn."""
    array = host(caller, name, values, 2, 3)
    array = array if array.ndim == 3 else array[None]
    if array.shape[0] > 3:
        raise ShapeError(f"{caller}: {name} must have at most 3 channels, got {array.shape[0]}")
    return array


def product(a: str, b: str) -> str:
    """Return the product of two numbers in words, with negative ones in brackets."""
    return "·".join(f"({one})" if one.startswith("-") else one for one in (a, b))


def unit_of(gradient: np.ndarray) -> tuple[np.ndarray, str]:
    """Return a gradient in a unit in which its numbers can be read, and the words that say so.

    All that is drawn of a backward pass is proportional to the gradient it begins with.
    """
    most = float(np.max(np.abs(gradient), initial=0.0, where=np.isfinite(gradient)))
    if not most or 1e-2 <= most < 1e4:
        return gradient, ""
    unit = 10.0 ** np.floor(np.log10(most))
    return gradient / unit, f", in {number(unit)}"


def size_formula(height: int, filter: int, padding: int, stride: int) -> str:
    """Return the formula of the output size in numbers."""
    return f"({height} - {filter} + 2·{padding}) / {stride} + 1 = {(height - filter + 2 * padding) // stride + 1}"


def winners_of(caller: str, x: np.ndarray, size: int, stride: int | None) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return the maxima of windows, the (row, column) in x of each, the size and the stride."""
    size = _check.integer(caller, "size", size)
    stride = size if stride is None else _check.integer(caller, "stride", stride)
    if min(x.shape) < size:
        raise ShapeError(f"{caller}: size must be at most that of x {x.shape}, got {size}")
    windows = sliding_window_view(x, (size, size))[::stride, ::stride]
    flat = windows.reshape(*windows.shape[:2], -1)
    first = flat.argmax(-1)
    rows, columns = np.indices(first.shape) * stride
    at = np.stack([rows + first // size, columns + first % size], -1)
    return flat.max(-1), at, size, stride


def frame_windows(
    canvas: Canvas, x: float, y: float, cell: float, shape: tuple[int, int], size: int, stride: int
) -> None:
    """Draw the borders of windows that do not overlap."""
    if stride < size:
        return
    for i in range(shape[0]):
        for j in range(shape[1]):
            box = (x + j * stride * cell, y + i * stride * cell, size * cell, size * cell)
            canvas.box(*box, line=1.6 if cell > 0.1 else 0.7, layer=2, edge=GREY)


def arrow_to(canvas: Canvas, x: float, y: float, words: str) -> float:
    """Draw an arrow with words above it to the right of a matrix, and return where the next matrix begins."""
    width = 0.5
    for k, line in enumerate(reversed(words.split("\n"))):
        width = max(width, canvas.text(x + 0.12, y - 0.13 - 0.15 * k, line, 8))
    canvas.arrow([(x + 0.12, y), (x + 0.12 + width, y)])
    return x + width + 0.26


def names_of(caller: str, classes: Sequence[str] | None, count: int) -> list[str]:
    names = [f"class {k}" for k in range(count)] if classes is None else [str(one) for one in classes]
    if len(names) != count:
        raise UsageError(f"{caller}: classes must be {count} names, one per score, got {len(names)}")
    return names


def soft(caller: str, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return exp(z - max z), and the probabilities."""
    if not np.isfinite(scores).all():
        raise UsageError(f"{caller}: scores must be finite, got {scores[~np.isfinite(scores)][0]}")
    powers = np.exp(scores - scores.max())
    return powers, powers / powers.sum()


def truth_of(caller: str, truth: Any, count: int) -> int:
    return _check.integer(caller, "truth", truth, 0, count - 1)


def largest(values: np.ndarray, also: int | None = None) -> np.ndarray:
    """Return the indices of the largest magnitudes, in order of the index, and of `also`."""
    largest = np.argsort(-np.abs(values), kind="stable")[:ROWS].tolist()
    if also is not None and also not in largest:
        largest[-1] = also
    return np.sort(largest)


class Table:
    """Rows of classes with columns of numbers and a bar."""

    def __init__(self, canvas: Canvas, names: Sequence[str], columns: Sequence[str], most: float = 2.4) -> None:
        self.canvas, self.y = canvas, 0.0
        widths = [min(most, width_of(printable(name), 9)) for name in names]
        self.most, self.start = most, max(widths) + 0.7
        self.columns = columns
        self.bars = self.start + 0.85 * (len(columns) - 1) + 0.25
        for k, column in enumerate(columns):
            canvas.text(self.start + 0.85 * k, 0, column, 8, "right")

    def row(self, name: str, numbers: Sequence[float], share: float, colour: str, bold: bool, zero: float = 0) -> None:
        """Draw a row with a bar of a length of `share` that begins at `zero`, both as shares of the width for bars."""
        self.y += 0.24
        self.canvas.text(0, self.y, name, 9, most=self.most, bold=bold)
        for k, value in enumerate(numbers):
            self.canvas.text(self.start + 0.85 * k, self.y, number(value), 9, "right", bold=bold)
        wide = 2.2
        start = self.bars + wide * (zero + min(share, 0))
        self.canvas.box(start, self.y - 0.08, wide * abs(share), 0.16, colour, None)
        self.canvas.reach(self.bars + wide, self.y)
