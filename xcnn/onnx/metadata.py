"""What a file says about its network beside the graph: the inputs, the classes, and how images become inputs.

This is the one home of the format. A file has two metadata properties: `xcnn`, a JSON object such as

    {"shape": [3, 32, 32], "classes": ["cat", "dog"], "softmax": false,
     "resize": "crop", "background": "white", "range": [0, 1], "channels": "RGB"}

and `classes`, the names of the classes, one per line, for readers that know nothing of xcnn.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xcnn._check import choice, flag, integers, shown
from xcnn.data.images import RESIZE, colour
from xcnn.errors import CheckpointError, UsageError

__all__ = ["IMAGES", "Metadata", "read", "write"]

_KEY = "xcnn"

IMAGES: dict[str, Any] = {"resize": "crop", "background": "white", "range": [0, 1], "channels": "RGB"}
"""How images become inputs, by default.

`resize` and `background` are those of `data.read_image`; the pixels 0 to 255 become numbers of `range`, and `channels`
is their order: `"RGB"`, or `"L"` for grey.
"""

_MOST_LETTERS, _MOST_CLASSES, _MOST_AXES = 1 << 22, 100_000, 8


@dataclass(frozen=True)
class Metadata:
    """What a file says about its network.

    Attributes
    ----------
    shape : the shape of one input without the batch axis; of several inputs, a tuple of shapes; () if it is not known.
    classes : the names of the classes; () if they are not known.
    preprocessing : how images become inputs, as in `IMAGES`; {} if it is not known.
    softmax : whether the network ends with the softmax that makes probabilities of scores.
    """

    shape: tuple[Any, ...] = ()
    classes: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)
    softmax: bool = False

    def __post_init__(self) -> None:
        shapes = self.shape if self.shape and isinstance(self.shape[0], tuple) else (self.shape,)
        for shape in shapes:
            if not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
                raise UsageError(f"onnx: shape must be the sizes of an input, got {shown(shape)}")
            integers("onnx", "shape", shape, len(shape))
        classes = self.classes
        if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
            raise UsageError(f"onnx: classes must be a list of names, got {shown(classes)}")
        if len(classes) > _MOST_CLASSES:
            raise UsageError(f"onnx: classes must be at most {_MOST_CLASSES:,} names, got {len(classes):,}")
        if not isinstance(self.preprocessing, Mapping):
            raise UsageError(f"onnx: preprocessing must be a dict, such as {IMAGES}, got {shown(self.preprocessing)}")
        for name, value in self.preprocessing.items():
            choice("onnx", "preprocessing", name, IMAGES)
            if name == "resize":
                choice("onnx", name, value, RESIZE)
            elif name == "background":
                colour("onnx", name, value)
            elif name == "channels":
                choice("onnx", name, value, ("RGB", "BGR", "L"))
            elif not isinstance(value, list | tuple) or list(value) not in ([0, 1], [0, 255]):
                raise UsageError(f"onnx: range must be [0, 1] or [0, 255], got {shown(value)}")
        flag("onnx", "softmax", self.softmax)


def write(model: Any, metadata: Metadata) -> None:
    """Set the metadata properties of an `onnx.ModelProto`; other properties stay."""
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key not in (_KEY, "classes")}
    del model.metadata_props[:]
    fields = {"shape": metadata.shape, "classes": metadata.classes, "softmax": metadata.softmax}
    kept[_KEY] = json.dumps({**fields, **metadata.preprocessing}, ensure_ascii=False)
    if metadata.classes:
        kept["classes"] = "\n".join(name.replace("\n", " ") for name in metadata.classes)
    for key, value in kept.items():
        model.metadata_props.add(key=key, value=value)


def read(model: Any) -> Metadata:
    """Return the metadata of an `onnx.ModelProto`, or of its properties by name; empty if xcnn has not written it.

    Raises
    ------
    CheckpointError
        If the property `xcnn` makes no sense.
    """
    found = model if isinstance(model, Mapping) else {entry.key: entry.value for entry in model.metadata_props}
    text = found.get(_KEY)
    if text is None:
        return Metadata()
    try:
        if len(text) > _MOST_LETTERS:
            raise ValueError(f"it has {len(text)} characters, at most {_MOST_LETTERS} are read")
        raw = json.loads(text)
        return Metadata(
            shape=_tuples(raw.get("shape", ())),
            classes=_tuples(raw.get("classes", ())),
            preprocessing={name: raw[name] for name in IMAGES if name in raw},
            softmax=raw.get("softmax", False),
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the property {_KEY!r} of the ONNX file makes no sense: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
