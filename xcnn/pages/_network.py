"""The network of a run on a page: its first filters, a drawing, its layers, and what they give."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn import explain, nn, plots
from xcnn.data import Dataset
from xcnn.devices import to_numpy
from xcnn.errors import XcnnError
from xcnn.nn import Module
from xcnn.pages._html import Content, Html, code, element, figure, folded, note, table
from xcnn.pages._layers import shape_text, size_text, statistics_table
from xcnn.pages._pictures import SIGNED, coloured, largest, sheet

__all__ = ["filters", "layers"]

_FILTERS = 64
"""Filters that are shown; if each has many channels, a quarter of them."""

_STATISTICS = 1000
"""Test images from which the statistics of layers are computed, spread evenly, as they may be sorted by class."""

_COLOURED = (
    "The three channels of a filter lie over the red, the green and the blue of the image, and are shown as one "
    "colour: grey is zero in all three, and a colour means that the filter looks for it."
)
_LAYOUT = "Each row of the picture is one filter, and each column one of its channels."


def filters(model: Module, first: Module | None, origin: str, unknown: str) -> Content:
    """Return the filters of the first convolution before and after training.

    Parameters
    ----------
    model : the trained network.
    first : the network before its first step, or None.
    origin : where its weights came from.
    unknown : why there is none.
    """
    try:
        after = explain.filters(model)
    except XcnnError as error:
        return note(f"There are no filters to show: {str(error).partition(': ')[2] or error}.")
    weights = to_numpy(after.weight)
    if weights.ndim != 4:
        return note("The filters of this network are not pictures.")
    n, c, h, w = weights.shape
    slot = None if first is None else dict(first.named_parameters()).get(f"{after.name}.weight")
    before = None if slot is None else to_numpy(slot.data)
    most = max(largest(weights), 0.0 if before is None else largest(before))
    parts: list[Any] = []
    if before is not None:
        parts.append(figure(_filters(before, most, "before training"), f"Before training, {origin}.", class_="sheet"))
    parts.append(figure(_filters(weights, most, "after training"), "After training.", class_="sheet"))
    moved = ""
    if before is not None:
        change = _change([(before, weights)])
        moved = f" Their change is {change} of their size before (both are roots of sums of squares)." if change else ""
    most_filters, most_channels = (_FILTERS, c) if c in (1, 3) else (_FILTERS // 4, _FILTERS // 4)
    shown = f" The first {most_filters} are shown." * (n > most_filters)
    shown += f" Their first {most_channels} channels are shown." * (c > most_channels)
    lead = element(
        "p",
        f"The layer {after.name} has {n} filter{'s' * (n != 1)} of {w} x {h} pixels"
        + (f" and {c} channels" if c > 1 else "")
        + ", small patterns that it looks for everywhere in the image. ",
        ["Numbers above zero are red, below it blue: ", SIGNED, " "] if c != 3 else None,
        f"All have the same scale.{shown}{moved}",
    )
    layout = element("p", _COLOURED if c == 3 else _LAYOUT) if c > 1 else None
    missing = None
    if before is None:
        reason = unknown or "their layer has another name in the file"
        missing = note(f"The filters before training are not shown: {reason}.")
    return [lead, layout, missing, element("div", parts, class_="row pair")]


def _filters(weights: np.ndarray, most: float, when: str) -> Html:
    """Return a picture of filters (n, c, h, w)."""
    c, h, w = weights.shape[1:]
    alt = f"filters of {w} x {h} {when}"
    if c == 3:
        return coloured(weights[:_FILTERS], alt, most)
    if c == 1:
        return sheet(weights[:_FILTERS, 0], alt, cell=64, most=most)
    some = weights[: _FILTERS // 4, : _FILTERS // 4]
    return sheet(some.reshape(-1, h, w), alt, columns=some.shape[1], cell=32, most=most)


def layers(model: Module, first: Module | None, shape: tuple[int, ...], data: Dataset | None) -> Content:
    """Return the layers with their sizes, how far their weights moved, and the statistics of their outputs.

    Parameters
    ----------
    model, first : as in `filters`.
    shape : the shape of an image.
    data : test images for the statistics, if there are any.
    """
    summary = nn.summary(model, shape)
    fields = explain.receptive_fields(model, shape)
    moved = {} if first is None else _moved(model, first)
    rows: list[tuple[Any, ...]] = []
    for row in summary.rows:
        field = fields.get(row.name)
        rows.append(
            (
                code(row.name),
                row.layer,
                shape_text(row.shape[1:]),
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
                "" if field is None else size_text(field),
                moved.get(row.name, ""),
            )
        )
    total = summary.total
    rows.append(
        ("in all", "", shape_text(total.shape[1:]), f"{total.parameters:,}", f"{total.multiply_adds:,}", "", "")
    )
    head = ("layer", "kind", "output", "parameters", "multiply-adds", "receptive field", "weights moved by")
    said = (
        "The layers in the order in which they compute. All sizes are width x height. The receptive field is the part "
        "of the image, in pixels, on which one number of the output can depend."
    )
    change = (
        " How far the weights moved is the size of their change, as a share of their size before training (both are "
        "roots of sums of squares)."
        if moved
        else ""
    )
    parts: list[Any] = [
        _drawing(model, shape),
        element("p", said + change),
        folded(table("The layers", head, rows, numbers=(3, 4, 5, 6), class_="wide"), len(summary.rows), "layers"),
        element("h3", "What the layers give"),
    ]
    parts.append(note("Not shown, as there are no test images.") if data is None else _statistics(model, data))
    return parts


def _drawing(model: Module, shape: tuple[int, ...]) -> Content:
    """Return a drawing of the network, in a box of its own if it is wide."""
    try:
        drawn = Html(plots.svg(plots.network, model, shape))
    except XcnnError as error:
        return note(f"The network is not drawn: {error}.")
    return element("div", drawn, class_="drawing", tabindex="0", role="group", aria_label="drawing of the network")


def _moved(model: Module, first: Module) -> dict[str, str]:
    """Return by layer how far its weights moved, relative to their length at the start."""
    before, pairs = dict(first.named_parameters()), dict[str, list[tuple[np.ndarray, np.ndarray]]]()
    for key, slot in model.named_parameters():
        if key in before:
            pairs.setdefault(key.rpartition(".")[0], []).append((to_numpy(before[key].data), to_numpy(slot.data)))
    return {key: _change(both) for key, both in pairs.items()}


def _change(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Return how far arrays moved, relative to their length before, or "" if that is 0 or not finite."""
    old, new = (np.concatenate([np.ravel(one).astype(np.float64) for one in side]) for side in zip(*pairs, strict=True))
    length, change = float(np.linalg.norm(old)), float(np.linalg.norm(new - old))
    return f"{change / length:.0%}" if length > 0 and np.isfinite(change) else ""


def _statistics(model: Module, data: Dataset) -> Content:
    some = data[np.linspace(0, len(data) - 1, min(len(data), _STATISTICS)).astype(int)]
    rows = explain.activation_statistics(model, some)
    dead = [row for row in rows if row.dead]
    said = (
        f"Over {len(some):,} test images. A unit, which is a map or a number, of a ReLU is dead if it was zero "
        "in all of them: no gradient passes it, so it learns nothing from them. A sigmoid or tanh is saturated where "
        "it is close to its bounds, where gradients vanish."
    )
    found = " No unit is dead."
    if dead:
        count = sum(row.dead or 0 for row in dead)
        found = f" {count} unit{'s are' if count > 1 else ' is'} dead, in {len(dead)} layer{'s' * (len(dead) > 1)}."
    return [element("p", said + found), folded(statistics_table(rows, units=True), len(rows), "layers")]
