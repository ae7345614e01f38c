"""Whole runs that end early and go on: `train(resume=True)` and `xcnn train --resume`, as people use them."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kill_runs import KINDS, result
from PIL import Image

from xcnn import optim
from xcnn.errors import CheckpointError, UsageError, XcnnError
from xcnn.runs import SETTINGS, Config, Reporter, load_checkpoint, recorded_settings, restore, train
from xcnn.runs.checkpoint import read_checkpoint
from xcnn.runs.resume import differences
from xcnn.runs.settings import check, plain
from xcnn.training import Callback

CONFIG = Config(model="report", epochs=3, augment=("shift",), validation=0.2, checkpoint_every="5steps", opt="sgd")
"""18 steps an epoch."""

KILLS = os.environ.get("XCNN_KILLS", "25")
"""Of each kind of run."""


class Press(Reporter):
    """Presses Ctrl-C during a step, and records the notes."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.told = step, []

    def on_batch_end(self, trainer, epoch, batch, metrics):
        if trainer.steps == self.step:
            os.kill(os.getpid(), signal.SIGINT)

    def on_note(self, message):
        self.told.append(message)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    train(CONFIG, folder)
    return result(folder)


@pytest.fixture
def stopped(tmp_path):
    """A run that was interrupted in its second epoch."""
    press = Press(25)
    ended = train(CONFIG, tmp_path / "run", [press])
    assert ended.interrupted == 130
    assert ended.checkpoint == tmp_path / "run" / "checkpoints" / "step-00000025.safetensors"
    assert ended.note == "interrupted after 1 of 3 epochs"
    return tmp_path / "run"


def test_a_resumed_run_ends_as_an_uninterrupted_one(stopped, alone):
    press = Press()
    ended = train(CONFIG, stopped, [press], resume=True)
    assert result(stopped) == alone
    assert ended.test_accuracy is not None
    newest = stopped / "checkpoints" / "step-00000025.safetensors"
    assert press.told == [f"resuming from {newest} (epoch 2, 7 of 18 batches done)"]


def test_a_run_that_is_done_is_tested_again(stopped, alone):
    first = train(CONFIG, stopped, resume=True)
    again = train(CONFIG, stopped, resume=True)
    assert again.test_loss == first.test_loss
    assert len(again.history) == 3
    assert result(stopped) == alone


def test_without_a_checkpoint_it_starts_again(tmp_path, alone):
    """A kill before the first checkpoint leaves the settings, and maybe some history."""
    folder = tmp_path / "run"
    train(CONFIG, folder)
    for path in [path for path in folder.iterdir() if path.name != "config.json"]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    (folder / "history.csv").write_text("epoch,train_loss\n1,0.5\n")
    press = Press()
    train(CONFIG, folder, [press], resume=True)
    assert press.told == [f"{folder} has no checkpoint yet: starting from the beginning"]
    assert result(folder) == alone


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_lost_best_checkpoint_is_reported(tmp_path, damage):
    folder = tmp_path / "run"
    train(CONFIG, folder, [Press(40)])
    best = folder / "best.safetensors"
    best.unlink() if damage == "missing" else best.write_bytes(best.read_bytes()[:-1])
    press = Press()
    train(CONFIG, folder, [press], resume=True)
    assert any(str(best) in message and "the next epoch replaces it" in message for message in press.told)
    assert best.exists()


def test_a_best_checkpoint_newer_than_the_newest_is_found_again(tmp_path, alone):
    """The kill came between the best weights of epoch 2 and the next checkpoint."""
    folder = tmp_path / "run"
    train(CONFIG, folder)
    for path in sorted((folder / "checkpoints").glob("step-*"))[1:]:
        path.unlink()
    train(CONFIG, folder, resume=True)
    assert result(folder) == alone


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_every_setting_says_whether_it_may_change(name):
    """A reason against it, or its consequence, or neither if no number depends on it; never both."""
    assert not (SETTINGS[name].fixed and SETTINGS[name].change)
    if not (SETTINGS[name].fixed or SETTINGS[name].change):
        assert name in ("data_dir", "skip_broken", "workers", "device", "checkpoint_every", "keep_checkpoints")


CHANGED = {
    "dataset": "mnist", "image_size": 16, "resize": "pad", "background": "black", "workers": 1,
    "model": "vgg_small", "model_options": {"filters": 2}, "epochs": 4, "batch_size": 32, "opt": "adam",
    "lr": 0.001, "momentum": 0.8, "wd": 0.1, "schedule": "cosine", "warmup": 3, "label_smoothing": 0.1,
    "clip_norm": 1.0, "augment": (), "validation": 0.1, "patience": 5, "monitor": "val_accuracy",
    "class_weight": "balanced", "ema": 0.9, "accumulate": 3, "sync_batch_norm": True,
    "normalize": True, "init": "other", "freeze": ("0.*",),
    "seed": 1,
    "opt_options": {"dampening": 0.1}, "checkpoint_every": "9steps", "keep_checkpoints": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_setting_is_reported_or_refused(stopped, name, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    changed = dataclasses.replace(CONFIG, **{name: CHANGED[name]})
    press = Press()
    if name in ("image_size", "resize", "background"):  # digits have one size
        found = read_checkpoint(stopped / "checkpoints" / "step-00000025.safetensors")
        with pytest.raises(UsageError, match=f"{name} cannot change") as caught:
            differences(found, changed, found.origin)
        assert caught.value.setting == name
    elif not SETTINGS[name].fixed:
        ended = train(changed, stopped, [press], resume=True)
        said = [message for message in press.told if message.startswith(f"{name} was ")]
        assert len(said) == bool(SETTINGS[name].change)
        assert len(ended.history) == changed.epochs
        assert json.loads((stopped / "config.json").read_text())[name] == plain(changed)[name]
    else:
        with pytest.raises(UsageError, match=rf"{name} cannot change in a resumed run, as .*: it was .*, now "):
            train(changed, stopped, [press], resume=True)
        assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_another_monitor_chooses_among_the_epochs_to_come(stopped):
    train(dataclasses.replace(CONFIG, epochs=2), stopped, resume=True)
    ended = train(dataclasses.replace(CONFIG, epochs=4, monitor="val_accuracy"), stopped, resume=True)
    values = [record["val_accuracy"] for record in ended.history[2:]]
    epoch = 3 + values.index(max(values))
    assert (ended.best_epoch, ended.weights) == (epoch, f"epoch {epoch} of 4, best val_accuracy {max(values):.4g}")


def test_results_without_checkpoints_are_not_written_over(tmp_path):
    """A user may have removed the checkpoints to save space."""
    folder = tmp_path / "run"
    train(CONFIG, folder)
    shutil.rmtree(folder / "checkpoints")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"has best\.safetensors, but no checkpoint to resume from; start a new run"
    ):
        train(CONFIG, folder, resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_epochs_cannot_be_fewer_than_have_begun(stopped):
    with pytest.raises(UsageError, match="epochs must be at least 2, as the run has begun epoch 2, got 1"):
        train(dataclasses.replace(CONFIG, epochs=1), stopped, resume=True)


def test_changed_settings_outlive_the_process(stopped):
    """Killed before its next checkpoint, a run that was resumed with other settings still has them."""
    changed = dataclasses.replace(CONFIG, epochs=5, lr=0.001, checkpoint_every="9epochs")

    class Killed(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        train(changed, stopped, [Killed()], resume=True)
    assert check(Config(**recorded_settings(stopped))) == dataclasses.replace(changed, accumulate=1)
    (stopped / "config.json").write_text("{")  # then those of the checkpoint
    assert check(Config(**recorded_settings(stopped))) == dataclasses.replace(CONFIG, accumulate=1)


def test_a_lost_best_checkpoint_of_a_run_that_is_done(tmp_path):
    folder = tmp_path / "run"
    train(CONFIG, folder)
    (folder / "best.safetensors").write_bytes(b"damaged")
    press = Press()
    ended = train(CONFIG, folder, [press], resume=True)
    assert ended.checkpoint == folder / "checkpoints" / "step-00000054.safetensors"
    assert any(message.endswith("testing the last weights") for message in press.told)


def test_the_folder_of_a_run_stands_for_its_best_weights_or_its_newest_checkpoint(tmp_path):
    folder = tmp_path / "run"
    train(dataclasses.replace(CONFIG, validation=0), folder)
    assert not (folder / "best.safetensors").exists()
    newest = folder / "checkpoints" / "step-00000069.safetensors"
    assert bits(load_checkpoint(folder)) == bits(load_checkpoint(newest))
    before = bits(load_checkpoint(folder / "checkpoints" / "step-00000065.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert bits(load_checkpoint(folder)) == before
    assert restore(folder).predict(indices=[0])[0].probabilities.shape == (10,)


def bits(checkpoint):
    return {name: array.tobytes() for name, array in checkpoint.state.items()}


def test_weight_decay_does_not_bring_back_the_rate_of_the_start(tmp_path):
    """After a schedule has lowered it."""
    config = dataclasses.replace(CONFIG, schedule="plateau", lr=1e-6, epochs=40)

    class Rates(Callback):
        seen = ()

        def on_batch_end(self, trainer, epoch, batch, metrics):
            self.seen = (
                *self.seen,
                (trainer.optimizer.param_groups[0]["lr"], trainer.optimizer.param_groups[0]["weight_decay"]),
            )

    first, second = Rates(), Rates()
    train(config, tmp_path / "run", [first, Press(18 * 14)])
    assert first.seen[-1][0] < config.lr
    train(dataclasses.replace(config, wd=0.25), tmp_path / "run", [second, Press(18 * 14 + 2)], resume=True)
    assert second.seen[0] == (first.seen[-1][0], 0.25)


def test_a_changed_rate_holds_from_there_on(stopped, monkeypatch):
    """From the first step on."""
    rates, step = [], optim.SGD.step
    monkeypatch.setattr(optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))

    copy = stopped.with_name("copy")
    shutil.copytree(stopped, copy)
    train(CONFIG, copy, resume=True)
    before = rates[:]
    rates.clear()
    train(dataclasses.replace(CONFIG, lr=CONFIG.lr * 2), stopped, resume=True)
    np.testing.assert_allclose(rates, 2 * np.asarray(before), rtol=1e-12)


def test_more_epochs_and_more_patience_go_on_after_the_end(tmp_path):
    config = dataclasses.replace(CONFIG, lr=1e-9, patience=1, schedule="constant", epochs=6)
    ended = train(config, tmp_path / "run")
    assert "no better val_loss" in ended.note
    done = len(ended.history)
    assert done < 6
    assert len(train(config, tmp_path / "run", resume=True).history) == done
    longer = dataclasses.replace(config, patience=9)
    assert len(train(longer, tmp_path / "run", resume=True).history) == 6
    with pytest.raises(UsageError, match="epochs must be at least 6, as the run has begun epoch 6, got 5"):
        train(dataclasses.replace(longer, epochs=5), tmp_path / "run", resume=True)


def test_another_device_says_what_that_means(stopped):
    pytest.importorskip("array_api_strict")
    press = Press()
    train(dataclasses.replace(CONFIG, device="strict"), stopped, [press], resume=True)
    (said,) = [message for message in press.told if "device was cpu and is strict" in message]
    assert "rounding may differ, so the results may not be bitwise identical" in said


def test_other_images_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for k in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8)).save(tmp_path / "pets" / kind / f"{k}.png")
    config = dataclasses.replace(
        CONFIG, dataset="folder", data_dir=tmp_path / "pets", image_size=8, batch_size=2, checkpoint_every="2steps"
    )
    train(config, tmp_path / "run", [Press(3)])
    shutil.move(tmp_path / "pets", tmp_path / "moved")
    moved = dataclasses.replace(config, data_dir=tmp_path / "moved")
    assert train(moved, tmp_path / "run", [Press(5)], resume=True).interrupted
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "moved" / "cats" / "0.png")
    with pytest.raises(UsageError, match="the training images of folder differ from those of the run") as caught:
        train(moved, tmp_path / "run", resume=True)
    assert caught.value.setting == "data_dir"


def pets(folder, number, value):
    """Write one image of each of two classes."""
    for kind in ("cats", "dogs"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(folder / kind / f"{number}.png")


def test_other_test_or_validation_images_are_noticed(tmp_path):
    """Changed test images are reported; the validation images, which select the best epoch, must be the same."""
    for part, count in (("train", 10), ("test", 2)):
        for number in range(count):
            pets(tmp_path / "pets" / part, number, 20 * number)
    config = dataclasses.replace(
        CONFIG, dataset="folder", data_dir=tmp_path / "pets", image_size=8, batch_size=2, checkpoint_every="2steps"
    )
    train(config, tmp_path / "run", [Press(3)])
    press = Press(5)
    train(config, tmp_path / "run", [press], resume=True)
    assert [said.startswith("pets: ") for said in press.told] == [True] * 3 + [False]  # the folder; where it goes on
    pets(tmp_path / "pets" / "test", 2, 90)
    press = Press(7)
    train(config, tmp_path / "run", [press], resume=True)
    said = "the test images of folder have changed: results before and after cannot be compared"
    assert said in press.told
    found = read_checkpoint(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    here = {**found.origin, "images": {**found.origin["images"], "validation": "other"}}
    with pytest.raises(UsageError, match="the validation images of folder differ"):
        differences(found, config, here)


def test_there_must_be_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"there is no run in .* to resume"):
            train(CONFIG, folder, resume=True)
    with pytest.raises(UsageError, match="folder must be that of the run to resume, got None"):
        train(CONFIG, resume=True)
    train(CONFIG, tmp_path / "run", [Press(1)])
    with pytest.raises(UsageError, match="already holds a run; resume it, or choose another folder"):
        train(CONFIG, tmp_path / "run")


def test_all_checkpoints_damaged_is_an_error_and_changes_nothing(stopped):
    for path in (stopped / "checkpoints").glob("step-*"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        train(CONFIG, stopped, resume=True)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


# Two runs in one folder


def test_a_folder_is_for_one_run_at_a_time(tmp_path):
    script = f"""
import sys, time
from pathlib import Path
from xcnn._files import locked
with locked(Path({str(tmp_path)!r}), "no"):
    print("locked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(XcnnError, match=f"another run is using {tmp_path}; wait for it, or stop it"):
                train(CONFIG, tmp_path)
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        finally:
            holder.kill()
    assert train(CONFIG, tmp_path).test_accuracy is not None  # the kill has left no lock


def test_killed_and_resumed_runs_end_as_an_uninterrupted_one():
    script = Path(__file__).with_name("kill_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", KILLS], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ends = [
        line.split(":")[0] for line in done.stdout.splitlines() if line.endswith("all ended as the uninterrupted one")
    ]
    assert ends == list(KINDS)


def test_settings_of_a_run_are_read_with_suspicion(tmp_path):
    (tmp_path / "config.json").write_text('{"epochs": 3, "evil": 1}')
    with pytest.raises(UsageError, match=r"unknown setting in .*config\.json: 'evil'"):
        recorded_settings(tmp_path)


def test_a_new_run_removes_what_a_run_killed_at_its_first_write_left(tmp_path):
    left = tmp_path / ".config.json.3e83df50.tmp"
    left.touch()
    train(dataclasses.replace(CONFIG, epochs=1), tmp_path)
    assert not left.exists()
