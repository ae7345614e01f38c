"""The batches that devices are compared on: images of a data set, as large as the network needs them."""

import itertools
import os

import numpy as np

from xcnn import data
from xcnn.compare.steps import Batches
from xcnn.errors import unknown
from xcnn.models import MODELS

__all__ = ["batches"]


def batches(
    dataset: str, model: str, batch_size: int, count: int, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Batches, int]:
    """Return `count` batches of training images, shuffled with seed 0, and the number of classes.

    Images that are too small for the network are enlarged by repeating pixels: numbers are compared here, and digits of
    8 x 8 pixels should do for any network.

    Raises
    ------
    UsageError
        For an unknown data set or model; it names the nearest.
    """
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    train, _ = data.load(dataset, data_dir)
    times = -(-MODELS[model].smallest // min(train.shape[1:]))
    loader = data.Loader(train, batch_size)
    passes = itertools.chain.from_iterable(loader for _ in itertools.count())
    found = itertools.islice(passes, count)
    return [(np.repeat(np.repeat(x, times, axis=2), times, axis=3), y) for x, y in found], len(train.classes)
