"""Tables of image files: CSV with the columns path, label and perhaps split."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xcnn.data._stream import opened
from xcnn.errors import DataError, printable

__all__ = ["PARTS", "ImageList", "is_inside", "listed", "read_table"]

PARTS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
"""The parts of a data set, and the names of each in tables and folders."""

_PART = {name: part for part, names in PARTS.items() for name in names}
_MOST_BYTES = 256 << 20
_MOST_LISTED = 20


@dataclass
class ImageList:
    """Image files with, of each, the name of its class and its part in `PARTS`, or "" if no part is given.

    `ignored` is the number of files and folders that are not used, by the reason.
    """

    files: list[Path] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)

    def ignore(self, why: str, number: int = 1) -> None:
        """Count files that are not used."""
        self.ignored[why] = self.ignored.get(why, 0) + number


def read_table(path: Path) -> ImageList:
    """Return the images of a CSV file with a header `path,label` or `path,label,split`, in its order.

    The paths are relative to the folder of the file. They must stay inside it, also after following a link to an image,
    unless it leads into the folder of the link. Other columns are ignored.

    Raises
    ------
    DataError
        If the file is not such a table in UTF-8, a row lacks a value, a path is repeated, missing or outside.
    """
    with opened("load", path) as file:
        if file.size > _MOST_BYTES:
            raise DataError(f"load: {path} has {file.size} bytes, at most {_MOST_BYTES} are read")
        content = file.read()
    try:
        text = content.decode("utf-8-sig")  # spreadsheets begin the file with a byte order mark
    except UnicodeDecodeError as error:
        raise DataError(f"load: {path} is not UTF-8 (byte {error.start}); save it as CSV in UTF-8") from None
    found, problems = ImageList(), []
    lines: dict[str, int] = {}  # of every path
    rows = _rows(path, text)
    _, header = next(rows, (1, []))
    columns = [name.strip().lower() for name in header]
    at = {name: columns.index(name) for name in ("path", "label", "split") if name in columns}
    if "path" not in at or "label" not in at or len(set(columns)) < len(columns):
        raise DataError(
            f"load: {path} must begin with a line path,label or path,label,split, separated by commas, "
            f"got {','.join(header)[:80]!r}"
        )
    for line, row in rows:
        if len(row) != len(columns):
            problems.append(f"line {line} has {len(row)} values instead of {len(columns)}")
            continue
        name, label = row[at["path"]].strip(), row[at["label"]].strip()
        split = row[at["split"]].strip().lower() if "split" in at else ""
        file_path = path.parent / name
        if problem := _problem(path.parent, name, label, split, "split" in at):
            problems.append(f"line {line} {problem}")
        elif (first := lines.setdefault(os.path.normpath(name), line)) != line:
            problems.append(f"line {line} repeats {name} of line {first}")
        found.files.append(file_path)
        found.labels.append(label)
        found.parts.append(_PART.get(split, ""))
    if problems:
        raise DataError(f"load: {path}: {listed(problems)}")
    if extra := [name for name in header if name.strip().lower() not in at]:
        found.ignore(f"column{'s'[: len(extra) > 1]} ({', '.join(extra)})", len(extra))
    return found


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with the number of its last line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"load: {path}: line {reader.line_num} is not valid CSV ({error})") from None


def _problem(root: Path, name: str, label: str, split: str, has_split: bool) -> str:
    """Return why a row cannot be used; empty if it can."""
    if not name or not label:
        return f"has no {'label' if name else 'path'}"
    if printable(label) != label:
        return f"cannot have the label {label}: it has control characters"
    if has_split and split not in _PART:
        return f"has the split {split!r}, expected {', '.join(_PART)}"
    path = root / name
    normal = os.path.normpath(name)
    if "\0" in name or os.path.isabs(name) or normal.split(os.sep)[0] == os.pardir:
        return f"leads out of the folder of the table: {name}"
    if not os.path.lexists(path):
        return f"names a file that is missing: {name}"
    if path.is_symlink() and not (is_inside(path, root) or is_inside(path, path.parent)):
        return f"names a link that leads out of the folder of the table: {name}"
    return ""


def listed(problems: list[str]) -> str:
    """Return the first problems of a list, and the number of the others."""
    rest = len(problems) - _MOST_LISTED
    return "; ".join(problems[:_MOST_LISTED]) + (f"; and {rest:,} more" if rest > 0 else "")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder after following all links, also those of the folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
