"""DenseNet, with torchvision's keys."""

from xcnn.models.blocks import Shape
from xcnn.nn import (
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
    init,
)
from xcnn.nn.containers import Node

__all__ = ["densenet121"]


def densenet121(shape: Shape, classes: int) -> Sequential:
    """Build DenseNet-121: blocks of 6, 12, 24 and 16 layers, each of which takes the results of all before it.

    Notes
    -----
    G. Huang, Z. Liu, L. van der Maaten and K. Weinberger, Densely connected convolutional networks, 2017,
    arXiv:1608.06993.
    """
    features: dict[str, Module] = {
        "conv0": _conv(shape[0], 64, 7, 2),
        "norm0": BatchNorm2d(64),
        "relu0": ReLU(),
        "pool0": MaxPool2d(3, 2, padding=1),
    }
    c, growth = 64, 32  # each layer adds `growth` channels
    for block, depth in enumerate((6, 12, 24, 16), 1):
        if block > 1:
            features[f"transition{block - 1}"] = _transition(c)
            c //= 2
        features[f"denseblock{block}"] = _block(c, depth, growth)
        c += depth * growth
    features["norm5"] = BatchNorm2d(c)
    # The function, unlike its name, leaves the bias at zero.
    classifier = Linear(c, classes, init=init.fan_in_uniform)
    head = {"relu": ReLU(), "avgpool": GlobalAvgPool(), "classifier": classifier}
    return Sequential({"features": Sequential(features), **head})


def _block(c: int, depth: int, growth: int) -> Graph:
    """Return layers whose results are joined to their inputs."""
    nodes: list[Node] = []
    x = "x"
    for i in range(depth):
        layer, joined = f"denselayer{i + 1}", f"concat{i + 1}"
        nodes += [(layer, _layer(c + i * growth, growth), x), (joined, Concat(), (x, layer))]
        x = joined
    return Graph(nodes)


def _layer(c: int, growth: int) -> Sequential:
    width = 4 * growth
    first = {"norm1": BatchNorm2d(c), "relu1": ReLU(), "conv1": _conv(c, width, 1)}
    return Sequential({**first, "norm2": BatchNorm2d(width), "relu2": ReLU(), "conv2": _conv(width, growth, 3)})


def _transition(c: int) -> Sequential:
    """Return layers that halve the channels, the height and the width."""
    return Sequential({"norm": BatchNorm2d(c), "relu": ReLU(), "conv": _conv(c, c // 2, 1), "pool": AvgPool2d(2)})


def _conv(c: int, o: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(c, o, kernel, stride, padding=kernel // 2, bias=False, init="kaiming_normal")
