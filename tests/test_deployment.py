"""The programs of docs/deployment.md say what `xcnn predict` says, from the file alone.

The browser's is run in Node if `$XCNN_NODE_MODULES` is a folder `node_modules` with onnxruntime-web, the one in C++ if
`$XCNN_ONNXRUNTIME` is a folder with `include` and `lib` of ONNX Runtime.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xcnn as package
from xcnn import nn, onnx
from xcnn.data import read_image

pytest.importorskip("onnxruntime")

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
CLASSES = ("kitten", "dög", "a b")


def program(name):
    """Return a program of the page by the name in its first line."""
    if not PAGE.exists():
        pytest.skip("runs away from the source tree, without docs/")
    blocks = re.findall(r"^```\w+\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if block.split("\n")[0].split()[-1] == name)


@pytest.fixture(params=["RGB", "L"])
def network(request, tmp_path):
    """A folder with a network, exported in float32 and in 8 bits, of colour or of grey images of 12 x 8 pixels."""
    channels = len(request.param)
    normalize = nn.Normalize((0.5,) * channels, (0.1,) * channels)
    model = nn.Sequential(normalize, nn.Conv2d(channels, 64, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(960, 3))
    model.reset_parameters(0)
    shape = (channels, 8, 12)
    package.save(model, tmp_path / "net.safetensors", shape=shape, classes=CLASSES)
    about = {"resize": "crop", "background": "white", "range": [0, 1], "channels": request.param}
    onnx.save(model, tmp_path / "net.onnx", shape, classes=CLASSES, preprocessing=about)
    return tmp_path, model, shape, about


def photo(path, size=(50, 31), mode="RGB", seed=0):
    """Write a picture with coarse patterns."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, len(mode)), np.uint8)
    Image.fromarray(small.squeeze(), mode).resize(size, Image.Resampling.BICUBIC).save(path)


def ran(*command, cwd):
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_in_python_needs_no_xcnn_and_says_what_the_network_says(network):
    folder, model, shape, about = network
    (folder / "classify.py").write_text(program("classify.py"), "utf-8")
    assert "xcnn" not in re.sub(r'map\["xcnn"\]', "", program("classify.py"))
    cases = {3: [("crop", False, "RGB"), ("stretch", False, "RGBA")], 1: [("pad", True, "L")]}
    for resize, softmax, mode in cases[shape[0]]:
        photo(folder / "photo.png", mode=mode)
        about |= {"resize": resize, "background": "#20c040"}
        onnx.save(model, folder / "b.onnx", shape, classes=CLASSES, preprocessing=about, softmax=softmax)
        x = read_image(folder / "photo.png", shape, resize=resize, background="#20c040")[None] / np.float32(255)
        odds = np.exp(model(x)[0])
        lines = ran(sys.executable, "-X", "utf8", "classify.py", "b.onnx", "photo.png", cwd=folder).splitlines()
        found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
        near = 0.03 if mode == "RGBA" else 1e-3  # colours are put on the background before scaling
        assert found == pytest.approx(dict(zip(CLASSES, odds / odds.sum(), strict=True)), abs=near)
        assert sorted(found.values(), reverse=True) == list(found.values())


def pictures(folder, model, shape):
    """Return inputs and their pictures as RGBA by the class that the network sees."""
    found = {}
    for seed in range(30):
        photo(folder / "photo.png", shape[:0:-1], seed=seed)
        x = read_image(folder / "photo.png", shape)[None] / np.float32(255)
        found[CLASSES[int(model(x).argmax())]] = x, Image.open(folder / "photo.png").convert("RGBA")
    assert len(found) > 1
    return found.items()


def test_the_program_for_browsers_in_node(network):
    modules = os.environ.get("XCNN_NODE_MODULES")
    if not modules or not shutil.which("node"):
        pytest.skip("needs node, and XCNN_NODE_MODULES with onnxruntime-web")
    folder, model, shape, _ = network
    (folder / "node_modules").symlink_to(Path(modules).resolve())
    (folder / "classify.mjs").write_text(program("classify.mjs"), "utf-8")
    (folder / "net.json").write_text(json.dumps({"inputs": {"x": ["N", *shape]}, "classes": CLASSES}), "utf-8")
    (folder / "run.mjs").write_text(
        'import * as ort from "onnxruntime-web";\nimport { classify } from "./classify.mjs";\n'
        'import { readFileSync } from "node:fs";\n'
        'const about = JSON.parse(readFileSync("net.json", "utf-8"));\n'
        "for (const file of process.argv.slice(2)) {\n"
        "  const session = await ort.InferenceSession.create(file);\n"
        '  console.log(await classify(ort, session, about, new Uint8ClampedArray(readFileSync("pixels"))));\n}\n'
    )
    x = np.random.default_rng(0).random((50, *shape), np.float32)
    onnx.quantize(folder / "net.onnx", folder / "int8.onnx", [x])
    session = onnx.Session(folder / "int8.onnx")
    for name, (x, image) in pictures(folder, model, shape):
        (folder / "pixels").write_bytes(image.tobytes())
        found = ran("node", "run.mjs", "net.onnx", "int8.onnx", cwd=folder).splitlines()
        assert found == [name, CLASSES[int(session(x).argmax())]]


def test_the_program_in_cpp(network):
    home = os.environ.get("XCNN_ONNXRUNTIME")
    if not home or not shutil.which("g++"):
        pytest.skip("needs g++, and XCNN_ONNXRUNTIME with include and lib of ONNX Runtime")
    folder, model, shape, _ = network
    (folder / "classify.cpp").write_text(program("classify.cpp"), "utf-8")
    (folder / "onnxruntime").symlink_to(Path(home).resolve())
    line = re.search(r"^    (g\+\+ .*)$", PAGE.read_text("utf-8"), re.MULTILINE)[1]
    ran(*line.split(), "-Wall", "-Werror", f"-Wl,-rpath,{Path(home).resolve()}/lib", cwd=folder)
    for name, (_, image) in pictures(folder, model, shape):
        (image.convert("L") if shape[0] == 1 else image.convert("RGB")).save(folder / "photo.ppm")
        assert ran("./classify", "net.onnx", "photo.ppm", cwd=folder) == f"{name}\n"
