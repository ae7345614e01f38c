"""`xcnn compare A B`: two files side by side, with differences planted in weights, layers and interfaces."""

import copy
import functools
import json
import shutil

import numpy as np
import pytest

import xcnn as library
from xcnn import compare, nn, onnx
from xcnn.compare.files import TOGETHER
from xcnn.errors import CheckpointError, UsageError

pytest.importorskip("onnxruntime")

SHAPE, CLASSES = (2, 6, 6), ("cat", "dog", "owl")


@pytest.fixture
def xcnn(xcnn):
    """Run `xcnn compare` in an empty folder: (exit code, stdout, stderr)."""
    return functools.partial(xcnn, "compare")


def network(*more: nn.Module) -> nn.Module:
    body = nn.Sequential(
        {"conv": nn.Conv2d(4, 4, 3, padding=1, bias=False), "norm": nn.BatchNorm2d(4), "act": nn.ReLU()}
    )
    layers = (
        nn.Conv2d(2, 4, 3, padding=1),
        *more,
        nn.Residual(body),
        nn.Dropout(0.5),
        nn.GlobalAvgPool(),
        nn.Linear(4, 3),
    )
    model = nn.Sequential(*layers)
    model.reset_parameters(0)
    return model


def changed(model: nn.Module, name: str, by: float) -> nn.Module:
    """Return a copy in which every number of a parameter is larger."""
    other = copy.deepcopy(model)
    slot = dict(other.named_parameters())[name]
    slot.data = slot.data + np.float32(by)
    return other


def saved(model: nn.Module, path, **about):
    """Save a network as ONNX or as a file of xcnn, by the suffix."""
    if path.suffix == ".onnx":
        return onnx.save(model, path, SHAPE, **about)
    return library.save(model, path, shape=SHAPE, **about)


def compared(a, b, count=3) -> compare.Comparison:
    x = np.random.default_rng(0).random((count, *SHAPE))
    return compare.compare_files(compare.open_file(a), compare.open_file(b), x)


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_a_network_and_its_export_are_equal(tmp_path, suffix) -> None:
    a, b = saved(network(), tmp_path / "a.safetensors"), saved(network(), tmp_path / f"b.{suffix}", classes=CLASSES)
    found = compared(a, b)
    assert found.same
    assert found.units == 0
    assert found.agreed == 1
    assert found.first is None
    assert [pair.op for pair in found.pairs] == [
        "conv2d",
        "conv2d",
        "batch_norm",
        "relu",
        "add",
        "global_avg_pool",
        "linear",
    ]
    assert all(pair.equal and pair.a and pair.b for pair in found.pairs)
    names = [name for name in network().state_dict() if not name.endswith("num_batches_tracked")]
    assert {(one, off) for one, _, off in found.weights} == {(name, 0) for name in names}
    assert found.alone == ((), ())
    facts = {what: values for what, *values in found.facts}
    assert facts["input"] == ["2 x 6 x 6"] * 2
    assert facts["output"] == ["3 x 3"] * 2
    assert facts["classes"] == ["unknown", "3: cat, dog, owl"]


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_a_changed_weight_is_found_with_the_first_layer_that_parts(tmp_path, suffix) -> None:
    model = network()
    a = saved(model, tmp_path / "a.safetensors")
    b = saved(changed(model, "1.body.norm.bias", 0.5), tmp_path / f"b.{suffix}")
    found = compared(a, b)
    assert not found.same
    assert [(one, off) for one, _, off in found.weights if off] == [("1.body.norm.bias", np.inf)]  # all zeros before
    assert (found.first.a, found.first.op) == ("1.body.norm", "batch_norm")
    assert [pair.equal for pair in found.pairs[:2]] == [True, True]
    assert all(pair.parted for pair in found.pairs[2:])


def test_rounding_is_no_difference(tmp_path) -> None:
    model = network()
    a, b = saved(model, tmp_path / "a.safetensors"), saved(changed(model, "0.weight", 3e-7), tmp_path / "b.safetensors")
    found = compared(a, b)
    assert found.same
    assert 0 < found.units < TOGETHER
    assert not found.pairs[0].equal


def test_batch_norm_in_the_convolution_is_no_difference(tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(3, 3))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the same by another name
    folded = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), pool, nn.Linear(3, 3))
    rng, norm = np.random.default_rng(0), model[1]
    for slot in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        slot.data = rng.uniform(0.5, 2, 3).astype(np.float32)
    scale = norm.weight.data / np.sqrt(norm.running_var.data + norm.eps)
    folded[0].weight.data = model[0].weight.data * scale[:, None, None, None]
    folded[0].bias.data = norm.bias.data + (model[0].bias.data - norm.running_mean.data) * scale
    for ours, theirs in zip(folded[3].parameters(), model[4].parameters(), strict=True):
        ours.data = theirs.data
    a, b = saved(model, tmp_path / "a.safetensors"), saved(folded, tmp_path / "b.onnx")
    for found in (compared(a, b), compared(b, a)):
        assert found.same
        assert found.first is None
        assert [pair.op for pair in found.pairs if pair.units is not None][::3] == ["conv2d", "linear"]
        assert len(found.pairs) == 4


def test_the_batches_that_a_batch_norm_has_seen_are_no_difference(tmp_path) -> None:
    model = network()
    model[1].body.norm.num_batches_tracked.data += 5
    found = compared(saved(model, tmp_path / "a.safetensors"), saved(network(), tmp_path / "b.safetensors"))
    assert all(pair.equal for pair in found.pairs)
    assert not any(off for *_, off in found.weights)
    assert found.alone == ((), ())


def test_one_batch_norm_in_its_convolution_is_no_difference_beside_others(tmp_path) -> None:
    head = nn.GlobalAvgPool(), nn.Linear(3, 3)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), *head)
    model[2].bias.data = np.asarray([1, -2, 3], np.float32)
    folded = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.ReLU(), *head)
    folded[1].weight.data, folded[1].bias.data = (
        model[1].weight.data / np.sqrt(np.float32(1 + 1e-5)),
        model[2].bias.data,
    )
    found = compared(saved(model, tmp_path / "a.onnx"), saved(folded, tmp_path / "b.onnx"))
    assert found.same
    assert found.first is None
    assert [pair.op for pair in found.pairs] == ["batch_norm", "conv2d", "relu", "global_avg_pool", "linear"]


def test_a_layer_that_only_one_network_has_is_named(tmp_path) -> None:
    a, b = saved(network(), tmp_path / "a.onnx"), saved(network(nn.Tanh()), tmp_path / "b.safetensors")
    found = compared(a, b)
    assert not found.same
    assert [(pair.a, pair.b) for pair in found.pairs if pair.units is None] == [("", "1")]
    assert found.first.b == "2.body.conv"
    assert found.in_order


def test_other_names_are_matched_in_order(tmp_path) -> None:
    first = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GlobalAvgPool(), nn.Linear(3, 3))
    second = nn.Sequential({"stem": nn.Conv2d(2, 3, 3), "pool": nn.GlobalAvgPool(), "head": nn.Linear(3, 3)})
    for name, other in zip(first.parameters(), second.parameters(), strict=True):
        other.data = name.data.copy()
    found = compared(saved(first, tmp_path / "a.safetensors"), saved(second, tmp_path / "b.safetensors"))
    assert found.same
    assert found.in_order
    assert [pair[:2] for pair in found.weights] == [
        ("0.weight", "stem.weight"), ("0.bias", "stem.bias"), ("2.weight", "head.weight"), ("2.bias", "head.bias")
    ]  # fmt: skip


def test_networks_of_other_inputs_or_outputs_differ(tmp_path) -> None:
    a = saved(network(), tmp_path / "a.safetensors")
    wide = library.save(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "b.safetensors", shape=(3, 6, 6))
    found = compared(a, wide)
    assert not found.same
    assert "b.safetensors does not take the input 3 x 2 x 6 x 6: 0 (Conv2d)" in found.reason
    found = compared(a, saved(nn.Sequential(*network(), nn.Linear(3, 2)), tmp_path / "c.safetensors"))
    assert found.reason == "their shapes are 3 x 3 and 3 x 2"
    assert (found.same, found.units, found.agreed) == (False, None, None)


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_a_file_that_asks_for_enormous_inputs_is_refused(tmp_path, suffix) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "onnx":
        made = onnx.to_model(nn.Sequential(nn.ReLU()), (2, 3))
        made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**30
        path.write_bytes(made.SerializeToString())
    else:
        library.save(nn.Sequential(nn.ReLU()), path, shape=(2, 2**30))
    with pytest.raises(CheckpointError, match=r"1073741824"):
        compare.open_file(path)


def test_a_file_of_several_inputs_is_refused_by_their_names(tmp_path) -> None:
    two = nn.Graph([("sum", nn.Add(), ("image", "mask"))], inputs=("image", "mask"))
    onnx.save(two, tmp_path / "two.onnx", ((2, 3), (2, 3)))
    with pytest.raises(UsageError, match=r"two.onnx takes several inputs, image, mask; only networks of one are"):
        compare.open_file(tmp_path / "two.onnx")


def test_large_inputs_are_two_by_default(tmp_path, xcnn) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    for size, count in ((64, 8), (65, 2)):
        path = library.save(model, tmp_path / f"{size}.safetensors", shape=(1, 4, size))
        assert f"output   {count} x 2" in xcnn(path, path)[1]


def test_weights_alone_are_compared_by_name(tmp_path, xcnn) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    model = network()
    for name, one in {"a": model, "b": model, "c": changed(model, "0.bias", 1.0)}.items():
        save_file(one.state_dict(), tmp_path / f"{name}.safetensors")
    assert xcnn(tmp_path / "a.safetensors", tmp_path / "b.safetensors")[0] == 0
    code, out, err = xcnn(tmp_path / "a.safetensors", tmp_path / "c.safetensors")
    assert code == 1
    assert "error: the weights differ" in err
    assert [line.split()[0] for line in out.splitlines()[-1:]] == ["0.bias"]


def test_the_command_shows_what_differs(tmp_path, xcnn) -> None:
    model = network()
    a = saved(model, tmp_path / "a.onnx", classes=CLASSES)
    b = saved(changed(model, "1.body.conv.weight", 1.0), tmp_path / "b.safetensors")
    code, out, err = xcnn(a, b)
    assert code == 1
    assert "6 of 7 layers differ" in out
    assert [line.split()[:2] for line in out.splitlines() if "<- the first to part" in line] == [["1.body.conv"] * 2]
    assert "1 of them differ" in err
    assert "error: the outputs differ: " in err.splitlines()[-1]
    assert "the activations part at 1.body.conv of A, 1.body.conv of B (conv2d)" in err.splitlines()[-1]
    code, out, _ = xcnn(a, b, "--json", "-b", 2)
    assert code == 1
    *lines, verdict = map(json.loads, out.splitlines())
    assert {line["kind"] for line in lines} == {"fact", "layer", "weights"}
    assert verdict["first"] == {"a": "1.body.conv", "b": "1.body.conv"}
    assert verdict["same"] is False
    assert verdict["bound"] == TOGETHER


def test_a_weight_that_is_in_no_layer_is_named(tmp_path, xcnn) -> None:
    model = nn.Graph(
        [("scale", nn.Parameter(np.ones((2, 1, 1), np.float32)), ()), ("y", nn.Multiply(), ("x", "scale"))]
    )
    a, b = saved(model, tmp_path / "a.onnx"), saved(changed(model, "scale", 1.0), tmp_path / "b.safetensors")
    code, _, err = xcnn(a, b)
    assert code == 1
    assert "1 arrays are matched by name, 1 of them differ\nof those, in no layer of the table: scale\n" in err


def test_a_linear_layer_of_maps_is_that_of_their_export(tmp_path) -> None:
    model = nn.Sequential(nn.Apply("permute", dims=(0, 2, 3, 1)), nn.Linear(2, 3), nn.GELU())
    found = compared(saved(model, tmp_path / "a.onnx"), saved(model, tmp_path / "b.safetensors"))
    assert found.same
    assert [(pair.op, pair.equal) for pair in found.pairs] == [("permute", True), ("linear", True), ("gelu", True)]


def test_images_of_a_data_set_can_be_the_input(tmp_path, xcnn) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    a, b = (library.save(model, tmp_path / f"{name}.safetensors", shape=(1, 8, 8)) for name in "ab")
    code, _, err = xcnn(a, b, "--dataset", "digits", "-b", 5)
    assert code == 0
    assert "the outputs agree: 0 units of eps * S" in err
    assert "the same class for 100% of the inputs" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a.safetensors"], "compare takes two files, got 1"),
        (["a.safetensors", "none.onnx"], "none.onnx"),
        (["a.safetensors", "b.safetensors", "--op", "relu"], "--op has no meaning for two files"),
        (["a.safetensors", "b.safetensors", "--steps", "0"], "--steps has no meaning for two files"),
        (["a.safetensors", "b.safetensors", "--dtype", "float32"], "--dtype has no meaning for two files"),
        (["a.safetensors", "b.safetensors", "-b", "0"], "--batch-size must be at least 1, got 0"),
        (["shapeless.safetensors", "shapeless.safetensors"], "the files do not state the shape of an input"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, xcnn, argv, message) -> None:
    saved(network(), tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    library.save(network(), tmp_path / "shapeless.safetensors")
    argv = [tmp_path / part if part.endswith(("tensors", "onnx")) else part for part in argv]
    code, out, err = xcnn(*argv)
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
