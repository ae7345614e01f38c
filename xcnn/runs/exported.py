"""Trained models written as ONNX files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcnn._check import integer
from xcnn._check import path as path_of
from xcnn._files import replacing
from xcnn.data import Loader
from xcnn.devices import device
from xcnn.errors import UsageError, explained
from xcnn.nn import Module
from xcnn.onnx import Session
from xcnn.onnx.export import OLDEST, Difference, compared
from xcnn.onnx.metadata import IMAGES
from xcnn.onnx.quantize import quantized
from xcnn.runs.checkpoint import Checkpoint
from xcnn.runs.restored import Restored
from xcnn.training import LOSSES, Metrics
from xcnn.training.evaluation import evaluate

__all__ = ["Exported", "export_onnx"]

_AT_ONCE = 32
"""Images in a batch of the calibration."""


@dataclass(frozen=True)
class Exported:
    """What `export_onnx` has written.

    Attributes
    ----------
    path : the file.
    size : its bytes.
    inputs, outputs : the shapes by name; a letter stands for any size.
    difference : how far ONNX Runtime is from the network, in float32.
    calibrated : the number of training images on which 8 bits were calibrated; 0 for float32.
    accuracies : with 8 bits, the accuracy on the test images of `float32` and of `int8`.
    """

    path: Path
    size: int
    inputs: dict[str, tuple[Any, ...]]
    outputs: dict[str, tuple[Any, ...]]
    difference: Difference
    calibrated: int = 0
    accuracies: dict[str, float] = field(default_factory=dict)


@explained
def export_onnx(
    restored: Restored,
    path: str | Path,
    *,
    softmax: bool = False,
    opset: int = OLDEST,
    calibrate: int = 0,
    watch: Callable[[int, Metrics], None] | None = None,
) -> Exported:
    """Write a trained model with its classes and the preparation of its images to an ONNX file.

    The results of ONNX Runtime are compared with those of the network before. An older file stays until the new one is
    complete.

    Parameters
    ----------
    restored : the model.
    path : the file to write.
    softmax, opset : see `xcnn.onnx.to_model`.
    calibrate : the number of training images on which weights and activations of 8 bits are calibrated, see
        `xcnn.onnx.quantize`; 0 writes float32.
    watch : called during the tests of both accuracies, see `Restored.evaluate`.

    Raises
    ------
    XcnnError
        As `xcnn.onnx.save` and `xcnn.onnx.quantize`; with `calibrate` also if the images cannot be had.
    """
    path, checkpoint = path_of("export_onnx", "path", path), restored.checkpoint
    integer("export_onnx", "calibrate", calibrate, 0)
    options: dict[str, Any] = {"preprocessing": _preprocessing(checkpoint), "softmax": softmax, "opset": opset}
    made, found = compared(restored.model, checkpoint.shape, classes=checkpoint.classes, **options)
    accuracies: dict[str, float] = {}
    if calibrate:
        test, train = restored.test_set(), restored.load("train", checkpoint.shape[-1])
        if train.shape != checkpoint.shape:
            raise UsageError(f"the model takes {checkpoint.shape} images, {restored.title} has {train.shape} to train")
        chosen = train[np.sort(np.random.default_rng(0).permutation(len(train))[:calibrate])]
        calibrate = len(chosen)
        made = quantized(made, (x for x, _ in Loader(chosen, _AT_ONCE, shuffle=False)))
        tested, cpu = Loader(test, shuffle=False, workers=2 * test.lazy), device("cpu")
        told = None if watch is None else lambda metrics: watch(len(test), metrics)
        for name, model, where in (("float32", restored.model, restored.device), ("int8", _Run(made), cpu)):
            accuracies[name] = evaluate(model, tested, LOSSES["cross_entropy"], where, watch=told).accuracy or 0.0
    session = Session(made)
    with replacing(path) as temporary:
        temporary.write_bytes(made)
    return Exported(path, len(made), *session.shapes, found, calibrate, accuracies)


def _preprocessing(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return how images become inputs, for the metadata; None if the inputs are no images."""
    if len(checkpoint.shape) != 3 or checkpoint.shape[0] not in (1, 3):
        return None
    recorded = {name: checkpoint.config[name] for name in ("resize", "background") if name in checkpoint.config}
    return IMAGES | recorded | {"channels": "L" if checkpoint.shape[0] == 1 else "RGB"}


class _Run(Module):
    """A file in ONNX Runtime as a module, for tests."""

    def __init__(self, made: bytes) -> None:
        self._session = Session(made)

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Any]:
        return self._session(x), lambda dy, need_dx: None
