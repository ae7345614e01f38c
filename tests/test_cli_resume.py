"""Interrupting and resuming runs on the command line: signals and exit codes, `--resume`, `--config`, and mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from commands import PORTABLE, QUICK, start

from xcnn.cli import main
from xcnn.runs import latest_run, read_settings

pytestmark = pytest.mark.usefixtures("sketches")
FLAGS = ["--model", "report", "--epochs", "100000", "--json", "--checkpoint-every", "1000epochs"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_code_and_a_checkpoint(xcnn, tmp_path, number, code):
    process = start("train", *FLAGS, "-o", "my run", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert re.search(r"^resume with: .*python\S* -m xcnn train --resume 'my run'$", err, re.MULTILINE)
    _, saved = sorted((tmp_path / "my run" / "checkpoints").glob("step-*"))
    assert str(saved.relative_to(tmp_path)) in err
    epochs = 1 + len(out.splitlines())
    code, _, err = xcnn("train", "--resume", "my run", "--epochs", epochs + 1, "--json")
    assert code == 0, err
    assert f"resuming from my run/checkpoints/{saved.name}" in err
    records = [json.loads(line) for line in (tmp_path / "my run" / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, epochs + 2))


def test_sigterm_before_the_first_step_ends_the_command(tmp_path):
    """While data are loaded: there is no step to finish and nothing to save; the exit code is the same."""
    script = """
import os
import re, signal, sys
from xcnn import data
from xcnn.cli import main
splits = data.splits
data.splits = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM) or splits(*a, **k)
sys.exit(main(["train", "--model", "report", "-o", "out"]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=PORTABLE, timeout=60)
    assert (done.returncode, done.stderr) == (143, "error: terminated\n")
    assert not (tmp_path / "out").exists()


def test_a_second_ctrl_c_ends_the_command_at_once(tmp_path):
    """Inside a step that would take a minute."""
    script = """
import sys, time
from xcnn import optim
from xcnn.cli import main
def endless(self):
    print("step", flush=True)
    time.sleep(60)
optim.Adam.step = endless
sys.exit(main(["train", "--model", "report", "-o", "out"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=PORTABLE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None  # it waits for the step
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130
    assert err.splitlines()[-1] == "error: interrupted"
    assert [path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*")] == ["step-00000000.safetensors"]


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


def test_resume_takes_the_settings_of_the_run_and_flags_go_before_them(xcnn, tmp_path):
    flags = [
        "--model",
        "report",
        "--epochs",
        "2",
        "--augment",
        "shift,flip",
        "--lr",
        "0.02",
        "-b",
        "100",
        "--seed",
        "4",
    ]
    assert xcnn("train", *flags, "-o", "run")[0] == 0
    before = json.loads((tmp_path / "run" / "config.json").read_text())
    assert before["augment"] == ["shift", "flip"]
    code, _, err = xcnn("train", "--resume", "run", "--epochs", "3", "--device", "cpu")
    assert code == 0
    assert "epochs was 2 and is 3" in err
    assert "epoch 3/3" in err
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == before | {"epochs": 3}
    (tmp_path / "run" / "config.json").write_text("{")  # the checkpoint knows them, too
    code, _, err = xcnn("train", "--resume", "run", "--epochs", "4")
    assert code == 0
    assert "cannot read the settings run/config.json" in err
    assert "using the settings in run/checkpoints/step-" in err
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == before | {"epochs": 4}


def test_a_run_that_is_done_says_so(xcnn, tmp_path):
    code, out, _ = xcnn("train", "--model", "report", "--epochs", "1", "-o", "run")
    assert (code, "since it was resumed" in out) == (0, False)
    before = (tmp_path / "run" / "config.json").read_text()
    code, out, err = xcnn("train", "--resume", "run")
    assert (code, "s since it was resumed on cpu" in out) == (0, True)
    assert "nothing is left to train; raise epochs" in err
    code, _, err = xcnn("train", "--resume", "run", "--lr", "0.5")
    sentence = "--lr was 0.003 and cannot become 0.5, as nothing is left to train; raise epochs, too"
    assert (code, err) == (2, f"error: {sentence}\n")
    assert (tmp_path / "run" / "config.json").read_text() == before
    assert xcnn("train", "--resume", "run", "--lr", "0.5", "--epochs", "2")[0] == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["lr"] == 0.5


def test_a_reader_that_leaves_does_not_end_a_run(tmp_path):
    """As with `| head -1`, for the JSON lines and for the final table."""
    for flags in (["--json"], []):
        folder = tmp_path / f"run{len(flags)}"
        argv = ["train", "--model", "report", "--epochs", "3", "-o", str(folder), *flags]
        with start(*argv, cwd=tmp_path, env=PORTABLE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            err = process.stderr.read()
            assert process.wait(timeout=60) == 141  # the results were not read
        assert "error" not in err
        assert len((folder / "history.jsonl").read_text().splitlines()) == 3


def test_resume_latest(xcnn, tmp_path):
    code, _, err = xcnn("train", "--resume", "latest")
    assert (code, err) == (2, "error: --resume: there is no run in runs/\n")
    for seed in ("1", "2"):
        assert xcnn("train", "--model", "report", "--epochs", "1", "--seed", seed)[0] == 0
    first, second = sorted((tmp_path / "runs").iterdir(), key=lambda run: run.stat().st_mtime_ns)
    assert latest_run() == second.relative_to(tmp_path)
    time.sleep(0.01)
    assert xcnn("train", "--resume", first, "--epochs", "2")[0] == 0
    assert latest_run() == first.relative_to(tmp_path)
    code, _, err = xcnn("train", "--resume", "latest", "--epochs", "3")
    assert f"resuming from runs/{first.name}/" in err


def test_settings_come_from_a_file(xcnn, tmp_path):
    (tmp_path / "my.toml").write_text('model = "report"\nepochs = 2\naugment = ["shift", "flip"]\nlr = 1\n')
    assert xcnn("train", "--config", "my.toml", "--epochs", "1", "-o", "a")[0] == 0
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (written["model"], written["epochs"], written["augment"], written["lr"]) == (
        "report",
        1,
        ["shift", "flip"],
        1.0,
    )
    assert xcnn("train", "--config", "a/config.json", "-o", "b")[0] == 0
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == written
    assert read_settings(tmp_path / "b" / "config.json") == {k: v for k, v in written.items() if v is not None}


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("x.json", "{", 1, "cannot read the settings x.json: "),
        ("x.json", "[]", 1, "it must hold a table of settings"),
        ("x.json", '{"epoch": 3}', 2, "unknown setting in x.json: 'epoch'; did you mean 'epochs'?"),
        ("x.json", '{"epochs": "many"}', 2, "epochs"),
        ("x.json", '{"epochs": [1, 2]}', 2, "epochs"),
        ("x.json", '{"epochs": {"a": 1}}', 2, "epochs"),
        ("x.json", '{"augment": "shft"}', 2, "unknown augmentation 'shft'; did you mean 'shift'?"),
        ("x.json", "[" * 60_000, 1, "cannot read the settings x.json"),
        ("x.json", " " * 70_000, 1, "it is longer than 65536 bytes"),
        ("x.toml", "epochs = ", 1, "cannot read the settings x.toml"),
        ("x.toml", "a = " + "[" * 60_000, 1, "cannot read the settings x.toml"),
        ("x.yaml", "epochs: 3", 2, "a file of settings must end in .json or .toml, got x.yaml"),
    ],
)
def test_files_that_hold_no_settings_are_refused(xcnn, tmp_path, name, content, code, message):
    (tmp_path / name).write_text(content)
    ended, out, err = xcnn("train", "--config", name, "-o", "out")
    assert (ended, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--resume", "none"], 2, "--resume: there is no run in none to resume"),
        (["--resume", "x", "-o", "y"], 2, "there is no run"),
        (["--resume", "x", "--config", "y.json"], 2, "--config cannot be given with --resume"),
        (["--config", "none.json"], 1, "cannot read the settings none.json: there is no such file"),
        (["--config", "."], 2, "must end in .json or .toml"),
        (["--checkpoint-every", "5"], 2, "must be a number and a unit, such as 500steps"),
        (["--checkpoint-every", "5 hours"], 2, "unknown unit of checkpoint_every 'hours'"),
        (["--checkpoint-every", "9" * 400 + "steps"], 2, "--checkpoint-every must be a number and a unit"),
        (["--epochs", "9" * 400], 2, "--epochs must be an integer from 1 to 1000000000, got 999"),
        (["--keep-checkpoints", "0"], 2, "--keep-checkpoints must be an integer from 1 to 1000000000, got 0"),
    ],
)
def test_mistakes_are_named(xcnn, tmp_path, argv, code, message):
    ended, out, err = xcnn("train", *argv)
    assert (ended, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_out_and_resume_contradict_each_other(xcnn, tmp_path):
    assert xcnn("train", "--model", "report", "--epochs", "1", "-o", "run")[0] == 0
    code, _, err = xcnn("train", "--resume", "run", "-o", "other")
    assert (code, err) == (2, "error: --out cannot be given with --resume: the run continues in its own folder\n")
