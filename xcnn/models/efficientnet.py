"""EfficientNet-B0 and EfficientNet-Lite0, with the `state_dict` keys of torchvision's EfficientNet."""

import math
from collections.abc import Callable
from functools import partial

from xcnn.models.blocks import Shape, bottleneck, conv_norm, residual, squeeze_excitation
from xcnn.nn import BatchNorm2d, Dropout, GlobalAvgPool, Linear, Module, ReLU6, Sequential, SiLU, init
from xcnn.ops._window import Padding

__all__ = ["efficientnet_b0", "efficientnet_lite0"]

_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Factor of the width, kernel, stride of the first block, output channels and number of blocks of each stage."""

_DROP = 0.2
"""Probability of the dropout before the scores, and that of `StochasticDepth` that the blocks approach."""


def efficientnet_b0(shape: Shape, classes: int) -> Sequential:
    """Build EfficientNet-B0: inverted residual blocks with SiLU, squeeze-and-excitation and stochastic depth.

    Notes
    -----
    M. Tan and Q. V. Le, EfficientNet: rethinking model scaling for convolutional neural networks, 2019,
    arXiv:1905.11946, table 1.
    """
    return _efficientnet(shape, classes, SiLU, lambda c, width: squeeze_excitation(width, c // 4, SiLU))


def efficientnet_lite0(shape: Shape, classes: int) -> Sequential:
    """Build EfficientNet-Lite0: EfficientNet-B0 with ReLU6 and without squeeze-and-excitation.

    Convolutions pad as in TensorFlow, where the odd pixel comes after the map. Its published weights were trained on
    pixels `(x - 127) / 128` of 0 to 255.

    Notes
    -----
    https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
    """
    norm = partial(BatchNorm2d, eps=1e-3, momentum=0.01)
    return _efficientnet(shape, classes, ReLU6, lambda c, width: None, norm, "same")


def _efficientnet(
    shape: Shape,
    classes: int,
    activation: Callable[[], Module],
    squeeze: Callable[[int, int], Module | None],
    norm: Callable[[int], Module] = BatchNorm2d,
    padding: Padding | None = None,
) -> Sequential:
    """Build the network; `squeeze` makes the block before the last convolution of a bottleneck of c to width maps."""
    conv = partial(conv_norm, norm=norm, activation=activation, padding=padding)
    wide = partial(bottleneck, norm=norm, activation=activation, padding=padding)
    c, done, blocks = 32, 0, sum(count for *_, count in _STAGES)
    features: list[Module] = [conv(shape[0], c, stride=2)]
    for factor, kernel, stride, o, count in _STAGES:
        stage: list[Module] = []
        for block in range(count):
            width = factor * c
            body = wide(c, width, o, kernel, 1 if block else stride, squeeze=squeeze(c, width))
            drop = _DROP * (done + block) / blocks
            stage.append(residual("block", body, joins=block > 0, drop=drop))
            c = o
        features.append(Sequential(*stage))
        done += count
    features.append(conv(c, 1280, 1))
    # The published bound for 1,000 classes; for a few it would give scores so large that a new head hardly learns.
    bound = 1 / math.sqrt(max(classes, 1000))
    head = Sequential(Dropout(_DROP), Linear(1280, classes, init=partial(init.uniform, low=-bound, high=bound)))
    return Sequential({"features": Sequential(*features), "avgpool": GlobalAvgPool(), "classifier": head})
