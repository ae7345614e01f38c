"""The command with broken streams, control characters in names, unusual terminals and early signals."""

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import PORTABLE
from PIL import Image

import xcnn.cli
from xcnn import models
from xcnn.errors import UsageError, printable
from xcnn.runs import Checkpoint, save_checkpoint

pty = pytest.importorskip("pty", reason="pseudo-terminals are of POSIX")
HERE = [sys.executable, "-m", "xcnn"]
SEVERAL = [
    sys.executable,
    "-c",
    "import json, sys; from xcnn.cli import main; sys.exit(any(map(main, json.loads(sys.argv[1]))))",
]
"""Runs several commands, given as JSON, in one process; ends with 1 if one of them fails."""

TRAIN = ["train", "--model", "report", "--epochs", "30", "--out", "run"]


def shell(command, folder):
    """Run a line of `sh` in which `xcnn` is the command; return (exit code, stdout, stderr)."""
    line = f'xcnn() {{ "{sys.executable}" -m xcnn "$@"; }}; {command}'
    done = subprocess.run(["sh", "-c", line], cwd=folder, env=PORTABLE, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def terminal():
    """Yield a terminal to write to, and a list that holds its output after the `with` block."""
    ours, theirs = pty.openpty()
    shown = []

    def read():
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while chunk := os.read(ours, 1 << 16):
                shown.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield theirs, shown
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


def epochs(folder):
    return len((folder / "run" / "history.jsonl").read_text().splitlines())


# Streams that break


def test_a_reader_that_leaves_ends_the_command_as_sigpipe_would(tmp_path):
    with subprocess.Popen([*HERE, "models", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


@pytest.mark.parametrize("json_lines", [[], ["--json"]])
def test_a_run_whose_terminal_is_lost_goes_on_to_its_end(tmp_path, json_lines):
    """As with `2>&1 | head -n 2`: both streams break; the run completes, and the exit code says that output is lost."""
    command = [*HERE, *TRAIN, *json_lines]
    with subprocess.Popen(
        command, cwd=tmp_path, env=PORTABLE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=120) == 141
    assert epochs(tmp_path) == 30
    assert (tmp_path / "run" / "confusion.png").exists()


def test_a_run_without_its_stderr_is_a_success(tmp_path):
    with subprocess.Popen(
        [*HERE, *TRAIN], cwd=tmp_path, env=PORTABLE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stderr.close()
        out = process.stdout.read()
        assert process.wait(timeout=120) == 0
    assert b"test accuracy" in out
    assert epochs(tmp_path) == 30


def test_a_run_whose_terminal_hangs_up_goes_on_to_its_end(tmp_path):
    """With a progress bar, which a thread draws."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*HERE, *TRAIN], cwd=tmp_path, env=PORTABLE, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    os.read(ours, 1)
    os.close(ours)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, epochs(tmp_path)) == (0, 30)
    assert b"test accuracy" in out


@pytest.mark.parametrize(
    ("command", "code", "err"),
    [
        ("xcnn models >&-", 1, "error: cannot write to stdout: it is closed\n"),
        ("xcnn models --help >&-", 1, "error: cannot write to stdout: it is closed\n"),
        ("xcnn models >&- 2>&-", 1, ""),
        ("xcnn models 2>&- >/dev/null", 0, ""),
        ("xcnn models <&- >/dev/null", 0, ""),
        ("xcnn nothing 2>&-", 2, ""),
        pytest.param("xcnn models >/dev/full", 1, "error: cannot write to stdout: No space left on device\n",
                     marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")),
        pytest.param("xcnn nothing 2>/dev/full", 2, "",
                     marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")),
    ],
)  # fmt: skip
def test_streams_that_are_closed_or_full(tmp_path, command, code, err):
    assert shell(command, tmp_path) == (code, "", err)


def test_no_file_is_opened_in_place_of_a_closed_stream(tmp_path):
    """Output to the file descriptor of stderr, such as a library's, does not end up in a checkpoint."""
    code, _, _ = shell("xcnn train --model report --epochs 1 --out run 2>&- <&- | cat", tmp_path)
    assert code == 0
    assert shell("xcnn evaluate run --json", tmp_path)[0] == 0


def test_json_lines_reach_stdout_while_a_bar_is_on_the_terminal(tmp_path):
    """And the lines on the terminal are those of a script, and fit it."""
    environment = PORTABLE | {"COLUMNS": "80", "TERM": "xterm"}
    with terminal() as (screen, shown):
        command = [*HERE, *TRAIN, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=screen)
    assert [json.loads(line).get("epoch") for line in done.stdout.splitlines()] == [*range(1, 31), None]
    lines = [line.rpartition("\x1b[2K")[2] for line in b"".join(shown).decode().split("\r\n")]
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in lines if "━" not in line]
    assert sum(line.startswith("network  report: 179 parameters in 5 layers") for line in lines) == 1
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == [f"{i}/30" for i in range(1, 31)]
    assert max(map(len, lines)) <= 80


def test_json_lines_are_whole_on_a_terminal_that_shows_a_bar_too(tmp_path):
    with terminal() as (screen, shown):
        subprocess.run([*HERE, *TRAIN, "--json"], cwd=tmp_path, env=PORTABLE, stdout=screen, stderr=screen, check=True)
    lines = [line.rpartition("\x1b[2K")[2] for line in b"".join(shown).decode().split("\r\n")]  # the rest of each
    assert [json.loads(line).get("epoch") for line in lines if line.startswith("{")] == [*range(1, 31), None]


# Text that a terminal would obey

HOSTILE = {
    "cursor": "\x1b[2J\x1b]0;owned\x07",
    "eight bits": "\x9b31m",
    "lines": "one\ntwo\r\nthree\x85four\u2028five",
    "bidi": "\u202egnp.exe\u2066",
    "hidden": "a\u200bb\ufeff\u2060",
    "markup": "[bold red]x[/] [link=http://x]y[/link] :warning:",
}
WRONG = {chr(c) for c in [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]} - {"\n"}
WRONG |= set("\u200b\u2028\u2029\u2060\ufeff\u200e\u200f\u061c")


def harmless(text, lines):
    assert not WRONG & set(text), ascii(text)
    assert text.count("\n") == lines, ascii(text)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with the hostile class names above."""
    classes = (*(f"{name}: {text}" for name, text in HOSTILE.items()), *"6789")
    path = tmp_path / "stranger.safetensors"
    save_checkpoint(path, models.build("report", (1, 8, 8)), Checkpoint("report", (1, 8, 8), classes, "digits"))
    return path


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_names_of_classes_and_images_reach_the_terminal_as_text(xcnn, checkpoint, text):
    name = text.replace("/", "_") + ".png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(name)
    code, out, err = xcnn("predict", checkpoint, name, "--pictures", "p")
    assert code == 0, err
    harmless(out, 12)
    harmless(err, 1)
    assert printable(name) in out
    for known in HOSTILE.values():
        assert printable(known) in out
    Path(name).write_bytes(b"no image")
    code, out, err = xcnn("predict", checkpoint, name)
    assert (code, out) == (1, "")
    harmless(err, 1)
    assert printable(name) in err


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_errors_that_quote_names_are_text(xcnn, checkpoint, text):
    for argv in (
        ["evaluate", checkpoint],  # the classes differ from those of the data set
        ["evaluate", text],
        ["train", "--model", text],
        ["train", text],
        ["train", "--epochs", text],
        ["train", f"--{text}"],
        [text],
    ):
        code, out, err = xcnn(*argv)
        assert (code, out) in ((1, ""), (2, ""))
        harmless(err, 1)


def test_names_are_escaped_in_json(xcnn, checkpoint):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("x.png")
    code, out, _ = xcnn("predict", checkpoint, "x.png", "--json")
    assert code == 0
    harmless(out, 1)
    assert set(HOSTILE.values()) <= {name.partition(": ")[2] for name in json.loads(out)["probabilities"]}


def test_escapes_leave_what_people_write():
    for text in (
        "T-shirt/top",
        "Kätzchen",
        "猫",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "👩\u200d🔬",
        "a\\b",
    ):
        assert printable(text) == text


def test_only_the_console_prints():
    """A command that prints directly could print unescaped text of a file."""
    for path in Path(xcnn.cli.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if path.name == "_console.py":
            assert "rich.table" in imported
            continue
        assert not {name for name in imported if name and name.startswith("rich")}, path
        assert "print" not in names, path


# Terminals and locales of every kind


@pytest.mark.parametrize("setting", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_any_encoding_will_do(tmp_path, setting):
    environment = PORTABLE | setting | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [*SEVERAL, json.dumps([["train", "--help"], ["models"], ["models", "lenet5"], ["datasets"]])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    for word in (b"--batch-size", b"vgg_small", b"Conv2d", b"fashion-mnist"):
        assert word in done.stdout


def test_what_an_encoding_does_not_have_is_written_as_escapes(tmp_path, checkpoint):
    classes = (*"猫é", *"23456789")
    save_checkpoint(checkpoint, models.build("report", (1, 8, 8)), Checkpoint("report", (1, 8, 8), classes, "digits"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    environment = PORTABLE | {"PYTHONIOENCODING": "ascii"}
    command = [*HERE, "predict", str(checkpoint), "x.png"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert rb"\u732b" in done.stdout
    assert rb"\xe9" in done.stdout


@pytest.mark.parametrize("columns", ["1", "20"])
def test_narrow_terminals(tmp_path, columns):
    command = [*SEVERAL, json.dumps([["models"], ["models", "lenet5"], ["datasets"], ["models", "--help"]])]
    with terminal() as (screen, shown):
        done = subprocess.run(command, cwd=tmp_path, env=PORTABLE | {"COLUMNS": columns}, stdout=screen, stderr=screen)
    assert done.returncode == 0
    assert len(b"".join(shown)) > 2000


@pytest.mark.parametrize(
    ("setting", "bold"), [({"NO_COLOR": "1", "TERM": "xterm-256color"}, True), ({"TERM": "dumb"}, False)]
)
def test_no_colour_means_none(tmp_path, setting, bold):
    """NO_COLOR is about colour only: no-color.org says that it does not disable bold text, underlines and italics."""
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "COLORTERM")}
    with terminal() as (screen, chunks):
        for command, code in (("models", 0), ("nothing", 2)):
            done = subprocess.run([*HERE, command], env=environment | setting, stdout=screen, stderr=screen)
            assert done.returncode == code
    shown = b"".join(chunks)
    assert b"lenet5" in shown
    assert b"error:" in shown
    assert b"\x1b[3" not in shown
    assert b"\x1b[1;3" not in shown
    assert (b"\x1b[1m" in shown) == bold


# Signals that come early


@pytest.mark.parametrize("module", ["numpy", "cyclopts"])
def test_an_interrupt_while_modules_load(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [*HERE, "models"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "error: interrupted\n"


# What is wrong with a setting, in the words of the command


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("batch_size must be at least 1, got 0", "--batch-size must be at least 1, got 0"),
        ("the images are too small", "--batch-size: the images are too small"),
        ("batch_sizes are many", "--batch-size: batch_sizes are many"),
    ],
)
def test_a_setting_is_called_by_its_flag(xcnn, monkeypatch, message, line):
    def refuse(*arguments, **options):
        raise UsageError(message, setting="batch_size")

    monkeypatch.setattr(sys.modules["xcnn.cli.datasets"], "print_table", refuse)
    assert xcnn("datasets") == (2, "", f"error: {line}\n")
