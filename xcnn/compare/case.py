"""A case of a benchmark, steps of a network on one batch, and the work of a step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xcnn import models, nn
from xcnn._check import integer
from xcnn.errors import UsageError, unknown
from xcnn.nn._observe import observing

__all__ = ["MODES", "MOMENTUM", "Case"]

MODES = ("train", "infer")
"""The kinds of step."""

MOMENTUM = 0.9
"""The momentum of SGD, with which all contestants train."""


@dataclass(frozen=True)
class Case:
    """What every contestant runs.

    Attributes
    ----------
    model : name of the network.
    batch : images per step.
    mode : `"train"` for a step of SGD on the mean cross-entropy, `"infer"` for the scores of a batch.
    threads : number of threads of each contestant.
    lr : learning rate. The default is so small that the weights stay the same and all steps take the same work. A
        network that has learned its only batch has no gradient, and momentum then decays to subnormal numbers, which
        are slow on some processors.
    size : size of the images along all axes, if it differs from those of `images`.
    images : shape (c, h, w) of an image; by default that of the model's entry.
    classes : number of scores per image; by default that of the model's entry.
    pixels : sizes of the maps of scores, one label each; () for scores of whole images. See `fitted`.
    dtype : dtype of images, weights and arithmetic. Peers support float32 only.

    Raises
    ------
    UsageError
        If the model or mode is unknown, a number is below 1, or the images are smaller than the network takes.
    """

    model: str
    batch: int
    mode: str
    threads: int
    lr: float = 1e-9
    size: int | None = None
    images: tuple[int, ...] | None = None
    classes: int | None = None
    pixels: tuple[int, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        smallest = models.entry(self.model).smallest
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)
        integer("bench", "batch size", self.batch)
        integer("bench", "threads", self.threads)
        if self.size is not None and self.size < smallest:
            raise UsageError(f"bench: {self.model} takes images of {smallest} x {smallest} or more, got {self.size}")

    def __str__(self) -> str:
        return f"{self.named}, batch {self.batch}, {self.mode}"

    @property
    def named(self) -> str:
        """The model, with the size of the images if that is not the default."""
        return self.model if self.size is None else f"{self.model} at {'x'.join(map(str, self.shape[1:]))}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and sizes of the images, such as height and width."""
        channels, *sizes = self.images or models.entry(self.model).shape
        return channels, *(self.size or size for size in sizes)

    def network(self) -> nn.Module:
        """Return the network, always with the same weights."""
        return models.build(self.model, self.shape, self.classes).to("cpu", self.dtype)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the batch, always the same: images (batch, *shape) and labels (batch, *pixels)."""
        rng = np.random.default_rng(0)
        classes = models.entry(self.model).classes if self.classes is None else self.classes
        x = rng.random((self.batch, *self.shape)).astype(self.dtype)
        return x, rng.integers(0, classes, (self.batch, *self.pixels))

    def fitted(self) -> "Case":
        """Return the case with the `pixels` of its network, which runs on one image."""
        scores = self.network()(np.zeros((1, *self.shape), self.dtype))
        return replace(self, pixels=tuple(scores.shape[2:]))

    def capped(self, most: int) -> "Case":
        """Return the case with its batch halved until what is kept for backward takes at most `most` bytes."""
        batch, each = self.batch, nn.summary(self.network(), self.shape).total.kept
        while batch > 1 and batch * each > most:
            batch //= 2
        return replace(self, batch=batch)

    def flops(self) -> dict[str, int]:
        """Return the floating-point operations of a step by layer.

        A multiply-add of a convolution or linear layer counts twice; other layers do not count. In training, the
        forward pass, the gradient of the weights and that of the input take the same number each. The first layer
        needs no gradient of its input.
        """
        passes = 3 if self.mode == "train" else 1
        found: dict[str, int] = {}
        for row in nn.summary(self.network(), self.shape).rows:
            if row.multiply_adds:
                spared = self.mode == "train" and not found
                work = 2 * row.multiply_adds * self.batch * (passes - spared)
                found[row.name] = found.get(row.name, 0) + work
        return found

    def moved(self) -> int:
        """Return the least number of bytes that a step moves between memory and processor.

        Only layers with parameters count, as the layers between them could run without memory of their own. With x
        numbers in, y out and p parameters of 4 bytes, inference reads x and p and writes y: `x + y + p` numbers.
        Training also reads dy, x and p and writes dx and the gradient of p; the update reads p, its gradient and its
        velocity and writes p and the velocity: `3 x + 2 y + 8 p`. The first layer has no dx, for which it would read p.
        """
        sizes: list[tuple[int, int, int]] = []

        def observer(name: str, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
            forward, p = layer.forward, sum(math.prod(parameter.data.shape) for parameter in layer.parameters())

            def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
                y, backward = forward(x, train)
                if p:
                    sizes.append((self.batch * x.size, self.batch * y.size, p))
                return y, backward

            return observed

        network = self.network()
        with observing(network, observer):
            network(np.zeros((1, *self.shape), self.dtype))
        if self.mode == "infer":
            return 4 * sum(x + y + p for x, y, p in sizes)
        first, _, weights = sizes[0]
        return 4 * (sum(3 * x + 2 * y + 8 * p for x, y, p in sizes) - first - weights)
