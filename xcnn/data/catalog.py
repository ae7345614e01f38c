"""The table of data sets that xcnn knows by name. A new one is a loader in a file of its own and one entry here.

One that can be downloaded has an entry in `download.SOURCES` as well.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcnn.data.cifar import load_cifar10
from xcnn.data.dataset import Dataset
from xcnn.data.digits import load_digits
from xcnn.data.download import SOURCES, Progress, fetch
from xcnn.data.folder import load_folder
from xcnn.data.mnist import load_fashion_mnist, load_mnist
from xcnn.errors import UsageError, unknown

__all__ = ["DATASETS", "Entry", "load"]


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes
    ----------
    summary : what it is, in one line.
    load : (data_dir: Path, **options) -> (train, test); without `download.SOURCES` for it, `data_dir` may be None.
    shape : channels, height and width of an image; None where the files decide.
    classes : how many there are; None where the files decide.
    sizes : training and test images; None where the files decide.
    """

    summary: str
    load: Callable[..., tuple[Dataset, Dataset]]
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


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Dataset, Dataset]:
    """Load a data set by name, as (train, test).

    Parameters
    ----------
    name : one of `DATASETS`.
    data_dir : a folder that holds its files already; by default they are downloaded once and kept (see `download.py`).
    progress : told of a download, as (file name, bytes so far, bytes in all); see `download.Progress`.
    **options : what else the loader takes; only `folder` takes any: `size`.

    Raises
    ------
    UsageError
        For an unknown name, or an option that this data set does not take.
    DataError
        If files are missing or damaged, or no mirror can be reached.

    Examples
    --------
    >>> train, test = load("digits")
    >>> len(train), len(test), train.shape
    (1437, 360, (1, 8, 8))
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    loader = DATASETS[name].load
    known = [option for option in inspect.signature(loader).parameters if option != "data_dir"]
    for option in options:
        if option not in known:
            raise UsageError(f"load: {name}: {option} cannot be set (what can: {', '.join(known) or 'nothing'})")
    if data_dir is None and name in SOURCES:
        data_dir = fetch(name, progress)
    return loader(None if data_dir is None else Path(data_dir), **options)
