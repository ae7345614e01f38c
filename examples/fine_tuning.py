"""Fine-tuning: a network that knows the ten digits learns new classes, pairs of digits, from one image of each digit.

    python examples/fine_tuning.py

The trunk is frozen: it keeps its weights, and nothing is computed backward through it; only the new head is trained.
The figure of merit is the accuracy, beside that of the same network trained on the same ten images from the start.
"""

import numpy as np

from xcnn import Trainer, data, nn, optim

__all__ = ["main", "network", "pairs"]


def network(classes: int) -> nn.Sequential:
    """Return a trunk and a head."""
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(128, 32), nn.ReLU()),
    )
    return nn.Sequential(trunk, nn.Linear(32, classes))


def pairs(digits: data.Dataset) -> data.Dataset:
    """Return the same images with five classes: 0 or 1, 2 or 3, ..."""
    return data.Dataset(digits.x, digits.y // 2, ("0-1", "2-3", "4-5", "6-7", "8-9"), "pairs")


def _trained(model: nn.Sequential, train: data.Dataset, epochs: int, lr: float = 1e-2) -> Trainer:
    """Train what is not frozen."""
    trainer = Trainer(model, optim.Adam(model.parameters(), lr))
    trainer.fit(data.Loader(train, 16), epochs)
    return trainer


def main(epochs: int = 60) -> tuple[float, float]:
    """Return the accuracy of the fine-tuned network and of one trained from the start."""
    train, test = data.load("digits")
    few = np.concatenate([np.flatnonzero(train.y == digit)[:1] for digit in range(10)])

    digits = network(10)
    digits.reset_parameters(0)
    _trained(digits, train, epochs=8, lr=3e-3)

    tuned, fresh = network(5), network(5)
    tuned.reset_parameters(1)
    fresh.reset_parameters(1)
    tuned[0].load_state_dict(digits[0].state_dict())
    tuned[0].freeze()

    found = [
        _trained(model, pairs(train[few]), epochs).evaluate(pairs(test)).accuracy or 0.0 for model in (tuned, fresh)
    ]
    print(f"accuracy with ten images: {found[0]:.2%} fine-tuned, {found[1]:.2%} from the start")
    return found[0], found[1]


if __name__ == "__main__":
    main()
