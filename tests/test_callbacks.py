"""Which callbacks `fit` calls and when, also after errors; the history file; copies of a trainer."""

import copy
import csv
import itertools
import json
import os
import pickle

import numpy as np
import pytest
from resumable import batches, loader, make_trainer, small_digits

from xcnn import data, optim
from xcnn.errors import ShapeError, UsageError, WriteError
from xcnn.runs import Checkpoints, Reporter
from xcnn.training import (
    LOSSES,
    Callback,
    EarlyStopping,
    HistoryFile,
    KeepBest,
    Loss,
    Trainer,
    class_weight,
    confusion_matrix,
    loss_named,
    mean_iou,
)


@pytest.fixture(scope="module")
def digits():
    return small_digits()


class Watch(Callback):
    """Records the names of the calls and the numbers of the batches."""

    def __init__(self):
        self.seen, self.batches = [], []

    def on_fit_start(self, trainer, batches, epochs):
        self.seen.append("start")
        self.batches.append(batches)

    def on_epoch_end(self, trainer, record):
        self.seen.append("epoch")

    def on_fit_end(self, trainer):
        self.seen.append("end")


def test_batches_of_a_generator_are_not_counted(digits):
    watch = Watch()
    trainer = make_trainer(callbacks=[watch])
    (record,) = trainer.fit(batch for batch in batches(digits[0]))
    trainer.fit(batches(digits[0]))
    assert record["train_loss"] > 0
    assert watch.batches == [None, 4]


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (3, r"fit: train must be a Loader, a Dataset, .* or batches \(x, y\), got int"),
        (None, "fit: train must be a Loader"),
        ([1, 2], r"fit: train must yield batches \(x, y\), got int"),
        ([(1, 2, 3)], r"fit: train must yield batches \(x, y\), got a tuple of 3"),
    ],
)
def test_training_data_of_a_wrong_type_is_named(train, says):
    with pytest.raises(UsageError, match=says):
        make_trainer().fit(train)


def test_a_method_that_nothing_calls_is_refused():
    says = r"^unknown method of the callback Mine 'on_epochs_end'; did you mean 'on_epoch_end'\?"
    with pytest.raises(UsageError, match=says):

        class Mine(Callback):
            def on_epochs_end(self, trainer, record):
                pass

    with pytest.raises(UsageError, match="unknown method of the callback Noted 'on_note'"):

        class Noted(Callback):  # not a Reporter
            def on_note(self, message):
                pass

    for wrong in (None, "on_trial", [3]):
        with pytest.raises(UsageError, match="Tuned: events must be a tuple of names of methods, got"):
            type("Tuned", (Callback,), {"events": wrong})

    class Tuning(Callback):
        events = ("on_trial",)
        on_gpu = True

        def on_trial(self, number):
            pass

    class Quiet(Tuning, Reporter):
        def on_trial(self, number):
            pass

        def on_note(self, message):
            pass

    Quiet().on_trial(3)


def test_wrong_arguments_are_answered_with_the_nearest(digits):
    trainer = make_trainer()
    for call, says in [
        (lambda: trainer.fit(batches(digits[0]), epoch=1), "fit: no argument 'epoch'; did you mean 'epochs'?"),
        (lambda: trainer.fit(), "fit: missing a required argument: 'train'"),
        (lambda: trainer.evaluate(digits[0], batch=3), "evaluate: no argument 'batch'; did you mean 'batch_size'?"),
        (lambda: trainer.predict(digits[0], batch=3), "predict: no argument 'batch'; did you mean 'batch_size'?"),
        (lambda: trainer.step(3), "step: missing a required argument: 'y'"),
        (lambda: Trainer(trainer.model, optimiser=3), "Trainer: no argument 'optimiser'; did you mean 'optimizer'?"),
        (lambda: EarlyStopping(patient=3), "EarlyStopping: no argument 'patient'; did you mean 'patience'?"),
        (lambda: HistoryFile(), "HistoryFile: missing a required argument: 'path'"),
        (lambda: Checkpoints("x", evry="1epoch"), "Checkpoints: no argument 'evry'; did you mean 'every'?"),
        (lambda: Loss(functio=3), "Loss: no argument 'functio'; did you mean 'function'?"),
        (lambda: loss_named(), "loss_named: missing a required argument: 'loss'"),
        (lambda: class_weight("balanced", [0], k=1), "class_weight: no argument 'k' (known"),
        (lambda: mean_iou([0], [0], ignore=1), "mean_iou: no argument 'ignore'; did you mean 'ignore_index'?"),
        (lambda: optim.make_schedule("step", steps=1), "make_schedule: no argument 'steps'; did you mean"),
        (lambda: optim.param_groups(3, pattern={}), "param_groups: no argument 'pattern'; did you mean 'patterns'?"),
        (lambda: optim.clip_grad_norm_([], norm=1), "clip_grad_norm_: no argument 'norm'; did you mean"),
        (lambda: optim.clip_grad_value_([]), "clip_grad_value_: missing a required argument: 'clip_value'"),
        (lambda: Fails(), "Fails: missing a required argument: 'message'"),
    ]:
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value).startswith(says)


def test_fit_inside_a_callback_is_refused(digits):
    class Again(Callback):
        def on_epoch_end(self, trainer, record):
            trainer.fit(batches(digits[0]))

    trainer = make_trainer(callbacks=[Again()])
    with pytest.raises(UsageError, match="fit: this trainer is already in fit; wait until it has returned"):
        trainer.fit(batches(digits[0]))
    trainer.callbacks.clear()
    assert [record["epoch"] for record in trainer.fit(batches(digits[0]))] == [2]


def test_loading_a_state_inside_a_callback_is_refused(digits):
    class Back(Callback):
        def on_epoch_end(self, trainer, record):
            trainer.load_state_dict(trainer.state_dict())

    with pytest.raises(UsageError, match=r"^load_state_dict: this trainer is in fit; load a state before or after it$"):
        make_trainer(callbacks=[Back()]).fit(batches(digits[0]))


def test_a_method_with_other_arguments_is_refused():
    says = (
        r"^Mine.on_epoch_end: too many positional arguments.*; it is called as on_epoch_end\(self, trainer, record\)$"
    )
    with pytest.raises(UsageError, match=says):

        class Mine(Callback):
            def on_epoch_end(self, record):
                pass


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), r"^stop: missing a required argument: 'reason'$"),
        (("",), r"^stop: reason must be a text that is not empty, got ''$"),
        ((None,), r"^stop: reason must be a text that is not empty, got None$"),
    ],
)
def test_training_is_stopped_for_a_reason(arguments, says):
    with pytest.raises(UsageError, match=says):
        make_trainer().stop(*arguments)


class Writes(Callback):
    def __init__(self, **entries):
        self.entries = entries

    def on_epoch_end(self, trainer, record):
        record.update(self.entries)


@pytest.mark.parametrize("value", [np.float32(1.5), np.array(1.5), np.array(1.5, np.float32)])
def test_numbers_of_numpy_in_a_record_become_plain(digits, tmp_path, value):
    checkpoints = Checkpoints(tmp_path)
    trainer = make_trainer(callbacks=[Writes(mine=value), HistoryFile(tmp_path / "history.jsonl"), checkpoints])
    (record,) = trainer.fit(batches(digits[0]))
    assert type(record["mine"]) is float
    again, checkpoints = make_trainer(), Checkpoints(tmp_path)
    checkpoints.restore(again)
    assert again.history == [record] == [json.loads((tmp_path / "history.jsonl").read_text())]


@pytest.mark.parametrize("name", ["mine", "train_loss"])
@pytest.mark.parametrize("value", ["text", [1.0], np.ones(2), 1j])
def test_what_a_history_cannot_hold_is_refused_before_it_is_saved(digits, tmp_path, name, value):
    """Otherwise, no checkpoint of the run could be loaded."""
    trainer = make_trainer(callbacks=[Writes(**{name: value}), Checkpoints(tmp_path, every="1epoch")])
    with pytest.raises(UsageError, match=rf"^Writes: the entry '{name}' of a record must be a number or None, got "):
        trainer.fit(batches(digits[0]))
    again = make_trainer()
    again.load_state_dict(trainer.state_dict())
    Checkpoints(tmp_path).restore(make_trainer())


class Fails(Callback):
    def __init__(self, message):
        self.message = message

    def on_fit_end(self, trainer):
        raise RuntimeError(self.message)


def test_a_callback_that_fails_at_the_end_does_not_stop_the_others(digits, tmp_path):
    watch, checkpoints = Watch(), Checkpoints(tmp_path)
    trainer = make_trainer(callbacks=[Fails("first"), watch, Fails("second"), checkpoints])
    with pytest.raises(RuntimeError, match="first"):
        trainer.fit(batches(digits[0]))
    assert watch.seen == ["start", "epoch", "end"]
    other = Checkpoints(tmp_path)  # the folder is unlocked again
    again = make_trainer(callbacks=[other])
    other.restore(again)
    again.fit(batches(digits[0]))
    with pytest.raises(RuntimeError, match="first"):
        trainer.fit(batches(digits[0]), 1)


def test_the_error_that_ended_fit_comes_before_those_of_its_end(digits):
    class Stops(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            raise KeyError("the reason")

    watch = Watch()
    with pytest.raises(KeyError, match="the reason"):
        make_trainer(callbacks=[Fails("later"), Stops(), watch]).fit(batches(digits[0]))
    assert watch.seen == ["start", "end"]


def test_the_state_of_callbacks_is_there_before_fit(digits, tmp_path):
    first = make_trainer(callbacks=[EarlyStopping("train_loss"), Checkpoints(tmp_path)])
    first.fit(loader(digits[0]), 2)
    stopping, checkpoints = EarlyStopping("train_loss"), Checkpoints(tmp_path)
    second = make_trainer(callbacks=[stopping, checkpoints])
    checkpoints.restore(second)
    assert (stopping.best, stopping.best_epoch) == (min(r["train_loss"] for r in first.history), 2)


def test_a_callback_that_empties_the_record_is_refused(digits):
    class Empties(Callback):
        def on_epoch_end(self, trainer, record):
            record.clear()

    with pytest.raises(UsageError, match=r"^Empties: a record must keep its entry 'epoch', which is gone$"):
        make_trainer(callbacks=[Empties()]).fit(batches(digits[0]))


class Metric(Callback):
    """Adds a number to every record, and a second one from the second epoch on."""

    def on_epoch_end(self, trainer, record):
        record["steps"] = trainer.steps
        if record["epoch"] > 1:
            record["share"] = np.float32(0.5)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_numbers_that_callbacks_add_are_in_history_files_and_checkpoints(digits, tmp_path, suffix):
    path = tmp_path / f"history.{suffix}"
    trainer = make_trainer(callbacks=[Metric(), HistoryFile(path), Checkpoints(tmp_path / "checkpoints")])
    trainer.fit(loader(digits[0]), 3)
    if suffix == "csv":
        with path.open() as file:
            rows = [(row["steps"], row["share"]) for row in csv.DictReader(file)]
        assert rows == [("4", ""), ("8", "0.5"), ("12", "0.5")]
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(row["steps"], row.get("share")) for row in rows] == [(4, None), (8, 0.5), (12, 0.5)]
    other = make_trainer()
    Checkpoints(tmp_path / "checkpoints").restore(other)
    assert [(r["steps"], r.get("share")) for r in other.history] == [(4, None), (8, 0.5), (12, 0.5)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_epoch_appends_a_line(digits, tmp_path, suffix):
    """The file itself stays the same, so earlier lines are not written again."""
    path, seen = tmp_path / f"history.{suffix}", []

    class Look(Callback):
        def on_epoch_end(self, trainer, record):
            seen.append((path.stat().st_ino, path.read_bytes()))

    trainer = make_trainer(callbacks=[HistoryFile(path), Look()])
    trainer.fit(batches(digits[0]), 3)
    trainer.fit(batches(digits[0]), 1)
    assert len({inode for inode, _ in seen}) == 1
    for (_, before), (_, after) in itertools.pairwise(seen):
        assert after.startswith(before)
        assert after.count(b"\n") == before.count(b"\n") + 1


def test_temporary_files_of_a_killed_process_are_removed(digits, tmp_path):
    """Those of the history file; others may be in use."""
    mine, other = (tmp_path / f".{name}.468ac863.tmp" for name in ("history.csv", "history.jsonl"))
    for path in (mine, other):
        path.touch()
    make_trainer(callbacks=[HistoryFile(tmp_path / "history.csv")]).fit(batches(digits[0]), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "history.csv"]


@pytest.mark.parametrize("left", [b"", b"x", b"epoch,train_loss\n1,0.5\n2,0.", None])
def test_a_file_that_does_not_hold_the_history_is_replaced(digits, tmp_path, left):
    """Such as a line torn by a kill, epochs after the newest checkpoint, or the epochs of another run."""
    path, checkpoints = tmp_path / "history.csv", Checkpoints(tmp_path / "checkpoints")
    make_trainer(callbacks=[HistoryFile(path), checkpoints]).fit(batches(digits[0]), 2)
    whole = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(left)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    trainer = make_trainer(callbacks=[HistoryFile(path), checkpoints])
    checkpoints.restore(trainer)
    trainer.fit(batches(digits[0]), 1)
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 4
    path.write_bytes(whole)  # written meanwhile by another program
    trainer.fit(batches(digits[0]), 1)
    assert path.read_bytes().count(b"\n") == 5


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE is POSIX")
def test_a_disk_that_is_full_leaves_whole_lines(digits, tmp_path):
    import resource
    import signal

    path = tmp_path / "history.jsonl"
    history = HistoryFile(path)
    trainer = make_trainer(callbacks=[history])
    trainer.fit(batches(digits[0]), 1)
    whole = path.read_bytes()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
    try:
        with pytest.raises(WriteError, match=f"cannot write {path}"):
            history.on_epoch_end(trainer, trainer.history[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", LOSSES)
def test_losses_can_be_pickled_and_copied(name):
    loss = loss_named(name)
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert other == loss
    smooth = loss_named("cross_entropy", label_smoothing=0.1)
    x, y = np.random.default_rng(0).standard_normal((4, 3)), np.arange(4) % 3
    assert float(pickle.loads(pickle.dumps(smooth))(x, y)[0]) == float(smooth(x, y)[0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_a_trainer_can_be_copied(digits, duplicate):
    """The copy trains on from the same state, independently, and ends alike if it gets the same batches."""
    trainer = make_trainer("adam", "cosine", clip_norm=1.0, callbacks=[EarlyStopping("train_loss")])
    trainer.fit(loader(digits[0]), 1)
    other = duplicate(trainer)
    before = other.model.state_dict()
    for x, y in data.Loader(digits[0], 50, seed=4):
        trainer.step(x, y)
    for name, value in other.model.state_dict().items():
        assert value.tobytes() == before[name].tobytes()
    for x, y in data.Loader(digits[0], 50, seed=4):
        other.step(x, y)
    for name, value in trainer.model.state_dict().items():
        assert value.tobytes() == other.model.state_dict()[name].tobytes(), name
    assert other.callbacks[0].best == trainer.callbacks[0].best


def test_a_trainer_copied_by_a_callback_can_train(digits):
    class Copy(Callback):
        def on_epoch_end(self, trainer, record):
            self.made = copy.deepcopy(trainer)

    keeper = Copy()
    make_trainer(callbacks=[keeper]).fit(batch for batch in batches(digits[0]))  # a generator cannot be copied
    (record,) = keeper.made.fit(batches(digits[0]))
    assert record["epoch"] == 2


def test_steps_of_a_plain_loop_are_counted(digits, tmp_path):
    trainer, checkpoints = make_trainer(), Checkpoints(tmp_path)
    for x, y in batches(digits[0]):
        trainer.step(x, y)
    assert trainer.steps == 4
    assert checkpoints.save(trainer).name == "step-00000004.safetensors"


ARRAY = r"(images|x) and targets must be arrays, got "


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda trainer: trainer.step(None, [1]), ARRAY + "NoneType"),
        (lambda trainer: trainer.step("x", "y"), ARRAY + "str"),
        (lambda trainer: trainer.step([[1.0], [1.0, 2.0]], [1]), ARRAY + "a list of unequal shapes"),
        (lambda trainer: trainer.fit([(None, None)]), ARRAY + "NoneType"),
        (lambda trainer: trainer.evaluate([(3, 4)]), r"must yield batches \(x, y\), but y is the single number 4"),
        (lambda trainer: trainer.predict(None), "must be .*arrays.*, got NoneType"),
        (lambda trainer: trainer.predict(np.float32(3)), r"predict: (images|x) must be \(n, \.\.\.\)"),
        (lambda trainer: confusion_matrix(3, 4), r"confusion_matrix: expected .* got \(\) and \(\)"),
        (
            lambda trainer: confusion_matrix(np.zeros((2, 3)), np.asarray([0, 3])),
            "labels must be integers from 0 to 2, got 3",
        ),
        (
            lambda trainer: loss_named("cross_entropy", label_smothing=0.1),
            "cross_entropy: no .* mean 'label_smoothing'",
        ),
        (
            lambda trainer: Trainer(trainer.model, trainer.optimizer, tell=3),
            "Trainer: tell must be a function .*, got 3",
        ),
        (
            lambda trainer: Trainer(trainer.model, trainer.optimizer, schedule=3),
            "schedule must be a schedule of the same",
        ),
        (
            lambda trainer: Trainer(trainer.model, trainer.optimizer, clip_norm="a"),
            "Trainer: clip_norm must be a number",
        ),
        (
            lambda trainer: Trainer(trainer.model, trainer.optimizer, clip_value=-1),
            "Trainer: clip_value must be a number",
        ),
        (lambda trainer: EarlyStopping(monitor=3), "EarlyStopping: monitor must be the name of an entry, got 3"),
        (lambda trainer: EarlyStopping(min_delta="a"), "EarlyStopping: min_delta must be a number"),
        (lambda trainer: KeepBest(save=3), "KeepBest: save must be a function"),
        (lambda trainer: KeepBest(print), "KeepBest: monitor must be the name of an entry"),
        (lambda trainer: KeepBest("val_acc"), "for the entry 'val_acc', got None; or did you mean 'val_accuracy'[?]$"),
        (lambda trainer: EarlyStopping("error"), "EarlyStopping: mode must be 'min' or 'max' for the entry 'error'"),
        (lambda trainer: KeepBest("val_iou", "best"), "mode must be 'min' or 'max' for the entry 'val_iou'"),
        (lambda trainer: HistoryFile(3), "HistoryFile: path must end in"),
        (lambda trainer: Checkpoints(3), "Checkpoints: folder must be a path"),
        (lambda trainer: Checkpoints("a", about=3), "about a Checkpoint"),
        (lambda trainer: Loss(3), "Loss: function must be a function"),
    ],
)
def test_strange_arguments_are_refused_in_one_sentence(call, says):
    with pytest.raises((UsageError, ShapeError), match=says):
        call(make_trainer())


def test_a_schedule_of_another_optimizer_is_refused():
    trainer, other = make_trainer(), make_trainer()
    with pytest.raises(UsageError, match="schedule must be a schedule of the same optimizer"):
        Trainer(trainer.model, trainer.optimizer, schedule=optim.StepLR(other.optimizer, 3))


class Adds(Callback):
    def on_epoch_end(self, trainer, record):
        record["val_error"] = 0.5


@pytest.mark.parametrize(
    ("monitor", "options", "says"),
    [
        ("val_loss", {}, "no 'val_loss' without validation data; pass fit"),
        ("val_acuracy", {"validation": True}, "unknown KeepBest monitor 'val_acuracy'; did you mean 'val_accuracy'"),
        ("val_iou", {"validation": True}, "unknown KeepBest monitor 'val_iou'"),
        ("val_error", {"callbacks": [Adds()]}, None),
        ("val_loss", {"callbacks": [Adds()]}, "without validation data"),
        ("train_loss", {}, None),
    ],
)
def test_a_monitor_that_no_record_has_is_refused_before_the_first_step(digits, monitor, options, says):
    trainer = make_trainer(callbacks=[*options.get("callbacks", ()), KeepBest(monitor=monitor, mode="max")])
    held_out = digits[1][:64] if "validation" in options else None
    if says is None:
        trainer.fit(digits[0][:64], validation=held_out)
        return
    with pytest.raises(UsageError, match=says):
        trainer.fit(digits[0][:64], validation=held_out)
    assert trainer.steps == 0


@pytest.mark.parametrize(
    ("monitor", "mode", "best"),
    [("error", "min", 1.0), ("error", "max", 3.0), ("val_loss", None, 1.0), ("val_accuracy", None, 3.0)],
)
def test_the_best_is_the_smallest_or_the_largest(monitor: str, mode: str | None, best: float) -> None:
    saved: list[float] = []
    keep = KeepBest(monitor, mode, save=lambda record: saved.append(record[monitor]))
    for epoch, value in enumerate([2.0, 1.0, 3.0], 1):
        keep.on_epoch_end(make_trainer(), {"epoch": epoch, monitor: value})
    assert saved == [2.0, best]
    assert repr(keep) == f"KeepBest(monitor='{monitor}', best={best}, best_epoch={int(best) if best == 3 else 2})"
