"""A drawing of a network: its layers with their shapes, parameters and receptive fields, and how they are connected.

The layout is simple on purpose. A block is a frame; inside it, a layer stands below those that it takes its input from,
and beside those that it does not depend on. A connection that would cross a layer goes around, at the right.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import _check
from xcnn._array import is_array
from xcnn.devices import like
from xcnn.errors import UsageError, explained
from xcnn.explain import Call, Trace, receptive_fields, trace
from xcnn.nn import Module
from xcnn.nn._calls import calls
from xcnn.plots._canvas import DARK, GREY, Canvas

__all__ = ["network"]

_MOST = 60
"""The most boxes that are drawn unless a depth is asked for."""

_TALL = 11.0
"""The height of a column, in inches, if the network can be divided there."""

_LONG = 6
"""Above this number of parts, a block of the network that is a chain has no frame, so that columns can divide it."""

_DOWN = 0.3
"""Between two rows, with the arrow that connects them."""

_BESIDE = 0.22
_LANE = 0.1
_FOLLOWERS = ("xcnn.nn.activation", "xcnn.nn.norms", "xcnn.nn.dropout")
"""Where layers are defined that are drawn with the layer before them."""

_FACES = {
    "conv": "#cfe2f3",
    "pool": "#d5ead0",
    "linear": "#fbe3c4",
    "join": "#e6e6e6",
    "block": "#e4dcf1",
    "": "#f7f7f7",
}


@dataclass(eq=False)
class _Box:
    """A layer, with those that are drawn with it, or a block whose inside is not drawn.

    Attributes
    ----------
    calls : of its layers, in their order.
    name : dotted name of the layer or the block.
    inside : the number of layers of a block, 0 of a layer.
    lines : what is written in it.
    times : how often it is repeated.
    x, y, width, height, column : where it is drawn.
    """

    name: str
    calls: list[Call]
    inside: int = 0
    lines: list[str] = field(default_factory=list)
    times: int = 1
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    column: int = 0

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    def boxes(self) -> Iterator["_Box"]:
        yield self


@dataclass(eq=False)
class _Frame:
    """A block, or the network: what is in it, in the order of the forward pass.

    Attributes
    ----------
    rows : what is drawn beside each other, from top to bottom.
    """

    name: str
    kind: str
    inner: list["_Part"] = field(default_factory=list)
    times: int = 1
    rows: list[list["_Part"]] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0

    def boxes(self) -> Iterator[_Box]:
        for part in self.inner:
            yield from part.boxes()


_Part = _Box | _Frame


@explained
def network(model: Module, shape: Sequence[int], path: str | Path, depth: int | None = None, title: str = "") -> Path:
    """Draw a network: a box for each layer, with the shape of its output, its parameters and its receptive field.

    Norms and activations are drawn with the layer before them, and blocks that are repeated once.

    Parameters
    ----------
    model : the network, on any device; it runs once.
    shape : of one input (c, h, w).
    depth : how many levels of blocks inside blocks are drawn; deeper ones are one box. By default as many as keep the
        drawing readable.
    """
    if not isinstance(model, Module):
        raise UsageError(f"network: model must be a module, got {type(model).__name__}")
    if depth is not None:
        _check.integer("network", "depth", depth)
    shape = tuple(_check.integer("network", "shape", size) for size in shape)
    host, first = np.zeros((1, *shape), np.float32), next(iter(model.parameters()), None)
    found = trace(model, host if first is None else like(host, first.data))
    fields = receptive_fields(model, shape) if len(shape) > 1 else {}
    root, edges = _arranged(found, depth)
    _write(root, fields, {})
    _measure(root, edges)
    _place(root, 0.0, 0.0)
    bends = _wrap(root, edges)
    canvas = Canvas(5.0)
    _start(canvas, root, shape, found, edges)
    _draw(canvas, root, outer=True)
    _connect(canvas, root, edges, bends)
    count = sum(slot.data.size for slot in model.parameters())
    return canvas.save("network", path, title or "The network", _caption(root, found, count, bool(fields)))


def _caption(root: _Frame, found: Trace, count: int, fields: bool) -> str:
    boxes = list(root.boxes())
    caption = (
        "Each box is a layer, with the shape of what it makes (channels x height x width) and its parameters, the "
    )
    caption += "numbers that it learns"
    caption += '; "sees" is the part of the image that one of its numbers depends on. ' if fields else ". "
    if any(_repeated(root)):
        caption += "Frames with × are blocks that come several times, one after the other. "
    if any(box.inside for box in boxes):
        caption += "Purple boxes are blocks of several layers, whose inside is not drawn. "
    return caption + f"In all, {len(found.layers):,} layers with {count:,} parameters."


def _repeated(part: _Part) -> Iterator[bool]:
    yield part.times > 1
    if isinstance(part, _Frame):
        for one in part.inner:
            yield from _repeated(one)


# What is drawn.

_Edges = list[tuple[_Box | None, _Box]]
"""Connections; None stands for the input of the network."""


def _arranged(found: Trace, depth: int | None) -> tuple[_Frame, _Edges]:
    """Return the network as frames and boxes, and their connections."""
    sources = _sources(found)
    if depth is not None:
        return _at(found, sources, depth)
    containers = {call.name for call in found.calls if not call.leaf}
    deepest = 1 + max((len(_above(call.name, containers)) for call in found.layers), default=0)
    for levels in range(deepest, 0, -1):
        made = _at(found, sources, levels)
        if levels == 1 or sum(1 for _ in made[0].boxes()) <= _MOST:
            break
    return made


def _above(name: str, containers: set[str]) -> list[str]:
    """Return the names of the containers of a module inside the network, from outside to inside."""
    parts = name.split(".")
    return [above for above in (".".join(parts[:i]) for i in range(1, len(parts))) if above in containers]


def _sources(found: Trace) -> dict[int, list[int | None]]:
    """Return which calls of layers each call takes its input from, by index; None is the input of the network.

    An array may pass through a layer unchanged, as through dropout in inference: the last layer that gave it is the
    source, unless that is inside a block whose own output it is not.
    """
    containers = {call.name for call in found.calls if not call.leaf}
    outputs = {call.name: {id(y) for y in _arrays(call.y)} for call in found.calls if not call.leaf}
    made: dict[int, list[int]] = {}
    sources: dict[int, list[int | None]] = {}
    begin = {id(x) for x in _arrays(found.x)}
    last: int | None = None
    for k, call in enumerate(found.calls):
        if not call.leaf:
            continue
        mine = set(_above(call.name, containers))
        sources[k] = []
        for x in _arrays(call.x):
            source = next(
                (
                    p
                    for p in reversed(made.get(id(x), []))
                    if all(
                        id(x) in outputs[above]
                        for above in _above(found.calls[p].name, containers)
                        if above not in mine
                    )
                ),
                None,
            )
            if source is None and id(x) not in begin:
                source = last  # made by code of a block itself
            if source not in sources[k]:
                sources[k].append(source)
        for y in _arrays(call.y):
            made.setdefault(id(y), []).append(k)
        last = k
    return sources


def _arrays(value: Any) -> list[Any]:
    several = value if isinstance(value, tuple | list) else [value]
    return [one for one in several if is_array(one)]


def _at(found: Trace, sources: dict[int, list[int | None]], depth: int) -> tuple[_Frame, _Edges]:
    """Return frames, boxes and connections down to a depth."""
    containers = {call.name: type(call.module).__name__ for call in found.calls if not call.leaf}
    root = _Frame("", "")
    frames: dict[str, _Frame] = {"": root}
    of: dict[int, _Box] = {}
    blocks: dict[str, _Box] = {}
    users: dict[int | None, int] = {}
    for taken in sources.values():
        for source in taken:
            users[source] = users.get(source, 0) + 1
    for k in sources:
        call = found.calls[k]
        above = _above(call.name, set(containers))
        parent = root
        for name in above[: depth - 1]:
            if name not in frames:
                frames[name] = _Frame(name, containers[name])
                parent.inner.append(frames[name])
            parent = frames[name]
        if len(above) >= depth:
            name = above[depth - 1]
            if name not in blocks:
                blocks[name] = _Box(name, [])
                parent.inner.append(blocks[name])
            box = blocks[name]
            box.inside += 1
        else:
            before = sources[k][0] if len(sources[k]) == 1 else None
            box = of[before] if before is not None else _Box("", [])
            follows = type(call.module).__module__ in _FOLLOWERS and users[before] == 1
            if not (before is not None and follows and not box.inside and box in parent.inner):
                box = _Box(call.name, [])
                parent.inner.append(box)
        box.calls.append(call)
        of[k] = box
    for box in blocks.values():
        if all(type(call.module).__module__ in _FOLLOWERS for call in box.calls[1:]):
            box.inside = 0  # it would be one box with its inside drawn, too
    edges: _Edges = []
    for k, taken in sources.items():
        for source in taken:
            edge = (None if source is None else of[source], of[k])
            if edge[0] is not edge[1] and edge not in edges:
                edges.append(edge)
    root = _simple(root)
    replaced: dict[_Box, _Box | None] = {}
    _fold(root, edges, replaced)
    kept: _Edges = []
    for a, b in edges:
        if b in replaced:
            continue
        edge = (replaced.get(a, a) if a is not None else None, b)
        if edge not in kept and edge[0] is not b:
            kept.append(edge)
    _dissolved(root, kept)
    return root, kept


def _simple(frame: _Frame) -> _Frame:
    """Take frames away that hold a single part."""
    for k, part in enumerate(frame.inner):
        if isinstance(part, _Frame):
            part = _simple(part)
            if len(part.inner) == 1:
                inner = part.inner[0]
                inner.name = part.name
                frame.inner[k] = inner
    return frame


def _dissolved(frame: _Frame, edges: _Edges, outer: bool = True) -> None:
    """Take frames of sequences away in which a chain just goes on, and those too long to be drawn in one column."""
    for k, part in enumerate(frame.inner):
        if isinstance(part, _Frame):
            _dissolved(part, edges, False)
            alone = all(_chained(a, b, edges, frame) for a, b in zip(frame.inner, frame.inner[1:], strict=False))
            long = not outer or len(part.inner) > _LONG
            if long and alone and part.kind == "Sequential" and part.times == 1:
                frame.inner[k : k + 1] = part.inner
                _dissolved(frame, edges, outer)
                return


def _kind(part: _Part) -> Any:
    """Return what two parts have in common if one repeats the other."""
    if isinstance(part, _Box):
        return tuple((_called(call), _shape(call), _size(call)) for call in part.calls)
    return part.kind, tuple(map(_kind, part.inner))


def _shape(call: Call) -> tuple[int, ...]:
    return tuple(int(n) for y in _arrays(call.y) for n in y.shape[1:])


def _size(call: Call) -> int:
    return sum(slot.data.size for slot in call.module.parameters())


def _fold(frame: _Frame, edges: _Edges, replaced: dict[_Box, _Box | None]) -> None:
    """Keep the first of parts that repeat each other one after the other, and note which boxes stand for others."""
    for part in frame.inner:
        if isinstance(part, _Frame):
            _fold(part, edges, replaced)
    kinds = [_kind(part) for part in frame.inner]
    chain = [_chained(a, b, edges) for a, b in zip(frame.inner, frame.inner[1:], strict=False)]
    kept: list[_Part] = []
    k = 0
    while k < len(kinds):
        for period in range(1, 5):
            times = 1
            while kinds[k + times * period : k + (times + 1) * period] == kinds[k : k + period] and all(
                chain[k + times * period - 1 : k + (times + 1) * period - 1]
            ):
                times += 1
            inside = sum(1 for part in frame.inner[k : k + period] for _ in part.boxes())
            if times > 1 and inside > 1 and all(chain[k : k + period - 1]):
                break
        else:
            kept.append(frame.inner[k])
            k += 1
            continue
        first = frame.inner[k : k + period]
        for other in range(1, times):
            copies = frame.inner[k + other * period : k + (other + 1) * period]
            for one, copy in zip(first, copies, strict=True):
                for box, same in zip(one.boxes(), copy.boxes(), strict=True):
                    replaced[same] = box
        only = first[0]
        if period == 1 and isinstance(only, _Frame):
            only.times = times
            kept.append(only)
        else:
            end = frame.inner[k + times * period - 1].name
            kept.append(_Frame(f"{only.name} to {end}", "", first, times))
        k += times * period
    frame.inner = kept


def _chained(a: _Part, b: _Part, edges: _Edges, within: _Frame | None = None) -> bool:
    """Return whether all that b takes from elsewhere, or from elsewhere within a frame, comes from a."""
    mine, theirs = set(b.boxes()), set(a.boxes())
    taken = [source for source, box in edges if box in mine and source not in mine]
    if within is not None:
        inside = set(within.boxes())
        taken = [source for source in taken if source in inside]
    return bool(taken) and all(source in theirs for source in taken)


# What is written.


def _write(part: _Part, fields: Mapping[str, Any], seen: dict[int, bool]) -> None:
    if isinstance(part, _Frame):
        for one in part.inner:
            _write(one, fields, seen)
        return
    names = [_called(call) for call in part.calls]
    if part.inside:
        main = [name for call, name in zip(part.calls, names, strict=True) if _face(call) in ("conv", "pool", "linear")]
        named = main if 0 < len(main) <= 3 else []
        part.lines = [f"block of {part.inside:,} layers", *(named or [])]
    else:
        part.lines = [names[0]]
        if len(names) > 1:
            part.lines.append("+ " + " + ".join(names[1:]))
    end = part.calls[-1]
    facts = ["x".join(f"{int(n)}" for n in y.shape[1:]) or "1" for y in _arrays(end.y)]
    slots = {id(slot): slot.data.size for call in part.calls for slot in call.module.parameters()}
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


def _called(call: Call) -> str:
    """Return the kind of a layer with the options that say most."""
    module, name = call.module, type(call.module).__name__
    if name == "Apply":
        known = calls(module, watched=True)
        return known[0] if known else name
    kernel, stride = getattr(module, "kernel_size", None), getattr(module, "stride", None)
    words = [name]
    if kernel is not None:
        rank = len(kernel) if isinstance(kernel, tuple) else sum(n.isdigit() for n in name) and int(name[-2])
        words.append(_times(kernel, rank))
    usual = kernel if "Pool" in name else 1
    if stride is not None and _times(stride, 2) != _times(usual, 2):
        words.append(f"stride {stride if not isinstance(stride, tuple) else _times(stride, 2)}")
    dilation, groups = getattr(module, "dilation", 1), getattr(module, "groups", 1)
    if _times(dilation, 2) != "1x1":
        words.append(f"dilation {_times(dilation, 2)}")
    if groups != 1:
        words.append("depthwise" if groups == getattr(module, "in_channels", None) else f"{groups} groups")
    return " ".join(words[:2]) + "".join(f", {word}" for word in words[2:])


def _times(sizes: Any, rank: int) -> str:
    return "x".join(map(str, sizes if isinstance(sizes, tuple | list) else (sizes,) * max(rank, 1)))


def _face(call: Call) -> str:
    name = type(call.module).__name__
    if "Conv" in name:
        return "conv"
    if "Pool" in name:
        return "pool"
    if name == "Linear":
        return "linear"
    return "join" if isinstance(call.x, tuple | list) else ""


# Where it is drawn.


def _measure(part: _Part, edges: _Edges) -> None:
    """Set width and height, and the rows of frames."""
    if isinstance(part, _Box):
        ruler = Canvas()
        widths = [ruler.text(0, 0, line, 8.5 if k == 0 else 7.5, bold=k == 0) for k, line in enumerate(part.lines)]
        widths[0] += ruler.text(0, 0, part.name, 7) + 0.2
        part.width, part.height = max(1.5, *widths) + 0.16, 0.1 + 0.16 * len(part.lines)
        return
    holder = {box: one for one in part.inner for box in one.boxes()}
    level: dict[int, int] = {}
    for one in part.inner:
        _measure(one, edges)
        before = [holder[a] for a, b in edges if a in holder and holder.get(b) is one and holder[a] is not one]
        level[id(one)] = 1 + max((level.get(id(other), -1) for other in before), default=-1)
    part.rows = [[] for _ in range(1 + max(level.values(), default=0))]
    for one in part.inner:
        part.rows[level[id(one)]].append(one)
    part.rows = [row for row in part.rows if row]
    titled = 0.2 if part.name else 0.0
    around = 0.14 if part.name else 0.0
    part.width = max(sum(one.width + _BESIDE for one in row) - _BESIDE for row in part.rows) + 2 * around
    part.height = sum(max(one.height for one in row) + _DOWN for row in part.rows) - _DOWN + 2 * around + titled
    if part.name:
        words = 2 * Canvas().text(0, 0, _heading(part), 7.5, bold=part.times > 1) + 0.25  # left of the middle
        part.width = max(part.width + 0.14, words)  # room for a connection that goes around


def _heading(frame: _Frame) -> str:
    named = frame.name if frame.kind in ("Sequential", "Graph") else f"{frame.name} {frame.kind}".strip()
    return f"{named}, × {frame.times}" if frame.times > 1 else named


def _place(part: _Part, x: float, y: float) -> None:
    """Move a part with all that is in it to a place."""
    part.x, part.y = x, y
    if isinstance(part, _Box):
        return
    around = 0.14 if part.name else 0.0
    y += around + (0.2 if part.name else 0.0)
    for row in part.rows:
        wide = sum(one.width + _BESIDE for one in row) - _BESIDE
        height = max(one.height for one in row)
        at = x + (part.width - wide) / 2
        for one in row:
            _place(one, at, y + (height - one.height) / 2 if isinstance(one, _Box) and len(row) == 1 else y)
            at += one.width + _BESIDE
        y += height + _DOWN


def _wrap(root: _Frame, edges: _Edges) -> dict[int, float]:
    """Divide a tall network into columns, where all that comes later depends on one box.

    Return the places between the columns, by the number of the column at their right.
    """
    row_of = {box: k for k, row in enumerate(root.rows) for part in row for box in part.boxes()}
    sources: list[set[_Box | None]] = [set() for _ in root.rows]
    for a, b in edges:
        for k in range(0 if a is None else row_of[a], row_of[b]):
            sources[k].add(a)
    columns = max(1, round(root.height / _TALL))
    limit = root.height / columns + 0.3
    groups: list[list[list[_Part]]] = [[]]
    top = 0.0
    for k, row in enumerate(root.rows):
        up, down = min(part.y for part in row), max(part.y + part.height for part in row)
        if groups[-1] and down - top > limit and len(sources[k - 1]) == 1 and None not in sources[k - 1]:
            groups.append([])
        if not groups[-1]:
            top = up
        groups[-1].append(row)
    if len(groups) > 1 and _height(groups[-1]) < 0.25 * limit:
        groups[-2:] = [groups[-2] + groups[-1]]
    if any(_height(group) > 1.4 * limit for group in groups):  # long connections leave no place to divide it
        groups = [root.rows]
    bends: dict[int, float] = {}
    x = 0.0
    for column, group in enumerate(groups):
        parts = [part for row in group for part in row]
        left, up = min(part.x for part in parts), min(part.y for part in parts)
        wide = max(part.x + part.width for part in parts) - left
        bends[column] = x - 0.28
        boxes = {box for part in parts for box in part.boxes()}
        for box in boxes:
            box.column = column
        for part in parts:
            _place(part, part.x - left + x, part.y - up)
        around = sum(a in boxes and b in boxes and row_of[b] > row_of[a] + 1 for a, b in edges if a is not None)
        x += wide + 0.56 + _LANE * min(around, 4)
    return bends


def _height(rows: Sequence[Sequence[_Part]]) -> float:
    parts = [part for row in rows for part in row]
    return max(part.y + part.height for part in parts) - min(part.y for part in parts)


# Drawing.


def _start(canvas: Canvas, root: _Frame, shape: Sequence[int], found: Trace, edges: _Edges) -> None:
    """Write the input above the layers that take it."""
    takers = [box for source, box in edges if source is None]
    if takers:
        words = f"input {'x'.join(map(str, shape))}"
        canvas.text(takers[0].middle, -_DOWN - 0.1, words, 8.5, "center", bold=True)


def _draw(canvas: Canvas, part: _Part, outer: bool = False) -> None:
    if isinstance(part, _Frame):
        if not outer:
            canvas.box(part.x, part.y, part.width, part.height, edge=GREY, line=0.8, dashed=True)
            canvas.text(part.x + 0.07, part.y + 0.11, _heading(part), 7.5, bold=part.times > 1)
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


def _connect(canvas: Canvas, root: _Frame, edges: _Edges, bends: Mapping[int, float]) -> None:
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
            if not _hit(boxes, b.middle, b.middle, -0.2, b.y - 0.01):
                canvas.arrow([*way, (b.middle, -0.2), (b.middle, b.y)])
                continue
            lane = _lane(boxes, b, -0.2, b.y + 0.3 * b.height, lanes)
            canvas.arrow([*way, (lane, -0.2), *_into(boxes, b, lane)])
            continue
        turn = b.y - 0.15
        free = not _hit(boxes, a.middle, a.middle, bottom + 0.01, turn) and not _hit(
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


def _from_input(canvas: Canvas, b: _Box, boxes: Sequence[_Box]) -> None:
    if not _hit(boxes, b.middle, b.middle, -_DOWN, b.y - 0.01):
        canvas.arrow([(b.middle, -_DOWN), (b.middle, b.y)])
        return
    _around(canvas, _Box("", [], x=b.middle, y=-_DOWN - 0.1, height=0.1, column=b.column), b, boxes, [])


def _around(canvas: Canvas, a: _Box, b: _Box, boxes: Sequence[_Box], lanes: list[tuple[float, float, float]]) -> None:
    """Draw a connection that goes around what is between, on a lane of its own."""
    start = a.y + 0.7 * a.height
    lane = max(_lane(boxes, b, start, b.y + 0.3 * b.height, lanes), a.x + a.width + 0.13)
    way = [(a.x + a.width, start), (lane, start)]
    if _hit([box for box in boxes if box is not a], a.x + a.width, lane, start, start):
        low = a.y + a.height + 0.1
        way = [(a.middle, a.y + a.height), (a.middle, low), (lane, low)]
    canvas.arrow([*way, *_into(boxes, b, lane)])


def _lane(boxes: Sequence[_Box], b: _Box, start: float, end: float, lanes: list[tuple[float, float, float]]) -> float:
    """Return where a connection to b can go down, at the right of all that is beside it, and away from others."""
    column = [box for box in boxes if box.y < end and box.y + box.height > start and box.column == b.column]
    lane = max(box.x + box.width for box in [*column, b]) + 0.13
    while any(abs(lane - x) < _LANE - 0.01 and low <= end and start <= high for x, low, high in lanes):
        lane += _LANE
    lanes.append((lane, start, end))
    return lane


def _into(boxes: Sequence[_Box], b: _Box, lane: float) -> list[tuple[float, float]]:
    """Return the end of a connection that comes to b from a lane at the right."""
    end = b.y + 0.3 * b.height
    if _hit([box for box in boxes if box is not b], b.x + b.width, lane, end, end):
        high = b.y - 0.12
        return [(lane, high), (b.middle, high), (b.middle, b.y)]
    return [(lane, end), (b.x + b.width, end)]


def _hit(boxes: Sequence[_Box], left: float, right: float, upper: float, lower: float) -> bool:
    """Return whether a box is inside or near a rectangle."""
    return any(
        box.x < right + 0.06 and box.x + box.width > left - 0.06 and box.y < lower and box.y + box.height > upper
        for box in boxes
    )
