"""`xcnn.pages`: what the pages say, that they need nothing but themselves, and that no name can change them."""

import copy
import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from page_check import HOSTILE, check, hostile, picture
from PIL import Image

from xcnn import explain, nn, pages, runs
from xcnn.data import Dataset
from xcnn.devices import to_numpy
from xcnn.errors import UsageError, WriteError
from xcnn.pages import _html, _pictures, _words
from xcnn.pages.explanation import _compared, _map_of, _rank_correlation
from xcnn.plots import _canvas
from xcnn.plots._methods import METHODS
from xcnn.runs import restore


@pytest.fixture(scope="module")
def restored(checkpoint):
    return restore(checkpoint.parent)


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
