"""The families of the grammar of networks: functions that draw the layers of a network."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xcnn import nn
from xcnn.models.drawing import Drawing, Layers
from xcnn.nn.containers import Node

__all__ = [
    "FAMILIES",
    "Family",
    "convnext",
    "densenet",
    "head",
    "inception",
    "mobilenet",
    "plain",
    "resnet",
    "unet",
    "vgg",
]


@dataclass(frozen=True)
class Family:
    """A row of the table of families.

    Attributes
    ----------
    weight : how often it is drawn, beside the weights of the others.
    layers : function of a drawing that returns the layers, which `head` follows, or the whole network.
    activations : the usual ones, in `ACTIVATIONS`; half of the networks have one of these, the others any.
    norms : the kinds of norm, `""` for none, and their weights.
    """

    weight: float
    layers: Callable[[Drawing], Layers | nn.Module]
    activations: tuple[str, ...]
    norms: Mapping[str, float]


def head(d: Drawing) -> Layers:
    """Return the layers that make scores of maps."""
    kind = "flat" if d.family == "plain" else d.pick("mean", "mean", "mean", "max", "flat", "parts")
    dropped = [nn.Dropout(0.2)] if d.some("dropout", 0.25) else []
    if kind in ("mean", "max"):
        layers: Layers = [nn.GlobalAvgPool() if kind == "mean" else nn.GlobalMaxPool()]
    else:
        most = 4 if kind == "flat" else 2
        layers = []
        if kind == "parts" or d.c * d.pixels > 8192:
            d.sizes = tuple(min(size, most) for size in d.sizes)
            layers = [d.layer("AdaptiveAvgPool")(d.sizes)]
        layers.append(nn.Flatten())
        d.c *= d.pixels
    d.sizes = ()
    if kind == "flat" and d.some("two linear layers", 0.7):
        layers += [d.linear(d.pick(32, 64, 128, 256)), d.activation()]
    return [*layers, *dropped, d.linear(d.classes)]


def plain(d: Drawing) -> Layers:
    """Return convolutions of several kinds, with pools and dropout between them."""
    layers: Layers = []
    for o, _ in d.stages(4):
        kernel, same = d.pick(1, 3, 3, 3, 5, 5, 7, 2, 4), d.pick(True, False)
        o += d.pick(0, 0, 0, 1, 2)
        strides, pools = d.pick(1, 1, 1, 2), d.pick(True, True, False)
        if min(d.sizes) < kernel + 4:
            kernel, same, strides = 3, True, 1
        layers += d.unit(o, kernel, strides, same=same and kernel % 2 == 1)
        if pools and min(d.sizes) >= 4:
            layers += d.pool()
        if d.some("dropout", 0.15):
            layers.append(d.pick(nn.Dropout(0.25), d.layer("Dropout")(0.1)))
    return layers


def vgg(d: Drawing) -> Layers:
    """Return stages of 3x3 convolutions, with pools between them."""
    layers: Layers = []
    dilated = d.some("dilated", 0.2)
    for o, halves in d.stages(4, 2):
        layers += d.pool() if halves else []
        for number in range(d.pick(1, 2, 2, 3)):
            layers += d.unit(o, 3, dilation=2 if dilated and number else 1)
    return layers


def resnet(d: Drawing) -> Layers:
    """Return residual blocks."""
    before, deep = d.some("activation first", 0.25), d.some("bottlenecks", 0.4)
    grouped = d.some("groups", 0.25 if deep else 0.1)
    gated, dilated = d.some("gates", 0.2), d.some("dilated", 0.15)
    layers = d.stem(d.base)
    for o, halves in d.stages(4, 2):
        wide = 4 * (o // 8) * 2 if deep else o
        for number in range(d.pick(1, 1, 2, 3)):
            stride = 2 if halves and not number and not dilated else 1
            groups = max(g for g in (1, 2, 4, 8) if wide % g == 0) if grouped else 1
            more: dict[str, Any] = {"groups": groups, "dilation": 2 if dilated and halves else 1}

            def body(o: int = o, wide: int = wide, stride: int = stride, more: dict[str, Any] = more) -> Layers:
                inner = max(8, wide // 2 // more["groups"] * more["groups"])
                steps: list[tuple[int, int, int, dict[str, Any]]] = [
                    (inner, 1, 1, {}),
                    (inner, 3, stride, more),
                    (wide, 1, 1, {}),
                ]
                steps = steps if deep else [(wide, 3, stride, {}), (wide, 3, 1, more)]
                found: Layers = []
                for place, (width, kernel, step, options) in enumerate(steps):
                    if before:
                        found += [*d.norm(), d.act(), d.conv(width, kernel, step, **options)]
                    else:
                        found += d.unit(width, kernel, step, place + 1 < len(steps), **options)
                return [*found, *([d.gate(d.c)] if gated else [])]

            layers.append(d.around(body))
            layers += [] if before else [d.act()]
    return [*layers, *([*d.norm(), d.act()] if before else [])]


def mobilenet(d: Drawing) -> Layers:
    """Return depthwise-separable convolutions, inverted bottlenecks, or blocks with shuffled channels."""
    kind = d.pick("separable", "inverted", "inverted", "shuffled")
    d.words.append({"separable": "separable", "inverted": "inverted bottlenecks", "shuffled": "shuffles"}[kind])
    kernel, factor = d.pick(3, 3, 3, 5, 7), d.pick(2, 3, 4, 6)
    gated = d.some("gates", 0.4) if kind == "inverted" else False
    layers = d.stem(d.base)
    for o, halves in d.stages(5, 2):
        for number in range(d.pick(1, 2, 2, 3)):
            stride = 2 if halves and not number else 1
            if kind == "separable":
                layers += [*d.unit(d.c, kernel, stride, groups=d.c), *d.unit(o, 1)]
                continue

            def body(o: int = o, stride: int = stride) -> Layers:
                if kind == "inverted":
                    wide = d.c * factor
                    found = [*d.unit(wide, 1), *d.unit(wide, kernel, stride, groups=wide)]
                    return [*found, *([d.gate(wide)] if gated else []), *d.unit(o, 1, acts=False)]
                found = [*d.unit(o, 1, groups=4 if d.c % 4 == 0 else 1), nn.ChannelShuffle(4)]
                found += d.unit(o, kernel, stride, acts=False, groups=o)
                return [*found, *d.unit(o, 1, acts=False, groups=4)]

            straight = d.maps != (o, d.sizes) or stride > 1
            layers += body() if straight else [d.around(body)]
    return [*layers, *d.unit(min(512, 4 * d.c), 1)]


def convnext(d: Drawing) -> Layers:
    """Return residual blocks of a large depthwise convolution and two 1x1 ones, or linear layers."""
    kernel, factor = d.pick(7, 7, 7, 5, 3), d.pick(4, 4, 2)
    patch = d.pick(1, 2, 4, 4)
    while min(d.sizes) < 6 * patch and patch > 1:
        patch //= 2
    linear, scaled = d.some("linear layers", 0.6), d.some("layer scale", 0.5)
    first = d.conv(d.base, patch if patch > 1 else 3, patch, same=patch == 1)
    layers: Layers = [first, *d.norm()]
    for o, halves in d.stages(4):
        if halves:
            layers += [*d.norm(), d.conv(o, 2, 2, same=False)]
        elif o != d.c:
            layers.append(d.conv(o, 1))
        for _ in range(d.pick(1, 2, 2, 3)):

            def body(o: int = o) -> Layers:
                each = d.conv(o, kernel, groups=o)
                if not linear:
                    return [each, *d.norm(), d.conv(o * factor, 1), d.act(), d.conv(o, 1)]
                wide = [d.linear(o * factor, d.pixels), d.act(), d.linear(o, d.pixels)]
                return [each, *d.last(nn.LayerNorm(o), *wide)]

            layers.append(d.around(body, scaled))
    return layers


def densenet(d: Drawing) -> Layers:
    """Return blocks of layers, each of which takes the results of all before it."""
    more, narrow = max(4, 4 * round(d.pick(8, 12, 16, 24, 32) * d.scale / 4)), d.some("bottlenecks", 0.6)
    layers = d.stem(d.base)
    for _, halves in d.stages(4, 2):
        if halves:
            layers += [*d.norm(), d.act(), d.conv(4 * (d.c // 8), 1), *d.pool()]
        nodes: list[Node] = []
        x = "x"
        for number in range(d.pick(2, 3, 4, 6)):
            c = d.c
            found: Layers = [*d.norm(), d.act()]
            if narrow:
                found += [d.conv(4 * more, 1), *d.norm(), d.act()]
            found.append(d.conv(more, 3))
            d.c = c + more
            d.count()
            layer, joined = f"layer{number}", f"concat{number}"
            nodes += [(layer, nn.Sequential(*found), x), (joined, nn.Concat(), (x, layer))]
            x = joined
        layers.append(nn.Graph(nodes))
    return [*layers, *d.norm(), d.act()]


def inception(d: Drawing) -> Layers:
    """Return branches whose results are joined."""
    layers = d.stem(d.base)
    long = (7,) + (1,) * (d.rank - 1)
    for o, halves in d.stages(3):
        layers += d.pool() if halves else []
        for _ in range(d.pick(1, 1, 2)):
            before, ways, c = d.maps, [], 0
            for kind in ("1", "3", d.pick("5", "long"), "pool"):
                d.maps = before
                width = max(4, 4 * (o // 8) // d.pick(1, 2))
                if kind == "pool":
                    d.count()
                    pool = d.pick(d.layer("MaxPool"), d.layer("AvgPool"))
                    way = [pool(3, 1, 1), *d.unit(width, 1)]
                elif kind == "long":
                    way = [*d.unit(width, 1), *d.unit(width, long), *d.unit(width, long[::-1])]
                else:
                    way = [*(d.unit(width, 1) if kind != "1" else []), *d.unit(width, int(kind))]
                ways.append(nn.Sequential(*way))
                c += d.c
            d.c = c
            d.count()
            layers.append(nn.Branches(*ways))
    return layers


def unet(d: Drawing) -> nn.Module:
    """Return a network that scores every pixel."""
    levels, joins = d.pick(2, 2, 3), d.pick("concat", "concat", "add")
    up, repeated = d.pick("transposed", "nearest", "linear"), d.pick(1, 2, 2)
    d.words += [f"{up} up", joins]
    while min(d.sizes) < 2 ** (levels + 1):
        levels -= 1
    linear = ("linear", "bilinear", "trilinear")[d.rank - 1]

    def block(o: int) -> Layers:
        return [layer for _ in range(repeated) for layer in d.unit(o, 3)]

    widths = [min(256, 4 * round(d.base * d.growth**level / 4)) for level in range(levels + 1)]
    nodes: list[Node] = [("down0", nn.Sequential(*block(widths[0])), "x")]
    kept = [d.maps]
    for level in range(1, levels + 1):
        d.sizes = tuple(size // 2 for size in d.sizes)
        nodes.append((f"down{level}", nn.Sequential(d.layer("MaxPool")(2), *block(widths[level])), nodes[-1][0]))
        kept.append(d.maps)
    for level in reversed(range(levels)):
        (c, sizes), layers = kept[level], []
        odd = [size % 2 for size in reversed(sizes)]
        if up == "transposed":
            layers.append(d.layer("ConvTranspose")(d.c, c, 2, 2))
            d.multiply_adds += d.c * c * math.prod(size // 2 * 2 for size in sizes)
        else:
            layers += [d.conv(c, 1), nn.Upsample(scale_factor=2, mode="nearest" if up == "nearest" else linear)]
        if any(odd):
            layers.append(nn.Pad(tuple(side for one in odd for side in (0, one))))
        d.c, d.sizes = c * (2 if joins == "concat" else 1), sizes
        d.count()
        merge = nn.Concat() if joins == "concat" else nn.Add()
        nodes += [(f"up{level}", nn.Sequential(*layers), nodes[-1][0])]
        nodes += [(f"join{level}", merge, (f"down{level}", f"up{level}"))]
        nodes += [(f"conv{level}", nn.Sequential(*block(c)), f"join{level}")]
    return nn.Graph([*nodes, ("scores", d.conv(d.classes, 1), nodes[-1][0])])


_PLAIN = {"": 5.0, "batch": 3.0, "instance": 1.0, "group": 1.0}
_BATCH = {"batch": 6.0, "group": 2.0, "instance": 1.0, "layer": 1.0}

FAMILIES: dict[str, Family] = {
    "plain": Family(2, plain, ("ReLU", "tanh"), _PLAIN),
    "VGG": Family(2, vgg, ("ReLU",), _PLAIN),
    "ResNet": Family(3, resnet, ("ReLU",), _BATCH | {"": 1}),
    "MobileNet": Family(3, mobilenet, ("ReLU6", "hard swish", "SiLU"), _BATCH),
    "ConvNeXt": Family(2, convnext, ("GELU",), {"layer": 3, "group": 2, "batch": 2}),
    "DenseNet": Family(1.5, densenet, ("ReLU",), _BATCH),
    "Inception": Family(1, inception, ("ReLU",), _BATCH | {"": 2}),
    "U-Net": Family(1.5, unet, ("ReLU",), _BATCH | {"": 2}),
}
"""The families by name."""
