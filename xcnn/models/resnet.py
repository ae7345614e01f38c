"""Residual networks for ImageNet: ResNet, ResNeXt and wide ResNet, with torchvision's keys.

Notes
-----
K. He, X. Zhang, S. Ren and J. Sun, Deep residual learning for image recognition, 2016, arXiv:1512.03385. As in
torchvision, the 3x3 convolution of a bottleneck has the stride, not the first 1x1 convolution.
"""

from collections.abc import Sequence

from xcnn.models.blocks import FAN_OUT, Shape, chain, conv_norm
from xcnn.nn import (
    Add,
    BatchNorm2d,
    Conv2d,
    GlobalAvgPool,
    Graph,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)

__all__ = ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"]


def resnet18(shape: Shape, classes: int) -> Sequential:
    """Build ResNet-18: eight blocks of two 3x3 convolutions."""
    return _resnet(shape, classes, (2, 2, 2, 2))


def resnet34(shape: Shape, classes: int) -> Sequential:
    """Build ResNet-34: 16 blocks of two 3x3 convolutions."""
    return _resnet(shape, classes, (3, 4, 6, 3))


def resnet50(shape: Shape, classes: int) -> Sequential:
    """Build ResNet-50: 16 bottlenecks of 1x1, 3x3 and 1x1 convolutions."""
    return _resnet(shape, classes, (3, 4, 6, 3), bottleneck=1)


def resnext50_32x4d(shape: Shape, classes: int) -> Sequential:
    """Build ResNeXt-50: ResNet-50 whose 3x3 convolutions have 32 groups, of four channels in the first stage.

    Notes
    -----
    S. Xie, R. Girshick, P. Dollar, Z. Tu and K. He, Aggregated residual transformations for deep neural networks, 2017,
    arXiv:1611.05431.
    """
    return _resnet(shape, classes, (3, 4, 6, 3), bottleneck=2, groups=32)


def wide_resnet50_2(shape: Shape, classes: int) -> Sequential:
    """Build ResNet-50 with 3x3 convolutions of twice as many channels.

    Notes
    -----
    S. Zagoruyko and N. Komodakis, Wide residual networks, 2016, arXiv:1605.07146.
    """
    return _resnet(shape, classes, (3, 4, 6, 3), bottleneck=2)


def _resnet(shape: Shape, classes: int, depths: Sequence[int], bottleneck: int = 0, groups: int = 1) -> Sequential:
    """Build a network of stages of `depths` blocks; `bottleneck` multiplies the width of their 3x3 convolutions.

    With 0, the blocks are basic ones.
    """
    layers: dict[str, Module] = {
        "conv1": _conv(shape[0], 64, 7, 2),
        "bn1": BatchNorm2d(64),
        "relu": ReLU(),
        "maxpool": MaxPool2d(3, 2, padding=1),
    }
    c, o = 64, 256 if bottleneck else 64
    for stage, depth in enumerate(depths):
        blocks = []
        for i in range(depth):
            stride = 2 if stage and not i else 1
            body = _bottleneck(c, o // 4 * bottleneck, o, stride, groups) if bottleneck else _basic(c, o, stride)
            blocks.append(_block(body, c, o, stride))
            c = o
        layers[f"layer{stage + 1}"] = Sequential(*blocks)
        o *= 2
    return Sequential(layers | {"avgpool": GlobalAvgPool(), "fc": Linear(c, classes)})


def _basic(c: int, o: int, stride: int) -> dict[str, Module]:
    first = {"conv1": _conv(c, o, 3, stride), "bn1": BatchNorm2d(o), "relu1": ReLU()}
    return {**first, "conv2": _conv(o, o, 3), "bn2": BatchNorm2d(o)}


def _bottleneck(c: int, width: int, o: int, stride: int, groups: int) -> dict[str, Module]:
    first = {"conv1": _conv(c, width, 1), "bn1": BatchNorm2d(width), "relu1": ReLU()}
    second = {"conv2": _conv(width, width, 3, stride, groups), "bn2": BatchNorm2d(width), "relu2": ReLU()}
    return {**first, **second, "conv3": _conv(width, o, 1), "bn3": BatchNorm2d(o)}


def _block(body: dict[str, Module], c: int, o: int, stride: int) -> Graph:
    """Return a body with its shortcut, and the ReLU after their sum."""
    nodes, shortcut = chain(body), "x"
    if stride > 1 or c != o:
        shortcut = "downsample"
        nodes.append((shortcut, conv_norm(c, o, 1, stride, activation=None), "x"))
    return Graph([*nodes, ("add", Add(), (nodes[len(body) - 1][0], shortcut)), ("relu", ReLU(), "add")])


def _conv(c: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> Conv2d:
    return Conv2d(c, o, kernel, stride, padding=kernel // 2, groups=groups, bias=False, init=FAN_OUT)
