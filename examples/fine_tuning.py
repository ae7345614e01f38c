"""Fine-tuning: a network that knows the digits 0 to 4 learns 5 to 9 from ten images each, with a frozen trunk.

    python examples/fine_tuning.py

The trunk keeps its weights and is computed forward only; a new head is trained. The figure of merit is the accuracy on
the digits 5 to 9, beside that of the same network trained on the same fifty images from the start.
"""

import numpy as np

from xcnn import Trainer, data, nn, optim

__all__ = ["few", "main", "network", "of_classes"]


def network() -> nn.Sequential:
    """Return a trunk and a head of five classes."""
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    )
    return nn.Sequential(trunk, nn.Linear(128, 5))


def of_classes(dataset: data.Dataset, first: int) -> data.Dataset:
    """Return the images of five classes from `first` on, numbered from 0."""
    chosen = np.isin(dataset.y, range(first, first + 5))
    return data.Dataset(dataset.x[chosen], dataset.y[chosen] - first, dataset.classes[first : first + 5], "digits")


def few(dataset: data.Dataset, count: int = 10) -> data.Dataset:
    """Return the first `count` images of each class."""
    return dataset[np.concatenate([np.flatnonzero(dataset.y == k)[:count] for k in range(5)])]


def main(epochs: int = 20) -> tuple[float, float]:
    """Return the accuracy of the fine-tuned network and of one trained from the start."""
    train, test = data.load("digits")
    old, new = of_classes(train, 0), few(of_classes(train, 5))

    model = network()
    model.reset_parameters(0)
    Trainer(model, optim.Adam(model.parameters(), lr=3e-3)).fit(old, epochs=8)

    model[0].freeze()
    model[1].reset_parameters(1)
    tuned = Trainer(model, optim.Adam(model.parameters(), lr=1e-2))
    tuned.fit(new, epochs)

    fresh = network()
    fresh.reset_parameters(0)
    scratch = Trainer(fresh, optim.Adam(fresh.parameters(), lr=1e-2))
    scratch.fit(new, epochs)

    accuracies = [trainer.evaluate(of_classes(test, 5)).accuracy or 0.0 for trainer in (tuned, scratch)]
    print(f"accuracy on 5 to 9: {accuracies[0]:.2%} fine-tuned, {accuracies[1]:.2%} from the start")
    return accuracies[0], accuracies[1]


if __name__ == "__main__":
    main()
