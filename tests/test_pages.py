"""`xcnn.pages`: what the pages say, that they need nothing but themselves, and that no name can change them."""

import base64
import copy
import dataclasses
import html.parser
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcnn import explain, nn, pages, runs
from xcnn.data import Dataset
from xcnn.devices import to_numpy
from xcnn.errors import DataError, DeviceError, UsageError, WriteError
from xcnn.pages import _html, _network, _pictures, _run, _words
from xcnn.pages.explanation import _compared, _map_of, _rank_correlation
from xcnn.plots import _canvas
from xcnn.plots._methods import METHODS
from xcnn.runs import Config, restore, train
from xcnn.runs.beginning import at_start
from xcnn.training import Callback
from xcnn.training.terminal import duration

VOID = {"br", "img", "meta"}

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "&amp;&lt;b&gt;",
    "\u202egnorw\u2066",
    "\x1b[2Jbell\x07\x00",
    "\u05d0\u05d1\u05d2 \u0645\u0631\u062d\u0628\u0627",
    "a" * 5000,
    "two\nlines\r\n",
    "]]></style><style>*{display:none}",
    "{{7*7}}",
)


class Page(html.parser.HTMLParser):
    """A page, parsed: every element must be closed, and nothing may be loaded."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text("utf-8")
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[int] = []
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs), "an attribute twice"
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        for name, value in found.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                assert value.startswith("#" if "href" in name else "data:image/png;base64,")
                self.links += [value[1:]] if "href" in name else []
            assert "javascript:" not in (value or "").lower() or name in ("alt", "title", "aria-label")
        if tag == "img":
            assert found["alt"]
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form", "audio", "video"}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self._table.append([])
        if tag == "table":
            self._table, self._caption = [], ""
        if tag in ("td", "th"):
            self._table[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            assert self._caption
            assert len({len(row) for row in self._table}) == 1
            self.tables[self._caption] = self._table

    def handle_data(self, text):
        if "style" in self.open:
            return
        self.words.append(text)
        if self.open and {"td", "th"} & set(self.open):
            self._table[-1][-1] += text
        if self.open and self.open[-1] == "caption":
            self._caption += text

    @property
    def said(self) -> str:
        return " ".join("".join(self.words).split())


def check(path: Path) -> Page:
    """Parse a page, and check what holds for each."""
    page = Page(path)
    assert page.text.startswith('<!doctype html>\n<html lang="en">')
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.links) <= set(page.ids)
    for found in re.findall(r"url\(([^)]*)\)", page.text):
        assert found[0] == "#"
        assert found[1:] in page.ids
    assert "@import" not in page.text
    policy = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    for tag, found in page.tags:
        if tag == "th":
            assert found["scope"] in ("row", "col")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page.text)
    return page


@pytest.fixture(scope="module")
def restored(checkpoint):
    return restore(checkpoint.parent)


@pytest.fixture(scope="module")
def reported(restored, checkpoint, tmp_path_factory):
    """The page of a run, and the metrics that `report` returns."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    metrics = pages.report(restored, checkpoint.parent, path)
    return check(path), metrics, path


def test_the_text_of_an_element_is_escaped():
    made = _html.element("p", "<b> & \"x\" 'y'", _html.element("i", 1, None, [2, "<"]), title='"><script>', hidden=True)
    assert made == (
        '<p title="&quot;&gt;&lt;script&gt;" hidden>&lt;b&gt; &amp; &quot;x&quot; &#x27;y&#x27;<i>12&lt;</i></p>\n'
    )
    joined = "".join([made])
    assert _html.element("p", joined).startswith("<p>&lt;p ")  # a plain string is text, whatever is in it
    assert len(_html.name("a" * 5000)) < 1200


def test_the_text_of_pages_is_readable_in_light_and_dark():
    """Contrast of all text is at least 4.5 to 1 (WCAG AA), also on the darkest cells of a confusion matrix."""
    style = Path(_html.__file__).with_name("style.css").read_text("utf-8")
    light, dark, *_ = re.findall(r":root \{(.*?)\}", style, re.DOTALL)

    def colour(text):
        if text.startswith("#"):
            return np.asarray([int(text[i : i + 2], 16) for i in (1, 3, 5)], float)
        return np.asarray([float(one) for one in text.split()])

    def luminance(rgb):
        share = rgb / 255
        return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    def contrast(a, b):
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    for scheme in (light, dark):
        found = dict(re.findall(r"--([\w-]+): ([^;]+);", scheme))
        paper, box, most = colour(found["paper"]), colour(found["box"]), float(found["most"])
        backs = [paper, box, *(most * colour(found[kind]) + (1 - most) * paper for kind in ("right", "wrong"))]
        for text, allowed in (("ink", backs), ("faint", backs[:2]), ("link", backs[:2])):
            assert min(contrast(colour(found[text]), back) for back in allowed) >= 4.5, (text, scheme)


def test_an_explanation_says_what_the_network_says(restored, tmp_path):
    path = tmp_path / "page.html"
    (shown,) = pages.explanation(restored, path, indices=[3], source="out")
    page, (expected,) = check(path), restored.predict(indices=[3])
    classes, best = restored.checkpoint.classes, int(expected.probabilities.argmax())
    assert shown[:3] == ("digits-3", f"{classes[best]} {expected.probabilities[best]:.4f}", classes[expected.truth])
    assert not shown.inverted
    head, *rows = page.tables["Probabilities, all classes"]
    assert head == ["class", "probability", ""]
    order = np.argsort(-expected.probabilities, kind="stable")
    assert [row[:2] for row in rows] == [[classes[k], f"{expected.probabilities[k]:.4f}"] for k in order]
    assert ("That is right" in page.said) == (best == expected.truth)
    traced = explain.trace(restored.model, expected.image[None])
    assert [row[0] for row in page.tables["The output of each layer"][1:]] == [call.name for call in traced.layers]
    assert page.tables["The output of each layer"][1][6] == f"{to_numpy(traced.layers[0].y).max():.3g}"
    assert f"Explained is the score of {classes[best]}: " in page.said
    assert "xcnn explain out --index 3" in page.said
    assert path.stat().st_size < 100_000


def test_the_maps_on_a_page_are_those_of_the_network(restored, tmp_path):
    """The picture of a layer is read back: each of its pixels has the sign and nearly the strength of its number."""
    path = tmp_path / "page.html"
    pages.explanation(restored, path, indices=[3])
    (call, *_) = explain.trace(restored.model, restored.predict(indices=[3])[0].image[None]).layers
    values = to_numpy(call.y)[0]
    shown = [found for tag, found in check(path).tags if tag == "img" and "maps of the layer 0" in found["alt"]]
    pixels = picture(shown[0]["src"])
    n, h, w = values.shape
    assert n == 1
    assert pixels.size == (w, h)
    strength = values[0] / np.abs(values).max()
    red, blue = (np.asarray(pixels.convert("RGB"), float)[..., k] for k in (0, 2))
    assert ((red > blue) == (strength > 0.5 / 31)).all()
    assert ((red < blue) == (strength < -0.5 / 31)).all()
    assert np.corrcoef((red - blue).ravel(), strength.ravel())[0, 1] > 0.99


def picture(source):
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_a_map_over_an_image_shows_the_image_where_it_is_zero():
    image, values = np.random.default_rng(0).random((1, 4, 5)), np.zeros((4, 5))
    values[0, 0], values[1, 1] = 2.0, -2.0
    source = re.search('src="([^"]+)"', _pictures.overlay(image, values, "both"))[1]
    pixels = np.asarray(picture(source), float)
    levels = np.rint(255 * np.broadcast_to(image[0, ..., None], (4, 5, 3)))
    assert np.array_equal(pixels[2:], levels[2:])
    assert pixels[0, 0, 0] > pixels[0, 0, 2] + 50
    assert pixels[1, 1, 2] > pixels[1, 1, 0] + 50


def test_filters_of_three_channels_are_shown_in_their_colours():
    filters = np.zeros((2, 3, 2, 2))
    filters[0, 0, 0, 0], filters[1, 2, 1, 1] = 1, -1
    source = re.search('src="([^"]+)"', _pictures.coloured(filters, "filters", 1.0))[1]
    pixels = np.asarray(picture(source)).tolist()
    assert pixels[0][0] == [255, 128, 128, 255]
    assert pixels[1][4] == [128, 128, 0, 255]
    assert pixels[0][2][3] == 0, "between them"


def test_pages_are_the_same_bytes_each_time(restored, reported, checkpoint, tmp_path):
    for name in ("a.html", "b.html"):
        pages.explanation(restored, tmp_path / name, indices=[0, 1], methods=["smooth_grad"])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    check(tmp_path / "a.html")
    pages.report(restore(checkpoint.parent), checkpoint.parent, tmp_path / "c.html")
    assert (tmp_path / "c.html").read_bytes() == reported[2].read_bytes()


@pytest.mark.parametrize("device", ["strict", "torch"])
def test_pages_of_another_library_say_the_same(reported, checkpoint, tmp_path, device):
    try:
        elsewhere = restore(checkpoint.parent, device)
    except DeviceError as error:
        pytest.skip(str(error))
    pages.report(elsewhere, checkpoint.parent, tmp_path / "report.html")
    assert check(tmp_path / "report.html").tables.keys() == reported[0].tables.keys()
    pages.explanation(elsewhere, tmp_path / "page.html", indices=[3])
    facts = dict(check(tmp_path / "page.html").tables["What this page was computed with"][1:])
    assert facts["computed on"].startswith(device)


def test_channels_of_a_map_are_added():
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 5))
    assert np.allclose(_map_of("own", lambda model, x, target: x, None, x, 0), x[0].sum(axis=0))


def test_every_method_and_code_of_ones_own_can_be_asked(xcnn, checkpoint, tmp_path):
    (tmp_path / "mine.py").write_text(
        'def bright(model, x, target):\n    """Return <the image>.\n\n    More."""\n    return x\n'
        "def wrong(model, x, target):\n    return x[0, 0, 0]\n"
    )
    methods = ",".join([*explain.ATTRIBUTIONS, "mine:bright"])
    code, out, err = xcnn("explain", checkpoint.parent, "--index", "3", "--method", methods, "--target", "7")
    assert code == 0, err
    page = check(tmp_path / "explain.html")
    for method in explain.ATTRIBUTIONS:
        assert METHODS[method].title in page.said
    assert "Return <the image>." in page.said
    assert "Explained is the score of 7" in page.said
    assert out.split()[:4] == ["image", "class", "truth", "digits-3"]
    assert "page: explain.html" in err
    code, _, err = xcnn("explain", checkpoint.parent, "--index", "3", "--method", "mine:wrong")
    assert code == 2
    assert "the method mine:wrong must return" in err


def test_the_command_of_an_explanation_writes_the_same_page(xcnn, checkpoint, tmp_path):
    """The flags that say where the network and its images come from are part of it."""
    runs.save(restore(checkpoint.parent).model, tmp_path / "my net.safetensors")
    Path("names.txt").write_text("\n".join(f"kind {k}" for k in range(10)))
    flags = ("--image-size", 8, "--classes", "names.txt", "--mean", "0.5", "--std", "0.25,", "--dataset", "digits")
    flags = (*flags, "--index", "3", "--method", "occlusion", "--target", "kind 4", "--threads", 1)
    assert xcnn("explain", "my net.safetensors", *flags)[0] == 0
    first = Path("explain.html").read_bytes()
    (command,) = [line for line in check(Path("explain.html")).words if line.startswith("xcnn explain ")]
    assert "--threads" not in command
    code, _, err = xcnn(*shlex.split(command)[1:], "--out", "again.html")
    assert code == 0, err
    assert Path("again.html").read_bytes() == first


def test_sizes_are_width_by_height(restored, checkpoint, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 5)), nn.MaxPool2d((2, 1)), nn.Flatten(), nn.Linear(4 * 3 * 36, 10))
    model.reset_parameters(0)
    wide = dataclasses.replace(
        restored,
        model=model,
        checkpoint=dataclasses.replace(restored.checkpoint, shape=(3, 8, 40)),
        load=lambda part, size: Dataset(np.ones((9, 3, 8, 40), np.uint8), np.arange(9), restored.checkpoint.classes),
    )
    pages.report(wide, checkpoint.parent, tmp_path / "report.html")
    pages.explanation(wide, tmp_path / "page.html", indices=[3])
    for name, caption in (("report.html", "The layers"), ("page.html", "The output of each layer")):
        page = check(tmp_path / name)
        assert [row[2] for row in page.tables[caption][1:3]] == ["4 maps of 36 x 6", "4 maps of 36 x 3"]
        assert "All sizes are width x height." in page.said
    said = check(tmp_path / "page.html").said
    assert "Receptive field: 5 x 3 pixels. MaxPool2d 1" in said
    assert "What the network sees: 40 x 8 pixels" in said
    seen, *_ = [found for tag, found in check(tmp_path / "page.html").tags if found.get("class") == "seen"]
    assert [seen[key] for key in ("x", "y", "width", "height")] == ["18.00", "3.00", "5.00", "3.00"]  # of 40 x 8
    assert "has 4 filters of 5 x 3 pixels" in check(tmp_path / "report.html").said


def test_a_photo_is_shown_beside_what_the_network_sees(restored, tmp_path):
    photo = tmp_path / "<b>&'photo\".png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 400, 3), np.uint8)).save(photo)
    pages.explanation(restored, tmp_path / "page.html", [photo])
    page = check(tmp_path / "page.html")
    shown = [found for tag, found in page.tags if tag == "img"]
    assert [found["alt"] for found in shown[:2]] == [
        "the photo in the file",
        "the image as the network sees it, 8 x 8 pixels",
    ]
    assert max(picture(shown[0]["src"]).size) <= _pictures.PHOTO
    seen = np.asarray(picture(shown[1]["src"]), float) / 255
    assert np.allclose(seen, restored.predict([photo])[0].image[0], atol=0.5 / 255)
    assert "<b>&'photo\".png" in page.said


def hostile(restored):
    """Return a model whose classes, data set and origin have hostile names."""
    test = restored.test_set()
    found = dataclasses.replace(
        restored.checkpoint,
        classes=HOSTILE,
        dataset=HOSTILE[0],
        origin={"processor": HOSTILE[1], "python": HOSTILE[4], "arrays": 3, "images": HOSTILE},
        metrics={"epoch": 2, "val_loss": 1.5, HOSTILE[0]: HOSTILE[1]},
    )
    return dataclasses.replace(
        restored,
        checkpoint=found,
        dataset=HOSTILE[0],
        title=HOSTILE[0],
        load=lambda part, size: Dataset(test.x, test.y, HOSTILE, HOSTILE[0]),
    )


def test_no_name_can_change_a_page(restored, checkpoint, tmp_path):
    folder = tmp_path / HOSTILE[1].replace("/", "")
    shutil.copytree(checkpoint.parent, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"data_dir": "/tmp/<script>alert(3)</script>", "init": HOSTILE[1], "model_options": {HOSTILE[0]: HOSTILE}}
    config |= {"freeze": list(HOSTILE)}
    (folder / "config.json").write_text(json.dumps(config))
    lines = (folder / "history.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {HOSTILE[0]: 1, HOSTILE[4]: HOSTILE[1]}
    (folder / "history.jsonl").write_text("\n".join([json.dumps(first), *lines[1:], "damaged", "[]"]))
    mean = hostile(restored)
    pages.report(mean, folder, tmp_path / "report.html")
    pages.explanation(mean, tmp_path / "page.html", indices=[3, 4], source=HOSTILE[1], target=HOSTILE[2])
    for name in ("report.html", "page.html"):
        page = check(tmp_path / name)
        assert "<script>alert(1)</script>" in page.said
        assert not [found for tag, found in page.tags if tag == "img" and not found["src"].startswith("data:")]
        assert len(page.text) < 600_000


def test_a_report_says_what_the_test_gives(restored, reported, checkpoint):
    page, metrics, _ = reported
    expected = restored.evaluate()
    assert metrics.accuracy == expected.accuracy
    assert metrics.loss == pytest.approx(expected.loss, rel=1e-6)
    short = {row[0]: row[1] for row in page.tables["The run in short"]}
    assert short["test accuracy"] == f"{expected.accuracy:.2%}"
    assert short["test loss"] == f"{expected.loss:.4f}"
    assert short["weights"] == restored.checkpoint.weights
    records = map(json.loads, (checkpoint.parent / "history.jsonl").read_text().splitlines())
    assert short["time of training"] == duration(sum(record["seconds"] for record in records))
    head, *rows = page.tables["Confusion matrix: true classes in rows, answers in columns"]
    classes = restored.checkpoint.classes
    assert head[1:] == list(classes)
    assert [row[0] for row in rows] == list(classes)
    assert np.array_equal([[int(cell.replace(",", "")) for cell in row[1:]] for row in rows], expected.confusion)
    figures = expected.per_class()
    for row, p, r, f1, n in zip(page.tables["Each class"][1:], *figures, strict=True):
        assert row[1:] == [f"{p:.2%}", f"{r:.2%}", "", f"{f1:.2%}", f"{n:,}"]


def test_a_report_shows_settings_history_and_mistakes(restored, reported, checkpoint):
    page, metrics, path = reported
    changed = {row[0]: row[1:3] for row in page.tables["Settings that are not the default"][1:]}
    assert changed == {"model": ["report", "not set"], "epochs": ["2", "15"], "validation": ["0.2", "0.1"]}
    assert len(page.tables["Default settings"]) == 1 + len(dataclasses.fields(Config)) - len(changed)
    history = [json.loads(line) for line in (checkpoint.parent / "history.jsonl").read_text().splitlines()]
    head, *rows = page.tables["The history of the run"]
    assert head[:3] == ["epoch", "training loss", "training accuracy"]
    assert [row[1] for row in rows] == [f"{record['train_loss']:.4g}" for record in history]
    curves = [found for tag, found in page.tags if tag == "svg" and found.get("role") == "img"]
    assert [found["aria-label"] for found in curves[:2]] == ["Loss over the epochs", "Accuracy over the epochs"]
    assert curves[2]["aria-label"].startswith("The network. Each box is a layer")

    test = restored.test_set()
    probabilities = np.concatenate(
        [[one.probabilities for one in restored.predict(indices=range(k, min(k + 64, len(test))))]
         for k in range(0, len(test), 64)]
    )  # fmt: skip
    said = probabilities.argmax(axis=1)
    certain = np.where(said != test.y, probabilities.max(axis=1), -1)
    tiles = [found["alt"] for tag, found in page.tags if tag == "img" and found["alt"].startswith("test image ")]
    worst = int(certain.argmax())
    expected = f"test image {worst}: {test.classes[test.y[worst]]}, taken for {test.classes[said[worst]]}"
    assert tiles[-min(24, int((said != test.y).sum()))] == expected
    for alt in tiles:
        k = int(re.match(r"test image (\d+):", alt)[1])
        assert alt == f"test image {k}: {test.classes[test.y[k]]}, taken for {test.classes[said[k]]}"
        assert said[k] != test.y[k]
    captions = [words for words in page.words if words in (*test.classes, ", said ")]
    first = int(re.findall(r"\d+", tiles[0])[0])
    pairs = [a + b + c for a, b, c in zip(captions, captions[1:], captions[2:], strict=False)]
    assert f"{test.classes[test.y[first]]}, said {test.classes[said[first]]}" in pairs
    same = [k for k in (int(re.findall(r"\d+", alt)[0]) for alt in tiles[:6])
            if (test.y[k], said[k]) == (test.y[first], said[first])]  # fmt: skip
    assert len(same) > 1
    assert (np.diff(certain[same]) <= 0).all(), "the most certain first"
    counts = metrics.confusion - np.diag(np.diag(metrics.confusion))
    i, j = np.unravel_index(counts.argmax(), counts.shape)
    assert tiles[0].endswith(f": {test.classes[i]}, taken for {test.classes[j]}")
    assert f"{test.classes[i]} taken for {test.classes[j]}: {counts[i, j]} times" in page.said
    assert path.stat().st_size < 200_000


def test_the_tables_of_layers_say_what_the_functions_do(restored, checkpoint, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    model.reset_parameters(0)
    model[0].bias.data[1] = -1e6
    pages.report(dataclasses.replace(restored, model=model), checkpoint.parent, tmp_path / "report.html")
    page, fields = check(tmp_path / "report.html"), explain.receptive_fields(model, (1, 8, 8))
    sizes = {name: " x ".join(map(str, field.size)) for name, field in fields.items()}
    rows = [
        [row.name, row.layer, f"{row.parameters:,}", f"{row.multiply_adds:,}", sizes[row.name]]
        for row in nn.summary(model, (1, 8, 8)).rows
    ]
    assert [[*row[:2], *row[3:6]] for row in page.tables["The layers"][1:-1]] == rows
    assert page.tables["The layers"][-1][3] == f"{sum(slot.data.size for slot in model.parameters()):,}"
    statistics = explain.activation_statistics(model, restored.test_set()[:1000])
    head, *rows = page.tables["The output of each layer"]
    assert [row[head.index("dead")] for row in rows] == ["", "1 of 3", "", ""]
    column = head.index("largest")
    assert [row[column] for row in rows] == [f"{row.maximum:.3g}" for row in statistics]
    assert "1 unit is dead, in 1 layer." in page.said


class Begin(Callback):
    """Keeps the weights at the start of a run."""

    def on_fit_start(self, trainer, batches, epochs):
        self.state = {name: np.array(array, copy=True) for name, array in trainer.model.state_dict().items()}


@pytest.mark.parametrize("kind", ["plain", "normalized", "init", "batch norm"])
def test_the_first_weights_are_those_that_training_started_from(checkpoint, tmp_path, kind):
    options = {
        "plain": {"model": "report", "seed": 3},
        "normalized": {"model": "lenet5", "normalize": True, "dataset": "digits", "seed": 1},
        "init": {"init": checkpoint, "seed": 5, "normalize": True},
        "batch norm": {"model": "resnet20", "seed": 2, "ema": 0.9},
    }[kind]
    if kind == "normalized":
        options["model"] = "vgg_small"
    config, begin = Config(epochs=1, validation=0.5, batch_size=256, **options), Begin()
    train(config, tmp_path / "run", [begin], test=False)
    found = restore(tmp_path / "run")
    fresh = at_start(found.model, _run.read_run(tmp_path / "run").config, lambda message: None)
    state = fresh.state_dict()
    assert state.keys() == begin.state.keys()
    for name, array in begin.state.items():
        assert np.array_equal(state[name], array), name
    trained = found.model.state_dict()
    assert any(not np.array_equal(trained[name], array) for name, array in state.items())


def test_filters_before_and_after(restored, reported):
    page = reported[0]
    before, after = (
        np.asarray(picture(found["src"]).convert("RGB"), float)
        for tag, found in page.tags
        if tag == "img" and found["alt"].startswith("filters of 3 x 3")
    )
    fresh = at_start(restored.model, Config(**_settings(restored)), lambda message: None)
    weights = [to_numpy(explain.filters(model).weight)[0, 0] for model in (fresh, restored.model)]
    reds = [pixels[..., 0] - pixels[..., 2] for pixels in (before, after)]
    for red, weight in zip(reds, weights, strict=True):
        assert np.corrcoef(red.ravel(), weight.ravel())[0, 1] > 0.98
    assert np.corrcoef((reds[1] - reds[0]).ravel(), (weights[1] - weights[0]).ravel())[0, 1] > 0.8


def test_a_map_is_compared_with_that_of_random_weights(restored, tmp_path):
    before = {name: array.copy() for name, array in restored.model.state_dict().items()}
    pages.explanation(restored, tmp_path / "page.html", indices=[3], methods=["occlusion"], target=0)
    assert all(np.array_equal(before[name], array) for name, array in restored.model.state_dict().items())
    chance, x = copy.deepcopy(restored.model), restored.predict(indices=[3])[0].image[None]
    chance.reset_parameters(1)
    maps = [to_numpy(explain.occlusion(model, x, 0)) for model in (restored.model, chance)]
    assert f"(rank correlation {_rank_correlation(*maps):.2f})" in check(tmp_path / "page.html").said


def test_the_command_on_a_page_makes_it_again_and_inverted_photos_are_named(xcnn, restored, checkpoint, tmp_path):
    light = restored.test_set().x[3, 0]
    for name, pixels in (("light", light), ("dark", 255 - light)):
        Image.fromarray(pixels).save(tmp_path / f"{name} photo.png")
    given = ("--dataset", "digits", "--resize", "pad", "--threads", "1")
    code, _, err = xcnn("explain", checkpoint, "light photo.png", "dark photo.png", *given, "-o", "page.html")
    assert (code, err.count("inverted")) == (0, 1), err
    assert "dark photo.png looks inverted against the training images (light on dark): try --invert\n" in err
    page = check(tmp_path / "page.html")
    assert f"xcnn explain {checkpoint} 'light photo.png' 'dark photo.png' --dataset digits --resize pad" in page.said
    assert "one number for each class" in page.said


def _settings(restored):
    return {name: value for name, value in restored.checkpoint.config.items() if value not in (None, [], "")}


def test_a_report_without_the_test_images(restored, checkpoint, tmp_path):
    def gone(part, size):
        raise DataError("the images in /gone are <gone>")

    told: list[str] = []
    without = dataclasses.replace(restored, load=gone)
    assert pages.report(without, checkpoint.parent, tmp_path / "report.html", tell=told.append) is None
    page = check(tmp_path / "report.html")
    assert "There are no test results: the images in /gone are <gone>." in page.said
    assert told == ["There are no test results: the images in /gone are <gone>."]
    assert "Each class" not in page.tables
    assert page.said.count("Not shown, as there are no test ") == 3
    assert "After training." in page.said
    assert "The layers" in page.tables


def test_a_report_says_that_the_test_images_have_changed(restored, checkpoint, tmp_path):
    test = restored.test_set()
    changed = dataclasses.replace(restored, load=lambda part, size: Dataset(255 - test.x, test.y, test.classes))
    pages.report(changed, checkpoint.parent, tmp_path / "report.html")
    assert "The test images are not those of the run: they have changed since." in check(tmp_path / "report.html").said


@pytest.mark.parametrize("kind", ["ignored", "shares"])
def test_images_without_a_class(restored, checkpoint, tmp_path, kind):
    test = restored.test_set()
    y = np.where(np.arange(len(test)) < 300, test.y, -100) if kind == "ignored" else np.full((len(test), 10), 0.1)
    other = dataclasses.replace(restored, load=lambda part, size: Dataset(test.x, y, test.classes))
    metrics = pages.report(other, checkpoint.parent, tmp_path / "report.html")
    page = check(tmp_path / "report.html")
    if kind == "ignored":
        wrong = 300 - metrics.correct
        assert f"{len(test)}; {wrong} of 300 answers are wrong" in page.said
        assert f" of {wrong} mistakes." in page.said
    else:
        assert "The targets of this data set are shares of several classes" in page.said
    (shown,) = pages.explanation(other, tmp_path / "page.html", indices=[310])
    assert shown.truth == ""
    assert "That is" not in check(tmp_path / "page.html").said


def test_no_code_is_imported_because_a_run_names_it(restored, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("raise SystemExit('imported')")
    shutil.copytree(checkpoint.parent, "run")
    config = json.loads(Path("run/config.json").read_text())
    names = {"model": "evil:net", "dataset": "evil:data", "opt": "evil:rule", "schedule": "evil:plan"}
    Path("run/config.json").write_text(json.dumps(config | names))
    pages.report(restored, "run", "report.html")
    page = check(Path("report.html"))
    assert "The filters before training are not shown: the network is code of your own" in page.said
    assert "--model evil:net" in page.said
    assert "evil" not in sys.modules


def test_classes_of_the_same_name_are_told_apart(restored, checkpoint, tmp_path):
    test, same = restored.test_set(), ("crane",) * 10
    named = dataclasses.replace(
        restored,
        checkpoint=dataclasses.replace(restored.checkpoint, classes=same),
        load=lambda part, size: Dataset(test.x, test.y, same),
    )
    metrics = pages.report(named, checkpoint.parent, tmp_path / "report.html")
    counts = metrics.confusion - np.diag(np.diag(metrics.confusion))
    images = [found["alt"] for tag, found in check(tmp_path / "report.html").tags if tag == "img"]
    first = [int(re.findall(r"\d+", alt)[0]) for alt in images[: min(6, counts.max())]]
    said = np.asarray([one.probabilities.argmax() for one in restored.predict(indices=first)])
    i, j = np.unravel_index(counts.argmax(), counts.shape)
    assert (test.y[first] == i).all()
    assert (said == j).all()


def test_statistics_are_over_images_of_all_classes(restored, checkpoint, tmp_path, monkeypatch):
    """A data set may be sorted by class, as folders of images are."""
    test = restored.test_set()
    order = np.argsort(test.y, kind="stable")
    ordered = dataclasses.replace(restored, load=lambda part, size: Dataset(test.x[order], test.y[order], test.classes))
    monkeypatch.setattr(_network, "_STATISTICS", 50)
    seen = []
    monkeypatch.setattr(explain, "activation_statistics", lambda model, data: seen.append(data.y) or [])
    pages.report(ordered, checkpoint.parent, tmp_path / "report.html")
    ((labels,),) = [seen]
    assert len(labels) == 50
    assert set(labels.tolist()) == set(range(10))
    assert "Over 50 test images" in check(tmp_path / "report.html").said


@pytest.mark.parametrize("number", [np.nan, 1e38])
def test_pages_of_a_network_that_diverged(restored, checkpoint, tmp_path, number):
    broken = dataclasses.replace(restored, model=copy.deepcopy(restored.model))
    for slot in broken.model.parameters():
        slot.data[...] = number
    with np.errstate(all="ignore"):
        pages.explanation(broken, tmp_path / "page.html", indices=[3])
        pages.report(broken, checkpoint.parent, tmp_path / "report.html")
    assert "The network gives no answer: its numbers are not finite" in check(tmp_path / "page.html").said
    check(tmp_path / "report.html")


def test_a_history_ends_where_it_makes_no_sense(restored, checkpoint, tmp_path):
    shutil.copytree(checkpoint.parent, tmp_path / "run")
    for text, count in {
        '{"epoch": 1, "val_loss": 1.5}\n{"epoch": 3, "val_loss": 1}\n': 1,
        '{"epoch": 1, "val_loss": NaN, "x": "y", "z": true}\n{"epoch": 2}\n{"epo': 2,
        '{"epoch": 1, "train_loss": 1}\n{"epoch": 2, "val_loss": 1}\n': 2,
        f'{{"epoch": 1, "val_loss": {10**400}, "seconds": -1e308}}\n{{"epoch": 2, "val_loss": -1e308}}': 2,
        '{"epoch": true}\n': 0,
        "[" * 100_000: 0,
        "\xff\n": 0,
        "": 0,
    }.items():
        (tmp_path / "run" / "history.jsonl").write_text(text)
        history = _run.read_run(tmp_path / "run").history
        assert len(history) == count
        assert all({"epoch"} <= set(record) <= {"epoch", "val_loss", "train_loss"} for record in history)
        pages.report(restored, tmp_path / "run", tmp_path / "report.html")
        assert ("No epoch is complete" in check(tmp_path / "report.html").said) == (not count)


def test_a_report_of_a_run_that_was_interrupted(xcnn, checkpoint, tmp_path):
    shutil.copytree(checkpoint.parent, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"epochs": 5}))
    assert xcnn("report", "run")[0] == 0
    page = check(tmp_path / "run" / "report.html")
    assert "This run was not trained to its end: 2 of 5 epochs are complete." in page.said
    assert "xcnn train --resume run" in page.said
    (tmp_path / "run" / "history.jsonl").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert xcnn("report", "run")[0] == 0
    assert "No epoch is complete, so there are no curves." in check(tmp_path / "run" / "report.html").said


def test_the_command_of_a_report_trains_with_the_same_settings(checkpoint, monkeypatch):
    from xcnn.cli import main
    from xcnn.cli import train as cli

    config = Config(
        dataset="folder", data_dir=Path("/tmp/my photos"), image_size=48, model="report", normalize=True,
        model_options={"filters": 8, "name": 'a "b" $c', "text": "8"}, init=Path("/tmp/it's.pth"),
        freeze=("0.*", "*.bias"), epochs=3, opt="sgd",
        opt_options={"nesterov": True}, augment=("flip", "crop"), ema=0.5, seed=2**40,
        class_weight="balanced", accumulate=2, lr=0.1 + 0.2,
    )  # fmt: skip
    for one in (config, Config(), Config(**_settings(restore(checkpoint)))):
        caught = []

        def run(settings, *arguments, caught=caught, **options):
            caught.append(settings)
            raise UsageError("enough")

        monkeypatch.setattr(sys.modules[cli.__module__], "run_training", run)
        assert main(shlex.split(_run.command(one))[1:]) == 2
        (found,) = caught
        same = {f.name: getattr(found, f.name) for f in dataclasses.fields(Config)}
        assert Config(**same) == dataclasses.replace(one, accumulate=None if one.accumulate == 1 else one.accumulate)


def test_mistakes_of_use_get_one_sentence(xcnn, checkpoint, tmp_path):
    folder = checkpoint.parent
    (tmp_path / "search" / "trial-0000").mkdir(parents=True)
    (tmp_path / "search" / "trial-0000" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for argv, sentence in {
        ("explain", folder): "nothing to explain: pass image files or, with --index, the numbers of test images",
        ("explain", folder, "empty"): "empty is a folder; name the images in it that the page shall explain, up to 8",
        ("explain", folder, "--index", "3", "--method", ","): "methods must name at least one of input_gradient, ",
        ("explain", "photo.png"): "the first argument is the run or its file, then come the images",
        ("explain", folder, "--index", "99999"): "--index must be from 0 to ",
        (
            "explain",
            folder,
            "--index",
            "3",
            "--method",
            "gradcam",
        ): "unknown method 'gradcam'; did you mean 'grad_cam'?",
        ("explain", folder, "--index", "3", "--method", "nothere:f"): "there is no module 'nothere'",
        ("explain", folder, "--index", "3", "--target", "cat"): "--target must be a class, by its name or a number",
        ("explain", folder, "--index", "3", "--target", "10"): "--target must be a class, by its name or a number",
        ("explain", folder, "--index", "3", "-o", "page.pdf"): "--out must be a file that ends in .html, got page.pdf",
        ("explain", folder, "--index", "3", "-o", "no/page.html"): "there is no folder no",
        ("explain", folder, "--index", "0,1,2,3,4,5,6,7,8"): "a page shows at most 8 images, got 9",
        ("report", checkpoint): "must be the folder of a run, got the file",
        ("report", "nowhere"): "there is no nowhere",
        ("report", "empty"): "has none of its files, such as config.json",
        ("report", "search"): "holds a search; name one of its 1 trials, such as search/trial-0000",
        ("report", folder, "-o", "page.txt"): "--out must be a file that ends in .html",
    }.items():
        code, out, err = xcnn(*argv)
        assert (code, out) == (2, ""), argv
        assert sentence in err, err
        assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "search"]


def test_a_page_that_cannot_be_written_leaves_the_older_one(restored, checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("older")

    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for write in (
        lambda: pages.explanation(restored, path, indices=[3]),
        lambda: pages.report(restored, checkpoint.parent, path),
    ):
        with pytest.raises(WriteError, match="No space left"):
            write()
    assert path.read_text() == "older"
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_pages_without_matplotlib(restored, checkpoint, tmp_path, monkeypatch):
    for name in ["matplotlib", *(name for name in sys.modules if name.startswith("matplotlib."))]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    _canvas.width_of.cache_clear()
    told: list[str] = []
    pages.report(restored, checkpoint.parent, tmp_path / "report.html", tell=told.append)
    page = check(tmp_path / "report.html")
    assert "The curves are not drawn: pictures need matplotlib; pip install matplotlib." in page.said
    assert "The network is not drawn: pictures need matplotlib; pip install matplotlib." in page.said
    assert "The history of the run" in page.tables
    assert len(told) == 1
    pages.explanation(restored, tmp_path / "page.html", indices=[3])


def test_networks_without_maps_are_explained_by_occlusion(tmp_path, restored):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.reset_parameters(0)
    flat, told = dataclasses.replace(restored, model=model), list[str]()
    pages.explanation(flat, tmp_path / "page.html", indices=[3], tell=told.append)
    assert len(told) == 1
    assert told[0].startswith("Grad-CAM is left out: the network has no layer with maps")
    assert "Occlusion" in check(tmp_path / "page.html").said
    with pytest.raises(UsageError, match="grad_cam: the network has no layer with maps"):
        pages.explanation(flat, tmp_path / "page.html", indices=[3], methods=["grad_cam"])


def test_rank_correlation():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 200), rng.integers(0, 9, 200)

    def ranks(values):
        return np.asarray([(values < one).sum() + ((values == one).sum() + 1) / 2 for one in values])

    assert _rank_correlation(a, b) == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])
    assert _rank_correlation(a, 2 * a + 1) == pytest.approx(1)
    assert _rank_correlation(a, np.zeros(200)) is None
    for other, words in (
        (a, "much alike (rank correlation 1.00), so most of this map comes from the image"),
        (rng.random(200), "hardly alike (rank correlation "),
        (np.ones(200), "Its map is the same everywhere"),
    ):
        assert words in "".join(_compared(a, other))
    assert "The map above is the same everywhere" in "".join(_compared(np.ones(200), a))


def test_what_a_kind_of_layer_does_is_said_once(restored, tmp_path):
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10)
    model = nn.Sequential(*layers)
    model.reset_parameters(0)
    pages.explanation(dataclasses.replace(restored, model=model), tmp_path / "why.html", indices=[0])
    page = check(tmp_path / "why.html")
    assert [page.said.count(_words.about_layer(layer)) for layer in layers] == [1] * len(layers)
    assert page.said.count("These are the answer: ") == 1
    assert page.said.count("Receptive field: ") == len(layers)


def test_every_layer_has_its_words():
    for name in nn.__all__:
        kind = getattr(nn, name)
        if isinstance(kind, type) and issubclass(kind, nn.Layer) and kind is not nn.Layer:
            module = kind.__new__(kind)
            assert "does not know" not in _words.about_layer(module), name
