"""Runs on folders of images: their settings reach the images, in memory or not, also of `predict`."""

import dataclasses
import functools
import threading

import numpy as np
import pytest
from kill_runs import result
from PIL import Image
from test_resume_run import Press

from xcnn import data
from xcnn.data.folder import load_folder
from xcnn.errors import DataError
from xcnn.runs import Config, restore, train
from xcnn.training import Callback

CONFIG = Config(
    dataset="folder", image_size=8, resize="pad", background="#204060", model="report", epochs=2, batch_size=4,
    validation=0.2, augment=("shift",), checkpoint_every="3steps",
)  # fmt: skip


def images(folder, count, *parts):
    rng = np.random.default_rng(0)
    for part in parts or ("",):
        for name in ("cats", "dogs"):
            (folder / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (12, 9 + k, 4)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{k}.png")
    return dataclasses.replace(CONFIG, data_dir=folder)


def test_images_of_a_run_are_made_as_its_settings_say(tmp_path):
    config = images(tmp_path / "pets", 10)
    press = Press()
    train(config, tmp_path / "run", [press])
    *found, few = press.told
    assert few.startswith("OneCycleLR has ")
    assert found == [
        "pets: 2 classes (cats 10, dogs 10), 20 colour images of 9x12 to 18x12 pixels, resized to 8x8 (pad)",
        "pets: 16 images to train, 4 to test",
        "pets: 3 of the images to train are held out to validate",
    ]
    restored = restore(tmp_path / "run")
    path = tmp_path / "pets" / "cats" / "4.png"  # the first of the test
    file, test = restored.predict([path], [0])
    expected = data.read_image(path, (3, 8, 8), resize="pad", background="#204060")
    for one in (file, test):
        assert np.array_equal(one.image, data.to_float(expected))
    assert np.array_equal(file.probabilities, test.probabilities)


def test_a_validation_part_of_the_folder_is_used(tmp_path):
    config = images(tmp_path / "pets", 3, "train", "val", "test")
    press = Press()
    ended = train(config, tmp_path / "run", [press])
    assert press.told[1:-1] == ["pets: 6 images to train, 6 to validate, 6 to test"]
    assert ended.history[0]["val_loss"] is not None
    without = train(dataclasses.replace(config, validation=0, patience=2, monitor="val_accuracy"), tmp_path / "other")
    assert [record["val_loss"] for record in without.history] == [record["val_loss"] for record in ended.history]


@pytest.fixture
def files(monkeypatch):
    """Keep no images in memory, and return the names of the threads that decoded some."""
    names = set()

    class Spied(data.ImageFiles):
        def __getitem__(self, index):
            names.add(threading.current_thread().name)
            return super().__getitem__(index)

    monkeypatch.setattr("xcnn.data.folder.ImageFiles", Spied)
    entry = dataclasses.replace(data.DATASETS["folder"], load=functools.partial(load_folder, in_memory=0))
    monkeypatch.setitem(data.DATASETS, "folder", entry)
    return names


def test_weights_do_not_depend_on_where_images_are_or_who_decodes_them(tmp_path, files, monkeypatch):
    config = images(tmp_path / "pets", 10)
    press, main = Press(), threading.current_thread().name
    train(dataclasses.replace(config, workers=0), tmp_path / "0", [press])
    assert press.told[1] == "pets: 16 images to train, 4 to test; they are decoded each time that they are needed"
    assert files == {main}
    train(config, tmp_path / "default")
    assert len(files - {main}) in (1, 2)  # threads
    train(dataclasses.replace(config, workers=4), tmp_path / "stopped", [Press(5)])
    train(dataclasses.replace(config, workers=1), tmp_path / "stopped", resume=True)
    monkeypatch.undo()
    train(config, tmp_path / "memory")
    first, *others = (result(tmp_path / name) for name in ("memory", "0", "default", "stopped"))
    assert others == [first] * 3


def test_a_broken_image_stops_a_run_or_is_left_out(tmp_path):
    config = images(tmp_path / "pets", 10)
    (tmp_path / "pets" / "cats" / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 21 images cannot be used"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    press = Press()
    train(dataclasses.replace(config, skip_broken=True), tmp_path / "run", [press])
    assert press.told[0].startswith("pets: left out 1 of 21 images: ")
    assert restore(tmp_path / "run").evaluate().samples == 4


def test_unequal_classes_are_told_where_nothing_is_done_about_it(xcnn, tmp_path):
    images(tmp_path / "pets", 6)
    for path in (tmp_path / "pets" / "cats").glob("*.png"):
        if path.stem not in ("0", "1"):
            path.unlink()
    flags = ["train", "--dataset", "folder", "--data-dir", "pets", "--image-size", "8", "--validation", "0"]
    flags += ["--model", "report", "--epochs", "1"]
    hint = "pets: the largest class to train has 5 times the images of the smallest; consider --class-weight balanced\n"
    code, _, err = xcnn(*flags, "-o", "run")
    assert (code, hint in err) == (0, True), err
    code, _, err = xcnn("evaluate", "run")
    assert (code, err) == (0, "pets: 2 images to test, every 5th of each class, as there is no folder pets/test\n")
    code, _, err = xcnn(*flags, "--class-weight", "balanced")
    assert (code, "largest class" in err) == (0, False), err


def test_the_command_takes_and_explains_the_settings(xcnn, tmp_path):
    images(tmp_path / "pets", 6)
    code, _, err = xcnn("train", "--data-dir", "pets")
    assert (code, err.count("\n")) == (2, 1)
    assert "for images of your own in pets, add --dataset folder" in err
    (tmp_path / "pets" / "cats" / "x.png").write_bytes(b"no image")
    flags = ["--dataset", "folder", "--data-dir", "pets", "--image-size", "8", "--model", "report", "--epochs", "1"]
    code, _, err = xcnn("train", *flags)
    assert code == 1
    assert "1 of 13 images cannot be used" in err
    assert "or leave them out with --skip-broken\n" in err
    for wrong in (["--resize", "squash"], ["--background", "pink"], ["--workers", "-1"]):
        code, _, err = xcnn("train", *flags, *wrong)
        assert (code, wrong[0].strip("-") in err) == (2, True)
    code, _, err = xcnn("train", *flags, "--skip-broken", "--resize", "stretch", "--workers", "1", "-o", "run")
    assert code == 0, err
    assert "left out 1 of 13 images" in err
    assert "resized to 8x8 (stretch)" in err
    code, _, err = xcnn("train", "--resume", "run", "--epochs", "2")
    assert code == 0, err


def test_a_run_is_evaluated_on_other_folders(tmp_path):
    """Labels go by the names of the classes; some may be missing, and there need be no images to train."""
    config = dataclasses.replace(images(tmp_path / "pets", 10), normalize=True)
    rng = np.random.default_rng(1)
    new, flat = tmp_path / "new", tmp_path / "flat"
    for name, count in (("dogs", 7), ("owls", 4)):
        for folder in (tmp_path / "pets" / name, new / "test" / name):
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                Image.fromarray(rng.integers(0, 256, (9, 8)).astype(np.uint8)).save(folder / f"new{k}.png")
    train(config, tmp_path / "run")
    told = []
    metrics = restore(tmp_path / "run", data_dir=new, tell=told.append).evaluate()
    restored, classes = restore(tmp_path / "run"), ("cats", "dogs", "owls")
    counts = np.zeros((3, 3), int)
    for path in (new / "test").rglob("*.png"):
        (found,) = restored.predict([path])
        counts[classes.index(path.parent.name), int(found.probabilities.argmax())] += 1
    assert np.array_equal(metrics.confusion, counts)
    assert counts.sum() == 11
    assert told == ["new: 11 images to test"]
    (new / "test").rename(flat)
    assert restore(tmp_path / "run", data_dir=flat, tell=told.append).evaluate().samples == 2
    assert told[1:] == ["flat: 2 images to test, every 5th of each class, as there is no folder flat/test"]
    (flat / "owls").rename(flat / "rats")
    with pytest.raises(DataError, match=r"flat has images of rats, which are not among the classes cats, dogs, owls$"):
        restore(tmp_path / "run", data_dir=flat).evaluate()


@pytest.mark.parametrize(("augment", "threads"), [((), 0), (("flip",), 1)])
def test_a_thread_prepares_augmented_batches(tmp_path, augment, threads):
    class Feeds(Callback):
        def on_fit_start(self, trainer, batches, epochs):
            self.workers = [feed.source.workers for feed in trainer.feeds]

    seen = Feeds()
    train(Config(model="report", epochs=1, batch_size=500, augment=augment), tmp_path / "out", [seen])
    assert seen.workers == [threads, threads]
