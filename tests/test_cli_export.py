"""`xcnn export`: what it writes, says and refuses. The files are run by ONNX Runtime."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import xcnn as package
from xcnn import data, models, nn, onnx
from xcnn.runs import restore

runtime = pytest.importorskip("onnxruntime")
proto = pytest.importorskip("onnx")


def test_a_run_is_exported_and_what_was_written_is_told(xcnn, checkpoint, tmp_path):
    code, out, err = xcnn("export", checkpoint.parent, "--onnx", "digits.onnx")
    assert (code, err) == (0, "")
    path = tmp_path / "digits.onnx"
    told = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert out.startswith("digits.onnx\n")
    assert told["size"] == f"{path.stat().st_size:,} bytes"
    assert (told["opset"], told["classes"]) == ("17", "10")
    assert (told["input"], told["output"]) == ("x (N, 1, 8, 8)", "y (N, 10)")
    assert 0 <= float(told["error"].split()[0]) < 100
    session, restored = onnx.Session(path), restore(checkpoint)
    x = data.to_float(restored.test_set().x[:50])
    assert session(x) == pytest.approx(restored.model(x), rel=1e-4, abs=1e-4)
    about = {"resize": "crop", "background": "white", "range": [0, 1], "channels": "L"}
    assert session.metadata == onnx.Metadata((1, 8, 8), tuple("0123456789"), about)
    assert list(tmp_path.iterdir()) == [path]


def test_probabilities_a_newer_opset_and_json(xcnn, checkpoint, tmp_path):
    code, out, _ = xcnn("export", checkpoint, "--onnx", "a.onnx", "--softmax", "--opset", "21", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["inputs"] == {"x": ["N", 1, 8, 8]}
    assert record["outputs"] == {"y": ["N", 10]}
    assert record["bytes"] == (tmp_path / "a.onnx").stat().st_size
    assert 0 <= record["error"] < record["bound"]
    assert (record["calibrated"], record["accuracy"]) == (None, None)
    assert proto.load(tmp_path / "a.onnx").opset_import[0].version == record["opset"] == 21
    session = onnx.Session(tmp_path / "a.onnx")
    assert session(np.ones((2, 1, 8, 8), np.float32)).sum(axis=1) == pytest.approx([1, 1])
    assert session.metadata.softmax is True


def test_an_exported_file_of_8_bits_has_its_accuracy_beside_that_of_float32(xcnn, checkpoint, tmp_path):
    code, out, _ = xcnn("export", checkpoint, "--onnx", "a.onnx", "--int8", "--calibrate", "50", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["calibrated"] == 50
    assert record["accuracy"]["float32"] == json.loads(xcnn("evaluate", checkpoint, "--json")[1])["test_accuracy"]
    test = restore(checkpoint).test_set()
    found = onnx.Session(tmp_path / "a.onnx")(data.to_float(test.x[:])).argmax(1)
    assert record["accuracy"]["int8"] == pytest.approx((found == test.y[:]).mean())
    assert "QuantizeLinear" in {node.op_type for node in proto.load(tmp_path / "a.onnx").graph.node}
    lines = xcnn("export", checkpoint, "--onnx", "a.onnx", "--int8")[1].splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["calibrated", "float32 accuracy", "int8 accuracy"]
    assert "on 200 training images" in lines[-3]


def test_images_of_a_folder_calibrate_and_their_preparation_is_written(xcnn, tmp_path):
    for k in range(20):
        path = tmp_path / "photos" / ("dark", "light")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), (100 * (k % 2) + k, 50, 60)).save(path)
    code, _, err = xcnn(
        *("train", "--dataset", "folder", "--data-dir", "photos", "--image-size", "16", "--resize", "pad"),
        *("--normalize", "--epochs", "1", "--validation", "0", "--model", "report", "-o", "out"),
    )
    assert code == 0, err
    code, out, err = xcnn("export", "out", "--onnx", "a.onnx", "--int8", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["calibrated"] == 16
    metadata = onnx.Session(tmp_path / "a.onnx").metadata
    assert metadata.classes == ("dark", "light")
    assert metadata.preprocessing["resize"] == "pad"


def test_networks_of_your_own_are_exported(xcnn, tmp_path, monkeypatch):
    (tmp_path / "ours.py").write_text(
        "from xcnn import nn\n\n\n"
        "class Double(nn.Module):\n"
        "    def forward(self, x, train):\n"
        "        return 2 * x, lambda dy, need_dx: 2 * dy\n\n"
        "    def onnx(self, graph, x):\n"
        "        return graph.node('Mul', [x, 2.0])\n\n\n"
        "def build(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), Double(), nn.Linear(64, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ours", raising=False)
    code, _, err = xcnn("train", "--model", "ours:build", "--epochs", "1", "-o", "out")
    assert code == 0, err
    code, _, err = xcnn("export", "out", "--onnx", "a.onnx", "--model", "ours:build")
    assert code == 0, err
    assert "Mul" in {node.op_type for node in proto.load(tmp_path / "a.onnx").graph.node}
    code, _, err = xcnn("export", "out", "--onnx", "b.onnx")
    assert code == 2
    assert "names the model 'ours:build'; code is never imported because a file names it" in err


def test_a_saved_network_and_plain_weights_are_exported(xcnn, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    package.save(model, tmp_path / "a.safetensors", shape=(1, 8, 8), classes=tuple("abcdefghij"))
    assert xcnn("export", "a.safetensors", "--onnx", "a.onnx")[0] == 0
    assert onnx.Session(tmp_path / "a.onnx").metadata.classes == tuple("abcdefghij")
    save_file(models.build("report", (1, 8, 8), 10).state_dict(), tmp_path / "b.safetensors")
    code, _, err = xcnn("export", "b.safetensors", "--model", "report", "--dataset", "digits", "--onnx", "b.onnx")
    assert code == 0, err
    assert onnx.Session(tmp_path / "b.onnx").metadata.shape == (1, 8, 8)
    code, _, err = xcnn("export", "b.safetensors", "--model", "report", "--image-size", "8", "--onnx", "c.onnx")
    assert code == 0, err
    x = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    assert np.array_equal(*(onnx.Session(tmp_path / name)(x) for name in ("b.onnx", "c.onnx")))


def test_a_network_that_gives_maps_or_takes_no_images_is_exported(xcnn, tmp_path):
    package.save(nn.Sequential(nn.Conv2d(3, 2, 3)), tmp_path / "maps.safetensors", shape=(3, 9, 7))
    code, out, err = xcnn("export", "maps.safetensors", "--onnx", "maps.onnx")
    assert code == 0, err
    assert "y (N, 2, 7, 5)" in out
    assert "classes" not in out
    assert onnx.Session(tmp_path / "maps.onnx").metadata.classes == ()
    code, _, err = xcnn("export", "maps.safetensors", "--onnx", "b.onnx", "--int8")
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "b.onnx").exists()
    package.save(nn.Sequential(nn.Linear(4, 3)), tmp_path / "rows.safetensors", shape=(4,), classes=("a", "b", "c"))
    assert xcnn("export", "rows.safetensors", "--onnx", "rows.onnx")[0] == 0
    assert onnx.Session(tmp_path / "rows.onnx").metadata == onnx.Metadata((4,), ("a", "b", "c"))


def test_an_onnx_file_is_exported_with_what_it_says(xcnn, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(4, 2))
    about = {"resize": "pad", "background": "#ff0000", "range": [0, 1], "channels": "RGB"}
    onnx.save(model, tmp_path / "a.onnx", (3, 6, 6), classes=("cat", "dog"), preprocessing=about, softmax=True)
    code, _, err = xcnn("export", "a.onnx", "--onnx", "b.onnx", "--opset", "20")
    assert code == 0, err
    session = onnx.Session(tmp_path / "b.onnx")
    assert session.metadata == onnx.Metadata((3, 6, 6), ("cat", "dog"), about)
    x = np.random.default_rng(0).random((3, 3, 6, 6), np.float32)
    assert session(x) == pytest.approx(model(x), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "export needs the file to write: --onnx FILE.onnx"),
        (["--onnx"], 2, "--onnx takes a value"),
        (["--onnx", "a.txt"], 2, "--onnx must be a file that ends in .onnx, got a.txt"),
        (["--onnx", "nowhere/a.onnx"], 2, "cannot write nowhere/a.onnx: there is no folder nowhere"),
        (["--onnx", "a.onnx", "--opset", "16"], 2, "error: --opset must be an integer from 17 to "),
        (["--onnx", "a.onnx", "--opset", "99"], 2, "error: --opset must be an integer from 17 to "),
        (["--onnx", "a.onnx", "--calibrate", "9"], 2, "--calibrate is the number of images for int8, which is not set"),
        (["--onnx", "a.onnx", "--int8", "--calibrate", "0"], 2, "--calibrate must be at least 1, got 0"),
        (["--onnx", "a.onnx", "--int8", "--dataset", "mnits"], 2, "unknown data set 'mnits'; did you mean 'mnist'?"),
        (["--onnx", "a.onnx", "--model", "lenet5"], 2, "is a checkpoint of the model 'report', not of 'lenet5'"),
        (["--onxn", "a.onnx"], 2, "xcnn export has no flag --onxn; did you mean --onnx?"),
    ],
)
def test_mistakes_end_in_one_sentence(xcnn, checkpoint, tmp_path, argv, code, message):
    got, out, err = xcnn("export", checkpoint, *argv)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_one_sentence_says_how_to_get_them(xcnn, checkpoint, tmp_path, monkeypatch):
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            code, out, err = xcnn("export", checkpoint, "--onnx", "a.onnx")
        assert (code, out) == (2, "")
        assert err == f"error: ONNX needs the package {name}; pip install onnx onnxruntime\n"
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_written_leaves_no_file(xcnn, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(b"old")
    monkeypatch.delitem(onnx.EXPORTS, "conv2d")
    code, out, err = xcnn("export", checkpoint, "--onnx", "a.onnx")
    assert (code, out) == (2, "")
    assert err.startswith("error: 0 (Conv2d) cannot be written as ONNX: the op conv2d has no exporter")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
