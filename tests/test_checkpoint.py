"""Checkpoint files: what is saved is loaded, PyTorch reads and writes them, and damaged files raise one sentence."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from xcnn import models
from xcnn.errors import CheckpointError, UsageError, WriteError
from xcnn.runs import Checkpoint, load_checkpoint, save_checkpoint
from xcnn.runs.sealed import write_sealed

DESCRIPTION = Checkpoint("resnet20", (1, 8, 8), tuple("abc"), "digits", {"lr": 0.1}, {"epoch": 2})


def described(**changes):
    """Return the metadata of a checkpoint, with some fields changed."""
    fields = {"model": "report", "shape": [1, 8, 8], "classes": ["a"], "dataset": "x"}
    return {
        "format": 5,
        **fields,
        "config": {},
        "metrics": {},
        "origin": {},
        "training": None,
        "structure": None,
        **changes,
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    model = models.build("resnet20", (1, 8, 8), 3, seed=4)
    return save_checkpoint(path, model, DESCRIPTION), model


def test_round_trip(saved):
    path, model = saved
    checkpoint = load_checkpoint(path)
    for field in ("model", "shape", "classes", "dataset", "config", "metrics"):
        assert getattr(checkpoint, field) == getattr(DESCRIPTION, field)
    built = checkpoint.build().state_dict()
    for name, value in model.state_dict().items():
        assert built[name].dtype == value.dtype
        assert built[name].shape == value.shape
        assert built[name].tobytes() == value.tobytes(), name
    assert [path.name for path in path.parent.iterdir()] == ["best.safetensors"]


def test_pytorch_lenet5_moves_both_ways(tmp_path):
    """Weights of a LeNet-5 in torch.nn.Sequential load into ours and give the same outputs, and the other way round."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as torch_load
    from safetensors.torch import save_file as torch_save

    t = torch.nn
    torch.manual_seed(0)
    theirs = t.Sequential(
        t.Conv2d(1, 6, 5, padding=2), t.ReLU(), t.MaxPool2d(2), t.Conv2d(6, 16, 5), t.ReLU(), t.MaxPool2d(2),
        t.Flatten(), t.Linear(400, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10),
    )  # fmt: skip
    torch_save(theirs.state_dict(), tmp_path / "theirs.safetensors")
    plain = load_checkpoint(tmp_path / "theirs.safetensors", "lenet5")
    ours = dataclasses.replace(plain, shape=(1, 28, 28), classes=tuple("0123456789")).build()
    x = np.random.default_rng(0).random((16, 1, 28, 28), dtype=np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).numpy(), atol=1e-5)
    ours.reset_parameters(5)
    save_checkpoint(
        tmp_path / "ours.safetensors", ours, Checkpoint("lenet5", (1, 28, 28), tuple("0123456789"), "mnist")
    )
    theirs.load_state_dict(torch_load(tmp_path / "ours.safetensors"), strict=True)
    with torch.no_grad():
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).numpy(), atol=1e-5)


def test_any_reader_of_safetensors_sees_the_weights(saved):
    path, model = saved
    assert load_file(path).keys() == model.state_dict().keys()


def test_a_plain_weight_file_does_not_name_its_model(tmp_path):
    save_file({"0.weight": np.zeros(3, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="holds weights but does not name its model; name the model"):
        load_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "is not an xcnn checkpoint"),
        ({"format": 99}, "written by another version of xcnn"),
        (described(config=[1]), "its config is not a dict"),
        (described(dataset=["digits"]), "its dataset is not a str"),
        (described(shape=[1, 60_000, 60_000]), "its inputs have the shape .*, expected from 1 to"),
        (described(shape=[1, float("inf"), 3]), "is not an xcnn checkpoint"),
        (described(classes=[]), "has no classes"),
        (described(shape=[1, "x"]), "is not an xcnn checkpoint"),
        (described(classes=["a"] * 100_001), "it has 100001 classes with 100001 characters; at most 100000"),
        (described(classes=["a" * 600_000] * 2), "it has 2 classes with 1200000 characters"),
        (described(format=4), "written by another version of xcnn"),
        (described(model="vgg99"), "the model 'vgg99', which this version of xcnn does not have"),
        (described(evil=1), "is not an xcnn checkpoint"),
        (described(training=[]), "its training is no"),
        (described(training={"a": {"$array": "xcnn:nothing"}}), "refers to an array 'xcnn:nothing' that is not there"),
    ],
)
def test_sealed_nonsense_is_refused(tmp_path, entry, message):
    """A seal proves that a file is as it was written, not that it makes sense."""
    path = tmp_path / "weights.safetensors"
    write_sealed(path, {"0.weight": np.zeros(3, np.float32)}, {"xcnn": entry})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_checkpoint_of_another_model_is_refused(saved):
    path, _ = saved
    with pytest.raises(UsageError, match="is a checkpoint of the model 'resnet20', not of 'lenet5'"):
        load_checkpoint(path, "lenet5")
    state = load_checkpoint(path).state
    with pytest.raises(CheckpointError, match=r"not match this model: missing 0\.bias"):
        Checkpoint("lenet5", (1, 28, 28), tuple("abc"), "mnist", state=state).build()


def test_the_folder_of_a_search_is_told_from_a_run(saved, tmp_path):
    for number in (0, 1):
        (tmp_path / "search" / f"trial-000{number}").mkdir(parents=True)
        shutil.copy(saved[0], tmp_path / "search" / f"trial-000{number}" / "best.safetensors")
    with pytest.raises(CheckpointError, match=r"search holds a search; name one of its trials, such as .*trial-0000;"):
        load_checkpoint(tmp_path / "search")
    assert load_checkpoint(tmp_path / "search" / "trial-0001").model == load_checkpoint(saved[0]).model


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nothing\.safetensors"):
        load_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE is POSIX")
def test_a_full_disk_leaves_the_old_file(saved, tmp_path):
    import resource
    import signal

    path = tmp_path / "best.safetensors"
    original = saved[0].read_bytes()
    path.write_bytes(original)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WriteError, match=f"cannot write {path}: File too large"):
            save_checkpoint(path, saved[1], DESCRIPTION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == original
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize("options", [{"seed": 1}, {"name": "os:system"}, {"filters": 10**9}, {"filtrs": 2}, [1], "x"])
def test_options_of_the_network_that_a_file_claims_must_make_sense(checkpoint, options):
    found = load_checkpoint(checkpoint)
    found = dataclasses.replace(found, model="report", structure=None, config={"model_options": options})
    with pytest.raises((CheckpointError, UsageError)):
        found.build()
