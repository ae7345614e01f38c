"""`explanation`: a page on what a network answers for an image, why, and what each of its layers sees."""

import copy
import inspect
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xcnn import _check, explain
from xcnn._files import replacing
from xcnn._plugins import find, is_foreign
from xcnn.data.images import read_photo
from xcnn.devices import to_numpy
from xcnn.errors import ShapeError, UsageError, XcnnError, explained
from xcnn.nn import Module
from xcnn.pages._html import Content, Html, Section, bar, code, element, figure, listing, name, page, table
from xcnn.pages._layers import layers_shown, statistics_table
from xcnn.pages._pictures import SIGNED, grey, overlay, seen, signed
from xcnn.plots._methods import METHODS, Method
from xcnn.runs import Prediction, Restored
from xcnn.training.feed import dtype_of, place

__all__ = ["Shown", "explanation", "methods_named"]

_DEFAULT = ("grad_cam", "occlusion")

_MOST_IMAGES = 8
"""Images on a page: more would make it too large to send."""

_TOP = 10
"""Classes of a table of probabilities."""

_RANDOM = 1
"""The seed of the random weights with which a map is compared."""

Attribution = Callable[..., Any]


class Shown(NamedTuple):
    """An image on a page.

    Attributes
    ----------
    name : the file, or the data set with the index.
    answer : the most likely class, with its probability.
    truth : the true class; "" if it is not known.
    inverted : whether it looks inverted against the training images.
    """

    name: str
    answer: str
    truth: str
    inverted: bool = False


def methods_named(names: Sequence[str] | None) -> dict[str, Attribution]:
    """Return attributions by their names: those of `xcnn.explain.ATTRIBUTIONS`, or `package.module:function`."""
    names = _DEFAULT if names is None else names
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(one, str) for one in names):
        raise UsageError(f"methods must be a list of names, got {_check.shown(names)}", setting="method")
    if not names:
        raise UsageError(f"methods must name at least one of {', '.join(explain.ATTRIBUTIONS)}", setting="method")
    try:
        return {one: find("method", one, explain.ATTRIBUTIONS) for one in names}
    except UsageError as error:
        error.setting = "method"
        raise


@explained
def explanation(
    restored: Restored,
    path: str | Path,
    files: Sequence[str | Path] = (),
    indices: Sequence[int] = (),
    *,
    methods: Sequence[str] | None = None,
    target: str | int | None = None,
    invert: bool = False,
    source: str | Sequence[str] = "RUN",
    tell: Callable[[str], object] = lambda message: None,
) -> list[Shown]:
    """Write a page on what a network answers for images, why, and what each of its layers sees.

    It is one HTML file that needs no other one, no network and no script. The same arguments give the same bytes.

    Parameters
    ----------
    restored : the network, as `xcnn.runs.restore` returns it.
    path : the page to write.
    files : image files; they are converted and resized as the training images were.
    indices : indices of test images, from 0.
    methods : what answers the question why: names in `xcnn.explain.ATTRIBUTIONS`, or `package.module:function`, called
        as `function(model, x, target)`; by default Grad-CAM, if the network has maps, and occlusion.
    target : the class whose score is explained, by name or index; by default the most likely one of each image.
    invert : whether to turn light into dark in the files.
    source : the file of the network, as a command on the page names it; or several words, with flags that follow such
        as `--data-dir`.
    tell : called with a sentence for what the page does not show.

    Returns
    -------
    What the page shows, one per image.

    Raises
    ------
    UsageError
        If there is no image or there are too many, the network does not take images, or a method or the target is
        unknown.
    DataError
        If a file is not an image.
    WriteError
        If the page cannot be written; an older one is unchanged.
    """
    path = _check.path("explanation", "path", path)
    named = [source] if isinstance(source, str) else list(source)
    functions = methods_named(methods)
    if len(restored.checkpoint.shape) != 3:
        raise UsageError(f"the network takes inputs of shape {restored.checkpoint.shape}, not images (c, h, w)")
    if len(files) + len(indices) > _MOST_IMAGES:
        raise UsageError(f"a page shows at most {_MOST_IMAGES} images, got {len(files) + len(indices)}")
    chosen = _target(target, restored.checkpoint.classes)
    found = restored.predict([Path(file) for file in files], indices, invert=invert)
    with restored.device.active():
        try:
            chance: Module | None = copy.deepcopy(restored.model)
            assert chance is not None
            chance.reset_parameters(_RANDOM)
        except Exception:  # code of one's own that cannot be copied
            chance = None
        writer = _Writer(restored, functions, methods is not None, chance, tell)
        several = len(found) > 1
        sections = [
            one for k, image in enumerate(found) for one in writer.sections(image, chosen, f"-{k + 1}" * several)
        ]
    network = f"the network {restored.checkpoint.model}".rstrip()
    title = f"What {network} sees in {found[0].name}" + f" and {len(found) - 1} more" * several
    sections += [
        Section("careful", "Where to be careful", _careful()),
        Section("again", "How to make this page again", _again(restored, named, found, methods, target, invert)),
    ]
    lead = element(
        "p",
        f"What {network} answers, what in the image speaks for it, and what each of its layers computes on "
        "the way. All pictures show the true numbers of the network.",
        class_="lead",
    )
    foot = element("p", "Written by xcnn explain. This page loads nothing from anywhere.")
    text = page(title, lead, sections, foot)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return [_shown(one, restored.checkpoint.classes) for one in found]


def _target(target: str | int | None, classes: Sequence[str]) -> int | None:
    """Return the index of a class by its name, or by its number if no class has it as a name."""
    if target is None or (_check.is_integer(target) and 0 <= int(target) < len(classes)):
        return None if target is None else int(target)
    if isinstance(target, str):
        if target in classes:
            return list(classes).index(target)
        if target.isascii() and target.isdigit() and int(target) < len(classes):
            return int(target)
    known = ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
    wanted = f"a class, by its name or a number from 0 to {len(classes) - 1}"
    raise UsageError(f"target must be {wanted}, got {_check.shown(target)} (known: {known})", setting="target")


def _shown(one: Prediction, classes: Sequence[str]) -> Shown:
    best = int(one.probabilities.argmax())
    answer = f"{classes[best]} {one.probabilities[best]:.4f}"
    return Shown(one.name, answer, "" if one.truth is None else classes[one.truth], one.inverted)


class _Writer:
    """Writes the sections on images."""

    def __init__(
        self,
        restored: Restored,
        methods: dict[str, Attribution],
        asked: bool,
        chance: Module | None,
        tell: Callable[[str], object],
    ) -> None:
        self.restored, self.methods, self.asked, self.chance, self.tell = restored, methods, asked, chance, tell
        self.classes = restored.checkpoint.classes
        self.fields = explain.receptive_fields(restored.model, restored.checkpoint.shape)

    def sections(self, one: Prediction, target: int | None, suffix: str) -> list[Section]:
        """Return the sections on an image; `suffix` makes their ids differ from those of others."""
        x = place(one.image[None], self.restored.device, dtype_of(self.restored.model))
        found = explain.trace(self.restored.model, x)
        target = int(one.probabilities.argmax()) if target is None else target
        of = f": {Path(one.name).name}" * bool(suffix)
        single = not suffix
        return [
            Section(f"answer{suffix}", f"The image and the answer{of}", self._answer(one)),
            Section(f"why{suffix}", f"Why{of}", self._why(one, x, target), single),
            Section(
                f"layers{suffix}", f"What each layer sees{of}", layers_shown(found, self.fields, one.image.shape[1:])
            ),
            Section(f"numbers{suffix}", f"The layers in numbers{of}", _numbers(self.restored.model, x), single),
        ]

    def _answer(self, one: Prediction) -> Content:
        best, truth = int(one.probabilities.argmax()), one.truth
        said = [
            "The network says ",
            element("strong", name(self.classes[best])),
            f" with a probability of {_likely(float(one.probabilities[best]))}. ",
        ]
        if not np.isfinite(one.probabilities[best]):
            said = ["The network gives no answer: its numbers are not finite, as after a training that diverged."]
        elif truth is not None and truth == best:
            said.append("That is right.")
        elif truth is not None:
            said += [
                "That is wrong: it is ",
                element("strong", name(self.classes[truth])),
                f", to which it gives {_likely(float(one.probabilities[truth]))}.",
            ]
        if one.inverted:
            said.append(" The image looks inverted against the training images, so be careful with this answer.")
        c, h, w = one.image.shape
        colours = {1: "in shades of grey", 3: "in colours"}.get(c, f"the mean of {c} channels")
        pictures = [
            figure(
                seen(one.image, f"the image as the network sees it, {w} x {h} pixels"),
                f"What the network sees: {w} x {h} pixels, {colours}.",
            )
        ]
        if one.file is not None:
            photo = grey(read_photo(one.file), "the photo in the file")
            pictures.insert(0, figure(photo, "The file ", name(Path(one.name).name), "."))
        order = (-one.probabilities).argsort(kind="stable")[:_TOP]
        rows = [
            (
                name(self.classes[k]),
                f"{one.probabilities[k]:.4f}",
                bar(float(one.probabilities[k]), "" if k == best else "other"),
            )
            for k in order
        ]
        count = len(self.classes)
        shown = f"the {_TOP} most likely of {count} classes" if count > _TOP else "all classes"
        bars = table(f"Probabilities, {shown}", ("class", "probability", ""), rows, numbers=(1,))
        return [element("p", said), element("div", pictures, bars, class_="row")]

    def _why(self, one: Prediction, x: Any, target: int) -> Content:
        parts = [
            element(
                "p",
                "Explained is the score of ",
                element("strong", name(self.classes[target])),
                ": the number that the network computes for this class, before the numbers of all classes become "
                "probabilities. Red speaks for the class, blue against it, white has no effect: ",
                SIGNED,
            )
        ]
        for key, method in self.methods.items():
            try:
                values = _map_of(key, method, self.restored.model, x, target)
            except XcnnError as error:
                if self.asked or is_foreign(key):
                    raise
                reason = f"{_words(key, method).title} is left out: {str(error).partition(': ')[2] or error}."
                self.tell(reason)
                parts.append(element("p", reason, class_="note"))
                continue
            parts.append(self._method(one, x, target, key, method, values))
        return parts

    def _method(self, one: Prediction, x: Any, target: int, key: str, method: Attribution, values: np.ndarray) -> Html:
        words, answer = _words(key, method), self.classes[target]
        h, w = one.image.shape[1:]
        large = _large(values, (h, w))
        pictures = [
            figure(overlay(one.image, large, f"{words.title} of {answer}, laid over the image"), "Over the image."),
            figure(signed(large, f"{words.title} of {answer}, by itself"), "By itself" + _size(values, (h, w))),
        ]
        compared: list[Html] = []
        chance = self._by_chance(key, method, x, target)
        if chance is not None:
            pictures.append(
                figure(
                    signed(_large(chance, (h, w)), f"{words.title} of the same network with random weights"),
                    "The same network with random weights.",
                )
            )
            compared = [element("p", _compared(values, chance))]
        source = f" ({words.source})" if words.source else ""
        return element(
            "div",
            element("h3", words.title),
            element("p", f"{words.shows}{source}"),
            element("div", pictures, class_="row"),
            element("p", element("strong", "Careful: "), words.careful),
            compared,
            class_="method",
        )

    def _by_chance(self, key: str, method: Attribution, x: Any, target: int) -> np.ndarray | None:
        """Return the map of the network with random weights; None if there is none."""
        if self.chance is None:
            return None
        try:
            return _map_of(key, method, self.chance, x, target)
        except XcnnError:
            return None


def _map_of(key: str, method: Attribution, model: Module, x: Any, target: int) -> np.ndarray:
    """Return the map (h, w) of an attribution of one image, whose channels are added."""
    values = to_numpy(method(model, x, target)).astype(np.float64)
    if values.shape == x.shape:
        values = values.sum(axis=1)
    if values.ndim != 3 or len(values) != 1 or 0 in values.shape:
        n, _, *sizes = x.shape
        wanted = f"an array of the shape of x, {tuple(x.shape)}, or maps ({n}, h, w), such as {(n, *sizes)}"
        raise ShapeError(f"the method {key} must return {wanted}, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise XcnnError(f"{key}: the map has numbers that are not finite, as the network gives such scores")
    return np.asarray(values[0])


def _large(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return values if values.shape == size else np.asarray(explain.upsample(values[None], size)[0])


def _size(values: np.ndarray, size: tuple[int, int]) -> str:
    h, w = values.shape
    return "." if values.shape == size else f": {w} x {h} numbers, enlarged to the size of the image."


def _words(key: str, method: Attribution) -> Method:
    """Return the words for an attribution; those for one of your own are in its docstring."""
    if key in METHODS:
        return METHODS[key]
    said = (inspect.getdoc(method) or "").partition("\n\n")[0]
    shows = " ".join(said.split()) or "The function has no docstring that says what it shows."
    return Method(key, shows, "This method is code of your own; this page shows what it returns.", "")


def _compared(values: np.ndarray, chance: np.ndarray) -> list[str]:
    """Return what the comparison of a map with that of random weights says."""
    said = "To compare, the network forgets what it has learned: its weights are drawn at random. "
    shared = _rank_correlation(values, chance)
    if shared is None:
        which = "The map above" if values.min() == values.max() else "Its map"
        return [said, f"{which} is the same everywhere, so there is no order of pixels to compare."]
    alike = "rather reversed" if shared < -0.3 else "hardly alike" if shared < 0.3 else "somewhat alike"
    alike = "much alike" if shared >= 0.6 else alike
    meaning = {
        "rather reversed": "so this map depends on what was learned.",
        "hardly alike": "so this map depends on what was learned.",
        "somewhat alike": "so a part of this map comes from the image and the kind of network, whatever was learned.",
        "much alike": "so most of this map comes from the image and the kind of network, whatever was learned.",
    }[alike]
    return [said, f"The order of the pixels by their values is {alike} (rank correlation {shared:.2f}), {meaning}"]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's rank correlation of two arrays, with mean ranks for ties; None if one of them is constant."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        return np.asarray((last - (counts - 1) / 2)[place.ravel()])

    one, two = ranks(a), ranks(b)
    if one.std() == 0 or two.std() == 0:
        return None
    return float(np.corrcoef(one, two)[0, 1])


def _likely(probability: float) -> str:
    """Return a probability in words; one that is rounded to all or nothing is neither."""
    if probability > 0.9999:
        return "more than 99.99%"
    return "less than 0.01%" if probability < 0.0001 else f"{probability:.2%}"


def _numbers(model: Module, x: Any) -> Content:
    said = "What each layer gives for this image. Many zeros after a ReLU are normal: few patterns are in many places."
    return [element("p", said), statistics_table(explain.activation_statistics(model, x), units=False)]


def _careful() -> Html:
    points = (
        "A map is not a proof. It is one way to share out a number among pixels, and other ways give other maps: "
        "compare several, and trust what they agree on.",
        "A map that looks sensible may come from the image rather than from what was learned. Adebayo et al. (Sanity "
        "checks for saliency maps, 2018) therefore compare it with that of a network with random weights, as this page "
        "does. The rank correlation is 1 if the pixels have the same order in both maps, 0 if the orders have nothing "
        "to do with each other, and -1 if one is the reverse of the other. That the maps differ is needed, but does "
        "not make them right.",
        "It explains this answer for this image, not how the network works in general.",
        "A probability near 1 does not mean that the answer is right, in particular for images unlike those of the "
        "training: the network has to choose one of its classes even if none is there.",
    )
    return element("ul", [element("li", point) for point in points])


def _again(
    restored: Restored,
    source: Sequence[str],
    found: Sequence[Prediction],
    methods: Sequence[str] | None,
    target: str | int | None,
    invert: bool,
) -> Content:
    checkpoint = restored.checkpoint
    words = ["xcnn", "explain", source[0], *(str(one.file) for one in found if one.file is not None), *source[1:]]
    if indices := [one.name.rpartition("-")[2] for one in found if one.file is None]:
        words += ["--index", ",".join(indices)]
    words += [] if methods is None else ["--method", ",".join(methods)]
    words += [] if target is None else ["--target", str(target)]
    words += ["--invert"] * invert
    known = [
        ("network", code(checkpoint.model) if checkpoint.model else "its own, in the file"),
        ("trained on", name(checkpoint.dataset or "unknown")),
        ("weights", checkpoint.weights or "unknown"),
        ("computed on", code(restored.device.name)),
    ]
    return [
        listing(shlex.join(words)),
        table("What this page was computed with", ("", ""), known),
    ]
