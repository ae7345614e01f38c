"""What is benchmarked: steps of one network on one batch, the same for every contestant, and the work in them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import models, nn
from xcnn.errors import UsageError, unknown
from xcnn.nn._observe import observing

__all__ = ["CLASSES", "MODES", "MOMENTUM", "Case"]

MODES = ("train", "infer")
"""What a step may be."""

CLASSES = 10
"""How many scores a network gives per image."""

MOMENTUM = 0.9
"""Of the SGD that all train with."""


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes
    ----------
    model : by name; its images have the shape that `models.MODELS` gives, but for `size`.
    batch : images per step.
    mode : `"train"`, steps of mean cross-entropy and SGD; or `"infer"`, the scores of a batch.
    threads : how many each contestant may use.
    lr : the learning rate; by default so small that the weights stay, and each step is as much work as the first. A
        batch of one is learned by heart in a few steps, or kills the network: no gradient is left then, and what
        momentum keeps decays into subnormal numbers, which some processors are slow at.
    size : height and width of the images, where they are not the usual ones.

    Raises
    ------
    UsageError
        For an unknown model or mode, a number below 1, or images smaller than the network takes.
    """

    model: str
    batch: int
    mode: str
    threads: int
    lr: float = 1e-9
    size: int | None = None

    def __post_init__(self) -> None:
        if self.model not in models.MODELS:
            raise unknown("model", self.model, models.MODELS)
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)
        for name, value in (("batch size", self.batch), ("threads", self.threads)):
            if value < 1:
                raise UsageError(f"bench: {name} must be at least 1, got {value}")
        smallest = models.MODELS[self.model].smallest
        if self.size is not None and self.size < smallest:
            raise UsageError(f"bench: {self.model} takes images of {smallest} x {smallest} or more, got {self.size}")

    def __str__(self) -> str:
        return f"{self.named}, batch {self.batch}, {self.mode}"

    @property
    def named(self) -> str:
        """The model, and the size of the images where it is not the usual one."""
        return self.model if self.size is None else f"{self.model} at {self.size}x{self.size}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        channels, height, width = models.MODELS[self.model].shape
        return channels, self.size or height, self.size or width

    def network(self) -> nn.Module:
        """Build the network, with weights that are the same each time."""
        return models.build(self.model, self.shape, CLASSES)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw the batch: images (batch, *shape), float32, and labels (batch,), the same each time."""
        rng = np.random.default_rng(0)
        return rng.random((self.batch, *self.shape), np.float32), rng.integers(0, CLASSES, self.batch)

    def flops(self) -> dict[str, int]:
        """Count the floating-point operations of a step by layer: two per multiply-add of convolutions and linear ones.

        A training step is the forward pass, the gradient of the weights and that of the input, each as much work as the
        others; the first layer needs no gradient of its input. What other layers compute is left out.
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
        """Count the bytes that a step has to move between memory and processor, at the least: no cache holds them all.

        Counted are the layers with parameters, as what is between them can be done on the way. With x and y numbers in
        and out and p parameters, inference reads x and p and writes y: `x + y + p` numbers of 4 bytes. Training does
        that, reads dy, x and p again and writes dx and the gradient of p; the update reads p, its gradient and its
        velocity and writes p and velocity: `3 x + 2 y + 8 p`. The first layer has no dx, and needs no p for it.
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
            network(np.zeros((1, *self.shape), np.float32))
        if self.mode == "infer":
            return 4 * sum(x + y + p for x, y, p in sizes)
        first, _, weights = sizes[0]
        return 4 * (sum(3 * x + 2 * y + 8 * p for x, y, p in sizes) - first - weights)
