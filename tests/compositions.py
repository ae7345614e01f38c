"""Random networks of the layers of `xcnn.nn`, and what tests of networks in files share."""

import functools
import re
from pathlib import Path

import numpy as np

import xcnn
from xcnn import nn

__all__ = ["ARGUMENTS", "composition", "levels", "returned", "train"]

SIZE = 6
ARGUMENTS = {
    "Apply": ("flatten",),
    "Branches": (nn.ReLU(), nn.Linear(2, 2)),
    "Concat": (2,),
    "Dropout": (0.3,),
    "Graph": ([("a", nn.ReLU(), "x"), ("b", nn.ReLU(), "a")], "a"),
    "Normalize": ((0.5, 0.25), (0.5, 1.0)),
    "Pad": ((1, 2), "reflect"),
    "Residual": (nn.Linear(2, 2), nn.Linear(2, 2)),
}

"""Arguments of classes that `LAYERS` of test_nn_layers.py lacks; the others are made without any."""


class Composer:
    """Builds random networks; all maps inside keep the size of the image, so that everything fits together."""

    def __init__(self, rng: np.random.Generator, rank: int) -> None:
        self.rng, self.rank = rng, rank
        self.made: list[tuple[int, nn.Module]] = []  # those that keep the number of channels, to be used again

    def chosen(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def layer(self, name: str) -> type[nn.Module]:
        return getattr(nn, f"{name}{self.rank}d")

    def conv(self, c: int, o: int) -> nn.Module:
        groups = self.chosen(1, c if o % c == 0 else 1)
        init = self.chosen("fan_in_uniform", "kaiming_normal", lambda rng, shape: rng.random(shape).astype(np.float32))
        if self.rng.random() < 0.2:
            return self.layer("ConvTranspose")(c, o, 3, 1, 1, bias=self.chosen(True, False))
        kernel, dilation = self.chosen((1, 1), (3, 1), (3, 2), ((3,) * self.rank, (1,) * self.rank))
        options = {"dilation": dilation, "groups": groups, "bias": self.chosen(True, False), "init": init}
        return self.layer("Conv")(c, o, kernel, padding="same", **options)

    def same(self, c: int) -> nn.Module:
        """Return a layer that keeps the number of channels."""
        batch, instance = self.layer("BatchNorm"), self.layer("InstanceNorm")
        maximum, average = self.layer("MaxPool"), self.layer("AvgPool")
        return self.chosen(
            nn.ReLU, nn.Tanh, nn.SiLU, nn.Sigmoid, nn.Identity,
            lambda: nn.LeakyReLU(float(self.rng.random())), lambda: nn.ELU(alpha=0.5), lambda: nn.GELU("tanh"),
            lambda: nn.Softmax(1), lambda: nn.LogSoftmax(dim=1), lambda: nn.Dropout(0.25),
            lambda: nn.StochasticDepth(0.25), lambda: nn.ChannelShuffle(self.chosen(1, c)),
            lambda: batch(c), lambda: batch(c, 1e-3, None), lambda: batch(c, affine=False),
            lambda: instance(c, affine=True, track_running_stats=True), lambda: nn.GroupNorm(1, c, affine=False),
            lambda: nn.LayerNorm(SIZE, bias=False), lambda: nn.LayerNorm((c, *(SIZE,) * self.rank)),
            lambda: maximum(3, 1, 1), lambda: average(3, 1, padding=1, count_include_pad=False),
            lambda: nn.Sequential(nn.Pad((1, 1) * self.rank, "replicate"), self.layer("Conv")(c, c, 3)),
            lambda: self.layer("AdaptiveAvgPool")((SIZE,) + (None,) * (self.rank - 1)),
            nn.PReLU, lambda: nn.PReLU(c, 0.1), nn.ReLU6, nn.Hardsigmoid, nn.Hardswish, nn.Mish, nn.SELU,
            nn.Softsign, lambda: nn.CELU(0.5),
            lambda: nn.Hardtanh(-0.5, 2.0), lambda: nn.Softplus(2.0, 3.0), lambda: nn.LocalResponseNorm(3, 0.5, k=0.7),
            lambda: self.layer("Dropout")(0.25), lambda: nn.Normalize((0.25,) * c, (0.5,) * c),
            lambda: self.resized(c), lambda: self.gated(c),
        )()  # fmt: skip

    def resized(self, c: int) -> nn.Module:
        """Return a layer that makes larger or smaller maps, and one that makes them as before."""
        linear = ("linear", "bilinear", "trilinear")[self.rank - 1]
        steps = self.chosen(
            [nn.Upsample(scale_factor=2), self.layer("MaxPool")(2)],
            [nn.Upsample((2 * SIZE,) * self.rank, mode=linear, align_corners=True), self.layer("AvgPool")(2)],
            [self.layer("AdaptiveMaxPool")(4), nn.Upsample(scale_factor=1.5, mode=linear)],
            [nn.Flatten(2), nn.Unflatten(2, (SIZE,) * self.rank)],
        )
        if self.rank == 2 and self.rng.random() < 0.5:
            steps = [nn.PixelUnshuffle(2), self.layer("Conv")(4 * c, 4 * c, 1), nn.PixelShuffle(2)]
        return nn.Sequential(*steps)

    def gated(self, c: int) -> nn.Module:
        """Return a squeeze and excitation: maps times one number for each."""
        gate = nn.Sequential(self.layer("AdaptiveAvgPool")(1), self.layer("Conv")(c, c, 1), nn.Hardsigmoid())
        return nn.Graph([("gate", gate, "x"), ("y", nn.Multiply(), ("x", "gate"))])

    def part(self, c: int, depth: int = 0) -> tuple[nn.Module, int]:
        """Return a random module for c channels, and the number of channels of its result."""
        kind = self.rng.random() if depth < 3 else 1.0
        if kind < 0.15:
            o, steps = c, []
            for _ in range(self.rng.integers(4)):
                step, o = self.part(o, depth + 1)
                steps.append(step)
            return nn.Sequential(*steps), o
        if kind < 0.3:
            body, o = self.part(c, depth + 1)
            return nn.Residual(body, None if o == c else self.conv(c, o)), o
        if kind < 0.4:
            ways = [self.part(c, depth + 1) for _ in range(self.rng.integers(1, 4))]
            return nn.Branches(*(way for way, _ in ways)), sum(o for _, o in ways)
        if kind < 0.5:
            return nn.Branches(self.conv(c, 3), self.conv(c, 3), merge="add"), 3
        if kind < 0.65:
            (one, o), (unused, _) = self.part(c, depth + 1), self.part(c, depth + 1)
            nodes = [("one", one, "x"), ("unused", unused, "x"), ("both", nn.Concat(), ["one", "x"])]
            nodes += [("sum", nn.Add(), ("both", "both")), ("end", self.conv(o + c, 2), "sum")]
            return self.chosen((nn.Graph(nodes), 2), (nn.Graph(nodes, output="both"), o + c))
        if kind < 0.75:
            o = self.chosen(2, 3, 2 * c)
            return self.conv(c, o), o
        again = [module for channels, module in self.made if channels == c]
        if again and self.rng.random() < 0.3:
            return again[self.rng.integers(len(again))], c
        module = self.same(c)
        self.made.append((c, module))
        return module, c


def composition(seed: int) -> tuple[nn.Module, np.ndarray]:
    """Return a random network and a batch for it; a fifth of them are in float64."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    composer, c = Composer(rng, rank), int(rng.integers(1, 4))
    x = rng.standard_normal((2, c, *(SIZE,) * rank))
    steps = []
    for _ in range(rng.integers(1, 5)):
        step, c = composer.part(c)
        steps.append(step)
    head = composer.chosen([nn.GlobalAvgPool()], [nn.GlobalMaxPool(), nn.Identity()], None)
    if head is None:
        head, c = [nn.Flatten()], c * SIZE**rank
    model = nn.Sequential(*steps, *head, nn.Linear(c, 2, bias=composer.chosen(True, False)))
    model.reset_parameters(rng)
    dtype = "float64" if rng.random() < 0.2 else "float32"
    return model.to("cpu", dtype), x.astype(dtype)


def train(model: nn.Module, x: np.ndarray, steps: int = 2) -> list[bytes]:
    """Take a few steps along the gradient of the squared outputs; return the bits of all outputs and of the state."""
    bits = []
    for _ in range(steps):
        model.zero_grad()
        y, backward = model.forward(x)
        backward(y)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data = parameter.data - parameter.grad * np.asarray(1e-3, x.dtype)
        bits.append(y.tobytes())
    return [*bits, model(x).tobytes(), *(array.tobytes() for array in model.state_dict().values())]


def levels(count: int) -> nn.Module:
    """Return a network of so many modules, one inside the other."""
    return functools.reduce(lambda inner, _: nn.Sequential(inner), range(count), nn.ReLU())


def returned(model: nn.Module, tmp_path: Path, **modules: type[nn.Module]) -> nn.Module:
    """Save and load a network, and check what does not depend on an input."""
    back = xcnn.load(xcnn.save(model, tmp_path / "network.safetensors"), modules)
    # An initialiser that is a function is not saved.
    assert repr(back) == re.sub(r", init=[a-z<][\w>]*(\(.*?\))?(?=[,)])", "", repr(model))
    for (name, ours), (key, theirs) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert (name, ours.dtype, ours.shape, ours.tobytes()) == (key, theirs.dtype, theirs.shape, theirs.tobytes())
    assert all(slot.data.flags.writeable and slot.data.flags.c_contiguous for slot in back.parameters())
    return back
