"""Pictures of what a network sees: the colours of pixels are those of the numbers, and nothing is left out unsaid."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from svg_texts import joined, texts

from xcnn import explain, nn, plots
from xcnn.errors import ShapeError, UsageError
from xcnn.explain import ConfusedPair, LayerStatistics
from xcnn.plots._methods import METHODS
from xcnn.runs import restore

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)


def images(path: Path) -> list[np.ndarray]:
    """Return the images in an SVG picture, in their order."""
    found = re.findall(r'href="data:image/png;base64,\s*([^"]+)"', path.read_text("utf-8"))
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGBA")).astype(int) for one in found]


def widths(path: Path, colour: str) -> list[float]:
    """Return the widths of the filled boxes of a colour in an SVG picture, in inches."""
    found = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: {colour}', path.read_text("utf-8"))
    corners = [np.asarray(re.findall(r"-?[\d.]+", one), float).reshape(-1, 2) for one in found]
    return [float(np.ptp(one[:, 0])) / 72 for one in corners]


def redder(colours: np.ndarray) -> np.ndarray:
    """Return the sign of numbers by the colours of a signed map."""
    return np.sign(colours[..., 0] - colours[..., 2])


def test_filters_of_one_channel_have_a_sign(tmp_path: Path) -> None:
    weight = RNG.standard_normal((6, 1, 5, 5))
    drawn = images(plots.filters(weight, tmp_path / "a.svg"))
    assert len(drawn) == 6
    for one, colours in zip(weight, drawn, strict=True):
        large = np.abs(one[0]) > 0.1
        np.testing.assert_array_equal(redder(colours)[large], np.sign(one[0])[large])
    assert "All 6 filters. " in joined(tmp_path / "a.svg")


def test_filters_of_three_channels_are_drawn_in_colour(tmp_path: Path) -> None:
    weight = np.zeros((2, 3, 2, 2))
    weight[0, 0, 0, 0], weight[1, 2, 1, 1] = 1, -1
    first, second = images(plots.filters(weight, tmp_path / "a.svg"))
    assert first[0, 0, :3].tolist() == [255, 128, 128]
    assert second[1, 1, :3].tolist() == [128, 128, 0]


def test_the_strongest_of_many_filters_and_maps_are_drawn(tmp_path: Path) -> None:
    weight = np.full((512, 256, 3, 3), 0.01)
    weight[7] = weight[500] = 1.0
    found = texts(plots.filters(explain.Filters("conv", weight), tmp_path / "a.svg", count=8))
    assert {"Filters of layer conv", "7", "500", "input channel 0 to 1 of 256"} <= set(found)
    maps = RNG.random((1, 512, 4, 4)) * 0.01
    maps[0, 300] = 5
    found = texts(plots.feature_maps(maps, tmp_path / "a.svg", layer="x", count=3))
    assert len(images(tmp_path / "a.svg")) == 3
    assert found["300"] == 1
    assert "the 3 strongest of 512 maps of 4x4 numbers" in joined(tmp_path / "a.svg")


def test_maps_share_a_scale_and_silent_ones_are_counted(tmp_path: Path) -> None:
    maps = np.zeros((1, 3, 2, 2))
    maps[0, 0], maps[0, 2, 0, 0] = 1.0, 0.5
    one, none, half = images(plots.feature_maps(maps, tmp_path / "a.svg"))
    assert np.all(one[..., :2] > [200, 200]), "yellow"
    np.testing.assert_array_equal(none, np.broadcast_to(half[1, 1], none.shape))
    assert half[0, 0].tolist() not in (one[0, 0].tolist(), none[0, 0].tolist())
    assert "1 map is zero everywhere" in joined(tmp_path / "a.svg")


def test_constant_and_broken_maps_are_drawn(tmp_path: Path) -> None:
    plots.feature_maps(np.full((1, 2, 3, 3), 7.0), tmp_path / "a.svg")
    maps = np.ones((1, 2, 3, 3))
    maps[0, 1, 0, 0], maps[0, 0, 2, 2] = np.nan, np.inf
    drawn = images(plots.feature_maps(maps, tmp_path / "a.svg"))
    assert drawn[1][0, 0].tolist() == drawn[0][2, 2].tolist() == [170, 51, 119, 255]
    assert "Purple: a number that is not finite." in joined(tmp_path / "a.svg")


def test_the_maps_of_a_network_are_those_of_its_trace(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 3))
    model.reset_parameters(0)
    found = explain.trace(model, RNG.random((1, 1, 8, 8), np.float32))
    written = texts(plots.network_maps(found, tmp_path / "a.svg"))
    assert {"the input", "0 Conv2d", "1 ReLU", "3 Linear", "12x6x6", "432", "3"} <= set(written)
    assert written["8 of 12"] == 2
    assert [one.shape[:2] for one in images(tmp_path / "a.svg")] == [(8, 8), *[(6, 6)] * 16, (1, 432), (1, 3)]
    few = plots.network_maps({str(k): np.ones((1, 2)) for k in range(100)}, tmp_path / "b.svg", layers=5)
    assert {name for name in texts(few) if name.isdecimal()} == {"0", "25", "50", "74", "99", "2"}  # of 2 numbers each
    assert "5 of 100 layers" in joined(few)


def test_an_attribution_is_drawn_with_its_signs_and_over_the_image(tmp_path: Path) -> None:
    x, map = RNG.random((2, 3, 6, 6)), RNG.standard_normal((2, 3, 6, 6))
    image, colours, both = images(plots.attributions(x, {"input_gradient": map}, tmp_path / "a.svg"))
    flat = map[0].sum(0)
    np.testing.assert_allclose(image[..., :3], np.moveaxis(x[0], 0, -1) * 255, atol=0.51)
    clear = np.abs(flat) > 0.2
    np.testing.assert_array_equal(redder(colours)[clear], np.sign(flat)[clear])
    np.testing.assert_array_equal(redder(both)[clear], np.sign(flat)[clear])
    assert texts(tmp_path / "a.svg")["Which pixels matter: Gradient at the image"] == 1
    assert joined(tmp_path / "a.svg").count("and it is noisy.") == 1
    assert "hint, no proof" in joined(tmp_path / "a.svg")


def test_one_large_number_does_not_make_a_map_pale(tmp_path: Path) -> None:
    map = np.ones((1, 20, 20))
    map[0, 0, 0] = 1000
    _, colours, _ = images(plots.attributions(np.zeros((1, 1, 20, 20)), map, tmp_path / "a.svg"))
    assert colours[5, 5].tolist() == colours[0, 0].tolist()


def test_several_attributions_of_any_size_are_drawn_together(tmp_path: Path) -> None:
    x = RNG.random((1, 1, 8, 8))
    maps = {"grad_cam": np.ones((1, 2, 2)), "occlusion": np.zeros((1, 8, 8)), "my own": x}
    drawn = images(plots.attributions(x, maps, tmp_path / "a.svg"))
    assert [one.shape[:2] for one in drawn] == [(8, 8)] * 7
    assert {"the image", "Grad-CAM", "Occlusion", "my own"} <= set(texts(tmp_path / "a.svg"))
    assert "Occlusion is zero everywhere." in joined(tmp_path / "a.svg")


def test_the_attribution_of_a_signal_is_a_strip_below_it(tmp_path: Path) -> None:
    x, map = RNG.standard_normal((1, 2, 50)), np.zeros((1, 2, 50))
    map[0, 1, 10], map[0, 0, 20] = 3, -3
    (strip,) = images(plots.attributions(x, map, tmp_path / "a.svg"))
    assert strip.shape[:2] == (1, 50)
    assert (redder(strip)[0, 10], redder(strip)[0, 20], strip[0, 5, 0]) == (1, -1, 247)
    plots.feature_maps(x, tmp_path / "b.svg")
    plots.filters(RNG.standard_normal((4, 2, 5)), tmp_path / "b.svg")


def test_every_attribution_has_its_words_of_images_and_of_signals(tmp_path: Path) -> None:
    assert set(METHODS) == set(explain.ATTRIBUTIONS)
    x = RNG.random((1, 1, 30))
    for name in METHODS:
        said = joined(plots.attributions(x, {name: x}, tmp_path / "a.svg"))
        assert not re.search("pixel|image|black|bright", said), said
        said = joined(plots.attributions(x[..., None], {name: x[..., None]}, tmp_path / "a.svg"))
        assert METHODS[name].careful in said


def test_a_receptive_field_is_framed_where_it_is(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, (3, 5)), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3))
    model.reset_parameters(0)
    fields = explain.receptive_fields(model, (1, 12, 16))
    path = plots.receptive_fields(np.ones((1, 1, 12, 16)), fields, tmp_path / "a.svg")
    for name, colours in zip(("0", "1", "2"), images(path), strict=True):
        middle = tuple(size // 2 for size in fields[name].shape[1:])
        bright = np.zeros((12, 16), bool)
        bright[fields[name].window(middle)] = True
        np.testing.assert_array_equal(colours[..., 0] == 255, bright)
    frame = re.findall(r'<path d="([^"]+)"[^>]*stroke: #d64f00', path.read_text("utf-8"))[0]
    across = np.asarray(re.findall(r"-?[\d.]+", frame), float)[::2] / 72 - 0.15  # in inches, without the margin
    assert across.min() / np.ptp(across) == pytest.approx(6 / 5, abs=0.01), "columns 6 to 10"
    assert {"0 (Conv2d)", "sees 3x5 pixels", "sees 4x6 pixels", "sees 8x10 pixels"} <= set(texts(path))
    with pytest.raises(UsageError, match="unknown receptive_fields: layer 'x'"):
        plots.receptive_fields(np.ones((1, 1, 12, 16)), fields, tmp_path / "a.svg", layers=["x"])


def test_filters_of_signals_of_three_channels_have_no_colours(tmp_path: Path) -> None:
    assert len(images(plots.filters(RNG.standard_normal((4, 3, 5)), tmp_path / "a.svg"))) == 12
    assert "Red is positive, blue negative" in joined(tmp_path / "a.svg")


def test_what_is_left_out_of_long_lists_is_said(tmp_path: Path) -> None:
    pairs = [ConfusedPair(f"a{k}", "b", 0, 0.0) for k in range(50)]
    assert "40 of 50 pairs." in joined(plots.confused_pairs(pairs, tmp_path / "a.svg"))
    p = np.full((50, 2), 0.5)
    path = plots.certain_mistakes(RNG.random((50, 1, 2, 2)), p, np.ones(50), ("a", "b"), tmp_path / "a.svg")
    assert "The first 40 of 50." in joined(path)
    assert len(images(path)) == 40
    with pytest.raises(UsageError, match="maximized: images must be at least one, got none"):
        plots.maximized([], tmp_path / "a.svg")


def test_images_that_excite_a_network_have_their_labels(tmp_path: Path) -> None:
    made = [RNG.random((3, 5, 7)) for _ in range(9)]
    path = plots.maximized(made, tmp_path / "a.svg", [f"a kind of bird {k}" for k in range(9)], layer="c")
    assert len(images(path)) == 9
    assert {"What excites layer c most"} <= set(texts(path))
    with pytest.raises(UsageError, match="labels must be 9, one per image, got 1"):
        plots.maximized(made, tmp_path / "a.svg", ["a"])


def test_an_image_is_not_upside_down(tmp_path: Path) -> None:
    image = np.zeros((3, 2, 2))
    image[0, 0, 1] = image[2, 1, 0] = 1
    with Image.open(plots.maximized([image], tmp_path / "a.png")) as drawn:
        colours = np.asarray(drawn.convert("RGB"))
    red, blue = (np.argwhere(np.all(colours == one, axis=-1)).mean(axis=0) for one in ((255, 0, 0), (0, 0, 255)))
    assert red[0] < blue[0]
    assert red[1] > blue[1]


def rows(count: int) -> list[LayerStatistics]:
    kinds = [("Conv2d", None, None), ("ReLU", 3, None), ("Tanh", None, 0.25)]
    return [
        LayerStatistics(f"l{k}", *kinds[k % 3][:1], (8, 4, 4), 0.1, 1.0, -2, 3, 0.5, 8, *kinds[k % 3][1:])
        for k in range(count)
    ]


def test_statistics_of_activations(tmp_path: Path) -> None:
    found = texts(plots.activation_statistics(rows(6), tmp_path / "a.svg"))
    assert {"l0 Conv2d", "l1 ReLU", "dead units", "saturated"} <= set(found)
    assert (found["3 of 8"], found["25%"], found["50%"]) == (2, 2, 6)
    np.testing.assert_allclose(widths(tmp_path / "a.svg", "#ee6677"), [0.6 * 3 / 8] * 2, atol=1e-3)
    assert "Dead units here: 6." in joined(tmp_path / "a.svg")
    plots.activation_statistics(rows(300), tmp_path / "a.svg")
    assert "40 of 300 layers." in joined(tmp_path / "a.svg")
    bad = [LayerStatistics("a", "Linear", (2,), np.nan, np.inf, 0, 1, 0, 2, None, None)]
    assert texts(plots.activation_statistics(bad, tmp_path / "a.svg"))["not finite"] == 1


def test_confused_pairs_with_examples(tmp_path: Path) -> None:
    pairs = [ConfusedPair("cat" * 30, "dog", 4, 0.4), ConfusedPair("a", "b $x$ <b>", 2, 0.125)]
    path = plots.confused_pairs(pairs, tmp_path / "a.svg", [RNG.random((7, 1, 4, 4)), np.zeros((0, 1, 4, 4))])
    assert len(images(path)) == 5
    assert {"a → b $x$ <b>", "2, 12.5% of a"} <= set(texts(path))
    np.testing.assert_allclose(widths(path, "#ee6677"), [1.5, 0.75], atol=1e-3)
    with pytest.raises(UsageError, match="images must be 2 arrays, one per pair, got 1"):
        plots.confused_pairs(pairs, tmp_path / "a.svg", [[]])
    with pytest.raises(UsageError, match="at least one pair"):
        plots.confused_pairs([], tmp_path / "a.svg")


def test_certain_mistakes_say_what_was_said_and_what_is_true(tmp_path: Path) -> None:
    p = np.asarray([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    path = plots.certain_mistakes(RNG.random((2, 3, 5, 5)), p, [1, 0], ["cat", "dog", "cow"], tmp_path / "a.svg")
    assert {"says cat", "90.0% certain", "true: dog", "says cow", "80.0% certain", "true: cat"} <= set(texts(path))
    assert len(images(path)) == 2
    with pytest.raises(ShapeError, match="must be equally many, got 2, 2 and 1"):
        plots.certain_mistakes(RNG.random((2, 3, 5, 5)), p, [1], ["cat", "dog", "cow"], tmp_path / "a.svg")


def test_an_embedding_names_its_classes(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(30), 10)
    points = RNG.standard_normal((300, 2)) + labels[:, None]
    found = texts(plots.embedding(points, labels, [f"n{k}" for k in range(1000)], tmp_path / "a.svg", method="tsne"))
    assert len([text for text in found if re.fullmatch(r"n\d+", text)]) == 20
    assert "10 more classes" in joined(tmp_path / "a.svg")
    assert "Distances between groups, and their sizes, mean nothing." in joined(tmp_path / "a.svg")
    root = ElementTree.parse(plots.embedding([[0, 0], [1, 5]], [0, 1], ["a", "b"], tmp_path / "b.svg")).getroot()
    at = {one.text: float(one.get("y", 0)) for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert at["b"] < at["a"], "larger numbers are higher"
    plots.embedding(np.zeros((3, 2)), [0, 1, 1], ["a", "b"], tmp_path / "b.png")  # all at one place
    with pytest.raises(UsageError, match="points must be finite"):
        plots.embedding([[np.nan, 0]], [0], ["a"], tmp_path / "a.svg")


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (
            lambda p: plots.filters(np.ones((2, 3, 4, 5, 6)), p),
            ShapeError,
            "weight must have 3 or 4 axes",
        ),
        (lambda p: plots.feature_maps(np.ones((2, 2)), p), ShapeError, "maps must have 3 or 4 axes"),
        (lambda p: plots.network_maps({}, p), UsageError, "at least one"),
        (lambda p: plots.attributions(np.ones((1, 1, 4, 4)), {}, p), UsageError, "at least one attribution"),
        (lambda p: plots.attributions(np.ones((4, 4)), np.ones((4, 4)), p), ShapeError, "x must have 3 or 4 axes"),
        (lambda p: plots.activation_statistics([], p), UsageError, "at least one layer"),
        (lambda p: plots.feature_maps(np.ones((1, 2, 3, 3)), p, count=0), UsageError, "count must be"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, draw: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        draw(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_the_example_draws_every_picture(
    checkpoint: Path, load_example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    example = load_example("pictures")
    drawn = []
    named = dict(example.pictures(restore(checkpoint.parent), 3, [{"epoch": 1, "train_loss": 1.0}], 2))
    used = {part.func.__name__ for part in named.values()}
    others = {"NoMatplotlibError", "check", "svg", "comparison", "lr_finder", "search", "speeds"}
    assert used == set(plots.__all__) - others
    for name in ("back-softmax", "certain-mistakes"):
        drawn.append(named[name](path=tmp_path / f"{name}.png"))
    example.contact_sheet(drawn, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2400
