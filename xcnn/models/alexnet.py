"""AlexNet in the form of its author's second paper, with torchvision's keys."""

from xcnn.models.blocks import Shape
from xcnn.nn import AdaptiveAvgPool2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential

__all__ = ["alexnet"]


def alexnet(shape: Shape, classes: int) -> Sequential:
    """Build AlexNet for one processor, without local response normalisation: five convolutions, three linear layers.

    Notes
    -----
    A. Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, arXiv:1404.5997.
    """
    features = Sequential(
        *(Conv2d(shape[0], 64, 11, stride=4, padding=2), ReLU(), MaxPool2d(3, 2)),
        *(Conv2d(64, 192, 5, padding=2), ReLU(), MaxPool2d(3, 2)),
        *(Conv2d(192, 384, 3, padding=1), ReLU()),
        *(Conv2d(384, 256, 3, padding=1), ReLU()),
        *(Conv2d(256, 256, 3, padding=1), ReLU(), MaxPool2d(3, 2)),
    )
    classifier = Sequential(
        *(Dropout(), Linear(256 * 6 * 6, 4096), ReLU()),
        *(Dropout(), Linear(4096, 4096), ReLU()),
        Linear(4096, classes),
    )
    return Sequential(
        {"features": features, "avgpool": AdaptiveAvgPool2d(6), "flatten": Flatten(), "classifier": classifier}
    )
