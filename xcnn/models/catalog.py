"""The table of networks by name. To add one to this package, write a function in `networks.py` and an entry here.

Functions elsewhere need no entry: `package.module:function` may take the place of a name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xcnn import nn
from xcnn._check import generator, integer, is_integer, shown
from xcnn._plugins import find, is_foreign
from xcnn.errors import ShapeError, UsageError, XcnnError, wrong_call
from xcnn.models import networks
from xcnn.nn._weighted import undrawn

__all__ = ["MODELS", "Entry", "build", "entry"]


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes
    ----------
    summary : a description of one line.
    builder : function `(shape, classes)` that returns the network for images of shape (channels, height, width).
    smallest : the smallest height and width that it takes.
    shape : channels, height and width of the images that it is usually trained on; benchmarks and `xcnn models` use it.
    """

    summary: str
    builder: Callable[[tuple[int, int, int], int], nn.Module]
    smallest: int = 1
    shape: tuple[int, int, int] = (1, 28, 28)


MODELS: dict[str, Entry] = {
    "report": Entry("the report's network: one 3x3 filter and one linear layer", networks.report, 2),
    "lenet5": Entry("LeNet-5 with ReLU and max pooling: two convolutions, three linear layers", networks.lenet5, 12),
    "mnist_cnn": Entry("PyTorch's MNIST example without dropout: two wide convolutions", networks.mnist_cnn, 6),
    "vgg_small": Entry(
        "a small VGG: four 3x3 convolutions, two linear layers", networks.vgg_small, 4, shape=(3, 32, 32)
    ),
    "resnet20": Entry(
        "ResNet-20: residual blocks with batch norm, for 32x32 images", networks.resnet20, 4, shape=(3, 32, 32)
    ),
}
"""Every network by name."""


def entry(name: str) -> Entry:
    """Return the entry of a network by its name in `MODELS`, or make one for `package.module:function`.

    Raises
    ------
    UsageError
        If the name is unknown, or the module cannot be imported or has no such function.
    """
    found: Entry = find("model", name, MODELS, Entry)
    return found


def build(name: str, shape: Sequence[int] = (1, 28, 28), classes: int = 10, seed: int | None = 0) -> nn.Module:
    """Build a network by name, with float32 weights on the host.

    Parameters
    ----------
    name : one of `MODELS`, or `package.module:function`, a function `(shape, classes)` that returns a module. Weights
        that the function assigns are drawn anew; choose them by `init` or `Module.initialize`.
    shape : channels, height and width of the images. Above 32 x 32 pixels, the number of parameters of the networks of
        `MODELS` stays that of 32 x 32, and weights fit all these sizes.
    classes : number of scores per image.
    seed : seed of the weights. With None they are not drawn: convolutions and linear layers have read-only zeros that
        take no memory, and `load_state_dict` must load the weights.

    Raises
    ------
    UsageError
        If the name is unknown, `classes` is below 1, `seed` is not an integer of at least 0, or the function does not
        take (shape, classes), does not return a module or writes into weights.
    ShapeError
        If `shape` is not the shape of an image, or the image is smaller than the network takes.

    Examples
    --------
    >>> import numpy as np
    >>> build("lenet5")(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """
    found = entry(name)
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if len(sizes) != 3 or not all(is_integer(size) and size >= 1 for size in sizes):
        raise ShapeError(f"{name}: shape must be (channels, height, width), got {shown(shape)}")
    c, h, w = sizes
    if min(h, w) < found.smallest:
        raise ShapeError(f"{name}: images must have at least {found.smallest} x {found.smallest} pixels, got {h} x {w}")
    classes = integer(name, "classes", classes)
    rng = generator(name, "seed", 0 if seed is None else seed)
    if wrong := wrong_call(name, found.builder, ((c, h, w), classes), {}):
        raise UsageError(f"{wrong}; it is called with (shape, classes)")
    with undrawn():  # `reset_parameters` draws the weights
        try:
            model = found.builder((c, h, w), classes)
        except XcnnError as error:
            if not is_foreign(name):
                raise
            raise UsageError(f"{name}, called with (shape, classes) = ({(c, h, w)}, {classes}): {error}") from error
        if not isinstance(model, nn.Module):
            raise UsageError(f"{name}: the function must return an nn.Module, got {type(model).__name__}")
        if seed is None:
            model.reset_parameters(rng)  # seeds dropout, and draws other state than weights
    if seed is not None:
        model.reset_parameters(rng)
    return model
