"""The page of a whole run: what is on it is what other functions compute, also of damaged and strange runs."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from page_check import check, picture

from xcnn import explain, nn, pages
from xcnn.data import Dataset
from xcnn.devices import to_numpy
from xcnn.errors import DataError, DeviceError, UsageError
from xcnn.pages import _network, _run
from xcnn.runs import Config, restore, train
from xcnn.runs.beginning import at_start
from xcnn.training import Callback
from xcnn.training.terminal import duration


@pytest.fixture(scope="module")
def restored(checkpoint):
    return restore(checkpoint.parent)


@pytest.fixture(scope="module")
def reported(restored, checkpoint, tmp_path_factory):
    """The page of a run, and the metrics that `report` returns."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    metrics = pages.report(restored, checkpoint.parent, path)
    return check(path), metrics, path


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
