"""Parts that several networks share. Their `state_dict` keys are torchvision's."""

from collections.abc import Callable, Mapping
from functools import partial

from xcnn.nn import (
    AdaptiveAvgPool2d,
    Add,
    BatchNorm2d,
    Conv2d,
    Graph,
    Module,
    Multiply,
    ReLU,
    Sequential,
    Sigmoid,
    StochasticDepth,
    init,
)
from xcnn.nn.containers import Node
from xcnn.ops._window import Padding

__all__ = [
    "FAN_OUT",
    "NARROW",
    "Shape",
    "bottleneck",
    "chain",
    "conv_norm",
    "make_divisible",
    "residual",
    "squeeze_excitation",
]

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

FAN_OUT = partial(init.kaiming_normal, mode="fan_out")
"""The initialiser of most convolutions before batch norm; biases start at zero."""

NARROW = partial(init.normal, std=0.01)
"""The initialiser of many linear layers; biases start at zero."""


def conv_norm(
    c: int,
    o: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    padding: Padding | None = None,
    norm: Callable[[int], Module] | None = BatchNorm2d,
    activation: Callable[[], Module] | None = ReLU,
) -> Sequential:
    """Return a convolution (key 0), a norm (1) and an activation (2), as torchvision's `Conv2dNormActivation`.

    Parameters
    ----------
    c, o : numbers of channels of the input and the output.
    kernel, stride, groups : as in `nn.Conv2d`.
    padding : as in `nn.Conv2d`; None pads so that stride 1 and an odd kernel keep the size of the map.
    norm : makes the norm of a number of channels. Without one (None), the convolution has a bias.
    activation : makes the activation, or None for none.

    Examples
    --------
    >>> list(conv_norm(3, 8, norm=None, activation=None).state_dict())
    ['0.weight', '0.bias']
    """
    same = (kernel - 1) // 2 if padding is None else padding
    layers: list[Module] = [Conv2d(c, o, kernel, stride, same, groups=groups, bias=norm is None, init=FAN_OUT)]
    layers += [norm(o)] if norm is not None else []
    layers += [activation()] if activation is not None else []
    return Sequential(*layers)


def make_divisible(value: float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` that is nearest to a number of channels and not more than a tenth below it.

    >>> make_divisible(33), make_divisible(10)
    (32, 16)
    """
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


def chain(modules: Mapping[str, Module], x: str = "x") -> list[Node]:
    """Return the nodes of a `nn.Graph` for named modules one after the other, of which the first takes the node `x`."""
    return [(name, module, source) for (name, module), source in zip(modules.items(), [x, *modules], strict=False)]


def squeeze_excitation(
    channels: int, squeezed: int, activation: Callable[[], Module] = ReLU, gate: Callable[[], Module] = Sigmoid
) -> Graph:
    """Build a block that multiplies each map by a number that two 1x1 convolutions compute of the means of all maps.

    Notes
    -----
    J. Hu, L. Shen and G. Sun, Squeeze-and-excitation networks, 2018, arXiv:1709.01507.
    """
    return Graph(
        [
            ("avgpool", AdaptiveAvgPool2d(1), "x"),
            ("fc1", Conv2d(channels, squeezed, 1, init=FAN_OUT), "avgpool"),
            ("activation", activation(), "fc1"),
            ("fc2", Conv2d(squeezed, channels, 1, init=FAN_OUT), "activation"),
            ("scale_activation", gate(), "fc2"),
            ("multiply", Multiply(), ("scale_activation", "x")),
        ]
    )


def bottleneck(
    c: int,
    width: int,
    o: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    norm: Callable[[int], Module] = BatchNorm2d,
    activation: Callable[[], Module] = ReLU,
    squeeze: Module | None = None,
    padding: Padding | None = None,
    flat: bool = False,
) -> Sequential:
    """Build an inverted bottleneck: a 1x1 convolution to `width` channels, a depthwise one, and a 1x1 one to `o`.

    There is no first convolution if `width` is `c`, and no activation after the last. `squeeze` comes before the last.
    If `flat`, the last convolution and its norm are not a module of their own, so that their keys have one part less.

    Notes
    -----
    M. Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, 2018, arXiv:1801.04381.
    """
    widen = [conv_norm(c, width, 1, norm=norm, activation=activation)] if width != c else []
    each = conv_norm(width, width, kernel, stride, groups=width, padding=padding, norm=norm, activation=activation)
    gate = [] if squeeze is None else [squeeze]
    narrow = conv_norm(width, o, 1, norm=norm, activation=None)
    return Sequential(*widen, each, *gate, *(narrow if flat else [narrow]))


def residual(key: str, body: Module, joins: bool, drop: float | None = None) -> Graph:
    """Build `body(x) + x`, or `body(x)` if not `joins`; state keys start with `key`.

    With `drop`, `StochasticDepth` of that probability comes before the sum.
    """
    nodes: list[Node] = [(key, body, "x")]
    if joins and drop is not None:
        nodes.append(("stochastic_depth", StochasticDepth(drop), key))
    if joins:
        nodes.append(("add", Add(), (nodes[-1][0], "x")))
    return Graph(nodes)
