"""The layers of a network on a page: their maps for one image, and their numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from xcnn._array import is_array
from xcnn.devices import to_numpy
from xcnn.explain import Call, Field, LayerStatistics, Trace
from xcnn.pages._html import Content, Html, code, element, figure, table
from xcnn.pages._pictures import SIGNED, largest, sheet
from xcnn.pages._words import about_layer

__all__ = ["layers_shown", "shape_text", "size_text", "statistics_table"]

_MOST_MAPS = 64
"""Maps that are shown of a layer, if there is room."""

_PIXELS = 1_200_000
"""Pixels of all maps on a page for one image, which make most of its size."""

_SIDE = 56
"""Height and width of the largest maps that are shown as they are."""

_NUMBERS = 1024
"""Numbers that are shown of a layer without maps."""


def layers_shown(found: Trace, fields: Mapping[str, Field], sizes: tuple[int, ...]) -> Content:
    """Return the maps of every layer for one image, in their order, and at the first of a kind what it does."""
    calls = [call for call in found.layers if is_array(call.y)]
    room = _PIXELS // max(1, len(calls))
    figures, told = [], set[str]()
    for call in calls:
        about = about_layer(call.module)
        words = [] if about in told else [about]
        if call.y is found.y:
            words.append("These are the answer: one number for each class, in the order of the classes.")
        figures.append(_layer(call, " ".join(words), fields.get(call.name), sizes, room))
        told.add(about)
    said = [
        "The layers in the order in which the network computes them, each with its kind and its name. A map is a "
        "picture of numbers: ",
        SIGNED,
        " white is zero, red is above it and blue below; the farther from zero, the stronger, and the strongest colour "
        "is the largest number of the layer. The receptive field is the part of the image that one number of a layer "
        "can depend on, here the one in the middle; it grows from layer to layer. All sizes are width x height.",
    ]
    return [element("p", said), element("div", figures, class_="layers")]


def _layer(call: Call, about: str, field: Field | None, sizes: tuple[int, ...], room: int) -> Html:
    values = to_numpy(call.y)[0].astype(np.float64)
    kind = type(call.module).__name__
    facts = [f"{shape_text(values.shape)}. "]
    if values.ndim == 3:
        n, h, w = values.shape
        side = min(h, w, _SIDE)
        count = min(n, _MOST_MAPS, max(4, room // (side * side)))
        maps = sheet(values[:count], f"{count} maps of the layer {call.name}, {kind}", most=largest(values), side=_SIDE)
        facts.append(f"The first {count} maps are shown. " if count < n else "")
    else:
        row = values.reshape(-1)
        count = min(len(row), _NUMBERS)
        columns = min(count, 32)
        cells = np.zeros((-(-count // columns)) * columns)
        cells[:count] = row[:count]
        alt = f"the numbers of the layer {call.name}, {kind}, as coloured squares"
        maps = sheet(
            cells.reshape(1, -1, columns), alt, columns=1, cell=352 * columns // 32, most=largest(row), side=_SIDE
        )
        facts.append(f"The first {count} numbers are shown. " if count < len(row) else "")
    return figure(
        [element("h3", f"{kind} ", code(call.name)), maps],
        element("p", about) if about else None,
        element("p", facts, class_="faint"),
        None if field is None else element("p", _field(field, sizes), class_="field"),
    )


def _field(field: Field, sizes: tuple[int, ...]) -> list[Html]:
    """Return the receptive field of the number in the middle of a layer: a sketch, and its size in words."""
    height, width = sizes
    rows, columns = field.window(tuple(size // 2 for size in field.shape[1:]) if len(field.shape) > 1 else (0,))
    whole = (rows.start, rows.stop, columns.start, columns.stop) == (0, height, 0, width)
    scale = 40 / max(height, width)
    outer, inner = (
        element(
            "rect",
            x=f"{scale * left:.2f}",
            y=f"{scale * top:.2f}",
            width=f"{scale * across:.2f}",
            height=f"{scale * down:.2f}",
            class_=kind,
        )
        for kind, top, left, down, across in (
            ("image", 0, 0, height, width),
            ("seen", rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start),
        )
    )
    sketch = element("svg", outer, inner, viewBox="-1 -1 42 42", width=42, height=42, aria_hidden="true")
    return [
        sketch,
        element("span", "Receptive field: ", "the whole image." if whole else f"{size_text(field)} pixels."),
    ]


def size_text(field: Field) -> str:
    """Return the size of a receptive field, width x height."""
    return " x ".join(f"{size:g}" for size in reversed(field.size))


def shape_text(shape: tuple[int, ...]) -> str:
    """Return the shape of an output of one example in words.

    >>> shape_text((6, 20, 28)), shape_text((1, 5, 5)), shape_text((120,)), shape_text((6, 20))
    ('6 maps of 28 x 20', '1 map of 5 x 5', '120 numbers', '6 rows of 20 numbers')
    """
    if len(shape) < 2:
        count = shape[0] if shape else 1
        return f"{count:,} number{'s' * (count != 1)}"
    several = "s" * (shape[0] != 1)
    if len(shape) == 2:  # signals, or the parts of an image that attention works on
        return f"{shape[0]:,} row{several} of {shape[1]:,} numbers"
    return f"{shape[0]:,} map{several} of {' x '.join(str(size) for size in reversed(shape[1:]))}"


def statistics_table(rows: Sequence[LayerStatistics], units: bool) -> Html:
    """Return statistics of the output of every layer as a table; if `units`, with its dead and saturated units."""
    saturated = units and any(row.saturated is not None for row in rows)
    head = ["layer", "kind", "output", "mean", "deviation", "least", "largest", "zeros"]
    head += ["dead"] * units + ["saturated"] * saturated
    cells = []
    for row in rows:
        numbers = (row.mean, row.std, row.minimum, row.maximum)
        cell = [code(row.name), row.layer, shape_text(row.shape), *(f"{number:.3g}" for number in numbers)]
        cell.append(f"{row.zeros:.0%}")
        cell += ["" if row.dead is None else f"{row.dead} of {row.units}"] * units
        cell += ["" if row.saturated is None else f"{row.saturated:.0%}"] * saturated
        cells.append(cell)
    return table("The output of each layer", head, cells, numbers=range(3, len(head)), class_="wide")
