"""`report`: a page on a whole run."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xcnn import _check, explain, nn, plots
from xcnn._files import replacing
from xcnn._plugins import is_foreign
from xcnn.data import Dataset, Loader, to_float
from xcnn.devices import to_numpy
from xcnn.errors import XcnnError, explained
from xcnn.nn import Module
from xcnn.pages._html import Content, Html, Section, bar, code, element, figure, listing, more, name, page, table
from xcnn.pages._layers import shape_text, size_text, statistics_table
from xcnn.pages._pictures import SIGNED, coloured, largest, seen, sheet
from xcnn.pages._run import Run, command, read_run, require_run
from xcnn.runs import Restored
from xcnn.runs.beginning import at_start
from xcnn.runs.settings import SETTINGS, Config, plain
from xcnn.training import LOSSES, Metrics
from xcnn.training.evaluation import evaluate
from xcnn.training.terminal import duration, percent

__all__ = ["report", "require_run"]

_MOST_CELLS = 30
"""Classes up to which the confusion matrix is a table; beyond, the most confused pairs say more."""

_PAIRS, _EXAMPLES, _MISTAKES = 6, 6, 24
"""Confused pairs, images of each, and certain mistakes on a page."""

_LONGEST_VALUE = 300
"""Letters of a setting that are shown; the command has them all."""

_FILTERS = 64
"""Filters that are shown."""

_STATISTICS = 1000
"""Test images from which the statistics of layers are computed."""


class _Tested(NamedTuple):
    """The results of a test.

    Attributes
    ----------
    data : the test images.
    metrics : over all of them.
    probabilities : (n, classes).
    labels : (n,).
    """

    data: Dataset
    metrics: Metrics
    probabilities: np.ndarray
    labels: np.ndarray


@explained
def report(
    restored: Restored,
    folder: str | Path,
    path: str | Path,
    *,
    model: str | None = None,
    watch: Callable[[int, Metrics], None] | None = None,
    tell: Callable[[str], object] = lambda message: None,
) -> Metrics | None:
    """Write a page on a whole run: settings, curves, results and mistakes, filters, layers, and how to repeat it.

    It is one HTML file that needs no other one, no network and no script. The same arguments give the same bytes. The
    weights are tested on the test images; where these are gone, the page says so.

    Parameters
    ----------
    restored : the network of the run, as `xcnn.runs.restore` returns it for the folder.
    folder : the folder of the run.
    path : the page to write.
    model : the name of the network with which `restore` was called, if it was. The first weights of a network of code
        of your own are drawn again only with it.
    watch : called after each batch of the test with the number of images and the metrics so far.
    tell : called with a sentence for what the page does not show.

    Returns
    -------
    The metrics of the test, or None if there are no test images.

    Raises
    ------
    UsageError
        If the folder holds no run.
    XcnnError
        If its settings cannot be read.
    WriteError
        If the page cannot be written; an older one is unchanged.
    """
    folder, path = _check.path("report", "folder", folder), _check.path("report", "path", path)
    require_run(folder)
    run = read_run(folder)
    with restored.device.active():
        writer = _Writer(restored, run, folder, model, tell)
        tested = writer.test(watch)
        sections = [
            Section("result", "The result", writer.result(tested)),
            Section("settings", "The settings", _settings(run.config)),
            Section("curves", "How it learned", writer.curves()),
            Section("classes", "Which classes it knows", writer.classes_known(tested)),
            Section("mistakes", "Its mistakes", writer.mistakes(tested)),
            Section("filters", "Its first filters", writer.filters()),
            Section("layers", "Its layers", writer.layers(tested)),
            Section("again", "How to repeat it", writer.again()),
        ]
    lead = element(
        "p",
        "What was trained, how it went, what the network knows and where it errs.",
        class_="lead",
    )
    foot = element("p", "Written by xcnn report. This page loads nothing from anywhere.")
    text = page(f"Run {folder.resolve().name}: {writer.network} on {restored.title}", lead, sections, foot)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return None if tested is None else tested.metrics


def _note(*content: Any) -> Html:
    return element("p", *content, class_="note")


def _folded(kind: str, content: Html, count: int) -> Html:
    """Return content, folded away if it is long."""
    return content if count <= _MOST_CELLS else more(f"All {count:,} {kind}", content)


class _Writer:
    """Writes the sections of a report."""

    def __init__(
        self, restored: Restored, run: Run, folder: Path, model: str | None, tell: Callable[[str], object]
    ) -> None:
        self.restored, self.run, self.folder, self.tell = restored, run, folder, tell
        self.checkpoint = restored.checkpoint
        self.network = self.checkpoint.model or run.config.network
        self.untested = ""
        self.first, self.unknown = self._first(model)

    def _first(self, model: str | None) -> tuple[Module | None, str]:
        """Return the network before its first step, or None and why it is not known."""
        if is_foreign(self.run.config.model) and model is None:
            return None, f"the network is code of your own; name it, --model {self.run.config.model}"
        try:
            return at_start(self.restored.model, self.run.config, lambda message: None), ""
        except XcnnError as error:
            return None, str(error)

    def test(self, watch: Callable[[int, Metrics], None] | None) -> _Tested | None:
        """Test the weights on the test images, or note why that cannot be done."""
        try:
            data = self.restored.test_set()
            kept: list[tuple[np.ndarray, np.ndarray]] = []

            def keep(labels: np.ndarray, probabilities: np.ndarray) -> float:
                kept.append((labels, probabilities))
                return 0.0

            metrics = evaluate(
                self.restored.model,
                Loader(data, shuffle=False, workers=2 * data.lazy),
                LOSSES["cross_entropy"],
                self.restored.device,
                watch=None if watch is None else lambda seen: watch(len(data), seen),
                metrics={"kept": keep},
            )
        except XcnnError as error:
            self.untested = f"There are no test results: {error}."
            self.tell(self.untested)
            return None
        return _Tested(data, metrics, kept[0][1], kept[0][0])

    def result(self, tested: _Tested | None) -> Content:
        """Return what the run reached, in a few rows."""
        run, config = self.run, self.run.config
        done = len(run.history)
        notes = []
        if run.ended is False:
            notes.append(_note(f"This run was not trained to its end: {done} of {config.epochs} epochs are complete."))
        if run.note:
            notes.append(_note(f"This run stopped early: {run.note}."))
        if tested is None:
            notes.append(_note(self.untested))
        elif (then := _image_print(self.checkpoint.origin)) and then != tested.data.fingerprint():
            notes.append(_note("The test images are not those of the run: they have changed since."))
        rows: list[tuple[Any, Any]] = [("network", code(self.network)), ("data set", name(self.restored.title))]
        if tested is not None:
            wrong = tested.metrics.counted - (tested.metrics.correct or 0)
            rows += [
                ("test accuracy", element("strong", percent(tested.metrics.accuracy))),
                ("test loss", f"{tested.metrics.loss:.4f}"),
                ("test images", f"{tested.metrics.samples:,}, {wrong:,} of them classified wrongly"),
            ]
        rows += [
            ("weights", self.checkpoint.weights or "unknown"),
            ("parameters", f"{sum(int(one.data.size) for one in self.restored.model.parameters()):,}"),
            ("classes", f"{len(self.checkpoint.classes):,}"),
            ("epochs", f"{done} of {config.epochs}"),
        ]
        if seconds := sum(record.get("seconds", 0.0) for record in run.history):
            rows.append(("time of training", duration(seconds)))
        what = element(
            "p",
            "The test images were not used in training. The accuracy is the share of them that is classified rightly; "
            "the loss is small if the network is right and certain, and large if it is certain and wrong.",
        )
        return [notes, table("The run in short", ("", ""), rows), what if tested is not None else None]

    def curves(self) -> Content:
        """Return the history as curves and as a table."""
        history = self.run.history
        if not history:
            return _note("No epoch is complete, so there are no curves.")
        epoch: Any = self.checkpoint.metrics.get("epoch")
        chosen = epoch if _check.is_integer(epoch) and 1 <= epoch <= len(history) else None
        drawn: Content = _note("One epoch makes no curve; its numbers are below.")
        if len(history) > 1:
            try:
                drawn = _drawn(history, chosen)
            except plots.NoMatplotlibError as error:
                drawn = _note(f"The curves are not drawn: {error}.")
                self.tell(f"the curves are not drawn: {error}")
        kinds = [key for key in history[-1] if key not in ("epoch", "data_seconds", "samples_per_second")]
        heads = [key.replace("val_", "validation ").replace("train_", "training ").replace("_", " ") for key in kinds]
        rows = [(f"{record['epoch']:.0f}", *(_number(key, record.get(key)) for key in kinds)) for record in history]
        whole = table("The history of the run", ("epoch", *heads), rows, numbers=range(len(kinds) + 1))
        return [drawn, more(f"The numbers of all {len(history)} epochs", whole)]

    def classes_known(self, tested: _Tested | None) -> Content:
        """Return the confusion matrix and the figures of each class."""
        if tested is None:
            return _note("Not shown, as there are no test results.")
        if tested.metrics.confusion is None:
            return _note(f"With {len(self.checkpoint.classes):,} classes there is no confusion matrix.")
        counts, classes = tested.metrics.confusion, self.checkpoint.classes
        parts: list[Any] = []
        if len(classes) <= _MOST_CELLS:
            parts.append(_confusion(counts, classes))
        else:
            parts.append(
                _note(
                    f"A table of {len(classes)} x {len(classes)} classes is too large to read; the next section shows "
                    "the classes that are confused most."
                )
            )
        figures = tested.metrics.per_class()
        rows = [
            (name(label), percent(p), percent(r), bar(r), percent(f1), f"{n:,}")
            for label, p, r, f1, n in zip(classes, *(column.tolist() for column in figures), strict=True)
        ]
        head = ("class", "precision", "recall", "", "F1", "images")
        said = element(
            "p",
            "Recall: of the images of a class, the share that is found. Precision: of the answers of a class, the "
            "share that is right. F1 is the harmonic mean of both, which is low if one of them is.",
        )
        shown = table("Each class", head, rows, numbers=(1, 2, 4, 5))
        parts += [element("h3", "Each class"), said]
        parts.append(_folded("classes", shown, len(classes)))
        return parts

    def mistakes(self, tested: _Tested | None) -> Content:
        """Return the most confused pairs and the most certain mistakes, with images."""
        if tested is None:
            return _note("Not shown, as there are no test results.")
        classes, labels = self.checkpoint.classes, tested.labels
        said = tested.probabilities.argmax(axis=1)
        wrong = np.flatnonzero(said != labels)
        if not len(wrong):
            return element("p", "There are none: every test image is classified rightly.")
        certain = tested.probabilities[np.arange(len(said)), said]
        parts: list[Any] = []
        if tested.metrics.confusion is not None:
            parts.append(element("h3", "The classes that are confused most"))
            for one in explain.confused_pairs(tested.metrics.confusion, classes, _PAIRS):
                i, j = classes.index(one.true), classes.index(one.predicted)
                these = [int(k) for k in wrong if labels[k] == i and said[k] == j]
                these.sort(key=lambda k: -certain[k])
                text = [
                    element("strong", name(one.true), " taken for ", name(one.predicted)),
                    f": {one.count:,} time{'s' * (one.count != 1)}, {one.share:.1%} of the images of this class.",
                ]
                parts.append(element("p", text))
                parts.append(self._tiles(tested, these[:_EXAMPLES], certain))
        worst = [int(k) for k in explain.certain_mistakes(tested.probabilities, labels, _MISTAKES)]
        parts += [
            element("h3", "The mistakes of which it is most certain"),
            element(
                "p",
                f"{len(worst)} of {len(wrong):,} mistakes. Look for what they share: images that are labelled wrongly, "
                "cut off, unusual, or that belong to two classes at once.",
            ),
            self._tiles(tested, worst, certain),
        ]
        return parts

    def _tiles(self, tested: _Tested, places: Sequence[int], certain: np.ndarray) -> Html:
        """Return images with their true class and the answer."""
        if not places or len(self.checkpoint.shape) != 3:
            return Html("")
        images = to_float(tested.data.gather(np.asarray(places))[0])
        tiles = []
        for k, image in zip(places, images, strict=True):
            true = self.checkpoint.classes[tested.labels[k]]
            answer = self.checkpoint.classes[int(tested.probabilities[k].argmax())]
            alt = f"test image {k}: {true}, taken for {answer}"
            caption = [name(true), ", said ", name(answer), f" {_sure(certain[k])}", element("br"), _index(k)]
            tiles.append(figure(seen(image, alt, ""), caption, class_="tile"))
        return element("div", tiles, class_="row")

    def filters(self) -> Content:
        """Return the filters of the first convolution before and after training."""
        try:
            after = explain.filters(self.restored.model)
        except XcnnError as error:
            return _note(f"There are no filters to show: {str(error).partition(': ')[2] or error}.")
        weights = to_numpy(after.weight)
        if weights.ndim != 4:
            return _note("The filters of this network are not pictures.")
        n, c, h, w = weights.shape
        first = None if self.first is None else dict(self.first.named_parameters()).get(f"{after.name}.weight")
        before = None if first is None else to_numpy(first.data)
        most = max(largest(weights), 0.0 if before is None else largest(before))
        init = self.run.config.init
        origin = (
            "as they were drawn from the seed"
            if init is None
            else f"as they came from {init}, which the run began with"
        )
        parts: list[Any] = []
        if before is not None:
            parts.append(
                figure(_filters(before, most, "before training"), f"Before training, {origin}.", class_="sheet")
            )
        parts.append(figure(_filters(weights, most, "after training"), "After training.", class_="sheet"))
        moved = ""
        if before is not None:
            change = float(np.linalg.norm(weights - before) / max(float(np.linalg.norm(before)), 1e-30))
            moved = f" Training moved them by {change:.0%} of their length."
        shown = f" The first {_FILTERS} are shown." * (n > _FILTERS)
        lead = element(
            "p",
            f"The layer {after.name} has {n} filter{'s' * (n != 1)} of {h} x {w} pixels"
            + (f" and {c} channels" if c > 1 else "")
            + ", small patterns that it looks for everywhere in the image. ",
            ["Numbers above zero are red, below it blue: ", SIGNED, " "] if c != 3 else None,
            f"All have the same scale.{shown}{moved}",
        )
        layout = element("p", _COLOURED if c == 3 else _LAYOUT) if c > 1 else None
        missing = None
        if before is None:
            reason = self.unknown or "their layer has another name in the file"
            missing = _note(f"The filters before training are not shown: {reason}.")
        return [lead, layout, missing, element("div", parts, class_="row pair")]

    def layers(self, tested: _Tested | None) -> Content:
        """Return the layers with their sizes, how far their weights moved, and the statistics of their outputs."""
        shape = self.checkpoint.shape
        summary = nn.summary(self.restored.model, shape)
        fields = explain.receptive_fields(self.restored.model, shape)
        moved = self._moved()
        rows: list[tuple[Any, ...]] = []
        for row in summary.rows:
            field = fields.get(row.name)
            rows.append(
                (
                    code(row.name),
                    row.layer,
                    shape_text(row.shape[1:]),
                    f"{row.parameters:,}",
                    f"{row.multiply_adds:,}",
                    "" if field is None else size_text(field),
                    moved.get(row.name, ""),
                )
            )
        total = summary.total
        rows.append(
            ("in all", "", shape_text(total.shape[1:]), f"{total.parameters:,}", f"{total.multiply_adds:,}", "", "")
        )
        head = ("layer", "kind", "output", "parameters", "multiply-adds", "receptive field", "weights moved by")
        said = (
            "The layers in the order in which they compute. The receptive field is the part of the image, in pixels, "
            "on which one number of the output can depend."
        )
        change = (
            " How far the weights moved is the length of their change, as a share of their length before training."
            if moved
            else ""
        )
        parts: list[Any] = [
            element("p", said + change),
            _folded("layers", table("The layers", head, rows, numbers=(3, 4, 5, 6), class_="wide"), len(summary.rows)),
            element("h3", "What the layers give"),
        ]
        if tested is None:
            parts.append(_note("Not shown, as there are no test results."))
        else:
            parts.append(self._statistics(tested))
        return parts

    def _moved(self) -> dict[str, str]:
        """Return by layer how far its weights moved, relative to their length at the start."""
        if self.first is None:
            return {}
        before, sums = dict(self.first.named_parameters()), dict[str, list[float]]()
        for key, slot in self.restored.model.named_parameters():
            if key in before:
                old, new = (to_numpy(one.data).astype(np.float64) for one in (before[key], slot))
                both = sums.setdefault(key.rpartition(".")[0], [0.0, 0.0])
                both[0] += float(((new - old) ** 2).sum())
                both[1] += float((old**2).sum())
        return {key: f"{(change / length) ** 0.5:.0%}" for key, (change, length) in sums.items() if length > 0}

    def _statistics(self, tested: _Tested) -> Content:
        some = tested.data[:_STATISTICS] if len(tested.data) > _STATISTICS else tested.data
        rows = explain.activation_statistics(self.restored.model, some)
        dead = [row for row in rows if row.dead]
        said = (
            f"Over {len(some):,} test images. A unit, which is a map or a number, of a ReLU is dead if it was zero "
            "everywhere: no gradient passes it, so it learns nothing any more. A sigmoid or tanh is saturated where it "
            "is close to its bounds, where gradients vanish."
        )
        found = " No unit is dead."
        if dead:
            count = sum(row.dead or 0 for row in dead)
            found = f" {count} unit{'s are' if count > 1 else ' is'} dead, in {len(dead)} layer{'s' * (len(dead) > 1)}."
        return [element("p", said + found), _folded("layers", statistics_table(rows, units=True), len(rows))]

    def again(self) -> Content:
        """Return the command that trains the same network again, and what it ran on."""
        config, origin = self.run.config, self.checkpoint.origin
        parts: list[Any] = [
            element("p", "This command trains with the same settings:"),
            listing(command(config)),
        ]
        said = "On the cpu, with the same versions and processor, it gives the same weights bit for bit."
        if config.device != "cpu":
            said = (
                f"On {config.device} the order of sums may change, and so their rounding: the weights differ a little."
            )
        if self.run.ended is False:
            said += " This run has not ended; it goes on from its last checkpoint with this command:"
        parts.append(element("p", said))
        if self.run.ended is False:
            parts.append(listing(shlex.join(["xcnn", "train", "--resume", str(self.folder)])))
        rows = [(label, name(origin[key])) for key, label in _ORIGIN.items() if isinstance(origin.get(key), str)]
        if rows:
            parts.append(table("What it was trained with", ("", ""), rows))
        else:
            parts.append(_note("The checkpoint does not say on which machine it was trained."))
        return parts


_COLOURED = (
    "The three channels of a filter lie over the red, the green and the blue of the image, and are shown as one "
    "colour: grey is zero in all three, and a colour means that the filter looks for it."
)
_LAYOUT = "Each row of the picture is one filter, and each column one of its channels."

_ORIGIN = {
    "processor": "processor",
    "device": "device",
    "arrays": "arrays",
    "python": "Python",
    "xcnn": "xcnn",
}
"""What a checkpoint says of the machine, and how it is called on the page."""


def _drawn(history: Sequence[dict[str, float]], chosen: int | None) -> Content:
    """Return the curves, a picture for each metric, so that they fit on a phone."""
    pictures = []
    for metric in ("loss", "accuracy"):
        some = [
            {key: one[key] for key in ("epoch", f"train_{metric}", f"val_{metric}") if key in one} for one in history
        ]
        if all(len(one) > 1 for one in some):
            title = f"{metric.capitalize()} over the epochs"
            pictures.append(Html(plots.svg(plots.curves, some, title=title, chosen=chosen)))
    said = (
        "Loss (lower is better) and accuracy (higher is better) after each pass over the training images. If the curve "
        "of validation, which is of held-out images, gets worse while that of training gets better, the network learns "
        "its images by heart."
    )
    kept = "" if chosen is None else f" The weights of epoch {chosen} were kept."
    return figure(element("div", pictures, class_="row"), said, kept) if pictures else None


def _image_print(origin: dict[str, Any]) -> Any:
    images = origin.get("images")
    return images.get("test") if isinstance(images, dict) else None


def _sure(probability: float) -> str:
    """Return a probability in a few letters."""
    return "over 99%" if probability > 0.99 else f"{probability:.0%}"


def _index(k: int) -> Html:
    return element("span", f"image {k}", class_="faint")


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return percent(value) if key.endswith("accuracy") else duration(value) if key == "seconds" else f"{value:.4g}"


def _settings(config: Config) -> Content:
    """Return the settings, those that are not the default first."""
    values, defaults = plain(config), plain(Config())
    changed = [key for key in values if values[key] != defaults[key] and not (key == "accumulate" and values[key] == 1)]

    def rows(keys: Sequence[str]) -> list[tuple[Any, ...]]:
        return [
            (code(key), element("td", _value(values[key]), class_="value"), _value(defaults[key]), _help(key))
            for key in keys
        ]

    head = ("setting", "value", "default", "what it is")
    others = [key for key in values if key not in changed]
    first = (
        table("Settings that are not the default", head, rows(changed))
        if changed
        else element("p", "All settings are the default.")
    )
    return [
        first,
        more(f"The {len(others)} settings that are the default", table("Default settings", head, rows(others))),
    ]


def _help(key: str) -> Html:
    """Return the description of a setting, with what is between backticks as code."""
    parts = SETTINGS[key].help.split("`")
    return element("td", [code(part) if k % 2 else part for k, part in enumerate(parts)], class_="text")


def _value(value: Any) -> Any:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        value = ", ".join(f"{key}={one}" for key, one in value.items())
    return name(value, _LONGEST_VALUE)


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> Content:
    """Return the confusion matrix as a table whose cells are shaded."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(classes), dtype=bool)
    worst = max(0.1, float(np.max(shares[~right], initial=0.0)))  # otherwise few errors would be as strong as many
    rows = []
    for i, label in enumerate(classes):
        cells: list[Any] = [name(label)]
        for j in range(len(classes)):
            count = int(counts[i, j])
            kind = "none" if not count else "right" if i == j else None
            share = shares[i, j] / (1.0 if i == j else worst)
            style = f"--share:{share:.3f}" if count else None
            cells.append(element("td", f"{count:,}", class_=kind, style=style))
        rows.append(cells)
    head = ["true class", *map(name, classes)]
    said = element(
        "p",
        "A row is a true class, a column an answer: how often this answer was given for images of that class. Right "
        "answers are on the diagonal, in blue; mistakes are in red, the stronger the larger their share of the row.",
    )
    return [said, table("Confusion matrix: true classes in rows, answers in columns", head, rows, class_="confusion")]


def _filters(weights: np.ndarray, most: float, when: str) -> Html:
    """Return a picture of filters (n, c, h, w)."""
    n, c, h, w = weights.shape
    alt = f"{min(n, _FILTERS)} filters of {h} x {w} {when}"
    if c == 3:
        return coloured(weights[:_FILTERS], alt, most)
    if c == 1:
        return sheet(weights[:_FILTERS, 0], alt, cell=64, most=most)
    some = weights[: _FILTERS // 4, : _FILTERS // 4]
    return sheet(some.reshape(-1, h, w), alt, columns=some.shape[1], cell=32, most=most)
