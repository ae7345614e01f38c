"""Where the parts of a network are drawn: below those that they depend on, in columns."""

from collections.abc import Sequence

from xcnn.plots._canvas import width_of
from xcnn.plots._graph import Box, Edges, Frame, Part

__all__ = ["DOWN", "LANE", "heading", "hit", "measure", "place", "wrap"]

_TALL = 11.0
"""The height of a column, in inches, if the network can be divided there."""

DOWN = 0.3
"""Between two rows, with the arrow that connects them."""

_BESIDE = 0.22
"""Between two parts of a row."""

LANE = 0.1
"""Between two lines that go around."""


def measure(part: Part, edges: Edges) -> None:
    """Set width and height, and the rows of frames."""
    if isinstance(part, Box):
        widths = [width_of(line, 8.5 if k == 0 else 7.5, k == 0) for k, line in enumerate(part.lines)]
        widths[0] += width_of(part.name, 7) + 0.2
        part.width, part.height = max(1.5, *widths) + 0.16, 0.1 + 0.16 * len(part.lines)
        return
    holder = {box: one for one in part.inner for box in one.boxes()}
    level: dict[int, int] = {}
    for one in part.inner:
        measure(one, edges)
        before = [holder[a] for a, b in edges if a in holder and holder.get(b) is one and holder[a] is not one]
        level[id(one)] = 1 + max((level.get(id(other), -1) for other in before), default=-1)
    part.rows = [[] for _ in range(1 + max(level.values(), default=0))]
    for one in part.inner:
        part.rows[level[id(one)]].append(one)
    part.rows = [row for row in part.rows if row]
    titled = 0.2 if part.name else 0.0
    around = 0.14 if part.name else 0.0
    part.width = max(sum(one.width + _BESIDE for one in row) - _BESIDE for row in part.rows) + 2 * around
    part.height = sum(max(one.height for one in row) + DOWN for row in part.rows) - DOWN + 2 * around + titled
    if part.name:
        words = 2 * width_of(heading(part), 7.5, part.times > 1) + 0.25  # left of the middle
        part.width = max(part.width + 0.14, words)  # room for a connection that goes around


def heading(frame: Frame) -> str:
    named = frame.name if frame.kind in ("Sequential", "Graph") else f"{frame.name} {frame.kind}".strip()
    return f"{named}, × {frame.times}" if frame.times > 1 else named


def place(part: Part, x: float, y: float) -> None:
    """Move a part with all that is in it to a place."""
    part.x, part.y = x, y
    if isinstance(part, Box):
        return
    around = 0.14 if part.name else 0.0
    y += around + (0.2 if part.name else 0.0)
    for row in part.rows:
        wide = sum(one.width + _BESIDE for one in row) - _BESIDE
        height = max(one.height for one in row)
        at = x + (part.width - wide) / 2
        for one in row:
            place(one, at, y + (height - one.height) / 2 if isinstance(one, Box) and len(row) == 1 else y)
            at += one.width + _BESIDE
        y += height + DOWN


def wrap(root: Frame, edges: Edges) -> dict[int, float]:
    """Divide a tall network into columns, where all that comes later depends on one box.

    Return the places between the columns, by the number of the column at their right.
    """
    row_of = {box: k for k, row in enumerate(root.rows) for part in row for box in part.boxes()}
    sources: list[set[Box | None]] = [set() for _ in root.rows]
    for a, b in edges:
        for k in range(0 if a is None else row_of[a], row_of[b]):
            sources[k].add(a)
    columns = max(1, round(root.height / _TALL))
    limit = root.height / columns + 0.3
    groups: list[list[list[Part]]] = [[]]
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
            place(part, part.x - left + x, part.y - up)
        around = sum(a in boxes and b in boxes and row_of[b] > row_of[a] + 1 for a, b in edges if a is not None)
        x += wide + 0.56 + LANE * min(around, 4)
    return bends


def _height(rows: Sequence[Sequence[Part]]) -> float:
    parts = [part for row in rows for part in row]
    return max(part.y + part.height for part in parts) - min(part.y for part in parts)


def hit(boxes: Sequence[Box], left: float, right: float, upper: float, lower: float) -> bool:
    """Return whether a box is inside or near a rectangle."""
    return any(
        box.x < right + 0.06 and box.x + box.width > left - 0.06 and box.y < lower and box.y + box.height > upper
        for box in boxes
    )
