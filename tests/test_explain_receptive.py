"""Receptive fields against gradients, naive perturbation and the closed form of Araujo, Norris and Sim (2019).

Weights are positive, so that the gradient of a number is zero exactly at the pixels that it does not depend on.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xcnn import models, nn
from xcnn.errors import UsageError
from xcnn.explain import receptive_fields, trace


def positive(model: nn.Module, seed: int) -> nn.Module:
    rng = np.random.default_rng(seed)
    model.to("cpu", "float64")
    for _, parameter in model.named_parameters():
        parameter.data = rng.uniform(0.1, 1.0, parameter.data.shape) / max(1, parameter.data[0].size)
    return model


def seen(model: nn.Module, shape: tuple[int, ...], index: tuple[int, ...], seed: int = 0) -> tuple[slice, ...]:
    """Return the smallest box that holds all pixels at which the gradient of one number of the output is not zero."""
    found = trace(model, np.random.default_rng(seed).uniform(0.5, 1.0, (1, *shape)))
    dy = np.zeros(found.y.shape)
    dy[(0, *index)] = 1
    used = np.asarray(found.backward(dy))[0].any(axis=0).nonzero()
    return tuple(slice(int(i.min()), int(i.max()) + 1) if i.size else slice(0, 0) for i in used)


def check(model: nn.Module, shape: tuple[int, ...], last: str | None = None, count: int = 8) -> Any:
    """Compare the corners and some other numbers of the output with the gradient; return the field."""
    field = list(receptive_fields(nn.Sequential({"all": model}), shape).values())[-1]
    assert field.exact
    ends = [sorted({0, n // 2, n - 1}) for n in field.shape]
    every = list(itertools.product(*ends))
    rng = np.random.default_rng(1)
    for i in rng.permutation(len(every))[:count]:
        box = field.window(every[i])
        assert box == seen(model, shape, every[i]), (every[i], model)
    return field


def two(o: int) -> nn.Module:
    """Return maps of two receptive fields, o channels each."""
    return nn.Branches(nn.Conv2d(2, o, 1), nn.Conv2d(2, o, 3, padding=1))


SINGLE: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(2, 3, (3, 2), (2, 1), ((2, 0), (0, 1))),
    "dilated": lambda: nn.Conv2d(2, 3, 3, 2, 4, dilation=3),
    "same": lambda: nn.Conv2d(2, 3, (4, 3), 2, "same"),
    "grouped": lambda: nn.Sequential(two(1), nn.Conv2d(2, 4, 3, groups=2)),
    "transposed": lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1, 1),
    "transposed and dilated": lambda: nn.ConvTranspose2d(2, 4, (3, 2), 3, 0, groups=2, dilation=2),
    "average": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((4, 5)),
    "to one": lambda: nn.AdaptiveAvgPool2d(1),
    "global": lambda: nn.GlobalAvgPool(),
    "nearest": lambda: nn.Upsample(scale_factor=(1.7, 2.0)),
    "nearest-exact": lambda: nn.Upsample(size=(5, 20), mode="nearest-exact"),
    "bilinear": lambda: nn.Upsample(scale_factor=2.0, mode="bilinear"),
    "bilinear to a size": lambda: nn.Upsample(size=(5, 13), mode="bilinear", align_corners=True),
    "pad": lambda: nn.Sequential(nn.Pad((2, 0, -1, 3)), nn.Conv2d(2, 1, 3)),
    "reflect": lambda: nn.Sequential(nn.Pad((2, 2, 1, 1), "reflect"), nn.Conv2d(2, 1, 3)),
    "circular": lambda: nn.Sequential(nn.Pad((2, 2, 0, 0), "circular"), nn.Conv2d(2, 1, 2)),
    "slice": lambda: nn.Sequential(nn.Apply("slice", dim=-1, start=1, stop=9, step=3), nn.Conv2d(2, 1, 2)),
    "backwards": lambda: nn.Apply("slice", dim=2, step=-2),
    "shuffle": lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.PixelShuffle(2), nn.Conv2d(1, 1, 2)),
    "unshuffle": lambda: nn.Sequential(nn.Upsample(size=8), nn.PixelUnshuffle(2)),
    "channels": lambda: nn.Sequential(two(2), nn.ChannelShuffle(2)),
    "flat": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, 3), nn.Flatten()),
    "flat and back": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 8, 9)), nn.Conv2d(2, 1, 3)),
    "linear": lambda: nn.Sequential(nn.Conv2d(2, 2, 2, 4), nn.Flatten(), nn.Linear(8, 3)),
    "rows": lambda: nn.Sequential(nn.Linear(9, 4), nn.Conv2d(2, 2, 3)),
    "turned": lambda: nn.Sequential(nn.Apply("permute", dims=(0, 1, 3, 2)), nn.Conv2d(2, 2, (1, 3))),
    "means": lambda: nn.Apply("mean", dim=(1, 3)),
    "sums": lambda: nn.Apply("sum", dim=-2, keepdim=True),
    "softmax": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Softmax(1)),
    "norms": lambda: nn.Sequential(nn.Normalize((0.1, 0.2), (1, 1)), nn.BatchNorm2d(2), nn.AvgPool2d(3), nn.PReLU()),
    "layer norm": lambda: nn.Sequential(nn.Conv2d(2, 2, 2), nn.LayerNorm(8)),
    "group norm": lambda: nn.GroupNorm(2, 2),
    "instance norm": lambda: nn.InstanceNorm2d(2),
    "response norm": lambda: nn.Sequential(two(3), nn.LocalResponseNorm(4)),
    "more channels": lambda: nn.Sequential(two(1), nn.Pad((1, 0, 0, 2, 1, 3)), nn.Conv2d(6, 4, 2, groups=2)),
    "residual": lambda: nn.Residual(nn.Conv2d(2, 2, 3, padding=2, dilation=2), nn.Identity()),
    "branches": lambda: nn.Sequential(nn.Branches(two(1), nn.Conv2d(2, 2, 5, padding=2), two(2)), nn.AvgPool2d(2)),
    "gate": lambda: nn.Graph(
        [
            ("conv", nn.Conv2d(2, 2, 3), "x"),
            ("gate", nn.AdaptiveAvgPool2d((1, 1)), "conv"),
            ("scaled", nn.Multiply(), ("conv", "gate")),
        ]
    ),
    "means and maps": lambda: nn.Graph(
        [
            ("conv", nn.Conv2d(2, 8, 3, padding=1), "x"),
            ("mean", nn.Apply("mean", dim=2), "conv"),  # (n, 8, 9), which meets the axes (c, h, w)
            ("sum", nn.Add(), ("conv", "mean")),
        ]
    ),
    "a constant": lambda: nn.Graph([("c", nn.Parameter(np.ones((1, 2, 1, 1))), ()), ("sum", nn.Add(), ("x", "c"))]),
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_boxes_are_where_the_gradient_is(name: str) -> None:
    check(positive(SINGLE[name](), 0), (2, 8, 9))


def drawn(rng: np.random.Generator, c: int, depth: int = 0) -> tuple[nn.Module, int]:
    """Return a random module for c channels, and the number of channels that it returns."""
    o, kernel = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    pad, stride, dilation = int(rng.integers(0, kernel)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    same = nn.Conv2d(c, c, kernel, padding="same", dilation=dilation)
    choices: list[tuple[nn.Module, int]] = [
        (nn.Conv2d(c, o, kernel, stride, pad, dilation), o),
        (nn.ConvTranspose2d(c, o, kernel, stride, min(pad, 1)), o),
        (nn.AvgPool2d(kernel, stride, pad), c),
        (nn.Sequential(nn.Softplus(), nn.BatchNorm2d(c)), c),
        (nn.Upsample(scale_factor=2, mode=["nearest", "bilinear"][pad % 2]), c),
        (nn.Pad((0, kernel, 1, -1)), c),
        (nn.AdaptiveAvgPool2d((5, 4)), c),
        (nn.Residual(same), c),
        (nn.Branches(same, nn.Identity(), merge=["concat", "add"][pad % 2]), c if pad % 2 else 2 * c),
        (nn.Sequential(nn.Conv2d(c, 4 * o, 1), nn.PixelShuffle(2)), o),
    ]
    if depth < 2:
        inner, inner_c = drawn(rng, c, depth + 1)
        more, last = drawn(rng, inner_c, depth + 1)
        choices.append((nn.Sequential(inner, more), last))
    return choices[int(rng.integers(len(choices)))]


@pytest.mark.parametrize("seed", range(40))
def test_boxes_of_random_networks_are_where_the_gradient_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, layers, shape = 2, list[nn.Module](), (2, 11, 9)
    for _ in range(int(rng.integers(2, 7))):
        layer, o = drawn(rng, c)
        size = (layers and nn.Sequential(*layers).to("cpu", "float64")(np.ones((1, *shape))).shape[2:]) or shape[1:]
        if min(size) < 5 or max(size) > 60:
            break
        layers.append(layer)
        c = o
    check(positive(nn.Sequential(*layers), seed), shape, count=4)


def test_boxes_of_a_max_pool_are_where_a_large_pixel_is_noticed() -> None:
    model, x = nn.MaxPool2d(3, 2, 1, dilation=1, ceil_mode=True), np.zeros((1, 1, 7, 8))
    field = receptive_fields(nn.Sequential(model), (1, 7, 8))["0"]
    noticed: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for i, j in np.ndindex(7, 8):
        x[0, 0, i, j] = 1
        for place in zip(*model(x)[0, 0].nonzero(), strict=True):
            noticed.setdefault(tuple(map(int, place)), []).append((i, j))
        x[...] = 0
    assert set(noticed) == set(np.ndindex(field.shape[1:]))
    for place, pixels in noticed.items():
        rows, columns = field.window(place)
        assert sorted(pixels) == list(itertools.product(range(7)[rows], range(8)[columns]))


@pytest.mark.parametrize("name", ["unet", "resnet18", "googlenet", "mobilenet_v3_small"])
def test_boxes_of_networks_are_where_the_gradient_is_noticed(name: str) -> None:
    # A max pool passes the gradient to one pixel only, and never to some at the border: mean pools take their place.
    shape = (3, 16, 32) if name == "unet" else (3, 32, 48)
    model = models.build(name, shape=shape, classes=2, seed=0)
    for key, parameter in model.named_parameters():
        if key.endswith("weight") and parameter.data.ndim > 1:
            parameter.data = np.abs(parameter.data)
    model.to("cpu", "float64")
    fields = receptive_fields(model, shape)
    assert all(field.exact for field in fields.values())
    field = fields[{"unet": "outc", "resnet18": "fc", "googlenet": "fc", "mobilenet_v3_small": "classifier.3"}[name]]
    place = tuple(n // 2 for n in field.shape)
    for _, pool in model.modules():
        if isinstance(pool, nn.MaxPool2d):
            mean = nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)
            vars(pool)["forward"] = mean.forward
    assert field.window(place) == seen(model, shape, place)


def closed_form(layers: Any) -> tuple[list[float], list[float], list[float]]:
    """Return size, jump and start by the sums of the paper from (kernel, stride, padding) of the layers in a row."""
    size, jump, start = 1, 1, 0
    sizes, jumps, starts = [], [], []
    for kernel, stride, padding in layers:
        size, start, jump = size + (kernel - 1) * jump, start - padding * jump, jump * stride
        sizes.append(size)
        jumps.append(jump)
        starts.append(start)
    return sizes, jumps, starts


def test_sizes_and_jumps_are_those_of_the_closed_form() -> None:
    rows = [(kernel, stride, pad) for n in (2, 2, 3, 3, 3) for kernel, stride, pad in [(3, 1, 1)] * n + [(2, 2, 0)]]
    model = nn.Sequential(*(nn.MaxPool2d(2) if k == 2 else nn.Conv2d(1, 1, k, s, p) for k, s, p in rows))
    found = list(receptive_fields(model, (1, 64, 64)).values())
    for field, size, jump, start in zip(found, *closed_form(rows), strict=True):
        assert (field.size, field.jump, field.start) == ((size, size), (jump, jump), (start, start))
    assert found[-1].size == (212, 212)  # VGG-16 in the paper's table


STEPS: dict[str, nn.Module] = {
    "conv": nn.Conv2d(2, 3, (5, 2), (3, 1), ((2, 0), (0, 1)), dilation=2),
    "transposed": nn.ConvTranspose2d(2, 3, (3, 4), 2, (1, 2), (1, 0)),
    "transposed by less": nn.ConvTranspose2d(2, 3, 5, 3, 0),
    "pool": nn.MaxPool2d((3, 2), 2, 1, ceil_mode=True),
    "adaptive": nn.AdaptiveAvgPool2d((10, 9)),
    "nearest": nn.Upsample(scale_factor=(3.0, 1.5)),
    "bilinear": nn.Upsample(scale_factor=2.0, mode="bilinear"),
    "smaller": nn.Upsample(size=(25, 12), mode="bilinear"),
    "to the corners": nn.Upsample(size=(79, 50), mode="bilinear", align_corners=True),
    "by a fraction": nn.Upsample(scale_factor=1.7, mode="bilinear"),
    "pad": nn.Pad((2, 0, -1, 3)),
    "slice": nn.Apply("slice", dim=-1, start=1, stop=30, step=3),
    "shuffle": nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2)),
    "unshuffle": nn.PixelUnshuffle(2),
}


@pytest.mark.parametrize("name", STEPS)
def test_boxes_away_from_the_border_have_the_size_and_the_jump(name: str) -> None:
    # Behind a convolution, so that the jump and the start are not those of the image, and before one that mixes.
    sizes = 79, 73
    model = nn.Sequential(nn.Conv2d(2, 2, 3, 2, ((1, 1), (0, 0))), STEPS[name], nn.Upsample(scale_factor=1.0))
    field = receptive_fields(model, (2, *sizes))["1"]
    assert field.jump is not None
    assert field.start is not None
    for axis in (0, 1):
        size, jump, start = field.size[axis], field.jump[axis], field.start[axis]
        inside = []
        for i in range(field.shape[1 + axis]):
            place = [n // 2 for n in field.shape[1:]]
            place[axis] = i
            box, first = field.window(place)[axis], start + i * jump
            if 0 <= first <= sizes[axis] - size:
                inside.append(box.stop - box.start)
                assert abs(box.start - first) < 2
                assert jump < 2 or jump != int(jump) or (box.start, box.stop) == (first, first + size)
        assert max(inside) == size
        assert len(inside) > 3


@pytest.mark.parametrize(
    ("name", "layer", "size", "jump"),
    [("mobilenet_v2", "features.17", 491, 32), ("resnet50", "layer4", 427, 32)],
)
def test_sizes_of_networks_are_known(name: str, layer: str, size: int, jump: int) -> None:
    field = receptive_fields(models.build(name, shape=(3, 64, 64), classes=10), (3, 64, 64))[layer]
    assert (field.size, field.jump) == ((size, size), (jump, jump))


def test_numbers_in_the_middle_of_a_large_image_see_the_size_at_their_place() -> None:
    model = models.build("resnet20", shape=(1, 160, 160), classes=10)
    fields = receptive_fields(model, (1, 160, 160))
    for name in ("0", "7", "9.body", "15", "20"):
        field = fields[name]
        place = tuple(n // 2 for n in field.shape[1:])
        assert field.jump is not None
        assert field.start is not None
        starts = [start + jump * i for start, jump, i in zip(field.start, field.jump, place, strict=True)]
        box = tuple(slice(int(a), int(a + n)) for a, n in zip(starts, field.size, strict=True))
        assert field.window(place) == box


class Own(nn.Module):
    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return x[:, :, :4, :4] * 2, lambda dy, need_dx: np.pad(dy * 2, ((0, 0), (0, 0), (0, 4), (0, 4)))


class Outer(nn.Module):
    """A container whose own code computes between its layers."""

    def __init__(self) -> None:
        self.a, self.b = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        y, back = self.a.forward(x, train)
        z, last = self.b.forward(y + 1, train)
        return z, lambda dy, need_dx: back(last(dy))


def test_layers_of_unknown_code_may_see_everything_and_say_so() -> None:
    fields = receptive_fields(nn.Sequential(nn.Conv2d(1, 1, 1), Own(), nn.Conv2d(1, 1, 3)), (1, 8, 8))
    assert [field.exact for field in fields.values()] == [True, False, False]
    assert fields["1"].window((0, 0)) == fields["2"].window((1, 1)) == (slice(0, 8), slice(0, 8))
    fields = receptive_fields(nn.Sequential(Outer()), (1, 8, 8))
    assert fields["0.a"].exact
    assert fields["0.a"].window((0, 0)) == (slice(0, 3), slice(0, 3))
    assert not fields["0.b"].exact
    assert fields["0.b"].window((0, 0)) == (slice(0, 8), slice(0, 8))


def test_maps_and_rows_are_not_in_step() -> None:
    model = nn.Graph(
        [
            ("row", nn.Conv2d(1, 2, (8, 1)), "x"),
            ("maps", nn.Conv2d(1, 2, 1), "x"),
            ("gated", nn.Multiply(), ("row", "maps")),
        ]
    )
    fields = receptive_fields(model, (1, 8, 5))
    assert fields["row"].jump == fields["maps"].jump == (1, 1)
    assert fields["gated"].jump is None
    assert fields["gated"].window((6, 2)) == (slice(0, 8), slice(2, 3))
    assert receptive_fields(nn.Sequential(nn.AdaptiveAvgPool2d(1)), (1, 8, 8))["0"].jump is None


def test_fields_can_be_compared() -> None:
    first, again = (receptive_fields(models.build("lenet5"), (1, 28, 28)) for _ in range(2))
    assert first == again
    assert len(set(first.values())) == len(first)


def test_numbers_that_see_only_padding_have_empty_boxes() -> None:
    field = receptive_fields(nn.Sequential(nn.Conv2d(1, 1, 1, padding=1)), (1, 4, 4))["0"]
    assert field.window((0, 2)) == (slice(0, 0), slice(0, 0)) or field.window((0, 2))[0] == slice(0, 0)
    assert field.window((1, 1)) == (slice(0, 1), slice(0, 1))
    constant = nn.Graph([("c", nn.Parameter(np.ones((1, 2), np.float32)), ()), ("y", nn.Linear(2, 1), "c")])
    assert receptive_fields(constant, (1, 4, 4))["y"].window() == (slice(0, 0), slice(0, 0))


def test_signals_and_volumes_have_fields_too() -> None:
    check(positive(nn.Sequential(nn.Conv1d(2, 3, 5, 2, 1), nn.AvgPool1d(2)), 0), (2, 20))
    check(positive(nn.Sequential(nn.Conv3d(1, 2, 3, 2, 1), nn.ConvTranspose3d(2, 1, 2)), 0), (1, 5, 6, 7))


def test_wrong_arguments_are_refused() -> None:
    model = models.build("lenet5")
    with pytest.raises(UsageError, match=r"^receptive_fields: shape must be that of one input, \(c, h, w\), got 28$"):
        receptive_fields(model, 28)  # type: ignore[arg-type]
    field = receptive_fields(model, (1, 28, 28))["3"]
    for place in ((0,), (10, 0), (-1, 0), (0, 0, 0, 0), "ab", (16, 0, 0)):
        with pytest.raises(UsageError, match=r"^window: position must be an index of the output \(16, 10, 10\)"):
            field.window(place)  # type: ignore[arg-type]
    assert field.window((3, 4)) == field.window((15, 3, 4))
