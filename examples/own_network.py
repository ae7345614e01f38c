"""A network of your own, with a layer of your own: train it, save it, and load it from the file alone.

    python examples/own_network.py

`xcnn.save` writes weights, structure and class names into one file. `xcnn.load` rebuilds the network without running
anything that the file brings; layers of your own are found by the names that you pass. The figure of merit is the
accuracy, and that the loaded network gives the same bits.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import xcnn
from xcnn import data, nn, optim

__all__ = ["SqueezeExcite", "main"]


class SqueezeExcite(nn.Module):
    """Weigh the channels of a map by what the whole map shows: J. Hu, L. Shen and G. Sun, 2018, arXiv:1709.01507."""

    def __init__(self, channels: int, hidden: int) -> None:
        self.channels, self.hidden = channels, hidden  # kept under their names, so that the layer can be saved
        weights = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), nn.ReLU()),
            *(nn.Conv2d(hidden, channels, 1), nn.Sigmoid()),
        )
        self.body = nn.Graph([("weights", weights, "x"), ("product", nn.Multiply(), ("x", "weights"))])

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        """Return the weighed map and its backward pass."""
        return self.body.forward(x, train)


def main(folder: Path, epochs: int = 5) -> float:
    """Train, save and load in a folder; return the accuracy of the loaded network."""
    train, test = data.load("digits")
    model = nn.Sequential(
        *(nn.Normalize(mean=[0.3], std=[0.35]), nn.Conv2d(1, 16, 3, padding=1), nn.Hardswish(), SqueezeExcite(16, 4)),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
    )
    model.reset_parameters(0)
    trainer = xcnn.Trainer(model, optim.Adam(model.parameters(), lr=3e-3))
    trainer.fit(train, epochs)

    path = xcnn.save(model, folder / "mine.safetensors", shape=train.shape, classes=train.classes)
    loaded = xcnn.load(path, modules={"SqueezeExcite": SqueezeExcite})
    x = data.to_float(test.x)
    assert np.array_equal(loaded(x), model(x))
    accuracy = xcnn.Trainer(loaded, optim.Adam(loaded.parameters())).evaluate(test).accuracy or 0.0
    print(f"accuracy of the loaded network: {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
