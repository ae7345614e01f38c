"""The numbers that the page's server sends are those of the network, whatever the page changes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_page import BYTES, JSON, Arrays, Page, digits, serving, unlimited

from xcnn import explain, nn
from xcnn.data import to_float
from xcnn.devices import device
from xcnn.errors import UsageError, XcnnError
from xcnn.explain import trace
from xcnn.runs import Checkpoint, Restored, restore
from xcnn.serve.drawing import SIDE, made_like
from xcnn.serve.neuron import feeds
from xcnn.serve.session import Session, View
from xcnn.serve.wire import pack, unpack
from xcnn.testing import Backend


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def running(checkpoint: Path) -> Iterator[Page]:
    with serving(checkpoint) as page:
        yield page


@pytest.fixture
def page(running: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    yield from unlimited(running, monkeypatch)


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
