"""What the command says without training: `xcnn models`, `datasets` and `devices`, help, and completion."""

import json
import os
import subprocess
import sys

import pytest
from commands import start

from xcnn import data, models, optim
from xcnn.runs import SETTINGS


def test_the_help_of_train_has_every_setting_under_a_heading(xcnn):
    code, out, _ = xcnn("train", "--help")
    assert code == 0
    heads = [out.index(f" {head} ") for head in ("Data", "Network and training", "The run")]
    assert heads == sorted(heads)
    assert all(f"--{name.replace('_', '-')} " in out for name in SETTINGS)
    assert "0.*,2.*" in out  # the asterisks are not markup


def test_completion_can_be_installed(tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    command = [sys.executable, "-m", "xcnn", "--install-completion"]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    script = next(path for path in tmp_path.rglob("*") if path.is_file() and path.name == "xcnn")
    ask = f"source '{script}'; COMP_WORDS=(xcnn train --label); COMP_CWORD=2; _xcnn; echo \"${{COMPREPLY[@]}}\""
    answer = subprocess.run(["bash", "-c", ask], check=True, capture_output=True, text=True, timeout=60)
    assert answer.stdout.split() == ["--label-smoothing"]


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
    cells = {line.split()[0]: line.split()[1:4] for line in out.splitlines() if line}
    assert cells["model"] == ["images", "classes", "parameters"]
    assert cells["lenet5"] == ["1x28x28", "10", "61,706"]
    assert cells["vgg_small"] == ["3x32x32", "10", "1,116,970"]
    assert cells["resnet50"] == ["3x224x224", "1000", "25,557,032"]
    assert "Parameters are for these classes and images. Larger images than 32x32\nneed no more" in out
    code, out, _ = xcnn("models", "--shape", "3", "224", "224", "--json")
    large = {record["model"]: record for record in map(json.loads, out.splitlines())}
    assert large["vgg_small"]["parameters"] == 1_116_970
    assert large["vgg_small"]["shape"] == [3, 224, 224]
    code, out, _ = xcnn("models", "vgg_small")
    assert out.splitlines()[2].split()[:3] == ["0", "Conv2d", "1x32x32x32"]


def test_help_names_every_choice(xcnn):
    """The help of train lists all names of the tables."""
    code, out, _ = xcnn("train", "--help")
    assert code == 0
    words = out.replace("│", " ").split()
    for table in (optim.OPTIMIZERS, optim.SCHEDULES, data.AUGMENTATIONS):
        for name in table:
            assert any(word.strip(".,:;") == name for word in words), name


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["predict", "--help"]])
def test_help_and_version(tmp_path, argv):
    process = start(*argv, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out
    assert err == ""
