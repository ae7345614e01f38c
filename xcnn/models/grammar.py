"""A grammar of networks: sensible networks of the usual families, drawn at random for benchmarks and tests.

The network `random-S-I` is the network number I of the seed S, for `build`, `xcnn bench` and all other commands. A draw
chooses the rank and size of the images, a family, and in it depth, width, kernels, norm, activation and pools. Another
release of xcnn may draw another network.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import nn
from xcnn._check import integer
from xcnn.models.drawing import ACTIVATIONS, Drawing
from xcnn.models.families import FAMILIES, head
from xcnn.nn._weighted import undrawn

__all__ = ["MULTIPLY_ADDS", "NUMBERS", "Drawn", "draw", "drawn_name", "number_of"]

MULTIPLY_ADDS = 75_000_000
"""The most multiply-adds of a forward pass of one image: a training step of 32 images takes 15 GFLOP."""

NUMBERS = 1_500_000
"""The most numbers in the results of all layers for one image."""


@dataclass(frozen=True)
class Drawn:
    """A network of the grammar.

    Attributes
    ----------
    summary : its family and main choices.
    shape : channels and sizes of the images, signals or volumes.
    classes : number of scores.
    multiply_adds : multiply-adds of a forward pass of one image.
    builder : function `(shape, classes)` that returns the network, for images of other shapes, too.
    """

    summary: str
    shape: tuple[int, ...]
    classes: int
    multiply_adds: int
    builder: Callable[[Any, int], nn.Module]


def drawn_name(seed: int, index: int) -> str:
    """Return the name of a network of the grammar.

    >>> drawn_name(0, 7)
    'random-0-7'
    """
    return f"random-{integer('draw', 'seed', seed, 0)}-{integer('draw', 'index', index, 0)}"


def number_of(name: Any) -> tuple[int, int] | None:
    """Return the seed and the number of a network from its name, or None if it is no name of the grammar."""
    found = re.fullmatch(r"random-(\d{1,9})-(\d{1,9})", name) if isinstance(name, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


@functools.lru_cache(256)
def draw(seed: int, index: int) -> Drawn:
    """Return the network number `index` of a seed.

    Channels and images shrink until the network is within `MULTIPLY_ADDS` and `NUMBERS`.
    """
    scale = 1.0
    while True:
        drawing, shape, classes, _ = _network(seed, index, scale)
        if drawing.multiply_adds <= MULTIPLY_ADDS and drawing.numbers <= NUMBERS:
            break
        scale *= 0.9
    return Drawn(
        ", ".join(dict.fromkeys(drawing.words)),
        shape,
        classes,
        drawing.multiply_adds,
        lambda shape, classes: _network(seed, index, scale, tuple(shape), classes)[-1],
    )


_EDGES = {1: (32, 2048), 2: (8, 128), 3: (8, 32)}
"""The smallest and the largest size of images by the number of spatial axes."""


def _network(
    seed: int, index: int, scale: float, shape: tuple[int, ...] = (), classes: int = 0
) -> tuple[Drawing, tuple[int, ...], int, nn.Module]:
    """Return the finished drawing, the shape of its images, the number of its classes and the network."""
    drawing = Drawing(np.random.default_rng([seed, index]), scale)
    pick, weighted = drawing.pick, drawing.weighted
    rank, family = weighted({2: 8, 1: 1, 3: 1}), weighted({name: row.weight for name, row in FAMILIES.items()})
    low, high = _EDGES[rank]
    edge = low * (high / low) ** drawing.rng.random() ** 0.7
    sides = [edge, *(edge * pick(1, 1, 1, 0.75, 1.3) for _ in range(rank - 1))]
    channels, several = pick(3, 3, 3, 3, 1, 1, 2, 4, 12), pick(10, 10, 2, 5, 100, 1000)
    shape = shape or (channels, *(min(high, max(low, round(side * math.sqrt(scale)))) for side in sides))
    classes = classes or (min(several, 10) if family == "U-Net" else several)
    row = FAMILIES[family]
    other = weighted({name: weight for name, (weight, _) in ACTIVATIONS.items()})
    drawing.begin(shape, classes, family, weighted(row.norms), pick(*row.activations, *row.activations, other, other))
    with undrawn():
        body = row.layers(drawing)
        network = body if isinstance(body, nn.Module) else nn.Sequential(*body, *head(drawing))
    return drawing, shape, classes, network
