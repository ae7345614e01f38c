"""A network that is being drawn: random choices, layers that fit the maps so far, and the work up to them."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.nn.containers import Node

__all__ = ["ACTIVATIONS", "Drawing", "Layers"]

Layers = list[nn.Module]

ACTIVATIONS: dict[str, tuple[float, Callable[[], nn.Module]]] = {
    "ReLU": (8, nn.ReLU),
    "ReLU6": (2, nn.ReLU6),
    "leaky ReLU": (2, lambda: nn.LeakyReLU(0.1)),
    "PReLU": (1, nn.PReLU),
    "ELU": (1, nn.ELU),
    "CELU": (0.5, nn.CELU),
    "SELU": (0.5, nn.SELU),
    "GELU": (3, nn.GELU),
    "GELU by tanh": (1, lambda: nn.GELU("tanh")),
    "SiLU": (3, nn.SiLU),
    "hard swish": (2, nn.Hardswish),
    "Mish": (1, nn.Mish),
    "tanh": (1, nn.Tanh),
    "sigmoid": (0.5, nn.Sigmoid),
    "softplus": (0.5, nn.Softplus),
    "softsign": (0.25, nn.Softsign),
    "hard tanh": (0.25, nn.Hardtanh),
}
"""Activations with the weights of their draw."""


class Drawing:
    """The state of a draw: the number and the sizes of the maps so far, and the work up to them.

    Methods that add layers return them and change that state. How many numbers are drawn does not depend on sizes and
    widths more than is inevitable, so that a smaller scale keeps the kind of network.
    """

    def __init__(self, rng: np.random.Generator, scale: float) -> None:
        self.rng, self.scale = rng, scale
        self.words: list[str] = []
        self.multiply_adds = self.numbers = 0

    def begin(self, shape: tuple[int, ...], classes: int, family: str, norm: str, activation: str) -> None:
        """Start at images of a shape."""
        self.c, self.sizes, self.rank, self.classes = shape[0], shape[1:], len(shape) - 1, classes
        self.family, self.norm_kind, self.activation = family, norm, ACTIVATIONS[activation][1]
        self.words += [family, f"{norm} norm" if norm else "no norm", activation]
        first = self.pick(6, 8, 12, 16, 16, 20, 24, 32, 32, 48, 64)
        self.base, self.growth = max(4, 4 * round(first * self.scale / 4)), self.pick(1.25, 1.5, 2, 2)

    # Draws.

    def pick(self, *choices: Any) -> Any:
        """Return one of the choices, all equally likely."""
        return choices[self.rng.integers(len(choices))]

    def weighted(self, weights: Mapping[Any, float]) -> Any:
        """Return one of the keys, as likely as its weight."""
        shares = np.array([*weights.values()], float)
        return [*weights][self.rng.choice(len(shares), p=shares / shares.sum())]

    def some(self, word: str, probability: float) -> bool:
        """Return whether to do something, and note it among the words."""
        chosen = bool(self.rng.random() < probability)
        self.words += [word] if chosen else []
        return chosen

    # Layers.

    @property
    def pixels(self) -> int:
        """The number of pixels of a map."""
        return math.prod(self.sizes)

    @property
    def maps(self) -> tuple[int, tuple[int, ...]]:
        """The number and the sizes of the maps."""
        return self.c, self.sizes

    @maps.setter
    def maps(self, maps: tuple[int, tuple[int, ...]]) -> None:
        self.c, self.sizes = maps

    def layer(self, name: str) -> Any:
        """Return the class of a layer for the rank of the maps: `layer("Conv")`."""
        return getattr(nn, f"{name}{self.rank}d")

    def count(self, terms: int = 0) -> None:
        """Count a result of the size of the maps, each number of which is a sum of `terms` products."""
        self.numbers += self.c * self.pixels
        self.multiply_adds += self.c * self.pixels * terms

    def conv(
        self,
        o: int,
        kernel: int | tuple[int, ...] = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        same: bool = True,
        bias: bool = True,
    ) -> nn.Module:
        """Return a convolution; with `same`, stride 1 and an odd kernel keep the size of the maps."""
        window = (kernel,) * self.rank if isinstance(kernel, int) else kernel
        padding = tuple((k - 1) // 2 * dilation if same else 0 for k in window)
        layer: nn.Module = self.layer("Conv")(
            self.c, o, window, stride, padding, dilation, groups, bias=bias, init="kaiming_normal"
        )
        terms = math.prod(window) * self.c // groups
        self.c, self.sizes = (
            o,
            tuple(
                (size + 2 * p - dilation * (k - 1) - 1) // stride + 1
                for size, p, k in zip(self.sizes, padding, window, strict=True)
            ),
        )
        self.count(terms)
        return layer

    def linear(self, o: int, pixels: int = 1) -> nn.Module:
        """Return a linear layer, which is applied to a number of pixels of each image."""
        layer = nn.Linear(self.c, o, init="kaiming_normal")
        self.multiply_adds += self.c * o * pixels
        self.numbers += o * pixels
        self.c = o
        return layer

    def act(self) -> nn.Module:
        """Return the activation."""
        self.count()
        return self.activation()

    def last(self, *layers: nn.Module) -> Layers:
        """Return layers that work on the channels as the last axis."""
        axes = range(1, self.rank + 1)
        there, back = nn.Apply("permute", dims=(0, *(axis + 1 for axis in axes), 1)), (0, self.rank + 1, *axes)
        return [there, *layers, nn.Apply("permute", dims=back)]

    def norm(self) -> Layers:
        """Return the norm, which takes no or several layers."""
        kind, c = self.norm_kind, self.c
        if not kind:
            return []
        self.count()
        if kind == "layer":
            return self.last(nn.LayerNorm(c))
        if kind == "group" or self.pixels == 1:  # the others need several numbers per channel of one image
            return [nn.GroupNorm(max(g for g in (1, 2, 4, 8) if c % g == 0), c)]
        return [self.layer("BatchNorm")(c) if kind == "batch" else self.layer("InstanceNorm")(c, affine=True)]

    def unit(
        self, o: int, kernel: int | tuple[int, ...] = 3, stride: int = 1, acts: bool = True, **more: Any
    ) -> Layers:
        """Return a convolution, the norm and, if `acts`, the activation."""
        conv = self.conv(o, kernel, stride, bias=not self.norm_kind, **more)
        return [conv, *self.norm(), *([self.act()] if acts else [])]

    def pool(self) -> Layers:
        """Return a layer that halves the maps."""
        kind = self.pick("max 2", "max 2", "max 3", "avg 2", "avg 3", "ceil", "conv")
        self.words.append(
            {"max": "max pool", "avg": "average pool", "ceil": "max pool", "conv": "strides"}[kind[:4].strip()]
        )
        if kind == "conv":
            return self.unit(self.c, 3, 2)
        layer = self.layer("AvgPool" if kind.startswith("avg") else "MaxPool")
        up = kind == "ceil" or kind.endswith("3")
        self.sizes = tuple((size + up) // 2 for size in self.sizes)
        self.count()
        return [layer(3, 2, 1) if kind.endswith("3") else layer(2, ceil_mode=kind == "ceil")]

    def gate(self, c: int) -> nn.Module:
        """Return a squeeze and excitation."""
        inner = max(4, c // self.pick(4, 8))
        self.multiply_adds += 2 * c * inner
        self.count()
        conv, gate = self.layer("Conv"), self.pick(nn.Sigmoid, nn.Hardsigmoid)
        mean = self.layer("AdaptiveAvgPool")(1)
        ways = nn.Sequential(mean, conv(c, inner, 1), self.activation(), conv(inner, c, 1), gate())
        return nn.Graph([("gate", ways, "x"), ("y", nn.Multiply(), ("x", "gate"))])

    def around(self, body: Callable[[], Layers], scaled: bool = False) -> nn.Module:
        """Return a residual block; its shortcut is a 1x1 convolution where the maps change."""
        before, layers = self.maps, nn.Sequential(*body())
        after, self.maps = self.maps, before
        shortcut: Layers = []
        if before != after:
            stride = 1 if before[1] == after[1] else 2
            if stride > 1 and self.family == "ResNet" and self.pick(True, False, False):
                shortcut.append(self.layer("AvgPool")(2, ceil_mode=True))
                self.sizes, stride = after[1], 1
            shortcut += self.unit(after[0], 1, stride, acts=False)
        self.maps = after
        self.count()
        if not scaled:
            return nn.Residual(layers, nn.Sequential(*shortcut) if shortcut else None)
        weight = nn.Parameter(np.full((self.c, *(1,) * self.rank), 0.1, np.float32))
        nodes: list[Node] = [("scale", weight, ()), ("body", layers, "x")]
        nodes += [("scaled", nn.Multiply(), ("scale", "body")), ("add", nn.Add(), ("scaled", "x"))]
        return nn.Graph(nodes)

    def stages(self, most: int, least: int = 1) -> Iterable[tuple[int, bool]]:
        """Yield the number of channels of each stage, and whether it halves the maps."""
        o: float = self.base
        for stage in range(self.rng.integers(least, most + 1)):
            yield min(256, 4 * round(o / 4)), stage > 0 and min(self.sizes) >= 4
            o *= self.growth

    def stem(self, o: int) -> Layers:
        """Return the first layers, which halve large maps."""
        large = min(self.sizes) >= 40
        layers = self.unit(o, self.pick(3, 3, 5, 7), 2 if large else 1)
        return [*layers, *(self.pool() if large and min(self.sizes) >= 32 and self.pick(True, False) else [])]
