"""The report's figures: its worked example, and its training run against NumPy code written from its text."""

import json
import os
from types import ModuleType

import numpy as np
import pytest

from xcnn import data, optim
from xcnn.training import Trainer


@pytest.fixture
def example(load_example) -> ModuleType:
    return load_example("report_example")


@pytest.fixture
def training(load_example) -> ModuleType:
    return load_example("report_training")


# The worked example


def test_every_figure_of_the_worked_example_agrees(example, capsys):
    assert example.main() == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "All 44 figures" in output.out
    for name in example.REPORT:
        assert f"    {name} " in output.out


@pytest.mark.parametrize("off", [0.03, -0.03, np.nan])
def test_any_figure_that_is_off_is_named(example, capsys, monkeypatch, off):
    # 0.03: the report's own figures are up to 0.0034 from exact ones, and each has to leave 0.01 on both sides.
    for name, figures in example.REPORT.items():
        for index in np.ndindex(figures.shape):
            with monkeypatch.context() as patch:
                wrong = figures.copy()
                wrong[index] += off
                patch.setitem(example.REPORT, name, wrong)
                assert example.main() == 1
            error = capsys.readouterr().err
            place = str(list(index)) if figures.size > 1 else ""
            assert error.startswith(f"error: {name}{place}: the report prints")
            assert error.count("\n") == 1


def test_the_example_works_in_float64_on_figures_worked_out_by_hand(example):
    # From the definitions, without the library: both maxima lie over the lower left corner of the image.
    p = np.exp([0.7, 0.0]) / np.exp([0.7, 0.0]).sum()
    d = p[0]
    seen = np.array([[2.0, 5], [4, 0]])
    _, exact, _ = example.compute()
    wanted = {
        "p": p,
        "loss": [-np.log(p[1])],
        "dz": [d, -d],
        "dW": [[10 * d, 8 * d], [-10 * d, -8 * d]],
        "dx": [0.7 * d, -d],
        "df1": 0.7 * d * seen,
        "df2": -d * seen,
        "dX": [[0, 0, 0], [0.7 * d + d, -2 * d, 0], [1.4 * d, -0.7 * d - d, 0]],
        "dX, flipped": [[0, 0, 0], [-0.7 * d - d, 1.4 * d, 0], [-2 * d, 0.7 * d + d, 0]],
    }
    for name, figures in wanted.items():
        assert exact[name].dtype == np.float64, name
        np.testing.assert_allclose(exact[name], figures, rtol=0, atol=1e-14, err_msg=name)


def test_the_three_mistakes_are_named(example, capsys):
    example.main()
    output = capsys.readouterr().out
    assert "dX[2, 0] = -1.34, where 0.938 is right" in output
    assert "0.48 is the base-10 logarithm" in output
    assert "1.10" in output
    assert "divides dW and db by 10" in output


# The training run


def _report_step(image, label, filters, weight, bias):
    """Take one step of the report's training; return the loss and whether the prediction was right."""
    patches = np.lib.stride_tricks.sliding_window_view(np.pad(image, 1), (3, 3))
    maps = np.maximum((patches * filters).sum(axis=(2, 3)), 0)
    h, w = maps.shape[0] // 2, maps.shape[1] // 2
    windows = maps.reshape(h, 2, w, 2).transpose(0, 2, 1, 3).reshape(h * w, 4)
    first = windows.argmax(axis=1)
    x = windows[np.arange(h * w), first]
    z = weight @ x + bias
    p = np.exp(z - z.max())
    p /= p.sum()
    y = np.eye(len(p))[label]
    loss, right = -np.log(p[label]), p.argmax() == label

    dz = p - y
    dx = weight.T @ dz * (x > 0)
    rows = 2 * np.repeat(np.arange(h), w) + first // 2
    columns = 2 * np.tile(np.arange(w), h) + first % 2
    filters -= 0.01 * np.tensordot(dx, patches[rows, columns], 1)
    weight -= 0.01 / 10 * np.outer(dz, x)  # 10: the length of the one-hot vector, in the report's program
    bias -= 0.01 / 10 * dz
    return loss, right


class _Numpy:
    """The report's network in NumPy, with the figures of its training so far."""

    def __init__(self, images: data.Dataset) -> None:
        rng = np.random.RandomState(42)
        h, w = images.shape[1] // 2, images.shape[2] // 2
        self.filters = rng.randn(3, 3) * 0.01
        self.weight, self.bias = rng.randn(10, h * w) * 0.01, np.zeros(10)
        self.images, self.labels = images.x[:, 0] / 255.0, images.y

    def step(self, i: int) -> tuple[float, bool]:
        return _report_step(self.images[i], self.labels[i], self.filters, self.weight, self.bias)

    def epoch(self) -> tuple[float, float]:
        loss, accuracy = np.mean([self.step(i) for i in range(len(self.images))], axis=0)
        return loss, accuracy

    def state(self) -> dict[str, np.ndarray]:
        return {"0.weight": self.filters[None, None], "4.weight": self.weight, "4.bias": self.bias}


@pytest.fixture(params=["digits", "mnist"])
def images(request) -> data.Dataset:
    if request.param == "mnist":
        return data.load("mnist", request.getfixturevalue("shared_data"))[0][:3000]
    return data.load("digits")[0]


def test_training_follows_the_report_step_by_step(training, images):
    """The example's own steps, and the Trainer's with the same two learning rates, give the report's numbers."""
    network, report = training.Network(images.shape, dtype=np.float64), _Numpy(images)
    for name, value in network.module(images.shape).state_dict().items():
        np.testing.assert_array_equal(value, report.state()[name].astype(np.float32))
    report.filters *= 100  # or so few images would teach it next to nothing
    network.filters = network.filters * 100
    model = network.module(images.shape).to("cpu", "float64")
    model.load_state_dict(report.state())
    filters, *linear = model.parameters()
    groups = [{"params": [filters], "lr": 0.01}, {"params": linear, "lr": 0.001}]
    trainer = Trainer(model, optim.SGD(groups), "cross_entropy")
    losses = []
    for i, label in enumerate(images.y):
        loss, right = report.step(i)
        x, y = report.images[i][None, None], label[None]
        assert trainer.step(x, y) == pytest.approx(loss, rel=1e-9, abs=1e-9), f"image {i}"
        ours, hit = network.step(x, y)
        assert ours == pytest.approx(loss, rel=1e-9, abs=1e-9), f"image {i}"
        assert hit == right
        losses.append(loss)
    assert np.mean(losses[-300:]) < 0.9 * np.mean(losses[:300])  # it did learn
    for name, value in model.state_dict().items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, report.state()[name], rtol=1e-9, atol=1e-9, err_msg=name)
    for value, name in ((network.filters, "0.weight"), (network.weight, "4.weight"), (network.bias, "4.bias")):
        np.testing.assert_allclose(value, report.state()[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_training_run_prints_its_epochs_and_test_as_json(training, images, capsys):
    part = images[:400]
    report = _Numpy(part)
    training.run(part, images[400:850], epochs=2, as_json=True)
    *epochs, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert len(epochs) == 2
    for number, line in enumerate(epochs, 1):
        loss, accuracy = report.epoch()
        assert list(line) == ["epoch", "train_loss", "train_accuracy", "seconds", "images_per_second", "speedup"]
        assert line["epoch"] == number
        assert line["train_loss"] == pytest.approx(loss, abs=1e-4)  # float32 against float64
        assert line["train_accuracy"] == pytest.approx(accuracy, abs=0.0051)  # two images may fall to the other side
        assert line["images_per_second"] == pytest.approx(400 / line["seconds"])
        assert line["speedup"] == pytest.approx(line["images_per_second"] * (2 * 3600 + 17 * 60 + 26) / 60_000)
    assert list(last) == ["test_accuracy", "test_loss", "test_image", "class", "probability", "probabilities"]
    assert last["test_image"] == 400
    assert len(last["probabilities"]) == 10
    assert sum(last["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert last["probabilities"][last["class"]] == last["probability"] == max(last["probabilities"])


def test_the_training_run_prints_a_table_beside_the_report(training, capsys):
    train, _ = data.load("digits")
    training.run(train[:50], train[:401], epochs=3, as_json=False)
    table = capsys.readouterr().out
    for figure in ("0.4149", "0.8735", "2:17:26", "0.3125", "0.9085", "2:14:05", "0.9051", "epoch 3", "Test image 400"):
        assert figure in table


@pytest.mark.parametrize(("flag", "value"), [("--epochs", "0"), ("--limit", "0"), ("--limit", "-3")])
def test_the_training_run_refuses_numbers_without_meaning(training, capsys, flag, value):
    with pytest.raises(SystemExit) as ended:
        training.main([f"{flag}={value}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {flag} must be at least 1, got {value}\n")


def test_the_training_run_says_in_one_sentence_what_is_missing(training, capsys, tmp_path):
    assert training.main(["--data-dir", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert "train-images-idx3-ubyte" in output.err
    assert output.err.count("\n") == 1


@pytest.mark.skipif("XCNN_FULL_REPORT" not in os.environ, reason="takes a minute; set XCNN_FULL_REPORT to run it")
def test_the_whole_training_run_lands_where_the_report_does(training, shared_data, capsys):
    assert training.main(["--data-dir", str(shared_data), "--json"]) == 0
    first, second, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    came = [first["train_loss"], first["train_accuracy"], second["train_loss"], second["train_accuracy"]]
    assert [*came, last["test_accuracy"]] == pytest.approx([0.4149, 0.8735, 0.3125, 0.9085, 0.9051], abs=0.002)
    assert last["class"] == 2
    assert last["probability"] == pytest.approx(0.937, abs=0.02)
