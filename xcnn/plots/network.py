"""A drawing of a network: its layers with their shapes, parameters and receptive fields, and how they are connected.

The layout is simple on purpose. A block is a frame; inside it, a layer stands below those that it takes its input from,
and beside those that it does not depend on. A connection that would cross a layer goes around, at the right.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import _check
from xcnn.devices import like
from xcnn.errors import UsageError, explained
from xcnn.explain import Call, Trace, receptive_fields, trace
from xcnn.nn import Module
from xcnn.plots._canvas import DARK, GREY, Canvas
from xcnn.plots._graph import Box, Edges, Frame, Part, arranged, arrays, called
from xcnn.plots._layout import DOWN, LANE, heading, hit, measure, place, wrap

__all__ = ["network"]

_FACES = {
    "conv": "#cfe2f3",
    "pool": "#d5ead0",
    "linear": "#fbe3c4",
    "join": "#e6e6e6",
    "block": "#e4dcf1",
    "": "#f7f7f7",
}


@explained
def network(model: Module, shape: Sequence[int], path: str | Path, depth: int | None = None, title: str = "") -> Path:
    """Draw a network: a box for each layer, with the shape of its output, its parameters and its receptive field.

    Norms and activations are drawn with the layer before them, and blocks that are repeated once.

    Parameters
    ----------
    model : the network, on any device; it runs twice, on zeros.
    shape : of one input (c, h, w).
    depth : how many levels of blocks inside blocks are drawn; deeper ones are one box. By default as many as keep the
        drawing readable.
    """
    if not isinstance(model, Module):
        raise UsageError(f"network: model must be a module, got {type(model).__name__}")
    if depth is not None:
        _check.integer("network", "depth", depth)
    shape = tuple(_check.integer("network", "shape", size) for size in shape)
    canvas = Canvas(5.0)  # without Matplotlib, this raises the error that says so
    host, first = np.zeros((1, *shape), np.float32), next(iter(model.parameters()), None)
    found = trace(model, host if first is None else like(host, first.data))
    fields = receptive_fields(model, shape) if len(shape) > 1 else {}
    root, edges = arranged(found, depth)
    _write(root, fields, {})
    measure(root, edges)
    place(root, 0.0, 0.0)
    bends = wrap(root, edges)
    _start(canvas, root, shape, found, edges)
    _draw(canvas, root, outer=True)
    _connect(canvas, root, edges, bends)
    count = sum(math.prod(slot.data.shape) for slot in model.parameters())
    larger = any(size > side for field in fields.values() for size, side in zip(field.size, shape[1:], strict=True))
    return canvas.save("network", path, title or "The network", _caption(root, found, count, bool(fields), larger))


def _caption(root: Frame, found: Trace, count: int, fields: bool, larger: bool) -> str:
    boxes = list(root.boxes())
    caption = (
        "Each box is a layer, with the shape of what it makes (channels x height x width) and its parameters, the "
    )
    caption += "numbers that it learns"
    caption += '; "sees" is the part of the image that one of its numbers depends on' if fields else ""
    caption += ", all of it if it is larger than the image. " if larger else ". "
    if any(_repeated(root)):
        caption += "Frames with × are blocks that come several times, one after the other. "
    if any(box.inside for box in boxes):
        caption += "Purple boxes are blocks of several layers, whose inside is not drawn. "
    return caption + f"In all, {len(found.layers):,} layers with {count:,} parameters."


def _repeated(part: Part) -> Iterator[bool]:
    yield part.times > 1
    if isinstance(part, Frame):
        for one in part.inner:
            yield from _repeated(one)


def _write(part: Part, fields: Mapping[str, Any], seen: dict[int, bool]) -> None:
    if isinstance(part, Frame):
        for one in part.inner:
            _write(one, fields, seen)
        return
    names = [called(call) for call in part.calls]
    if part.inside:
        main = [name for call, name in zip(part.calls, names, strict=True) if _face(call) in ("conv", "pool", "linear")]
        named = main if 0 < len(main) <= 3 else []
        part.lines = [f"block of {part.inside:,} layers", *(named or [])]
    else:
        part.lines = [names[0]]
        if len(names) > 1:
            part.lines.append("+ " + " + ".join(names[1:]))
    end = part.calls[-1]
    facts = ["x".join(f"{int(n)}" for n in y.shape[1:]) or "1" for y in arrays(end.y)]
    slots = {id(slot): math.prod(slot.data.shape) for call in part.calls for slot in call.module.parameters()}
    count = sum(size for one, size in slots.items() if one not in seen)
    seen.update(dict.fromkeys(slots, True))
    if count:
        facts.append(f"{count:,} parameters")
    elif slots:
        facts.append("parameters shared")
    seen_field = fields.get(end.name)
    if seen_field is not None and seen_field.jump is not None:
        facts.append("sees " + "x".join(f"{size:g}" for size in seen_field.size))
    part.lines.append(" · ".join(facts))


def _face(call: Call) -> str:
    name = type(call.module).__name__
    if "Conv" in name:
        return "conv"
    if "Pool" in name:
        return "pool"
    if name == "Linear":
        return "linear"
    return "join" if isinstance(call.x, tuple | list) else ""


def _start(canvas: Canvas, root: Frame, shape: Sequence[int], found: Trace, edges: Edges) -> None:
    """Write the input above the layers that take it."""
    takers = [box for source, box in edges if source is None]
    if takers:
        words = f"input {'x'.join(map(str, shape))}"
        canvas.text(takers[0].middle, -DOWN - 0.1, words, 8.5, "center", bold=True)


def _draw(canvas: Canvas, part: Part, outer: bool = False) -> None:
    if isinstance(part, Frame):
        if not outer:
            canvas.box(part.x, part.y, part.width, part.height, edge=GREY, line=0.8, dashed=True)
            canvas.text(part.x + 0.07, part.y + 0.11, heading(part), 7.5, bold=part.times > 1)
        for one in part.inner:
            _draw(canvas, one)
        return
    kinds = [_face(call) for call in part.calls]
    face = _FACES["block" if part.inside else kinds[0]]
    canvas.box(part.x, part.y, part.width, part.height, face, GREY, layer=2)
    for k, line in enumerate(part.lines):
        size = 8.5 if k == 0 else 7.5
        canvas.text(part.x + 0.08, part.y + 0.13 + 0.16 * k, line, size, colour=DARK, bold=k == 0)
    canvas.text(part.x + part.width - 0.06, part.y + 0.13, part.name, 7, "right", colour="#555555")


def _connect(canvas: Canvas, root: Frame, edges: Edges, bends: Mapping[int, float]) -> None:
    """Draw the connections: straight down where nothing is between, otherwise around at the right."""
    boxes = list(root.boxes())
    lanes: list[tuple[float, float, float]] = []
    for a, b in sorted(edges, key=lambda edge: 0.0 if edge[0] is None else edge[1].y - edge[0].y):
        if a is None:
            _from_input(canvas, b, boxes)
            continue
        bottom = a.y + a.height
        if a.column != b.column:
            x = bends[b.column]
            way = [(a.middle, bottom), (a.middle, bottom + 0.2), (x, bottom + 0.2), (x, -0.2)]
            if not hit(boxes, b.middle, b.middle, -0.2, b.y - 0.01):
                canvas.arrow([*way, (b.middle, -0.2), (b.middle, b.y)])
                continue
            lane = _lane(boxes, b, -0.2, b.y + 0.3 * b.height, lanes)
            canvas.arrow([*way, (lane, -0.2), *_into(boxes, b, lane)])
            continue
        turn = b.y - 0.15
        free = not hit(boxes, a.middle, a.middle, bottom + 0.01, turn) and not hit(
            boxes, min(a.middle, b.middle), max(a.middle, b.middle), turn, b.y - 0.01
        )
        if free and b.y > bottom:
            straight = abs(a.middle - b.middle) < 0.02
            way = (
                [(a.middle, bottom), (a.middle, b.y)]
                if straight
                else [(a.middle, bottom), (a.middle, turn), (b.middle, turn), (b.middle, b.y)]
            )
            canvas.arrow(way)
            continue
        _around(canvas, a, b, boxes, lanes)


def _from_input(canvas: Canvas, b: Box, boxes: Sequence[Box]) -> None:
    if not hit(boxes, b.middle, b.middle, -DOWN, b.y - 0.01):
        canvas.arrow([(b.middle, -DOWN), (b.middle, b.y)])
        return
    _around(canvas, Box("", [], x=b.middle, y=-DOWN - 0.1, height=0.1, column=b.column), b, boxes, [])


def _around(canvas: Canvas, a: Box, b: Box, boxes: Sequence[Box], lanes: list[tuple[float, float, float]]) -> None:
    """Draw a connection that goes around what is between, on a lane of its own."""
    start = a.y + 0.7 * a.height
    lane = max(_lane(boxes, b, start, b.y + 0.3 * b.height, lanes), a.x + a.width + 0.13)
    way = [(a.x + a.width, start), (lane, start)]
    if hit([box for box in boxes if box is not a], a.x + a.width, lane, start, start):
        low = a.y + a.height + 0.1
        way = [(a.middle, a.y + a.height), (a.middle, low), (lane, low)]
    canvas.arrow([*way, *_into(boxes, b, lane)])


def _lane(boxes: Sequence[Box], b: Box, start: float, end: float, lanes: list[tuple[float, float, float]]) -> float:
    """Return where a connection to b can go down, at the right of all that is beside it, and away from others."""
    column = [box for box in boxes if box.y < end and box.y + box.height > start and box.column == b.column]
    lane = max(box.x + box.width for box in [*column, b]) + 0.13
    while any(abs(lane - x) < LANE - 0.01 and low <= end and start <= high for x, low, high in lanes):
        lane += LANE
    lanes.append((lane, start, end))
    return lane


def _into(boxes: Sequence[Box], b: Box, lane: float) -> list[tuple[float, float]]:
    """Return the end of a connection that comes to b from a lane at the right."""
    end = b.y + 0.3 * b.height
    if hit([box for box in boxes if box is not b], b.x + b.width, lane, end, end):
        high = b.y - 0.12
        return [(lane, high), (b.middle, high), (b.middle, b.y)]
    return [(lane, end), (b.x + b.width, end)]
