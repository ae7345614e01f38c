"""Regression: read the position of a blurred spot in a noisy image, to a fraction of a pixel.

    python examples/regression.py

The targets are two numbers per image, the loss is the mean squared error, and the figure of merit is R2, the share of
the variance that the network explains: 1 is perfect, 0 is no better than the mean.
"""

import numpy as np

from xcnn import Trainer, nn, optim
from xcnn.training import r2_score

__all__ = ["main", "spots"]


def spots(count: int, seed: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return images (count, 1, size, size) and the places of their spots (count, 2), from -1 to 1, in float32."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-1, 1, (count, 2))
    y, x = ((place * 0.7 + 1) * (size - 1) / 2).T[:, :, None]  # (count, 1)
    pixels = np.arange(size)
    spot = np.exp(-((pixels - y) ** 2)[:, :, None] / 4 - ((pixels - x) ** 2)[:, None, :] / 4)  # (count, size, size)
    noisy = spot + 0.2 * rng.standard_normal(spot.shape)
    return noisy[:, None].astype(np.float32), place.astype(np.float32)


def main(count: int = 2000, epochs: int = 8) -> float:
    """Train on `count` images and return R2 on 500 others."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 2)),
    )
    model.reset_parameters(0)
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=3e-3), "mse_loss", metrics={"r2": r2_score})
    trainer.fit(spots(count, seed=0), epochs, validation=spots(500, seed=1))
    r2 = trainer.history[-1]["val_r2"]
    print(f"R2 on new images: {r2:.4f}")
    return float(r2)


if __name__ == "__main__":
    main()
