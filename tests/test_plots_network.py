"""The drawing of a network: its boxes and connections are those of the network, and no line crosses a box."""

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from svg_texts import joined, texts

from xcnn import explain, models, nn, plots
from xcnn.errors import UsageError
from xcnn.parameter import Parameter

pytest.importorskip("matplotlib")

room: Any = importlib.import_module("xcnn.plots.network")


def named(model: nn.Module, shape: tuple[int, ...], depth: int | None = None) -> set[tuple[str, str]]:
    """Return the connections of a drawing by the names of boxes; the input is "x"."""
    model.reset_parameters(0)
    found = explain.trace(model, np.zeros((1, *shape), np.float32))
    return {("x" if a is None else a.name, b.name) for a, b in room.arranged(found, depth)[1]}


def test_norms_and_activations_are_drawn_with_their_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)
    )
    assert named(model, (1, 8, 8)) == {("x", "0"), ("0", "3"), ("3", "4"), ("4", "5")}


def test_an_activation_that_another_layer_goes_around_has_a_box_of_its_own() -> None:
    model = nn.Graph([("a", nn.Conv2d(1, 1, 1), "x"), ("b", nn.ReLU(), "a"), ("c", nn.Add(), ("a", "b"))])
    assert named(model, (1, 4, 4)) == {("x", "a"), ("a", "b"), ("a", "c"), ("b", "c")}


def test_connections_of_residual_blocks_and_branches() -> None:
    def conv() -> nn.Module:
        return nn.Conv2d(2, 2, 3, padding=1)

    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.Residual(nn.Sequential(conv(), nn.ReLU(), conv())),
        nn.Residual(conv(), nn.Conv2d(2, 2, 1)),
        nn.Branches(conv(), nn.Sequential(conv(), conv())),
    )
    assert named(model, (1, 8, 8)) == {
        ("x", "0"), ("0", "1.body.0"), ("1.body.0", "1.body.2"), ("1.body.2", "1.add"), ("0", "1.add"),
        ("1.add", "2.body"), ("1.add", "2.shortcut"), ("2.body", "2.add"), ("2.shortcut", "2.add"),
        ("2.add", "3.0"), ("2.add", "3.1.0"), ("3.1.0", "3.1.1"), ("3.0", "3.concat"), ("3.1.1", "3.concat"),
    }  # fmt: skip
    assert named(model, (1, 8, 8), 1) == {("x", "0"), ("0", "1"), ("1", "2"), ("2", "3")}


def test_a_layer_that_passes_its_input_on_is_not_taken_for_the_way_around_it() -> None:
    # In inference, dropout returns the array that it got, which the sum takes, too.
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.Residual(nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 1, 1))), nn.ReLU()
    )
    edges = named(model, (1, 4, 4))
    assert ("0", "1.add") in edges
    assert ("1.body.0", "1.body.1") in edges
    assert ("1.body.0", "1.add") not in edges


def test_a_parameter_that_a_layer_takes_is_no_connection() -> None:
    scale = Parameter(np.ones((1, 1, 1, 1), np.float32))
    nodes = [("a", nn.Conv2d(1, 1, 1), "x"), ("b", nn.Conv2d(1, 1, 1), "a"), ("scale", scale, ())]
    model = nn.Graph([*nodes, ("c", nn.Multiply(), ("a", "scale")), ("d", nn.Add(), ("b", "c"))])
    assert named(model, (1, 4, 4)) == {("x", "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")}


def test_code_between_layers_is_followed_in_their_order() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            self.a, self.b = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x: Any, train: bool = True) -> Any:
            y, a = self.a.forward(x, train)
            z, b = self.b.forward(2 * y, train)
            return z, lambda dz: a(2 * b(dz))

    assert named(Own(), (1, 4, 4)) == {("x", "a"), ("a", "b")}


def test_blocks_that_repeat_are_drawn_once(tmp_path: Path) -> None:
    def block() -> nn.Module:
        return nn.Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)))

    model = nn.Sequential(nn.Conv2d(1, 2, 3), *(block() for _ in range(4)), nn.GlobalAvgPool(), nn.Linear(2, 2))
    assert named(model, (1, 8, 8)) == {
        ("x", "0"), ("0", "1.body.0"), ("1.body.0", "1.body.2"), ("1.body.2", "1.add"), ("0", "1.add"), ("1.add", "5"),
        ("5", "6"),
    }  # fmt: skip
    found = texts(plots.network(model, (1, 8, 8), tmp_path / "a.svg"))
    assert found["1 Residual, × 4"] == 1
    count = sum(slot.data.size for slot in model.parameters())
    assert f"In all, {1 + 4 * 4 + 2} layers with {count:,} parameters." in joined(tmp_path / "a.svg")


def test_boxes_say_shape_parameters_and_receptive_field(tmp_path: Path) -> None:
    model = models.build("lenet5")
    found = texts(plots.network(model, (1, 28, 28), tmp_path / "a.svg", title="LeNet-5"))
    fields = explain.receptive_fields(model, (1, 28, 28))
    for row in nn.summary(model, (1, 28, 28)).rows:
        if row.layer in ("Conv2d", "MaxPool2d"):
            with_relu = fields[row.name].size
            count = f" · {row.parameters:,} parameters" if row.parameters else ""
            size = "x".join(map(str, row.shape[1:] if len(row.shape) == 4 else row.shape))
            assert found[f"{size}{count} · sees {'x'.join(map(str, with_relu))}"] == 1
    assert {"LeNet-5", "Conv2d 5x5", "MaxPool2d 2x2", "input 1x28x28", "10 · 850 parameters"} <= set(found)


CASES = [
    ("lenet5", (1, 28, 28), None),
    ("resnet20", (3, 32, 32), None),
    ("googlenet", (3, 64, 64), 2),
    ("unet", (3, 32, 32), 1),
    ("convnext_tiny", (3, 32, 32), None),
    ("shufflenet_v2_x1_0", (3, 64, 64), None),
]


@pytest.mark.parametrize(("name", "shape", "depth"), CASES, ids=[case[0] for case in CASES])
def test_every_connection_is_a_line_that_crosses_no_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], depth: int | None
) -> None:
    # Only where things are is of interest: nothing is computed but shapes, and nothing is written.
    drawn: list[list[tuple[float, float]]] = []
    known: dict[str, Any] = {}
    connect = room._connect

    def connected(canvas: Any, root: Any, edges: Any, bends: Any) -> None:
        known.update(boxes=list(root.boxes()), edges=edges)
        connect(canvas, root, edges, bends)

    monkeypatch.setattr(room, "_connect", connected)
    monkeypatch.setattr(room.Canvas, "arrow", lambda self, points, *more: drawn.append(points))
    monkeypatch.setattr(room.Canvas, "save", lambda self, *more: tmp_path)
    monkeypatch.setattr(room, "receptive_fields", lambda model, shape: {})
    plots.network(models.build(name, shape, seed=None), shape, tmp_path / "a.png", depth)
    boxes, edges = known["boxes"], known["edges"]
    assert len(drawn) == len(edges) > 0

    def at(x: float, y: float, border: bool) -> set[str]:
        near = 1e-6 if border else -1e-6
        return {
            box.name
            for box in boxes
            if box.x - near <= x <= box.x + box.width + near and box.y - near <= y <= box.y + box.height + near
        }

    ends = set()
    for points in drawn:
        (source,) = at(*points[0], border=True) or {"x"}
        (target,) = at(*points[-1], border=True)
        ends.add((source, target))
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            assert x0 == x1 or y0 == y1 or abs(x0 - x1) < 0.02, "lines go along the axes"
            for share in np.linspace(0, 1, 200):
                inside = at(x0 + share * (x1 - x0), y0 + share * (y1 - y0), border=False)
                assert not inside, f"{source} to {target} crosses {inside}"
    assert ends == {("x" if a is None else a.name, b.name) for a, b in edges}
    for k, one in enumerate(boxes):
        for other in boxes[:k]:
            apart = one.x >= other.x + other.width or other.x >= one.x + one.width
            assert apart or one.y >= other.y + other.height or other.y >= one.y + one.height


def test_boxes_name_the_options_that_matter_and_count_shared_weights_once(tmp_path: Path) -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1, dilation=1)
    first, last = nn.Conv2d(4, 4, (1, 3), stride=2, groups=2), nn.Conv2d(4, 4, 3, groups=4, dilation=2)
    model = nn.Sequential(first, nn.MaxPool2d(2), shared, shared, last)
    model.reset_parameters(0)
    found = texts(plots.network(model, (4, 32, 32), tmp_path / "a.svg"))
    kinds = {"Conv2d 1x3, stride 2, 2 groups", "MaxPool2d 2x2", "Conv2d 3x3", "Conv2d 3x3, dilation 2, depthwise"}
    assert kinds <= set(found), found
    assert sum("parameters shared" in text for text in found.elements()) == 1
    assert sum("148 parameters" in text for text in found.elements()) == 1


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model must be a module, got int"):
        plots.network(3, (1, 8, 8), tmp_path / "a.png")
    with pytest.raises(UsageError, match="depth must be"):
        plots.network(models.build("lenet5"), (1, 28, 28), tmp_path / "a.png", 0)
    assert not list(tmp_path.iterdir())
