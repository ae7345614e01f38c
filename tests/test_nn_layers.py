"""Every layer against that of the same name in `torch.nn`, with the same weights in float64; and our own layers."""

from functools import partial

import numpy as np
import pytest

from xcnn import nn, ops, optim, testing
from xcnn.errors import ShapeError, UsageError

# name, arguments (ours and PyTorch's alike), shape of x
LAYERS = [
    ("Conv1d", (3, 4, 3), {"stride": 2, "padding": 1, "bias": False}, (2, 3, 9)),
    ("Conv2d", (4, 6, (3, 2), 2, (1, 0), 1, 2), {}, (2, 4, 7, 6)),
    ("Conv2d", (2, 3, 3), {"padding": "same", "dilation": 2}, (2, 2, 5, 6)),
    ("Conv3d", (2, 3, 2), {}, (2, 2, 3, 4, 3)),
    ("ConvTranspose1d", (3, 2, 3), {"stride": 2}, (2, 3, 4)),
    ("ConvTranspose2d", (4, 6, 3, 2, 1, 1, 2, False, 2), {}, (2, 4, 3, 4)),
    ("ConvTranspose3d", (2, 3, 2), {}, (1, 2, 3, 2, 2)),
    ("Linear", (5, 4), {}, (3, 5)),
    ("Linear", (5, 4), {"bias": False}, (2, 3, 5)),
    ("MaxPool1d", (2,), {}, (2, 3, 7)),
    ("MaxPool2d", (3, 2, 1, 1), {"ceil_mode": True}, (2, 3, 8, 6)),
    ("MaxPool3d", (2,), {}, (1, 2, 4, 4, 2)),
    ("AvgPool1d", (3, 2), {}, (2, 3, 7)),
    ("AvgPool2d", (3, 2, 1), {"count_include_pad": False}, (2, 3, 8, 6)),
    ("AvgPool2d", (2,), {"divisor_override": 3}, (2, 3, 8, 6)),
    ("AvgPool3d", (2,), {}, (1, 2, 4, 4, 2)),
    ("AdaptiveAvgPool1d", (3,), {}, (2, 3, 7)),
    ("AdaptiveAvgPool2d", ((2, None),), {}, (2, 3, 7, 5)),
    ("AdaptiveAvgPool3d", (2,), {}, (2, 3, 3, 4, 5)),
    ("AdaptiveMaxPool1d", (3,), {}, (2, 3, 7)),
    ("AdaptiveMaxPool2d", ((2, None),), {}, (2, 3, 7, 5)),
    ("AdaptiveMaxPool3d", (2,), {}, (2, 3, 3, 4, 5)),
    ("Upsample", (), {"scale_factor": 2}, (2, 3, 3, 2)),
    ("Upsample", ((5, 7),), {"mode": "bilinear"}, (2, 3, 3, 4)),
    ("Upsample", (None, 2.5, "linear", True), {}, (2, 3, 4)),
    ("Upsample", (None, (1, 2, 3), "trilinear", False), {}, (1, 2, 2, 3, 2)),
    ("PixelShuffle", (2,), {}, (2, 8, 3, 2)),
    ("PixelUnshuffle", (3,), {}, (2, 1, 6, 3)),
    ("ChannelShuffle", (3,), {}, (2, 6, 3, 2)),
    ("LocalResponseNorm", (3, 0.1, 0.7, 2.0), {}, (2, 5, 3, 2)),
    ("Flatten", (), {}, (2, 3, 4)),
    ("Flatten", (), {"start_dim": 0, "end_dim": 1}, (2, 3, 4)),
    ("Unflatten", (1, (2, 3)), {}, (2, 6, 2)),
    ("ReLU", (), {}, (3, 4)),
    ("LeakyReLU", (0.2,), {}, (3, 4)),
    ("ELU", (), {"alpha": 0.7}, (3, 4)),
    ("GELU", (), {}, (3, 4)),
    ("GELU", (), {"approximate": "tanh"}, (3, 4)),
    ("SiLU", (), {}, (3, 4)),
    ("Sigmoid", (), {}, (3, 4)),
    ("Tanh", (), {}, (3, 4)),
    ("PReLU", (), {}, (3, 4)),
    ("PReLU", (4, 0.1), {}, (3, 4, 2)),
    ("ReLU6", (), {}, (3, 4)),
    ("Hardtanh", (-0.5, 1.5), {}, (3, 4)),
    ("Hardswish", (), {}, (3, 4)),
    ("Hardsigmoid", (), {}, (3, 4)),
    ("Softplus", (2.0, 3.0), {}, (3, 4)),
    ("CELU", (0.7,), {}, (3, 4)),
    ("SELU", (), {}, (3, 4)),
    ("Softsign", (), {}, (3, 4)),
    ("Mish", (), {}, (3, 4)),
    ("Softmax", (1,), {}, (3, 4, 2)),
    ("LogSoftmax", (-1,), {}, (3, 4)),
    ("Identity", (), {}, (3, 4)),
    ("BatchNorm1d", (3,), {}, (4, 3)),
    ("BatchNorm1d", (3,), {"momentum": None}, (4, 3, 2)),
    ("BatchNorm2d", (3, 1e-3, 0.2), {}, (4, 3, 2, 3)),
    ("BatchNorm2d", (3,), {"affine": False}, (4, 3, 2, 3)),
    ("BatchNorm2d", (3,), {"track_running_stats": False}, (4, 3, 2, 3)),
    ("BatchNorm2d", (3,), {"track_running_stats": False, "momentum": None}, (4, 3, 2, 3)),
    ("BatchNorm1d", (3,), {"bias": False}, (4, 3)),
    ("BatchNorm3d", (2,), {}, (2, 2, 2, 3, 2)),
    ("LayerNorm", (5,), {}, (3, 5)),
    ("LayerNorm", ((3, 4),), {"bias": False}, (2, 3, 4)),
    ("LayerNorm", (5,), {"elementwise_affine": False, "eps": 1e-2}, (3, 5)),
    ("GroupNorm", (2, 6), {}, (2, 6, 3)),
    ("GroupNorm", (3, 6), {"affine": False}, (2, 6, 2, 2)),
    ("GroupNorm", (3, 6), {"bias": False}, (2, 6, 2, 2)),
    ("InstanceNorm1d", (3,), {"affine": True}, (2, 3, 5)),
    ("InstanceNorm2d", (3,), {}, (2, 3, 4, 3)),
    ("InstanceNorm2d", (3,), {"affine": True, "bias": False}, (2, 3, 4, 3)),
    ("InstanceNorm3d", (2,), {"affine": True}, (2, 2, 3, 2, 2)),
    ("InstanceNorm1d", (3, 1e-3, 0.2, True, True), {}, (2, 3, 5)),
    ("InstanceNorm2d", (3,), {"track_running_stats": True, "momentum": None}, (2, 3, 4, 3)),
    ("InstanceNorm3d", (2,), {"track_running_stats": True}, (3, 2, 3, 2, 2)),
    ("InstanceNorm1d", (3,), {"affine": True}, (3, 5)),
    ("InstanceNorm2d", (3,), {"affine": True, "track_running_stats": True}, (3, 4, 3)),
    ("InstanceNorm3d", (2,), {"track_running_stats": True}, (2, 3, 2, 2)),
]


def pair(torch, name, arguments, options):
    """Return our layer and PyTorch's, in float64, with the same random weights."""
    ours, theirs = getattr(nn, name)(*arguments, **options), getattr(torch.nn, name)(*arguments, **options)
    rng = np.random.default_rng(7)
    for parameter in theirs.parameters():
        parameter.data = torch.from_numpy(rng.standard_normal(parameter.shape))
    theirs.double()
    ours.to("cpu", "float64").load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    return ours, theirs


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), LAYERS)
def test_results_gradients_and_state_are_those_of_pytorch(name, arguments, options, shape):
    torch = pytest.importorskip("torch")
    ours, theirs = pair(torch, name, arguments, options)
    rng = np.random.default_rng(0)
    for step in range(3):  # several, for running statistics and gradients that add up
        x = 2 * rng.standard_normal(shape) + step
        tx = torch.tensor(x, requires_grad=True)
        y, backward = ours.forward(x)
        ty = theirs(tx)
        np.testing.assert_allclose(y, ty.detach().numpy(), atol=1e-11)
        dy = rng.standard_normal(y.shape)
        ty.backward(torch.from_numpy(dy))
        np.testing.assert_allclose(backward(dy), tx.grad.numpy(), atol=1e-10)
        for (key, mine), (_, torchs) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            np.testing.assert_allclose(mine.grad, torchs.grad.numpy(), atol=1e-10, err_msg=key)
    for key, value in theirs.state_dict().items():
        mine = ours.state_dict()[key]
        assert mine.dtype == value.numpy().dtype
        np.testing.assert_allclose(mine, value.numpy(), atol=1e-12, err_msg=key)
    theirs.eval()
    np.testing.assert_allclose(ours(x), theirs(tx).detach().numpy(), atol=1e-11)
    y, backward = ours.forward(x, train=False)
    tx.grad = None
    theirs(tx).backward(torch.from_numpy(dy))
    np.testing.assert_allclose(backward(dy), tx.grad.numpy(), atol=1e-10)


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), LAYERS)
def test_without_dx_the_parameters_get_the_same_gradients(name, arguments, options, shape):
    layer = getattr(nn, name)(*arguments, **options)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    grads = []
    for need_dx in (True, False):
        layer.zero_grad()
        y, backward = layer.forward(x)
        dx = backward(np.cos(y), need_dx=need_dx)
        assert (dx is not None) == need_dx
        grads.append([parameter.grad for parameter in layer.parameters()])
    for a, b in zip(*grads, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32


def test_every_layer_is_compared_with_pytorch():
    own = {"Add", "Branches", "Buffer", "Concat", "Dropout", "GlobalAvgPool", "GlobalMaxPool", "Graph", "Layer"}
    own |= {"Dropout1d", "Dropout2d", "Dropout3d", "Module", "Multiply", "Pad", "Parameter", "Residual", "Sequential"}
    own |= {"Apply", "IncompatibleKeys", "Normalize", "StochasticDepth", "Summary"}
    layers = {name for name in nn.__all__ if name[0].isupper()} - own
    assert layers == {name for name, *_ in LAYERS}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(0, 4, 3), "Conv2d: in_channels must be an integer of at least 1, got 0"),
        (lambda: nn.Conv2d(4, 2.5, 3), "Conv2d: out_channels must be an integer of at least 1, got 2.5"),
        (
            lambda: nn.Conv2d(4, 6, 3, groups=3),
            "Conv2d: groups must divide in_channels, got groups=3 and in_channels=4",
        ),
        (lambda: nn.ConvTranspose1d(4, 6, 3, groups=4), "groups must divide out_channels, got groups=4 and out_"),
        (lambda: nn.Conv3d(4, 6, (3, 3)), "Conv3d: kernel_size takes an integer or 3 of them"),
        (lambda: nn.Conv1d(4, 6, 0), "Conv1d: kernel_size takes integers of at least 1, got 0"),
        (lambda: nn.Linear(True, 2), "Linear: in_features must be an integer of at least 1, got True"),
        (lambda: nn.BatchNorm2d(-1), "BatchNorm2d: num_features must be an integer of at least 1"),
        (lambda: nn.GroupNorm(4, 6), "GroupNorm: num_groups must divide num_channels, got 4 and 6"),
        (lambda: nn.LayerNorm((3, 0)), "LayerNorm: normalized_shape takes integers of at least 1, got (3, 0)"),
        (lambda: nn.LayerNorm(2.5), "LayerNorm: normalized_shape takes integers of at least 1, got 2.5"),
        (lambda: nn.Conv2d(1, 1, 3, stride=0), "Conv2d: stride takes integers of at least 1, got 0"),
        (lambda: nn.Conv1d(1, 1, 3, dilation=(1, 1)), "Conv1d: dilation takes an integer or 1 of them, got (1, 1)"),
        (lambda: nn.Conv2d(1, 1, 3, padding="full"), "Conv2d: padding takes 'same', 'valid', an integer"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, padding="same"), "ConvTranspose2d: padding takes integers or"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, output_padding=1), "ConvTranspose2d: output_padding must be smaller"),
        (lambda: nn.MaxPool2d(0), "MaxPool2d: kernel_size takes integers of at least 1, got 0"),
        (
            lambda: nn.MaxPool1d(2, padding=2),
            "MaxPool1d: padding must be smaller than the extent (2,) of a window, got 2",
        ),
        (lambda: nn.AvgPool3d(2, (1, 2)), "AvgPool3d: stride takes an integer or 3 of them, got (1, 2)"),
        (lambda: nn.AvgPool2d(2, divisor_override=0), "AvgPool2d: divisor_override must be an integer from 1 to"),
        (lambda: nn.AvgPool1d(2, count_include_pad=1), "AvgPool1d: count_include_pad must be True or False, got 1"),
        (lambda: nn.BatchNorm1d(3, momentum="0.1"), "BatchNorm1d: momentum must be a number in [0, 1], got '0.1'"),
        (lambda: nn.InstanceNorm1d(3, 1e-5, True), "InstanceNorm1d: momentum must be a number in [0, 1], got True"),
        (lambda: nn.LayerNorm(3, eps=None), "LayerNorm: eps must be a number in [0, inf), got None"),
        (lambda: nn.GELU("tan"), "unknown GELU approximate 'tan'; did you mean 'tanh'?"),
        (lambda: nn.ELU(-1), "ELU: alpha must be a number in [0, inf), got -1"),
        (lambda: nn.CELU(0), "CELU: alpha must be a number in (0, inf), got 0"),
        (lambda: nn.LayerNorm(3, bias="x"), "LayerNorm: bias must be True or False, got 'x'"),
        (lambda: nn.GroupNorm(1, 2, affine=0), "GroupNorm: affine must be True or False, got 0"),
        (lambda: nn.Linear(2, 2, bias="no"), "Linear: bias must be True or False, got 'no'"),
        (
            lambda: nn.Linear(2, 2, init=lambda rng, shape: np.ones(3)),
            "Linear: init must return an array of shape (2, 2), got (3,)",
        ),
        (lambda: nn.Linear(2, 2, init=lambda rng, shape: None), "Linear: init must return an array of shape (2, 2)"),
        (lambda: nn.Dropout2d(1.5), "Dropout2d: p must be a number in [0, 1], got 1.5"),
        (lambda: nn.StochasticDepth(-1), "StochasticDepth: p must be a number in [0, 1], got -1"),
        (lambda: nn.ChannelShuffle(0), "ChannelShuffle: groups must be an integer from 1 to"),
        (lambda: nn.Unflatten(1, (2, -1)), "Unflatten: unflattened_size takes integers of at least 1, got (2, -1)"),
        (lambda: nn.PReLU(0), "PReLU: num_parameters must be an integer of at least 1, got 0"),
        (lambda: nn.PReLU(init="x"), "PReLU: init must be a number in (-inf, inf), got 'x'"),
        (lambda: nn.Hardtanh(2, 1), "Hardtanh: min_val must be smaller than max_val, got 2 and 1"),
        (lambda: nn.Softplus(-1), "Softplus: beta must be a number in (0, inf), got -1"),
        (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), "AdaptiveAvgPool2d: output_size takes an integer or 2 of them, got"),
        (lambda: nn.AdaptiveAvgPool1d(0), "AdaptiveAvgPool1d: output_size takes integers of at least 1, got [0]"),
        (lambda: nn.AdaptiveMaxPool3d("abc"), "AdaptiveMaxPool3d: output_size takes integers of at least 1, got ['a'"),
        (lambda: nn.Upsample(), "Upsample: give either size or scale_factor, got None and None"),
        (lambda: nn.Upsample(""), "Upsample: size takes an integer or 1 of them, got ''"),
        (lambda: nn.Upsample(()), "Upsample: size takes an integer or 1 of them, got ()"),
        (lambda: nn.Upsample((2, 0)), "Upsample: size takes integers of at least 1, got (2, 0)"),
        (lambda: nn.Upsample(scale_factor=0), "Upsample: scale_factor must be a number in (0, inf), got 0"),
        (lambda: nn.Upsample(2, mode=""), "unknown Upsample mode ''"),
        (lambda: nn.Upsample(2, mode="bilinear", align_corners=1), "Upsample: align_corners must be True or False"),
        (lambda: nn.PixelShuffle(1.5), "PixelShuffle: upscale_factor must be an integer from 1 to 2147483647, got 1.5"),
        (lambda: nn.PixelUnshuffle(None), "PixelUnshuffle: downscale_factor must be an integer from 1 to"),
        (lambda: nn.LocalResponseNorm(0), "LocalResponseNorm: size must be an integer from 1 to 2147483647, got 0"),
        (lambda: nn.LocalResponseNorm(3, k=-1), "LocalResponseNorm: k must be a number in (0, inf), got -1"),
        (lambda: nn.BatchNorm2d(3, bias=1), "BatchNorm2d: bias must be True or False, got 1"),
        (lambda: nn.Dropout(1.5), "Dropout: p must be a number in [0, 1], got 1.5"),
    ],
)
def test_arguments_without_meaning_are_refused_at_construction(make, message):
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d"])
def test_a_norm_refuses_x_of_another_rank(name):
    with pytest.raises(ShapeError, match=rf"^{name}: x must have axes \(n, c.*\), got shape \(2, 3, 4, 4, 4, 4\)$"):
        getattr(nn, name)(3)(np.ones((2, 3, 4, 4, 4, 4), np.float32))


def test_a_failed_forward_leaves_the_running_statistics():
    layer = nn.BatchNorm2d(3)
    with pytest.raises(ShapeError):
        layer.forward(np.ones((2, 4, 2, 2), np.float32))
    assert layer.num_batches_tracked.data == 0


def test_squeeze_and_excite_multiplies_maps_by_a_gate_that_comes_from_them():
    torch = pytest.importorskip("torch")
    gate = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Hardsigmoid()]
    block = nn.Graph([("gate", nn.Sequential(*gate), "x"), ("y", nn.Multiply(), ("x", "gate"))]).to("cpu", "float64")
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    y, backward = block.forward(x)
    tx = torch.tensor(x, requires_grad=True)
    weight, bias = (torch.tensor(parameter.data, requires_grad=True) for parameter in block.parameters())
    squeezed = torch.nn.functional.conv2d(tx.mean((2, 3), keepdim=True), weight, bias)
    ty = tx * torch.nn.functional.hardsigmoid(squeezed)
    np.testing.assert_allclose(y, ty.detach().numpy(), atol=1e-12)
    ty.backward(torch.tensor(np.cos(y)))
    np.testing.assert_allclose(backward(np.cos(y)), tx.grad.numpy(), atol=1e-12)
    for parameter, theirs in zip(block.parameters(), (weight, bias), strict=True):
        np.testing.assert_allclose(parameter.grad, theirs.grad.numpy(), atol=1e-12)


def test_multiply_takes_any_number_of_arrays_that_broadcast():
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal(shape) for shape in ((2, 3, 4), (2, 3, 1), (4,))]
    testing.check_gradients(nn.Multiply(), xs)
    np.testing.assert_allclose(nn.Multiply()(tuple(xs)), xs[0] * xs[1] * xs[2])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_channel_dropout_draws_new_masks_from_its_seed(rank):
    layer, x = getattr(nn, f"Dropout{rank}d")(0.3), np.ones((20, 10, *(2, 3, 2)[:rank]), np.float32)
    layer.reset_parameters(5)
    y, backward = layer.forward(x)
    kept = y.reshape(20, 10, -1)
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[..., :1], kept.shape))
    assert np.mean(kept == 0) == pytest.approx(0.3, abs=0.1)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(backward(x), y)
    assert not np.array_equal(y, layer.forward(x)[0])
    layer.reset_parameters(5)
    np.testing.assert_array_equal(layer.forward(x)[0], y)
    np.testing.assert_array_equal(layer(x), x)


def test_stochastic_depth_drops_whole_examples_and_repeats_with_the_seed():
    layer, x = nn.StochasticDepth(0.3), np.ones((1000, 2, 3), np.float32)
    layer.reset_parameters(5)
    y, backward = layer.forward(x)
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert np.mean(y[:, 0, 0] == 0) == pytest.approx(0.3, abs=0.04)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(backward(x), y)
    assert not np.array_equal(y, layer.forward(x)[0])
    layer.reset_parameters(5)
    np.testing.assert_array_equal(layer.forward(x)[0], y)
    assert layer(x) is x


def test_prelu_starts_again_at_its_first_value():
    layer = nn.PReLU(3, 0.1)
    layer.weight.data = np.zeros(3, np.float32)
    layer.reset_parameters(0)
    np.testing.assert_array_equal(layer.weight.data, np.full(3, 0.1, np.float32))


@pytest.mark.parametrize("name", ["global_avg_pool", "global_max_pool"])
def test_global_pools_are_their_ops(name):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    layer = {"global_avg_pool": nn.GlobalAvgPool, "global_max_pool": nn.GlobalMaxPool}[name]()
    y, backward = layer.forward(x)
    expected, op_backward = getattr(ops, name)(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(backward(y), op_backward(y)[0])


@pytest.mark.parametrize(("mode", "theirs"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
def test_pad_has_the_modes_of_numpy(mode, theirs):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    np.testing.assert_array_equal(
        nn.Pad((1, 2, 3, 0), mode)(x), np.pad(x, ((0, 0), (0, 0), (3, 0), (1, 2)), mode=theirs)
    )


def test_dropout_keeps_the_expected_sum_and_repeats_with_the_seed():
    layer, x = nn.Dropout(0.3), np.ones((200, 200), np.float32)
    layer.reset_parameters(5)
    y, backward = layer.forward(x)
    assert abs((y == 0).mean() - 0.3) < 0.02
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(backward(x), y)
    z = layer.forward(x)[0]
    assert not np.array_equal(y, z)
    layer.reset_parameters(5)
    np.testing.assert_array_equal(layer.forward(x)[0], y)
    np.testing.assert_array_equal(layer.forward(x)[0], z)
    np.testing.assert_array_equal(layer(x), x)


def test_two_dropouts_of_one_network_draw_different_masks():
    network = nn.Sequential(nn.Dropout(), nn.Dropout())
    network.reset_parameters(0)
    x = np.ones(1000, np.float32)
    a, b = (layer.forward(x)[0] for layer in network)
    assert not np.array_equal(a, b)
    assert [name for name, _ in network.named_generators()] == ["0.rng", "1.rng"]


class Scaled(nn.Module):
    """A layer that does not keep its first argument."""

    def __init__(self, channels, factor=1.0):
        self.weight, self.factor = nn.Parameter(np.ones(channels)), factor


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(1, 6, 5, padding=2, bias=False), "Conv2d(1, 6, (5, 5), padding=2, bias=False)"),
        (nn.MaxPool2d(2), "MaxPool2d(2)"),
        (nn.ReLU(), "ReLU()"),
        (nn.Upsample(scale_factor=2), "Upsample(scale_factor=2)"),
        (nn.BatchNorm2d(3, bias=False), "BatchNorm2d(3, bias=False)"),
        (nn.PReLU(2, init=0.1), "PReLU(num_parameters=2, init=0.1)"),
        (nn.Linear(2, 3, init=nn.init.zeros), "Linear(2, 3, init=zeros)"),
        (nn.Linear(2, 3, init=partial(nn.init.normal, std=0.1)), "Linear(2, 3, init=normal(std=0.1))"),
        (nn.LeakyReLU(0.2), "LeakyReLU(negative_slope=0.2)"),
        (nn.BatchNorm2d(3, momentum=None), "BatchNorm2d(3, momentum=None)"),
        (nn.Sequential(nn.Flatten()), "Sequential(\n  (0): Flatten()\n)"),
        (nn.Sequential(), "Sequential()"),
        (nn.Graph([]), "Graph()"),
        (Scaled(3), "Scaled()"),
        (Scaled(3, 0.5), "Scaled(factor=0.5)"),
    ],
)
def test_repr_tells_the_arguments(layer, text):
    assert repr(layer) == text


def test_a_backward_that_an_update_overtook_is_refused(backend):
    """Where arrays are updated in place, it would use the new weights: a wrong gradient, on some devices only."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model.reset_parameters(0)
    model.to(backend.device)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x = backend.device.asarray(np.ones((3, 2), np.float32))
    y, first = model.forward(x)
    _, second = model.forward(x)
    first(y)
    optimizer.step()
    with pytest.raises(UsageError, match=r"an optimizer has changed the parameters since forward"):
        second(y)


def test_a_maximum_is_not_taken_for_a_mean():
    """`isinstance` chooses rules, such as those of other libraries' modules."""
    assert not isinstance(nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool1d)
    assert not isinstance(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool1d)


def test_the_gradient_of_a_residual_does_not_depend_on_that_of_x():
    layer, x = nn.GroupNorm(1, 2), np.random.default_rng(0).standard_normal((1, 2, 3, 3)).astype(np.float32)
    for parameter in layer.parameters():
        parameter.trainable = False
    dx, dresidual = layer.call_op(x, residual=x)[1](x, False)
    assert dx is None
    np.testing.assert_array_equal(dresidual, x)
