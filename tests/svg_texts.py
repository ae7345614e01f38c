"""Read what is written in SVG pictures."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from xcnn.plots._canvas import numbers

__all__ = ["cells", "joined", "texts"]

_SVG = "{http://www.w3.org/2000/svg}"


def texts(path: Path) -> Counter[str]:
    """Return every text of a picture, and how often it is there."""
    root = ElementTree.fromstring(path.read_text("utf-8"))
    return Counter("".join(found.itertext()).strip() for found in root.iter(f"{_SVG}text"))


def joined(path: Path) -> str:
    """Return all texts in their order, so that a sentence over several lines can be found."""
    return " ".join(texts(path))


def cells(*matrices: object) -> Counter[str]:
    """Return the texts of the cells of grids."""
    return Counter(text for matrix in matrices for text in numbers(np.asarray(matrix, np.float64)))
