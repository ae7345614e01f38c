"""A canvas in inches for pictures that are no charts: images, grids of numbers, boxes and arrows, with a caption."""

import functools
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcnn._array import is_array
from xcnn.devices import to_numpy
from xcnn.errors import ShapeError, UsageError, printable
from xcnn.plots._figure import COLOURS, INK, figure, literal, save

__all__ = [
    "DARK", "GREY", "MARK", "Canvas", "fitted", "grey", "host", "number", "numbers", "pixels", "signed", "warm",
    "width_of", "wrapped",
]  # fmt: skip

DARK = COLOURS[7]
"""The colour of numbers on light cells, also where the ink is light."""

GREY = "#787878"
"""Of lines and words that matter less; with a contrast of more than 4 on white and on black pages."""

MARK = "#d64f00"
"""Of a window, a winner, the place that a picture is about."""

_BROKEN = np.asarray((170, 51, 119, 255), np.uint8)
"""The colour of numbers that are not finite."""

_MARGIN = 0.15
_LINE = 1.35
"""The distance of lines of text, in heights of the text."""

_CAPTION = 8.0
"""The widest lines of a caption."""

_READABLE = 30
"""Above this number of columns or rows, the cells of a grid are too small for lines between them."""


def host(caller: str, name: str, values: Any, *ndims: int) -> np.ndarray:
    """Return an array of any library in float64 on the host, after a check of its number of axes."""
    try:
        array = np.asarray(to_numpy(values) if is_array(values) else values)
    except ValueError:  # rows of different lengths
        array = np.asarray(values, object)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{caller}: {name} must be an array of numbers, got {array.dtype}")
    if array.ndim not in ndims:
        wanted = " or ".join(map(str, ndims))
        raise ShapeError(f"{caller}: {name} must have {wanted} axes, got the shape {array.shape}")
    if not array.size:
        raise ShapeError(f"{caller}: {name} must have at least one element, got the shape {array.shape}")
    return array.astype(np.float64)


def number(value: float) -> str:
    """Return a number with three digits.

    >>> number(-3.0), number(0.12345), number(-0.0), number(1.2e-5)
    ('-3', '0.123', '0', '1.2e-5')
    """
    text = re.sub(r"e([+-])0*", lambda found: "e" + found[1].replace("+", ""), f"{value:.3g}")
    return {"-0": "0"}.get(text, text)


def numbers(values: np.ndarray) -> list[str]:
    """Return numbers as the cells of one grid show them: with the same decimals, without zeros at their ends.

    >>> numbers(np.asarray([[0.938, -2.0], [0.0, 0.67]]))
    ['0.938', '-2', '0', '0.67']
    >>> numbers(np.asarray([[0.0938, 0.0001, 123.0]]))
    ['0.1', '0', '123']
    """
    most = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    if not 1e-3 <= most < 1e5:
        return [number(value) for value in values.ravel()]
    fine = 3 if values.shape[1] <= 3 else 2  # narrow grids have less to read
    decimals = max(0, fine - max(0, int(np.floor(np.log10(most)))) + (most < 0.1) + (most < 0.01))
    texts = [f"{value:.{decimals}f}" for value in values.ravel()]
    texts = [text.rstrip("0").rstrip(".") if "." in text else text for text in texts]
    return [{"-0": "0"}.get(text, text) for text in texts]


def grey(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Return (h, w, 4) colours of a map from black to white; a constant map is grey."""
    return _mapped("gray", values, low, high)


def warm(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Return (h, w, 4) colours of a map from dark to light, for magnitudes such as how often or how strongly."""
    return _mapped("viridis", values, low, high)


def signed(values: np.ndarray, most: float | None = None) -> np.ndarray:
    """Return (h, w, 4) colours of a map with a sign: white is zero, red positive, blue negative.

    `most` is the magnitude of the strongest colours; by default the largest in the map.
    """
    if most is None:
        most = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    return _mapped("RdBu_r", values, -most, most)


def _mapped(colours: str, values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    import matplotlib

    finite = np.isfinite(values)
    low = float(np.min(values, initial=np.inf, where=finite)) if low is None else low
    high = float(np.max(values, initial=-np.inf, where=finite)) if high is None else high
    share = np.full(values.shape, 0.5)
    if low < high:
        np.divide(values - low, high - low, out=share, where=finite)
    made = np.asarray(matplotlib.colormaps[colours](np.clip(share, 0, 1), bytes=True))
    made[~finite] = _BROKEN
    return made


def pixels(image: np.ndarray) -> np.ndarray:
    """Return (h, w, 4) colours of an image (c, h, w); channels that are no colours, other than 1 or 3, become one.

    An image from 0 to 1 is shown as it is; of any other, the range from its smallest to its largest number.
    """
    image = image if len(image) in (1, 3) else np.mean(image, 0, keepdims=True)
    finite = np.isfinite(image)
    low = float(np.min(image, initial=np.inf, where=finite))
    high = float(np.max(image, initial=-np.inf, where=finite))
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    if len(image) == 1:
        return grey(image[0], low, high)
    scaled = np.where(finite, image - low, 0) / (high - low if high > low else 1)
    made = np.full((*image.shape[1:], 4), 255, np.uint8)
    made[..., :3] = np.clip(np.round(255 * np.moveaxis(scaled, 0, -1)), 0, 255)
    made[~finite.all(axis=0)] = _BROKEN
    return made


@functools.lru_cache(4096)
def width_of(text: str, size: float, bold: bool = False) -> float:
    """Return the width of a line of text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        width: float = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return 1.03 * width / 72  # at low resolutions, letters are wider


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Return text in lines of at most `width` inches; a longer word is broken."""
    lines, line = [], ""
    for word in printable(text).split():
        while width_of(word, size) > width and len(word) > 1:
            fits = max(1, int(len(word) * width / width_of(word, size)))
            lines += [line] if line else []
            lines, line, word = [*lines, word[:fits]], "", word[fits:]
        longer = f"{line} {word}".strip()
        if line and width_of(longer, size) > width:
            lines, line = [*lines, line], word
        else:
            line = longer
    return [*lines, line] if line else lines


def fitted(text: str, width: float, size: float, bold: bool = False) -> str:
    """Return text that is at most `width` inches wide, with an ellipsis in the place of what is left out."""
    text = printable(text)
    if width_of(text, size, bold) <= width:
        return text
    fits, longer = 1, len(text)  # how many letters fit, and how many do not
    while longer - fits > 1:
        half = (fits + longer) // 2
        fits, longer = (half, longer) if width_of(text[:half] + "…", size, bold) <= width else (fits, half)
    return text[:fits].rstrip() + "…"


class Canvas:
    """A picture that grows with what is drawn on it; positions are in inches, to the right and downwards.

    Attributes
    ----------
    right, bottom, top : the furthest places that something was drawn at.
    """

    def __init__(self, width: float = 4.5) -> None:
        self.figure = figure(1, 1, None)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.right, self.bottom, self.top = width, 0.0, 0.0
        self.broken = False

    def reach(self, x: float, y: float) -> None:
        """Make room as far as a place."""
        self.right, self.bottom, self.top = max(self.right, x), max(self.bottom, y), min(self.top, y)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 9,
        ha: str = "left",
        va: str = "center",
        colour: str = INK,
        bold: bool = False,
        most: float | None = None,
        layer: float = 3,
    ) -> float:
        """Draw one line of text and return its width; one that is wider than `most` inches is shortened."""
        words = printable(words) if most is None else fitted(words, most, size, bold)
        width = width_of(words, size, bold)
        weight = "bold" if bold else "normal"
        self.axes.text(x, y, literal(words), fontsize=size, ha=ha, va=va, color=colour, weight=weight, zorder=layer)
        right, height = x + {"left": width, "center": width / 2, "right": 0.0}[ha], 1.2 * size / 72
        upper = y - {"top": 0.0, "center": 0.5, "bottom": 1.0}[va] * height
        self.reach(right, upper)
        self.reach(right, upper + height)
        return width

    def lines(self, x: float, y: float, text: str, width: float, size: float = 9, colour: str = INK) -> float:
        """Draw text in lines of at most a width and return the place below them."""
        for line in wrapped(text, width, size):
            self.text(x, y, line, size, va="top", colour=colour)
            y += _LINE * size / 72
        return y

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        face: Any = None,
        edge: Any = INK,
        line: float = 0.8,
        dashed: bool = False,
        layer: float = 1,
    ) -> None:
        """Draw a rectangle."""
        from matplotlib.patches import Rectangle

        style = (0, (3, 2)) if dashed else "-"
        made = Rectangle((x, y), width, height, linewidth=line, linestyle=style, zorder=layer)
        made.set(facecolor=face or "none", edgecolor=edge or "none")
        self.axes.add_patch(made)
        self.reach(x + width, y + height)

    def line(self, points: Sequence[tuple[float, float]], colour: str = INK, line: float = 1, layer: float = 1) -> None:
        """Draw a line through points."""
        self.axes.plot(*zip(*points, strict=True), color=colour, linewidth=line, zorder=layer, solid_capstyle="round")
        self.reach(max(x for x, _ in points), max(y for _, y in points))

    def arrow(self, points: Sequence[tuple[float, float]], colour: str = INK, line: float = 1) -> None:
        """Draw a line through points that ends in a head."""
        self.line(points, colour, line)
        (x0, y0), (x1, y1) = points[-2:]
        angle, size = np.arctan2(y1 - y0, x1 - x0), 0.07
        ends = [(x1 - size * np.cos(angle + turn), y1 - size * np.sin(angle + turn)) for turn in (-0.45, 0.45)]
        self.axes.fill(*zip((x1, y1), *ends, strict=True), color=colour, linewidth=0)

    def image(self, x: float, y: float, width: float, height: float, colours: np.ndarray, layer: float = 0) -> None:
        """Draw (h, w, 4) colours, a sharp square for each pixel."""
        self.broken |= bool(np.any(np.all(colours == _BROKEN, axis=-1)))
        large = max(colours.shape[:2]) > 150 * max(width, height)  # more pixels than the picture has
        style = "antialiased" if large else "none"
        edges = (x, x + width, y + height, y)
        self.axes.imshow(colours, extent=edges, interpolation=style, aspect="auto", zorder=layer)
        self.reach(x + width, y + height)

    def grid(
        self,
        x: float,
        y: float,
        values: np.ndarray,
        cell: float,
        shade: Callable[[np.ndarray], np.ndarray] = signed,
        written: bool = True,
        known: np.ndarray | None = None,
    ) -> None:
        """Draw a matrix as cells, shaded and with their numbers.

        Parameters
        ----------
        written : whether to write the numbers.
        known : (h, w) booleans: which cells to fill; the others are empty.
        """
        h, w = values.shape
        known = np.ones((h, w), bool) if known is None else known
        colours = shade(values).copy()
        colours[~known, 3] = 0
        self.image(x, y, w * cell, h * cell, colours)
        if max(h, w) <= _READABLE:
            lines = [((x, y + i * cell), (x + w * cell, y + i * cell)) for i in range(h + 1)]
            lines += [((x + j * cell, y), (x + j * cell, y + h * cell)) for j in range(w + 1)]
            self._lines(lines, GREY, 0.5 if written else 0.25)
        self.box(x, y, w * cell, h * cell, edge=GREY)
        if not written:
            return
        dark = colours[..., :3] @ np.asarray((0.299, 0.587, 0.114)) < 128
        texts = np.asarray(numbers(values)).reshape(h, w)
        widest = max((width_of(text, 9) for text in texts[known]), default=0.01)
        size = min(9.0, 9.0 * 0.9 * cell / widest, 34 * cell)
        for i, j in np.argwhere(known):
            colour = "white" if dark[i, j] else DARK
            self.text(x + (j + 0.5) * cell, y + (i + 0.5) * cell, texts[i, j], size, "center", colour=colour)

    def _lines(self, pairs: Sequence[Any], colour: str, line: float) -> None:
        from matplotlib.collections import LineCollection

        self.axes.add_collection(LineCollection(pairs, colors=colour, linewidths=line, zorder=0.5))

    def save(self, name: str, path: str | Path, title: str, caption: str) -> Path:
        """Write the picture under a title and above a caption."""
        if self.broken:
            caption += " Purple: a number that is not finite."
        top = self.top - 0.1
        for line in reversed(wrapped(title, self.right, 11.5)):
            top -= _LINE * 11.5 / 72
            self.text(0, top, line, 11.5, va="top")
        self.lines(0, self.bottom + 0.14, caption, min(self.right, _CAPTION), 9)
        left, upper, right, lower = -_MARGIN, self.top - _MARGIN, self.right + _MARGIN, self.bottom + _MARGIN
        self.axes.set_xlim(left, right)
        self.axes.set_ylim(lower, upper)
        self.figure.set_size_inches(right - left, lower - upper)
        return save(name, self.figure, path, label=f"{title}. {caption}" if title else caption)
