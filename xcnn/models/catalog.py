"""The table of networks by name. To add one to this package, write a function in a file here and an entry in `MODELS`.

Functions elsewhere need no entry: `package.module:function` may take the place of a name. So may `random-S-I`, a
network that is drawn at random; see `draw`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xcnn import nn
from xcnn._check import generator, integer, is_integer, shown
from xcnn._plugins import find, is_foreign
from xcnn.errors import ShapeError, UsageError, XcnnError, explained, wrong_call
from xcnn.models import efficientnet, mobilenet, networks, resnet, vgg
from xcnn.models.alexnet import alexnet
from xcnn.models.convnext import convnext_tiny
from xcnn.models.densenet import densenet121
from xcnn.models.googlenet import googlenet
from xcnn.models.grammar import draw, number_of
from xcnn.models.shufflenet import shufflenet_v2_x1_0
from xcnn.models.squeezenet import squeezenet1_1
from xcnn.models.unet import unet
from xcnn.nn._weighted import undrawn

__all__ = ["MODELS", "Entry", "build", "entry"]


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes
    ----------
    summary : a description of one line.
    builder : function `(shape, classes)` that returns the network for images of shape (channels, height, width). It may
        have options, as keyword arguments.
    smallest : the smallest height and width that it takes.
    shape : channels, height and width of the images that it is usually trained on, or channels and width of signals,
        or channels, depth, height and width of volumes. `build` builds it for these unless told otherwise; benchmarks
        and `xcnn models` use them.
    classes : the number of classes that it is usually trained for.
    parameters : number of elements of its parameters for these images and classes, or None.
    multiply_adds : multiply-adds of a forward pass of one such image, in 1e9, or None. For torchvision's networks, both
        numbers are those that torchvision publishes.
    """

    summary: str
    builder: Callable[..., nn.Module]
    smallest: int = 1
    shape: tuple[int, ...] = (1, 28, 28)
    classes: int = 10
    parameters: int | None = None
    multiply_adds: float | None = None

    def __call__(self, shape: Any, classes: int, **options: Any) -> nn.Module:
        """Return the network, as its function does."""
        return self.builder(shape, classes, **options)


MNIST, CIFAR, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)

MODELS: dict[str, Entry] = {
    "report": Entry("the report's: one 3x3 filter, one linear layer", networks.report, 2, MNIST, 10, 1_979, 0.000_009),
    "lenet5": Entry("LeNet-5 with ReLU and max pooling", networks.lenet5, 12, MNIST, 10, 61_706, 0.000_417),
    "mnist_cnn": Entry("PyTorch's MNIST example", networks.mnist_cnn, 6, MNIST, 10, 1_199_882, 0.011_992),
    "vgg_small": Entry("small VGG: four 3x3 convolutions", networks.vgg_small, 4, CIFAR, 10, 1_116_970, 0.025_529),
    "resnet20": Entry("small ResNet: nine residual blocks", networks.resnet20, 4, CIFAR, 10, 272_474, 0.040_813),
    "alexnet": Entry("AlexNet of 2014", alexnet, 63, IMAGENET, 1000, 61_100_840, 0.714),
    "convnext_tiny": Entry("7x7 depthwise convolutions, GELU", convnext_tiny, 32, IMAGENET, 1000, 28_589_128, 4.456),
    "densenet121": Entry("densely connected layers", densenet121, 29, IMAGENET, 1000, 7_978_856, 2.834),
    "efficientnet_b0": Entry(
        "inverted bottlenecks with gates, SiLU", efficientnet.efficientnet_b0, 1, IMAGENET, 1000, 5_288_548, 0.386
    ),
    "efficientnet_lite0": Entry(
        "EfficientNet without gates, ReLU6", efficientnet.efficientnet_lite0, 1, IMAGENET, 1000, 4_652_008, 0.385
    ),
    "googlenet": Entry("Inception v1 with batch norm", googlenet, 15, IMAGENET, 1000, 6_624_904, 1.498),
    "mobilenet_v2": Entry("inverted bottlenecks, ReLU6", mobilenet.mobilenet_v2, 1, IMAGENET, 1000, 3_504_872, 0.301),
    "mobilenet_v3_large": Entry(
        "inverted bottlenecks with gates, hard swish", mobilenet.mobilenet_v3_large, 1, IMAGENET, 1000, 5_483_032, 0.217
    ),
    "mobilenet_v3_small": Entry(
        "a smaller MobileNetV3", mobilenet.mobilenet_v3_small, 1, IMAGENET, 1000, 2_542_856, 0.057
    ),
    "resnet18": Entry("residual blocks of two layers", resnet.resnet18, 1, IMAGENET, 1000, 11_689_512, 1.814),
    "resnet34": Entry("residual blocks of two layers", resnet.resnet34, 1, IMAGENET, 1000, 21_797_672, 3.664),
    "resnet50": Entry("residual bottlenecks", resnet.resnet50, 1, IMAGENET, 1000, 25_557_032, 4.089),
    "resnext50_32x4d": Entry("ResNet-50 with 32 groups", resnet.resnext50_32x4d, 1, IMAGENET, 1000, 25_028_904, 4.23),
    "shufflenet_v2_x1_0": Entry(
        "halved and shuffled channels", shufflenet_v2_x1_0, 1, IMAGENET, 1000, 2_278_604, 0.145
    ),
    "squeezenet1_1": Entry("SqueezeNet: few parameters", squeezenet1_1, 17, IMAGENET, 1000, 1_235_496, 0.349),
    "vgg11": Entry("eight 3x3 convolutions", vgg.vgg11, 32, IMAGENET, 1000, 132_863_336, 7.609),
    "vgg11_bn": Entry("VGG-11 with batch norm", vgg.vgg11_bn, 32, IMAGENET, 1000, 132_868_840, 7.609),
    "vgg16": Entry("13 3x3 convolutions", vgg.vgg16, 32, IMAGENET, 1000, 138_357_544, 15.47),
    "vgg16_bn": Entry("VGG-16 with batch norm", vgg.vgg16_bn, 32, IMAGENET, 1000, 138_365_992, 15.47),
    "wide_resnet50_2": Entry("ResNet-50, twice as wide", resnet.wide_resnet50_2, 1, IMAGENET, 1000, 68_883_240, 11.398),
    "unet": Entry("U-Net: scores of each pixel", unet, 16, (3, 256, 256), 2, 31_037_698, 48.172),
}
"""Every network by name."""


def entry(name: str) -> Entry:
    """Return the entry of a network by its name in `MODELS`, or make one for `random-S-I`.

    `package.module:name` names an entry, or a function, for which one is made.

    Raises
    ------
    UsageError
        If the name is unknown, or the module cannot be imported or has no such function.
    """
    if (numbers := number_of(name)) is not None:
        drawn = draw(*numbers)
        work = drawn.multiply_adds / 1e9
        return Entry(drawn.summary, drawn.builder, 8, drawn.shape, drawn.classes, multiply_adds=work)
    if isinstance(name, str) and name.startswith("random-") and ":" not in name and name not in MODELS:
        raise UsageError(f"unknown model {name!r}; a random network is random-S-I, number I of the seed S: random-0-7")
    found: Entry = find("model", name, MODELS, lambda name, one: one if isinstance(one, Entry) else Entry(name, one))
    return found


@explained
def build(
    name: str, shape: Sequence[int] | None = None, classes: int | None = None, seed: int | None = 0, **options: Any
) -> nn.Module:
    """Build a network by name, with float32 weights on the host.

    Parameters
    ----------
    name : one of `MODELS`, or `package.module:function`, a function `(shape, classes)` that returns a module, or an
        `Entry`. Weights that the function assigns are drawn anew; choose them by `init` or `Module.initialize`.
        `random-S-I` is the network number I of the seed S that `draw` draws.
    shape : channels, height and width of the images; by default those of the network's entry. Above 32 x 32 pixels, the
        number of parameters of the networks of `MODELS` stays that of 32 x 32, and weights fit all these sizes.
    classes : number of scores per image, or per pixel; by default that of the entry.
    seed : seed of the weights. With None they are not drawn: convolutions and linear layers have read-only zeros that
        take no memory, and `load_state_dict` must load the weights.
    options : further arguments of the network's function, such as `filters` and `depth` of `report`.

    Raises
    ------
    UsageError
        If the name is unknown, `classes` is below 1, `seed` is not an integer of at least 0, or the function does not
        take (shape, classes) and the options, does not return a module or writes into weights.
    ShapeError
        If `shape` is not the shape of an image, or the image is smaller than the network takes.

    Examples
    --------
    >>> import numpy as np
    >>> build("lenet5")(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    >>> build("report", filters=8, depth=2)(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """
    found = entry(name)
    shape = found.shape if shape is None else shape
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    ranks = (2, 3, 4) if number_of(name) else (len(found.shape),)  # drawn networks are built for any
    if len(sizes) not in ranks or not all(is_integer(size) and size >= 1 for size in sizes):
        wanted = ", ".join(("channels", "depth", "height", "width")[i] for i in (0, *range(5 - len(found.shape), 4)))
        raise ShapeError(f"{name}: shape must be ({wanted}), got {shown(shape)}")
    if min(sizes[1:]) < found.smallest:
        least, came = (" x ".join(map(str, each)) for each in ((found.smallest,) * len(sizes[1:]), sizes[1:]))
        raise ShapeError(f"{name}: images must have at least {least} pixels, got {came}")
    classes = found.classes if classes is None else integer(name, "classes", classes)
    rng = generator(name, "seed", 0 if seed is None else seed)
    if wrong := wrong_call(name, found.builder, (sizes, classes), options):
        raise wrong if options else UsageError(f"{wrong}; it is called with (shape, classes)")
    with undrawn():  # `reset_parameters` draws the weights
        try:
            model = found.builder(sizes, classes, **options)
        except XcnnError as error:
            if not is_foreign(name):
                raise
            raise UsageError(f"{name}, called with (shape, classes) = ({sizes}, {classes}): {error}") from error
        if not isinstance(model, nn.Module):
            raise UsageError(f"{name}: the function must return an nn.Module, got {type(model).__name__}")
        if seed is None:
            model.reset_parameters(rng)  # seeds dropout, and draws other state than weights
    if seed is not None:
        model.reset_parameters(rng)
    return model
