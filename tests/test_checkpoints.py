"""A folder of checkpoints: which are kept, which is restored, and what happens if files are damaged or missing."""

import dataclasses
import os
import signal
import stat
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from resumable import SCHEDULES, loader, make_trainer, small_digits

from xcnn import nn, optim
from xcnn._files import locked, replacing
from xcnn.data import Loader
from xcnn.errors import CheckpointError, DivergedError, UsageError, XcnnError
from xcnn.runs import Checkpoint, Checkpoints, save_checkpoint
from xcnn.runs.checkpoint import read_checkpoint
from xcnn.runs.saving import interval
from xcnn.training import Callback, EarlyStopping, Trainer


@pytest.fixture(scope="module")
def digits():
    return small_digits()


def trained(digits, folder, epochs=3, every="2steps", keep=3):
    checkpoints = Checkpoints(folder, every, keep)
    trainer = make_trainer(callbacks=[checkpoints])
    trainer.fit(loader(digits[0]), epochs)
    return trainer, checkpoints


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_the_last_few_are_kept(digits, tmp_path):
    trained(digits, tmp_path)
    assert names(tmp_path) == [f"step-{step:08d}.safetensors" for step in (8, 10, 12)]


@pytest.mark.parametrize(
    ("every", "steps"),
    [("5steps", [5, 10, 12]), ("1 step", list(range(1, 13))), ("2epochs", [8, 12]), ("1epoch", [4, 8, 12]),
     ("1000minutes", [12]), ("0.000001minutes", list(range(1, 13)))],
)  # fmt: skip
def test_how_often(digits, tmp_path, every, steps):
    trained(digits, tmp_path, every=every, keep=99)
    assert names(tmp_path) == [f"step-{step:08d}.safetensors" for step in (0, *steps)]


def test_a_script_goes_on_after_it_was_killed(digits, tmp_path):
    """The example of the docstring: the second process restores, and ends as an uninterrupted one."""

    class Killed(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            if trainer.steps == 7:
                raise RuntimeError("killed")

    first = make_trainer(callbacks=[Killed(), Checkpoints(tmp_path, "2steps")])
    with pytest.raises(RuntimeError):
        first.fit(loader(digits[0]), 3)
    checkpoints = Checkpoints(tmp_path, "2steps")
    second = make_trainer(callbacks=[checkpoints])
    found = checkpoints.restore(second)
    assert found is not None
    assert checkpoints.newest == tmp_path / "step-00000006.safetensors"
    assert (second.steps, second.unfinished) == (6, 2)
    second.fit(loader(digits[0]), until=3)
    alone, _ = trained(digits, tmp_path / "alone")
    for name, value in alone.model.state_dict().items():
        assert value.tobytes() == second.model.state_dict()[name].tobytes()
    assert make_trainer().history == []
    assert Checkpoints(tmp_path / "none").restore(make_trainer()) is None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "swapped"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(digits, tmp_path, damage):
    trained(digits, tmp_path)
    newest, before = (tmp_path / f"step-{step:08d}.safetensors" for step in (12, 10))
    content = newest.read_bytes()
    match damage:
        case "flipped":
            newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "truncated":
            newest.write_bytes(content[:-5])
        case "empty":
            newest.write_bytes(b"")
        case "swapped":
            newest.write_bytes(before.read_bytes())
    told, checkpoints = [], Checkpoints(tmp_path, "1step", keep=2)
    trainer = make_trainer(callbacks=[checkpoints])
    checkpoints.restore(trainer, told.append)
    assert trainer.steps == 10
    message, resumed = told
    assert resumed == f"resuming from {before}, after 10 steps"
    assert str(newest) in message
    assert "resuming from step-00000010.safetensors, which is older" in message
    trainer.fit(loader(digits[0]), 1)
    assert names(tmp_path) == ["step-00000011.safetensors", "step-00000012.safetensors"]


def test_a_removed_newest_checkpoint_is_not_reported(digits, tmp_path):
    """If it is removed, training resumes from the one before."""
    trained(digits, tmp_path)
    (tmp_path / "step-00000012.safetensors").unlink()
    told, trainer = [], make_trainer()
    Checkpoints(tmp_path).restore(trainer, told.append)
    path = tmp_path / "step-00000010.safetensors"
    assert (trainer.steps, told) == (10, [f"resuming from {path}, after 10 steps"])


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("none", "lr 0.01, not 0.3; weight_decay 0.0, not 0.5"),
        ("cosine", "weight_decay 0.0, not 0.5; initial_lr 0.01, not 0.3"),
    ],
)
def test_options_of_the_optimizer_that_have_no_effect_are_told(digits, tmp_path, schedule, says):
    first = make_trainer(schedule=schedule, callbacks=[Checkpoints(tmp_path)])
    first.fit(loader(digits[0]), 1)
    model = first.model
    rule = optim.Adam(model.parameters(), lr=0.3, weight_decay=0.5)
    told: list[str] = []
    for again in (Trainer(model, rule, schedule=SCHEDULES[schedule](rule)), make_trainer(schedule=schedule)):
        Checkpoints(tmp_path).restore(again, told.append)
        assert again.optimizer.param_groups[0]["weight_decay"] == 0.0
    resumed = f"resuming from {tmp_path / 'step-00000004.safetensors'}, after 4 steps"
    assert told == [
        resumed,
        f"the optimizer has the options of the checkpoint: {says}; change them after restore",
        resumed,
    ]


def test_damaged_checkpoints_do_not_count_as_kept(digits, tmp_path):
    """A damaged file does not count as one of those to keep: the good one before it stays."""
    trained(digits, tmp_path, keep=2)
    (tmp_path / "step-00000012.safetensors").write_bytes(b"damaged")
    trainer, checkpoints = make_trainer(), Checkpoints(tmp_path, keep=2)
    checkpoints.restore(trainer)
    trainer.steps += 1
    checkpoints.save(trainer)
    assert names(tmp_path) == ["step-00000010.safetensors", "step-00000011.safetensors"]


def test_an_error_says_that_every_checkpoint_is_damaged(digits, tmp_path):
    trained(digits, tmp_path, keep=2)
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* is complete: .*step-00000012"):
        Checkpoints(tmp_path).restore(make_trainer())


def test_weights_without_training_state_cannot_be_resumed(digits, tmp_path):
    trainer, checkpoints = trained(digits, tmp_path, keep=1)
    save_checkpoint(checkpoints.newest, trainer.model, Checkpoint())
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        Checkpoints(tmp_path).restore(make_trainer())


def test_a_checkpoint_of_another_optimizer_is_an_error_not_a_fallback(digits, tmp_path):
    trained(digits, tmp_path)
    with pytest.raises(CheckpointError, match="does it belong to another optimizer"):
        Checkpoints(tmp_path).restore(make_trainer("sgd"))


def test_ruined_weights_are_not_saved(digits, tmp_path):
    trainer, checkpoints = trained(digits, tmp_path)
    trainer.model[0].weight.data[0] = np.nan
    trainer.steps += 1
    with pytest.raises(DivergedError, match=r"step 13: 0\.weight is not finite"):
        checkpoints.save(trainer)
    assert names(tmp_path)[-1] == "step-00000012.safetensors"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step(digits, tmp_path, number):
    class Press(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            if trainer.steps == 3:
                os.kill(os.getpid(), number)

    trainer = make_trainer(callbacks=[Press(), Checkpoints(tmp_path, "1000steps")])
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        trainer.fit(loader(digits[0]), 2)
    if number == signal.SIGTERM:
        assert caught.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert trainer.interrupted
    assert names(tmp_path) == ["step-00000000.safetensors", "step-00000003.safetensors"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_does_not_wait_for_the_batch_in_the_making(digits, tmp_path, workers):
    """A slow source of images must not delay Ctrl-C; the state is that after the last step."""
    ended = threading.Event()

    class Slow:
        def __len__(self):
            return 20

        def __getitem__(self, index):
            if index >= 8 and not ended.is_set():
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                assert not ended.wait(60), "the batch was finished before the signal acted"
            return digits[0].x[index], digits[0].y[index]

    class Watch(Callback):
        def on_interrupt(self, trainer):
            ended.set()

    batches = Loader(Slow(), 4, shuffle=False, workers=workers, prefetch=0)
    trainer = make_trainer(callbacks=[Watch(), Checkpoints(tmp_path, "1000steps")])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches, 1)
    assert trainer.interrupted
    assert names(tmp_path)[-1] == f"step-{trainer.steps:08d}.safetensors"
    resumed = make_trainer(callbacks=[Checkpoints(tmp_path, "1000steps")])
    resumed.callbacks[0].restore(resumed)
    whole = make_trainer()
    for one in (resumed, whole):
        one.fit(batches, until=1)
    for name, array in whole.model.state_dict().items():
        np.testing.assert_array_equal(resumed.model.state_dict()[name], array, err_msg=name)


def test_every_field_of_a_checkpoint_survives(digits, tmp_path):
    about = Checkpoint("lenet5", (1, 8, 8), ("a", "b"), "digits", {"lr": 0.1}, {}, {"device": "cpu"})
    trainer = make_trainer()
    path = Checkpoints(tmp_path, about=about).save(trainer, {"epoch": 1})
    back = read_checkpoint(path)
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("state", "training", "metrics", "structure"):
            assert getattr(back, field.name) == getattr(about, field.name)
    assert back.metrics == {"epoch": 1}
    assert back.training.keys() == trainer.state_dict().keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("500", "must be a number and a unit, such as 500steps, 1epoch or 10minutes, got '500'"),
        ("often", "must be a number and a unit"),
        ("", "must be a number and a unit"),
        ("-1steps", "must be a number and a unit"),
        ("5 hours", "unknown unit of every 'hours'"),
        ("9" * 400 + "steps", "must be a number and a unit"),
        ("2step5", "must be a number and a unit"),
        ("0steps", "must be a whole number of steps above 0, or minutes above 0, got '0steps'"),
        ("1.5epochs", "must be a whole number of epochs"),
        ("0minutes", "minutes above 0"),
    ],
)
def test_invalid_intervals_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        interval(text)
    with pytest.raises(UsageError, match="Checkpoints: keep must be an integer of at least 1, got 0"):
        Checkpoints("x", keep=0)


def test_checkpoints_of_an_abandoned_course_do_not_count_as_kept(digits, tmp_path):
    """The checkpoint of step 12 is damaged and training resumes from 10: at 15, that of 12 does not count."""
    trained(digits, tmp_path, keep=2)
    (tmp_path / "step-00000012.safetensors").write_bytes(b"damaged")
    trainer, checkpoints = make_trainer(), Checkpoints(tmp_path, keep=2)
    checkpoints.restore(trainer)
    trainer.steps = 15
    checkpoints.save(trainer)
    assert names(tmp_path) == ["step-00000010.safetensors", "step-00000015.safetensors"]


def test_a_script_that_forgets_to_restore_overwrites_nothing(digits, tmp_path):
    trained(digits, tmp_path)
    before = names(tmp_path)
    with pytest.raises(UsageError, match=r"has checkpoints of an earlier run: call restore\(trainer\) first"):
        make_trainer(callbacks=[Checkpoints(tmp_path)]).fit(loader(digits[0]), 1)
    assert names(tmp_path) == before


def test_what_a_killed_process_left_is_removed_and_nothing_else(digits, tmp_path):
    left, precious = tmp_path / ".step-00000004.safetensors.ab_d3fgh.tmp", tmp_path / ".precious.tmp"
    left.write_bytes(b"half")
    precious.write_bytes(b"whole")
    trained(digits, tmp_path)
    assert not left.exists()
    assert precious.exists()


def test_two_processes_do_not_write_into_one_folder(digits, tmp_path):
    says = f"another process is writing checkpoints into {tmp_path}"
    with locked(tmp_path, "no"), pytest.raises(XcnnError, match=says):
        trained(digits, tmp_path)
    trained(digits, tmp_path)  # the first attempt has left no lock
    Checkpoints(tmp_path).restore(make_trainer())


def test_early_stopping_is_in_the_last_checkpoint_in_any_order(digits, tmp_path):
    for order in (1, -1):
        folder = tmp_path / str(order)
        callbacks = [EarlyStopping("train_loss", patience=1, min_delta=99), Checkpoints(folder, "99epochs")][::order]
        trainer = make_trainer(callbacks=callbacks)
        trainer.fit(loader(digits[0]), until=9)
        again = make_trainer()
        Checkpoints(folder).restore(again)
        assert again.history == trainer.history
        assert again.stop_reason == trainer.stop_reason


def test_weights_are_copied_once_on_their_way_to_the_file(tmp_path):
    """Measured by allocations in units of the weights, plus the check that all numbers are finite."""
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False))
    model.reset_parameters(0)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1))
    checkpoints, size = Checkpoints(tmp_path), model[0].weight.data.nbytes
    checkpoints.save(trainer)  # imports what it needs
    tracemalloc.start()
    try:
        state = trainer.state_dict()
        assert tracemalloc.get_traced_memory()[1] < 1.05 * size
        del state
        tracemalloc.reset_peak()
        checkpoints.save(trainer)
        assert tracemalloc.get_traced_memory()[1] < 1.35 * size
    finally:
        tracemalloc.stop()


def test_what_cannot_be_saved_is_named(digits, tmp_path):
    class Odd(Callback):
        value: object = tmp_path

        def state_dict(self):
            return {"it": self.value}

    for value, says in (
        (tmp_path, "callbacks.Odd.it cannot be saved in a checkpoint"),
        (np.array(["a"]), "an array of <U1"),
    ):
        odd = Odd()
        odd.value = value
        with pytest.raises(UsageError, match=says):
            make_trainer(callbacks=[odd, Checkpoints(tmp_path / "x")]).fit(loader(digits[0]), 1)
    assert not list((tmp_path / "x").glob("step-*"))


def test_files_and_folder_are_synced_in_order(tmp_path, monkeypatch):
    """What a power failure leaves depends on this order, and no other test notices it."""
    calls, fsync, rename = [], os.fsync, Path.replace

    def synced(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(self, target):
        calls.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("content")
    assert calls == ["file", "rename", "folder"]


def test_a_file_has_the_mode_of_any_new_file(tmp_path, monkeypatch):
    """The umask of the process is not set, even for a moment: other threads may be creating files."""
    (tmp_path / "plain").touch()
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    with replacing(tmp_path / "x") as temporary:
        temporary.unlink()
        temporary.touch(0o600)
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_restoring_takes_the_memory_of_the_weights_twice(tmp_path):
    """Once for the file, and once for the model: its old weights are given up one by one, as the new ones arrive."""

    def trainer():
        model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(16)))
        return Trainer(model, optim.SGD(model.parameters(), lr=0.1), "mse_loss")

    saved = Checkpoints(tmp_path)
    saved.save(trainer())
    assert saved.newest is not None
    tracemalloc.start()
    Checkpoints(tmp_path).restore(trainer())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.3 * saved.newest.stat().st_size
