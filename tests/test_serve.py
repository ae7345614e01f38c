"""The page's server: its numbers are those of the network, and it refuses what the page does not send."""

import functools
import http.client
import importlib
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcnn import explain, nn
from xcnn.data import to_float
from xcnn.devices import device
from xcnn.errors import UsageError, XcnnError
from xcnn.explain import trace
from xcnn.runs import Checkpoint, Restored, restore, save_checkpoint
from xcnn.serve import app as app_room
from xcnn.serve import limits
from xcnn.serve import server as server_room
from xcnn.serve.drawing import SIDE, made_like
from xcnn.serve.neuron import feeds
from xcnn.serve.server import Server
from xcnn.serve.session import Session, View
from xcnn.serve.wire import pack, unpack
from xcnn.testing import Backend

for package in ("starlette", "uvicorn"):
    pytest.importorskip(package, reason=f"{package} is not installed (extra serve)")

Arrays = dict[Any, np.ndarray]
JSON, BYTES = "application/json", "application/octet-stream"


class Page:
    """What the page does, over HTTP."""

    def __init__(self, session: Session) -> None:
        self.session, self.told = session, list[str]()
        self.server = Server(session, 0, self.told.append)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def ask(self, name: str, body: Any = None, kind: str = JSON, query: str = "") -> tuple[dict[str, Any], Arrays]:
        """Return the header and the arrays by kind, those of layers by (kind, layer)."""
        sent = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        status, _, answer = self.request("POST", f"/api/{name}{query}", sent, {"Content-Type": kind})
        assert status == 200, answer
        header, arrays = unpack(answer)
        keys = [row["kind"] if "layer" not in row else (row["kind"], row["layer"]) for row in header["arrays"]]
        return header, dict(zip(keys, arrays, strict=True))

    def refused(self, name: str, body: Any, kind: str = JSON, query: str = "") -> str:
        """Return the sentence with which a change is refused."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, answer = self.request("POST", f"/api/{name}{query}", sent, {"Content-Type": kind})
        assert 400 <= status < 500, answer
        return str(json.loads(answer)["error"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for the digits with random weights."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 10)),
    )
    model.reset_parameters(0)
    about = Checkpoint("", (1, 8, 8), tuple("0123456789"), "digits", statistics={"border": 0.17})
    return save_checkpoint(tmp_path_factory.mktemp("serve") / "digits.safetensors", model, about)


@pytest.fixture(scope="module")
def running(checkpoint: Path) -> Iterator[Page]:
    page = Page(Session(restore(checkpoint)))
    with page.server:
        while not page.server.started:
            time.sleep(0.01)
        yield page


@pytest.fixture
def page(running: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """The page on the trained network."""
    monkeypatch.setattr(limits, "_BURST", 1e9)
    monkeypatch.setattr(limits, "_PER_SECOND", 1e9)
    running.session.reset(View())
    running.told.clear()
    yield running
    assert running.told == []


@pytest.fixture
def everything(page: Page) -> str:
    """The query for all maps of all layers."""
    layers = json.loads(page.request("GET", "/api/about")[2])["layers"]
    return "?layers=" + ",".join(f"{k}:1000" for k in range(len(layers)))


def drawn_seven() -> np.ndarray:
    ink = np.zeros((SIDE, SIDE), np.uint8)
    ink[20:32, 20:80] = 255
    for y in range(20, 100):
        ink[y, 74 - (y - 20) // 2 : 86 - (y - 20) // 2] = 255
    return ink


def test_the_page_gets_the_arrays_of_the_network(page: Page, everything: str, checkpoint: Path) -> None:
    fresh = restore(checkpoint)
    test = fresh.test_set()
    header, arrays = page.ask("example", {"index": 3}, query=everything)
    assert header["name"] == "test image 3"
    assert header["truth"] == test.y[3]
    found = trace(fresh.model, to_float(test.x[3:4]))
    assert np.array_equal(arrays["x"], found.x[0])
    assert np.array_equal(arrays["scores"], found.y[0])
    shares = np.exp(found.y[0] - found.y[0].max())
    np.testing.assert_allclose(arrays["probabilities"], shares / shares.sum(), rtol=1e-5)
    for place, call in enumerate(found.layers):
        assert np.array_equal(arrays["y", place], call.y[0]), call.name
        row = next(row for row in header["arrays"] if row.get("layer") == place)
        assert (row["low"], row["high"]) == (call.y.min(), call.y.max())
    _, some = page.ask("look", query="?layers=0:5,2")
    assert some["y", 0].shape[0] == 5
    assert set(some) == {"x", "scores", "probabilities", ("y", 0), ("y", 2)}


def test_about_describes_the_layers(page: Page, checkpoint: Path) -> None:
    about = json.loads(page.request("GET", "/api/about")[2])
    calls = trace(restore(checkpoint).model, np.zeros((1, 1, 8, 8), np.float32)).layers
    assert [(row["name"], row["shape"]) for row in about["layers"]] == [(c.name, list(c.y.shape[1:])) for c in calls]
    assert about["layers"][0]["parameters"] == sum(p.data.size for p in calls[0].module.parameters())
    assert about["classes"] == list("0123456789")
    assert about["test"] == 360


def test_gradients_flow_back_from_a_class(page: Page, everything: str) -> None:
    page.ask("example", {"index": 5})
    header, arrays = page.ask("look", query=f"{everything}&target=7")
    assert header["target"] == 7
    found = trace(page.session.model, arrays["x"][None])
    dx = found.backward(np.eye(10, dtype=np.float32)[7:8])
    assert np.array_equal(arrays["dx"], dx[0])
    for place, call in enumerate(found.layers):
        assert np.array_equal(arrays["dy", place], call.dy[0]), call.name
    for why in ("grad_cam", "occlusion"):
        _, other = page.ask("look", query=f"?target=7&why={why}")
        wanted = getattr(explain, why)(page.session.model, arrays["x"][None], 7)
        wanted = explain.upsample(wanted, (8, 8)) if why == "grad_cam" else wanted
        assert np.array_equal(other["why"], wanted[0].astype(np.float32))
        assert "dx" not in other


def test_a_channel_is_switched_off_and_on_again(page: Page, everything: str) -> None:
    _, before = page.ask("example", {"index": 1}, query=everything)
    header, off = page.ask("switch", {"layer": 2, "channel": 4, "off": True}, query=everything)
    name = trace(page.session.model, before["x"][None]).layers[2].name
    assert header["off"] == {name: [4]}
    wanted = trace(page.session.model, before["x"][None], off={name: [4]})
    assert np.array_equal(off["scores"], wanted.y[0])
    assert not off["y", 2][4].any()
    header, on = page.ask("switch", {"layer": 2, "channel": 4, "off": False}, query=everything)
    assert header["off"] == {}
    assert all(np.array_equal(on[key], before[key]) for key in before)
    assert "channel must be from 0 to" in page.refused("switch", {"layer": 2, "channel": 999, "off": True})


def test_a_weight_is_changed_and_reset(page: Page, everything: str, checkpoint: Path) -> None:
    _, before = page.ask("example", {"index": 1}, query=everything)
    edit = {"layer": 0, "parameter": "weight", "index": [1, 0, 2, 0], "value": -1.5}
    header, edited = page.ask("edit", edit, query=everything)
    assert header["edited"]
    fresh = restore(checkpoint).model
    slot = next(iter(fresh.parameters()))
    new = np.array(slot.data)
    new[1, 0, 2, 0] = -1.5
    slot.data = new
    wanted = trace(fresh, before["x"][None])
    assert np.array_equal(edited["scores"], wanted.y[0])
    assert not np.array_equal(edited["scores"], before["scores"])
    header, back = page.ask("reset", query=everything)
    assert not header["edited"]
    assert all(np.array_equal(back[key], before[key]) for key in before)
    assert "index must be a place in" in page.refused("edit", {**edit, "index": [1, 0, 2]})
    assert "index must be a place in" in page.refused("edit", {**edit, "index": [1, 0, 2, -1]})
    assert "value must be a number in" in page.refused("edit", {**edit, "value": 1e9})
    assert "no parameter 'forward'" in page.refused("edit", {**edit, "parameter": "forward"})
    assert "no parameter" in page.refused("edit", {**edit, "layer": 1})


def test_a_step_lowers_the_loss_as_computed_by_hand(page: Page) -> None:
    _, before = page.ask("example", {"index": 2})
    old = page.session.model.state_dict()
    found = trace(page.session.model, before["x"][None])
    scores = before["scores"].astype(np.float64)
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    found.backward((shares - np.eye(10)[4])[None].astype(np.float32), parameters=True)
    header, after = page.ask("step", {"label": 4, "lr": 0.01})
    scores = after["scores"].astype(np.float64)
    loss = -np.log(np.exp(scores[4] - scores.max()) / np.exp(scores - scores.max()).sum())
    assert header["losses"] == pytest.approx([-np.log(shares[4]), loss], rel=1e-4)
    assert header["losses"][1] < header["losses"][0]
    new = page.session.model.state_dict()
    for name, gradient in found.gradients.items():
        np.testing.assert_allclose(new[name], old[name] - 0.01 * gradient, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in page.session.model.parameters())
    first = header["losses"]
    header, _ = page.ask("step", {"label": 4, "lr": 0.01})
    assert (header["losses"][:2], len(header["losses"]), header["label"]) == (first, 3, 4)
    header, _ = page.ask("step", {"label": 5, "lr": 0.01})  # the loss of another label is not compared with these
    assert (len(header["losses"]), header["label"]) == (2, 5)
    header, _ = page.ask("example", {"index": 3})
    assert header["losses"] == []
    page.ask("step", {"label": 5, "lr": 0.01})
    header, back = page.ask("reset")
    assert header["losses"] == []
    _, back = page.ask("example", {"index": 2})
    assert np.array_equal(back["scores"], before["scores"])


def test_a_step_that_would_ruin_the_network_is_refused(page: Page) -> None:
    page.ask("example", {"index": 2})
    page.ask("edit", {"layer": 0, "parameter": "weight", "index": [0, 0, 1, 1], "value": 1e6})
    page.ask("edit", {"layer": 8, "parameter": "bias", "index": [3], "value": 1e6})  # so that the loss is large
    for count in range(40):
        before = page.session.model.state_dict()
        sent = json.dumps({"label": 4 + count % 2, "lr": 1.0}).encode()
        status, _, answer = page.request("POST", "/api/step", sent, {"Content-Type": JSON})
        if status != 200:
            break
    assert "no longer finite; take a smaller one" in json.loads(answer)["error"]
    after = page.session.model.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert "lr must be a number in" in page.refused("step", {"label": 4, "lr": 1.5})
    assert "the class must be from 0 to 9" in page.refused("step", {"label": 10, "lr": 0.1})


def test_a_neuron_is_the_sum_of_what_feeds_it(page: Page) -> None:
    page.ask("ink", drawn_seven().tobytes(), BYTES)
    header, arrays = page.ask("neuron", {"layer": 2, "index": [3, 4, 0]})
    total = arrays["products"].sum(dtype=np.float64) + header["feeds"]["bias"]
    assert header["value"] == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert header["feeds"]["start"] == [3, -1]
    assert header["field"] == [[2, 7], [0, 3]]  # two convolutions of 3 x 3, cut at the border
    assert "layer must be from 0 to" in page.refused("neuron", {"layer": 99, "index": [0]})
    assert "index must be a place in" in page.refused("neuron", {"layer": 2, "index": [3, 99, 0]})


def test_a_request_that_is_refused_for_its_view_changes_nothing(page: Page) -> None:
    assert "target must be the number of a class" in page.refused("step", {"label": 1, "lr": 1}, query="?target=10")
    assert not page.ask("look")[0]["edited"]


RNG = np.random.default_rng(0)


def total(what: dict[str, Any], arrays: Arrays) -> float:
    """Return the value that the numbers of `feeds` give."""
    inputs = what.get("inputs", [])
    if what["kind"] in ("conv", "linear"):
        return float(arrays["products"].sum(dtype=np.float64) + (what["bias"] or 0.0))
    if what["kind"] in ("max", "mean"):
        return float({"max": np.nanmax, "mean": np.nanmean}[what["kind"]](arrays["window"]))
    if what["kind"] == "norm":
        return float((inputs[0] - what["mean"]) / what["deviation"] * what["weight"] + what["bias"])
    assert what["kind"] in ("same", "moved")
    return float(sum(inputs) if len(inputs) > 1 or what["kind"] == "moved" else max(0, inputs[0]))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), padding=((2, 0), (1, 1)), dilation=(1, 2), groups=2, bias=False),
        nn.Conv2d(4, 6, 4, padding="same"),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(2, dilation=2, ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1),
        nn.AvgPool2d((3, 2), padding=1, count_include_pad=False),
        nn.AvgPool2d(4, 3, padding=1, ceil_mode=True),  # whose last row of windows has grown
        nn.AdaptiveAvgPool2d((4, 3)),
        nn.AdaptiveMaxPool2d(1),
        nn.Sequential(nn.Flatten(1, 2), nn.Unflatten(2, (1, 7))),
        nn.GlobalAvgPool(),
        nn.GlobalMaxPool(),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.Normalize((0.5, 0.1, 0.2, 0.3), (1.0, 2.0, 3.0, 4.0)),
        nn.ReLU(),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 9 * 7, 5)),
        nn.Residual(nn.Conv2d(4, 4, 3, padding=1)),
    ],
    ids=str,
)
def test_feeds_give_the_value_of_every_kind_of_layer(module: nn.Module) -> None:
    for _, slot in [*module.named_parameters(), *module.named_buffers()]:
        if slot.data.ndim:
            slot.data = RNG.uniform(0.5, 1.5, slot.data.shape).astype(np.float32)
    x = RNG.normal(size=(1, 4, 9, 7)).astype(np.float32)
    for call in trace(nn.Sequential(module), x).layers:
        for index in {tuple(map(int, RNG.integers(call.y.shape[1:]))) for _ in range(12)}:
            what, arrays = feeds(call, index)
            assert total(what, arrays) == pytest.approx(call.y[(0, *index)], rel=1e-4, abs=1e-5), (call.name, index)
            if what["kind"] == "moved":
                assert call.x[(0, *what["source"])] == what["inputs"][0]


class Flip(nn.Module):
    """A layer of one's own, whose output has the shape of its input."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return x[..., ::-1], lambda dy, need_dx: dy[..., ::-1]


class Doubled(nn.Conv2d):
    """A convolution that does more than its class says."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        y, backward = super().forward(x, train)
        return 2 * y, lambda dy, need_dx: backward(2 * dy, need_dx)


@pytest.mark.parametrize(
    "module",
    [
        *(
            nn.ChannelShuffle(2),
            nn.Softmax(1),
            nn.InstanceNorm2d(4),
            nn.LocalResponseNorm(3),
            nn.Upsample(scale_factor=1),
        ),
        *(nn.AvgPool2d(2, divisor_override=3), Flip(), Doubled(4, 4, 3)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_feeds_claim_nothing_about_what_they_do_not_know(module: nn.Module) -> None:
    module.reset_parameters(0)
    (call,) = trace(nn.Sequential(module), RNG.normal(size=(1, 4, 9, 7)).astype(np.float32)).layers
    assert feeds(call, (1, 2, 3)) == ({"kind": "other"}, {})


def test_a_drawing_is_made_like_the_training_images() -> None:
    ink = drawn_seven()
    image = made_like(ink, (1, 28, 28), "mnist", True)[0]
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis, size in ((1, 28), (0, 28)):
        centre = image.sum(axis=axis) @ np.arange(size) / image.sum()
        assert abs(centre - size / 2) <= 0.5 + 1e-6
    moved = np.roll(ink, (8, -15), axis=(0, 1))  # where it was drawn does not matter
    assert np.array_equal(made_like(moved, (1, 28, 28), "mnist", True)[0], image)
    digit = made_like(ink, (1, 8, 8), "digits", True)[0]
    assert digit.any(axis=1).all()
    assert not digit[:, [0, -1]].all()
    other = made_like(ink, (3, 32, 32), "cifar10", False)
    assert other.shape == (3, 32, 32)
    assert other[:, -1].min() == 1.0  # dark on light
    assert np.array_equal(other[0], other[2])
    for dataset, shape in (("mnist", (1, 28, 28)), ("digits", (1, 8, 8)), ("", (1, 5, 9))):
        assert not made_like(np.zeros_like(ink), shape, dataset, True).any()
    for dot in (np.s_[0:1, 0:1], np.s_[110:112, 0:112], np.s_[0:112, 111:112]):  # at the border, and thin
        ink = np.zeros((SIDE, SIDE), np.uint8)
        ink[dot] = 255
        assert made_like(ink, (1, 28, 28), "mnist", True).max() > 0
        assert made_like(ink, (1, 8, 8), "digits", True).max() > 0


def test_a_photo_is_made_as_predict_makes_it(page: Page, tmp_path: Path, checkpoint: Path) -> None:
    from PIL import Image

    pixels = RNG.integers(0, 80, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    header, arrays = page.ask("photo", (tmp_path / "a.png").read_bytes(), BYTES)
    (wanted,) = restore(checkpoint).predict([tmp_path / "a.png"])
    assert header["name"] == "your photo"
    assert np.array_equal(arrays["x"], wanted.image)
    Image.fromarray(np.full((40, 30, 3), 250, np.uint8)).save(tmp_path / "b.png")
    header, arrays = page.ask("photo", (tmp_path / "b.png").read_bytes(), BYTES)
    assert "light and dark exchanged" in header["name"]
    assert arrays["x"].max() < 0.1
    said = page.refused("photo", b"no image", BYTES)
    assert said == "the photo cannot be read as an image (of these formats: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png", tmp_path / "b.png"]


def test_any_array_library_gives_the_same_arrays(backend: Backend, checkpoint: Path) -> None:
    made = [Session(restore(checkpoint, where)) for where in ("cpu", backend.spec)]
    for session in made:
        session.step(3, 0.1, View())
        session.edit(0, "weight", (0, 0, 0, 0), 0.5, View())
        session.switch(1, 2, True, View())
    ours, theirs = (session.ink(drawn_seven(), View({0: 8, 3: 12, 8: 10}, 7))[1] for session in made)
    for (what, wanted), (_, found) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=str(what))
    ours, theirs = (session.neuron(2, (3, 4, 0))[1] for session in made)
    for (_, wanted), (_, found) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def session(shape: tuple[int, ...], model: nn.Module, classes: str = "ab") -> Session:
    """Return a session on a network without test images."""

    def load(part: str, size: int | None) -> Any:
        raise XcnnError("the model takes others")

    return Session(Restored(Checkpoint("", shape, tuple(classes)), model, device("cpu"), "", "", load))


class Pair(nn.Module):
    """A layer that gives two arrays."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return (x, 2 * x), lambda dy, need_dx: dy[0] + 2 * dy[1]


def test_the_fields_of_a_layer_that_is_called_twice_are_those_of_each_call() -> None:
    relu = nn.ReLU()
    made = session(
        (1, 8, 8), nn.Sequential(nn.Conv2d(1, 2, 3), relu, nn.MaxPool2d(2), relu, nn.Flatten(), nn.Linear(18, 2))
    )
    fields = [made.neuron(layer, (0, 1, 2))[0]["field"] for layer in (0, 1, 2, 3)]
    assert fields == [[[1, 4], [2, 5]]] * 2 + [[[2, 6], [4, 8]]] * 2


def test_networks_of_any_kind_can_be_looked_at() -> None:
    one = session((1, 4, 4), Sum())  # a layer alone, which has no name
    with pytest.raises(UsageError, match="Sum has no channels that can be switched off"):
        one.switch(0, 0, True, View())
    assert one.neuron(0, (1,))[0]["feeds"] == {"kind": "other"}
    two = session((1, 4, 4), nn.Sequential(Pair(), nn.Add(), Sum()))
    with pytest.raises(UsageError, match="Pair has no channels that can be switched off"):
        two.switch(0, 0, True, View())
    with pytest.raises(UsageError, match=r"index must be a place in \(\)"):
        two.neuron(0, ())
    assert not two.about()["layers"][0]["drawn"]


class Sum(nn.Module):
    """A classifier without weights."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        shape = x.shape
        return x.sum(axis=(1, 3))[:, :2], lambda dy, need_dx: np.zeros(shape, np.float32)


def test_without_an_explanation_the_rest_is_answered() -> None:
    made = session((1, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    header, arrays = made.ink(drawn_seven(), View({0: 16}, 1, "grad_cam"))
    assert header["unexplained"].startswith("grad_cam: the network has no layer with maps")
    assert [what["kind"] for what, _ in arrays] == ["x", "scores", "probabilities", "y"]
    assert made.look(View({}, 1))[0]["unexplained"] == ""


def test_only_a_classifier_of_images_is_served() -> None:
    with pytest.raises(UsageError, match=r"must take images \(1 or 3, h, w\), got inputs of shape \(4,\)"):
        session((4,), nn.Linear(4, 2))
    with pytest.raises(UsageError, match=r"must give \(n, 2\), a score per class, got \(1, 2, 4, 4\)"):
        session((1, 4, 4), nn.Conv2d(1, 2, 1))
    made = session((3, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
    with pytest.raises(UsageError, match="there are no test images: the model takes"):
        made.example(0, View())


def test_answers_are_binary_with_a_header() -> None:
    answer = pack({"a": float("nan"), "b": [1.5, float("inf")]}, [({"kind": "x"}, np.arange(6).reshape(2, 3))])
    header, (x,) = unpack(answer)
    assert header == {"a": None, "b": [1.5, None], "arrays": [{"kind": "x", "shape": [2, 3]}]}
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (4 + int.from_bytes(answer[:4], "little")) % 4 == 0


# What is refused.


def test_the_page_and_nothing_else_is_served(page: Page) -> None:
    folder = Path(app_room.__file__).parent / "static"
    assert {file.name for file in folder.iterdir()} == set(app_room.FILES)
    for name, kind in app_room.FILES.items():
        status, headers, body = page.request("GET", f"/{name}" if name != "index.html" else "/")
        assert (status, headers["content-type"]) == (200, kind)
        assert body == (folder / name).read_bytes()
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    index = (folder / "index.html").read_text("utf-8")
    assert not re.search(r"https?:|<script(?! type=\"module\" src=)|\son\w+=|style=", index)
    for path in (
        "/index.html/../x",
        "/../app.py",
        "/%2e%2e/app.py",
        "/static/main.js",
        "//etc/passwd",
        "/api/",
        "/main.js/",
    ):
        assert page.request("GET", path)[0] == 404, path
    assert page.request("GET", "/api/look")[0] == 405
    assert page.request("POST", "/")[0] == 405
    assert page.request("OPTIONS", "/api/step", headers={"Origin": "http://a.example"})[0] == 405


def test_requests_of_other_sites_are_refused(page: Page) -> None:
    port, ours = page.server.port, {"Content-Type": JSON}
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.evil.example:{port}"):
        status, headers, _ = page.request("GET", "/", headers={"Host": host})
        assert status == 421
        assert "content-security-policy" in headers
    assert raw(page, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")
    for host in (f"localhost:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
        assert page.request("GET", "/", headers={"Host": host})[0] == 200
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert page.request("POST", "/api/reset", b"{}", {**ours, "Origin": origin})[0] == 403
    assert page.request("POST", "/api/reset", b"{}", {**ours, "Origin": f"http://127.0.0.1:{port}"})[0] == 200
    assert page.request("POST", "/api/reset", b"{}", {**ours, "Sec-Fetch-Site": "cross-site"})[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # those that need no preflight
        assert page.request("POST", "/api/reset", b"{}", {"Content-Type": kind})[0] == 415


def test_long_bodies_are_refused_before_they_have_come(page: Page) -> None:
    for path, limit in (("/api/look", 2**16), ("/api/photo", 2**24)):
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{page.server.port}\r\nContent-Type: {JSON}\r\n"
        assert raw(page, f"{head}Content-Length: {limit + 1}\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
    parts = b"".join(b"%x\r\n%b\r\n" % (2**15, b"x" * 2**15) for _ in range(3))
    head = f"POST /api/look HTTP/1.1\r\nHost: 127.0.0.1:{page.server.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(page, head.encode() + parts).startswith(b"HTTP/1.1 413")


def raw(page: Page, data: bytes, finish: bool = False, timeout: float = 20) -> bytes:
    """Return the answer to bytes on a connection of their own; `finish` says that no more will come."""
    with socket.create_connection(("127.0.0.1", page.server.port), timeout=timeout) as connection:
        answer = b""
        try:
            connection.sendall(data)
            if finish:
                connection.shutdown(socket.SHUT_WR)
            while b"\r\n\r\n" not in answer and (came := connection.recv(65536)):
                answer += came
        except (BrokenPipeError, ConnectionResetError):  # it has answered before all was sent
            pass
        return answer


def malformed(page: Page, draw: random.Random) -> bytes:
    """Return one of many kinds of request that no page sends."""
    host = f"Host: 127.0.0.1:{page.server.port}\r\n"
    junk = draw.randbytes(draw.randrange(1, 300))
    long = "a" * 10**6
    word = "".join(draw.choices("abcdefgh/.%0123&=?", k=draw.randrange(1, 40)))
    names = ["look", "example", "switch", "edit", "step", "reset", "neuron", "ink", "photo"]
    name = draw.choice(names)

    def post(body: bytes, more: str = "", kind: str = JSON, path: str = "", length: Any = None) -> bytes:
        size = len(body) if length is None else length
        head = f"POST {path or f'/api/{name}'} HTTP/1.1\r\n{host}Content-Type: {kind}\r\n"
        return f"{head}Content-Length: {size}\r\n{more}\r\n".encode() + body

    value = draw.choice([None, True, -1, 10**30, 1.5, -1e308, "x" * 5000, [], {}, [[]], "NaN", [1, None], [10**9] * 4])
    fields = {"layer": 0, "channel": 0, "off": True, "index": [0, 0], "parameter": "weight", "value": 1.0, "label": 1}
    wrong = {**fields, "lr": 0.1, draw.choice([*fields, "lr", "path", "model"]): value}
    bodies = [
        junk, b"", b"[" * 20_000, b'{"a":' * 5000, b"NaN", b'{"label": NaN, "lr": 0.1}',
        b'{"label": 1, "lr": Infinity}', b'{"label": 1, "lr": 1e999}', b'{"index": ' + b"9" * 6000 + b"}",
        b'"x"', b"null", b"\xff\xfe", b"{'a': 1}", json.dumps(wrong).encode(),
    ]  # fmt: skip
    body = draw.choice(bodies)
    name = draw.choice([one for one in names if one not in ("look", "reset")]) if body == b"" else name
    method = draw.choice(["PUT", "DELETE", "PATCH", "BREW", "TRACE", "CONNECT", "OPTIONS", "get"])
    query = draw.choice(["layers=-1", "layers=1;2", "layers=1:2:3", "target=99", "why=x", "a=1", "target=1&target=2"])
    traversals = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2fapp.py", "//etc/passwd", "/static/../app.py"]
    chunked = f"POST /api/look HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n".encode()
    kinds: list[Callable[[], bytes]] = [
        lambda: junk,
        lambda: junk + b"\r\n\r\n",
        lambda: f"GET /x{word}".encode(),
        lambda: f"GET /x{word} HTTP/1.1\r\n{host}\r\n".encode(),
        lambda: f"GET / HTTP/{draw.choice(['2', 'x', '1.1.1', ''])}\r\n{host}\r\n".encode(),
        lambda: f"GET {draw.choice(traversals)} HTTP/1.1\r\n{host}\r\n".encode(),
        lambda: f"{method} /api/{name} HTTP/1.1\r\n{host}\r\n".encode(),
        lambda: f"GET / HTTP/1.1\r\nHost: {word}\r\n\r\n".encode(),
        lambda: b"GET / HTTP/1.1\r\n\r\n",
        lambda: f"GET / HTTP/1.1\r\n{host}{host}\r\n".encode(),
        lambda: f"GET / HTTP/1.1\r\n{host}{long}: 1\r\n\r\n".encode(),
        lambda: f"GET / HTTP/1.1\r\n{host}Bad Header\r\n\r\n".encode(),
        lambda: post(b"{}", more=f"Origin: http://{word}\r\n", path="/api/reset"),
        lambda: post(b"{}", kind=word, path="/api/reset"),
        lambda: post(body),
        lambda: post(body),
        lambda: post(body),
        lambda: post(junk, kind=BYTES, path=draw.choice(["/api/ink", "/api/photo"])),
        lambda: post(b"{}", path=f"/api/look?{query}"),
        lambda: post(b'{"label": 1, "lr": 0.1}', path="/api/step", length=draw.choice(["-1", "x", 10**12, 5, 99])),
        lambda: chunked + draw.choice([b"xyz\r\n", b"-5\r\n", b"5\r\nab\r\n0\r\n\r\n", b"ffffffffffffffffffff\r\n"]),
    ]
    return draw.choice(kinds)()


def test_a_thousand_malformed_requests_change_nothing(
    page: Page, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(0)
    before = page.session.model.state_dict()
    statuses: dict[bytes, int] = {}
    with caplog.at_level(logging.DEBUG):
        for _ in range(1000):
            request = malformed(page, draw)
            answer = raw(page, request, finish=True)
            status = answer[9:12]
            statuses[status] = statuses.get(status, 0) + 1
            assert answer.startswith(b"HTTP/1.1 4"), (request[:300], answer)
    assert set(statuses) >= {b"400", b"403", b"404", b"405", b"413", b"415", b"421"}, statuses
    assert page.told == []
    assert [record for record in caplog.records if record.name != "asyncio"] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
    after = page.session.model.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert page.ask("look")[0]["off"] == {}
    assert page.request("GET", "/")[0] == 200


def test_slow_clients_are_sent_away(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_room, "_HEAD_SECONDS", 0.2)
    monkeypatch.setattr(limits, "_BODY_SECONDS", 0.2)
    host = f"Host: 127.0.0.1:{page.server.port}\r\n"
    assert raw(page, b"") == b""  # connected, and silent
    answer = raw(page, f"GET / HTTP/1.1\r\n{host}".encode())
    assert answer.startswith(b"HTTP/1.1 408")
    answer = raw(page, f"POST /api/look HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\n{{".encode())
    assert answer.startswith(b"HTTP/1.1 408")


def all_closed(page: Page, answered: int = 0) -> bool:
    """Return whether no connection is open any more, after a number of answers."""
    state, deadline = page.server._server.server_state, time.monotonic() + 20
    while (state.connections or state.total_requests < answered) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not state.connections


def test_clients_that_do_not_read_are_sent_away(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_room, "_READ_SECONDS", 0.2)
    request = f"GET /main.js HTTP/1.1\r\nHost: 127.0.0.1:{page.server.port}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", page.server.port), timeout=20) as client:
        answered = page.server._server.server_state.total_requests
        client.sendall(request * 800)  # more than the system keeps for a client that reads nothing
        assert all_closed(page, answered + 1)
        assert page.server._server.server_state.total_requests < answered + 800
    whole = page.request("GET", "/main.js")[2]
    with socket.create_connection(("127.0.0.1", page.server.port), timeout=20) as client:
        client.sendall(request * 20)
        answers = b""
        while answers.count(whole) < 20:  # one that reads is answered
            answers += client.recv(2**20)


def test_too_many_connections_are_closed(
    page: Page, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_room, "_CONNECTIONS", 5)
    monkeypatch.setattr(server_room, "_HEAD_SECONDS", 60.0)  # none is closed for being silent
    assert all_closed(page)
    clients = [socket.create_connection(("127.0.0.1", page.server.port), timeout=20) for _ in range(50)]
    closed = 0
    for client in reversed(clients):  # the first five stay open
        try:
            closed += client.recv(1) == b"" if closed < 45 else 0
        except ConnectionResetError:
            closed += 1
    assert closed == 45
    for client in clients:
        client.close()
    assert all_closed(page)
    assert page.request("GET", "/")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_too_many_requests_are_refused(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_AT_ONCE", 1)
    statuses: list[int] = []

    def look() -> None:
        statuses.append(page.request("POST", "/api/look", b"{}", {"Content-Type": JSON})[0])

    with page.session._lock:  # the first waits for it
        first = threading.Thread(target=look)
        first.start()
        status, deadline = 200, time.monotonic() + 20
        while status != 503 and time.monotonic() < deadline:
            status, headers, _ = page.request("GET", "/")
    assert (status, headers["retry-after"]) == (503, "1")
    first.join()
    assert statuses == [200]
    monkeypatch.setattr(limits, "_BURST", 2.0)
    monkeypatch.setattr(limits, "_PER_SECOND", 0.0)
    for _ in range(4):
        look()
    assert statuses == [200, 200, 200, 429, 429]


def test_the_process_can_end_while_the_network_runs(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, run = [], page.session._run

    def watched() -> Any:
        ends.append(threading.current_thread().daemon)  # which the interpreter does not wait for
        return run()

    monkeypatch.setattr(page.session, "_run", watched)
    page.ask("look")
    assert set(ends) == {True}


def test_an_unexpected_error_is_told_once(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.session, "_run", lambda: 1 / 0)
    for _ in range(3):
        status, _, body = page.request("POST", "/api/look", b"{}", {"Content-Type": JSON})
        assert (status, json.loads(body)) == (500, {"error": "unexpected ZeroDivisionError: division by zero"})
    assert page.told == ["unexpected ZeroDivisionError: division by zero (in /api/look)"]
    page.told.clear()


def test_it_listens_on_the_loopback_address_only(page: Page) -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc/net/tcp on this system")
    wanted = f"{page.server.port:04X}"
    addresses = []
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        addresses += [row[1].split(":")[0] for row in rows if row[1].endswith(f":{wanted}") and row[3] == "0A"]
    assert addresses == ["0100007F"]


def test_a_port_that_is_in_use_is_named(page: Page) -> None:
    with pytest.raises(UsageError, match=rf"port {page.server.port} is in use; choose another one, or 0"):
        Server(page.session, page.server.port)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(XcnnError, match=r"which is not installed: pip install 'xcnn\[serve\]'"):
        server_room.check()


# The command.


def start(*arguments: object, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command, and return it with the address that it prints."""
    command = [sys.executable, "-m", "xcnn", "serve", *map(str, arguments), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for other processes")
def test_the_command_serves_until_ctrl_c(
    checkpoint: Path, tmp_path: Path, xcnn: Callable[..., tuple[int, str, str]]
) -> None:
    process, url = start(checkpoint, folder=tmp_path)
    try:
        port = int(url.rpartition(":")[2].strip("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/api/about")
        assert json.loads(connection.getresponse().read())["test"] == 360
        said = f"error: --port {port} is in use; choose another one, or 0 for any that is free\n"
        assert xcnn("serve", "--port", port) == (2, "", said)  # before a network is trained, as there is no run
        process.send_signal(signal.SIGINT)  # while a connection is open
        out, err = process.communicate(timeout=20)
        connection.close()
    finally:
        process.kill()
    said = err.removeprefix("compiling kernels, each once on this machine\n")  # where nothing has run before
    assert (process.returncode, out, said) == (0, "", "ends with Ctrl-C\nended\n")
    assert list(tmp_path.iterdir()) == []


def test_without_a_run_a_small_network_is_trained_first(
    xcnn: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = importlib.import_module("xcnn.cli.serve")
    served: list[Session] = []
    monkeypatch.setattr(Server, "run", lambda self: self._socket.close())
    monkeypatch.setattr(command, "Session", functools.partial(_kept, served))
    monkeypatch.setattr(command, "_FIRST", command._FIRST.__class__(dataset="digits", model="report", epochs=1))
    code, out, err = xcnn("serve", "--port", 0)
    assert code == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", out)
    assert "training a small network on the digits for a few seconds" in err
    (run,) = (tmp_path / "runs").iterdir()
    code, out, err = xcnn("serve", "--port", 0)
    assert code == 0
    assert err.startswith(f"the newest run: runs/{run.name}\n")
    first, second = served
    assert np.array_equal(*(session.look(View())[1][1][1] for session in (first, second)))


def _kept(served: list[Session], *arguments: Any) -> Session:
    served.append(Session(*arguments))
    return served[-1]
