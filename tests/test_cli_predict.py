"""`xcnn predict` and `xcnn evaluate`: images, folders and indices, tables and pictures, and mistakes."""

import csv
import json
import math

import numpy as np
import pytest
from commands import QUICK
from PIL import Image

from xcnn import data, models, nn
from xcnn.runs import Checkpoint, save, save_checkpoint


def test_predict_an_index(xcnn, checkpoint, tmp_path):
    code, out, _ = xcnn("predict", checkpoint, "--index", "3", "--json", "--pictures", "pictures")
    assert code == 0
    record = json.loads(out)
    _, test = data.load("digits")
    assert record["truth"] == test.classes[test.y[3]]
    assert sum(record["probabilities"].values()) == pytest.approx(1, rel=1e-5)
    assert record["class"] == max(record["probabilities"], key=record["probabilities"].get)
    assert record["probability"] == record["probabilities"][record["class"]]
    with Image.open(record["picture"]) as picture:
        assert min(picture.size) > 300


def test_predict_files(xcnn, checkpoint, tmp_path):
    """A test image saved as a PNG gets the same prediction as by its index; a large image is scaled down."""
    _, test = data.load("digits")
    Image.fromarray(test.x[3, 0]).save(tmp_path / "three.png")
    Image.fromarray(test.x[3, 0]).convert("RGB").resize((80, 80), 0).save(tmp_path / "big.jpg")
    code, out, err = xcnn("predict", checkpoint, "three.png", "big.jpg", "--index", "3", "--json")
    assert code == 0, err
    first, _, third = (json.loads(line) for line in out.splitlines())
    assert first["probabilities"] == pytest.approx(third["probabilities"], rel=1e-4)
    assert not list(tmp_path.glob("prediction-*")), "pictures that nobody asked for"
    (tmp_path / "sub").mkdir()
    (tmp_path / "three.png").rename(tmp_path / "sub" / "big.png")
    assert xcnn("predict", checkpoint, "big.jpg", "sub/big.png", "--pictures", "both")[0] == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["prediction-big-2.png", "prediction-big.png"]
    (tmp_path / "sub" / "big.png").rename(tmp_path / "three.png")
    code, out, _ = xcnn("predict", checkpoint, "three.png")
    assert code == 0
    assert f"three.png: class {first['class']}" in out
    assert len(out.splitlines()) == 2 + 10
    assert len(xcnn("predict", checkpoint, "three.png", "--top", "4")[1].splitlines()) == 2 + 4


def test_predict_folders(xcnn, checkpoint, tmp_path):
    """A folder stands for its images; one that cannot be read is left out, and the exit code says so."""
    _, test = data.load("digits")
    for i, name in enumerate(("a.png", "deep/b.png", ".hidden/c.png", "deep/.d.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.x[i, 0]).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    code, out, _ = xcnn("predict", checkpoint, "photos", "--index", "0,1", "--json", "--out", "all.jsonl")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["image"] for record in records] == ["photos/a.png", "photos/deep/b.png", "digits-0", "digits-1"]
    assert records[0]["probabilities"] == pytest.approx(records[2]["probabilities"], rel=1e-4)
    assert [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()] == records

    (tmp_path / "photos" / "a.png").write_bytes(b"damaged")
    code, out, err = xcnn("predict", checkpoint, "photos", "--index", "1", "--top", "2", "--out", "all.csv")
    assert code == 1
    assert "left out: photos/a.png cannot be read as an image" in err
    header, *rows = out.splitlines()
    assert header.split() == ["image", "truth", "class", "2nd"]
    assert [row.split()[0] for row in rows] == ["photos/deep/b.png", "digits-1"]
    with (tmp_path / "all.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["image", "truth", "class_1", "probability_1", "class_2", "probability_2"]
    assert (second["image"], second["truth"]) == ("digits-1", test.classes[test.y[1]])
    for row, record in ((first, records[1]), (second, records[3])):
        assert row["class_1"] == record["class"]
        assert float(row["probability_1"]) == pytest.approx(record["probability"], rel=1e-4)


def test_predict_follows_links_to_folders_once(xcnn, checkpoint, tmp_path):
    """As training does; a link that leads back is not followed round and round."""
    _, test = data.load("digits")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").mkdir()
    Image.fromarray(test.x[0, 0]).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "twice").symlink_to(tmp_path / "elsewhere")
    Image.fromarray(test.x[1, 0]).save(tmp_path / "outside.png")
    (tmp_path / "photos" / "up").symlink_to(tmp_path)
    code, out, err = xcnn("predict", checkpoint, "photos", "--json")
    assert code == 0, err
    assert [json.loads(line)["image"] for line in out.splitlines()] == ["photos/link/a.png"]


def test_predict_inverted(xcnn, checkpoint, tmp_path):
    _, test = data.load("digits")
    Image.fromarray(test.x[3, 0]).save(tmp_path / "light.png")
    Image.fromarray(255 - test.x[3, 0]).save(tmp_path / "dark.png")
    as_is, turned = (
        json.loads(xcnn("predict", checkpoint, *argv, "--json")[1])
        for argv in (["light.png"], ["dark.png", "--invert"])
    )
    assert as_is["probabilities"] == turned["probabilities"]


def test_no_picture_replaces_another(xcnn, checkpoint, tmp_path):
    _, test = data.load("digits")
    files = ["a/x.png", "b/x.png", "x-2.png", "X.png", "b/x.bmp"]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.fromarray(test.x[3, 0]).save(tmp_path / file)
    code, out, _ = xcnn("predict", checkpoint, *files, "--json", "--pictures", "out", "--out", "all.csv")
    with (tmp_path / "all.csv").open(newline="") as table:
        rows = [(row["image"], row["picture"]) for row in csv.DictReader(table)]
    assert rows == [(record["image"], record["picture"]) for record in map(json.loads, out.splitlines())]
    pictures = [json.loads(line)["picture"] for line in out.splitlines()]
    assert code == 0
    assert len({picture.casefold() for picture in pictures}) == len(files)
    assert sorted(f"out/{path.name}" for path in (tmp_path / "out").iterdir()) == sorted(pictures)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "nothing to predict: pass image files or indices of test images"),
        (["--index", "360"], 2, "--index must be from 0 to 359 (test images of digits), got 360"),
        (["--index", "-1"], 2, "--index"),
        (["none.png"], 1, "error: none.png cannot be read: No such file or directory"),
        (["text.png"], 1, "text.png"),
        (["--index", "0", "--model", "lenet5"], 2, "is a checkpoint of the model 'report', not of 'lenet5'"),
        (["--index", "0", "--dataset", "digit"], 2, "unknown data set 'digit'; did you mean 'digits'?"),
        (["--index", "0", "--pictures", "text.png"], 2, "--pictures: the folder text.png cannot be created"),
        (["--index", "0", "-o", "text.png"], 2, "--out must be a file that ends in .csv or .jsonl, got text.png"),
        (["--index", "0", "-o", "no/table.csv"], 2, "cannot write no/table.csv: there is no folder no"),
        (["--index", "0", "-o", "table.csv"], 2, "cannot write table.csv: it is a folder; name a file in it"),
        (["--index", "0", "--top", "0"], 2, "--top must be at least 1, got 0"),
        (["empty"], 2, "empty contains no images ("),
    ],
)  # fmt: skip
def test_predict_mistakes(xcnn, checkpoint, tmp_path, argv, code, message):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").mkdir()
    got, out, err = xcnn("predict", checkpoint, *argv)
    assert got == code
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_plain_weights_need_a_model(xcnn, tmp_path):
    from safetensors.numpy import save_file

    save_file(models.build("report", (1, 8, 8)).state_dict(), tmp_path / "w.safetensors")
    code, _, err = xcnn("evaluate", "w.safetensors")
    assert code == 1
    assert err == "error: w.safetensors holds weights but does not name its model; name it with --model\n"
    code, _, err = xcnn("evaluate", "w.safetensors", "--model", "report")
    assert code == 1
    assert err.endswith(", or name the data set (--dataset) or the --image-size if its images are of another size\n")
    assert xcnn("evaluate", "w.safetensors", "--model", "report", "--dataset", "digits")[0] == 0
    code, _, err = xcnn("evaluate", "w.safetensors", "--model", "vgg_small", "--dataset", "digits")
    assert code == 1
    assert "not match this model" in err


class Net(nn.Module):
    """A network of one's own, which is not called with (shape, classes)."""

    def __init__(self, width: int = 8, classes: int = 2):
        self.width, self.classes = width, classes
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(width, classes))

    def forward(self, x, train):
        return self.body.forward(x, train)


def net(shape, classes):
    return Net(math.prod(shape), classes)


def test_a_class_of_ones_own_is_built_by_a_function(xcnn, tmp_path):
    model = Net(64)
    model.reset_parameters(0)
    save(model, tmp_path / "own.safetensors", shape=(1, 8, 8), classes=["a", "b"])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    code, out, err = xcnn("predict", "own.safetensors", "x.png")
    words = "name the function (shape, classes) that builds it: --model package.module:function"
    assert (code, err) == (1, f"error: own.safetensors: the network has classes that are not in xcnn.nn; {words}\n")
    code, out, err = xcnn("predict", "own.safetensors", "x.png", "--model", f"{__name__}:Net")
    assert code == 2
    assert err.startswith(f"error: {__name__}:Net, called with (shape, classes) = ((1, 8, 8), 2): Linear: in_features ")
    code, out, err = xcnn("predict", "own.safetensors", "x.png", "--model", f"{__name__}:net", "--json")
    assert code == 0, err
    scores = np.exp(model.state_dict()["body.1.bias"].astype(float))  # of a black image
    assert list(json.loads(out)["probabilities"].values()) == pytest.approx(scores / scores.sum(), rel=1e-5)


def test_class_names_with_dollar_signs(xcnn, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a$^$", "b"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    folder = ["--dataset", "folder", "--data-dir", "pets"]
    code, _, err = xcnn(*QUICK, *folder, "--image-size", "8", "-o", "out")
    assert code == 0, err
    assert xcnn("predict", "out/best.safetensors", "--index", "0")[0] == 0
    (tmp_path / "pets" / "b" / "9x.png").write_bytes(b"damaged")
    code, _, err = xcnn("evaluate", "out")
    assert code == 1
    assert "1 of 21 images cannot be used: " in err
    assert err.endswith("or leave them out with --skip-broken\n")
    code, out, err = xcnn("evaluate", "out", "--skip-broken", "--json")
    assert (code, json.loads(out)["samples"]) == (0, 4)
    assert "pets: left out 1 of 21 images: " in err
    (tmp_path / "pets" / "b").rename(tmp_path / "pets" / "c")
    code, _, err = xcnn("evaluate", "out/best.safetensors")
    assert code == 1
    assert "pets has images of c, which are not among the classes a$^$, b" in err
    (tmp_path / "pets").rename(tmp_path / "moved")
    for argv in (["evaluate", "out"], ["predict", "out", "--index", "0"], ["train", "--resume", "out"]):
        code, _, err = xcnn(*argv)
        assert code == 2
        gone = tmp_path / "pets"
        assert f"--data-dir: the images of the run are looked for in {gone}, which is not there; name" in err


def test_evaluate_on_images_of_another_shape(xcnn, tmp_path):
    path = tmp_path / "w.safetensors"
    classes = tuple("0123456789")
    save_checkpoint(path, models.build("report", (1, 28, 28)), Checkpoint("report", (1, 28, 28), classes, "digits"))
    code, _, err = xcnn("evaluate", path)
    assert code == 2
    assert "the model takes (1, 28, 28) images of 10 classes, digits has (1, 8, 8) images of 10" in err


def test_evaluate_without_a_confusion_matrix_has_no_figures_of_classes(xcnn, checkpoint, monkeypatch):
    monkeypatch.setattr("xcnn.training.evaluation._MOST_CLASSES", 9)
    code, out, err = xcnn("evaluate", checkpoint)
    assert code == 0, err
    assert "test accuracy" in out
    assert "precision" not in out
    assert json.loads(xcnn("evaluate", checkpoint, "--json")[1])["classes"] == []
