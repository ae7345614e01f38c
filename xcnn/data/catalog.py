"""The table of data sets by name. To add one, write a loader in a file of its own and add an entry here.

If it can be downloaded, also add an entry to `download.SOURCES`. Your own data set needs no entry: its name is
`package.module:function`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcnn._check import path
from xcnn._plugins import find
from xcnn.data.cifar import load_cifar10
from xcnn.data.dataset import Dataset
from xcnn.data.digits import load_digits
from xcnn.data.download import SOURCES, Progress, fetch
from xcnn.data.folder import folder_name, load_folder
from xcnn.data.mnist import load_fashion_mnist, load_mnist
from xcnn.errors import UsageError, explained, wrong_call

__all__ = ["DATASETS", "Entry", "entry", "load", "splits", "title"]


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes
    ----------
    summary : one line that describes the images.
    load : function `(data_dir, **options)` that returns the `Dataset`s (train, test) or (train, validation, test).
        `data_dir` is a Path, or None if no folder was passed and nothing can be downloaded.
    shape : channels, height and width of an image; None if the files decide.
    classes : number of classes; None if the files decide.
    sizes : number of training and of test images; None if the files decide.
    """

    summary: str
    load: Callable[..., tuple[Dataset, ...]]
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    sizes: tuple[int, int] | None = None


DATASETS: dict[str, Entry] = {
    "digits": Entry("handwritten digits, inside the package", load_digits, (1, 8, 8), 10, (1437, 360)),
    "mnist": Entry("handwritten digits", load_mnist, (1, 28, 28), 10, (60_000, 10_000)),
    "fashion-mnist": Entry("pieces of clothing", load_fashion_mnist, (1, 28, 28), 10, (60_000, 10_000)),
    "cifar10": Entry("small colour photographs", load_cifar10, (3, 32, 32), 10, (50_000, 10_000)),
    "folder": Entry("your own images, one subfolder of data_dir per class", load_folder),
}
"""Every data set by name."""


def entry(name: str) -> Entry:
    """Return the entry of a data set by its name in `DATASETS`, or make one for `package.module:function`.

    Raises
    ------
    UsageError
        If the name is unknown, or the module cannot be imported or has no such function.
    """
    found: Entry = find("data set", name, DATASETS, Entry)
    return found


def title(name: str, data_dir: Path | None) -> str:
    """Return what a data set is called in titles: a folder of images by its own name, others by theirs."""
    return name if name != "folder" or data_dir is None else folder_name(data_dir)


@explained
def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Dataset, Dataset]:
    """Load a data set by name, as (train, test). For a validation part that it may have, see `splits`.

    Parameters
    ----------
    name : one of `DATASETS`, or `package.module:function`, a function `(data_dir)` that returns the data sets
        (train, test) or (train, validation, test).
    data_dir : a folder with the files; by default they are downloaded once and cached (see `download.py`).
    progress : called during a download with (file name, bytes so far, bytes in all); see `download.Progress`.
    **options : further arguments of the loader; of the data sets in the table, only `folder` has some: `size` (of the
        images in pixels), `resize`, `background`, `skip_broken`, `in_memory`, `tell` (such as `print`) and `watch`, see
        `xcnn.data.folder.load_folder`.

    Raises
    ------
    UsageError
        If the name is unknown, the data set does not take an option, or the function does not return such `Dataset`s.
    DataError
        If files are missing or damaged, or no mirror can be reached.

    Examples
    --------
    >>> train, test = load("digits")
    >>> len(train), len(test), train.shape
    (1437, 360, (1, 8, 8))
    """
    parts = splits(name, data_dir, progress=progress, **options)
    return parts["train"], parts["test"]


@explained
def splits(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Dataset]:
    """Load a data set by name, as a dict of its parts: `train`, `validation` if it has one of its own, and `test`.

    Arguments and errors are those of `load`.

    Examples
    --------
    >>> {name: len(part) for name, part in splits("digits").items()}
    {'train': 1437, 'test': 360}
    """
    loader = entry(name).load
    if wrong := wrong_call(name, loader, (data_dir,), options):
        raise wrong
    if data_dir is None and name in SOURCES:
        data_dir = fetch(name, progress)
    loaded = loader(None if data_dir is None else path("load", "data_dir", data_dir), **options)
    names = {2: ("train", "test"), 3: ("train", "validation", "test")}
    parts = tuple(loaded) if isinstance(loaded, tuple | list) else ()
    if len(parts) not in names or not all(isinstance(part, Dataset) for part in parts):
        raise UsageError(
            f"{name}: the function must return (train, test), two xcnn.data.Dataset, or (train, validation, test)"
        )
    return dict(zip(names[len(parts)], parts, strict=True))
