"""The table of networks that xcnn knows by name. A new one is a function in `networks.py` and one entry here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xcnn import nn
from xcnn.errors import ShapeError, UsageError, unknown
from xcnn.models import networks
from xcnn.nn._weighted import undrawn

__all__ = ["MODELS", "Entry", "build"]


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes
    ----------
    summary : what it is, in one line.
    builder : (shape, classes) -> the network, for images of shape (channels, height, width).
    smallest : the least height and width that it takes.
    shape : of the images that it is usually given, and measured on.
    """

    summary: str
    builder: Callable[[tuple[int, int, int], int], nn.Module]
    smallest: int
    shape: tuple[int, int, int] = (1, 28, 28)


MODELS: dict[str, Entry] = {
    "report": Entry("the report's network: one 3x3 filter and one linear layer", networks.report, 2),
    "lenet5": Entry("LeNet-5 with ReLU and max pooling: two convolutions, three linear layers", networks.lenet5, 12),
    "mnist_cnn": Entry("PyTorch's MNIST example without dropout: two wide convolutions", networks.mnist_cnn, 6),
    "vgg_small": Entry(
        "VGG in small: four 3x3 convolutions, two linear layers", networks.vgg_small, 4, shape=(3, 32, 32)
    ),
    "resnet20": Entry(
        "ResNet-20: residual blocks with batch norm, for 32x32 images", networks.resnet20, 4, shape=(3, 32, 32)
    ),
}
"""Every network by name."""


def build(name: str, shape: Sequence[int] = (1, 28, 28), classes: int = 10, seed: int | None = 0) -> nn.Module:
    """Build a network by name, with float32 weights on the host.

    Parameters
    ----------
    name : one of `MODELS`.
    shape : channels, height and width of the images.
    classes : how many scores it gives per image.
    seed : the weights depend on it alone. With None there are none yet: convolutions and linear layers have zeros that
        take no memory and cannot be written to, until `load_state_dict` brings the weights.

    Raises
    ------
    UsageError
        For an unknown name, or no class at all.
    ShapeError
        For a shape that is none of an image, or images smaller than the network takes; it names the smallest.

    Examples
    --------
    >>> import numpy as np
    >>> build("lenet5")(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    entry = MODELS[name]
    if len(shape) != 3 or min(shape) < 1:
        raise ShapeError(f"{name}: shape must be (channels, height, width), got {tuple(shape)}")
    c, h, w = shape
    if min(h, w) < entry.smallest:
        raise ShapeError(f"{name}: images must have at least {entry.smallest} x {entry.smallest} pixels, got {h} x {w}")
    if classes < 1:
        raise UsageError(f"{name}: classes must be at least 1, got {classes}")
    with undrawn():  # or the weights would be drawn twice
        model = entry.builder((c, h, w), classes)
        if seed is None:
            model.reset_parameters(0)  # what is no weight, such as the streams of dropout
    if seed is not None:
        model.reset_parameters(seed)
    return model
