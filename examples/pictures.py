"""Draw every picture of `xcnn.plots` of a trained network into a folder, and all of them on a contact sheet.

    xcnn train --dataset digits --model lenet5 --out runs/digits
    python examples/pictures.py runs/digits pictures

The run is any folder that `xcnn train` wrote for images and classes; `--data-dir` says where its images are, `--index`
which test image is explained. `contact-sheet.png` shows all pictures. With `--svg` the pictures are SVG files, and
there is no contact sheet.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import explain, nn, ops, plots, runs
from xcnn.data import to_float
from xcnn.errors import XcnnError

__all__ = ["contact_sheet", "main", "pictures"]

Picture = tuple[str, Callable[..., Path]]


def picture(name: str, draw: Callable[..., Path], *arguments: Any, **options: Any) -> Picture:
    """Return the name of a picture, and the function that draws it into its argument `path`."""
    return name, functools.partial(draw, *arguments, **options)


def pictures(
    restored: runs.Restored, index: int, history: list[dict[str, Any]], ascent: int = 200
) -> Iterator[Picture]:
    """Yield names of pictures with the functions that draw them into `path`.

    Parameters
    ----------
    index : of the test image that is explained.
    history : records of the training.
    ascent : how many steps the images take that excite the network.
    """
    model, test = restored.model, restored.test_set()
    classes, shape = list(restored.checkpoint.classes), restored.checkpoint.shape
    x = restored.predict(indices=[index])[0].image[None]
    found = explain.trace(model, x)
    scores: Any = found.y
    answer = int(np.argmax(scores[0]))

    yield picture("network", plots.network, model, shape, title=restored.checkpoint.model)
    if history:
        yield picture("curves", plots.curves, history)
    yield from steps(found, classes, int(test.y[index]))
    yield from maps(model, found, answer)
    yield from excited(model, shape, classes, ascent)
    yield from mistakes(restored, classes)


def steps(found: explain.Trace, classes: list[str], truth: int) -> Iterator[Picture]:
    """Yield the steps of the first convolution, and of the scores, forward and backward."""
    conv = next(call for call in found.layers if isinstance(call.module, nn.Conv2d))
    module: Any = conv.module
    options: dict[str, Any] = {"padding": _one(module.padding), "stride": _one(module.stride)}
    output: Any = found.y
    image, kernel, scores = conv.x[0], module.weight.data[0], output[0]
    image, kernel = (image, kernel) if len(image) <= 3 else (image[:1], kernel[:1])
    y = ops.conv2d(image[None], kernel[None], **options)[0][0, 0]  # without the bias
    busy = np.argwhere(np.abs(y) == np.abs(y).max())[0]
    places = [tuple(busy.tolist()), (min(busy[0] + 2, len(y) - 1), busy[1] // 2)]
    yield picture("step-convolution", plots.convolution, image, kernel, places, **options)
    yield picture("step-relu", plots.relu, y)
    yield picture("step-pooling", plots.pooling, np.maximum(y, 0))
    yield picture("step-softmax", plots.softmax, scores, classes=classes, truth=truth)
    yield picture("back-softmax", plots.softmax_backward, scores, truth, classes=classes)
    loss_backward = ops.cross_entropy(scores[None], np.asarray([truth]))[1]
    found.backward(loss_backward()[0])
    last = next(call for call in reversed(found.layers) if isinstance(call.module, nn.Linear))
    weight = dict(last.module.named_parameters())["weight"].data
    yield picture("back-linear", plots.linear_backward, last.x[0], weight, last.dy[0])
    if conv.dy is not None:
        dy = conv.dy[0, 0]
        yield picture("back-convolution", plots.convolution_backward, image, kernel, dy, **options)
        yield picture("back-relu", plots.relu_backward, y, dy)
    pooled = ops.max_pool2d(np.maximum(y, 0)[None, None], 2)[0][0, 0]
    example = np.random.default_rng(0).standard_normal(pooled.shape)
    yield picture("back-pooling", plots.pooling_backward, np.maximum(y, 0), example)
    small, filter = np.array([[1.0, 0, 2], [2, 5, 1], [4, 0, 3]]), np.array([[1.0, 0], [2, -1]])
    yield picture("report-convolution", plots.convolution, small, filter, [(0, 0), (1, 0)])
    yield picture("report-backward", plots.convolution_backward, small, filter, [[0, 0], [0.469, 0]])


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def maps(model: nn.Module, found: explain.Trace, answer: int) -> Iterator[Picture]:
    """Yield what the layers make of the image, and which pixels matter."""
    x = found.x
    yield picture("filters", plots.filters, explain.filters(model))
    convs = [name for name, module in model.modules() if isinstance(module, nn.Conv2d)]
    yield picture("filters-last", plots.filters, explain.filters(model, convs[-1]))
    spatial = [call for call in found.layers if getattr(call.y, "ndim", 0) == 4 and call.y.shape[-1] > 1]
    for name, call in (("first", spatial[1]), ("last", spatial[-1])):
        yield picture(f"maps-{name}", plots.feature_maps, call.y, layer=call.name)
    yield picture("maps-network", plots.network_maps, found)
    attributions = {}
    for name, attribution in explain.ATTRIBUTIONS.items():
        try:
            attributions[name] = attribution(model, x, answer)
        except XcnnError as error:  # not every method is for every network
            print(f"left out: {error}", file=sys.stderr)
    for name, one in attributions.items():
        yield picture(f"attribution-{name}", plots.attributions, x, {name: one})
    yield picture("attributions", plots.attributions, x, attributions)
    fields = explain.receptive_fields(model, x.shape[1:])
    yield picture("receptive-fields", plots.receptive_fields, x, fields)


def excited(model: nn.Module, shape: tuple[int, ...], classes: list[str], ascent: int) -> Iterator[Picture]:
    """Yield the images that excite the classes and the channels of a convolution most."""
    made = [explain.maximize_activation(model, None, k, shape, ascent) for k in range(min(10, len(classes)))]
    yield picture("excites-classes", plots.maximized, made, labels=classes[: len(made)])
    conv = [name for name, module in model.modules() if isinstance(module, nn.Conv2d)][:2][-1]
    count = min(10, explain.filters(model, conv).weight.shape[0])
    channels = [explain.maximize_activation(model, conv, k, shape, ascent // 2) for k in range(count)]
    yield picture("excites-channels", plots.maximized, channels, layer=conv)


def mistakes(restored: runs.Restored, classes: list[str]) -> Iterator[Picture]:
    """Yield what is found over the test images, at most 2,000 of them."""
    model, test = restored.model, restored.test_set()
    count = min(len(test), 2000)
    part = test[np.arange(count)]
    images, labels = to_float(np.asarray(part.x)), np.asarray(part.y)
    parts = [model(images[k : k + 200]) for k in range(0, count, 200)]
    p = ops.softmax(np.concatenate(parts))[0]
    said = p.argmax(1)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, said), 1)
    yield picture("confusion", plots.confusion, counts, classes)
    pairs = explain.confused_pairs(counts, classes)
    shown = [images[(labels == classes.index(a)) & (said == classes.index(b))] for a, b, *_ in pairs]
    if pairs:
        yield picture("confused-pairs", plots.confused_pairs, pairs, images=shown)
    worst = explain.certain_mistakes(p, labels)
    if len(worst):
        yield picture("certain-mistakes", plots.certain_mistakes, images[worst], p[worst], labels[worst], classes)
    statistics = explain.activation_statistics(model, images[:200])
    yield picture("activations", plots.activation_statistics, statistics)
    points = explain.embed(explain.features(model, images))
    yield picture("embedding", plots.embedding, points, labels, classes)
    one = restored.predict(indices=[0])[0]
    yield picture("prediction", plots.prediction, one.image, one.probabilities, classes)


def contact_sheet(paths: list[Path], path: Path, width: int = 2400, side: int = 460) -> None:
    """Write small copies of pictures with their names into one PNG file."""
    from PIL import Image, ImageDraw

    rows: list[list[tuple[str, Any]]] = [[]]
    for one in paths:
        image = Image.open(one).convert("RGB")
        image.thumbnail((side * 2, side))
        if sum(other.width + 12 for _, other in rows[-1]) + image.width > width:
            rows.append([])
        rows[-1].append((one.stem, image))
    heights = [max(image.height for _, image in row) + 34 for row in rows]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, top in zip(rows, [0, *itertools.accumulate(heights)], strict=False):
        left = 6
        for name, image in row:
            sheet.paste(image, (left, top + 22))
            pen.text((left, top + 6), name, fill="black")
            left += image.width + 12
    sheet.save(path)


def main() -> int:
    """Draw all pictures and return the exit code."""
    parser = argparse.ArgumentParser(description="Draw every picture of a trained network.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--data-dir", type=Path, help="folder with the images that the network was trained on")
    parser.add_argument("--index", type=int, default=0, help="the test image that is explained")
    parser.add_argument("--svg", action="store_true", help="write SVG files, and no contact sheet")
    options = parser.parse_args()
    try:
        plots.check()
        restored = runs.restore(options.run, data_dir=options.data_dir)
        recorded = options.run / "history.jsonl"
        history = [json.loads(line) for line in recorded.read_text("utf-8").splitlines()] if recorded.exists() else []
        options.out.mkdir(parents=True, exist_ok=True)
        kind = "svg" if options.svg else "png"
        drawn = []
        for name, draw in pictures(restored, options.index, history):
            drawn.append(draw(path=options.out / f"{name}.{kind}"))
            print(drawn[-1])
        if not options.svg:
            contact_sheet(drawn, options.out / "contact-sheet.png")
            print(options.out / "contact-sheet.png")
    except XcnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
