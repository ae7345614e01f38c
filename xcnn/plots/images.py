"""What a network sees: filters, maps, attributions, receptive fields, and the images that excite it most.

The functions draw what `xcnn.explain` returns, arrays of any library with a batch axis. Of a batch, the first example
is drawn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import _check
from xcnn._array import is_array
from xcnn.errors import ShapeError, UsageError, explained, unknown
from xcnn.explain import Trace, upsample
from xcnn.plots._canvas import GREY, MARK, Canvas, host, number, pixels, signed, warm
from xcnn.plots._methods import METHODS, of_signals

__all__ = ["attributions", "feature_maps", "filters", "maximized", "network_maps", "receptive_fields"]

_WIDTH = 9.6
"""How wide a picture may get, in inches, before tiles go on in the next row."""

_PANEL = 1.9
"""The height of an image that is a picture's subject."""

_OFTEN = 0.99
"""The share of a map that has colours of its own; the few numbers beyond have the strongest ones."""


def _called(name: str) -> str:
    """Return what an attribution is called."""
    return METHODS[name].title if name in METHODS else name


def _example(caller: str, name: str, values: Any, *ndims: int) -> np.ndarray:
    """Return the first example of an array with a batch axis, which has one of the given numbers of axes."""
    first: np.ndarray = host(caller, name, values, *ndims)[0]
    return first


def _panel(canvas: Canvas, x: float, y: float, height: float, colours: np.ndarray, most: float = 3.0) -> float:
    """Draw (h, w, 4) colours in a frame and return the place to the right."""
    width: float = height * colours.shape[1] / colours.shape[0]
    if width > most:
        height, width = height * most / width, most
    canvas.image(x, y, width, height, colours)
    canvas.box(x, y, width, height, edge=GREY, line=0.6)
    return x + width


def _signal(canvas: Canvas, x: float, y: float, width: float, height: float, signal: np.ndarray) -> None:
    """Draw the channels of a signal (c, l) as lines."""
    finite = np.where(np.isfinite(signal), signal, 0)
    low, high = float(finite.min()), float(finite.max())
    across = x + width * (np.arange(signal.shape[1]) + 0.5) / signal.shape[1]
    for channel in finite[:3]:
        down = y + height * (1 - (channel - low) / (high - low or 1))
        canvas.line(list(zip(across.tolist(), down.tolist(), strict=True)), line=0.9)
    canvas.box(x, y, width, height, edge=GREY, line=0.6)


class _Tiles:
    """Tiles beside each other, in as many rows as needed."""

    def __init__(self, canvas: Canvas, x: float, y: float, width: float, height: float, below: float = 0.0) -> None:
        self.canvas, self.x, self.y = canvas, x, y
        self.width, self.height, self.below = width, height, below
        self.columns = max(1, int((_WIDTH - x) / (width + 0.07)))
        self.count = 0

    def next(self) -> tuple[float, float]:
        """Return the place of the next tile."""
        row, column = divmod(self.count, self.columns)
        self.count += 1
        return self.x + column * (self.width + 0.07), self.y + row * (self.height + 0.07 + self.below)

    def draw(self, colours: np.ndarray, label: str = "") -> None:
        """Draw the next tile with a label above it, if there is room for one."""
        x, y = self.next()
        self.canvas.image(x, y, self.width, self.height, colours)
        self.canvas.box(x, y, self.width, self.height, edge=GREY, line=0.4)
        if label:
            self.canvas.text(x, y + self.height + 0.08, label, 7, most=self.width + 0.05)


def _colours(values: np.ndarray) -> tuple[Any, str]:
    """Return how to shade maps, all on one scale, and the sentence that says so."""
    finite = values[np.isfinite(values)]
    most = float(np.max(np.abs(finite), initial=0.0))
    if np.any(finite < 0):
        return lambda part: signed(part, most), f"White is zero, red positive, blue negative, up to {number(most)}."
    return lambda part: warm(part, 0.0, most), f"Dark blue is zero, yellow the largest number of all, {number(most)}."


def _strongest(maps: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the channels with the largest mean magnitude, in order of the index."""
    size = np.abs(np.where(np.isfinite(maps), maps, 0)).reshape(maps.shape[0], -1).mean(1)
    return np.sort(np.argsort(-size, kind="stable")[:count])


@explained
def filters(weight: Any, path: str | Path, title: str = "", count: int = 64) -> Path:
    """Draw the filters of a convolution; those of three channels, in the first layer of a network, in colour.

    Parameters
    ----------
    weight : (out, in, kh, kw) or (out, in, k), or what `xcnn.explain.filters` returns.
    count : how many filters are drawn at most, the strongest; of their inputs, a fourth of it.
    """
    count = _check.integer("filters", "count", count)
    layer, weight = weight if isinstance(weight, tuple) else ("", weight)
    every = host("filters", "weight", weight, 3, 4)
    coloured = every.ndim == 4 and every.shape[1] == 3  # the channels of signals are no colours
    size = "x".join(map(str, every.shape[2:]))
    every = every[..., None, :] if every.ndim == 3 else every
    outs, ins, kh, kw = every.shape
    chosen = _strongest(every, count)
    shown, canvas = every[chosen], Canvas()
    side = min(1.1, max(0.42, 0.09 * kw))
    if ins == 1 or coloured:
        tiles = _Tiles(canvas, 0, 0, side, max(side * kh / kw, 0.12), 0.16)
        most = float(np.max(np.abs(shown), initial=0.0, where=np.isfinite(shown)))
        for k, one in zip(chosen, shown, strict=True):
            colours = signed(one[0], most) if ins == 1 else pixels(0.5 + 0.5 * one / (most or 1))
            tiles.draw(colours, str(k))
        means = (
            "Red is positive: bright pixels there raise the number in the map; blue is negative: they lower it; white "
            "does not matter."
            if ins == 1
            else "Each is drawn as the picture that it looks for: grey is zero, and a colour says that this colour "
            "raises the number in the map."
        )
    else:
        inputs, rows = (max(1, min(size, count // 4, int(_WIDTH / (side + 0.07)))) for size in (ins, outs))
        chosen = _strongest(every, rows)
        shown = every[chosen]
        shade, _ = _colours(np.concatenate([shown.ravel(), -shown.ravel()]))
        tiles = _Tiles(canvas, 0.5, 0.12, side, max(side * kh / kw, 0.12))
        tiles.columns = inputs
        canvas.text(0.5, -0.02, f"input channel 0 to {inputs - 1} of {ins:,}", 8)
        for k, one in zip(chosen, shown, strict=True):
            for c in range(inputs):
                tiles.draw(shade(one[c]))
            canvas.text(0.4, tiles.next()[1] - 0.07 - tiles.height / 2, str(k), 8, "right")
            tiles.count -= 1
        means = (
            "A row is a filter, a column one of its inputs, a map of the layer before. Red is positive, blue negative, "
            "white does not matter."
        )
    some = f"{len(chosen)} of {outs:,} filters, the strongest. " if len(chosen) < outs else f"All {outs:,} filters. "
    caption = f"{some}A filter is a small table of {size} numbers per input channel that slides over the image. {means}"
    return canvas.save("filters", path, title or f"Filters{_of(layer)}", caption)


def _of(layer: str) -> str:
    return f" of layer {layer}" if layer else ""


@explained
def feature_maps(maps: Any, path: str | Path, title: str = "", layer: str = "", count: int = 64) -> Path:
    """Draw the maps of one layer.

    Parameters
    ----------
    maps : (n, c, h, w), or (n, c, l) of signals, what the layer makes of an input.
    layer : its name, for the title.
    count : how many are drawn at most: those with the largest mean magnitude.
    """
    every = _example("feature_maps", "maps", maps, 3, 4)
    every = every[:, None] if every.ndim == 2 else every
    chosen = _strongest(every, _check.integer("feature_maps", "count", count))
    shade, scale = _colours(every[chosen])
    canvas = Canvas()
    side = 0.95 if len(chosen) <= 24 else 0.72
    height = side * min(2.0, max(0.25, every.shape[1] / every.shape[2]))
    tiles = _Tiles(canvas, 0, 0, side, height, 0.16)
    for k in chosen:
        tiles.draw(shade(every[k]), str(k))
    silent = int(np.sum(~np.any(every.reshape(every.shape[0], -1), axis=1)))
    some = f"the {len(chosen)} strongest of {len(every):,} maps" if len(chosen) < len(every) else f"{len(every):,} maps"
    caption = (
        f"What the layer makes of the image: {some} of {'x'.join(map(str, every.shape[1:]))} numbers, one for each "
        f"filter, which found what it looks for where the map is strong. {scale}"
    )
    if silent:
        caption += f" {silent:,} map{'s are' if silent > 1 else ' is'} zero everywhere for this image."
    return canvas.save("feature_maps", path, title or f"Maps{_of(layer)}", caption)


@explained
def network_maps(
    maps: Trace | Mapping[str, Any], path: str | Path, x: Any = None, title: str = "", count: int = 8, layers: int = 24
) -> Path:
    """Draw the maps of a whole network, a row for each layer.

    Parameters
    ----------
    maps : what `xcnn.explain.trace` returns, or the output (n, ...) of each layer by its name, as
        `xcnn.explain.feature_maps` returns them.
    x : the input (n, c, h, w), which is drawn above them; of a trace, its own.
    count : how many maps of a layer are drawn at most, those with the largest mean magnitude.
    layers : how many layers are drawn at most, spread evenly; the first and the last are among them.
    """
    who = "network_maps"
    count, layers = _check.integer(who, "count", count), _check.integer(who, "layers", layers, 2)
    kinds: dict[str, str] = {}
    if isinstance(maps, Trace):
        x = maps.x if x is None else x
        calls = [call for call in maps.layers if is_array(call.y)]
        maps, kinds = {call.name: call.y for call in calls}, {c.name: type(c.module).__name__ for c in calls}
    if not isinstance(maps, Mapping) or not maps:
        raise UsageError(f"{who}: maps must be arrays by the names of layers, at least one")
    found = {name: _example(who, name, values, 2, 3, 4) for name, values in maps.items()}
    kept = np.unique(np.linspace(0, len(found) - 1, min(layers, len(found))).round().astype(int))
    names = list(found)
    canvas, left, side, y = Canvas(6.0), 1.9, 0.62, 0.0
    if x is not None:
        image = _example(who, "x", x, 3, 4)
        canvas.text(0, side / 2, "the input", 9, bold=True)
        if image.ndim == 2:
            _signal(canvas, left, 0, 3, side, image)
        else:
            _panel(canvas, left, 0, side, pixels(image))
        y = side + 0.16
    for name in (names[k] for k in kept):
        values = found[name]
        shade, _ = _colours(values)
        high = side if values.ndim == 3 else 0.3
        canvas.text(0, y + high / 2 - 0.08, f"{name} {kinds.get(name, '')}", 8.5, bold=True, most=left - 0.1)
        canvas.text(0, y + high / 2 + 0.08, "x".join(f"{size:,}" for size in values.shape), 8, colour=GREY)
        if values.ndim < 3:
            planes = np.atleast_2d(values)
            wide = min(count * (side + 0.07) - 0.07, 0.2 * planes.shape[1])
            canvas.image(left, y, wide, high, shade(planes))
            canvas.box(left, y, wide, high, edge=GREY, line=0.4)
        else:
            chosen = _strongest(values, count)
            wide = side * min(2.0, max(0.5, values.shape[2] / values.shape[1]))
            for k, channel in enumerate(chosen):
                at = left + k * (wide + 0.07)
                canvas.image(at, y, wide, side, shade(values[channel]))
                canvas.box(at, y, wide, side, edge=GREY, line=0.4)
            if len(values) > len(chosen):
                words = f"{len(chosen)} of {len(values):,}"
                canvas.text(left + len(chosen) * (wide + 0.07) + 0.05, y + side / 2, words, 8, colour=GREY)
        y += high + 0.12
    some = f"{len(kept)} of {len(found):,} layers, from first to last. " if len(kept) < len(found) else ""
    caption = (
        f"{some}Each row is what a layer makes of what comes before it. The first layers find edges and spots where "
        "they are in the image; later ones have smaller maps that stand for larger parts of it, and at the end there "
        "is one number per class. In rows with red or blue, red is above 0, white is 0 and blue below; in the others, "
        "dark is 0 and yellow is much. Each row has a scale of its own."
    )
    return canvas.save(who, path, title or "The image on its way through the network", caption)


def _flat(caller: str, name: str, values: Any, size: tuple[int, ...]) -> np.ndarray:
    """Return an attribution of one image as a map (h, w) or (l,) of its size: the sum over the channels."""
    rank = len(size)
    array = np.asarray(host(caller, name, values, *range(2, rank + 3)))
    array = array if array.ndim == rank + 2 else array[:, None]  # (n, h, w) has no channels
    if array.ndim != rank + 2:
        raise ShapeError(f"{caller}: {name} must be a map of each image, (n, h, w), got the shape {array.shape}")
    flat: np.ndarray = array[0].sum(0)
    if flat.shape != size:
        flat = np.asarray(upsample(flat[None], size))[0]
    return flat


def _overlay(image: np.ndarray, map: np.ndarray, most: float) -> np.ndarray:
    """Return a grey image in which the map shows its colours, the stronger the more."""
    finite = np.where(np.isfinite(map), map, 0)
    grey = pixels(image.mean(0, keepdims=True))[..., :3].astype(float)
    share = np.clip(np.abs(finite) / (most or 1), 0, 1)[..., None] ** 0.7
    colour = np.where(finite[..., None] > 0, (214.0, 39.0, 40.0), (33.0, 102.0, 220.0))
    made = np.full((*map.shape, 4), 255, np.uint8)
    made[..., :3] = (0.25 * 128 + 0.75 * grey) * (1 - share) + colour * share
    return made


@explained
def attributions(x: Any, maps: Mapping[str, Any] | Any, path: str | Path, title: str = "") -> Path:
    """Draw an image, attributions of its score to the pixels, and each of them laid over the image.

    Attributions with channels are added up over them. In each map, 1% of the numbers, the largest, share the strongest
    colours; otherwise a single pixel could make all others pale.

    Parameters
    ----------
    x : the input (n, c, h, w), or (n, c, l) of signals, as it was explained.
    maps : an attribution (n, c, h, w) or (n, h, w) of any size, or several by their names; those of
        `xcnn.explain.ATTRIBUTIONS` are explained in the caption.
    """
    who = "attributions"
    image = _example(who, "x", x, 3, 4)
    named = dict(maps) if isinstance(maps, Mapping) else {"attribution": maps}
    if not named:
        raise UsageError(f"{who}: maps must be at least one attribution, got none")
    flat = {name: _flat(who, name, values, image.shape[1:]) for name, values in named.items()}
    canvas = Canvas()
    most = {name: _largest(one) for name, one in flat.items()}
    known = [METHODS[name] for name in flat if name in METHODS]
    caption = " ".join(f"{one.title}: {one.shows[0].lower()}{one.shows[1:]}" for one in known)
    if len(flat) == len(known) == 1:
        caption = f"{known[0].shows} {known[0].careful}"
    if not caption:
        caption = "Red parts of the image raise the score of the class, blue ones lower it, white ones do not matter."
    gone = [name for name in flat if not most[name]]
    for name in gone:
        caption += f" {_called(name)} is zero everywhere."
    caption += " Such a map is a hint, no proof: it tells what the score depends on, and not why."
    title = title or ("Which pixels matter" + ("" if len(flat) > 1 else f": {_called(next(iter(flat)))}"))
    if image.ndim == 2:
        _of_signal(canvas, image, flat, most)
        return canvas.save(who, path, of_signals(title), of_signals(caption))
    height = _PANEL if len(flat) <= 3 else 1.45
    height = min(height, 3.0 * image.shape[1] / image.shape[2])
    right = _panel(canvas, 0, 0, height, pixels(image))
    canvas.text(0, -0.11, "the image", 9)
    if len(flat) == 1:
        ((name, one),) = flat.items()
        canvas.text(right + 0.2, -0.11, "the map", 9)
        right = _panel(canvas, right + 0.2, 0, height, signed(one, most[name]))
        canvas.text(right + 0.2, -0.11, "both", 9)
        _panel(canvas, right + 0.2, 0, height, _overlay(image, one, most[name]))
        return canvas.save(who, path, title, caption)
    step = right + 0.15
    columns = max(1, int((_WIDTH - step) / step))
    for k, (name, one) in enumerate(flat.items()):
        row, column = divmod(k, columns)
        left, top = (column + 1) * step, row * (2 * height + 0.5)
        canvas.text(left, top - 0.11, _called(name), 8, most=right + 0.12)
        _panel(canvas, left, top, height, signed(one, most[name]))
        _panel(canvas, left, top + height + 0.08, height, _overlay(image, one, most[name]))
    return canvas.save(who, path, title, caption)


def _largest(map: np.ndarray) -> float:
    """Return the magnitude of the strongest colours of a map."""
    size = np.abs(map[np.isfinite(map)])
    if not size.size:
        return 0.0
    return float(np.quantile(size, _OFTEN)) or float(size.max())


def _of_signal(canvas: Canvas, signal: np.ndarray, flat: Mapping[str, np.ndarray], most: Mapping[str, float]) -> None:
    """Draw a signal, and below it its attributions as strips."""
    left, width = 1.75, 5.5
    canvas.text(0, 0.45, "the signal", 9)
    _signal(canvas, left, 0, width, 0.9, signal)
    for k, (name, one) in enumerate(flat.items()):
        y = 1.02 + 0.36 * k
        canvas.text(0, y + 0.13, of_signals(_called(name)), 9, most=left - 0.1)
        canvas.image(left, y, width, 0.26, signed(one[None], most[name]))
        canvas.box(left, y, width, 0.26, edge=GREY, line=0.6)


@explained
def maximized(
    images: Any, path: str | Path, labels: Sequence[str] | None = None, title: str = "", layer: str = ""
) -> Path:
    """Draw images that excite channels or classes most, as `xcnn.explain.maximize_activation` makes them.

    Parameters
    ----------
    images : (n, c, h, w), one for each channel or class, or a sequence of (c, h, w).
    labels : what each excites.
    layer : name of the layer, for the title.
    """
    who = "maximized"
    several = (
        [host(who, "images", one, 3, 4) for one in images] if not is_array(images) else [host(who, "images", images, 4)]
    )
    made = [one for part in several for one in (part if part.ndim == 4 else part[None])]
    if not made:
        raise UsageError(f"{who}: images must be at least one, got none")
    labels = [str(k) for k in range(len(made))] if labels is None else [str(label) for label in labels]
    if len(labels) != len(made):
        raise UsageError(f"{who}: labels must be {len(made)}, one per image, got {len(labels)}")
    canvas = Canvas()
    height, width = made[0].shape[1:]
    tiles = _Tiles(canvas, 0, 0, 1.1 * width / max(height, width), 1.1 * height / max(height, width), 0.18)
    for one, label in zip(made, labels, strict=True):
        tiles.draw(pixels(one), label)
    caption = (
        "No photograph: the network made these pictures. Each began as noise, and was changed in many small steps "
        "along the gradient until the number named below it was as large as possible. They show the pattern that it "
        "looks for, with much that no photograph has. Each has a brightness scale of its own."
    )
    return canvas.save(who, path, title or f"What excites {f'layer {layer}' if layer else 'the network'} most", caption)


@explained
def receptive_fields(
    x: Any, fields: Mapping[str, Any], path: str | Path, layers: Sequence[str] | None = None, title: str = ""
) -> Path:
    """Draw on an image which part of it a number in the middle of each layer can depend on.

    Parameters
    ----------
    x : the input (n, c, h, w).
    fields : what `xcnn.explain.receptive_fields` returns.
    layers : the names of the layers to draw; by default up to eight in which the part has grown.
    """
    who = "receptive_fields"
    image = _example(who, "x", x, 3, 4)
    if image.ndim != 3:
        raise ShapeError(f"{who}: x must be images (n, c, h, w), got signals")
    for name in layers or ():
        if name not in fields:
            raise unknown(f"{who}: layer", name, fields)
    names = list(layers) if layers else _grown(fields)
    canvas = Canvas()
    height, width = image.shape[1:]
    side = _PANEL * 0.85
    tiles = _Tiles(canvas, 0, 0, min(side * width / height, 3), side, 0.4)
    tiles.columns = min(tiles.columns, 4)
    for name in names:
        field = fields[name]
        middle = tuple(size // 2 for size in field.shape[1:]) if len(field.shape) == 3 else (0,) * len(field.shape)
        rows, columns = field.window(middle)
        colours = pixels(image)
        dim = np.ones((height, width), bool)
        dim[rows, columns] = False
        colours[dim, :3] = (colours[dim, :3] * 0.35 + 80).astype(np.uint8)
        left, top = tiles.next()
        canvas.image(left, top, tiles.width, tiles.height, colours)
        one = tiles.width / width
        box = (
            columns.start * one,
            rows.start * one,
            (columns.stop - columns.start) * one,
            (rows.stop - rows.start) * one,
        )
        canvas.box(left + box[0], top + box[1], box[2], box[3], edge=MARK, line=1.6, layer=3)
        seen = f"{rows.stop - rows.start}x{columns.stop - columns.start} pixels"
        canvas.text(left, top + side + 0.09, f"{name} ({field.layer})", 8, most=tiles.width, bold=True)
        canvas.text(left, top + side + 0.24, f"sees {seen}", 8, most=tiles.width)
    caption = (
        "The frame is what a number in the middle of the layer can depend on, its receptive field: nothing outside "
        "reaches it. Every convolution and pooling makes it larger, until each number sees the whole image. Inside, "
        "the middle usually counts more than the border."
    )
    return canvas.save(who, path, title or "Receptive fields: how much of the image a number sees", caption)


def _grown(fields: Mapping[str, Any], most: int = 8) -> list[str]:
    """Return the names of layers in which the receptive field is larger than in those before."""
    names, largest = [], 0
    for name, field in fields.items():
        area = int(np.prod(field.size))
        if name and area > largest and len(field.shape) == 3:
            names.append(name)
            largest = area
    if not names:
        raise UsageError("receptive_fields: fields must be of at least one layer with maps, got none")
    kept = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
    return [names[k] for k in kept]
