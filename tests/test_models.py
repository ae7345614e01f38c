"""The named networks: their layers, the images they take, and exchanging weights with PyTorch."""

import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from zoo import SMALL

from xcnn import models, nn, optim
from xcnn.errors import CheckpointError, ShapeError, UsageError
from xcnn.training import Trainer

IMAGES = [(1, 28, 28), (1, 8, 8), (3, 32, 32), (3, 13, 21)]


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("name", SMALL)
def test_a_network_gives_scores_and_trains_on_images_of_any_size(name, shape):
    if min(shape[1:]) < models.MODELS[name].smallest:
        pytest.skip("smaller than the network takes")
    model = models.build(name, shape, classes=7, seed=1)
    x = np.random.default_rng(0).random((2, *shape), np.float32)
    y, backward = model.forward(x)
    assert y.shape == (2, 7)
    assert y.dtype == np.float32
    assert model(x).shape == (2, 7)
    assert backward(np.ones_like(y), need_dx=False) is None
    for parameter in model.parameters():
        assert parameter.grad.shape == parameter.data.shape
        assert parameter.grad.dtype == np.float32


@pytest.mark.parametrize("name", SMALL)
def test_the_smallest_image_is_what_the_table_says(name):
    entry = models.MODELS[name]
    size = entry.smallest
    assert models.build(name, (1, size, size))(np.zeros((1, 1, size, size), np.float32)).shape == (1, 10)
    if size > 1:
        with pytest.raises(ShapeError, match=f"{name}: images must have at least {size} x {size} pixels, got"):
            models.build(name, (1, size, size - 1))


@pytest.mark.parametrize("name", SMALL)
def test_a_network_takes_the_images_that_it_is_measured_on(name):
    shape = models.MODELS[name].shape
    assert models.build(name)(np.zeros((1, *shape), np.float32)).shape == (1, 10)


LARGE = (3, 40, 96)


@pytest.mark.parametrize("name", SMALL)
def test_larger_images_need_the_parameters_of_32_pixels(name):
    usual, large = models.build(name, (3, 32, 32)), models.build(name, LARGE)
    state = usual.state_dict()
    assert {k: v.shape for k, v in large.state_dict().items()} == {k: v.shape for k, v in state.items()}
    large.load_state_dict(state)
    for shape in ((1, 28, 28), (3, 32, 32), (3, 13, 21)):  # nothing is averaged here
        layers = [type(module) for _, module in models.build(name, shape).modules()]
        assert nn.AdaptiveAvgPool2d not in layers
    # By hand: features, the means of PyTorch's windows, and the layers after them.
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).random((2, *LARGE), np.float32)
    flat = next(i for i, layer in enumerate(usual) if isinstance(layer, nn.Flatten | nn.GlobalAvgPool))
    maps = usual[:flat](x)
    sizes = usual[:flat](x[..., :32, :32]).shape[2:]
    averaged = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps), sizes).numpy()
    expected = usual[flat:](averaged if name != "resnet20" else maps)
    np.testing.assert_allclose(large(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_large_images_start_near_the_loss_of_guessing_and_do_not_explode(name):
    rng = np.random.default_rng(0)
    x = rng.random((10, 3, 1, 1), np.float32) * rng.random((10, 3, 96, 96), np.float32)
    model = models.build(name, x.shape[1:])
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=1e-3))
    losses = [trainer.step(x, np.arange(10)) for _ in range(2)]
    assert losses[0] == pytest.approx(math.log(10), abs=0.5)
    assert max(losses) < 2 * math.log(10)  # above 6 if a linear layer takes the maps as they are


def test_the_seed_alone_decides_the_weights():
    a, b, c = (models.build("lenet5", seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not any(np.array_equal(a[key], c[key]) for key in a)


def test_an_entry_of_a_module_tells_its_shape(tmp_path, monkeypatch):
    (tmp_path / "own_signals.py").write_text(
        "from xcnn import models, nn\n"
        "def signal(shape, classes):\n"
        "    return nn.Sequential(nn.Conv1d(shape[0], 8, 5), nn.GlobalAvgPool(), nn.Linear(8, classes))\n"
        "small = models.Entry('mean over time', signal, smallest=5, shape=(2, 200), classes=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert models.build("own_signals:small")(np.zeros((4, 2, 200), np.float32)).shape == (4, 3)
    with pytest.raises(ShapeError, match=r"own_signals:small: shape must be \(channels, width\), got \(1, 28, 28\)"):
        models.build("own_signals:small", (1, 28, 28))


def test_bad_requests_are_one_sentence():
    with pytest.raises(UsageError, match="unknown model 'resnet'; did you mean 'resnet50'"):
        models.build("resnet")
    with pytest.raises(ShapeError, match=r"lenet5: shape must be \(channels, height, width\), got \(28, 28\)"):
        models.build("lenet5", (28, 28))
    with pytest.raises(ShapeError, match=r"got an array of shape \(1, 28, 28\)$"):
        models.build("lenet5", np.zeros((1, 28, 28)))
    with pytest.raises(UsageError, match="lenet5: classes must be an integer of at least 1, got 0"):
        models.build("lenet5", classes=0)
    for seed in ("a", 2.5, -1):
        with pytest.raises(UsageError, match=r"lenet5: seed must be a numpy.random.Generator or a seed of at least 0"):
            models.build("lenet5", seed=seed)


def torch_lenet5():
    torch = pytest.importorskip("torch")
    t = torch.nn
    return t.Sequential(
        *(t.Conv2d(1, 6, 5, padding=2), t.ReLU(), t.MaxPool2d(2)),
        *(t.Conv2d(6, 16, 5), t.ReLU(), t.MaxPool2d(2), t.Flatten()),
        *(t.Linear(400, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10)),
    )


def test_the_network_of_the_report_has_as_many_filters_and_layers_as_are_asked_for():
    plain, deep = models.build("report"), models.build("report", filters=4, depth=3, dropout=0.25)
    assert {name: array.shape for name, array in plain.state_dict().items()} == {
        "0.weight": (1, 1, 3, 3), "4.weight": (10, 196), "4.bias": (10,),
    }  # fmt: skip
    assert {name: array.shape for name, array in deep.state_dict().items()} == {
        "0.weight": (4, 1, 3, 3), "3.weight": (8, 4, 3, 3), "6.weight": (16, 8, 3, 3),
        "11.weight": (10, 16 * 3 * 3), "11.bias": (10,),
    }  # fmt: skip
    assert isinstance(deep[-2], nn.Dropout)
    for options, message in (
        ({"filtres": 2}, r"^report: no argument 'filtres'; did you mean 'filters'\?"),
        ({"filters": 0}, "^report: filters must be an integer from 1 to 1024, got 0$"),
        ({"depth": 5}, "^report: depth must be at most 4 for images of 28 x 28 pixels, got 5$"),
        ({"dropout": 1}, r"^report: dropout must be a number in \[0, 1\), got 1$"),
    ):
        with pytest.raises(UsageError, match=message):
            models.build("report", **options)
    with pytest.raises(UsageError, match=r"^lenet5: no argument 'filters' \(known: shape, classes\)$"):
        models.build("lenet5", filters=2)


def test_a_weight_file_of_pytorch_loads_and_gives_its_logits(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = torch_lenet5()
    save_file({key: value.numpy() for key, value in theirs.state_dict().items()}, tmp_path / "torch.safetensors")
    ours = models.build("lenet5")
    ours.load_state_dict(load_file(tmp_path / "torch.safetensors"))
    x = np.random.default_rng(0).random((5, 1, 28, 28), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).numpy(), atol=1e-5)


def test_our_weight_file_loads_into_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    theirs, ours = torch_lenet5(), models.build("lenet5", seed=5)
    save_file(ours.state_dict(), tmp_path / "xcnn.safetensors")
    state = {key: torch.from_numpy(value) for key, value in load_file(tmp_path / "xcnn.safetensors").items()}
    theirs.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).random((5, 1, 28, 28), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).numpy(), atol=1e-5)


def test_weights_of_another_network_are_refused():
    with pytest.raises(CheckpointError, match=r"match this model: missing 0\.bias, 3\.weight, .*; unknown 4\.weight"):
        models.build("lenet5").load_state_dict(models.build("report").state_dict())


def test_lenet5_is_built_of_the_layers_that_everyone_knows():
    model = models.build("lenet5")
    assert isinstance(model, nn.Sequential)
    assert [key for key in model.state_dict() if "weight" in key] == [f"{i}.weight" for i in (0, 3, 7, 9, 11)]


def written(shape, classes):
    layer = nn.Linear(math.prod(shape), classes)
    layer.weight.data[...] = 0
    return nn.Sequential(nn.Flatten(), layer)


def test_a_function_that_writes_into_weights_is_refused(monkeypatch):
    monkeypatch.setitem(models.MODELS, "written", models.Entry("for tests", written))
    with pytest.raises(UsageError, match=r"made; assign a new array, as in layer.weight.data = ...$"):
        models.build("written")
