"""GoogLeNet (Inception v1) with batch norm, with torchvision's keys."""

from xcnn.models.blocks import NARROW, Shape
from xcnn.nn import (
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    GlobalAvgPool,
    Graph,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)

__all__ = ["googlenet"]


def googlenet(shape: Shape, classes: int) -> Sequential:
    """Build GoogLeNet without its auxiliary classifiers: nine inception modules.

    torchvision's weights are for images with a mean and a standard deviation of 0.5 per channel, unlike those of the
    other networks.

    Notes
    -----
    C. Szegedy et al., Going deeper with convolutions, 2015, arXiv:1409.4842. As in torchvision, there is batch norm,
    and the third branch of a module has a 3x3 convolution in place of a 5x5 one.
    """
    layers: dict[str, Module] = {
        "conv1": _conv(shape[0], 64, 7, 2),
        "maxpool1": _pool(3),
        "conv2": _conv(64, 64, 1),
        "conv3": _conv(64, 192, 3),
        "maxpool2": _pool(3),
        "inception3a": _inception(192, 64, 96, 128, 16, 32, 32),
        "inception3b": _inception(256, 128, 128, 192, 32, 96, 64),
        "maxpool3": _pool(3),
        "inception4a": _inception(480, 192, 96, 208, 16, 48, 64),
        "inception4b": _inception(512, 160, 112, 224, 24, 64, 64),
        "inception4c": _inception(512, 128, 128, 256, 24, 64, 64),
        "inception4d": _inception(512, 112, 144, 288, 32, 64, 64),
        "inception4e": _inception(528, 256, 160, 320, 32, 128, 128),
        "maxpool4": _pool(2),
        "inception5a": _inception(832, 256, 160, 320, 32, 128, 128),
        "inception5b": _inception(832, 384, 192, 384, 48, 128, 128),
        "avgpool": GlobalAvgPool(),
        "dropout": Dropout(0.2),
        "fc": Linear(1024, classes, init=NARROW),
    }
    return Sequential(layers)


def _inception(c: int, one: int, three_in: int, three: int, five_in: int, five: int, pooled: int) -> Graph:
    """Return four branches, joined: a 1x1 convolution, two of a 1x1 and a 3x3 one, and pooling with a 1x1 one."""
    branches = {
        "branch1": _conv(c, one, 1),
        "branch2": Sequential(_conv(c, three_in, 1), _conv(three_in, three, 3)),
        "branch3": Sequential(_conv(c, five_in, 1), _conv(five_in, five, 3)),
        "branch4": Sequential(MaxPool2d(3, 1, padding=1, ceil_mode=True), _conv(c, pooled, 1)),
    }
    return Graph([*((name, branch, "x") for name, branch in branches.items()), ("concat", Concat(), tuple(branches))])


def _conv(c: int, o: int, kernel: int, stride: int = 1) -> Sequential:
    conv = Conv2d(c, o, kernel, stride, padding=kernel // 2, bias=False, init=NARROW)
    return Sequential({"conv": conv, "bn": BatchNorm2d(o, eps=0.001), "relu": ReLU()})


def _pool(kernel: int) -> MaxPool2d:
    return MaxPool2d(kernel, 2, ceil_mode=True)
