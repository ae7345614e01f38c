"""`xcnn models`."""

import dataclasses
from typing import Annotated

from cyclopts import Parameter

from xcnn import models as room
from xcnn.cli._console import print_json, print_line, print_table
from xcnn.errors import ShapeError
from xcnn.nn import summary

__all__ = ["models"]


def models(
    name: str | None = None,
    /,
    *,
    shape: Annotated[
        tuple[int, int, int], Parameter(negative=(), show_default=lambda shape: " ".join(map(str, shape)))
    ] = (1, 28, 28),
    classes: int = 10,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """List the networks, or show one layer by layer.

    Parameters
    ----------
    name
        network to show in detail.
    shape
        channels, height and width of its images.
    classes
        number of classes.
    json
        print JSON lines on stdout.
    """
    if name is not None:
        found = summary(room.build(name, shape, classes), shape)
        if not json:
            for line in str(found).splitlines():
                print_line(line)
        for row in found.rows if json else ():
            print_json(dataclasses.asdict(row))
        return 0
    rows = []
    for key, entry in room.MODELS.items():
        try:
            parameters = sum(p.data.size for p in room.build(key, shape, classes).parameters())
        except ShapeError:  # the images are too small
            parameters = None
        if json:
            print_json({"model": key, "parameters": parameters, "summary": entry.summary})
        rows.append((key, "-" if parameters is None else f"{parameters:,}", entry.summary))
    if not json:
        print_table("model", "parameters", "description", rows=rows, right=("parameters",))
    return 0
