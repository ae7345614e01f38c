"""Mistakes on the command line, and what a machine lacks: each ends in one sentence and its exit code."""

import numpy as np
import pytest
from commands import QUICK
from PIL import Image

SEARCH = ["search", "--out", "x", "--vary", "lr=0.1..1"]


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
        (["train", "--opt-options", "nesterov"], 2, "--opt-options: expected NAME=VALUE, got 'nesterov'"),
        (["bench", "--modes", "train"], 2, "xcnn bench has no flag --modes; did you mean --mode?"),
        (["train", "--opt", "sgd", "--opt-options", "momentum=2"], 2, "pass --momentum instead of the option momentum"),
        (["train", "--opt-options", "beta=1"], 2, "--opt-options: adam: no argument 'beta'; did you mean 'betas'?"),
        (["train", "--seed", "-1"], 2, "--seed must be an integer from 0 to "),
        (["train", "--validation", "1"], 2, "--validation must be a number in [0, 1), got 1.0"),
        (["train", "--patience", "3", "--validation", "0"], 2, "--patience needs validation images"),
        (["train", "--epochs", "many"], 2, "--epochs"),
        (["train", "--epoch", "3"], 2, "xcnn train has no flag --epoch; did you mean --epochs?"),
        (["train", "--learning-rate=0.1"], 2, "xcnn train has no flag --learning-rate; did you mean --lr?"),
        (["train", "--gpu"], 2, "xcnn train has no flag --gpu; did you mean --device cuda?"),
        (["train", "--size", "64"], 2, "xcnn train has no flag --size; did you mean --image-size?"),
        (["train", "--output_dir", "x"], 2, "xcnn train has no flag --output_dir; did you mean --out?"),
        (["train", "--crop"], 2, "xcnn train has no flag --crop; did you mean --resize crop?"),
        (["predict", "--pics", "x"], 2, "xcnn predict has no flag --pics; did you mean --pictures?"),
        (["train", "--split", "x"], 2, "xcnn train has no flag --split; see xcnn train --help"),
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
        (["search", "--vary", "lr=0.1..1"], 2, "--out is missing: a search needs a folder"),
        (["search", "--out", "x"], 2, "--vary is missing: name a setting and its values, such as lr=1e-4..1e-1:log"),
        (["search", "--out", "x", "--vary", "lr"], 2, "--vary: expected NAME=LOW..HIGH, "),
        (["search", "--out", "x", "--vary", "lr=0..1"], 2, "--vary: lr must be a number in (0, inf), got 0.0"),
        ([*SEARCH, "--trials", "0"], 2, "--trials must be an integer of at least 1, got 0"),
        ([*SEARCH, "--epochs", "0"], 2, "--epochs must be an integer from 1"),
        ([*SEARCH, "--range", "lr=0.1..1"], 2, "xcnn search has no flag --range; see xcnn search --help"),
        (["trian"], 2, 'Unknown command "trian". Did you mean "train"?'),
        (["train", "--model", "lenet5"], 2, "lenet5: images must have at least 12 x 12 pixels, got 8 x 8"),
        (["train", "--dataset", "mnist", "--data-dir", "nowhere"], 1, "nowhere"),
        (["train", "--dataset", "folder", "--data-dir", "nowhere"], 1, "error: there is no folder nowhere"),
        (["train", "--dataset", "folder"], 2, "--data-dir is missing: the data set 'folder' needs a folder"),
        (["train", "-o", "/dev/null/x"], 1, "cannot create the folder /dev/null/x: Not a directory"),
        (["predict", "x", "--index", "0,1.5"], 2, "error: --index takes an integer, got '1.5'"),
        (["predict", "nothing.safetensors", "--index", "1"], 1, "no checkpoint at nothing.safetensors"),
        (["evaluate", "nothing.safetensors"], 1, "no checkpoint at nothing.safetensors"),
        (["evaluate"], 2, "CHECKPOINT"),
        (["models", "resnet2"], 2, "unknown model 'resnet2'; did you mean 'resnet20'?"),
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
    assert "name their folder with --data-dir" in err


def test_debug_shows_the_traceback(xcnn):
    with pytest.raises(Exception, match="unknown model"):
        xcnn("train", "--model", "x", "--debug")


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


@pytest.mark.parametrize("command", [["train"], ["evaluate", "x"], ["predict", "x"], ["compare"], SEARCH])
def test_threads_are_at_least_one(xcnn, command):
    assert xcnn(*command, "--threads", 0) == (2, "", "error: --threads must be at least 1, got 0\n")


def test_deterministic_refuses_what_cannot_promise(xcnn):
    code, out, err = xcnn(*QUICK, "--deterministic", "--device", "strict")
    assert (code, out) == (2, "")
    assert err == "error: --deterministic: strict may round differently in every run; use --device cpu\n"
