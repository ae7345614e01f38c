"""The graph of a network as it is drawn: boxes for layers, frames for blocks, and their connections."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xcnn._array import is_array
from xcnn.explain import Call, Trace
from xcnn.nn._calls import calls

__all__ = ["Box", "Edges", "Frame", "Part", "arranged", "arrays", "called"]

_MOST = 60
"""The most boxes that are drawn unless a depth is asked for."""

_LONG = 6
"""Above this number of parts, a block of the network that is a chain has no frame, so that columns can divide it."""

_FOLLOWERS = ("xcnn.nn.activation", "xcnn.nn.norms", "xcnn.nn.dropout")
"""Where layers are defined that are drawn with the layer before them."""


@dataclass(eq=False)
class Box:
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

    def boxes(self) -> Iterator["Box"]:
        yield self


@dataclass(eq=False)
class Frame:
    """A block, or the network: what is in it, in the order of the forward pass.

    Attributes
    ----------
    rows : what is drawn beside each other, from top to bottom.
    """

    name: str
    kind: str
    inner: list["Part"] = field(default_factory=list)
    times: int = 1
    rows: list[list["Part"]] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0

    def boxes(self) -> Iterator[Box]:
        for part in self.inner:
            yield from part.boxes()


Part = Box | Frame

Edges = list[tuple[Box | None, Box]]
"""Connections; None stands for the input of the network."""


def arranged(found: Trace, depth: int | None) -> tuple[Frame, Edges]:
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
    outputs = {call.name: {id(y) for y in arrays(call.y)} for call in found.calls if not call.leaf}
    made: dict[int, list[int]] = {}
    sources: dict[int, list[int | None]] = {}
    begin = {id(x) for x in arrays(found.x)}
    held = {id(slot.data) for slot in found.model.parameters()} | {
        id(slot.data) for _, slot in found.model.named_buffers()
    }
    last: int | None = None
    for k, call in enumerate(found.calls):
        if not call.leaf:
            continue
        mine = set(_above(call.name, containers))
        sources[k] = []
        for x in arrays(call.x):
            if id(x) in held:  # a parameter that the layer takes as an input
                continue
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
        for y in arrays(call.y):
            made.setdefault(id(y), []).append(k)
        last = k
    return sources


def arrays(value: Any) -> list[Any]:
    several = value if isinstance(value, tuple | list) else [value]
    return [one for one in several if is_array(one)]


def _at(found: Trace, sources: dict[int, list[int | None]], depth: int) -> tuple[Frame, Edges]:
    """Return frames, boxes and connections down to a depth."""
    containers = {call.name: type(call.module).__name__ for call in found.calls if not call.leaf}
    root = Frame("", "")
    frames: dict[str, Frame] = {"": root}
    of: dict[int, Box] = {}
    blocks: dict[str, Box] = {}
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
                frames[name] = Frame(name, containers[name])
                parent.inner.append(frames[name])
            parent = frames[name]
        if len(above) >= depth:
            name = above[depth - 1]
            if name not in blocks:
                blocks[name] = Box(name, [])
                parent.inner.append(blocks[name])
            box = blocks[name]
            box.inside += 1
        else:
            before = sources[k][0] if len(sources[k]) == 1 else None
            box = of[before] if before is not None else Box("", [])
            follows = type(call.module).__module__ in _FOLLOWERS and users[before] == 1
            if not (before is not None and follows and not box.inside and box in parent.inner):
                box = Box(call.name, [])
                parent.inner.append(box)
        box.calls.append(call)
        of[k] = box
    for box in blocks.values():
        if all(type(call.module).__module__ in _FOLLOWERS for call in box.calls[1:]):
            box.inside = 0  # it would be one box with its inside drawn, too
    edges: Edges = []
    for k, taken in sources.items():
        for source in taken:
            edge = (None if source is None else of[source], of[k])
            if edge[0] is not edge[1] and edge not in edges:
                edges.append(edge)
    root = _simple(root)
    replaced: dict[Box, Box | None] = {}
    _fold(root, edges, replaced)
    kept: Edges = []
    for a, b in edges:
        if b in replaced:
            continue
        edge = (replaced.get(a, a) if a is not None else None, b)
        if edge not in kept and edge[0] is not b:
            kept.append(edge)
    _dissolved(root, kept)
    return root, kept


def _simple(frame: Frame) -> Frame:
    """Take frames away that hold a single part."""
    for k, part in enumerate(frame.inner):
        if isinstance(part, Frame):
            part = _simple(part)
            if len(part.inner) == 1:
                inner = part.inner[0]
                inner.name = part.name
                frame.inner[k] = inner
    return frame


def _dissolved(frame: Frame, edges: Edges, outer: bool = True) -> None:
    """Take frames of sequences away in which a chain just goes on, and those too long to be drawn in one column."""
    for k, part in enumerate(frame.inner):
        if isinstance(part, Frame):
            _dissolved(part, edges, False)
            alone = all(_chained(a, b, edges, frame) for a, b in zip(frame.inner, frame.inner[1:], strict=False))
            long = not outer or len(part.inner) > _LONG
            if long and alone and part.kind == "Sequential" and part.times == 1:
                frame.inner[k : k + 1] = part.inner
                _dissolved(frame, edges, outer)
                return


def _kind(part: Part) -> Any:
    """Return what two parts have in common if one repeats the other."""
    if isinstance(part, Box):
        return tuple((called(call), _shape(call), _size(call)) for call in part.calls)
    return part.kind, tuple(map(_kind, part.inner))


def _shape(call: Call) -> tuple[int, ...]:
    return tuple(int(n) for y in arrays(call.y) for n in y.shape[1:])


def _size(call: Call) -> int:
    return sum(math.prod(slot.data.shape) for slot in call.module.parameters())


def _fold(frame: Frame, edges: Edges, replaced: dict[Box, Box | None]) -> None:
    """Keep the first of parts that repeat each other one after the other, and note which boxes stand for others."""
    for part in frame.inner:
        if isinstance(part, Frame):
            _fold(part, edges, replaced)
    kinds = [_kind(part) for part in frame.inner]
    chain = [_chained(a, b, edges) for a, b in zip(frame.inner, frame.inner[1:], strict=False)]
    kept: list[Part] = []
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
        if period == 1 and isinstance(only, Frame):
            only.times = times
            kept.append(only)
        else:
            end = frame.inner[k + times * period - 1].name
            kept.append(Frame(f"{only.name} to {end}", "", first, times))
        k += times * period
    frame.inner = kept


def _chained(a: Part, b: Part, edges: Edges, within: Frame | None = None) -> bool:
    """Return whether all that b takes from elsewhere, or from elsewhere within a frame, comes from a."""
    mine, theirs = set(b.boxes()), set(a.boxes())
    taken = [source for source, box in edges if box in mine and source not in mine]
    if within is not None:
        inside = set(within.boxes())
        taken = [source for source in taken if source in inside]
    return bool(taken) and all(source in theirs for source in taken)


def called(call: Call) -> str:
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
        words.append(f"stride {_short(stride)}")
    dilation, groups = getattr(module, "dilation", 1), getattr(module, "groups", 1)
    if _times(dilation, 2) != "1x1":
        words.append(f"dilation {_short(dilation)}")
    if groups != 1:
        words.append("depthwise" if groups == getattr(module, "in_channels", None) else f"{groups} groups")
    return " ".join(words[:2]) + "".join(f", {word}" for word in words[2:])


def _short(sizes: Any) -> str:
    """Return one number where all are equal."""
    several = sizes if isinstance(sizes, tuple | list) else (sizes,)
    return str(several[0]) if len(set(several)) == 1 else "x".join(map(str, several))


def _times(sizes: Any, rank: int) -> str:
    return "x".join(map(str, sizes if isinstance(sizes, tuple | list) else (sizes,) * max(rank, 1)))
