"""Checkpoint files: the weights of a network and its structure, from which it can be rebuilt, in one safetensors file.

The tensors are the `state_dict()` of the model under PyTorch's keys, so any reader of safetensors can use them. A
checkpoint from which a run can resume also holds the state of its trainer, in tensors whose names begin with `xcnn:`.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import _check, models, nn
from xcnn._plugins import is_foreign, refuse_foreign
from xcnn.errors import CheckpointError, DivergedError, UsageError, explained, making_sense
from xcnn.models.pretrained import PRETRAINED, imagenet_classes, pretrained_file
from xcnn.nn import Module
from xcnn.runs.matching import AUXILIARY, COUNTER, fitting, shapes
from xcnn.runs.onnx_file import is_onnx_file, read_onnx
from xcnn.runs.sealed import Sealed, pack, read_sealed, unpack, write_sealed
from xcnn.runs.structure import Makers, build, describe, load_weights, strangers, try_describe
from xcnn.runs.torch_file import is_torch_file, read_torch

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "Checkpoint",
    "find_newest",
    "load_checkpoint",
    "open_checkpoint",
    "read_checkpoint",
    "require_finite",
    "require_moderate",
    "save_checkpoint",
    "step_files",
    "step_path",
    "write_checkpoint",
]

BEST = "best.safetensors"
"""The file of the best weights in the folder of a run."""

CHECKPOINTS = "checkpoints"
"""The subfolder with the checkpoints `step-NUMBER.safetensors` from which a run resumes."""

_STEP = re.compile(r"step-(\d{8,12})\.safetensors")
_FORMAT = 5
_TRAINING = "xcnn:"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes
    ----------
    model : the name of the model in `xcnn.models.MODELS`, or "" for your own network.
    shape : the shape of one input, such as channels, height and width; empty if it is not known.
    classes : the names of its classes; empty if they are not known.
    dataset : the name of the data set it was trained on, or "".
    config : the settings of the run, such as how its images were resized.
    metrics : the record of its epoch.
    origin : the hardware, versions and images that it was computed with; see `xcnn.runs.resume.origin`.
    state : the weights, host arrays by name.
    training : `Trainer.state_dict()`, whose weights are those of `state`; None if the file holds only weights.
    statistics : numbers computed from the training images: `mean` and `std` of each channel, if the network begins with
        `nn.Normalize`; `border`, the mean brightness of their outermost pixels, None if it is not known.
    structure : the modules of the network with their options, see `xcnn.runs.structure`; None if the classes of the
        network do not keep the arguments of their constructors, or the file holds only weights.
    """

    model: str = ""
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    dataset: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    training: dict[str, Any] | None = field(default=None, repr=False)
    structure: dict[str, Any] | None = field(default=None, repr=False)
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """Which weights these are, such as `epoch 6, best val_loss 0.0861`, or `last, of epoch 6`; "" if unknown.

        >>> Checkpoint(metrics={"epoch": 6, "val_loss": 0.08612}).weights
        'epoch 6, best val_loss 0.08612'
        """
        if self.training is not None:
            steps, history, within = (self.training.get(name) for name in ("steps", "history", "epoch"))
            when = f"after {steps:,} step{'s' * (steps != 1)}" if isinstance(steps, int) else ""
            if isinstance(history, list) and history and within is None:
                when = f"of epoch {len(history)}"
            return ", ".join(filter(None, ("last", when, "averaged" * bool(self.average))))
        monitor = self.config.get("monitor", "val_loss")
        epoch, value = self.metrics.get("epoch"), self.metrics.get(monitor) if isinstance(monitor, str) else None
        if not isinstance(epoch, int) or not isinstance(value, float):
            return ""
        return f"epoch {epoch}, best {monitor} {value:.4g}"

    @property
    def average(self) -> dict[str, np.ndarray]:
        """The moving average of the weights, which inference uses instead of `state`; empty if the run keeps none."""
        with making_sense("the checkpoint"):
            return dict((self.training or {}).get("callbacks", {}).get("EMA", {}).get("average", {}))

    def build(
        self,
        model: str | None = None,
        modules: Makers | None = None,
        tell: Callable[[str], object] = lambda message: None,
    ) -> Module:
        """Build the network and load its weights: by `model` if it is given, else from its structure if it has one.

        The weights are those of inference: the average, if the run keeps one.

        Parameters
        ----------
        model : the name of the model; required if the file has no structure or one with classes that are not in
            `modules`, and its model is `package.module:function`. Such a name is never imported because a file contains
            it.
        modules : your own classes in the network, by name.
        tell : called with a sentence if weights with other names are taken in their order.

        Raises
        ------
        CheckpointError
            If the structure makes no sense, has classes that are not known, or the weights do not fit.
        UsageError
            If the model is `package.module:function` and `model` is not the same.
        """
        own = {} if modules is None else modules
        if not isinstance(own, Mapping) or not all(isinstance(name, str) and callable(own[name]) for name in own):
            raise UsageError(f"load: modules must be a dict of classes by their names, got {modules!r}")
        structure = self.structure if model is None else None
        unknown = [] if structure is None else strangers(structure, own)
        if structure is not None and not unknown:
            module = build(structure, own)
            load_weights(module, self.state)
            module.load_state_dict(self.average, strict=False)
            return module
        if unknown and (not self.model or modules is not None):
            some = ", ".join(f"{name!r}: {name}" for name in unknown[:4])
            raise CheckpointError(
                f"the network has classes that are not in xcnn.nn; pass them: modules={{{some}}}"
                + ("" if modules is not None else ", or name the model")
            )
        if model != self.model:
            refuse_foreign("the checkpoint", model=self.model)
        require_moderate(self.shape)
        # Without drawing weights: a hostile file must not cause large allocations before the shapes are compared.
        with making_sense("the checkpoint"):
            options = dict(self.config.get("model_options") or {})
        network = models.build(self.model, self.shape, len(self.classes), None, **options)
        ours = shapes(network)
        names, in_order = fitting(shapes(self.state), ours)
        if in_order:
            tell(f"the weights have other names than those of {self.model} and are taken in their order")
        counters = {name: slot.data for name, slot in network.named_buffers() if name.endswith(COUNTER)}
        theirs = {names.get(name, name): array for name, array in self.state.items()}
        extra = {name for name in theirs if name not in ours and name.startswith(AUXILIARY)}
        network.load_state_dict(counters | {name: array for name, array in theirs.items() if name not in extra})
        network.load_state_dict({names.get(name, name): array for name, array in self.average.items()}, strict=False)
        if not self.config.get("normalize"):
            return network
        with making_sense("the checkpoint"):
            return nn.Sequential(nn.Normalize(self.statistics["mean"], self.statistics["std"]), network)


def save_checkpoint(path: str | Path, model: Module, checkpoint: Checkpoint) -> Path:
    """Write the weights and the structure of a model and the fields of `checkpoint`; see `xcnn.save` for a simpler way.

    An older file stays until the new one is complete.

    Parameters
    ----------
    path : the file to write.
    model : the model whose weights are saved.
    checkpoint : the description; its own `state` and `structure` are not used.

    Returns
    -------
    The path.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    path = _check.path("save_checkpoint", "path", path)
    write_checkpoint(path, dataclasses.replace(checkpoint, state=model.state_dict(), structure=try_describe(model)))
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as `save_checkpoint` does, with the weights in its `state`."""
    if problem := _impossible(checkpoint.model, checkpoint.shape, checkpoint.classes):
        raise UsageError(f"a checkpoint cannot be written: {problem}")
    beside = checkpoint.training and {k: part for k, part in checkpoint.training.items() if k != "weights"}
    training, arrays = pack(beside, f"{_TRAINING}training")
    fields = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name != "state"}
    metrics, _ = pack(dict(checkpoint.metrics), "metrics")  # NumPy's numbers become Python's
    entry = {"format": _FORMAT, **fields, "metrics": metrics, "training": training}
    write_sealed(path, {**checkpoint.state, **arrays}, {"xcnn": entry})


@explained
def load_checkpoint(path: str | Path, model: str | None = None) -> Checkpoint:
    """Read a checkpoint, or plain weights. What kind of file it is, its content tells.

    Parameters
    ----------
    path : a file of xcnn, of safetensors, of ONNX, or of `torch.save` with a dict of tensors (nothing in it is run;
        bfloat16 becomes float32); or the folder of a run or of checkpoints, which stands for its best weights, or if it
        has none, for its newest checkpoint; or a name in `xcnn.models.PRETRAINED`.
    model : the expected name of the model. It is required if the file holds only weights; shape, classes and data set
        of the checkpoint are empty then.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind, or holds only weights and `model` is None.
    UsageError
        If the checkpoint is of another model than `model`.
    """
    path, checkpoint = open_checkpoint(_check.path("load_checkpoint", "path", path))
    if not checkpoint.model and checkpoint.structure is None and model is None:
        hint = "name the model, or build the network and call load_state_dict"
        raise CheckpointError(f"{path} holds weights but does not name its model; {hint}")
    if checkpoint.model and model not in (None, checkpoint.model):
        raise UsageError(f"{path} is a checkpoint of the model {checkpoint.model!r}, not of {model!r}")
    return dataclasses.replace(checkpoint, model=checkpoint.model or model or "")


def open_checkpoint(path: Path) -> tuple[Path, Checkpoint]:
    """Read what `load_checkpoint` takes, and return its file, too."""
    if str(path) in PRETRAINED and not path.exists():
        return _pretrained(str(path))
    folder = path if step_files(path) else path / CHECKPOINTS
    found = find_newest(folder) if path.is_dir() and not (path / BEST).exists() else None
    if found is not None:
        return step_path(folder, found[0]), found[1]
    if path.is_dir() and not (path / BEST).exists() and (trials := sorted(path.glob(f"trial-*/{BEST}"))):
        hint = f"name one of its trials, such as {trials[0].parent}; trials.csv says which is the best"
        raise CheckpointError(f"{path} holds a search; {hint}")
    path = path / BEST if path.is_dir() else path
    if not path.exists() and (str(path) in models.MODELS or difflib.get_close_matches(str(path), PRETRAINED)):
        known = ", ".join(PRETRAINED)
        raise CheckpointError(f"no checkpoint at {path}; weights that are known by the name of their network: {known}")
    return path, read_checkpoint(path)


def _pretrained(name: str) -> tuple[Path, Checkpoint]:
    """Return the weights of an installed package, and their file."""
    path, known = pretrained_file(name), PRETRAINED[name]
    statistics = {"mean": list(known.mean), "std": list(known.std)}
    classes = imagenet_classes() or tuple(f"class {k}" for k in range(1000))
    # The package may name the weights otherwise; their order is known to be that of the network.
    theirs, network = read_checkpoint(path).state, models.build(name, known.shape, len(classes), seed=None)
    names, _ = fitting(shapes(theirs), shapes(network))
    state = {names.get(called, called): array for called, array in theirs.items()}
    return path, Checkpoint(name, known.shape, classes, config={"normalize": True}, state=state, statistics=statistics)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, plain weights of safetensors or PyTorch, or an ONNX file. `model` is "" if none is named."""
    start = _start(path) if path.is_file() else b""
    if is_torch_file(start):
        return Checkpoint(state=read_torch(path))
    if start and is_onnx_file(path, start):
        network, file, made = read_onnx(path)
        state = network.state_dict()
        return Checkpoint("", file.shape, file.classes, config=made, state=state, structure=describe(network))
    sealed = read_sealed(path)
    return _parse(path, sealed) if sealed.entries else Checkpoint(state=sealed.tensors)


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def step_path(folder: Path, steps: int) -> Path:
    """Return the path of the checkpoint after `steps` steps."""
    return folder / f"step-{steps:08d}.safetensors"


def step_files(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by their number of steps, in order."""
    there = folder.iterdir() if folder.is_dir() else ()
    return dict(sorted((int(found[1]), path) for path in there if (found := _STEP.fullmatch(path.name))))


def find_newest(folder: Path, tell: Callable[[str], object] = lambda message: None) -> tuple[int, Checkpoint] | None:
    """Return the newest complete checkpoint in a folder with its number of steps; None if there are no checkpoints.

    `tell` is called with a sentence for each newer checkpoint that is damaged; if all are, a CheckpointError is raised.
    """
    files, reasons = step_files(folder), []
    for steps in reversed(files):
        path = files[steps]
        try:
            found = read_checkpoint(path)
            if found.training is None:
                raise CheckpointError(f"{path} holds only weights, from which training cannot resume")
            if found.training.get("steps") != steps:
                raise CheckpointError(f"{path} is the checkpoint of another step")
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            tell(f"{reason}; resuming from {path.name}, which is older")
        return steps, found
    if reasons:
        raise CheckpointError(f"none of the {len(files)} checkpoints in {folder} is complete: {reasons[0]}")
    return None


def require_finite(weights: Mapping[str, np.ndarray], when: str) -> None:
    """Raise a DivergedError that begins with `when` if a weight is not finite, so that the older file is kept."""
    for name, array in weights.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DivergedError(f"{when}: {name} is not finite; lower the learning rate")


_TYPES = {
    "model": str, "shape": list, "classes": list, "dataset": str, "config": dict, "metrics": dict, "origin": dict,
    "training": dict | None, "structure": dict | None, "statistics": dict,
}  # fmt: skip

# The layers allocate memory in proportion to these numbers, whatever the file holds.
_MOST_AXES = 8
_MOST_PIXELS = 1 << 23
_MOST_CLASSES = 100_000
_MOST_LETTERS = 1 << 20


def require_moderate(shape: tuple[int, ...]) -> None:
    """Raise a CheckpointError if inputs of a shape from a file are too large to make arrays or layers for them."""
    if math.prod(shape) > _MOST_PIXELS:
        raise CheckpointError(f"its inputs have the shape {shape}; at most {_MOST_PIXELS:,} numbers are possible here")


def _impossible(model: str, shape: tuple[int, ...], classes: tuple[str, ...]) -> str:
    """Return why the inputs or the classes of a checkpoint are impossible; empty if they are possible.

    Only builders by name make layers for the shape.
    """
    letters = sum(map(len, classes))
    if len(shape) > _MOST_AXES:
        return f"its inputs have {len(shape)} axes, expected at most {_MOST_AXES}"
    if min(shape, default=1) < 1 or max(shape, default=1) >= 2**31 or (model and math.prod(shape) > _MOST_PIXELS):
        return f"its inputs have the shape {shape}, expected from 1 to {_MOST_PIXELS} numbers in all"
    if len(classes) > _MOST_CLASSES or letters > _MOST_LETTERS:
        most = f"at most {_MOST_CLASSES} with {_MOST_LETTERS} characters in all are possible"
        return f"it has {len(classes)} classes with {letters} characters; {most}"
    return ""


def _parse(path: Path, sealed: Sealed) -> Checkpoint:
    raw, tensors = sealed.entries["xcnn"], sealed.tensors
    try:
        if raw.pop("format") != _FORMAT:
            raise ValueError("it was written by another version of xcnn")
        raw.setdefault("statistics", {})  # older files have none
        for name, kind in _TYPES.items():
            if not isinstance(raw.get(name), kind):
                raise ValueError(f"its {name} is not a {getattr(kind, '__name__', 'dict')}")
        shape = tuple(int(size) for size in raw.pop("shape"))
        classes = tuple(str(name) for name in raw.pop("classes"))
        if problem := _impossible(raw["model"], shape, classes):
            raise ValueError(problem)
        if raw["model"] and not classes:
            raise ValueError("it has no classes")
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TRAINING)}
        rest = {name: tensor for name, tensor in tensors.items() if name not in own}
        training = unpack(raw.pop("training"), rest)
        if training is not None:
            training["weights"] = own
        checkpoint = Checkpoint(shape=shape, classes=classes, state=own, training=training, **raw)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is not an xcnn checkpoint: {error}") from None
    if checkpoint.model and checkpoint.model not in models.MODELS and not is_foreign(checkpoint.model):
        raise CheckpointError(
            f"{path} is a checkpoint of the model {checkpoint.model!r}, which this version of xcnn does not have"
        )
    return checkpoint
