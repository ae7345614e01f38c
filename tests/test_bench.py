"""The room of `xcnn bench`: contestants compute the same, work is counted correctly, times are added up."""

import copy
import importlib.util
import inspect
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
from zoo import IMAGENET, SMALL

from xcnn import compare, models, nn, ops, training
from xcnn.compare.bench import Result, Timing
from xcnn.compare.contestants import ONLY, twin
from xcnn.compare.meter import growth
from xcnn.compare.parts import costs, parts
from xcnn.compare.profile import _rows
from xcnn.compare.scales import each
from xcnn.errors import UsageError
from xcnn.ops._op import OPS

OURS = compare.Contestant("xcnn", "cpu")
EVERY = compare.contestants(["cpu"], compare.PEERS)[1:]
PEERS = [peer for peer in EVERY if peer.name == peer.library]  # compiling takes a minute per network
TRAINERS = [peer for peer in PEERS if peer.name not in ONLY]


def steps(contestant, case, count):
    with contestant.opened(case) as step:
        return [step() for _ in range(count)]


@pytest.mark.parametrize("peer", TRAINERS, ids=str)
@pytest.mark.parametrize("model", SMALL)
def test_a_peer_trains_as_we_do(model, peer):
    """With a learning rate at which the losses depend visibly on the gradients."""
    pytest.importorskip(peer.name)
    case = compare.Case(model, 4, "train", 1, lr=1e-3)
    ours, theirs = steps(OURS, case, 4), steps(peer, case, 4)
    assert max(ours) - min(ours) > 1e-3
    np.testing.assert_allclose(theirs, ours, rtol=2e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # PyTorch's own, as it compiles
@pytest.mark.parametrize("mode", compare.MODES)
def test_pytorchs_compiler_runs_the_network_of_pytorch(mode, monkeypatch):
    """`nox -s random` runs the compiler itself."""
    torch = pytest.importorskip("torch")
    (peer,) = (one for one in EVERY if one not in PEERS)
    compiled = torch.compile if "XCNN_RANDOM" in os.environ else lambda model, mode, dynamic: model
    monkeypatch.setattr(torch, "compile", compiled)
    case = compare.Case("report", 3, mode, 1, lr=1e-3)
    theirs, ours = steps(peer, case, 2), steps(OURS, case, 6)
    # Compiled, the first call repeats the step until nothing is compiled.
    assert any(np.allclose(theirs, ours[first : first + 2], rtol=2e-5) for first in range(5))


@pytest.mark.parametrize("peer", PEERS, ids=str)
@pytest.mark.parametrize("model", SMALL)
def test_a_peer_infers_as_we_do(model, peer):
    pytest.importorskip(peer.name)
    case = compare.Case(model, 3, "infer", 1)
    (ours,), (theirs,) = steps(OURS, case, 1), steps(peer, case, 1)
    assert ours.shape == (3, 10)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5 * np.abs(ours).max())


def entered(monkeypatch, *layers):
    """Enter a network of these layers and a linear one, for images of 7 x 7."""

    def build(shape, classes):
        model = nn.Sequential(*layers, nn.Flatten())
        features = model(np.zeros((1, *shape), np.float32)).shape[1]
        return copy.deepcopy(nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes)))

    monkeypatch.setitem(models.MODELS, "own", models.Entry("for tests", build, 1, (2, 7, 7)))
    return compare.Case("own", 3, "train", 1, lr=1e-2)


class Renamed(nn.Conv2d):
    """A subclass that computes the same."""


class Doubled(nn.Conv2d):
    def forward(self, x, train=True):
        return super().forward(2 * x, train)


class Other(nn.Conv2d, op=ops.conv_transpose2d):
    """A subclass of another op."""


@pytest.mark.parametrize("peer", TRAINERS, ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        Renamed(2, 3, 3, padding="same"),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d((4, None)),
    ],
    ids=str,
)
def test_a_peer_builds_a_layer_with_its_options(layer, peer, monkeypatch):
    pytest.importorskip(peer.name)
    case = entered(monkeypatch, layer)
    np.testing.assert_allclose(steps(peer, case, 3), steps(OURS, case, 3), rtol=2e-5)


class Strange(nn.Layer, op=ops.nll_loss):
    """A layer of an op that no network has."""


class Reluing(nn.Conv2d):
    """A convolution with a ReLU in its op."""

    activation = "relu"


BESIDE = nn.Graph([("a", nn.Conv2d(2, 2, 1), "x"), ("b", nn.Sigmoid(), "a"), ("c", nn.Multiply(), ("a", "b", "x"))])
READ_TWICE = nn.Graph([("a", nn.Conv2d(2, 2, 1), "x"), ("b", nn.ReLU(), "a"), ("c", nn.Add(), ("a", "b"))])
SCALE = nn.Parameter(np.full((2, 1, 1), 0.5, np.float32))
SCALED = nn.Graph(
    [
        ("stem.0", nn.Identity(), "image"),
        ("scale", SCALE, ()),
        ("stem.1", nn.Apply("multiply"), ("stem.0", "scale")),
        ("all", nn.Add(), ("stem.0", "stem.1", "scale")),
        ("unused", nn.ReLU(), "all"),
    ],
    output="all",
    inputs="image",
)
SCALED_4 = nn.Graph(
    [("scale", nn.Parameter(np.full((4, 1, 1), 0.5, np.float32)), ()), ("y", nn.Multiply(), ("scale", "x"))]
)
KEPT = nn.Sequential(nn.Sigmoid(), nn.ReLU(), nn.ELU(), nn.SiLU())


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.BatchNorm2d(2, momentum=None),
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True, momentum=None),
        nn.GroupNorm(1, 2),
        nn.LayerNorm(7),
        nn.LocalResponseNorm(3, alpha=0.1),
        nn.Normalize((0.5, 0.2), (0.25, 0.3)),
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), bias=False),
        nn.Conv2d(2, 3, 3, stride=2, padding="same"),
        nn.Conv2d(2, 3, 3, stride=2, padding="valid", dilation=2),
        nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1, groups=2),
        nn.MaxPool2d(2, stride=3, padding="same", ceil_mode=True),
        nn.MaxPool2d(2, padding=((1, 0), (0, 1)), ceil_mode=True),
        nn.AvgPool2d(2, padding=((1, 0), (0, 1))),
        nn.AvgPool2d(3, padding=1, ceil_mode=True, count_include_pad=False),
        nn.GlobalMaxPool(),
        nn.Unflatten(1, (2, 1)),
        nn.Pad((1, 2, 0, 1), "replicate"),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.PReLU(2),
        nn.GELU("tanh"),
        nn.Dropout(0.0),
        nn.Identity(),
        nn.Branches(nn.Conv2d(2, 1, 1), nn.AvgPool2d(1)),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.Hardsigmoid(), nn.Hardswish()),
        BESIDE,
        READ_TWICE,
        KEPT,
        nn.Sequential(nn.ReLU()),
        nn.Sequential(
            {
                "act": nn.Apply("elu", alpha=0.5),
                "half": nn.Apply("multiply", other=0.5),
                "drop": nn.Apply("dropout", p=0.0, rng=0),
            }
        ),
        SCALED,
        Other(2, 2, 3),
        Reluing(2, 2, 3),
    ],
    ids=str,
)
def test_pytorch_trains_every_layer_as_we_do(layer, monkeypatch):
    pytest.importorskip("torch")
    case = entered(monkeypatch, nn.Conv2d(2, 2, 1), layer)
    ours = steps(OURS, case, 3)
    np.testing.assert_allclose(steps(PEERS[0], case, 3), ours, rtol=2e-5)
    assert ours[0] != ours[1]


def test_jax_trains_the_layers_of_random_networks_as_we_do(monkeypatch):
    """In the layout that has some ops in both orders of axes."""
    pytest.importorskip("jax")
    ways = nn.Branches(nn.Conv2d(4, 2, 1), nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.PReLU(4)))
    norm = nn.Sequential(
        nn.Apply("permute", dims=(0, 2, 3, 1)), nn.LayerNorm(6), nn.Apply("permute", dims=(0, 3, 1, 2))
    )
    up = nn.Sequential(
        nn.ConvTranspose2d(6, 4, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Pad((1, 0, 0, 2))
    )
    layers = (nn.Conv2d(2, 4, 3, 2, groups=2), nn.GroupNorm(2, 4), nn.GELU(), ways, norm, nn.ChannelShuffle(3), up)
    case = entered(monkeypatch, *layers, nn.InstanceNorm2d(4, affine=True), nn.Hardswish(), SCALED_4, nn.MaxPool2d(5))
    ours = steps(OURS, case, 3)
    np.testing.assert_allclose(steps(compare.Contestant("jax", "jax:cpu", "NHWC"), case, 3), ours, rtol=2e-5)
    assert ours[0] != ours[1]


LOSSES = {loss.function.__name__ for loss in training.LOSSES.values()}


@pytest.mark.parametrize("name", [name for name in OPS if name not in {*LOSSES, "nll_loss", "batch_norm"}])
def test_pytorch_has_a_function_for_every_op(name):
    """It computes the same on every sample without options that it refuses, and without dropping."""
    torch = pytest.importorskip("torch")
    op = OPS[name]
    known = {key: one.default for key, one in inspect.signature(op.function).parameters.items() if key not in op.arrays}
    measured = 0
    for number, sample in enumerate(op.samples):
        arrays = sample.draw(np.random.default_rng(number))
        options = known | sample.options | ({"training": False} if "training" in known else {})
        y, _ = op.function(**arrays, **options)
        tensors = each(torch.from_numpy, arrays)
        x = [tensors.pop(key) for key in op.arrays if key in (op.arrays[0], "other")]
        residual = tensors.pop("residual", None)
        taken = {key: value for key, value in options.items() if key not in ("rng", "activation")}
        try:
            theirs = twin.functions()[name](*(x[0] if isinstance(x[0], list) else x), **tensors, **taken)
        except UsageError as error:
            assert "for PyTorch, " in str(error)  # noqa: PT017
            continue
        theirs = theirs if residual is None else theirs + residual
        theirs = twin.activated(options["activation"])(theirs) if options.get("activation") else theirs
        np.testing.assert_allclose(theirs.numpy(), y[0] if type(y) is tuple else y, rtol=1e-9, atol=1e-9)
        measured += 1
    assert measured > len(op.samples) / 2


def test_a_network_of_maps_has_a_label_per_pixel(monkeypatch):
    def build(shape, classes):
        return nn.Sequential(nn.Conv2d(shape[0], classes, 3, padding=1))

    monkeypatch.setitem(models.MODELS, "maps", models.Entry("for tests", build, 1, (2, 5, 6), 3))
    case = compare.Case("maps", 2, "train", 1, lr=1e-2).fitted()
    assert case.pixels == (5, 6)
    assert case.arrays()[1].shape == (2, 5, 6)
    assert case.arrays()[1].max() == 2
    ours = steps(OURS, case, 3)
    assert ours[0] > ours[-1]
    if importlib.util.find_spec("torch"):
        np.testing.assert_allclose(steps(PEERS[0], case, 3), ours, rtol=2e-5)


QUICK = ("mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1")


@pytest.mark.parametrize("model", IMAGENET if "XCNN_ZOO" in os.environ else QUICK)
def test_pytorch_runs_networks_for_imagenet_as_we_do(model):
    torch = pytest.importorskip("torch")
    ours = models.build(model, (3, 64, 64)).to("cpu", "float64")
    x = np.random.default_rng(0).random((2, 3, 64, 64))
    y = ours(x)
    assert y.shape == (2, 1000)
    theirs = twin.twin(ours).eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(theirs, y, rtol=1e-10, atol=1e-12 * np.abs(y).max())


def test_pytorch_applies_in_place_what_its_own_networks_do():
    pytest.importorskip("torch")
    model = twin.twin(nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU6(), nn.SiLU()))
    assert ["inplace" in getattr(layer, "_options", {}) for layer in model] == [False, False, False, True, False]


def test_pytorch_runs_no_layer_whose_op_it_lacks():
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match="bench: PyTorch has no function for the op nll_loss of Strange"):
        twin.twin(nn.Sequential(nn.ReLU(), Strange()))


@pytest.mark.parametrize(
    ("peer", "layer", "message"),
    [
        ("torch", Doubled(2, 3, 3), "Doubled defines its own forward, so PyTorch cannot run it"),
        ("jax", Doubled(2, 3, 3), "Doubled defines its own forward, so JAX cannot run it"),
        ("jax", nn.PixelUnshuffle(1), "JAX has no function for the op pixel_unshuffle of PixelUnshuffle"),
        ("torch", nn.AvgPool2d(2, dilation=2), "for PyTorch, an average pool takes no dilation"),
        ("jax", nn.BatchNorm2d(2, momentum=None), "for JAX, a batch norm takes affine, track_running_stats and"),
        ("jax", nn.ConvTranspose2d(2, 2, 2, padding=1), "for JAX, a transposed convolution takes a stride only"),
    ],
)
def test_a_peer_refuses_a_layer_that_it_would_build_otherwise(peer, layer, message, monkeypatch):
    pytest.importorskip(peer)
    (contestant, *_) = (one for one in PEERS if one.name == peer)
    with pytest.raises(UsageError, match=message):
        steps(contestant, entered(monkeypatch, layer), 1)


def test_the_threads_of_a_contestant_are_set_back():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with compare.Contestant("torch", "torch:cpu", "NCHW").opened(compare.Case("report", 1, "train", before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_work_is_counted_as_by_hand():
    first, second = 28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25
    linear = [400 * 120, 120 * 84, 84 * 10]
    forward = dict(zip(["0", "3", "7", "9", "11"], [first, second, *linear], strict=True))
    found = compare.Case("lenet5", 8, "infer", 1).flops()
    assert found == {name: 2 * 8 * work for name, work in forward.items()}
    found = compare.Case("lenet5", 8, "train", 1).flops()
    assert found == {name: 2 * 8 * work * (2 if name == "0" else 3) for name, work in forward.items()}


def test_what_has_to_be_moved_is_counted_as_by_hand():
    """Each layer's input x, output y and parameters p, of `lenet5` at batch 8."""
    layers = [
        (28 * 28, 6 * 28 * 28, 156),
        (6 * 14 * 14, 16 * 10 * 10, 2416),
        (400, 120, 48120),
        (120, 84, 10164),
        (84, 10, 850),
    ]
    assert compare.Case("lenet5", 8, "infer", 1).moved() == 4 * sum(8 * x + 8 * y + p for x, y, p in layers)
    whole = sum(3 * 8 * x + 2 * 8 * y + 8 * p for x, y, p in layers)
    assert compare.Case("lenet5", 8, "train", 1).moved() == 4 * (whole - 8 * 28 * 28 - 156)


def test_every_step_is_as_much_work_as_the_first():
    """The weights hardly change, so that gradients do not vanish and nothing decays to subnormal numbers."""
    losses = steps(OURS, compare.Case("lenet5", 1, "train", 1), 200)
    assert losses[-1] == pytest.approx(losses[0], rel=1e-4)


def timing(contestant, *rounds, batch=10):
    return Timing(contestant, batch, 1.0, rounds, None, None)


def test_statistics_by_hand():
    ours = timing(OURS, 1.0, 2.0, 4.0)
    fast, slow = (timing(compare.Contestant("torch", "torch", layout), *rounds) for layout, rounds in
                  (("channels_last", (3.0, 2.0, 2.0)), ("NCHW", (9.0, 9.0, 1.0))))  # fmt: skip
    assert ours.images_per_second == 5
    assert ours.quartiles == (3.75, 7.5)
    assert timing(OURS, 2.0).quartiles == (5, 5)
    assert ours.ratio(fast) == 1  # of 3, 1 and 1/2
    assert ours.ratio(slow) == 4.5  # of 9, 4.5 and 1/4
    case = compare.Case("report", 10, "train", 1)
    runtime = timing(compare.Contestant("onnxruntime", "cpu", "NCHW"), 8.0, 8.0, 8.0)
    result = Result(case, (ours,), (slow, fast, runtime), 1, 1, {})
    assert result.best(ours) is fast
    assert [result.best(ours, library) for library in ("torch", "onnxruntime", "jax")] == [fast, runtime, None]
    assert Result(case, (ours,), (), 1, 1, {}).best(ours) is None


def test_shares_by_hand():
    ours, on_gpu = timing(OURS, 2.0), timing(compare.Contestant("xcnn", "cuda"), 0.5)
    rates = {"cpu": {"sgemm": 100.0}, "cuda:0": {"sgemm": 1000.0, "copy": 400.0}}
    result = Result(compare.Case("report", 10, "train", 1), (ours, on_gpu), (), 50, 20, rates)
    assert [result.share(ours, name) for name in ("sgemm", "copy")] == [0.25, None]
    assert [result.share(on_gpu, name) for name in ("sgemm", "copy")] == [0.1, 0.1]


def test_growth_by_hand():
    def result(batch, size, seconds, model="report"):
        case = compare.Case(model, batch, "train", 1, size=size)
        return Result(case, (timing(OURS, seconds, batch=batch),), (timing(PEERS[0], 9.0, batch=batch),), 1, 1, {})

    # Per image 1/2, 3/4 and 2/4 seconds.
    batches = [result(batch, None, seconds) for batch, seconds in ((2, 1.0), (4, 3.0), (8, 4.0))]
    assert compare.growths(batches) == [compare.Growth("report, train", "cpu", "image", 2, 8, 1.5)]
    # Per pixel 1/2, 1/4 and 1/4 of the same; what is alone has nothing to be compared with.
    sizes = [result(1, size, seconds) for size, seconds in ((8, 2.0), (16, 4.0), (32, 16.0))]
    alone = [result(2, 8, 1.0, "vgg_small"), result(1, 16, 1.0, "vgg_small")]
    assert compare.growths([*sizes, *alone]) == [compare.Growth("report, batch 1, train", "cpu", "pixel", 8, 32, 2.0)]


@pytest.mark.parametrize("peer", PEERS, ids=str)
@pytest.mark.parametrize("model", SMALL)
def test_images_of_another_size(model, peer):
    """64 pixels are more than the networks flatten: maps are averaged."""
    pytest.importorskip(peer.name)
    case = compare.Case(model, 2, "infer", 1, size=64)
    assert case.shape == (models.MODELS[model].shape[0], 64, 64)
    (ours,), (theirs,) = steps(OURS, case, 1), steps(peer, case, 1)
    assert ours.shape == (2, 10)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5 * np.abs(ours).max())


def test_memory_is_the_growth_during_the_measurement():
    grown = growth()
    if grown() is None:
        pytest.skip("the system does not tell")
    with mmap.mmap(-1, 2**26) as pages:  # not from the heap, which may hold free memory
        pages[:: mmap.PAGESIZE] = bytes(2**26 // mmap.PAGESIZE)
    assert 0.9 * 2**26 < grown() < 2**27  # the system counts in steps
    assert growth()() < 2**22  # a new peak begins


def test_shares_of_a_profile_by_hand():
    def turn(first, update, whole):
        named = ("conv2d", first, first), ("update", None, update), ("whole step", whole, None)
        fields = {"name": "", "shape": (), "flops": 0}
        return [fields | {"what": what, "forward": one, "backward": other} for what, one, other in named]

    *found, whole = _rows([turn(9.0, 3.0, 10.0), turn(2.0, 9.0, 12.0)], "train")
    assert [row.seconds for row in found] == [4.0, 3.0, 3.0]
    assert [row.share for row in (*found, whole)] == pytest.approx([0.4, 0.3, 0.3, 1.0])
    *found, whole = _rows([turn(6.0, 4.0, 10.0)], "train")  # the parts take longer alone
    assert [row.seconds for row in found] == [12.0, 4.0, 0.0]
    assert [row.share for row in (*found, whole)] == pytest.approx([0.75, 0.25, 0.0, 0.625])


def test_a_profile_has_the_parts_of_the_network_beside_each_other():
    entered, flops = [OURS], 2 * 2 * 32 * 32 * 16 * 16 * 9
    if importlib.util.find_spec("torch"):
        entered += [compare.Contestant("torch", "torch:cpu", "channels_last")]
    found = compare.profile(compare.Case("resnet20", 2, "train", 1), entered, 1, 0.01)
    assert list(found) == entered
    for rows in found.values():
        assert [row.what for row in rows[:3]] == ["conv2d 3x3 16", "batchnorm2d + relu", "conv2d 3x3 16"]
        assert [row.what for row in rows[-3:]] == ["update", "loss and the rest", "whole step"]
        assert sum(row.share for row in rows[:-1]) == pytest.approx(1)
        assert (rows[2].name, rows[2].shape, rows[2].flops) == ("3.body.0", (16, 32, 32), 3 * flops)
        assert sum(row.what == "batchnorm2d + add + relu" for row in rows) == 9
        assert all(row.forward > 0 and row.backward > 0 for row in rows[:-3])


def test_a_profile_leaves_out_what_a_library_cannot_run_alone(monkeypatch):
    pytest.importorskip("onnxruntime")
    entered(monkeypatch, nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.GELU(), Renamed(3, 2, 1), nn.Sigmoid())
    peers = [compare.Contestant("onnxruntime", "cpu", "NCHW"), compare.Contestant("jax", "jax:cpu", "NCHW")]
    case = compare.Case("own", 2, "infer", 1)
    monkeypatch.setattr(
        compare.worker.Worker, "ask", lambda self, request, seconds: [*costs(case, self.contestant, int, seconds)]
    )
    found = compare.profile(case, [OURS, *peers], 1, 0.01)
    assert list(found) == [OURS, peers[0]]
    ours, theirs = found.values()
    assert [row.what for row in ours[:2]] == ["conv2d 3x3 3 + batchnorm2d + gelu", "renamed 1x1 2 + sigmoid"]
    assert [row.seconds is None for row in theirs[:2]] == [False, False]


@pytest.mark.parametrize("layer", [SCALED, BESIDE, READ_TWICE], ids=["scaled", "beside", "read twice"])
@pytest.mark.parametrize("train", [True, False])
def test_the_parts_compute_the_same_as_the_network(layer, train):
    network = nn.Sequential(
        nn.Conv2d(2, 2, 1),
        layer,
        nn.Residual(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)), nn.Conv2d(2, 2, 1)),
        nn.ReLU(),
    )
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 5)).astype(np.float32)
    found, held = parts(network, train)
    values = {"x": x}
    for part in found:
        module, single = part.module(held)
        given = tuple(values[name] for name in part.inputs if name not in held)
        values[part.names[-1]] = module.forward(given[0] if single else given, train)[0]
    np.testing.assert_allclose(values[found[-1].names[-1]], network.forward(x, train)[0], rtol=1e-5, atol=1e-6)
    assert [type(one).__name__ for one in found[-1].layers] == (
        ["BatchNorm2d", "Add", "ReLU"] if train else ["Conv2d", "Add", "ReLU"]
    )


def test_a_peer_that_does_not_train_is_left_out_there():
    pytest.importorskip("onnxruntime")
    entered = compare.contestants(["cpu"], ["onnxruntime"], ["NCHW"])
    cases = [compare.Case("report", 1, mode, 1) for mode in compare.MODES]
    train, infer = compare.bench(cases, entered, 1, 0.001)
    assert [(str(one.contestant), one.reason) for one in train.dropped] == [("onnxruntime NCHW", "it runs infer only")]
    assert train.peers == ()
    assert train.best(train.ours[0]) is None
    assert [str(one.contestant) for one in infer.peers] == ["onnxruntime NCHW"]
    assert infer.dropped == ()


def test_zero_rounds_are_refused():
    cases = [compare.Case("report", 1, "train", 1)]
    with pytest.raises(UsageError, match="rounds must be an integer of at least 1"):
        list(compare.bench(cases, [OURS], 0, 0.1))


def test_the_process_of_pytorch_keeps_freed_memory_as_ours_does():
    pytest.importorskip("torch")
    code = (
        "import sys; from xcnn.compare import Case, Contestant\n"
        "with Contestant('torch', 'torch:cpu', 'NCHW').opened(Case('report', 1, 'infer', 1)):\n"
        "    assert 'xcnn.kernels.cpu._memory' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_first_step_of_a_compiled_network_is_repeated_until_nothing_is_compiled():
    pytest.importorskip("torch")
    from torch._dynamo.utils import compilation_time_metrics

    from xcnn.compare.contestants.torch import _settled

    calls = []

    def step():
        calls.append(len(calls))
        if len(calls) <= 2:
            compilation_time_metrics.setdefault("test", []).append(1.0)
        return calls[-1]

    settled = _settled(step)
    assert settled() == 2
    assert settled() == 3
    del compilation_time_metrics["test"]
