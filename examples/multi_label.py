"""Several labels per image: which of four shapes does an image show?

    python examples/multi_label.py

An image shows any number of the shapes. The targets are 0 or 1 for each shape, the loss is the binary cross-entropy of
each score, and the figure of merit is the share of correct answers over all images and shapes.
"""

import numpy as np

from xcnn import Trainer, data, nn, optim

__all__ = ["SHAPES", "main", "pictures"]

SHAPES = ("square", "disc", "cross", "bar")


def pictures(count: int, seed: int, size: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images (count, 1, size, size) and which shapes are in them (count, 4), in float32."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, 2, (count, len(SHAPES)))
    images = 0.2 * rng.standard_normal((count, 1, size, size))
    y, x = np.mgrid[-3:4, -3:4]
    stamps = (
        np.maximum(abs(y), abs(x)) == 3,
        y**2 + x**2 <= 9,
        abs(y) == abs(x),
        y == 0,
    )
    for image, labels in zip(images, shown, strict=True):
        for stamp in np.flatnonzero(labels):
            top, left = rng.integers(0, size - 6, 2)
            image[0, top : top + 7, left : left + 7] += stamps[stamp]
    return images.astype(np.float32), shown.astype(np.float32)


def main(count: int = 3000, epochs: int = 8) -> float:
    """Train on `count` images and return the accuracy on 500 others."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        nn.Linear(32, len(SHAPES)),
    )
    model.reset_parameters(0)
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=5e-3), "binary_cross_entropy_with_logits")
    test = pictures(500, seed=1)
    trainer.fit(data.Dataset(*pictures(count, seed=0)), epochs, validation=test)
    accuracy = trainer.history[-1]["val_accuracy"]
    print(f"correct answers on new images: {accuracy:.2%}")
    chances = trainer.predict(test[0][:1])[0]
    print("the first one:", ", ".join(f"{name} {p:.2f}" for name, p in zip(SHAPES, chances, strict=True)))
    return float(accuracy)


if __name__ == "__main__":
    main()
