"""`xcnn datasets`."""

from typing import Annotated

from cyclopts import Parameter

from xcnn import data
from xcnn.cli._console import print_json, print_table

__all__ = ["datasets"]


def datasets(*, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """List the data sets.

    Parameters
    ----------
    json
        print JSON lines on stdout.
    """
    rows = []
    for name, entry in data.DATASETS.items():
        shape, sizes = entry.shape, entry.sizes
        if json:
            record = {"dataset": name, "shape": shape, "classes": entry.classes, "summary": entry.summary}
            print_json({**record, "train": sizes and sizes[0], "test": sizes and sizes[1]})
        images = "yours" if sizes is None else f"{sizes[0]:,} + {sizes[1]:,}"
        rows.append((name, images, "x".join(map(str, shape or ())) or "any", entry.classes or "any", entry.summary))
    if not json:
        figures = ("train + test", "shape", "classes")
        print_table("data set", *figures, "description", rows=rows, right=figures)
    return 0
