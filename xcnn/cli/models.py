"""`xcnn models`."""

import dataclasses
from typing import Annotated

from cyclopts import Parameter

from xcnn import models as room
from xcnn.cli._console import print_json, print_line, print_table
from xcnn.errors import ShapeError
from xcnn.models.networks import LARGEST
from xcnn.nn import summary

__all__ = ["models"]


def models(
    name: str | None = None,
    /,
    *,
    shape: Annotated[tuple[int, int, int] | None, Parameter(negative=())] = None,
    classes: int | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """List the networks, or show one layer by layer.

    Parameters
    ----------
    name
        network to show in detail.
    shape
        channels, height and width of the images, separated by spaces; by default those of each network's usual data.
    classes
        number of classes; by default that of each network's usual data.
    json
        print JSON lines on stdout.
    """
    if name is not None:
        images = shape or room.entry(name).shape
        found = summary(room.build(name, images, classes, seed=None), images)
        if not json:
            for line in str(found).splitlines():
                print_line(line)
        for row in found.rows if json else ():
            print_json(dataclasses.asdict(row))
        return 0
    rows = []
    for key, entry in room.MODELS.items():
        images, count = shape or entry.shape, entry.classes if classes is None else classes
        try:
            parameters = sum(p.data.size for p in room.build(key, images, count, seed=None).parameters())
        except ShapeError:  # the images are too small
            parameters = None
        if json:
            print_json(
                {"model": key, "shape": images, "classes": count, "parameters": parameters, "summary": entry.summary}
            )
        size = "x".join(map(str, images))
        rows.append((key, size, count, "-" if parameters is None else f"{parameters:,}", entry.summary))
    if not json:
        print_table(
            "model", "images", "classes", "parameters", "description", rows=rows, right=("classes", "parameters")
        )
        print_line(f"Parameters are for these classes and images. Larger images than {LARGEST}x{LARGEST}", gap=True)
        print_line("need no more than that size, smaller ones may need fewer: --shape C H W.")
    return 0
