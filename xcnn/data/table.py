"""Tables of image files: CSV with the columns path, label and perhaps split."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator
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
_MOST_PROBLEMS = 10_000  # after which a table is not read on
_MOST_LETTERS = 255  # of a label, as of the name of a folder
_MISSING = "names a file that is missing"
_COLUMNS = ("path", "label", "split")


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

    def chosen(self, places: Iterable[int]) -> "ImageList":
        """Return a list of the images at some places."""
        rows = [(self.files[k], self.labels[k], self.parts[k]) for k in places]
        return ImageList([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], self.ignored)


def read_table(path: Path, skip: Callable[[list[str]], object] | None = None) -> ImageList:
    """Return the images of a CSV file with a header `path,label` or `path,label,split`, in its order.

    The paths are relative to the folder of the file, or absolute. They must stay inside the folder, also after
    following a link to an image, unless it leads into the folder of the link. Other columns are
    ignored. If `skip` is given, rows whose file is missing are left out, and it is called with a clause for each.

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
    found, problems, missing = ImageList(), list[str](), list[str]()
    lines: dict[str, int] = {}  # of every path
    rows = _rows(path, text)
    _, header = next(rows, (1, []))
    columns = [name.strip().lower() for name in header]
    if not {"path", "label"} <= set(columns) or len(set(columns)) < len(columns):
        raise DataError(
            f"load: {path} must begin with a line path,label or path,label,split, separated by commas, "
            f"got {','.join(header)[:80]!r}"
        )
    for line, row in rows:
        values = dict(zip(columns, map(str.strip, row), strict=False)) if len(row) == len(columns) else None
        if values is not None:
            values["path"] = _relative(path.parent, values["path"])
        problem = _problem(path.parent, values) if values is not None else f"has {len(row)} values, not {len(columns)}"
        if values is not None and not problem:
            if (first := lines.setdefault(os.path.normpath(values["path"]), line)) != line:
                problem = f"repeats {values['path']} of line {first}"
            found.files.append(path.parent / values["path"])
            found.labels.append(values["label"])
            found.parts.append(_PART[values["split"].lower()] if "split" in values else "")
        if problem:
            (missing if problem.startswith(_MISSING) else problems).append(f"line {line} {problem}")
        if len(problems) + len(missing) * (skip is None) >= _MOST_PROBLEMS:
            break
    if missing and skip is None:
        fix = "" if problems else "; correct the paths, or leave such rows out with skip_broken=True"
        raise DataError(f"load: {path}: {listed(sorted(problems + missing, key=_line))}{fix}")
    if problems:
        raise DataError(f"load: {path}: {listed(problems)}")
    if missing and skip is not None:
        skip(missing)
    if extra := [name for name in header if name.strip().lower() not in _COLUMNS]:
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


def _line(problem: str) -> int:
    return int(problem.split()[1])


def _relative(root: Path, name: str) -> str:
    """Return an absolute path inside the folder as one relative to it, and other paths as they are."""
    if os.path.isabs(name) and "\0" not in name:
        for top in (os.path.abspath(root), os.path.realpath(root)):
            if Path(whole := os.path.normpath(name)).is_relative_to(top):
                return os.path.relpath(whole, top)
    return name


def _problem(root: Path, values: dict[str, str]) -> str:
    """Return why a row cannot be used, except for a repeated path; empty if it can."""
    name, label = values["path"], values["label"]
    if not name or not label:
        return f"has no {'label' if name else 'path'}"
    if len(label) > _MOST_LETTERS:
        return f"has a label of {len(label)} characters, more than {_MOST_LETTERS}"
    if printable(label) != label:
        return f"cannot have the label {label}: it has control characters"
    if values.get("split", "train").lower() not in _PART:
        return f"has the split {values['split']!r}, expected {', '.join(_PART)}"
    if "\0" in name:
        return "has a null character in its path"
    if os.path.isabs(name):
        return f"has a path outside of the folder of the table, {os.path.abspath(root)}: {name}"
    if os.path.normpath(name).split(os.sep)[0] == os.pardir:
        return f"leads out of the folder of the table: {name}"
    path = root / name
    if not os.path.lexists(path):
        return f"{_MISSING}: {name}"
    if path.is_symlink() and not (is_inside(path, root) or is_inside(path, path.parent)):
        return f"names a link that leads out of the folder of the table: {name}"
    return ""


def listed(texts: list[str], separator: str = "; ") -> str:
    """Return the first texts of a list, and the number of the others."""
    rest = len(texts) - _MOST_LISTED
    return separator.join(texts[:_MOST_LISTED]) + (f"{separator}and {rest:,} more" if rest > 0 else "")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder after following all links, also those of the folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
