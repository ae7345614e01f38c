"""Trained models restored from files, for evaluation and prediction."""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcnn._check import choice, flag, integer, numbers
from xcnn._check import path as path_of
from xcnn._plugins import find, refuse_foreign
from xcnn.data import DATASETS, Dataset, Loader, load, read_image, to_float
from xcnn.data.catalog import title
from xcnn.data.folder import MOST_SIDE, load_folder, load_test_images
from xcnn.data.images import RESIZE
from xcnn.devices import Device
from xcnn.errors import CheckpointError, DataError, UsageError, explained
from xcnn.models import PRETRAINED, entry
from xcnn.models.pretrained import imagenet_classes
from xcnn.nn import Module, Normalize, Sequential
from xcnn.parallel.nccl import device_of
from xcnn.runs.checkpoint import Checkpoint, load_checkpoint, require_moderate
from xcnn.runs.foreign import complete, read_classes, usual_size
from xcnn.runs.inverted import looks_inverted
from xcnn.runs.resume import require_images
from xcnn.runs.structure import Makers
from xcnn.training import LOSSES, Metrics
from xcnn.training.evaluation import evaluate, predict
from xcnn.training.processes import ALONE, Processes

__all__ = ["Prediction", "Restored", "restore"]

_LOSS = LOSSES["cross_entropy"]


@dataclass(frozen=True)
class Prediction:
    """The prediction of a model for one image.

    Attributes
    ----------
    name : the file, or the data set with the index.
    image : (c, h, w) float32 0..1, the input of the model.
    probabilities : (classes,).
    truth : the true class, if it is known.
    file : the image file; None for an image of a data set.
    inverted : whether the image of the file looks inverted against the training images: its border is dark and theirs
        light, or the reverse.
    """

    name: str
    image: np.ndarray
    probabilities: np.ndarray
    truth: int | None = None
    file: Path | None = None
    inverted: bool = False


@dataclass(frozen=True)
class Restored:
    """A trained model from a checkpoint, with the data set for its evaluation; `restore` returns one.

    Attributes
    ----------
    checkpoint : the weights and their description.
    model : the model with its weights.
    device : the device of the model.
    dataset : the name of the data set of the test images; "" if none is known.
    title : what it is called in titles: a folder of images by its own name.
    load : function that loads the images of a part of the data set, `train` or `test`, in the given size if the data
        set has no size of its own.
    parallel : the processes to which images are dealt out, which all get all results.
    """

    checkpoint: Checkpoint
    model: Module
    device: Device
    dataset: str
    title: str
    load: Callable[[str, int | None], Dataset] = field(repr=False)
    parallel: Processes = field(default=ALONE, repr=False)

    def test_set(self) -> Dataset:
        """Load the test images, and check that their shape and classes are those of the model."""
        shape, classes = self.checkpoint.shape, self.checkpoint.classes
        test = self.load("test", shape[-1])
        if test.shape != shape or len(test.classes) != len(classes):
            raise UsageError(
                f"the model takes {shape} images of {len(classes)} classes, "
                f"{self.title} has {test.shape} images of {len(test.classes)}"
            )
        if self.dataset == self.checkpoint.dataset and test.classes != classes:
            raise UsageError(
                f"the model has the classes {', '.join(classes)}, {self.title} has {', '.join(test.classes)}"
            )
        return test

    def evaluate(self, watch: Callable[[int, Metrics], None] | None = None) -> Metrics:
        """Return the metrics on the test set.

        `watch` is called after each batch with the number of test images and the metrics so far.
        """
        test = self.test_set()
        told = None if watch is None else functools.partial(watch, len(test))
        batches = Loader(test, shuffle=False, workers=2 * test.lazy)
        return evaluate(self.model, batches, _LOSS, self.device, watch=told, parallel=self.parallel)

    def predict(
        self,
        files: Sequence[Path] = (),
        indices: Sequence[int] = (),
        *,
        invert: bool = False,
        broken: Callable[[DataError], object] | None = None,
    ) -> list[Prediction]:
        """Classify image files and test images.

        Parameters
        ----------
        files : the image files.
        indices : the indices of test images, from 0.
        invert : whether to turn light into dark in the files.
        broken : called with the error of each file that cannot be read, which is left out; by default it is raised.

        Raises
        ------
        DataError
            If a file is not an image.
        UsageError
            If an index is outside the test set, or neither files nor indices are given.
        """
        if not files and not indices:
            raise UsageError("nothing to predict: pass image files or indices of test images")
        if files and len(self.checkpoint.shape) != 3:
            raise UsageError(f"the network takes inputs of shape {self.checkpoint.shape}, not images (c, h, w)")
        c, h, w = self.checkpoint.shape if files else (1, 1, 1)
        read, images = self._read(files, (c, h, w), invert, broken)
        names, truths, found = [str(path) for path in read], [None] * len(read), [*read, *[None] * len(indices)]
        if indices:
            test = self.test_set()
            for index in indices:
                if not 0 <= index < len(test):
                    raise UsageError(
                        f"index must be from 0 to {len(test) - 1} (test images of {test.name}), got {index}",
                        setting="index",
                    )
            names += [f"{self.title}-{index}" for index in indices]
            images += list(to_float(test.x[list(indices)]))
            labels = test.y[list(indices)]
            single = labels.ndim == 1 and labels.dtype.kind in "iu"  # otherwise shares of several classes
            truths += [label if single and label >= 0 else None for label in labels.tolist()]
        if not images:
            return []
        stack = np.stack(images)
        results = predict(self.model, stack, _LOSS, self.device, parallel=self.parallel)
        count = len(self.checkpoint.classes)
        if results.shape != (len(stack), count):
            came = tuple(results.shape)
            raise UsageError(f"predict: the network must give (n, {count}), a score per class, got {came}")
        expected = self.checkpoint.statistics.get("border")
        odd = [path is not None and looks_inverted(one, expected) for path, one in zip(found, stack, strict=True)]
        return [Prediction(*parts) for parts in zip(names, stack, results, truths, found, odd, strict=True)]

    def _read(
        self,
        files: Sequence[Path],
        shape: tuple[int, int, int],
        invert: bool,
        broken: Callable[[DataError], object] | None,
    ) -> tuple[list[Path], list[np.ndarray]]:
        """Return the files that can be read and their images, of which each process reads some."""
        read: list[int] = []
        images: list[np.ndarray] = []
        faults: list[str] = []
        options, mine = _recorded(self.checkpoint, "resize", "background"), self.parallel.mine(len(files))
        for k in mine:
            try:
                pixels = read_image(files[k], shape, **options)
            except DataError as error:
                faults.append(str(error))
                if broken is None:
                    break
            else:
                read.append(k)
                images.append(to_float((255 - pixels if invert else pixels)[None])[0])
        if self.parallel.size > 1:
            said = map(json.loads, self.parallel.gather_bytes(json.dumps([read, faults]).encode()))
            read, faults = (list(itertools.chain.from_iterable(parts)) for parts in zip(*said, strict=True))
            rows = self.parallel.gather_rows(np.stack(images) if images else None)
            images = [] if rows is None else list(rows)
        for fault in faults:  # in all processes alike
            if broken is None:
                raise DataError(fault)
            broken(DataError(fault))
        return [files[k] for k in read], images


def _recorded(checkpoint: Checkpoint, *names: str) -> dict[str, Any]:
    """Return the settings of these names with which the model was trained, as far as its file holds them."""
    return {name: checkpoint.config[name] for name in names if name in checkpoint.config}


def _for_channels(name: str, given: float | Sequence[float], interval: str, channels: int) -> tuple[float, ...]:
    """Return one number for each channel."""
    try:
        found = numbers("restore", name, given, interval)
        if len(found) not in (1, channels):
            raise UsageError(f"{name} must be one number, or one for each of {channels} channels, got {len(found)}")
    except UsageError as error:
        error.setting = name
        raise
    return found * channels if len(found) == 1 else found


@explained
def restore(
    path: Path,
    where: str | Device = "cpu",
    *,
    model: str | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    skip_broken: bool = False,
    image_size: int | None = None,
    resize: str | None = None,
    classes: Path | Sequence[str] = (),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    modules: Makers | None = None,
    scores: bool = True,
    progress: Callable[[str, int, int | None], None] | None = None,
    tell: Callable[[str], object] = lambda message: None,
    parallel: Processes = ALONE,
) -> Restored:
    """Load a checkpoint for evaluation and prediction.

    Parameters
    ----------
    path : the file, or the folder of a run; see `load_checkpoint`.
    where : the device.
    model : the name of the model. It is required if the file holds only weights, or a network with classes that are
        not in `xcnn.nn`.
    dataset, data_dir : the data set to test on; by default the one that the model was trained on. It is required for
        test images if the file names none. The shape of an input and the classes that a file does not state are those
        of this data set, or without one, those of the arguments below.
    skip_broken : whether to leave out images of a folder that cannot be read, as a run may have done already.
    image_size : height and width of the inputs; by default those of the file, or for which the model is meant.
    resize : how images get this size, see `data.read_image`; by default as the file says, or `crop`.
    classes : the names of the classes, or a file with one per line or a JSON list; by default those of the file, or
        else `class 0`, `class 1`.
    mean, std : of all channels or each, of images from 0 to 1; the network gets `(x - mean) / std`, if it does not
        normalise by itself.
    modules : your own classes in the network, by name; see `load`.
    scores : whether the network must have classes, which predictions and evaluations need.
    progress : called during a download; see `data.load`.
    tell : called with sentences on what a folder of images holds; its classes may be some of the network's.
    parallel : the processes among which images are dealt out, such as `xcnn.parallel.MPI()`, which all call this.

    Raises
    ------
    XcnnError
        If the file is not a checkpoint or does not fit, a name is unknown, or the device cannot be used.
    """
    if dataset is not None:
        find("data set", dataset, DATASETS)
    if model is not None:
        entry(model)
    path = path_of("restore", "path", path)
    data_dir = None if data_dir is None else path_of("restore", "data_dir", data_dir)
    opened = device_of(parallel, where)
    if image_size is not None:
        integer("restore", "image_size", image_size, maximum=MOST_SIDE)
    checkpoint = load_checkpoint(path, model)
    if str(path) in PRETRAINED and classes == () and not imagenet_classes():
        tell("the names of the classes are in a package that is not installed: pip install --no-deps timm")
    if resize is not None:
        checkpoint = replace(checkpoint, config={**checkpoint.config, "resize": choice("", "resize", resize, RESIZE)})
    names = read_classes(Path(classes)) if isinstance(classes, str | Path) else classes
    chosen = dataset or checkpoint.dataset
    known = checkpoint.shape and checkpoint.classes
    if names != () or (image_size is not None and checkpoint.classes) or not (chosen or known):
        checkpoint = complete(checkpoint, image_size, names, model, modules)
    enough = checkpoint.shape and (checkpoint.classes or not scores)
    if not chosen and not enough:
        unknown = "only weights" if checkpoint.structure is None else "a network without its input shape and classes"
        raise UsageError(f"{path} holds {unknown}; name the data set or the image_size", setting="dataset")
    recorded = checkpoint.config.get("data_dir")
    given = data_dir is not None
    if data_dir is None and chosen == checkpoint.dataset and recorded is not None:
        data_dir = Path(str(recorded))

    def load_part(part: str, size: int | None = None) -> Dataset:
        if not chosen:
            raise UsageError(f"{path} does not say on which data set to {part}; name it", setting="dataset")
        if dataset is None:
            refuse_foreign(path, dataset=chosen)
        if not given:
            require_images(data_dir)
        if chosen != "folder":
            return load(chosen, data_dir, progress=progress)[part == "test"]
        options = _recorded(checkpoint, "resize", "background", "skip_broken")
        options |= {"skip_broken": True} if flag("restore", "skip_broken", skip_broken) else {}
        options["watch"] = None if progress is None else functools.partial(progress, "checking images")
        if size is None:  # of weights alone
            return load_folder(data_dir, image_size or usual_size(checkpoint.model), tell=tell, **options)[-1]
        if part == "train":
            return load_folder(data_dir, size, tell=tell, **options)[0]
        channels = checkpoint.shape[0] if checkpoint.shape[0] in (1, 3) else None
        return load_test_images(data_dir, size, checkpoint.classes, channels, tell=tell, **options)

    if not enough:
        test = load_part("test")
        checkpoint = replace(checkpoint, shape=test.shape, classes=test.classes, dataset=chosen)
    try:
        require_moderate(checkpoint.shape)  # which becomes that of the images
        network = checkpoint.build(model, modules, tell)
    except CheckpointError as error:
        assumed = not (known or chosen or image_size) and checkpoint.structure is None
        hint = "; choose another model, or name the data set or the image_size if its images are of another size"
        raise CheckpointError(f"{path}: {error}{hint * assumed}") from None
    if mean is not None or std is not None:
        if isinstance(network, Sequential) and isinstance(network[0], Normalize):
            raise UsageError(f"mean and std: the network of {path} normalises its input by itself", setting="mean")
        channels = checkpoint.shape[0]
        shift = _for_channels("mean", 0.0 if mean is None else mean, "[0, 1]", channels)
        network = Sequential(
            Normalize(shift, _for_channels("std", 1.0 if std is None else std, "(0, inf)", channels)), network
        )
    return Restored(checkpoint, network.to(opened), opened, chosen, title(chosen, data_dir), load_part, parallel)
