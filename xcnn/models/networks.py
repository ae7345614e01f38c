"""The networks: functions `(shape, classes)` that return a Sequential for images of shape (channels, height, width).

The networks return scores (logits). Their `state_dict` keys are those of a `torch.nn.Sequential` with the same layers.

The number of parameters is bounded: a network flattens no larger maps than those of images of 32 x 32 pixels, and
averages those of larger images to that size. Keys and shapes are then those for 32 x 32 pixels, so weights trained at
one of these sizes fit all others.
"""

import math
from collections.abc import Sequence

from xcnn._check import integer, number
from xcnn.errors import UsageError
from xcnn.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
)
from xcnn.ops._window import window_axes
from xcnn.ops.pool import pool_axes

__all__ = ["LARGEST", "lenet5", "mnist_cnn", "report", "resnet20", "vgg_small"]

Shape = tuple[int, int, int]

LARGEST = 32
"""The height and width of images above which maps are averaged before they are flattened."""


_MOST_FILTERS = 1024
"""The most filters of `report`, as its options may come from a file."""


def _flattened(features: Sequence[Module], shape: Shape) -> tuple[Module, int]:
    """Return the layer that makes one row of features of the maps of an image, and its number of features."""
    channels, sizes = _maps(features, shape)
    _, largest = _maps(features, (shape[0], LARGEST, LARGEST))
    kept = tuple(map(min, sizes, largest))
    # One layer either way, so that the keys of the layers after it stay.
    layer = Flatten() if kept == sizes else Sequential(AdaptiveAvgPool2d(kept), Flatten())
    return layer, channels * math.prod(kept)


def _maps(features: Sequence[Module], shape: Shape) -> tuple[int, tuple[int, ...]]:
    """Return the number and the sizes of the maps of an image, from the sizes alone."""
    channels, sizes = shape[0], tuple(shape[1:])
    for layer in features:
        if isinstance(layer, Conv2d):
            channels = layer.out_channels
            axes = window_axes("conv2d", sizes, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        elif isinstance(layer, MaxPool2d):
            window = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
            axes = pool_axes("max_pool2d", sizes, *window)
        else:
            continue
        sizes = tuple(axis.out for axis in axes)
    return channels, sizes


def report(shape: Shape, classes: int, filters: int = 1, depth: int = 1, dropout: float = 0.0) -> Sequential:
    """Build the report's network: one 3x3 filter without bias, ReLU, 2x2 max pooling and one linear layer.

    The options are for what the report asks next: `filters` is the number of filters, `depth` how often these three
    layers are repeated, each time with twice the filters on maps of half the size, and `dropout` the share of the last
    maps that is set to zero in training.
    """
    integer("report", "filters", filters, maximum=_MOST_FILTERS)
    most = int(math.log2(min(shape[1:])))
    if integer("report", "depth", depth) > most:
        h, w = shape[1:]
        raise UsageError(f"report: depth must be at most {most} for images of {h} x {w} pixels, got {depth}")
    features, channels = list[Module](), shape[0]
    for block in range(depth):
        features += [Conv2d(channels, filters << block, 3, padding=1, bias=False), ReLU(), MaxPool2d(2)]
        channels = filters << block
    flat, count = _flattened(features, shape)
    dropped = [Dropout(dropout)] if number("report", "dropout", dropout, "[0, 1)") else []
    return Sequential(*features, flat, *dropped, Linear(count, classes))


def lenet5(shape: Shape, classes: int) -> Sequential:
    """Build LeNet-5 in its usual modern form, with ReLU, max pooling and all channels connected.

    Notes
    -----
    Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, 1998.
    """
    features = [
        *(Conv2d(shape[0], 6, 5, padding=2), ReLU(), MaxPool2d(2)),
        *(Conv2d(6, 16, 5), ReLU(), MaxPool2d(2)),
    ]
    flat, count = _flattened(features, shape)
    scores = [Linear(count, 120), ReLU(), Linear(120, 84), ReLU(), Linear(84, classes)]
    return Sequential(*features, flat, *scores)


def mnist_cnn(shape: Shape, classes: int) -> Sequential:
    """Build the network of PyTorch's MNIST example without its dropout: 3x3 convolutions of 32 and 64 channels.

    Notes
    -----
    https://github.com/pytorch/examples, `mnist/main.py`. The second convolution does most of the work; the linear layer
    after it has most of the 1.2 million weights.
    """
    features = [
        *(Conv2d(shape[0], 32, 3), ReLU()),
        *(Conv2d(32, 64, 3), ReLU(), MaxPool2d(2)),
    ]
    flat, count = _flattened(features, shape)
    return Sequential(*features, flat, Linear(count, 128), ReLU(), Linear(128, classes))


def vgg_small(shape: Shape, classes: int) -> Sequential:
    """Build a small VGG: two pairs of 3x3 convolutions with 32 and 64 channels, then 256 features.

    Notes
    -----
    K. Simonyan and A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015,
    arXiv:1409.1556.
    """
    he = "kaiming_normal"  # trains several times faster here than the default

    def conv(c: int, o: int) -> tuple[Module, Module]:
        return Conv2d(c, o, 3, padding=1, init=he), ReLU()

    features = [
        *(*conv(shape[0], 32), *conv(32, 32), MaxPool2d(2)),
        *(*conv(32, 64), *conv(64, 64), MaxPool2d(2)),
    ]
    flat, count = _flattened(features, shape)
    return Sequential(*features, flat, Linear(count, 256, init=he), ReLU(), Linear(256, classes, init=he))


def resnet20(shape: Shape, classes: int) -> Sequential:
    """Build the residual network of 20 layers for small images: three stages of three blocks, 16, 32 and 64 channels.

    The shortcut of a block that halves the map is a 1x1 convolution with batch norm, the paper's option B; the paper's
    own small networks use option A, which pads with zeros. The network has 0.27 million parameters.

    Notes
    -----
    K. He, X. Zhang, S. Ren and J. Sun, Deep residual learning for image recognition, 2016, arXiv:1512.03385, 4.2.
    """
    layers: list[Module] = [_conv(shape[0], 16, 3), BatchNorm2d(16), ReLU()]
    for c, o in ((16, 16), (16, 32), (32, 64)):
        for block in range(3):
            layers += _block(o if block else c, o)
    return Sequential(*layers, GlobalAvgPool(), Linear(64, classes))


def _block(c: int, o: int) -> tuple[Module, Module]:
    """Return two 3x3 convolutions with their shortcut, and the ReLU after the sum. More channels halve the map."""
    stride = o // c
    body = Sequential(_conv(c, o, 3, stride), BatchNorm2d(o), ReLU(), _conv(o, o, 3), BatchNorm2d(o))
    shortcut = Sequential(_conv(c, o, 1, stride), BatchNorm2d(o)) if stride > 1 else None
    return Residual(body, shortcut), ReLU()


def _conv(c: int, o: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(c, o, kernel, stride, padding=kernel // 2, bias=False, init="kaiming_normal")
