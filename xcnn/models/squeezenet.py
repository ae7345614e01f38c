"""SqueezeNet, with torchvision's keys."""

from xcnn.models.blocks import NARROW, Shape, chain
from xcnn.nn import Concat, Conv2d, Dropout, GlobalAvgPool, Graph, MaxPool2d, ReLU, Sequential

__all__ = ["squeezenet1_1"]


def squeezenet1_1(shape: Shape, classes: int) -> Sequential:
    """Build SqueezeNet 1.1: eight fire modules; a 1x1 convolution gives the scores. It takes 0.35 of 1.0's work.

    Notes
    -----
    F. Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and < 0.5 MB model size, 2016,
    arXiv:1602.07360; version 1.1 is of https://github.com/forresti/SqueezeNet.
    """
    features = Sequential(
        *(
            Conv2d(shape[0], 64, 3, stride=2, init="kaiming_uniform"),
            ReLU(),
            _pool(),
            _fire(64, 16, 64),
            _fire(128, 16, 64),
        ),
        *(_pool(), _fire(128, 32, 128), _fire(256, 32, 128)),
        *(_pool(), _fire(256, 48, 192), _fire(384, 48, 192), _fire(384, 64, 256), _fire(512, 64, 256)),
    )
    scores = Conv2d(512, classes, 1, init=NARROW)
    classifier = Sequential(Dropout(), scores, ReLU(), GlobalAvgPool())
    return Sequential({"features": features, "classifier": classifier})


def _pool() -> MaxPool2d:
    return MaxPool2d(3, 2, ceil_mode=True)


def _fire(c: int, squeezed: int, expanded: int) -> Graph:
    """Return a 1x1 convolution to few channels, then 1x1 and 3x3 convolutions of these side by side."""
    squeeze = {"squeeze": Conv2d(c, squeezed, 1, init="kaiming_uniform"), "squeeze_activation": ReLU()}
    one = {"expand1x1": Conv2d(squeezed, expanded, 1, init="kaiming_uniform"), "expand1x1_activation": ReLU()}
    three = {
        "expand3x3": Conv2d(squeezed, expanded, 3, padding=1, init="kaiming_uniform"),
        "expand3x3_activation": ReLU(),
    }
    ways = [*chain(one, "squeeze_activation"), *chain(three, "squeeze_activation")]
    return Graph([*chain(squeeze), *ways, ("concat", Concat(), ("expand1x1_activation", "expand3x3_activation"))])
