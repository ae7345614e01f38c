"""The networks themselves: functions `(shape, classes) -> nn.Sequential` for images of shape (channels, height, width).

All give scores (logits), which the loss turns into probabilities. Their `state_dict` keys are those of the
`torch.nn.Sequential` with the same layers.
"""

from collections.abc import Sequence

import numpy as np

from xcnn.nn import Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential

__all__ = ["lenet5", "report"]

Shape = tuple[int, int, int]


def _features(layers: Sequence[Module], shape: Shape) -> int:
    """Count the features per image behind `layers`, by running them: the layers alone know their sizes."""
    return int(Sequential(*layers)(np.zeros((1, *shape), np.float32)).shape[1])


def report(shape: Shape, classes: int) -> Sequential:
    """Build the report's network: one 3x3 filter without bias, ReLU, 2x2 max pooling and one linear layer."""
    layers = [Conv2d(shape[0], 1, 3, padding=1, bias=False), ReLU(), MaxPool2d(2), Flatten()]
    return Sequential(*layers, Linear(_features(layers, shape), classes))


def lenet5(shape: Shape, classes: int) -> Sequential:
    """Build LeNet-5 as it is written today, with ReLU, max pooling and no partial connections.

    Notes
    -----
    Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, 1998.
    """
    layers = [
        *(Conv2d(shape[0], 6, 5, padding=2), ReLU(), MaxPool2d(2)),
        *(Conv2d(6, 16, 5), ReLU(), MaxPool2d(2)),
        Flatten(),
    ]
    return Sequential(
        *layers,
        *(Linear(_features(layers, shape), 120), ReLU()),
        *(Linear(120, 84), ReLU()),
        Linear(84, classes),
    )
