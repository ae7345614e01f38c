"""What scripts see of a run: when it is shown, its figures, the time left, and a clean terminal after every end."""

import copy
import io
import pickle
import re
import sys

import numpy as np
import pytest
import resumable
import rich.progress
from rich.errors import LiveError

from xcnn import nn, optim
from xcnn._dispatch import COMPILATION
from xcnn.errors import DivergedError, UsageError
from xcnn.threads import get_num_threads
from xcnn.training import Callback, EarlyStopping, Progress, Trainer, progress, terminal


class Screen(io.StringIO):
    """A terminal in memory."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _fresh_console():
    """Rich reads the width of the terminal from COLUMNS once."""
    terminal.stderr.cache_clear()
    yield
    terminal.stderr.cache_clear()


def watched(monkeypatch, width=80):
    """Make stderr a terminal that somebody watches, and return it. pytest undoes this between a fixture and a test."""
    for name, value in {"TERM": "xterm", "COLUMNS": str(width), "LINES": "25"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def lines(text):
    """Return what remains on a terminal that obeys ends of lines, moves up, and the erasing of a line."""
    rows, row, column = [""], 0, 0
    for piece in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
        if piece in ("\r", "\n"):
            column, row = 0, row + (piece == "\n")
            rows += [""] * (row == len(rows))
        elif piece == "\x1b[2K":
            rows[row] = ""
        elif piece.startswith("\x1b["):
            row -= int(piece[2:-1]) if piece.endswith("A") else 0
        else:
            rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in rows if line.strip()]


def trainer(lr=0.1, **options):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.reset_parameters(0)
    return Trainer(model, optim.SGD(model.parameters(), lr=lr), **options)


def digits():
    train, test = resumable.small_digits()
    return resumable.loader(train), test


def test_nothing_is_shown_in_a_pipe_or_a_test(capsys, monkeypatch):
    screen = watched(monkeypatch)
    train, test = digits()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "x")
    trainer().fit(train, 1, test)
    assert screen.getvalue() == ""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal
    trainer().fit(train, 1, test)
    assert progress.stderr().file.getvalue() == ""
    for odd in (object(), closed):
        monkeypatch.setattr("sys.stderr", odd)
        trainer().fit(train, 1, test)
    monkeypatch.setattr("sys.stderr", None)  # as under pythonw
    trainer().fit(train, 1, test)
    trainer().fit(train, 1, test, progress=True)
    assert capsys.readouterr() == ("", "")


def test_figures_are_those_of_the_history(monkeypatch):
    made = io.StringIO()
    monkeypatch.setattr("sys.stderr", made)
    train, test = digits()
    one = trainer(loss="cross_entropy")
    (first, second) = one.fit(train, 2, test, progress=True)
    head, *rest = made.getvalue().splitlines()
    assert head == "network  Sequential: 650 parameters in 2 layers"
    assert "validation: 60 examples" in rest[0]
    assert rest[1:3] == ["training cross_entropy, SGD, lr 0.1", f"device   cpu, {get_num_threads()} threads"]
    for line, record in zip(rest[3:], (first, second), strict=True):
        assert line.startswith(
            f"epoch {record['epoch']}/2  loss {record['train_loss']:.4f}  acc {record['train_accuracy']:>7.2%}  "
            f"val loss {record['val_loss']:.4f}  val acc {record['val_accuracy']:>7.2%}  lr 0.1  "
        )
        assert "samples/s" in line
    assert "left" in rest[3]
    assert "left" not in rest[4]


def test_the_header_comes_once_for_many_fits(monkeypatch):
    made = io.StringIO()
    monkeypatch.setattr("sys.stderr", made)
    train, _ = digits()
    one = trainer()
    for _ in range(3):
        one.fit(train, 1, progress=True)
    assert [line.split()[0] for line in made.getvalue().splitlines()] == [
        *("network", "data", "training", "device"), *("epoch",) * 3,
    ]  # fmt: skip


@pytest.mark.parametrize("shown", [None, True, False])
def test_a_terminal_shows_progress_unless_it_is_told_not_to(shown, monkeypatch):
    screen = watched(monkeypatch)
    train, test = digits()
    trainer().fit(train, 2, test, progress=shown)
    left = lines(screen.getvalue())
    assert len(left) == (0 if shown is False else 6)
    assert all(len(line) <= 80 for line in left)
    assert ("━" in screen.getvalue()) == (shown is not False)


def test_a_callback_that_shows_progress_is_the_only_one(monkeypatch):
    screen = watched(monkeypatch)
    train, _ = digits()
    trainer(callbacks=[Progress("my net")]).fit(train, 1)
    assert [line.split()[0] for line in lines(screen.getvalue())] == ["network", "data", "training", "device", "epoch"]
    assert "network  my net: 650 parameters" in screen.getvalue()


def test_a_program_may_show_progress_in_its_own_way(monkeypatch):
    class Mine(Callback):
        def on_epoch_end(self, trainer, record):
            seen.append(record["epoch"])

    seen = []
    watched(monkeypatch)
    monkeypatch.setattr(Trainer, "make_progress", lambda: Mine())
    train, _ = digits()
    one = trainer()
    one.fit(train, 2)
    assert seen == [1, 2]
    assert one.state_dict()["callbacks"] == {}


def test_a_bar_hides_at_the_end_of_its_task(monkeypatch):
    screen = watched(monkeypatch)
    bar = terminal.Bar()
    for done in range(4):
        bar("file.gz", done, 3)
    assert "file.gz" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert lines(screen.getvalue()) == []
    bar("next", 1, 3)
    assert bar.name == "next"
    bar.stop()


def test_one_bar_is_shown_at_a_time(monkeypatch):
    """Rich recurses without end where bars of several threads are shown."""
    screen = watched(monkeypatch)
    first, second = terminal.Bar(), terminal.Bar()
    first("first", 1, 3)
    second("second", 1, 3)
    assert "first" in screen.getvalue()
    assert "second" not in screen.getvalue()
    first.stop()
    second("second", 2, 3)
    assert "second" in screen.getvalue()
    second.stop()


def test_a_bar_that_fails_gives_the_turn_back(monkeypatch):
    screen = watched(monkeypatch)
    first, second = terminal.Bar(), terminal.Bar()
    monkeypatch.setattr(first.progress, "add_task", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        first("first", 1, 3)
    first.stop()
    second("second", 2, 3)
    assert "second" in screen.getvalue()
    second.stop()


def test_no_time_is_left_at_the_end_of_a_task(monkeypatch):
    screen = watched(monkeypatch)
    bar = terminal.Bar()
    for done in (0, 4, 9, 10):
        bar("files", done, 10)
    last = screen.getvalue().rpartition("10/10")[2]
    assert "9/10" not in last
    assert "left" not in last


def test_a_second_bar_that_rich_refuses_is_not_shown(monkeypatch):
    def refuse(self):
        raise LiveError("Only one live display may be active at once")

    screen = watched(monkeypatch)
    monkeypatch.setattr(rich.progress.Progress, "start", refuse)
    trainer().fit(digits()[0], 2)
    assert [line.split()[0] for line in lines(screen.getvalue())[-2:]] == ["epoch", "epoch"]


class Stop(Callback):
    """Raises in the second epoch, or ruins the weights."""

    def __init__(self, error):
        self.error = error

    def on_batch_end(self, trainer, epoch, batch, metrics):
        if epoch == 2 and batch == 2:
            if self.error is DivergedError:
                trainer.model.parameters()[0].data *= np.nan
            else:
                raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError, DivergedError])
def test_every_end_leaves_a_clean_terminal(error, monkeypatch):
    screen = watched(monkeypatch)
    train, test = digits()
    with np.errstate(all="ignore"), pytest.raises(error):
        trainer(callbacks=[Stop(error)]).fit(train, 3, test)
    text = screen.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0, "the cursor is hidden"
    assert [line.split()[0] for line in lines(text)] == ["network", "data", "training", "device", "epoch"]


def test_what_others_print_is_above_the_bar(monkeypatch):
    screen = watched(monkeypatch)

    class Talk(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            if batch == 2:
                print("look [bold]here[/bold]", file=sys.stderr)

    train, _ = digits()
    trainer(callbacks=[Talk()]).fit(train, 1)
    assert lines(screen.getvalue())[4] == "look [bold]here[/bold]"


def test_a_notebook_shows_lines_without_escapes(monkeypatch):
    class OutStream(Screen):
        __module__ = "ipykernel.iostream"

    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    made = OutStream()
    monkeypatch.setattr("sys.stderr", made)
    train, test = digits()
    history = trainer().fit(train, 2, test)
    assert "\x1b" not in made.getvalue()
    assert "\repoch 1/2  1/4  loss " in made.getvalue()
    rest = lines(made.getvalue())[4:]
    assert [line.split("  ")[1] for line in rest] == [f"loss {record['train_loss']:.4f}" for record in history]


def test_the_line_has_the_learning_rate_of_its_epoch(monkeypatch):
    made = io.StringIO()
    monkeypatch.setattr("sys.stderr", made)
    train, _ = digits()
    for unit, last in (("epoch", 0.1 * 0.5), ("step", 0.1 * 0.5**7)):
        one = trainer()
        one.schedule = one._step.schedule = optim.ExponentialLR(one.optimizer, 0.5, unit=unit)
        one.fit(train, 2, progress=True)
        assert f"  lr {last:.3g}  " in made.getvalue().splitlines()[-1]
        assert "SGD, ExponentialLR from lr 0.1\n" in made.getvalue()
        one.fit(train, 1, progress=True)
        assert f"SGD, ExponentialLR now at lr {last * 0.5:.3g}\n" in made.getvalue()


def test_the_time_left_is_that_of_the_whole_run(monkeypatch):
    """With a clock by which a batch takes 2 s, a validation 3 s, and other callbacks 1 s an epoch."""
    now, seen = [0.0], []
    monkeypatch.setattr(progress, "clock", lambda: now[0])

    class Bar:
        def __call__(self, name, done, total, figures="", left=None):
            pass

        def batch(self, name, done, total, metrics, left):
            seen.append((name, done, total, left))

        def stop(self):
            pass

    class Time(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            now[0] += 2 if trainer.steps > 1 else 100

        def on_epoch_end(self, trainer, record):
            now[0] += 4

    shown = Progress()
    shown.__dict__["bar"] = Bar()
    monkeypatch.setattr(Progress, "line", lambda self, record, left: seen.append(left) or "")
    train, test = digits()
    one = trainer(callbacks=[Time(), shown])
    one.fit(train, 3, test)
    guess = 60 / 170 / 3 * 8  # before the first validation
    assert np.isnan(seen[0][3])  # the first batch is slower than all others
    assert [left for *_, left in seen[1:4]] == pytest.approx([left + 16 + 3 * guess for left in (4, 2, 0)])
    assert seen[4] == pytest.approx(24)
    assert seen[5] == ("epoch 2/3", 1, 4, pytest.approx(6 + 4 + 12))
    assert seen[9] == pytest.approx(12)
    assert seen[13] == ("epoch 3/3", 4, 4, pytest.approx(4))
    assert seen[14] == 0


@pytest.mark.parametrize("width", range(30, 130, 7))
def test_lines_fit_by_leaving_out_the_least(width, monkeypatch):
    watched(monkeypatch, width)
    record = {"epoch": 3, "train_loss": 0.123, "train_accuracy": 0.97, "val_loss": 0.5, "val_accuracy": 1.0}
    record |= {"seconds": 12.3, "data_seconds": 5.0, "samples_per_second": 5120.0}
    shown = Progress()
    shown.epochs, shown._lr = 20, 1e-3
    line = shown.line(record, 100.0)
    assert line.startswith("epoch  3/20  loss 0.1230  ")
    assert "val loss 0.5000  val acc" in line
    assert len(line) <= max(width, 70)
    there = [
        part in line for part in ("acc  97.00%", "12 s", "waiting", "1 min 40 s left", "lr 0.001", "5,120 samples/s")
    ]
    if not there[-1]:
        assert there == sorted(there, reverse=True)
        assert sum(there) >= (width - 69) // 16


def test_other_figures_have_labels():
    record = {"epoch": 1, "train_loss": 3e-7, "train_accuracy": None, "val_loss": None, "val_accuracy": None}
    record |= {"val_iou": 0.5, "norm": 12.0, "seconds": 10.0, "samples_per_second": 5120.0, "data_seconds": 4.0}
    shown = Progress()
    shown.epochs, shown._lr = 2, 1e-3
    assert shown.line(record, 4000.0) == (
        "epoch 1/2  loss 3e-07  val iou 0.5000  norm 12.0000  lr 0.001  10 s  5,120 samples/s  40% waiting for data  "
        "1 h 7 min left"
    )


def test_compiling_is_said_once_by_the_outermost(monkeypatch):
    made = io.StringIO()
    monkeypatch.setattr("sys.stderr", made)

    class Compile(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            COMPILATION.begin()
            COMPILATION.end()

    train, _ = digits()
    trainer(callbacks=[Compile()]).fit(train, 1, progress=True)
    assert made.getvalue().count("compiling kernels, each once") == 1
    outer = []
    with COMPILATION.announced(lambda: outer.append(1)):
        trainer(callbacks=[Compile()]).fit(train, 1, progress=True)
    assert made.getvalue().count("compiling kernels, each once") == 1
    assert outer == [1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_trainer_is_copied_while_it_shows_progress(copied, monkeypatch):
    screen = watched(monkeypatch)

    class Copy(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            if batch == 2:
                trainer.callbacks = [one for one in trainer.callbacks if one is not self]
                copies.append(copied(trainer))

    copies = []
    train, _ = digits()
    trainer(callbacks=[Copy()]).fit(train, 1)
    trainer(callbacks=[Copy(), Progress()]).fit(train, 1)
    for made in copies:
        made.fit(train, 1)
    assert sum("epoch 1/1" in line for line in lines(screen.getvalue())) == 4


def test_progress_must_be_a_flag():
    with pytest.raises(UsageError, match="fit: progress must be True or False, got 3"):
        trainer().fit([], progress=3)


# A schedule and the run that it is made for.


def told(schedule, *callbacks, epochs=3):
    said = []
    one = trainer(tell=said.append, callbacks=callbacks)
    one.schedule = one._step.schedule = schedule(one.optimizer)
    one.fit(digits()[0], epochs, digits()[1])
    return said


def test_early_stopping_tells_what_a_schedule_of_fixed_length_loses():
    (said,) = told(lambda o: optim.OneCycleLR(o, 0.1, 12, cycle_momentum=False), EarlyStopping(patience=1))
    assert said.startswith(
        "OneCycleLR has its lowest learning rates at its end, step 12, which early stopping may skip"
    )
    assert told(lambda o: optim.StepLR(o, 2), EarlyStopping(patience=1)) == []
    assert told(lambda o: optim.LinearLR(o), EarlyStopping(patience=1)) == []
    assert told(lambda o: optim.CosineAnnealingLR(o, 3)) == []
    assert told(lambda o: optim.CosineAnnealingLR(o, 3), EarlyStopping(patience=2)) == []  # it cannot stop 3 epochs


def test_epochs_that_are_meant_as_steps_are_told():
    (said,) = told(lambda o: optim.CosineAnnealingLR(o, 12))  # 3 epochs of 4 batches
    assert said == (
        "CosineAnnealingLR ends after 12 epochs, but 12 is the number of batches; if it is meant to count steps, pass "
        "unit='step'"
    )
    assert told(lambda o: optim.CosineAnnealingLR(o, 12, unit="step")) == []


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (
            lambda o: optim.CosineAnnealingLR(o, 1),
            "CosineAnnealingLR has its lowest learning rate at epoch 1 and then rises again, but training goes on to "
            "epoch 3; make the schedule as long as the training",
        ),
        (
            lambda o: optim.PolynomialLR(o, 5, unit="step"),
            "PolynomialLR has its lowest learning rate at step 5 and then stays 0, but training goes on to step 12; "
            "make the schedule as long as the training",
        ),
        (
            lambda o: optim.StepLR(o, 3),
            "StepLR first changes the learning rate after epoch 3, but training ends after epoch 3; pass fewer, or "
            "unit='step' if it is meant to count steps",
        ),
        (
            lambda o: optim.MultiStepLR(o, np.array([30, 12]), unit="step"),
            "MultiStepLR first changes the learning rate after step 12, but training ends after step 12; pass fewer",
        ),
        (lambda o: optim.MultiStepLR(o, (11, 30), unit="step"), None),
        (lambda o: optim.StepLR(o, 2), None),
        (lambda o: optim.CosineAnnealingLR(o, 2), None),
        (lambda o: optim.LinearLR(o, 1.0, 0.5, 1), None),
    ],
)
def test_a_schedule_that_does_not_fit_the_epochs_is_told(schedule, says):
    assert told(schedule) == ([] if says is None else [says])


def test_a_schedule_that_is_too_short_is_refused_before_training():
    with pytest.raises(
        UsageError, match="OneCycleLR: step 12 is after the last one; increase total_steps, which is 11"
    ):
        told(lambda o: optim.OneCycleLR(o, 0.1, 11, cycle_momentum=False))
