"""Folders of images, one subfolder per class (`cats/*.png`, `dogs/*.jpg`), and tables of image files."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xcnn._check import choice, flag, integer
from xcnn.data._stream import blaming
from xcnn.data.dataset import Dataset
from xcnn.data.files import ImageFiles, Watch, check_files
from xcnn.data.images import RESIZE, SUFFIXES, colour
from xcnn.data.table import PARTS, ImageList, is_inside, listed, read_table
from xcnn.errors import DataError, UsageError, printable

__all__ = ["MOST_SIDE", "folder_name", "load_folder", "load_test_images"]

MOST_SIDE = 1024
"""The largest height and width of the images of a folder."""

_IN_MEMORY = 160 << 20
_EVERY = 5  # without a test folder, every fifth image of a class, sorted by name, is a test image
_MOST_NAMED = 10  # classes whose numbers of images are told one by one
_DARK = 1 << 15  # 16-bit images without a value from here on lose a bit or more of their range
_FOREIGN = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".dng", ".cr2", ".nef", ".arw"})  # not decoded
_VERBS = {"train": "train", "validation": "validate", "test": "test"}

Labels = npt.NDArray[np.int64]
Tell = Callable[[str], object]


def load_folder(
    data_dir: Path | None = None,
    size: int = 32,
    *,
    resize: str = "crop",
    background: str = "white",
    skip_broken: bool = False,
    in_memory: int = _IN_MEMORY,
    tell: Tell | None = None,
    watch: Watch | None = None,
) -> tuple[Dataset, ...]:
    """Return (train, test) or (train, validation, test) of a folder of images, or of a table of image files.

    The classes are the subfolders, sorted by name; the images are the files in them with an image suffix such as .png,
    sorted by name. Names that start with a dot are ignored. Every fifth image of each class is a test image, or the
    last if there are fewer. If there is a subfolder `train`, the classes are inside it, inside `test`, and inside
    `validation`, `valid` or `val` if there is one; without `test`, that one is used for the test.

    A folder may be a link to any place. A link to a single image must lead into `data_dir` or the folder of its class:
    otherwise a downloaded archive could include private files unnoticed.

    Every image is decoded once, in threads, to find those that cannot be read. Images become RGB, or grey if all are.

    Parameters
    ----------
    data_dir : the folder, or a CSV file in UTF-8 with the columns `path`, inside the folder of the file (relative to
        it, or absolute), `label`, and perhaps `split`, one of train, validation (or valid, val) and test.
    size : height and width of the images in pixels, at most 1024.
    resize, background : how images get this size, see `read_image`.
    skip_broken : whether to leave out images that cannot be read, and rows of a table whose files are missing, and tell
        which; by default they are an error.
    in_memory : if the images take more bytes than this as RGB, they are not kept but decoded each time that they are
        needed, with the same result; see `ImageFiles`. The default has room for 50,000 images of 32 x 32 pixels.
    tell : called with sentences on what was found: classes, numbers, sizes, parts, and what is ignored. By default
        nothing is told but a warning of what `skip_broken` leaves out.
    watch : called with the number of images checked so far and of all images.

    Raises
    ------
    UsageError
        If `data_dir` is None or another argument is out of range.
    DataError
        If images cannot be read, a link leads out of the folder, there are fewer than two classes, a class has one
        image, none to train, or control characters in its name, or a table is invalid.

    Examples
    --------
    >>> train, test = load_folder(Path("pets"), tell=print)  # doctest: +SKIP
    pets: 2 classes (cat 812, dog 790), 1,602 colour images of 120x90 to 4000x3000 pixels, resized to 32x32 (crop)
    pets: 1,282 images to train, 320 to test
    """
    parts = _load(data_dir, size, resize, background, skip_broken, in_memory, tell, watch)
    return tuple(parts[name] for name in PARTS if name in parts)


def load_test_images(
    data_dir: Path | None,
    size: int,
    classes: Sequence[str],
    channels: int | None = None,
    *,
    resize: str = "crop",
    background: str = "white",
    skip_broken: bool = False,
    tell: Tell = lambda message: None,
    watch: Watch | None = None,
) -> Dataset:
    """Return the images to test of a folder or a table, for a network that is trained on others.

    They are those that `load_folder` returns, whose arguments and errors are the same, except that there need be no
    images to train, and images of some of the classes only.

    Parameters
    ----------
    classes : the names of the network's classes, in the order of its scores; there must be no others.
    channels : 1 to make all images grey, 3 to make them RGB; by default they are grey if all are.
    """
    return _load(data_dir, size, resize, background, skip_broken, _IN_MEMORY, tell, watch, classes, channels)["test"]


def _load(
    data_dir: Path | None,
    size: int,
    resize: str,
    background: str,
    skip_broken: bool,
    in_memory: int,
    tell: Tell | None,
    watch: Watch | None,
    classes: Sequence[str] | None = None,
    channels: int | None = None,
) -> dict[str, Dataset]:
    """Return the parts of a folder or a table by their names in `PARTS`."""
    if data_dir is None:
        message = "data_dir is missing: the data set 'folder' needs a folder with one subfolder of images per class"
        raise UsageError(message, setting="data_dir")
    warn, tell = tell or warnings.warn, tell or (lambda message: None)
    size = integer("load: folder", "size", size, 1, MOST_SIDE)
    choice("load: folder", "resize", resize, RESIZE)
    ground = colour("load: folder", "background", background)
    flag("load: folder", "skip_broken", skip_broken)
    in_memory = integer("load: folder", "in_memory", in_memory, 0)
    is_table, name = _is_table(data_dir), folder_name(data_dir)

    def left_out(rows: list[str]) -> None:
        warn(f"{name}: left out {len(rows):,} row{'s' * (len(rows) > 1)} of missing files: {listed(rows)}")

    with blaming("load", data_dir):
        found = (
            read_table(data_dir, left_out if skip_broken else None) if is_table else _find(data_dir, classes is None)
        )
    names, labels, parts = _divided(data_dir, found, classes)
    keep = len(found.files) * 3 * size * size <= in_memory
    checked = check_files(found.files, size, resize, ground, keep, watch, channels)
    places = np.delete(np.arange(len(found.files)), list(checked.broken))
    if checked.broken:
        number = f"{len(checked.broken):,} of {len(found.files):,} images"
        what = listed(list(checked.broken.values()))
        if not skip_broken:
            fix = "repair or remove them, or leave them out with skip_broken=True"
            raise DataError(f"load: {number} cannot be used: {what}; {fix}")
        warn(f"{name}: left out {number}: {what}")
        found = found.chosen(places)
        names, labels, parts = _divided(data_dir, found, classes)
    sizes = [checked.sizes[k] for k in places]
    if classes is None:
        made = f"resized to {size}x{size} ({resize})"
        tell(f"{name}: {_describe(names, labels, sizes, checked.channels)}, {made}")
        tell(f"{name}: {_division(parts)}" + ("" if keep else "; they are decoded each time that they are needed"))
    else:
        every = f", every {_EVERY}th of each class, as there is no {'split' if is_table else f'folder {name}/test'}"
        tell(f"{name}: {_division(parts[parts == 'test'])}" + every * ("" in found.parts))
    if checked.brightest:
        deep, most = len(checked.brightest), max(checked.brightest)
        fix = "" if most >= _DARK else "; scale them to 65,535 in the files, or they stay dark"
        used = f"of {deep:,} images of 16 bits the upper 8 are used"
        tell(f"{name}: {used}; the brightest value is {most:,} of 65,535{fix}")
    if "validation" in found.parts and "test" not in found.parts:
        tell(f"{name}: there is no test part, so the validation part is the test")
    if found.ignored:
        tell(f"{name}: {_ignored(found)}")

    def part(chosen: npt.NDArray[np.bool_]) -> Dataset:
        if checked.pixels is not None:
            return Dataset(checked.pixels[places[chosen]], labels[chosen], names, name)
        files = [found.files[k] for k in np.flatnonzero(chosen)]
        digests = [checked.digests[k] for k in places[chosen]]
        shape = (checked.channels, size, size)
        x = ImageFiles(files, shape, resize=resize, background=background, digests=digests)
        return Dataset(x, labels[chosen], names, name)

    return {one: part(parts == one) for one in PARTS if one in parts}


def folder_name(data_dir: Path) -> str:
    """Return the name of a data set of images: that of its folder, or that of its table without .csv."""
    return data_dir.resolve().stem if _is_table(data_dir) else data_dir.resolve().name


def _is_table(data_dir: Path) -> bool:
    return data_dir.suffix.lower() == ".csv" and not data_dir.is_dir()


# Telling what was found


def _describe(classes: tuple[str, ...], labels: Labels, sizes: list[tuple[int, int]], channels: int) -> str:
    counts = np.bincount(labels, minlength=len(classes))
    each = ", ".join(f"{name} {count:,}" for name, count in zip(classes, counts, strict=True))
    if len(classes) > _MOST_NAMED:
        each = f"{counts.min():,} to {counts.max():,} images each"
    least, most = (f"{w}x{h}" for w, h in (f(sizes, key=lambda size: size[0] * size[1]) for f in (min, max)))
    kind = "grey" if channels == 1 else "colour"
    spread = least if least == most else f"{least} to {most}"
    return f"{len(classes)} classes ({each}), {len(labels):,} {kind} images of {spread} pixels"


def _division(parts: npt.NDArray[np.str_]) -> str:
    counts = {part: int((parts == part).sum()) for part in PARTS if part in parts}
    texts = [f"{count:,} to {_VERBS[part]}" for part, count in counts.items()]
    return ", ".join(texts).replace(" to", " images to", 1)


def _ignored(found: ImageList) -> str:
    return "ignored: " + ", ".join(f"{number:,} {what}" for what, number in found.ignored.items())


# Finding the files


def _divided(
    root: Path, found: ImageList, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], Labels, npt.NDArray[np.str_]]:
    """Return the classes, and the label and the part of every image, after checking that each class can be trained."""
    present, labels = np.unique(np.asarray(found.labels, str), return_inverse=True)
    names, parts = tuple(map(str, present)), np.asarray(found.parts, str)
    if classes is not None:
        if foreign := sorted(set(names) - set(classes)):
            known = f"which are not among the classes {listed(list(classes), ', ')}"
            raise DataError(f"load: {root} has images of {listed(foreign, ', ')}, {known}")
        labels = np.asarray([classes.index(name) for name in names], np.int64)[labels]
        names = tuple(classes)
    elif len(names) < 2:
        why = f"; {_ignored(found)}" if found.ignored else ""
        raise DataError(f"load: {root} needs images of 2 or more classes, one per subfolder, got {len(names)}{why}")
    for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
        if count < 2 and classes is None:
            raise DataError(
                f"load: {root}: the class {name} has one image, but needs two or more, to train and to test; "
                "add images, or remove the class"
            )
    if "" in parts:
        parts = np.full(len(labels), "train", "U10")
        for k in range(len(names)):
            places = np.flatnonzero(labels == k)
            parts[places[_EVERY - 1 :: _EVERY] if len(places) >= _EVERY else places[-1:]] = "test"
    elif "test" not in parts:
        parts = np.where(parts == "validation", "test", parts)
    for needed in ("train", "test") if classes is None else ("test",):
        if needed not in parts:
            raise DataError(f"load: {root} has no images to {needed}")
    missing = set(range(len(names))) - set(labels[parts == "train"].tolist())
    if missing and classes is None:
        lacking = ", ".join(names[k] for k in sorted(missing))
        raise DataError(f"load: {root} has classes without images to train: {lacking}")
    return names, labels, parts


def _find(root: Path, training: bool) -> ImageList:
    """Return the images of a folder, which must have some to train if `training`."""
    found = ImageList()
    folders = _subfolders(root, root, found)
    by_name = {folder.name: folder for folder in folders}
    named = {part: [by_name[one] for one in names if one in by_name] for part, names in PARTS.items()}
    if "train" not in by_name and "test" not in by_name:
        _add_classes(root, folders, "", found)
        return found
    if training and not (named["train"] and (named["test"] or named["validation"])):
        raise DataError(f"load: {root} has only one of the folders train and test; it needs both or neither")
    if len(named["validation"]) > 1:
        names = ", ".join(folder.name for folder in named["validation"])
        raise DataError(f"load: {root} has more than one folder of validation images ({names}); keep one")
    for part, places in named.items():
        for place in places:
            _add_classes(root, _subfolders(place, root, found), part, found)
    used = sum(map(len, named.values()))
    if len(folders) > used:
        found.ignore(f"beside {root.name}/train (folders)", len(folders) - used)
    return found


def _add_classes(root: Path, folders: list[Path], part: str, found: ImageList) -> None:
    """Add the images of each class, a folder."""
    for folder in folders:
        if printable(folder.name) != folder.name:  # it would appear in tables, pictures and checkpoints
            raise DataError(f"load: {folder} cannot be a class: its name has control characters")
        entries = _visible(folder, found)
        images = [path for path in entries if path.suffix.lower() in SUFFIXES]
        for path in images:
            if path.is_symlink() and not (is_inside(path, root) or is_inside(path, folder)):
                raise DataError(f"load: {path} is a link that leads out of {folder}; put the image itself there")
        for path in entries:
            if path.suffix.lower() not in SUFFIXES:
                found.ignore("inside a class (folders)" if path.is_dir() else _other(path.suffix.lower()))
        if not images:
            found.ignore("without images (folders)")
        found.files += images
        found.labels += [folder.name] * len(images)
        found.parts += [part] * len(images)


def _other(suffix: str) -> str:
    return f"{suffix} (save them as .jpg or .png)" if suffix in _FOREIGN else "without an image suffix"


def _subfolders(folder: Path, root: Path, found: ImageList) -> list[Path]:
    if folder.is_file():
        raise DataError(f"load: {folder} is neither a folder nor a table whose name ends in .csv")
    if not folder.is_dir():
        raise DataError(f"load: there is no folder {folder}")
    entries = _visible(folder, found)
    folders = [path for path in entries if path.is_dir()]
    if others := len(entries) - len(folders):
        found.ignore("outside of the folders of classes", others)
    return folders


def _visible(folder: Path, found: ImageList) -> list[Path]:
    """Return the sorted entries of a folder, without hidden ones: file managers create `._x.png` beside images."""
    entries = sorted(folder.iterdir())
    visible = [path for path in entries if not path.name.startswith(".")]
    if hidden := len(entries) - len(visible):
        found.ignore("hidden", hidden)
    return visible
