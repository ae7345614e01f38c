"""`report`: a page on a whole run."""

import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xcnn import _check, plots
from xcnn._files import replacing
from xcnn._plugins import is_foreign
from xcnn.errors import XcnnError, explained
from xcnn.nn import Module
from xcnn.pages._html import Content, Html, Section, code, element, figure, listing, more, name, note, page, table
from xcnn.pages._network import filters, layers
from xcnn.pages._run import Run, command, read_run, require_run
from xcnn.pages._tested import Tested, classes_known, mistakes, tested
from xcnn.runs import Checkpoint, Restored
from xcnn.runs.beginning import at_start
from xcnn.runs.settings import SETTINGS, Config, plain
from xcnn.training import Metrics
from xcnn.training.terminal import duration, percent

__all__ = ["report", "require_run"]

_LONGEST_VALUE = 300
"""Letters of a setting that are shown; the command has them all."""


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
    run, checkpoint = read_run(folder), restored.checkpoint
    network = checkpoint.model or run.config.network
    untested, found = "", None
    with restored.device.active():
        try:
            found = tested(restored, watch)
        except XcnnError as error:
            untested = f"There are no test results: {str(error).removeprefix('load: ')}."
            tell(untested)
        first, unknown = _first(restored, run.config, model)
        classes = wrong = note("Not shown, as there are no test results.")
        if found is not None:
            classes, wrong = (write(found, checkpoint.classes) for write in (classes_known, mistakes))
        sections = [
            Section("result", "The result", _result(restored, run, network, found, untested)),
            Section("settings", "The settings", _settings(run.config)),
            Section("curves", "How it learned", _curves(run.history, checkpoint, tell)),
            Section("classes", "Which classes it knows", classes),
            Section("mistakes", "Its mistakes", wrong),
            Section("filters", "Its first filters", filters(restored.model, first, _origin(run.config), unknown)),
            Section("layers", "Its layers", layers(restored.model, first, checkpoint.shape, found and found.data)),
            Section("again", "How to repeat it", _again(run, checkpoint, folder)),
        ]
    lead = element("p", "What was trained, how it went, what the network knows and where it errs.", class_="lead")
    foot = element("p", "Written by xcnn report. This page loads nothing from anywhere.")
    text = page(f"Run {folder.resolve().name}: {network} on {restored.title}", lead, sections, foot)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return None if found is None else found.metrics


def _first(restored: Restored, config: Config, model: str | None) -> tuple[Module | None, str]:
    """Return the network before its first step, or None and why it is not known."""
    if is_foreign(config.model) and model is None:
        return None, f"the network is code of your own; name it, --model {config.model}"
    try:
        return at_start(restored.model, config, lambda message: None), ""
    except XcnnError as error:
        return None, str(error)


def _origin(config: Config) -> str:
    """Return where the first weights came from."""
    if config.init is None:
        return "as they were drawn from the seed"
    return f"as they came from {config.init}, with which the run began"


def _result(restored: Restored, run: Run, network: str, found: Tested | None, untested: str) -> Content:
    """Return what the run reached, in a few rows."""
    config, checkpoint = run.config, restored.checkpoint
    done, trained = len(run.history), checkpoint.dataset
    notes = []
    if run.ended is False:
        notes.append(note(f"This run was not trained to its end: {done} of {config.epochs} epochs are complete."))
    if run.note:
        notes.append(note(f"This run stopped early: {run.note}."))
    if found is None:
        notes.append(note(untested))
    elif restored.dataset != checkpoint.dataset:
        notes.append(note("Tested on another data set than the one that it was trained on, ", name(trained), "."))
    elif (then := _image_print(checkpoint.origin)) and then != found.data.fingerprint():
        notes.append(note("The test images are not those of the run: they have changed since."))
    rows: list[tuple[Any, Any]] = [("network", code(network)), ("data set", name(restored.title))]
    if found is not None:
        samples, counted = found.metrics.samples, found.metrics.counted
        wrong = counted - (found.metrics.correct or 0)
        of = "" if counted == samples else f" of {counted:,} answers"  # some have no label, or each pixel has one
        rows += [
            ("test accuracy", element("strong", percent(found.metrics.accuracy))),
            ("test loss", f"{found.metrics.loss:.4f}"),
            ("test images", f"{samples:,}; {wrong:,}{of} {'is' if wrong == 1 else 'are'} wrong"),
        ]
    rows += [
        ("weights", checkpoint.weights or "unknown"),
        ("parameters", f"{sum(math.prod(one.data.shape) for one in restored.model.parameters()):,}"),
        ("classes", f"{len(checkpoint.classes):,}"),
        ("epochs", f"{done} of {config.epochs}"),
    ]
    if seconds := sum(record.get("seconds", 0.0) for record in run.history):
        rows.append(("time of training", duration(seconds)))
    what = element(
        "p",
        "The test images were not used in training. The accuracy is the share of them that is classified rightly; "
        "the loss is small if the network is right and certain, and large if it is certain and wrong.",
    )
    return [notes, table("The run in short", ("", ""), rows), what if found is not None else None]


def _curves(history: list[dict[str, float]], checkpoint: Checkpoint, tell: Callable[[str], object]) -> Content:
    """Return the history as curves and as a table."""
    if not history:
        return note("No epoch is complete, so there are no curves.")
    epoch: Any = checkpoint.metrics.get("epoch")
    chosen = epoch if _check.is_integer(epoch) and 1 <= epoch <= len(history) else None
    drawn: Content = note("One epoch makes no curve; its numbers are below.")
    if len(history) > 1:
        try:
            drawn = _drawn(history, chosen)
        except plots.NoMatplotlibError as error:
            drawn = note(f"The curves are not drawn: {error}.")
            tell(f"the curves are not drawn: {error}")
    kinds = [key for key in history[-1] if key not in ("epoch", "data_seconds", "samples_per_second")]
    heads = [key.replace("val_", "validation ").replace("train_", "training ").replace("_", " ") for key in kinds]
    rows = [(f"{record['epoch']:.0f}", *(_number(key, record.get(key)) for key in kinds)) for record in history]
    whole = table("The history of the run", ("epoch", *heads), rows, numbers=range(len(kinds) + 1))
    return [drawn, more(f"The numbers of all {len(history)} epochs", whole)]


def _again(run: Run, checkpoint: Checkpoint, folder: Path) -> Content:
    """Return the command that trains the same network again, and what it ran on."""
    config, origin = run.config, checkpoint.origin
    parts: list[Any] = [
        element("p", "This command trains with the same settings:"),
        listing(command(config)),
    ]
    said = "On the cpu, with the same versions and processor, it gives the same weights bit for bit."
    if config.device != "cpu":
        said = f"On {config.device} the order of sums may change, and so their rounding: the weights differ a little."
    if run.ended is False:
        said += " This run has not ended; it goes on from its last checkpoint with this command:"
    parts.append(element("p", said))
    if run.ended is False:
        parts.append(listing(shlex.join(["xcnn", "train", "--resume", str(folder)])))
    rows = [(label, name(origin[key])) for key, label in _ORIGIN.items() if isinstance(origin.get(key), str)]
    if rows:
        parts.append(table("What it was trained with", ("", ""), rows))
    else:
        parts.append(note("The checkpoint does not say on which machine it was trained."))
    return parts


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
        keys = [key for key in (f"train_{metric}", f"val_{metric}") if all(key in one for one in history)]
        if keys:
            some = [{key: one[key] for key in ("epoch", *keys)} for one in history]
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
