"""Pictures of the steps of a network: the numbers in their cells are those of a computation of its own."""

import re
from pathlib import Path

import numpy as np
import pytest
from svg_texts import cells, joined, texts

from xcnn import ops, plots
from xcnn.errors import ShapeError, UsageError
from xcnn.plots._matrices import CELL

pytest.importorskip("matplotlib")

IMAGE = np.array([[1.0, 0, 2], [2, 5, 1], [4, 0, 3]])
FILTER = np.array([[1.0, 0], [2, -1]])


def naive(image: np.ndarray, filter: np.ndarray, padding: int, stride: int) -> np.ndarray:
    full = np.pad(image, padding)
    h, w = (1 + (n - k) // stride for n, k in zip(full.shape, filter.shape, strict=True))
    out = np.zeros((h, w))
    for i, j in np.ndindex(h, w):
        for a, b in np.ndindex(*filter.shape):
            out[i, j] += full[i * stride + a, j * stride + b] * filter[a, b]
    return out


def framed(path: Path) -> list[list[float]]:
    """Return left, top, width and height of each orange frame of an SVG picture, in cells from the first one."""
    found = re.findall(r'<path d="([^"]+)"[^>]*stroke: #d64f00', path.read_text("utf-8"))
    corners = [np.asarray(re.findall(r"-?[\d.]+", one), float).reshape(-1, 2) / 72 / CELL for one in found]
    first = corners[0].min(axis=0)
    return [[*(one.min(axis=0) - first), *np.ptp(one, axis=0).round(2)] for one in corners]


def test_convolution_of_the_worked_example(tmp_path: Path) -> None:
    found = texts(plots.convolution(IMAGE, FILTER, (1, 0), tmp_path / "a.svg"))
    assert found["2·1 + 5·0 + 4·2 + 0·(-1) = 10"] == 1
    # The map is filled up to its third place; the last number, which is 2, is not written.
    written = cells(IMAGE, [[2, 5], [4, 0]], FILTER, [[2, 0], [8, 0]], [[0, 9, 10]])
    assert found >= written
    assert found["2"] == written["2"]
    assert "rows and columns: (3 - 2 + 2·0) / 1 + 1 = 2" in joined(tmp_path / "a.svg")


@pytest.mark.parametrize(("padding", "stride"), [(0, 1), (1, 2), (2, 3)])
def test_convolution_with_padding_and_stride(tmp_path: Path, padding: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    image, filter = rng.integers(-5, 6, (5, 6)), rng.integers(-3, 4, (3, 2))
    expected = naive(image, filter, padding, stride)
    last = tuple(size - 1 for size in expected.shape)
    found = texts(plots.convolution(image, filter, [(0, 0), last], tmp_path / "a.svg", padding=padding, stride=stride))
    window = np.pad(image, padding)[last[0] * stride :, last[1] * stride :][:3, :2]
    assert found >= cells(image, image, window, filter, filter, window * filter, expected)
    ring = (5 + 2 * padding) * (6 + 2 * padding) - 30
    assert found["0"] >= 2 * ring
    assert found["image"] == 2
    rows, columns = (f"/ {stride} + 1 = {size}" for size in expected.shape)
    assert re.search(f"rows: [^,]*{re.escape(rows)}, columns: .*{re.escape(columns)}[.]", joined(tmp_path / "a.svg"))
    windows = [[left, top] for left, top, width, height in framed(tmp_path / "a.svg") if (width, height) == (2, 3)]
    np.testing.assert_allclose(windows[0], [0, 0], atol=0.02)
    np.testing.assert_allclose(windows[1][0], last[1] * stride, atol=0.02)


def test_convolution_over_three_channels_adds_all_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, filter = rng.integers(0, 6, (3, 4, 4)), rng.integers(-3, 4, (3, 2, 2))
    found = texts(plots.convolution(image, filter, (2, 2), tmp_path / "a.svg", bias=7))
    expected = ops.conv2d(image[None].astype(float), filter[None].astype(float))[0][0, 0] + 7
    assert found >= cells(*image, *filter, expected)
    assert {"image, red", "image, green", "image, blue", "with bias 7"} <= set(found)


@pytest.mark.parametrize(("padding", "stride"), [(0, 1), (1, 2)])
def test_convolution_backward_is_that_of_the_op(tmp_path: Path, padding: int, stride: int) -> None:
    y, backward = ops.conv2d(IMAGE[None, None], FILTER[None, None], padding=padding, stride=stride)
    dy = np.zeros(y.shape)
    dy[0, 0, -1, 0], dy[0, 0, 0, -1] = 0.5, -2.5
    dimage, dfilter, _ = backward(dy)
    options = {"padding": padding, "stride": stride}
    found = texts(plots.convolution_backward(IMAGE, FILTER, dy[0, 0], tmp_path / "a.svg", **options))
    assert found >= cells(IMAGE, IMAGE, dfilter[0, 0], dimage[0, 0], 0.5 * FILTER, -2.5 * FILTER)
    assert {"filter × 0.5", "filter × -2.5"} <= set(found)


def test_convolution_backward_of_many_places_says_how_many(tmp_path: Path) -> None:
    found = texts(plots.convolution_backward(np.ones((8, 8)), np.ones((3, 3)), np.ones((6, 6)), tmp_path / "a.svg"))
    assert found["sum: gradient of the filter, with 32 other places"] == 1
    assert found["32 others"] == 1
    assert found >= cells(36 * np.ones((3, 3)))


def test_a_gradient_of_zero_is_drawn(tmp_path: Path) -> None:
    found = texts(plots.convolution_backward(IMAGE, FILTER, np.zeros((2, 2)), tmp_path / "a.svg"))
    assert any(text.startswith("No place of the map has a gradient") for text in found)


@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 1), (2, 3)])
def test_pooling_and_its_gradient_are_those_of_the_op(tmp_path: Path, size: int, stride: int | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (6, 6)).astype(float)  # some are equal
    y, backward = ops.max_pool2d(x[None, None], size, stride=stride)
    found = texts(plots.pooling(x, tmp_path / "a.svg", size=size, stride=stride))
    assert found >= cells(x, y[0, 0])
    winners = []
    for i, j in np.ndindex(y.shape[2:]):
        top, left = i * (stride or size), j * (stride or size)
        window = x[top : top + size, left : left + size]
        winners.append((left + window.argmax() % size, top + window.argmax() // size))
    frames = [one[:2] for one in framed(tmp_path / "a.svg")]
    np.testing.assert_allclose(frames, np.subtract(winners, winners[0]), atol=0.02)
    dy = rng.integers(1, 9, y.shape).astype(float)
    found = texts(plots.pooling_backward(x, dy[0, 0], tmp_path / "a.svg", size=size, stride=stride))
    assert found >= cells(x, dy[0, 0], backward(dy)[0][0, 0])


def test_relu_and_its_gradient(tmp_path: Path) -> None:
    x, dy = np.array([[-2.0, 0, 3], [4, -1, 5]]), np.array([[1.0, 2, 3], [4, 5, -6]])
    assert texts(plots.relu(x, tmp_path / "a.svg")) >= cells(x, [[0, 0, 3], [4, 0, 5]])
    np.testing.assert_allclose([one[:2] for one in framed(tmp_path / "a.svg")], [[0, 0], [1, 1]], atol=0.02)
    found = texts(plots.relu_backward(x, dy, tmp_path / "a.svg"))
    assert found >= cells(dy, [[0, 0, 1], [1, 0, 1]], [[0, 0, 3], [4, 0, -6]])


def test_softmax_and_its_gradient_are_those_of_the_worked_example(tmp_path: Path) -> None:
    found = texts(plots.softmax([3.8, 3.1], tmp_path / "a.svg", classes=["no", "yes"], truth=1))
    assert {"no", "yes", "3.8", "3.1", "0.668", "0.332"} <= set(found)
    assert "-log p = 1.1:" in joined(tmp_path / "a.svg")
    found = texts(plots.softmax_backward([3.8, 3.1], 1, tmp_path / "a.svg"))
    assert {"0.668", "-0.668", "class 0", "class 1"} <= set(found)


def test_the_loss_of_a_probability_of_zero_is_that_of_the_op(tmp_path: Path) -> None:
    plots.softmax([1000.0, -1000.0], tmp_path / "a.svg", truth=1)
    assert "p = 0; the loss is -log p = 2e3:" in joined(tmp_path / "a.svg")


def test_softmax_of_many_classes_draws_the_likeliest_and_the_true_one(tmp_path: Path) -> None:
    z = np.arange(1000.0) / 100
    names = [f"kind {k} " + "with a very long name" * 3 for k in range(1000)]
    found = texts(plots.softmax(z, tmp_path / "a.svg", classes=names, truth=3))
    shown = sorted(int(text.split()[1]) for text in found if text.startswith("kind"))
    assert shown == [3, *range(991, 1000)]
    rest = 1 - (np.exp(z - z.max()) / np.exp(z - z.max()).sum())[shown].sum()
    assert found[f"the 10 likeliest of 1,000 classes; all others together: {rest:.3g}"] == 1


def test_the_gradients_of_a_fully_connected_layer(tmp_path: Path) -> None:
    weight = np.array([[0.5, -0.3], [-0.2, 0.7]])
    found = texts(plots.linear_backward([10, 8], weight, [0.67, -0.67], tmp_path / "a.svg"))
    assert found >= cells(weight, [[6.7, 5.36], [-6.7, -5.36]], [[0.469, -0.67]], [[0.67, -0.67]], [[10, 8]])
    assert found["dx[0] = 0.5·0.67 + (-0.2)·(-0.67) = 0.469"] == 1
    plots.linear_backward(np.ones(84), np.ones((10, 84)), np.ones(10), tmp_path / "large.png")


def test_small_gradients_have_a_unit(tmp_path: Path) -> None:
    found = texts(plots.relu_backward([[1.0, 2]], [[3e-6, -4.5e-6]], tmp_path / "a.svg"))
    assert found["gradient dy, in 1e-6"] == 1
    assert found >= cells([[3, -4.5]], [[3, -4.5]])
    assert "All gradients are in 1e-6: multiply them by it." in joined(tmp_path / "a.svg")


def test_a_number_that_is_not_finite_is_named(tmp_path: Path) -> None:
    plots.relu([[1.0, np.nan], [np.inf, 2]], tmp_path / "a.svg")
    assert "Purple: a number that is not finite." in joined(tmp_path / "a.svg")


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda p: plots.convolution(np.ones(3), FILTER, (0, 0), p), ShapeError, "image must have 2 or 3 axes, got"),
        (lambda p: plots.convolution(IMAGE, FILTER, (2, 0), p), UsageError, "a row from 0 to 1 and a column from 0 to"),
        (lambda p: plots.convolution(IMAGE, FILTER, 3, p), UsageError, r"must be \(row, column\) or a sequence of th"),
        (lambda p: plots.convolution(IMAGE, np.ones((4, 4)), (0, 0), p), ShapeError, "must fit into the padded image"),
        (lambda p: plots.convolution(np.ones((8, 4, 4)), FILTER, (0, 0), p), ShapeError, "at most 3 channels, got 8"),
        (lambda p: plots.pooling(IMAGE, p, size=4), ShapeError, "size must be at most that of x"),
        (lambda p: plots.pooling([["a"]], p), UsageError, "must be an array of numbers"),
        (lambda p: plots.pooling([[1, 2], [3]], p), UsageError, "must be an array of numbers"),
        (lambda p: plots.softmax([np.nan, 2], p), UsageError, "softmax: scores must be finite, got nan"),
        (lambda p: plots.softmax_backward([1, np.inf], 0, p), UsageError, "scores must be finite, got inf"),
        (lambda p: plots.pooling(np.ones((0, 3)), p), ShapeError, "at least one element"),
        (lambda p: plots.pooling_backward(IMAGE, IMAGE, p), ShapeError, "of the pooled map"),
        (lambda p: plots.softmax([1.0, 2], p, truth=2), UsageError, "truth must be"),
        (lambda p: plots.softmax([1.0, 2], p, classes=["a"]), UsageError, "classes must be 2 names"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, draw: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        draw(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_numbers_are_light_on_dark_cells_and_dark_on_light_ones(tmp_path: Path) -> None:
    text = plots.pooling([[0.0, 10], [0, 0]], tmp_path / "a.svg").read_text("utf-8")
    fills = re.findall(r'<text style="[^"]*fill: (#\w+)[^"]*"[^>]*>(0|10)</text>', text)
    assert fills[:4] == [("#ffffff", "0"), ("#222222", "10"), ("#ffffff", "0"), ("#ffffff", "0")]
