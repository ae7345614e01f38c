"""VGG with and without batch norm, with torchvision's keys.

Notes
-----
K. Simonyan and A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015, arXiv:1409.1556.
Batch norm is not in the paper.
"""

from collections.abc import Sequence

from xcnn.models.blocks import FAN_OUT, NARROW, Shape
from xcnn.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)

__all__ = ["vgg11", "vgg11_bn", "vgg16", "vgg16_bn"]


def vgg11(shape: Shape, classes: int) -> Sequential:
    """Build VGG-11, the paper's network A: eight 3x3 convolutions and three linear layers."""
    return _vgg(shape, classes, (1, 1, 2, 2, 2))


def vgg11_bn(shape: Shape, classes: int) -> Sequential:
    """Build VGG-11 with batch norm after each convolution."""
    return _vgg(shape, classes, (1, 1, 2, 2, 2), norm=True)


def vgg16(shape: Shape, classes: int) -> Sequential:
    """Build VGG-16, the paper's network D: 13 3x3 convolutions and three linear layers."""
    return _vgg(shape, classes, (2, 2, 3, 3, 3))


def vgg16_bn(shape: Shape, classes: int) -> Sequential:
    """Build VGG-16 with batch norm after each convolution."""
    return _vgg(shape, classes, (2, 2, 3, 3, 3), norm=True)


def _vgg(shape: Shape, classes: int, depths: Sequence[int], norm: bool = False) -> Sequential:
    """Build a network of stages of `depths` convolutions with max pooling after each."""
    features: list[Module] = []
    c = shape[0]
    for depth, o in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            features.append(Conv2d(c, o, 3, padding=1, init=FAN_OUT))
            features += [BatchNorm2d(o), ReLU()] if norm else [ReLU()]
            c = o
        features.append(MaxPool2d(2))
    classifier = Sequential(
        *(Linear(512 * 7 * 7, 4096, init=NARROW), ReLU(), Dropout()),
        *(Linear(4096, 4096, init=NARROW), ReLU(), Dropout()),
        Linear(4096, classes, init=NARROW),
    )
    head = {"avgpool": AdaptiveAvgPool2d(7), "flatten": Flatten(), "classifier": classifier}
    return Sequential({"features": Sequential(*features), **head})
