"""RandAugment: operations drawn from a table."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn._check import integer, number
from xcnn.data.augment import adjust
from xcnn.data.augment._batch import Images, Random, begin, in_unit_range, with_mask
from xcnn.data.augment.geometry import affine_matrix, resample
from xcnn.errors import explained

__all__ = ["rand_augment"]

_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_ADJUSTMENTS: tuple[tuple[Callable[[Images, Any], Images], Callable[[Any], Any]], ...] = (
    (adjust.brightness, lambda level: 1 + 0.9 * level),
    (adjust.saturation, lambda level: 1 + 0.9 * level),
    (adjust.contrast, lambda level: 1 + 0.9 * level),
    (adjust.sharpness, lambda level: 1 + 0.9 * level),
    (adjust.posterize, lambda level: 8 - np.rint(4 * np.abs(level))),
    (adjust.solarize, lambda level: 1 - np.abs(level)),
    (adjust.autocontrast, lambda level: level),
    (adjust.equalize, lambda level: level),
)
"""Adjustments, and their numbers at a level from -1 to 1."""


@explained
def rand_augment(x: Images, y: Any, rng: Random, n: int = 2, m: float = 9) -> tuple[Images, Any]:
    """Apply `n` operations, drawn for each image from a table of 14, to images with values in [0, 1].

    ============================================  ==================================
    operation                                     at magnitude m, with s = m / 30
    ============================================  ==================================
    identity
    shear_x, shear_y                              by +-0.3 s pixels per pixel
    translate_x, translate_y                      by +-150/331 s of width or height
    rotate                                        by +-30 s degrees
    brightness, saturation, contrast, sharpness   by the factor 1 +- 0.9 s
    posterize                                     to 8 - 4 s bits, rounded
    solarize                                      inverted from 1 - s on
    autocontrast, equalize
    ============================================  ==================================

    `n` is at most 100, and `m` lies in [0, 30]; each sign is drawn. The table is that of torchvision; moves are about
    the centre, with bilinear interpolation, and black outside. The functions that adjust colours are in
    `data.augment.adjust`.

    Source: E. D. Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
    arXiv:1909.13719.
    """
    rng = begin("rand_augment", x, y, rng)
    n, m = integer("rand_augment", "n", n, minimum=0, maximum=100), number("rand_augment", "m", m, "[0, 30]")
    x = in_unit_range("rand_augment", x).copy()
    h, w = x.shape[2:]
    for _ in range(n):
        operation = rng.integers(0, len(_MOVES) + len(_ADJUSTMENTS) + 1)  # the last is identity
        level = np.where(rng.random() < 0.5, -m / 30, m / 30)
        matrix = affine_matrix(30 * level * (operation == _MOVES.index("rotate")))
        for move, place, factor in (
            ("shear_x", (1, 0), 0.3),
            ("shear_y", (0, 1), 0.3),
            ("translate_x", (1, 2), -150 / 331 * w),
            ("translate_y", (0, 2), -150 / 331 * h),
        ):
            matrix[:, *place] += factor * level * (operation == _MOVES.index(move))
        moved = np.flatnonzero(operation < len(_MOVES))

        def move_chosen(array: Any, outside: int, moved: Any = moved, matrix: Any = matrix) -> Any:
            result = array.copy()
            result[moved] = resample(array[moved], matrix[moved], outside)
            return result

        x, y = with_mask("rand_augment", x, y, move_chosen)
        for index, (function, number_at) in enumerate(_ADJUSTMENTS, len(_MOVES)):
            chosen = np.flatnonzero(operation == index)
            if len(chosen):
                x[chosen] = function(x[chosen], number_at(level[chosen]))
    return x, y
