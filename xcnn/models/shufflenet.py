"""ShuffleNetV2, with the `state_dict` keys of torchvision."""

from xcnn.models.blocks import Shape
from xcnn.nn import (
    Apply,
    BatchNorm2d,
    ChannelShuffle,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)

__all__ = ["shufflenet_v2_x1_0"]


def shufflenet_v2_x1_0(shape: Shape, classes: int) -> Sequential:
    """Build ShuffleNetV2 of width 1: blocks that pass half of the maps on and shuffle the channels.

    Notes
    -----
    N. Ma, X. Zhang, H.-T. Zheng and J. Sun, ShuffleNet V2: practical guidelines for efficient CNN architecture design,
    2018, arXiv:1807.11164, table 5.
    """
    c = 24
    layers: dict[str, Module] = {"conv1": Sequential(*_conv(shape[0], c, 3, 2)), "maxpool": MaxPool2d(3, 2, padding=1)}
    for name, count, o in (("stage2", 4, 116), ("stage3", 8, 232), ("stage4", 4, 464)):
        layers[name] = Sequential(_halving(c, o), *(_unit(o) for _ in range(count - 1)))
        c = o
    layers |= {"conv5": Sequential(*_conv(c, 1024)), "avgpool": GlobalAvgPool(), "fc": Linear(1024, classes)}
    return Sequential(layers)


def _unit(c: int) -> Graph:
    """Build the block that passes the first half of the maps on, and computes the second half of the others."""
    half = c // 2
    return Graph(
        [
            ("kept", Apply("slice", dim=1, start=0, stop=half), "x"),
            ("taken", Apply("slice", dim=1, start=half, stop=c), "x"),
            ("branch2", _branch(half, half), "taken"),
            ("concat", Concat(), ("kept", "branch2")),
            ("shuffle", ChannelShuffle(2), "concat"),
        ]
    )


def _halving(c: int, o: int) -> Graph:
    """Build the block that halves the maps' height and width, in two branches of all of them."""
    half = o // 2
    return Graph(
        [
            ("branch1", Sequential(*_depthwise(c, 2), *_conv(c, half)), "x"),
            ("branch2", _branch(c, half, 2), "x"),
            ("concat", Concat(), ("branch1", "branch2")),
            ("shuffle", ChannelShuffle(2), "concat"),
        ]
    )


def _branch(c: int, o: int, stride: int = 1) -> Sequential:
    return Sequential(*_conv(c, o), *_depthwise(o, stride), *_conv(o, o))


def _conv(c: int, o: int, kernel: int = 1, stride: int = 1) -> tuple[Module, ...]:
    return Conv2d(c, o, kernel, stride, kernel // 2, bias=False), BatchNorm2d(o), ReLU()


def _depthwise(c: int, stride: int) -> tuple[Module, ...]:
    return Conv2d(c, c, 3, stride, 1, groups=c, bias=False), BatchNorm2d(c)
