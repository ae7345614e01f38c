"""Pictures of results: what must be visible in them. Other tests check that each one is drawn."""

import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from xcnn import plots
from xcnn.errors import UsageError
from xcnn.runs import Config, Search, Trial
from xcnn.runs.vary import varied

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_errors_of_a_confusion_matrix_have_a_colour_of_their_own(tmp_path: Path) -> None:
    def reddish(counts: np.ndarray) -> int:
        r, g, b = np.moveaxis(pixels(plots.confusion(counts, ("cat", "dog"), tmp_path / "c.png")), -1, 0)
        return int(np.sum((r - b > 40) & (r - g > 40)))

    right = np.diag([50, 50])
    assert reddish(right) == 0
    assert reddish(right + np.asarray([[0, 1], [0, 0]])) > 1000


def test_a_legend_of_long_names_is_whole(tmp_path: Path) -> None:
    rates = {"lenet5": {f"torch channels_last {i} threads": (10.0 + i, 9.0, 12.0 + i) for i in range(5)}}
    drawn = pixels(plots.speeds(rates, tmp_path / "speeds.png"))
    assert np.all(drawn[:, [0, -1]] == 255), "something is cut off at the left or the right edge"


def test_curves_without_validation_or_accuracy_have_a_legend(tmp_path: Path) -> None:
    def height(**values: float | None) -> int:
        record = {"train_loss": 1.0, "val_loss": None, "train_accuracy": None, "val_accuracy": None, **values}
        drawn = pixels(plots.curves([{"epoch": i, **record} for i in range(3)], tmp_path / "curves.png"))
        return int(np.flatnonzero(np.any(drawn < 128, axis=(1, 2)))[-1])  # the lowest row with something dark

    assert height() == height(train_accuracy=0.5)


def test_a_large_first_loss_does_not_hide_the_others(tmp_path: Path) -> None:
    def bottom(first: float) -> int:
        """Return how many rows of the last losses are drawn away from the axis."""
        losses = [first, 2.0, 1.5, 1.0, 0.7, 0.5, 0.4, 0.3]
        records = [{"epoch": i, "train_loss": loss, "val_loss": None} for i, loss in enumerate(losses)]
        r, _, b = np.moveaxis(pixels(plots.curves(records, tmp_path / "curves.png")), -1, 0)
        rows = np.flatnonzero(np.any((b - r > 80)[:, 200:-60], axis=1))  # of the line, without its legend
        return int(rows[-1] - rows[0])

    assert bottom(2.5) > 200
    assert bottom(250.0) > 200


def test_the_chosen_epoch_is_marked(tmp_path: Path) -> None:
    records = [{"epoch": i, "train_loss": 1.0 / i, "val_loss": None} for i in range(1, 9)]
    plain = pixels(plots.curves(records, tmp_path / "curves.png"))
    assert not np.array_equal(pixels(plots.curves(records, tmp_path / "curves.png", chosen=3)), plain)


def test_a_photo_is_drawn_beside_what_the_network_sees(tmp_path: Path) -> None:
    seen, photo = np.zeros((1, 8, 8), np.float32), np.full((40, 60, 3), (255, 0, 0), np.uint8)
    drawn = pixels(plots.prediction(seen, np.asarray([0.1, 0.9]), ("a", "b"), tmp_path / "p.png", photo=photo))
    assert np.sum((drawn[..., 0] > 200) & (drawn[..., 1] < 50)) > 10_000


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_the_best_and_the_failed_trials_of_a_search_are_seen(tmp_path: Path, monitor: str) -> None:
    vary = ["lr=1e-3..1:log", "batch_size=32,64", "epochs=1..4", "model_options.filters=1..8:log"]
    drawn = [
        {"lr": 10.0 ** (-k % 4), "batch_size": "32", "epochs": 1 + k % 4, "model_options.filters": 1 + k}
        for k in range(5)
    ]
    states = ("complete", "pruned", "complete", "complete")
    trials = [Trial(k, drawn[k], tmp_path, state, 0.5 + 0.1 * k) for k, state in enumerate(states)]

    def colours(*trials: Trial) -> tuple[int, int]:
        """Return how many pixels are red and green."""
        made = Search(tmp_path, monitor, varied(vary, Config(model="report")), trials)
        r, g, b = np.moveaxis(pixels(plots.search(made, tmp_path / "search.png")), -1, 0)
        return int(np.sum((r - g > 60) & (r - b > 40))), int(np.sum((g - r > 40) & (g - b > 40)))

    red, green = colours(*trials)
    assert red == 0 < green
    assert colours(*trials, Trial(4, drawn[4], tmp_path, "failed"))[0] > 5 * 20  # in the history and each setting
    assert colours(trials[1])[1] == 0
    with pytest.raises(UsageError, match=r"^search: the trials must have at least one value, got none$"):
        colours(Trial(0, drawn[0], tmp_path, "failed"))


def history(count: int = 4) -> list[dict[str, float]]:
    return [{"epoch": i, "train_loss": 1.0 / i, "val_loss": 1.2 / i} for i in range(1, count)]


def test_a_picture_is_a_png_or_an_svg_and_nothing_else(tmp_path: Path) -> None:
    assert plots.curves(history(), tmp_path / "a.PNG").read_bytes()[:4] == b"\x89PNG"
    text = plots.curves(history(), tmp_path / "a.svg", "loss $ & <more>").read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == "loss $ & <more>"
    words = {"".join(found.itertext()) for found in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"loss $ & <more>", "epoch", "validation", "2"} <= words
    with pytest.raises(UsageError, match=r"^curves: path must be a file that ends in .png or .svg, got .*a\.jpg$"):
        plots.curves(history(), tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=r"^path must be a file that ends in .png or .svg, got a$"):
        plots.check("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.svg"]


def test_an_svg_concerns_nothing_else_on_its_page() -> None:
    text = plots.svg(plots.curves, history(), title="a run")
    assert text == plots.svg(plots.curves, history(), title="a run"), "the same each time"
    assert text.startswith("<svg")
    assert "<style" not in text
    assert "<?xml" not in text
    assert "#000000" not in text
    assert "currentColor" in text
    other = plots.svg(plots.curves, history(9), title="a run")
    ids = [re.findall(r'\bid="([^"]+)"', one) for one in (text, other)]
    assert len(set(ids[0] + ids[1])) == len(ids[0]) + len(ids[1]) > 0
    for one, known in zip((text, other), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", one)) | set(re.findall(r'href="#([^"]+)"', one)) == set(known)


def test_curves_need_a_metric_of_every_epoch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="curves: history must have a metric, such as train_loss, in each of its"):
        plots.curves([{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "val_loss": 1.0}], tmp_path / "a.svg")


def test_long_names_and_equal_ones_leave_room_for_results(tmp_path: Path) -> None:
    counts, names = np.asarray([[9, 1, 0], [0, 9, 0], [0, 0, 9]]), ("x" * 500, "x" * 500, "y")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that there is no room for the axes
        plots.confusion(counts, names, tmp_path / "a.png")
        drawn = pixels(plots.prediction(np.zeros((1, 8, 8)), np.asarray([0.5, 0.1, 0.4]), names, tmp_path / "p.png"))
    bars = np.all(drawn == (187, 187, 187), axis=-1) | np.all(drawn == (68, 119, 170), axis=-1)
    rows = np.flatnonzero(bars.sum(axis=1) > 20)  # more than a letter
    assert 1 + np.sum(np.diff(rows) > 1) == 3, "a bar for each class"


def test_no_name_can_change_an_svg(tmp_path: Path) -> None:
    names = ["font-family: a", ' id="x" href="#', "url(#y)", "stroke: #000000", "</text><script>", "<svg", "&amp;"]
    text = plots.confusion(np.eye(7, dtype=int), names, tmp_path / "a.svg", names[1]).read_text("utf-8")
    root = ElementTree.fromstring(text)
    words = {"".join(found.itertext()) for found in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {name.strip() for name in names} <= {word.strip() for word in words}
    assert root.get("aria-label") == names[1]


def test_a_confusion_matrix_is_shaded_by_shares_of_the_true_class(tmp_path: Path) -> None:
    drawn = pixels(plots.confusion(np.asarray([[90, 10], [5, 5]]), ("cat", "dog"), tmp_path / "c.png"))
    red = drawn[..., 0] - drawn[..., 2]
    red[:, int(0.7 * red.shape[1]) :] = 0  # the scale
    (down, left), (up, right) = (
        np.argwhere(these).mean(axis=0) for these in (red > 0.9 * red.max(), (red > 20) & (red < 0.5 * red.max()))
    )
    assert down > up
    assert left < right, "half of the dogs are taken for cats, and a tenth of the cats for dogs"


def test_lines_of_curves_have_the_colours_of_their_names(tmp_path: Path) -> None:
    records = [{"epoch": i, "train_loss": 1.0, "val_loss": 2.0} for i in range(1, 4)]
    root = ElementTree.parse(plots.curves(records, tmp_path / "a.svg")).getroot()
    drawn = []
    for one in root.iter():
        colour = re.search("stroke: (#4477aa|#ee6677)", one.get("style", ""))
        drawn += [colour[1]] if colour and one.tag.endswith("path") else []
        drawn += [one.text] if one.text in ("training", "validation") else []
    assert drawn[-4:] == ["#4477aa", "training", "#ee6677", "validation"]
    colours = pixels(plots.curves(records, tmp_path / "a.png"))
    low, high = (np.argwhere(np.all(colours == one, axis=-1))[:, 0] for one in ((68, 119, 170), (238, 102, 119)))
    assert low.min() > high.min(), "the smaller loss, that of training, is below"
