"""MobileNetV2 and MobileNetV3, with the `state_dict` keys of torchvision."""

from functools import partial

from xcnn.models.blocks import NARROW, Shape, bottleneck, conv_norm, make_divisible, residual, squeeze_excitation
from xcnn.nn import (
    BatchNorm2d,
    Dropout,
    GlobalAvgPool,
    Hardsigmoid,
    Hardswish,
    Linear,
    Module,
    ReLU,
    ReLU6,
    Sequential,
)

__all__ = ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"]

Row = tuple[int, int, int, bool, type[Module], int]

_NORM = partial(BatchNorm2d, eps=1e-3, momentum=0.01)  # of version 3


def mobilenet_v2(shape: Shape, classes: int) -> Sequential:
    """Build MobileNetV2: inverted residual blocks with ReLU6.

    Notes
    -----
    M. Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, 2018, arXiv:1801.04381, table 2.
    """
    c = 32
    layers: list[Module] = [conv_norm(shape[0], c, stride=2, activation=ReLU6)]
    # Factor of the width, output channels, number of blocks, stride of the first.
    for factor, o, count, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(count):
            body = bottleneck(c, factor * c, o, 3, 1 if block else stride, activation=ReLU6, flat=True)
            layers.append(residual("conv", body, joins=block > 0))
            c = o
    layers.append(conv_norm(c, 1280, 1, activation=ReLU6))
    head = Sequential(Dropout(0.2), Linear(1280, classes, init=NARROW))
    return Sequential({"features": Sequential(*layers), "avgpool": GlobalAvgPool(), "classifier": head})


def mobilenet_v3_large(shape: Shape, classes: int) -> Sequential:
    """Build the large MobileNetV3, with hard swish and squeeze-and-excitation.

    Notes
    -----
    A. Howard et al., Searching for MobileNetV3, 2019, arXiv:1905.02244, table 1.
    """
    rows: list[Row] = [
        (3, 16, 16, False, ReLU, 1),
        (3, 64, 24, False, ReLU, 2),
        (3, 72, 24, False, ReLU, 1),
        (5, 72, 40, True, ReLU, 2),
        (5, 120, 40, True, ReLU, 1),
        (5, 120, 40, True, ReLU, 1),
        (3, 240, 80, False, Hardswish, 2),
        (3, 200, 80, False, Hardswish, 1),
        (3, 184, 80, False, Hardswish, 1),
        (3, 184, 80, False, Hardswish, 1),
        (3, 480, 112, True, Hardswish, 1),
        (3, 672, 112, True, Hardswish, 1),
        (5, 672, 160, True, Hardswish, 2),
        (5, 960, 160, True, Hardswish, 1),
        (5, 960, 160, True, Hardswish, 1),
    ]
    return _version_3(shape, classes, rows, 1280)


def mobilenet_v3_small(shape: Shape, classes: int) -> Sequential:
    """Build the small MobileNetV3, of table 2 of the paper; see `mobilenet_v3_large`."""
    rows: list[Row] = [
        (3, 16, 16, True, ReLU, 2),
        (3, 72, 24, False, ReLU, 2),
        (3, 88, 24, False, ReLU, 1),
        (5, 96, 40, True, Hardswish, 2),
        (5, 240, 40, True, Hardswish, 1),
        (5, 240, 40, True, Hardswish, 1),
        (5, 120, 48, True, Hardswish, 1),
        (5, 144, 48, True, Hardswish, 1),
        (5, 288, 96, True, Hardswish, 2),
        (5, 576, 96, True, Hardswish, 1),
        (5, 576, 96, True, Hardswish, 1),
    ]
    return _version_3(shape, classes, rows, 1024)


def _version_3(shape: Shape, classes: int, rows: list[Row], hidden: int) -> Sequential:
    """Build the network of a table: kernel, width, output channels, squeeze-and-excitation, activation, stride."""
    c = 16
    layers: list[Module] = [conv_norm(shape[0], c, stride=2, norm=_NORM, activation=Hardswish)]
    for kernel, width, o, squeezes, activation, stride in rows:
        gate = squeeze_excitation(width, make_divisible(width // 4), gate=Hardsigmoid) if squeezes else None
        body = bottleneck(c, width, o, kernel, stride, norm=_NORM, activation=activation, squeeze=gate)
        layers.append(residual("block", body, joins=stride == 1 and c == o))
        c = o
    layers.append(conv_norm(c, 6 * c, 1, norm=_NORM, activation=Hardswish))
    scores = [Linear(6 * c, hidden, init=NARROW), Hardswish(), Dropout(0.2), Linear(hidden, classes, init=NARROW)]
    head = Sequential(*scores)
    return Sequential({"features": Sequential(*layers), "avgpool": GlobalAvgPool(), "classifier": head})
