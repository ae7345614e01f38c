"""One network with its picture, and what the page has changed about it: one user, all of whose tabs share it."""

import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import explain
from xcnn._array import is_array
from xcnn._check import is_integer, number, shown
from xcnn.data import Dataset, to_float
from xcnn.devices import like, to_numpy
from xcnn.errors import DataError, UsageError, XcnnError, printable
from xcnn.explain import Call, Trace, trace
from xcnn.explain.receptive import fields_of_calls
from xcnn.optim import SGD
from xcnn.parameter import Parameter
from xcnn.runs import Restored
from xcnn.serve.drawing import SIDE, made_like
from xcnn.serve.neuron import Array, feeds
from xcnn.training import LOSSES
from xcnn.training.feed import dtype_of, place

__all__ = ["MOST_BYTES", "MOST_RATE", "WHY", "Answer", "Session", "View"]

Answer = tuple[dict[str, Any], list[tuple[dict[str, Any], Array]]]
"""A header, and arrays, each with what it is; see `wire.pack`."""

MOST_BYTES = 16 * 2**20
"""The longest image file."""

MOST_RATE = 1.0
"""The largest learning rate of a step."""

WHY = ("gradient", "grad_cam", "occlusion")
"""The ways to explain a score: its gradient in every layer, or a map over the image."""

_NOTHING = "nothing drawn yet"
_LARGEST = 1e6
_SHOWN, _PIXELS = 16, 2**17
"""Maps of a layer that the page shows at first: at most 16, and of large ones fewer."""

_LOSS = LOSSES["cross_entropy"]


@dataclass(frozen=True)
class View:
    """What the page shows, and an answer holds.

    Attributes
    ----------
    layers : number of maps by place of the layer in the order of the forward pass.
    target : the class whose score is explained, or None.
    why : one of `WHY`.
    """

    layers: Mapping[int, int] = field(default_factory=dict)
    target: int | None = None
    why: str = "gradient"


class Session:
    """A trained network that can be looked at and changed.

    Every method holds the lock of the session while it runs, so that requests are answered one after the other. Methods
    that change something return the same as `look`.

    Parameters
    ----------
    restored : the network, whose weights the session changes, with its data set.
    tell : called with a sentence if there are no test images.

    Raises
    ------
    UsageError
        If the network does not take images, or does not give one score per class.
    """

    def __init__(self, restored: Restored, tell: Callable[[str], object] = lambda message: None) -> None:
        self.restored, self.model, self.device = restored, restored.model, restored.device
        about = restored.checkpoint
        self.classes, self.shape, self.title = about.classes, about.shape, about.model or "network"
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise UsageError(f"serve: the network must take images (1 or 3, h, w), got inputs of shape {self.shape}")
        border = about.statistics.get("border")
        self.light = not isinstance(border, float | int) or border < 0.5
        self.off: dict[str, set[int]] = {}
        self.losses: list[float] = []  # before and after each step on the picture with the label, without other changes
        self.label: int | None = None
        self.edited = False
        self._lock = threading.RLock()
        self._trained = self.model.state_dict()
        self._version = 0
        self._trace: Trace | None = None
        self._name = _NOTHING
        self._truth: int | None = None
        self._x = np.zeros((1, *self.shape), np.float32)
        self._clear()
        self.test: Dataset | None = None
        self.no_test = ""
        try:
            self.test = restored.test_set()
        except XcnnError as error:
            self.no_test = str(error)
            tell(f"no test images: {error}")
        scores: Any = self._run().y
        if tuple(scores.shape) != (1, len(self.classes)):
            wanted, came = f"(n, {len(self.classes)}), a score per class", tuple(scores.shape)
            raise UsageError(f"serve: the network must give {wanted}, got {came}")
        with self.device.active():
            fields = fields_of_calls(self.model, self.shape)
        self._fields: list[Any] = [field for call, field in zip(self._run().calls, fields, strict=True) if call.leaf]
        self.look(View({}, 0))  # compiles what has to be compiled

    def about(self) -> dict[str, Any]:
        """Return what does not change: the classes, the layers, and what can be done."""
        with self._lock:
            return {
                "title": self.title,
                "dataset": self.restored.title,
                "classes": list(map(printable, self.classes)),
                "shape": list(self.shape),
                "light": self.light,
                "side": SIDE,
                "test": 0 if self.test is None else len(self.test),
                "rate": {"most": MOST_RATE, "usual": 0.001},
                "most": MOST_BYTES,
                "layers": [self._row(call) for call in self._run().layers],
            }

    def look(self, view: View) -> Answer:
        """Return the picture, the maps of the layers in view, the scores, and the gradients of a score."""
        with self._lock, self.device.active():
            if view.target is not None:
                self._class(view.target)
            calls = self._run().layers
            arrays: list[tuple[dict[str, Any], Array]] = [({"kind": "x"}, self._x[0])]
            scores = self._run().y
            for kind, output in (("scores", scores), ("probabilities", _LOSS.activation(scores))):
                arrays.append(({"kind": kind}, to_numpy(output)[0]))
            asked = {at: count for at, count in view.layers.items() if self._drawn(calls, at)}
            arrays += [self._maps("y", at, calls[at].y, count) for at, count in asked.items()]
            unexplained = ""
            if view.target is not None:
                try:
                    arrays += self._why(view, asked)
                except XcnnError as error:  # such as a network without maps, for Grad-CAM
                    unexplained = str(error)
            header = {
                "version": self._version,
                "name": self._name,
                "truth": self._truth,
                "target": view.target,
                "unexplained": unexplained,
                "off": {name: sorted(channels) for name, channels in self.off.items()},
                "edited": self.edited,
                "losses": self.losses,
                "label": self.label,
            }
            return header, arrays

    def ink(self, drawing: Array, view: View) -> Answer:
        """Take a drawing, uint8 (SIDE, SIDE), 255 where the pen was."""
        with self._lock:
            image = made_like(drawing, self.shape, self.restored.dataset, self.light)
            return self._show(image, "your drawing" if drawing.any() else _NOTHING, None, view)

    def photo(self, file: bytes, view: View) -> Answer:
        """Take an image file, made like the training images as `xcnn predict` does; one that looks inverted is turned.

        Raises
        ------
        DataError
            If it is not an image that can be read.
        """
        with self._lock, tempfile.TemporaryDirectory(prefix="xcnn-") as folder:
            path = Path(folder) / "photo"
            path.write_bytes(file)
            try:
                (found,) = self.restored.predict([path])
                name = "your photo"
                if found.inverted:
                    (found,) = self.restored.predict([path], invert=True)
                    name = "your photo, light and dark exchanged, as the training images are the other way round"
            except DataError as error:
                raise DataError(str(error).replace(str(path), "the photo").removeprefix("read_image: ")) from None
            return self._show(found.image, name, None, view)

    def example(self, index: int | None, view: View) -> Answer:
        """Take a test image by its index, or any one if it is None."""
        with self._lock:
            if self.test is None:
                raise UsageError(f"there are no test images: {self.no_test}")
            if index is None:
                index = int(np.random.default_rng().integers(len(self.test)))
            if not 0 <= index < len(self.test):
                raise UsageError(f"index must be from 0 to {len(self.test) - 1}, got {index}")
            x, y = self.test.gather(np.asarray([index]))
            label = y[0] if np.ndim(y[0]) == 0 and np.asarray(y).dtype.kind in "iu" else -1  # or shares of classes
            return self._show(to_float(x)[0], f"test image {index}", int(label) if label >= 0 else None, view)

    def switch(self, layer: int, channel: int, off: bool, view: View) -> Answer:
        """Switch a channel of a layer off or on again."""
        with self._lock:
            call = self._layer(layer)
            if not call.name or not _sizes(call):
                raise UsageError(f"{type(call.module).__name__} has no channels that can be switched off")
            if not 0 <= channel < _sizes(call)[0]:
                raise UsageError(f"channel must be from 0 to {_sizes(call)[0] - 1}, got {channel}")
            channels = self.off.get(call.name, set()) - {channel} | ({channel} if off else set())
            self.off.pop(call.name, None)
            self.off |= {call.name: channels} if channels else {}
            return self._changed(view)

    def edit(self, layer: int, parameter: str, index: tuple[int, ...], value: float, view: View) -> Answer:
        """Give one weight of a layer another value."""
        with self._lock:
            call = self._layer(layer)
            slot = getattr(call.module, parameter, None) if parameter in ("weight", "bias") else None
            if not isinstance(slot, Parameter):
                raise UsageError(f"{call.name} has no parameter {shown(parameter)} that can be changed")
            new = to_numpy(slot.data)
            if len(index) != new.ndim or not all(0 <= i < size for i, size in zip(index, new.shape, strict=True)):
                raise UsageError(f"index must be a place in {tuple(new.shape)}, got {list(index)}")
            new[index] = number("edit", "value", value, f"[-{_LARGEST}, {_LARGEST}]")
            slot.data, self.edited = like(new, slot.data), True
            return self._changed(view)

    def step(self, label: int, lr: float, view: View) -> Answer:
        """Take a step of gradient descent on the picture, and note the loss before and after it.

        Layers compute as in inference: batch normalisation uses and keeps its running statistics, and nothing is
        dropped, so that the loss is that of the scores that are shown.

        Raises
        ------
        UsageError
            If the loss or the weights would not be finite; they stay as they were.
        """
        with self._lock, self.device.active():
            number("step", "lr", lr, f"(0, {MOST_RATE}]")
            before, found = self.model.state_dict(), self._traced()
            target = self.device.asarray(np.asarray([self._class(label)]))
            loss, backward = _LOSS(found.y, target)
            found.backward(backward()[0], parameters=True)
            slots = dict(self.model.named_parameters())
            try:
                for name, slot in slots.items():
                    slot.grad = found.gradients.get(name)
                if not found.gradients:
                    raise UsageError("the network has no weights that can be trained")
                SGD(list(slots.values()), lr=lr).step()
            finally:
                self.model.zero_grad()
            after, _ = _LOSS(self._traced().y, target)
            came = float(loss), float(after)
            if not all(map(math.isfinite, came)) or not _is_finite(slots):
                self.model.load_state_dict(before)
                raise UsageError(f"with a learning rate of {lr:g} the loss is no longer finite; take a smaller one")
            earlier = self.losses if label == self.label else []
            self.label, self.edited = label, True
            return self._changed(view, [*(earlier or came[:1]), came[1]][-100:])

    def reset(self, view: View) -> Answer:
        """Undo every change: the trained weights, and all channels on."""
        with self._lock:
            self.model.load_state_dict(self._trained)
            self.off, self.edited = {}, False
            return self._changed(view)

    def neuron(self, layer: int, index: tuple[int, ...]) -> Answer:
        """Return the value of a neuron, its receptive field, and what feeds it; see `neuron.feeds`."""
        with self._lock:
            call = self._layer(layer)
            sizes = _sizes(call)
            if not sizes or len(index) != len(sizes) or not all(0 <= i < n for i, n in zip(index, sizes, strict=True)):
                raise UsageError(f"index must be a place in {sizes}, got {list(index)}")
            what, arrays = feeds(call, index)
            header = {
                "version": self._version,
                "layer": layer,
                "index": list(index),
                "value": float(to_numpy(call.y)[0][index]),
                "field": [[part.start, part.stop] for part in self._fields[layer].window(index)],
                "feeds": what,
                "off": index[0] in self.off.get(call.name, ()),
            }
            return header, [({"kind": kind}, array) for kind, array in arrays.items()]

    # The rest runs while the lock is held.

    def _clear(self) -> None:
        """Show a picture without anything on it."""
        self._x = made_like(np.zeros((SIDE, SIDE), np.uint8), self.shape, self.restored.dataset, self.light)[None]

    def _show(self, image: Array, name: str, truth: int | None, view: View) -> Answer:
        self._x, self._name, self._truth = np.ascontiguousarray(image[None]), name, truth
        return self._changed(view)

    def _changed(self, view: View, losses: Sequence[float] = ()) -> Answer:
        self._version, self._trace, self.losses = self._version + 1, None, list(losses)
        return self.look(view)

    def _input(self) -> Any:
        return place(self._x, self.device, dtype_of(self.model))

    def _traced(self) -> Trace:
        with self.device.active():
            return trace(self.model, self._input(), off={name: sorted(found) for name, found in self.off.items()})

    def _run(self) -> Trace:
        """Return the trace of the picture, whose gradients are not computed."""
        if self._trace is None:
            self._trace = self._traced()
        return self._trace

    def _layer(self, layer: int) -> Any:
        calls = self._run().layers
        if not 0 <= layer < len(calls):
            raise UsageError(f"layer must be from 0 to {len(calls) - 1}, got {layer}")
        return calls[layer]

    def _class(self, label: int) -> int:
        if not is_integer(label) or not 0 <= label < len(self.classes):
            raise UsageError(f"the class must be from 0 to {len(self.classes) - 1}, got {shown(label)}")
        return label

    def _drawn(self, calls: list[Any], layer: int) -> bool:
        """Return whether a layer has maps (1, c, h, w), or a vector (1, k), that the page can draw."""
        return 0 <= layer < len(calls) and len(_sizes(calls[layer])) in (1, 3)

    def _row(self, call: Any) -> dict[str, Any]:
        shape = list(_sizes(call))
        own = [slot for name, slot in call.module.named_parameters()]
        pixels = math.prod(shape[1:])
        return {
            "name": call.name,
            "kind": type(call.module).__name__,
            "text": printable(repr(call.module)),
            "shape": shape,
            "drawn": len(shape) in (1, 3),
            "shown": min(shape[0], _SHOWN, max(1, _PIXELS // pixels)) if len(shape) == 3 else sum(shape[:1]),
            "parameters": sum(math.prod(slot.data.shape) for slot in own),
        }

    def _maps(self, kind: str, layer: int, output: Any, count: int) -> tuple[dict[str, Any], Array]:
        maps = to_numpy(output)[0]
        ends = (float(maps.min()), float(maps.max())) if maps.size else (0.0, 0.0)
        return {"kind": kind, "layer": layer, "low": ends[0], "high": ends[1]}, maps[:count]

    def _why(self, view: View, asked: Mapping[int, int]) -> list[tuple[dict[str, Any], Array]]:
        target: Any = view.target
        with self.device.active():
            if view.why != "gradient":
                found = getattr(explain, view.why)(self.model, self._input(), target)
                if found.ndim != 3:
                    raise UsageError(f"{view.why}: the network has no layer with maps of the picture")
                found = explain.upsample(found, self.shape[1:]) if view.why == "grad_cam" else found
                return [({"kind": "why"}, to_numpy(found)[0])]
            run: Any = self._traced()
            one = np.zeros(run.y.shape, np.float32)
            one[0, target] = 1
            dx = run.backward(like(one, run.y))
        arrays = [({"kind": "dx"}, to_numpy(dx)[0])]
        calls = run.layers
        return arrays + [self._maps("dy", p, calls[p].dy, n) for p, n in asked.items() if is_array(calls[p].dy)]


def _sizes(call: Call) -> tuple[int, ...]:
    """Return the shape of the output of a layer without the batch axis, empty if it is not one array of an example."""
    return tuple(call.y.shape[1:]) if is_array(call.y) and call.y.shape[:1] == (1,) else ()


def _is_finite(slots: Mapping[str, Parameter]) -> bool:
    return all(bool(np.isfinite(to_numpy(slot.data)).all()) for slot in slots.values())
