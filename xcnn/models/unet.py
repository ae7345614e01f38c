"""U-Net: a score of every class for every pixel."""

import itertools

from xcnn.models.blocks import Shape, chain, conv_norm
from xcnn.nn import Concat, Conv2d, ConvTranspose2d, Graph, MaxPool2d, Module, Pad, Sequential

__all__ = ["unet"]


def unet(shape: Shape, classes: int) -> Graph:
    """Build the U-Net of five levels, 64 to 1,024 channels, with padding and batch norm: scores (n, classes, h, w).

    The keys are those of the UNet of https://github.com/milesial/Pytorch-UNet with `bilinear=False`. Maps whose sizes
    were odd before they were halved are padded again, so the network is for images of the size that it is built for.
    Its weights fit images of all sizes.

    Notes
    -----
    O. Ronneberger, P. Fischer and T. Brox, U-Net: convolutional networks for biomedical image segmentation, 2015,
    arXiv:1505.04597.
    """
    levels, c = ["inc", "down1", "down2", "down3", "down4"], 64
    nodes = chain({"inc": _double(shape[0], c)})
    for above, level in itertools.pairwise(levels):
        down = Sequential({"maxpool_conv": Sequential(MaxPool2d(2), _double(c, 2 * c))})
        nodes.append((level, down, above))
        c *= 2
    for i, halved in enumerate(reversed(range(4)), 1):
        enlarge: dict[str, Module] = {f"up{i}.up": ConvTranspose2d(c, c // 2, 2, stride=2)}
        odd_h, odd_w = ((size >> halved) % 2 for size in shape[1:])
        if odd_h or odd_w:
            enlarge[f"up{i}.pad"] = Pad((0, odd_w, 0, odd_h))
        nodes += chain(enlarge, nodes[-1][0])
        nodes.append((f"up{i}.concat", Concat(), (levels[halved], nodes[-1][0])))
        nodes.append((f"up{i}.conv", _double(c, c // 2), f"up{i}.concat"))
        c //= 2
    return Graph([*nodes, ("outc", Sequential({"conv": Conv2d(c, classes, 1)}), nodes[-1][0])])


def _double(c: int, o: int) -> Sequential:
    return Sequential({"double_conv": Sequential(*conv_norm(c, o), *conv_norm(o, o))})
