"""The command `xcnn` as users run it: its output, the files that it writes, and its exit codes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcnn import data, models, nn, optim, plots
from xcnn.cli import _console, main
from xcnn.runs import SETTINGS, Checkpoint, load_checkpoint, save_checkpoint
from xcnn.threads import get_num_threads, set_num_threads

QUICK = ["train", "--model", "report", "--epochs", "2", "--validation", "0.2"]
SMALL = ["train", "--model", "vgg_small", "--epochs", "1", "--validation", "0.9"]
EPOCH_KEYS = [
    "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
    "seconds", "data_seconds", "samples_per_second",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    assert main([*QUICK, "--json", "-o", str(folder)]) == 0
    return folder / "best.safetensors"


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
    assert last["weights"] == f"last, after {6 * 12} steps"


def test_without_validation_the_last_weights_are_tested(xcnn):
    code, out, _ = xcnn("train", "--model", "report", "--epochs", "1", "--validation", "0", "--json", "-o", "out")
    last = json.loads(out.splitlines()[-1])
    assert (code, last["best_epoch"], last["monitor"]) == (0, 0, None)


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


def test_a_path_in_the_summary_is_on_one_line(xcnn, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / ("long " * 20)
    code, out, _ = xcnn("train", "--model", "report", "--epochs", "1", "-o", folder)
    assert code == 0
    assert f"{folder}/best.safetensors" in out


def test_the_help_of_train_has_every_setting_under_a_heading(xcnn):
    code, out, _ = xcnn("train", "--help")
    assert code == 0
    heads = [out.index(f" {head} ") for head in ("Data", "Network and training", "The run")]
    assert heads == sorted(heads)
    assert all(f"--{name.replace('_', '-')} " in out for name in SETTINGS)


def test_completion_can_be_installed(tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    command = [sys.executable, "-m", "xcnn", "--install-completion"]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    script = next(path for path in tmp_path.rglob("*") if path.is_file() and path.name == "xcnn")
    ask = f"source '{script}'; COMP_WORDS=(xcnn train --label); COMP_CWORD=2; _xcnn; echo \"${{COMPREPLY[@]}}\""
    answer = subprocess.run(["bash", "-c", ask], check=True, capture_output=True, text=True, timeout=60)
    assert answer.stdout.split() == ["--label-smoothing"]


def tensors(folder):
    """Return the bytes of the last weights."""
    newest = max(Path(folder, "checkpoints").glob("step-*"))
    return sorted((name, array.tobytes()) for name, array in load_checkpoint(newest).state.items())


def test_one_seed_one_result(xcnn):
    weights = []
    for folder, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert xcnn(*QUICK, "--seed", seed, "--augment", "shift,rotate", "-o", folder)[0] == 0
        weights.append(tensors(folder))
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["train", "--model", "lenet"], 2, "unknown model 'lenet'; did you mean 'lenet5'? (known: "),
        (["train", "--dataset", "mnits"], 2, "unknown data set 'mnits'; did you mean 'mnist'?"),
        (["train", "--device", "cdua"], 2, "unknown device 'cdua'; did you mean 'cuda'?"),
        (["train", "--opt", "adm"], 2, "unknown optimizer 'adm'; did you mean 'adam'?"),
        (["train", "--schedule", "cosin"], 2, "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (["train", "--augment", "flip,shft"], 2, "unknown augmentation 'shft'; did you mean 'shift'?"),
        (["train", "--epochs", "0"], 2, "--epochs must be an integer from 1 to 1000000000, got 0"),
        (["train", "--batch-size", "0"], 2, "--batch-size must be an integer from 1 to 1000000000, got 0"),
        (["train", "--lr", "nan"], 2, "--lr must be a number in (0, inf), got nan"),
        (["train", "--momentum", "0.5"], 2, "--momentum is not for the optimizer adam, which has no momentum"),
        (["train", "--opt-options", "nesterov"], 2, "opt_options must be NAME=VALUE, got 'nesterov'"),
        (["train", "--opt-options", "beta=1"], 2, "--opt-options: adam: no argument 'beta'; did you mean 'betas'?"),
        (["train", "--seed", "-1"], 2, "--seed must be an integer from 0 to "),
        (["train", "--validation", "1"], 2, "--validation must be a number in [0, 1), got 1.0"),
        (["train", "--patience", "3", "--validation", "0"], 2, "--patience needs validation images"),
        (["train", "--epochs", "many"], 2, "--epochs"),
        (["train", "--epoch", "3"], 2, "xcnn train has no flag --epoch; did you mean --epochs?"),
        (["train", "--learning-rate=0.1"], 2, "xcnn train has no flag --learning-rate; did you mean --lr?"),
        (["train", "--gpu"], 2, "xcnn train has no flag --gpu; did you mean --device cuda?"),
        (["models", "--gpu"], 2, "xcnn models has no flag --gpu; see xcnn models --help"),
        (["train", "--epochs", "2.7"], 2, "--epochs takes an integer, got '2.7'"),
        (["train", "--seed", "2.5"], 2, "--seed takes an integer, got '2.5'"),
        (["compare", "--batch-size", "8.0"], 2, "--batch-size takes an integer, got '8.0'"),
        (["bench", "--rounds", "1e3"], 2, "--rounds takes an integer, got '1e3'"),
        (["models", "--shape", "1", "28", "28.5"], 2, "--shape takes an integer, got '28.5'"),
        (["predict", "x", "--index", "1", "2.5"], 2, "--index takes an integer, got '2.5'"),
        (["train", "--out", ""], 2, "--out takes a path, got ''"),
        (["train", "--out="], 2, "--out takes a path, got ''"),
        (["predict", ""], 2, "CHECKPOINT takes a path, got ''"),
        (["predict", "a.png", "runs/x"], 2, "the first argument is the run or its file, then come the images"),
        (["predict"], 2, "predict needs CHECKPOINT; see xcnn predict --help"),
        (["train", "--lr"], 2, "--lr takes a value"),
        (["models", "--shape", "1", "28"], 2, "--shape takes 3 values, got 2"),
        (["train", "--image-size", "32"], 2, "--image-size is for the data set 'folder'; the data set 'digits'"),
        (["train", "digits"], 2, "train takes no argument 'digits'; did you mean --dataset digits?"),
        (["train", "lenet5"], 2, "train takes no argument 'lenet5'; did you mean --model lenet5?"),
        (["bench", "lenet5"], 2, "bench takes no argument 'lenet5'; did you mean --models lenet5?"),
        (["train", "cats"], 2, "train takes no argument 'cats'; see xcnn train --help"),
        (["devices", "cuda"], 2, "devices takes no argument 'cuda'; see xcnn devices --help"),
        (["train", "--device", "gpu"], 2, "unknown device 'gpu'; did you mean 'cuda'?"),
        (["trian"], 2, 'Unknown command "trian". Did you mean "train"?'),
        (["train", "--model", "lenet5"], 2, "lenet5: images must have at least 12 x 12 pixels, got 8 x 8"),
        (["train", "--dataset", "mnist", "--data-dir", "nowhere"], 1, "nowhere"),
        (["train", "--dataset", "folder"], 2, "--data-dir is missing: the data set 'folder' needs a folder"),
        (["train", "-o", "/dev/null/x"], 1, "cannot create the folder /dev/null/x: Not a directory"),
        (["predict", "nothing.safetensors", "--index", "1"], 1, "no checkpoint at nothing.safetensors"),
        (["evaluate", "nothing.safetensors"], 1, "no checkpoint at nothing.safetensors"),
        (["evaluate"], 2, "CHECKPOINT"),
        (["models", "resnet"], 2, "unknown model 'resnet'; did you mean 'resnet20'?"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_sentence(xcnn, tmp_path, argv, code, message):
    got, out, err = xcnn(*argv)
    assert got == code
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_cuda_without_a_gpu_says_what_is_missing(xcnn):
    from xcnn.devices import devices
    from xcnn.errors import DeviceError

    if not isinstance(devices()["cuda"], DeviceError):
        pytest.skip("there is a GPU here")
    code, _, err = xcnn("train", "--device", "cuda")
    assert code == 2
    assert err.startswith("error: cuda: ")
    assert "install" in err
    assert err.count("\n") == 1
    assert xcnn(*QUICK, "--device", "auto")[0] == 0


def test_no_network_is_one_sentence(xcnn, monkeypatch, tmp_path):
    monkeypatch.setenv("XCNN_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    code, _, err = xcnn("train", "--dataset", "mnist")
    assert code == 1
    assert err.count("\n") == 1
    assert "could not download" in err
    assert "pass their folder as data_dir" in err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_not_overwritten(xcnn, tmp_path, checkpoint):
    before = contents(checkpoint.parent)
    code, _, err = xcnn(*QUICK, "-o", checkpoint.parent)
    assert code == 2
    assert "already holds a run" in err
    assert contents(checkpoint.parent) == before


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
    processes = [start("train", "--model", "report", "--epochs", "1", cwd=tmp_path) for _ in range(3)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_debug_shows_the_traceback(xcnn):
    with pytest.raises(Exception, match="unknown model"):
        xcnn("train", "--model", "x", "--debug")


def test_a_new_run_that_cannot_take_a_step_leaves_no_folder(xcnn, tmp_path, monkeypatch):
    """A mistake in a network of one's own must not occupy the folder."""
    wrong = models.Entry("wrong", lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(7, classes)))
    monkeypatch.setitem(models.MODELS, "wrong", wrong)
    code, _, err = xcnn("train", "--model", "wrong", "-o", "out")
    assert code == 2
    assert "1 (Linear): linear: weight takes 7 features, x has 64" in err
    assert not list((tmp_path / "out").glob("*"))
    assert xcnn(*QUICK, "-o", "out")[0] == 0


def test_too_few_images_to_hold_some_out(xcnn, tmp_path):
    for kind in ("a", "b"):
        for i in range(3):
            (tmp_path / "few" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "few" / kind / f"{i}.png")
    code, _, err = xcnn("train", "--dataset", "folder", "--data-dir", "few", "--image-size", "8", "--model", "report")
    assert code == 2
    assert (
        "--validation: 0.1 of 4 images to train holds out none or all of them; set it to 0 to validate on none" in err
    )


def test_predict_an_index(xcnn, checkpoint, tmp_path):
    code, out, _ = xcnn("predict", checkpoint, "--index", "3", "--json", "--pictures", "pictures")
    assert code == 0
    record = json.loads(out)
    _, test = data.load("digits")
    assert record["truth"] == test.classes[test.y[3]]
    assert sum(record["probabilities"].values()) == pytest.approx(1, rel=1e-5)
    assert record["class"] == max(record["probabilities"], key=record["probabilities"].get)
    assert record["probability"] == record["probabilities"][record["class"]]
    with Image.open(record["picture"]) as picture:
        assert min(picture.size) > 300


def test_predict_files(xcnn, checkpoint, tmp_path):
    """A test image saved as a PNG gets the same prediction as by its index; a large image is scaled down."""
    _, test = data.load("digits")
    Image.fromarray(test.x[3, 0]).save(tmp_path / "three.png")
    Image.fromarray(test.x[3, 0]).convert("RGB").resize((80, 80), 0).save(tmp_path / "big.jpg")
    code, out, err = xcnn("predict", checkpoint, "three.png", "big.jpg", "--index", "3", "--json")
    assert code == 0, err
    first, _, third = (json.loads(line) for line in out.splitlines())
    assert first["probabilities"] == pytest.approx(third["probabilities"], rel=1e-4)
    assert not list(tmp_path.glob("prediction-*")), "pictures that nobody asked for"
    (tmp_path / "sub").mkdir()
    (tmp_path / "three.png").rename(tmp_path / "sub" / "big.png")
    assert xcnn("predict", checkpoint, "big.jpg", "sub/big.png", "--pictures", "both")[0] == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["prediction-big-2.png", "prediction-big.png"]
    (tmp_path / "sub" / "big.png").rename(tmp_path / "three.png")
    code, out, _ = xcnn("predict", checkpoint, "three.png")
    assert code == 0
    assert f"three.png: class {first['class']}" in out
    assert len(out.splitlines()) == 2 + 10
    assert len(xcnn("predict", checkpoint, "three.png", "--top", "4")[1].splitlines()) == 2 + 4


def test_predict_folders(xcnn, checkpoint, tmp_path):
    """A folder stands for its images; one that cannot be read is left out, and the exit code says so."""
    _, test = data.load("digits")
    for i, name in enumerate(("a.png", "deep/b.png", ".hidden/c.png", "deep/.d.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.x[i, 0]).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    code, out, _ = xcnn("predict", checkpoint, "photos", "--index", "0", "1", "--json", "--out", "all.jsonl")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["image"] for record in records] == ["photos/a.png", "photos/deep/b.png", "digits-0", "digits-1"]
    assert records[0]["probabilities"] == pytest.approx(records[2]["probabilities"], rel=1e-4)
    assert [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()] == records

    (tmp_path / "photos" / "a.png").write_bytes(b"damaged")
    code, out, err = xcnn("predict", checkpoint, "photos", "--index", "1", "--top", "2", "--out", "all.csv")
    assert code == 1
    assert "left out: read_image: photos/a.png cannot be read as an image" in err
    header, *rows = out.splitlines()
    assert header.split() == ["image", "truth", "class", "2."]
    assert [row.split()[0] for row in rows] == ["photos/deep/b.png", "digits-1"]
    with (tmp_path / "all.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["image", "truth", "class_1", "probability_1", "class_2", "probability_2"]
    assert (second["image"], second["truth"]) == ("digits-1", test.classes[test.y[1]])
    for row, record in ((first, records[1]), (second, records[3])):
        assert row["class_1"] == record["class"]
        assert float(row["probability_1"]) == pytest.approx(record["probability"], rel=1e-4)


def test_predict_inverted(xcnn, checkpoint, tmp_path):
    _, test = data.load("digits")
    Image.fromarray(test.x[3, 0]).save(tmp_path / "light.png")
    Image.fromarray(255 - test.x[3, 0]).save(tmp_path / "dark.png")
    as_is, turned = (
        json.loads(xcnn("predict", checkpoint, *argv, "--json")[1])
        for argv in (["light.png"], ["dark.png", "--invert"])
    )
    assert as_is["probabilities"] == turned["probabilities"]


def test_no_picture_replaces_another(xcnn, checkpoint, tmp_path):
    _, test = data.load("digits")
    files = ["a/x.png", "b/x.png", "x-2.png", "X.png", "b/x.bmp"]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.fromarray(test.x[3, 0]).save(tmp_path / file)
    code, out, _ = xcnn("predict", checkpoint, *files, "--json", "--pictures", "out", "--out", "all.csv")
    with (tmp_path / "all.csv").open(newline="") as table:
        rows = [(row["image"], row["picture"]) for row in csv.DictReader(table)]
    assert rows == [(record["image"], record["picture"]) for record in map(json.loads, out.splitlines())]
    pictures = [json.loads(line)["picture"] for line in out.splitlines()]
    assert code == 0
    assert len({picture.casefold() for picture in pictures}) == len(files)
    assert sorted(f"out/{path.name}" for path in (tmp_path / "out").iterdir()) == sorted(pictures)


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


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "nothing to predict: pass image files or indices of test images"),
        (["--index", "360"], 2, "--index must be from 0 to 359 (test images of digits), got 360"),
        (["--index", "-1"], 2, "--index"),
        (["none.png"], 1, "none.png"),
        (["text.png"], 1, "text.png"),
        (["--index", "0", "--model", "lenet5"], 2, "is a checkpoint of the model 'report', not of 'lenet5'"),
        (["--index", "0", "--dataset", "digit"], 2, "unknown data set 'digit'; did you mean 'digits'?"),
        (["--index", "0", "--pictures", "text.png"], 2, "--pictures: the folder text.png cannot be created"),
        (["--index", "0", "-o", "text.png"], 2, "--out must be a file that ends in .csv or .jsonl, got text.png"),
        (["--index", "0", "-o", "no/table.csv"], 2, "cannot write no/table.csv: there is no folder no"),
        (["--index", "0", "-o", "table.csv"], 2, "cannot write table.csv: it is a folder; name a file in it"),
        (["--index", "0", "--top", "0"], 2, "--top must be at least 1, got 0"),
        (["empty"], 2, "empty contains no images ("),
    ],
)  # fmt: skip
def test_predict_mistakes(xcnn, checkpoint, tmp_path, argv, code, message):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").mkdir()
    got, out, err = xcnn("predict", checkpoint, *argv)
    assert got == code
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


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


@pytest.mark.parametrize("command", [["train"], ["evaluate", "x"], ["predict", "x"], ["compare"]])
def test_threads_are_at_least_one(xcnn, command):
    assert xcnn(*command, "--threads", 0) == (2, "", "error: --threads must be at least 1, got 0\n")


def test_deterministic_refuses_what_cannot_promise(xcnn):
    code, out, err = xcnn(*QUICK, "--deterministic", "--device", "strict")
    assert (code, out) == (2, "")
    assert err == "error: --deterministic: strict may round differently in every run; use --device cpu\n"


def test_plain_weights_need_a_model(xcnn, tmp_path):
    from safetensors.numpy import save_file

    save_file(models.build("report", (1, 8, 8)).state_dict(), tmp_path / "w.safetensors")
    code, _, err = xcnn("evaluate", "w.safetensors")
    assert code == 1
    assert "name the model" in err
    code, _, err = xcnn("evaluate", "w.safetensors", "--model", "report")
    assert code == 2
    assert "--dataset: w.safetensors holds only weights; name the data set" in err
    assert xcnn("evaluate", "w.safetensors", "--model", "report", "--dataset", "digits")[0] == 0
    code, _, err = xcnn("evaluate", "w.safetensors", "--model", "vgg_small", "--dataset", "digits")
    assert code == 1
    assert "not match this model" in err


def test_without_matplotlib_a_run_is_still_a_run(xcnn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = xcnn(*QUICK, "-o", "out")
    assert code == 0
    assert "no pictures: pictures need matplotlib; pip install 'xcnn[plots]'" in err
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("command", ["models", "datasets", "devices"])
def test_lists(xcnn, command):
    code, out, _ = xcnn(command)
    assert code == 0
    code, lines, _ = xcnn(command, "--json")
    assert code == 0
    names = [next(iter(json.loads(line).values())) for line in lines.splitlines()]
    assert all(f"\n{name} " in out for name in names)
    table = {"models": models.MODELS, "datasets": data.DATASETS}.get(command)
    assert table is None or names == list(table)


def test_models_shows_one_layer_by_layer(xcnn):
    code, out, _ = xcnn("models", "lenet5", "--shape", "3", "32", "32", "--classes", "7")
    assert code == 0
    assert "Conv2d" in out
    assert "1x7" in out


def test_models_as_json_and_for_small_images(xcnn):
    code, out, _ = xcnn("models", "lenet5", "--json")
    assert code == 0
    assert [json.loads(line)["layer"] for line in out.splitlines()][:3] == ["Conv2d", "ReLU", "MaxPool2d"]
    code, out, _ = xcnn("models", "--shape", "1", "8", "8", "--json")
    assert code == 0
    parameters = {record["model"]: record["parameters"] for record in map(json.loads, out.splitlines())}
    assert parameters["lenet5"] is None
    assert parameters["report"] == 9 + 170


def test_models_states_the_images_that_parameters_are_for(xcnn):
    code, out, _ = xcnn("models")
    assert code == 0
    cells = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line}
    assert cells["model"] == ["images", "parameters"]
    assert cells["lenet5"] == ["1x28x28", "61,706"]
    assert cells["vgg_small"] == ["3x32x32", "1,116,970"]
    assert "Parameters are for 10 classes and these images. Larger images than 32x32\nneed no more" in out
    code, out, _ = xcnn("models", "--shape", "3", "224", "224", "--json")
    large = {record["model"]: record for record in map(json.loads, out.splitlines())}
    assert large["vgg_small"]["parameters"] == 1_116_970
    assert large["vgg_small"]["shape"] == [3, 224, 224]
    code, out, _ = xcnn("models", "vgg_small")
    assert out.splitlines()[2].split()[:3] == ["0", "Conv2d", "1x32x32x32"]


def test_class_names_with_dollar_signs(xcnn, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a$^$", "b"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    folder = ["--dataset", "folder", "--data-dir", "pets"]
    code, _, err = xcnn(*QUICK, *folder, "--image-size", "8", "-o", "out")
    assert code == 0, err
    assert xcnn("predict", "out/best.safetensors", "--index", "0")[0] == 0
    (tmp_path / "pets" / "b").rename(tmp_path / "pets" / "c")
    code, _, err = xcnn("evaluate", "out/best.safetensors")
    assert code == 2
    assert "the model has the classes a$^$, b, folder has a$^$, c" in err


def test_help_names_every_choice(xcnn):
    """The help of train lists all names of the tables."""
    code, out, _ = xcnn("train", "--help")
    assert code == 0
    words = out.replace("│", " ").split()
    for table in (optim.OPTIMIZERS, optim.SCHEDULES, data.AUGMENTATIONS):
        for name in table:
            assert any(word.strip(".,:;") == name for word in words), name


def start(*argv, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "xcnn", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_interrupt_during_the_test_says_where_the_weights_are(xcnn, monkeypatch):
    from xcnn.runs import run

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "evaluate", interrupted)
    code, out, err = xcnn(*QUICK, "--json", "-o", "out")
    assert code == 130
    assert len(out.splitlines()) == 2
    assert "interrupted during the test; the weights are in out/best.safetensors" in err


def test_interrupt_elsewhere_is_said(xcnn, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["xcnn.cli.datasets"], "print_table", interrupted)
    assert xcnn("datasets") == (130, "", "error: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_interrupt_is_heard_before_anything_else_is_imported():
    """The first import after those of the command's own two files, and of what every program has, brings Ctrl-C."""
    script = """
import importlib, os, signal, sys
class Press:
    def find_spec(self, name, path=None, target=None):
        if name not in ("xcnn", "xcnn.__main__"):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
from xcnn.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", script, "models"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_interrupt_saves_what_is_learned(tmp_path):
    process = start(
        "train", "--model", "report", "--epochs", "100000", "--json", "-o", str(tmp_path / "out"), cwd=tmp_path
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert first["epoch"] == 1
    assert "the weights are in" in err
    assert "Traceback" not in err
    assert all(json.loads(line)["epoch"] for line in out.splitlines())
    assert main(["evaluate", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "curves.png").exists()
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [".lock"] * 2


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["predict", "--help"]])
def test_help_and_version(tmp_path, argv):
    process = start(*argv, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out
    assert err == ""


def test_evaluate_on_images_of_another_shape(xcnn, tmp_path):
    path = tmp_path / "w.safetensors"
    classes = tuple("0123456789")
    save_checkpoint(path, models.build("report", (1, 28, 28)), Checkpoint("report", (1, 28, 28), classes, "digits"))
    code, _, err = xcnn("evaluate", path)
    assert code == 2
    assert "the model takes (1, 28, 28) images of 10 classes, digits has (1, 8, 8) images of 10" in err


def test_evaluate_without_a_confusion_matrix_has_no_figures_of_classes(xcnn, checkpoint, monkeypatch):
    monkeypatch.setattr("xcnn.training.evaluation._MOST_CLASSES", 9)
    code, out, err = xcnn("evaluate", checkpoint)
    assert code == 0, err
    assert "test accuracy" in out
    assert "precision" not in out
    assert json.loads(xcnn("evaluate", checkpoint, "--json")[1])["classes"] == []
