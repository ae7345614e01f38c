"""Segmentation: a small U-Net finds discs and squares, pixel by pixel.

    python examples/segmentation.py

The targets are one class per pixel, (n, H, W); the loss is the cross-entropy of every pixel; the flips move each mask
with its image. The figure of merit is the mean of intersection over union of the three classes.

O. Ronneberger, P. Fischer and T. Brox, U-Net: convolutional networks for biomedical image segmentation, 2015,
arXiv:1505.04597.
"""

import numpy as np

from xcnn import Trainer, data, nn, optim
from xcnn.training import mean_iou

__all__ = ["main", "shapes", "unet"]


def shapes(count: int, seed: int, size: int = 32) -> data.Dataset:
    """Return noisy images with a disc and a square each, and their masks: 0 is the background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    images, masks = rng.normal(0, 0.3, (count, 1, size, size)), np.zeros((count, size, size), np.int64)
    for image, mask in zip(images, masks, strict=True):
        (cy, cx), r = rng.integers(6, size - 6, 2), rng.integers(4, 8)
        mask[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = 1
        top, left, side = *rng.integers(0, size - 12, 2), rng.integers(6, 12)
        mask[top : top + side, left : left + side] = 2
        image[0] += mask > 0
    return data.Dataset(images.astype(np.float32), masks, ("background", "disc", "square"), "shapes")


def _block(c: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


def unet(channels: int, classes: int, width: int = 8) -> nn.Graph:
    """Return a U-Net of three levels for images whose sides are multiples of 4."""
    w = width
    return nn.Graph(
        [
            ("fine", _block(channels, w), "x"),
            ("middle", nn.Sequential(nn.MaxPool2d(2), _block(w, 2 * w)), "fine"),
            ("coarse", nn.Sequential(nn.MaxPool2d(2), _block(2 * w, 4 * w), nn.Upsample(scale_factor=2)), "middle"),
            ("join_middle", nn.Concat(), ("coarse", "middle")),
            ("up", nn.Sequential(_block(6 * w, 2 * w), nn.Upsample(scale_factor=2)), "join_middle"),
            ("join_fine", nn.Concat(), ("up", "fine")),
            ("scores", nn.Sequential(_block(3 * w, w), nn.Conv2d(w, classes, 1)), "join_fine"),
        ]
    )


def main(count: int = 400, epochs: int = 12) -> float:
    """Train on `count` images and return the mean intersection over union on 100 others."""
    model = unet(1, 3)
    model.reset_parameters(0)
    train = data.Loader(shapes(count, seed=0), batch_size=16, augment=[data.flip])
    optimizer = optim.Adam(model.parameters())
    schedule = optim.OneCycleLR(optimizer, max_lr=1e-2, total_steps=epochs * len(train))
    trainer = Trainer(model, optimizer, "cross_entropy", schedule=schedule, metrics={"iou": mean_iou})
    trainer.fit(train, epochs, validation=shapes(100, seed=1))
    last = trainer.history[-1]
    print(f"mean IoU on new images: {last['val_iou']:.3f}, correct pixels: {last['val_accuracy']:.2%}")
    return float(last["val_iou"])


if __name__ == "__main__":
    main()
