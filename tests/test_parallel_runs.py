"""Runs of `xcnn train` on several processes, in their folders, and what is dealt out of restored models."""

import dataclasses

import fake_processes
import numpy as np
import pytest
from fake_processes import alike
from PIL import Image

from xcnn import runs
from xcnn.errors import DataError, UsageError
from xcnn.runs import Config, recorded_settings
from xcnn.runs.checkpoint import BEST, read_checkpoint
from xcnn.training import Callback
from xcnn.training.processes import ALONE

RNG = np.random.default_rng(7)

CONFIG = Config(
    epochs=2, accumulate=4, model="mnist_cnn", augment=("shift",), opt="sgd", lr=0.05, batch_size=100,
    checkpoint_every="3steps",
)  # fmt: skip


class Fails(Callback):
    """As if all processes were killed."""

    def on_batch_end(self, trainer, epoch, batch, metrics):
        if trainer.steps == 17:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return runs.train(CONFIG, tmp_path_factory.mktemp("alone") / "run")


def same(result, other):
    states = [read_checkpoint(one.folder / BEST).state for one in (result, other)]
    assert alike(states)
    assert result.confusion.tolist() == other.confusion.tolist()
    assert (result.test_loss, result.test_accuracy) == (other.test_loss, other.test_accuracy)
    return True


def test_a_run_is_the_same_on_any_number_of_processes(alone, tmp_path):
    found = fake_processes.run(3, lambda one: runs.train(CONFIG, tmp_path / "run", parallel=one))
    assert all(same(result, alone) for result in found)
    assert recorded_settings(tmp_path / "run")["accumulate"] == 4
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2


def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        fake_processes.run(4, lambda one: runs.train(CONFIG, tmp_path, [Fails()], parallel=one))
    config = dataclasses.replace(CONFIG, accumulate=None)  # that of the run holds
    found = fake_processes.run(2, lambda one: runs.train(config, tmp_path, resume=True, parallel=one))
    assert all(same(result, alone) for result in found)


def test_too_few_parts_are_refused_before_a_folder_is_made(tmp_path):
    config = dataclasses.replace(CONFIG, accumulate=2)
    with pytest.raises(UsageError, match="accumulate must be at least the number of processes, 3, got 2"):
        fake_processes.run(3, lambda one: runs.train(config, tmp_path / "run", parallel=one))
    assert not (tmp_path / "run").exists()


def test_the_number_of_processes_is_recorded_as_the_number_of_parts(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, accumulate=None)
    fake_processes.run(2, lambda one: runs.train(config, tmp_path / "two", parallel=one))
    assert recorded_settings(tmp_path / "two")["accumulate"] == 2
    runs.train(config, tmp_path / "one")
    assert recorded_settings(tmp_path / "one")["accumulate"] == 1


def test_what_the_first_process_refuses_all_refuse(alone, tmp_path):
    seen = []

    def again(processes):
        with pytest.raises(UsageError, match="already holds a run") as caught:
            runs.train(CONFIG, alone.folder, parallel=processes)
        seen.append(caught.value.setting)

    fake_processes.run(3, again)
    assert seen == ["out"] * 3


def test_files_and_test_images_are_dealt_out(alone, tmp_path):
    files = []
    for k in range(11):
        files.append(tmp_path / f"{k}.png")
        Image.fromarray(RNG.integers(0, 256, (20, 20), np.uint8)).save(files[-1])
    files[4].write_bytes(b"no image")

    def both(processes):
        broken = []
        restored = runs.restore(alone.folder, parallel=processes)
        found = restored.predict(files, [3, 1], broken=lambda error: broken.append(str(error)))
        return restored.evaluate(), found, broken

    (metrics, wanted, broken), *others = [both(ALONE), *fake_processes.run(3, both)]
    assert [one.name for one in wanted] == [*(str(file) for file in files if file != files[4]), "digits-3", "digits-1"]
    for other, found, fault in others:
        assert (other.loss, other.accuracy) == (metrics.loss, metrics.accuracy)
        assert other.confusion.tolist() == metrics.confusion.tolist()
        assert fault == broken
        assert len(fault) == 1
        for one, two in zip(found, wanted, strict=True):
            assert one.name == two.name
            assert one.image.tobytes() == two.image.tobytes()
            assert one.probabilities.tobytes() == two.probabilities.tobytes()
    nothing = fake_processes.run(
        2, lambda one: runs.restore(alone.folder, parallel=one).predict(files[4:5], broken=str)
    )
    assert nothing == [[], []]

    def refused(processes):
        with pytest.raises(DataError) as caught:
            runs.restore(alone.folder, parallel=processes).predict(files)
        return str(caught.value)

    assert {refused(ALONE), *fake_processes.run(3, refused)} == {*broken}
