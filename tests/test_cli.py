"""`xcnn train` as users run it: its output, the files that it writes, and its exit codes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import PORTABLE, QUICK, start
from PIL import Image

from xcnn import models, nn, optim, plots
from xcnn.cli import _console
from xcnn.runs import load_checkpoint
from xcnn.threads import get_num_threads, set_num_threads

SMALL = ["train", "--model", "vgg_small", "--epochs", "1", "--validation", "0.9"]
quick = pytest.mark.usefixtures("sketches")
EPOCH_KEYS = [
    "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
    "seconds", "data_seconds", "samples_per_second",
]  # fmt: skip


def test_train_writes_a_folder_and_json_lines(xcnn, tmp_path):
    code, out, err = xcnn(*QUICK, "--json", "-o", "out")
    assert code == 0
    *epochs, last = (json.loads(line) for line in out.splitlines())
    assert [list(record) for record in epochs] == [EPOCH_KEYS] * 2
    assert list(last) == [
        "test_accuracy",
        "test_loss",
        "seconds",
        "checkpoint_seconds",
        "compile_seconds",
        "device",
        "best_epoch",
        "monitor",
        "checkpoint",
    ]
    assert last["device"] == "cpu"
    assert 0 < last["checkpoint_seconds"] < last["seconds"]
    assert "epoch 2/2" in err
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "best.safetensors", "checkpoints", "config.json", "confusion.png", "curves.png", "history.csv",
        "history.jsonl",
    ]  # fmt: skip
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
            assert np.asarray(image.convert("L")).std() > 5  # not blank
    assert [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()] == epochs
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == "report"
    assert config["validation"] == 0.2
    assert (folder / "best.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
    code, out, _ = xcnn("evaluate", "out", "--json")  # a run's folder stands for its best checkpoint
    assert code == 0
    tested = json.loads(out)
    assert tested["test_accuracy"] == last["test_accuracy"]
    assert tested["test_loss"] == pytest.approx(last["test_loss"], rel=1e-6)
    assert [row["class"] for row in tested["classes"]] == list("0123456789")
    assert sum(row["support"] for row in tested["classes"]) == tested["samples"] == 360
    right = sum(row["recall"] * row["support"] for row in tested["classes"])
    assert right == pytest.approx(360 * last["test_accuracy"])
    assert "precision   recall" in xcnn("evaluate", "out")[1]


@quick
@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_the_run_says_which_weights_it_tested(xcnn, tmp_path, monkeypatch, monitor):
    chosen = []
    monkeypatch.setattr(plots, "curves", lambda history, path, title, epoch: chosen.append(epoch))
    rising = ["--opt", "sgd", "--lr", "0.3", "--schedule", "constant", "--epochs", "6", "--validation", "0.5"]
    code, out, err = xcnn("train", "--model", "report", *rising, "--monitor", monitor, "-o", "out")
    assert code == 0, err
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    values = [record[monitor] for record in history]
    best = min(values) if monitor == "val_loss" else max(values)
    epoch = values.index(best) + 1
    assert f"epoch {epoch} of 6, best {monitor} {best:.4g}\n" in out
    assert chosen == [epoch]
    assert load_checkpoint(tmp_path / "out" / "best.safetensors").metrics["epoch"] == epoch
    assert f"epoch {epoch}, best {monitor} {best:.4g}\n" in xcnn("evaluate", "out")[1]
    newest = max((tmp_path / "out" / "checkpoints").glob("*.safetensors"))
    last = json.loads(xcnn("evaluate", newest, "--json")[1])
    assert last["weights"] == "last, of epoch 6"


@quick
def test_without_validation_the_last_weights_are_tested(xcnn):
    code, out, _ = xcnn("train", "--model", "report", "--epochs", "1", "--validation", "0", "--json", "-o", "out")
    last = json.loads(out.splitlines()[-1])
    assert (code, last["best_epoch"], last["monitor"]) == (0, 0, None)
    code, out, err = xcnn("train", "--resume", "out", "--epochs", "2")
    assert code == 0, err
    assert "  last, of epoch 2\n" in out
    averaged = ["--epochs", "1", "--validation", "0", "--ema", "0.9", "-o", "averaged"]
    assert "  last, of epoch 1, averaged\n" in xcnn("train", "--model", "report", *averaged)[1]
    assert "  last, of epoch 1, averaged\n" in xcnn("evaluate", "averaged")[1]


@quick
def test_train_prints_a_table(xcnn):
    code, out, err = xcnn(*QUICK)
    assert code == 0
    assert "report on digits" in out
    assert "test accuracy" in out
    assert "next: xcnn predict runs/digits-report-" in err


@pytest.mark.parametrize(
    ("argv", "path", "program"),
    [
        (["/home/me/.venv/bin/xcnn"], "/home/me/.venv/bin", "xcnn"),
        (["/home/me/.venv/bin/xcnn"], "/usr/bin", "/home/me/.venv/bin/xcnn"),
        ([".venv/bin/xcnn"], "/usr/bin", ".venv/bin/xcnn"),
        (["my project/.venv/bin/xcnn"], "/usr/bin", "'my project/.venv/bin/xcnn'"),
        (["/lib/xcnn/__main__.py"], "/usr/bin", "/home/me/.venv/bin/python3 -m xcnn"),
        (["/lib/xcnn/__main__.py"], "/home/me/.venv/bin", "python3 -m xcnn"),
        (["/usr/bin/pytest"], "/usr/bin", "xcnn"),
    ],
)
def test_the_next_command_is_called_as_this_one_was(monkeypatch, argv, path, program):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "executable", "/home/me/.venv/bin/python3")
    monkeypatch.setattr(
        shutil, "which", {"/home/me/.venv/bin": "/home/me/.venv/bin/{}".format}.get(path, lambda name: None)
    )
    assert _console.program() == program


@quick
def test_a_path_in_the_summary_is_on_one_line(xcnn, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / ("long " * 20)
    code, out, _ = xcnn("train", "--model", "report", "--epochs", "1", "-o", folder)
    assert code == 0
    assert f"{folder}/best.safetensors" in out


def tensors(folder):
    """Return the bytes of the last weights."""
    newest = max(Path(folder, "checkpoints").glob("step-*"))
    return sorted((name, array.tobytes()) for name, array in load_checkpoint(newest).state.items())


@quick
def test_one_seed_one_result(xcnn):
    weights = []
    for folder, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert xcnn(*QUICK, "--seed", seed, "--augment", "shift,rotate", "-o", folder)[0] == 0
        weights.append(tensors(folder))
    assert weights[0] == weights[1] != weights[2]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_not_overwritten(xcnn, tmp_path, checkpoint):
    before = contents(checkpoint.parent)
    code, _, err = xcnn(*QUICK, "-o", checkpoint.parent)
    assert code == 2
    assert "already holds a run" in err
    assert contents(checkpoint.parent) == before


@quick
def test_divergence_says_where_and_keeps_the_last_good_epoch(xcnn, tmp_path, monkeypatch):
    step, count = optim.SGD.step, [0]

    def poisoned(self):
        step(self)
        count[0] += 1
        if count[0] == 25:  # 18 batches of 64 an epoch
            parameter = self.param_groups[0]["params"][0]
            parameter.data = parameter.data * np.float32("nan")

    monkeypatch.setattr(optim.SGD, "step", poisoned)
    code, _, err = xcnn(*QUICK, "--opt", "sgd", "--lr", "0.01", "-o", "out")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: epoch 2, batch 8: the loss is nan")
    assert last.endswith("; the last checkpoint is out/checkpoints/step-00000018.safetensors")
    assert xcnn("evaluate", "out")[0] == 0


@quick
def test_ruined_weights_are_never_saved(xcnn, tmp_path):
    """An update that overflows after the last check of the loss is noticed when the epoch is saved."""
    ruin = ["--opt", "sgd", "--momentum", "0", "--schedule", "constant", "-b", "2000", "--validation", "0"]
    code, out, err = xcnn("train", "--model", "report", "--epochs", "1", "--lr", "1e39", *ruin, "-o", "out", "--json")
    assert code == 1
    assert out == ""
    *notes, error = err.splitlines()  # a note, if the kernels had to be compiled
    assert "is not finite; lower the learning rate" in error
    assert not any(line.startswith("error") for line in notes)
    assert not (tmp_path / "out").exists()  # nothing was learned, so no folder is left


@quick
def test_label_smoothing_is_not_tested_with(xcnn):
    code, out, _ = xcnn(*QUICK, "--label-smoothing", "0.3", "--json", "-o", "out")
    assert code == 0
    last = json.loads(out.splitlines()[-1])
    assert json.loads(xcnn("evaluate", last["checkpoint"], "--json")[1])["test_loss"] == pytest.approx(
        last["test_loss"], rel=1e-6
    )


def test_the_default_run_learns_the_digits(xcnn):
    code, out, _ = xcnn("train", "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["test_accuracy"] >= 0.97


def test_runs_of_the_same_second_get_their_own_folders(tmp_path):
    argv = ["train", "--model", "report", "--epochs", "1"]
    processes = [start(*argv, cwd=tmp_path, env=PORTABLE) for _ in range(3)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert len(list((tmp_path / "runs").iterdir())) == 3


@quick
def test_a_new_run_that_cannot_take_a_step_leaves_no_folder(xcnn, tmp_path, monkeypatch):
    """A mistake in a network of one's own must not occupy the folder."""
    wrong = models.Entry("wrong", lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(7, classes)))
    monkeypatch.setitem(models.MODELS, "wrong", wrong)
    code, _, err = xcnn("train", "--model", "wrong", "-o", "out")
    assert code == 2
    assert "1 (Linear): linear: weight takes 7 features, x has 64" in err
    assert not list((tmp_path / "out").glob("*"))
    assert xcnn(*QUICK, "-o", "out")[0] == 0


@quick
def test_options_of_the_optimizer_are_flags_and_settings(xcnn, tmp_path):
    flags = [
        "--opt",
        "sgd",
        "--opt-options",
        "nesterov=true",
        "--opt-options",
        "dampening=0.0",
        "--augment",
        "flip,crop",
    ]
    assert xcnn(*QUICK[:3], "--epochs", "1", *flags, "-o", "a")[0] == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["opt_options"] == {"nesterov": True, "dampening": 0.0}
    assert xcnn("train", "--config", "a/config.json", "-o", "b")[0] == 0
    assert (tmp_path / "b" / "config.json").read_text() == (tmp_path / "a" / "config.json").read_text()
    (tmp_path / "d.toml").write_text("opt_options = {eps = 2026-01-01}\n")
    code, _, err = xcnn("train", "--config", "d.toml")
    assert (code, err) == (2, "error: Adam: eps must be a number in [0, inf), got '2026-01-01'\n")
    (tmp_path / "c.toml").write_text('model = "report"\nepochs = 1\nopt_options = {betas = [0.8, 0.9]}\n')
    assert xcnn("train", "--config", "c.toml", "-o", "c")[0] == 0
    assert json.loads((tmp_path / "c" / "config.json").read_text())["opt_options"] == {"betas": [0.8, 0.9]}
    assert xcnn("train", "--resume", "a", "--epochs", "2")[0] == 0


@quick
def test_options_of_the_network_are_flags_and_settings(xcnn, tmp_path):
    flags = ["--model-options", "filters=2", "--model-options", "depth=2"]
    assert xcnn(*QUICK[:3], "--epochs", "1", *flags, "-o", "a")[0] == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["model_options"] == {"filters": 2, "depth": 2}
    assert load_checkpoint(tmp_path / "a").state["3.weight"].shape == (4, 2, 3, 3)
    assert xcnn("train", "--resume", "a", "--epochs", "2")[0] == 0
    assert xcnn("evaluate", "a")[0] == xcnn("evaluate", "a", "--model", "report")[0] == 0
    assert xcnn("train", "--init", "a", "--epochs", "1", *flags, "-o", "b")[0] == 0
    code, _, err = xcnn("train", "--init", "a")
    assert code == 2
    assert err.startswith("error: --model-options are missing: the network of a is built with {'filters': 2, ")
    code, _, err = xcnn(*QUICK, "--model-options", "filtres=2")
    assert (code, "did you mean 'filters'?" in err) == (2, True)


@quick
def test_results_do_not_depend_on_threads(xcnn):
    before, weights = get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            assert xcnn(*SMALL, "--threads", threads, "--deterministic", "-o", threads)[0] == 0
            assert get_num_threads() == threads
            weights.add(tuple(tensors(str(threads))))
    finally:
        set_num_threads(before)
    assert len(weights) == 1


def test_without_matplotlib_a_run_is_still_a_run(xcnn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = xcnn(*QUICK, "-o", "out")
    assert code == 0
    assert "no pictures: pictures need matplotlib; pip install matplotlib" in err
    assert not list((tmp_path / "out").glob("*.png"))
