"""A search over settings: its grammar, its trials, and that no interruption changes its result."""

import csv
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import start
from PIL import Image

from xcnn.errors import CheckpointError, OutOfMemoryError, UsageError, XcnnError
from xcnn.runs import Config, Reporter, load_checkpoint, restore, search, train
from xcnn.runs.vary import varied, with_values

CONFIG = Config(model="report", epochs=3, validation=0.3, checkpoint_every="7steps")
VARY = ["lr=1e-3..1:log", "batch_size=64,128", "model_options.filters=1..4"]

needs_optuna = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('optuna')", reason="needs optuna")


# The grammar


@pytest.mark.parametrize(
    ("text", "means", "values"),
    [
        ("lr=1e-4..1e-1:log", "lr=0.0001..0.1:log", {1e-4: 1e-4, 0.05: 0.05, 0.1: 0.1}),
        ("wd=0..1", "wd=0.0..1.0", {0.0: 0.0, 1.0: 1.0}),
        ("epochs = 2..5", "epochs=2..5", {2: 2, 5: 5}),
        ("batch-size=32,64", "batch_size=32,64", {"32": 32, "64": 64}),
        ("ema=none,0.99", "ema=none,0.99", {"none": None, "0.99": 0.99}),
        ("augment=none,shift+rotate", "augment=none,shift+rotate", {"none": (), "shift+rotate": ("shift", "rotate")}),
        ("normalize=true,false", "normalize=true,false", {"true": True, "false": False}),
        ("model=report,vgg_small", "model=report,vgg_small", {"report": "report"}),
        ("init=none,../a", "init=none,../a", {"none": None}),
        ("model_options.filters=4..32:log", "model_options.filters=4..32:log", {4: 4, 32: 32}),
        ("model_options.dropout=0.0..1", "model_options.dropout=0.0..1.0", {0.5: 0.5}),
        ("opt_options.betas=[0.9, 0.99],x", "opt_options.betas=[0.9, 0.99],x", {"[0.9, 0.99]": [0.9, 0.99], "x": "x"}),
    ],
)
def test_what_is_varied_is_written_as_text(text, means, values):
    (found,) = varied([text], CONFIG)
    assert str(found) == means
    assert {drawn: found.value(drawn) for drawn in values} == values
    assert all(type(found.value(drawn)) is type(value) for drawn, value in values.items())
    setting, _, option = found.name.partition(".")
    for value in values.values():
        config = with_values(CONFIG, {found.name: value})
        assert (getattr(config, setting)[option] if option else getattr(config, setting)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "expected NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C, got 'lr'"),
        ("lr=", "expected NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C, got 'lr='"),
        ("lr=0.1", "lr has one value only, '0.1'; expected NAME=LOW..HIGH, "),
        ("lr=0.1..1:ln", "expected NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C, got lr=0.1..1:ln"),
        ("lr=0.1..", "expected NAME=LOW..HIGH"),
        ("lr=0.1..x", "the ends of the range of lr must be numbers, got 'x'"),
        ("lr=0.1..inf", "the ends of the range of lr must be numbers, got 'inf'"),
        ("lr=0.1..0.01", "the range of lr must begin with its lower end, got 0.1..0.01"),
        ("lr=0..1", "lr must be a number in (0, inf), got 0.0"),
        ("wd=0..1:log", "a logarithmic range must begin above 0, got wd=0..1:log"),
        ("epochs=0.5..3", "epochs takes integers, got 0.5..3"),
        ("epochs=0..3", "epochs must be an integer from 1 to 1000000000, got 0"),
        ("batch_size=32,x", "batch_size must be an integer from 1 to 1000000000, got 'x'"),
        ("batch_size=32,,64", "a choice of batch_size is empty; write none for no value"),
        ("batch_size=none,64", "batch_size must be an integer from 1 to 1000000000, got None"),
        ("model=lenet,report", "unknown model 'lenet'; did you mean 'lenet5'?"),
        ("augment=none,shift+rotat", "unknown augmentation 'rotat'; did you mean 'rotate'?"),
        ("image_size=16,32", "image_size is for the data set 'folder'"),
        ("learning_rat=1..2", "unknown setting 'learning_rat'"),
        ("epoch=1..2", "unknown setting 'epoch'; did you mean 'epochs'?"),
        ("filters=1..2", "unknown setting 'filters'"),
        ("model_options=1,2", "model_options is no single value; name model_options.NAME=..."),
        ("lr.x=1..2", "lr.x is no single value; name lr=..."),
        ("seed=0..3", "seed must be the same in all trials, as it determines the images on which they are compared"),
        ("monitor=val_loss,val_accuracy", "monitor must be the same in all trials, as they are compared by it"),
        (
            "label_smoothing=0..0.2",
            "label_smoothing changes the loss by which the trials are compared; set monitor to ",
        ),
    ],
)
def test_a_mistake_in_what_is_varied_is_one_sentence(text, message):
    with pytest.raises(UsageError) as caught:
        varied([text], CONFIG)
    assert str(caught.value).startswith(f"vary: {message}")
    assert caught.value.setting == "vary"


def test_a_setting_is_varied_once():
    with pytest.raises(UsageError, match=r"^vary: lr is given twice: lr=0.1\.\.1.0 and lr=0.1,0.2$"):
        varied(["lr=0.1..1", "lr=0.1,0.2"], CONFIG)
    for nothing in ([], "lr=0.1..1", None):
        with pytest.raises(UsageError, match=r"^vary must be a list of texts such as 'lr=1e-4"):
            varied(nothing, CONFIG)


# Trials


def rows(folder):
    """Return the table of a search without times."""
    with (folder / "trials.csv").open() as file:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A search that nothing has interrupted, which no test may change: (search, test batches seen by reporters)."""
    tests = []

    class Watch(Reporter):
        def on_test_batch(self, trainer, images, metrics):
            tests.append(images)

    folder = tmp_path_factory.mktemp("search") / "alone"
    return search(CONFIG, VARY, 14, folder, [Watch()]), tests


@needs_optuna
def test_the_best_trial_is_a_run_and_the_only_one_that_is_tested(done):
    found, tests = done
    assert tests == []
    assert [one.number for one in found.trials] == list(range(14))
    assert {one.state for one in found.trials} == {"complete", "pruned"}
    for one in found.trials:
        losses = [record["val_loss"] for record in history(one.folder)]
        assert (one.value, one.epochs) == (min(losses), len(losses))
        assert one.epoch == losses.index(min(losses)) + 1
        config = json.loads((one.folder / "config.json").read_text())
        assert config["lr"] == one.values["lr"]
        assert config["batch_size"] == int(one.values["batch_size"])
        assert config["model_options"] == {"filters": one.values["model_options.filters"]}
        assert (one.test_accuracy is None) == (one is not found.best)
        assert (one.folder / "best.safetensors").exists() == (one is found.best)
        assert (one.folder / "checkpoints").exists() == (one is found.best)
    best = found.best
    assert best.value == min(one.value for one in found.trials if one.state == "complete")
    metrics = restore(best.folder).evaluate()
    assert metrics.accuracy == best.test_accuracy
    assert metrics.loss == pytest.approx(best.test_loss)
    assert load_checkpoint(best.folder).metrics["val_loss"] == best.value


@needs_optuna
def test_the_table_has_what_the_trials_have(done):
    found, _ = done
    table = rows(found.folder)
    assert [float(row["value"]) for row in table] == [one.value for one in found.trials]
    assert [float(row["lr"]) for row in table] == [one.values["lr"] for one in found.trials]
    assert [row["state"] for row in table] == [one.state for one in found.trials]
    assert [bool(row["test_accuracy"]) for row in table] == [one is found.best for one in found.trials]


@needs_optuna
def test_a_trial_ends_early_if_it_is_worse_than_the_median(done):
    found, _ = done
    complete, pruned = [], 0
    for one in found.trials:  # in one process one after the other
        losses = [record["val_loss"] for record in history(one.folder)]
        worse = [
            len(complete) >= 5 and min(losses[: k + 1]) > statistics.median(other[k] for other in complete)
            for k in range(1, min(len(losses), CONFIG.epochs - 1))
        ]
        assert (one.state == "pruned") == any(worse)
        assert not any(worse[:-1])
        pruned += any(worse)
        if one.state == "complete":
            complete.append(losses)
    assert pruned


@needs_optuna
def test_the_same_search_has_nothing_left_to_do(done):
    found, _ = done
    before = {path: path.stat().st_mtime_ns for path in found.folder.rglob("*") if path.name != "journal.jsonl"}
    again = search(CONFIG, VARY, 14, found.folder)
    assert again == found
    assert again.trials == found.trials
    assert {path: path.stat().st_mtime_ns for path in found.folder.rglob("*") if path in before} == before


WORK = f"""
import sys
from xcnn.runs import Config, search
search({CONFIG!r}, {VARY!r}, 14, sys.argv[1])
"""


def working(folder):
    return subprocess.Popen([sys.executable, "-c", WORK, str(folder)], stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    """Wait until a condition holds; the process must not end before."""
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


@needs_optuna
def test_a_search_that_is_killed_ends_as_one_that_is_not(done, tmp_path):
    found, _ = done
    folder = tmp_path / "killed"
    for sign in (folder / "trial-0002" / "checkpoints", folder / "trial-0007" / "history.jsonl"):
        process = working(folder)
        wait_for(sign.exists, process)
        process.kill()
        process.wait()
        process.stderr.close()
        with (folder / "journal.jsonl").open("a") as file:
            file.write('{"op_code": 4, "wor')  # of a line that was not finished
    search(CONFIG, VARY, 14, folder)
    assert rows(folder) == rows(found.folder)
    times = ("seconds", "data_seconds", "samples_per_second")
    for one in found.trials:
        ours, theirs = (history(place / one.folder.name) for place in (folder, found.folder))
        assert [{k: v for k, v in record.items() if k not in times} for record in ours] == [
            {k: v for k, v in record.items() if k not in times} for record in theirs
        ]
    left, whole = (
        sorted(str(path.relative_to(place)) for path in place.rglob("*")) for place in (folder, found.folder)
    )
    assert left == whole


@needs_optuna
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vary": VARY[:2]},
            "vary was lr=0.001..1.0:log batch_size=64,128 model_options.filters=1..4 in the search in ",
        ),
        ({"config": {"epochs": 4}}, "epochs was 3 in the search in "),
        ({"config": {"seed": 1}}, "seed was 0 in the search in "),
        ({"prune": False}, "prune was True in the search in "),
    ],
)
def test_another_search_in_the_same_folder_is_refused(done, changes, message):
    found, _ = done
    config = with_values(CONFIG, changes.pop("config", {}))
    with pytest.raises(UsageError) as caught:
        search(config, changes.pop("vary", VARY), 14, found.folder, **changes)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("; go on with the same settings, or choose another folder")


@needs_optuna
def test_a_search_can_be_continued_with_other_settings_on_which_no_result_depends(tmp_path):
    quick = with_values(CONFIG, {"epochs": 1})
    first = search(quick, VARY, 1, tmp_path / "x")
    more = search(with_values(quick, {"workers": 1, "checkpoint_every": "1epoch"}), VARY, 3, tmp_path / "x")
    assert len(more.trials) == 3
    assert more.trials[0].values == first.trials[0].values
    assert more.trials[0].test_accuracy == first.trials[0].test_accuracy is not None
    assert more.best.test_accuracy is not None


@needs_optuna
def test_a_run_that_diverges_is_recorded_and_the_search_goes_on(tmp_path):
    wild = Config(model="report", epochs=1, validation=0.5, opt="sgd", schedule="constant", momentum=0)
    found = search(wild, ["lr=0.1,1e38", "batch_size=500,600"], 8, tmp_path / "x")
    states = {one.values["lr"]: one.state for one in found.trials}
    assert states == {"0.1": "complete", "1e38": "failed"}
    notes = {one.note for one in found.trials if one.state == "failed"}
    assert all("is not finite; lower the learning rate" in note or "the loss is" in note for note in notes)
    assert found.best.test_accuracy is not None


@needs_optuna
def test_a_run_that_needs_too_much_memory_is_recorded_and_the_search_goes_on(tmp_path, monkeypatch):
    room, real = sys.modules["xcnn.runs.study"], train

    def small(config, *arguments, **options):
        if config.batch_size > 64:
            raise OutOfMemoryError("out of memory on cpu with 128 images")
        return real(config, *arguments, **options)

    monkeypatch.setattr(room, "train", small)
    found = search(with_values(CONFIG, {"epochs": 1}), ["batch_size=32,128", "lr=0.1..1"], 7, tmp_path / "x")
    assert {one.values["batch_size"]: (one.state, one.note) for one in found.trials} == {
        "32": ("complete", ""),
        "128": ("failed", "out of memory on cpu with 128 images"),
    }


@needs_optuna
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 0.0}, "a search compares its trials on held-out images; set validation above 0"),
        ({"model": "lenet5"}, "lenet5: images must have at least 12 x 12 pixels, got 8 x 8"),
    ],
)
def test_a_mistake_in_every_trial_ends_the_search_and_leaves_nothing(tmp_path, settings, message):
    ended = []
    with pytest.raises(XcnnError, match=f"^{message}"):
        search(with_values(CONFIG, settings), ["lr=0.1..1"], 5, tmp_path / "x", watch=ended.append)
    assert len([one for one in ended if one.state == "failed"]) == 2
    assert list(tmp_path.iterdir()) == []


@needs_optuna
def test_a_combination_that_is_a_mistake_is_a_failed_trial(tmp_path):
    quick = with_values(CONFIG, {"epochs": 1})
    found = search(quick, ["opt=sgd,adam", "momentum=0.1,0.5"], 7, tmp_path / "x")
    assert {one.values["opt"]: one.state for one in found.trials} == {"sgd": "complete", "adam": "failed"}
    assert {one.note for one in found.trials if one.state == "failed"} == {
        "momentum is not for the optimizer adam, which has no momentum"
    }


@needs_optuna
def test_a_second_process_joins_and_both_end_with_all_trials(tmp_path):
    folder = tmp_path / "x"
    process = working(folder)
    wait_for((folder / "trial-0001").exists, process)
    found = search(CONFIG, VARY, 14, folder)
    assert process.wait(120) == 0, process.stderr.read()
    process.stderr.close()
    assert search(CONFIG, VARY, 14, folder).trials == found.trials
    assert [one.ended for one in found.trials] == [True] * 14
    assert found.best.test_accuracy is not None
    assert sum(one.test_accuracy is not None for one in found.trials) == 1


# Files that may be untrusted


SHORT = with_values(CONFIG, {"epochs": 1}), ["model=report,vgg_small", "lr=0.1..1"], 1


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A search of one trial, which no test may change."""
    folder = tmp_path_factory.mktemp("search") / "short"
    search(*SHORT, folder)
    return folder


def claim(short, tmp_path, change):
    """Return the same search with another journal."""
    shutil.copytree(short, tmp_path / "x")
    lines = [json.loads(line) for line in (short / "journal.jsonl").read_text().splitlines()]
    (tmp_path / "x" / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    return lambda: search(
        with_values(CONFIG, {"epochs": 1}), ["model=report,vgg_small", "lr=0.1..1"], 1, tmp_path / "x"
    )


@needs_optuna
def test_values_that_a_journal_claims_are_not_believed(short, tmp_path):
    def change(lines):
        (begin,) = (k for k, line in enumerate(lines) if "params" in line)
        choices = {"name": "CategoricalDistribution", "attributes": {"choices": ["os:system", "report"]}}
        lines[begin]["distributions"]["model"] = json.dumps(choices)
        lines[begin]["params"]["model"] = 0
        return lines[: begin + 1]

    with pytest.raises(CheckpointError, match=r"trial 0: vary: 'os:system' is no value of model=report,vgg_small$"):
        claim(short, tmp_path, change)()


@needs_optuna
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("state", value) for value in ("running", "x", None, [])),
        *(("value", value) for value in ("x", math.inf, True, [])),
        *(("seconds", value) for value in ("x", math.nan, None)),
        *(("note", 3), ("number", 7), ("folder", "/"), ("test_loss", "x"), ("epoch", 10**400)),
    ],
)
def test_a_result_that_a_journal_claims_must_make_sense(short, tmp_path, name, value):
    def change(lines):
        for line in lines:
            if "result" in line.get("user_attr", {}):
                line["user_attr"]["result"][name] = value
        return lines

    with pytest.raises(CheckpointError, match=r"^the search .*journal\.jsonl: the state is invalid: [^\n]*$"):
        claim(short, tmp_path, change)()


@needs_optuna
@pytest.mark.parametrize("name", ["trial-0000", "journal.jsonl"])
def test_no_link_leads_out_of_the_folder_of_a_search(short, tmp_path, name):
    again = claim(short, tmp_path, lambda lines: lines)
    path, outside = tmp_path / "x" / name, tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(CheckpointError, match=rf"{name} is a link, which a search does not follow; remove it$"):
        again()


@needs_optuna
@pytest.mark.parametrize("content", ["x\n", "{}\n", "[]\n", '{"op_code": 0}\n', '{"op_code": 99, "worker_id": "a"}\n'])
def test_a_journal_that_makes_no_sense_is_one_sentence(tmp_path, content):
    (tmp_path / "journal.jsonl").write_text(content * 2)
    with pytest.raises(CheckpointError, match=r"^the search .*journal\.jsonl: the state is invalid: "):
        search(CONFIG, VARY, 1, tmp_path)


def test_the_folder_of_a_run_is_none_of_a_search(checkpoint):
    pytest.importorskip("optuna")
    with pytest.raises(UsageError, match=r"holds a run; choose another folder$"):
        search(CONFIG, VARY, 1, checkpoint.parent)


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(XcnnError, match=r"^a search needs optuna; pip install 'optuna>=5'$"):
        search(CONFIG, VARY, 1, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# The command

QUICK = ["search", "--model", "report", "--epochs", "2", "--validation", "0.3", "--vary", "lr=1e-3..1:log"]


@needs_optuna
def test_the_command_prints_a_table_or_json_and_draws(xcnn, tmp_path):
    options = ["--vary", "model_options.filters=1..3", "--trials", "6", "-o", "x"]
    code, out, err = xcnn(*QUICK, *options)
    assert code == 0, err
    assert out.startswith("report on digits: ")
    assert "trial  val loss  epoch  lr " in out
    *lines, last = [line for line in err.splitlines() if line.startswith(("trial ", "next: "))]
    assert len(lines) == 6
    code, again, err = xcnn(*QUICK, *options, "--json")
    assert code == 0, err
    *trials, best = map(json.loads, again.splitlines())
    assert [one["trial"] for one in trials] == list(range(6))
    assert best["best"] == min((one["val_loss"], one["trial"]) for one in trials if one["state"] == "complete")[1]
    assert f"{best['test_accuracy']:.2%}" in out
    assert last == f"next: xcnn predict {best['folder']} --index 0"
    assert xcnn("predict", best["folder"], "--index", "0")[0] == 0
    (tmp_path / "c.toml").write_text('model = "report"\nepochs = 2\nvalidation = 0.3\n')
    assert xcnn("search", "--config", "c.toml", *QUICK[7:], *options, "--json")[1] == again
    code, out, _ = xcnn("evaluate", best["folder"], "--json")
    assert json.loads(out)["test_accuracy"] == best["test_accuracy"]
    with Image.open(tmp_path / "x" / "search.png") as image:
        assert np.asarray(image.convert("L")).std() > 5  # not blank


@needs_optuna
def test_a_command_without_a_complete_trial_fails(xcnn):
    wrong = ("--vary", "model_options.filter=1..3", "--trials", "2", "-o", "x")
    code, out, err = xcnn(*QUICK, *wrong)
    assert (code, out) == (1, "")
    assert err.endswith(
        f"error: none of the 2 trials is complete; the reasons are in {os.path.join('x', 'trials.csv')}\n"
    )


@needs_optuna
def test_an_interrupted_command_goes_on(xcnn, tmp_path):
    """The signal comes in the first epochs, unless the machine is so busy that it comes after the last one."""
    for epochs in ("30", "300"):
        command = [*QUICK[:3], "--epochs", epochs, *QUICK[5:], "--trials", "2", "--no-prune", "-o", epochs]
        process = start(*command, cwd=tmp_path)
        wait_for((tmp_path / epochs / "trial-0000" / "history.jsonl").exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        if process.returncode:
            break
    assert process.returncode == 130, err
    assert "the same command goes on with them" in err
    assert " interrupted\n" in out
    code, _, err = xcnn(*command)
    assert code == 0, err
    assert [len(history(path)) for path in tmp_path.glob(f"{epochs}/trial-*")] == [int(epochs)] * 2
    assert f"resuming from {epochs}/trial-000" in err
