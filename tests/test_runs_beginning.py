"""Runs that begin with other weights, frozen or normalised, through the command."""

import dataclasses

import numpy as np
import pytest
from kill_runs import result
from PIL import Image
from safetensors.numpy import save_file
from test_resume_run import Press

from xcnn import data, models, runs
from xcnn.errors import CheckpointError, UsageError
from xcnn.runs import Checkpoint, Checkpoints, Config, load_checkpoint, recorded_settings, train
from xcnn.training import Callback

CONFIG = Config(model="report", epochs=1, validation=0.8)
QUICK = ["train", "--model", "report", "--epochs", "1", "--validation", "0.8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(CONFIG, folder)
    return folder


def weights(folder):
    return load_checkpoint(folder).state


def bits(state):
    return {name: array.tobytes() for name, array in state.items()}


@pytest.mark.parametrize("kind", ["run", "checkpoint", "step", "saved", "plain"])
def test_a_run_begins_with_the_weights_of_a_file(tmp_path, trained, kind):
    source = {
        "run": trained,
        "checkpoint": trained / "best.safetensors",
        "step": max((trained / "checkpoints").glob("step-*")),
        "saved": tmp_path / "saved.safetensors",
        "plain": tmp_path / "plain.safetensors",
    }[kind]
    if kind == "saved":
        runs.save(runs.load(trained), source)
    if kind == "plain":
        save_file(weights(trained), source)
    press = Press()
    train(dataclasses.replace(CONFIG, init=source, opt="sgd", lr=1e-30), tmp_path / "out", [press])
    assert press.told[0].startswith("begins with 3 of 3 arrays from")
    expected = load_checkpoint(source, "report").state
    assert bits(weights(tmp_path / "out")) == bits(expected)  # steps of 1e-30 change no bit
    assert recorded_settings(tmp_path / "out")["init"] == str(source.resolve())


def test_a_new_head_is_told_and_a_frozen_trunk_keeps_its_bits(xcnn, tmp_path):
    """The trunk is a ResNet for three classes, with running statistics."""
    trunk = models.build("resnet20", (1, 8, 8), 3, seed=5)
    state = {name: np.asarray(array * 0.75, array.dtype) for name, array in trunk.state_dict().items()}
    head = [name for name, array in state.items() if 3 in array.shape[:1] and array.size < 300]
    save_file(state, tmp_path / "trunk.safetensors")
    patterns = sorted({name.split(".")[0] + ".*" for name in state} - {head[0].split(".")[0] + ".*"})
    flags = ["--model", "resnet20", "--epochs", "1", "--validation", "0.8", "-b", "96"]
    code, _, err = xcnn(
        "train", *flags, "--init", "trunk.safetensors", "--freeze", ",".join(patterns), "--json", "-o", "out"
    )
    assert code == 0, err
    assert f"; new: {', '.join(head)}; not used: {', '.join(sorted(head))}\n" in err
    ended = weights(tmp_path / "out")
    fresh = models.build("resnet20", (1, 8, 8), 10, seed=0).state_dict()
    trained = sum(fresh[name].size for name in head)
    assert f" {trained:,} of " in err
    for name in state:
        same = state[name] if name not in head else fresh[name]
        assert np.array_equal(ended[name], same) == (name not in head), name


def test_new_weights_that_are_frozen_are_told(xcnn, tmp_path):
    save_file(models.build("report", (3, 8, 8), 10).state_dict(), tmp_path / "x.safetensors")  # of colour images
    first = next(iter(models.build("report", (1, 8, 8), 10).state_dict()))
    flags = ["--model", "report", "--epochs", "1", "--init", "x.safetensors", "--freeze", first, "-o", "out"]
    code, _, err = xcnn("train", *flags)
    assert code == 0, err
    assert f"; new and frozen, so they stay as they are drawn: {first}\n" in err


def test_a_file_that_does_not_fit_is_refused(xcnn, tmp_path):
    save_file({"other.weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    code, _, err = xcnn(*QUICK, "--init", "other.safetensors", "-o", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "--init: no weights of other.safetensors have a name and a shape of this network; the file has" in err
    code, _, err = xcnn(*QUICK, "--init", "missing.safetensors", "-o", "out")
    assert (code, err.count("\n")) == (1, 1)
    assert "missing.safetensors" in err
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_matches_nothing_or_everything_is_refused(xcnn, tmp_path):
    first = next(iter(models.build("report", (1, 8, 8), 10).state_dict()))
    code, _, err = xcnn(*QUICK, "--freeze", first.replace("weight", "wieght"))
    assert code == 2
    assert f"--freeze: no parameter matches '{first.replace('weight', 'wieght')}'; the names most like it" in err
    assert first in err
    code, _, err = xcnn(*QUICK, "--freeze", "*")
    assert code == 2
    assert "--freeze: the patterns * leave no weight to train" in err
    assert not (tmp_path / "runs").exists()


SETTINGS = {
    "init and freeze": {"freeze": ("0.*",)},
    "normalize": {"normalize": True, "freeze": ("0.*",)},
    "ema, class weights and parts": {"ema": 0.8, "class_weight": "balanced", "accumulate": 2, "validation": 0.7},
    "ema without validation": {"ema": 0.8, "validation": 0.0, "batch_size": 300},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_as_the_whole_one(tmp_path, trained, name):
    given = dict(SETTINGS[name])
    source = tmp_path / "source.safetensors"
    source.write_bytes((trained / "best.safetensors").read_bytes())
    config = dataclasses.replace(CONFIG, epochs=2, checkpoint_every="3steps", init=source, **given)
    whole = train(config, tmp_path / "whole")
    press = Press(2)
    assert train(config, tmp_path / "stopped", [press]).interrupted == 130
    source.unlink()  # it is not read again
    train(config, tmp_path / "stopped", [Press(7)], resume=True)
    ended = train(config, tmp_path / "stopped", resume=True)
    if config.validation:
        assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    newest, expected = (Checkpoints(tmp_path / name / "checkpoints").find() for name in ("stopped", "whole"))
    assert bits(newest.state) == bits(expected.state)
    assert bits(newest.average) == bits(expected.average)
    assert ended.test_loss == whole.test_loss


@pytest.mark.parametrize("own", [False, True])
def test_normalisation_belongs_to_the_file(tmp_path, monkeypatch, own):
    """Also for a network of user code that does not keep its arguments, so that the file has no structure."""
    (tmp_path / "mine_network.py").write_text(FORGETFUL)
    monkeypatch.chdir(tmp_path)
    model = "mine_network:Forgetful" if own else "report"
    config = dataclasses.replace(CONFIG, model=model, normalize=True, dataset="folder", data_dir=photos(tmp_path))
    config = dataclasses.replace(config, image_size=8, validation=0.25, batch_size=8)
    ended = train(config, tmp_path / "out")
    found = load_checkpoint(tmp_path / "out")
    assert (found.structure is None) == own
    assert all(name.startswith("1.") for name in found.state)
    restored = runs.restore(tmp_path / "out", model=model)
    assert restored.evaluate().loss == pytest.approx(ended.test_loss, rel=1e-6)
    train_part = data.split(data.load("folder", config.data_dir, size=8)[0], 0.25, 0)[0]
    x = train_part.x / 255
    mean, std = (f(x, axis=(0, 2, 3)) for f in (np.mean, np.std))
    assert np.allclose(found.statistics["mean"], mean)
    assert np.allclose(found.statistics["std"], std)
    bare = models.build(model, (3, 8, 8), 2)
    bare.load_state_dict({name[2:]: array for name, array in found.state.items()})
    image = data.read_image(config.data_dir / "a" / "0.png", (3, 8, 8))[None] / 255
    scores = bare(((image - mean[:, None, None]) / std[:, None, None]).astype(np.float32))[0]
    (one,) = restored.predict([config.data_dir / "a" / "0.png"])
    assert np.allclose(one.probabilities, np.exp(scores) / np.exp(scores).sum(), atol=1e-5)


FORGETFUL = """
from xcnn import nn
class Forgetful(nn.Module):
    def __init__(self, shape, classes):
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
    def forward(self, x, train):
        return self.inner.forward(x, train)
"""


def photos(folder):
    rng = np.random.default_rng(0)
    for name, low in (("a", 0), ("b", 100)):
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(10):
            pixels = rng.integers(low, low + 100, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{k}.png")
    return folder / "photos"


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_weights_fit_with_and_without_normalisation(tmp_path, before, after):
    train(dataclasses.replace(CONFIG, normalize=before), tmp_path / "first")
    press = Press()
    config = dataclasses.replace(CONFIG, normalize=after, init=tmp_path / "first", opt="sgd", lr=1e-30)
    train(config, tmp_path / "second", [press])
    assert press.told[0].startswith("begins with 3 of 3 arrays from")
    first, second = ({name.removeprefix("1."): array.tobytes() for name, array in weights(tmp_path / name).items()}
                     for name in ("first", "second"))  # fmt: skip
    assert first == second
    assert ("inputs are normalised as in this file" in press.told) == (before > after)
    means = [load_checkpoint(tmp_path / name).statistics.get("mean") for name in ("first", "second")]
    assert means[1] == (means[0] or means[1])
    assert (means[1] is None) == (not before and not after)


@pytest.mark.parametrize("ground", [255, 0])
def test_predict_hints_at_inverted_images(xcnn, tmp_path, ground):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "drawings" / name).mkdir(parents=True)
        for k in range(6):
            pixels = np.full((8, 8), ground, np.uint8)
            pixels[2:6, 2:6] = rng.integers(0, 256, (4, 4))
            Image.fromarray(pixels).save(tmp_path / "drawings" / name / f"{k}.png")
    config = dataclasses.replace(CONFIG, dataset="folder", data_dir=tmp_path / "drawings", image_size=8, validation=0.0)
    train(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").statistics["border"] == ground / 255
    Image.fromarray(255 - pixels).save(tmp_path / "x.png")
    Image.fromarray(pixels).save(tmp_path / "y.png")
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(tmp_path / "grey.png")
    drawn = "dark on light" if ground else "light on dark"
    hint = f"x.png looks inverted against the training images ({drawn}): try --invert\n"
    code, _, err = xcnn("predict", "run", "x.png", "y.png", "grey.png")
    assert code == 0, err
    assert err.endswith(hint)
    assert "inverted" not in xcnn("predict", "run", "x.png", "--invert")[2]
    _, _, err = xcnn("predict", "run", "y.png", "y.png", "--invert")
    assert f"y.png and 1 more look inverted against the training images ({drawn}): try without --invert\n" in err
    few = runs.restore(tmp_path / "run").predict([tmp_path / "x.png", tmp_path / "y.png"], [0])
    assert [one.inverted for one in few] == [True, False, False]


def test_averaged_weights_are_kept_and_tested(tmp_path):
    """The averages are computed here from the weights after each step."""
    steps = []

    class Look(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            steps.append(trainer.model.state_dict())

    config = dataclasses.replace(CONFIG, ema=0.4, opt="sgd", lr=0.1)
    train(config, tmp_path / "out", [Look()])
    average = {name: array.astype(float) for name, array in models.build("report", (1, 8, 8), 10).state_dict().items()}
    for step, state in enumerate(steps, 1):
        decay = min(0.4, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * array for name, array in state.items()}
    best = weights(tmp_path / "out")
    for name, array in best.items():
        assert np.allclose(array, average[name], atol=1e-6)
        assert not np.allclose(array, steps[-1][name], atol=1e-4)
    newest = max((tmp_path / "out" / "checkpoints").glob("step-*"))
    assert bits(weights(newest)) == bits(steps[-1])  # from which it resumes
    for path in (newest, tmp_path / "out"):
        assert bits(runs.load(path).state_dict()) == bits(best)


def test_a_run_without_validation_tests_its_average(tmp_path):
    config = dataclasses.replace(CONFIG, ema=0.9, validation=0.0, batch_size=256, opt="sgd", lr=0.2)
    ended = train(config, tmp_path / "out")
    assert (ended.best_epoch, ended.weights) == (0, "last, of epoch 1, averaged")
    tested = runs.restore(tmp_path / "out").evaluate()
    assert tested.loss == pytest.approx(ended.test_loss, rel=1e-6)
    plain = train(dataclasses.replace(config, ema=None), tmp_path / "plain")
    assert plain.test_loss != pytest.approx(ended.test_loss, rel=1e-5)


@pytest.mark.parametrize(
    "callbacks", [3, {"EMA": 3}, {"EMA": {"average": [1]}}, {"EMA": {"average": {"0.weight": "x"}}}]
)
def test_an_average_that_makes_no_sense_is_refused(tmp_path, callbacks):
    model = models.build("report", (1, 8, 8), 10)
    path, about = tmp_path / "x.safetensors", Checkpoint("report", (1, 8, 8), tuple("0123456789"), "digits")
    runs.save_checkpoint(path, model, dataclasses.replace(about, training={"callbacks": callbacks}))
    for use in (runs.load, runs.restore, lambda path: train(dataclasses.replace(CONFIG, init=path), tmp_path / "run")):
        with pytest.raises(CheckpointError):
            use(path)
    assert not (tmp_path / "run").exists()


def test_classes_of_few_images_weigh_more(tmp_path, monkeypatch):
    everything, test = data.load("digits")
    skewed = everything[np.concatenate([np.flatnonzero(everything.y == k)[: 10 + 10 * k] for k in range(10)])]
    monkeypatch.setitem(data.DATASETS, "digits", data.catalog.Entry("", lambda folder: (skewed, test)))
    seen = []

    class Look(Callback):
        def on_fit_start(self, trainer, batches, epochs):
            seen.append(trainer.loss.options["weight"])

    config = dataclasses.replace(CONFIG, class_weight="balanced", validation=0.0)
    ended = train(config, tmp_path / "out", [Look()])
    assert np.allclose(seen[0], [550 / (10 * (10 + 10 * k)) for k in range(10)])
    assert runs.restore(tmp_path / "out").evaluate().loss == pytest.approx(ended.test_loss, rel=1e-6)  # all the same


def test_a_class_without_images_has_no_weight(tmp_path, monkeypatch):
    train_set, test = data.load("digits")
    rest = train_set[np.flatnonzero(train_set.y != 3)]
    monkeypatch.setitem(data.DATASETS, "digits", data.catalog.Entry("", lambda folder: (rest, test)))
    with pytest.raises(UsageError, match="class_weight: no target is of the class 3") as caught:
        train(dataclasses.replace(CONFIG, class_weight="balanced"), tmp_path / "out")
    assert caught.value.setting == "class_weight"


def test_what_was_frozen_may_be_trained_in_a_resumed_run(xcnn, tmp_path):
    train(dataclasses.replace(CONFIG, freeze=("0.*",)), tmp_path / "out")
    before = weights(tmp_path / "out")
    assert bits(before)["0.weight"] == bits(models.build("report", (1, 8, 8), 10).state_dict())["0.weight"]
    code, _, err = xcnn("train", "--resume", "out", "--epochs", "2")  # with the patterns of the run
    assert code == 0, err
    assert "weights are trained" in err
    assert bits(weights(tmp_path / "out"))["0.weight"] == bits(before)["0.weight"]
    press = Press()
    train(dataclasses.replace(CONFIG, epochs=3, freeze=("*.bias",)), tmp_path / "out", [press], resume=True)
    assert "freeze was ['0.*'] and is ['*.bias']: it applies from here on" in press.told
    newest = max((tmp_path / "out" / "checkpoints").glob("step-*"))
    assert bits(weights(newest))["0.weight"] != bits(before)["0.weight"]
