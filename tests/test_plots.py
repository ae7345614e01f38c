"""Pictures of results: what must be visible in them. Other tests check that each one is drawn."""

from pathlib import Path

import numpy as np
import pytest

from xcnn import plots

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_errors_of_a_confusion_matrix_have_a_colour_of_their_own(tmp_path: Path) -> None:
    def reddish(counts: np.ndarray) -> int:
        r, g, b = np.moveaxis(pixels(plots.confusion(counts, ("cat", "dog"), tmp_path / "c.png")), -1, 0)
        return int(np.sum((r - b > 40) & (r - g > 40)))

    right = np.diag([50, 50])
    assert reddish(right) == 0
    assert reddish(right + np.asarray([[0, 1], [0, 0]])) > 1000


def test_a_legend_of_long_names_is_whole(tmp_path: Path) -> None:
    rates = {"lenet5": {f"torch channels_last {i} threads": (10.0 + i, 9.0, 12.0 + i) for i in range(5)}}
    drawn = pixels(plots.speeds(rates, tmp_path / "speeds.png"))
    assert np.all(drawn[:, [0, -1]] == 255), "something is cut off at the left or the right edge"


def test_curves_without_validation_or_accuracy_have_a_legend(tmp_path: Path) -> None:
    def height(**values: float | None) -> int:
        record = {"train_loss": 1.0, "val_loss": None, "train_accuracy": None, "val_accuracy": None, **values}
        drawn = pixels(plots.curves([{"epoch": i, **record} for i in range(3)], tmp_path / "curves.png"))
        return int(np.flatnonzero(np.any(drawn < 128, axis=(1, 2)))[-1])  # the lowest row with something dark

    assert height() == height(train_accuracy=0.5)
