"""The large networks against torchvision's and ONNX Runtime, and the U-Net against one of PyTorch's functions.

By default, those of few parameters compute, on images of 64 x 64; with `XCNN_ZOO=224` (`nox -s zoo`), all on larger
ones, which takes half an hour and 14 GB of memory.
"""

import os
import tracemalloc

import numpy as np
import pytest
from compositions import returned, train
from zoo import IMAGENET, LARGE, torchvision_network, without_dropout

from xcnn import models, nn, onnx, ops, optim
from xcnn.errors import ShapeError

ALL = "XCNN_ZOO" in os.environ
SIZE = int(os.environ.get("XCNN_ZOO", "64"))
PUBLISHED = [name for name, entry in models.MODELS.items() if entry.parameters is not None]
COMPUTED = [name for name in LARGE if ALL or models.MODELS[name].parameters < 7e6]

RNG = np.random.default_rng


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_those_published(name):
    entry = models.MODELS[name]
    model = models.build(name, seed=None)
    assert sum(parameter.data.size for parameter in model.parameters()) == entry.parameters
    if entry.multiply_adds > 5 and not ALL:
        return  # takes seconds
    total = nn.summary(model, entry.shape).total
    digits = 3 if entry.multiply_adds > 0.05 else 6
    assert round(total.multiply_adds / 1e9, digits) == entry.multiply_adds
    assert total.shape[:2] == (1, entry.classes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_without_weights_takes_no_memory(name):
    tracemalloc.start()
    try:
        models.build(name, seed=None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20  # the statistics of batch norm are there


@pytest.mark.parametrize("name", LARGE)
def test_the_smallest_image_is_what_the_table_says(name):
    size = models.MODELS[name].smallest
    x = np.zeros((1, 3, size, size), np.float32)
    scores = models.build(name, (3, size, size), seed=None)(x)
    assert scores.shape[:2] == (1, models.MODELS[name].classes)
    if size > 1:
        with pytest.raises(ShapeError, match=f"{name}: images must have at least {size} x {size} pixels, got"):
            models.build(name, (3, size, size - 1))
        with pytest.raises(ShapeError):  # the table does not ask for more than the layers do
            models.build(name, seed=None)(x[..., :-1])


@pytest.mark.parametrize("name", IMAGENET)
def test_weights_have_the_names_and_shapes_of_torchvision(name):
    theirs = {key: tuple(value.shape) for key, value in torchvision_network(name).state_dict().items()}
    ours = {key: value.shape for key, value in models.build(name, seed=None).state_dict().items()}
    assert list(ours.items()) == list(theirs.items())


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_start_with_the_spread_of_torchvision(name):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torchvision_network(name, drawn=True).state_dict()
    for key, ours in models.build(name, seed=0).state_dict().items():
        if (name, key) == (
            "googlenet",
            "fc.bias",
        ):  # drawn there; here it is zero, as after each `init` but the default
            continue
        deviation = theirs[key].double().std(unbiased=False).item()
        assert ours.std() == pytest.approx(deviation, rel=5 / np.sqrt(max(ours.size, 2)), abs=1e-7), key


@pytest.mark.parametrize("name", IMAGENET)
def test_layers_drop_as_often_as_those_of_torchvision(name):
    network, kinds = torchvision_network(name), ("Dropout", "StochasticDepth")
    theirs = {key: module.p for key, module in network.named_modules() if type(module).__name__ in kinds and module.p}
    for key, module in network.named_modules():
        if not getattr(module, "use_res_connect", True):  # a block without a shortcut does not call this one
            theirs.pop(f"{key}.stochastic_depth", None)
    ours = {key: m.p for key, m in models.build(name, seed=None).modules() if type(m).__name__ in kinds and m.p}
    assert ours == pytest.approx(theirs)


def random_state(network, seed):
    """Return random weights and statistics in float64 that keep the activations of a network of any depth in range."""
    rng, state = RNG(seed), {}
    for key, value in network.state_dict().items():
        if value.dtype.kind == "i":
            state[key] = np.asarray(3)
        elif key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
            state[key] = rng.uniform(0.5, 1.5, value.shape)
        else:
            spread = np.sqrt(2 / np.prod(value.shape[1:])) if value.ndim > 1 else 0.1
            state[key] = spread * rng.standard_normal(value.shape)
    return state


@pytest.mark.parametrize("name", COMPUTED)
def test_scores_gradients_and_a_step_are_those_of_torchvision(name):
    """In float64, from the same random weights."""
    theirs = without_dropout(torchvision_network(name, classes=10).to_empty(device="cpu").double())
    torch = pytest.importorskip("torch")
    ours = without_dropout(models.build(name, (3, SIZE, SIZE), 10, seed=None)).to("cpu", "float64")
    state = random_state(ours, 0)
    ours.load_state_dict(state)
    theirs.load_state_dict({key: torch.asarray(value) for key, value in state.items()})
    del state
    x, labels = RNG(1).standard_normal((2, 3, SIZE, SIZE)), np.asarray([3, 7])
    with torch.no_grad():
        close(ours(x), theirs.eval()(torch.asarray(x)).numpy(), "scores")

    optimizer = optim.SGD(ours.parameters(), lr=0.01, momentum=0.9)
    scores, backward = ours.forward(x)
    loss, loss_backward = ops.cross_entropy(scores, labels)
    backward(loss_backward(np.asarray(1.0))[0], need_dx=False)
    their_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)
    their_loss = torch.nn.functional.cross_entropy(theirs.train()(torch.asarray(x)), torch.asarray(labels))
    their_loss.backward()
    close(loss, their_loss.item(), "loss")
    gradients = {key: parameter.grad.numpy() for key, parameter in theirs.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for key, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[key], rtol=1e-6, atol=1e-9 * largest, err_msg=key)
    optimizer.step()
    their_optimizer.step()
    after = theirs.state_dict()
    for key, value in ours.state_dict().items():
        close(value, after[key].numpy(), key)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_network_comes_back_from_a_file(tmp_path, name):
    model = models.build(name, (3, 64, 64), 5, seed=1)
    back, x = returned(model, tmp_path), RNG(0).random((2, 3, 64, 64), np.float32)
    assert train(back, x, 1) == train(model, x, 1)


@pytest.mark.parametrize("name", COMPUTED)
def test_onnx_runtime_computes_the_same_and_the_file_comes_back(tmp_path, name):
    pytest.importorskip("onnxruntime")
    model = models.build(name, (3, SIZE, SIZE), 10, seed=None)
    model.load_state_dict(random_state(model, 0))
    x = RNG(1).standard_normal((2, 3, SIZE, SIZE))
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.to_model(model, (3, SIZE, SIZE)).SerializeToString())
    y = onnx.Session(path)(x.astype(np.float32))
    back = onnx.load(path)
    path.unlink()  # half a gigabyte
    weights = {key: array.tobytes() for key, array in model.state_dict().items() if not key.endswith("_tracked")}
    assert {key: array.tobytes() for key, array in back.state_dict().items() if not key.endswith("_tracked")} == weights
    np.testing.assert_array_equal(back(x.astype(np.float32)), model(x.astype(np.float32)))
    exact = model.to("cpu", "float64")(x)
    assert np.abs(y - exact).max() < 1e-4 * np.abs(exact).max()  # float32, through up to 180 layers


def close(ours, theirs, what):
    np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9 * np.abs(theirs).max(), err_msg=what)


def functional_unet(x, state, torch):
    """Return the scores of a U-Net in training, written without modules, from weights by name."""
    f = torch.nn.functional

    def double(x, key):
        for i in (0, 3):
            x = f.conv2d(x, state[f"{key}.double_conv.{i}.weight"], padding=1)
            norm = f"{key}.double_conv.{i + 1}"
            x = f.relu(f.batch_norm(x, None, None, state[f"{norm}.weight"], state[f"{norm}.bias"], training=True))
        return x

    maps = [double(x, "inc")]
    for i in range(1, 5):
        maps.append(double(f.max_pool2d(maps[-1], 2), f"down{i}.maxpool_conv.1"))
    x = maps.pop()
    for i in range(1, 5):
        x, skip = f.conv_transpose2d(x, state[f"up{i}.up.weight"], state[f"up{i}.up.bias"], stride=2), maps.pop()
        x = f.pad(x, (0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]))
        x = double(torch.cat([skip, x], 1), f"up{i}.conv")
    return f.conv2d(x, state["outc.conv.weight"], state["outc.conv.bias"])


@pytest.mark.skipif("unet" not in COMPUTED, reason="takes seconds; nox -s zoo")
def test_the_unet_gives_a_score_for_each_pixel_and_gradients_as_pytorch():
    torch = pytest.importorskip("torch")
    ours = models.build("unet", (1, 23, 38), 3, seed=1).to("cpu", "float64")
    x = RNG(0).standard_normal((2, 1, 23, 38))
    state = {key: torch.asarray(slot.data).requires_grad_() for key, slot in ours.named_parameters()}
    expected = functional_unet(torch.asarray(x), state, torch)
    y, backward = ours.forward(x)
    assert y.shape == (2, 3, 23, 38)
    close(y, expected.detach().numpy(), "scores")
    dy = RNG(2).standard_normal(y.shape)
    backward(dy, need_dx=False)
    expected.backward(torch.asarray(dy))
    largest = max(value.grad.abs().max().item() for value in state.values())
    for key, parameter in ours.named_parameters():
        expected = state[key].grad.numpy()
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-6, atol=1e-9 * largest, err_msg=key)


def test_weights_of_the_unet_fit_images_of_all_sizes():
    usual, odd = (models.build("unet", (1, *size), 3, seed=None).state_dict() for size in ((32, 32), (23, 17)))
    assert {key: value.shape for key, value in usual.items()} == {key: value.shape for key, value in odd.items()}
