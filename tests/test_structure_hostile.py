"""Networks in files of a hostile writer: each is refused in one sentence, without memory for what it claims."""

import functools
import tracemalloc

import numpy as np
import pytest
from compositions import ARGUMENTS, levels
from test_nn_layers import LAYERS

import xcnn
from xcnn import nn
from xcnn.errors import CheckpointError
from xcnn.runs import Checkpoint
from xcnn.runs.checkpoint import write_checkpoint
from xcnn.runs.structure import LAYERS as KNOWN
from xcnn.runs.structure import build, describe


def entry(name, **options):
    return {"class": name, "options": options}


def wrapped(*entries):
    return {"modules": list(entries), "streams": {}}


def chain(length):
    layers = [entry("Sequential", modules=[{"module": place - 1}] if place else []) for place in range(length)]
    return wrapped(*layers)


def doubling(length):
    layers = [entry("Sequential", modules=[{"module": place}] * 2) for place in range(length)]
    return wrapped(entry("ReLU"), *layers)


def nested(depth):
    return functools.reduce(lambda inner, _: [inner], range(depth), 1)


HUGE = 2**31 - 1
HOSTILE = {
    "features": (wrapped(entry("BatchNorm2d", num_features=2**40)), "missing weight, bias, running_mean, running_var"),
    "instance": (
        wrapped(entry("InstanceNorm1d", num_features=2**50, track_running_stats=True)),
        "missing running_mean",
    ),
    "group": (wrapped(entry("GroupNorm", num_groups=1, num_channels=2**41)), "missing weight, bias"),
    "layer": (wrapped(entry("LayerNorm", normalized_shape=[HUGE, 2**20])), "missing weight, bias"),
    "axes": (wrapped(entry("LayerNorm", normalized_shape=[2] * 100)), "LayerNorm. cannot be made: ValueError"),
    "kernel": (
        wrapped(entry("Conv3d", in_channels=1, out_channels=1, kernel_size=[HUGE] * 3)),
        "Conv3d. cannot be made",
    ),
    "channels": (
        wrapped(entry("Conv2d", in_channels=2**30, out_channels=2**25, kernel_size=3)),
        "missing weight, bias",
    ),
    "linear": (wrapped(entry("Linear", in_features=2**30, out_features=2**30)), "missing weight, bias"),
    "digits": (wrapped(entry("Linear", in_features=10**400, out_features=3)), "Linear. cannot be made"),
    "deep": (chain(1000), "too many modules; at most 100 may be nested"),
    "doubled": (doubling(60), "and 10,000 repeated"),
    "wide": (
        wrapped(*doubling(13)["modules"], entry("Sequential", modules=[{"module": 13}] * 5000)),
        "10,000 repeated",
    ),
    "looks": (
        wrapped(*doubling(11)["modules"], *[entry("Sequential", modules=[{"module": 11}])] * 100),
        "too many modules",
    ),
    "values": (wrapped(entry("Pad", pad=nested(600))), "its values are nested too deep"),
    "itself": (wrapped(entry("Sequential", modules=[{"module": 0}])), "module 0: there is no module 0 before it"),
    "later": (wrapped(entry("Sequential", modules=[{"module": 1}]), entry("ReLU")), "there is no module 1 before it"),
    "negative": (wrapped(entry("ReLU"), entry("Sequential", modules=[{"module": -1}])), "there is no module -1"),
    "true": (wrapped(entry("ReLU"), entry("Sequential", modules=[{"module": True}])), "there is no module True"),
    "none": (wrapped(), "the state is invalid: IndexError"),
    "number": ({"modules": 3, "streams": {}}, "the state is invalid: TypeError"),
    "missing": ({}, "the state is invalid: KeyError"),
    "list": (wrapped([]), "the state is invalid: TypeError"),
    "class": (wrapped(entry("os.system", command="x")), r"not in xcnn.nn; pass them: modules=\{'os.system'"),
    "abstract": (wrapped(entry("Module")), "not in xcnn.nn"),
    "unhashable": (wrapped({"class": [], "options": {}}), "not in xcnn.nn"),
    "unknown": (wrapped(entry("ReLU", slope=1)), "ReLU: no argument 'slope'"),
    "incomplete": (wrapped(entry("Linear", in_features=1)), "Linear: missing a required argument: 'out_features'"),
    "positional": (wrapped(entry("Branches", merge="add")), r"Branches\) cannot be made: KeyError: 'modules'"),
    "text": (
        wrapped(entry("Sequential", modules="ab")),
        "module 0 .Sequential.: Sequential: node '0' must be a module",
    ),
    "kind": (wrapped(entry("Pad", pad={"evil": 1})), "there are no values of the kind 'evil'"),
    "pair": (wrapped(entry("Pad", pad={"list": [], "dict": {}})), "the state is invalid: ValueError"),
    "frozen": (wrapped(entry("ReLU")) | {"frozen": ["weight"]}, "what is frozen must be a list of names of its parame"),
    "frozen text": (wrapped(entry("ReLU")) | {"frozen": ""}, "what is frozen must be a list of names"),
    "frozen lists": (wrapped(entry("ReLU")) | {"frozen": [[]]}, "the state is invalid: TypeError"),
    "frozen number": (wrapped(entry("ReLU")) | {"frozen": 3}, "the state is invalid: TypeError"),
    "streams": ({"modules": [entry("Dropout")], "streams": {}}, "its random streams are not those of its modules"),
    "stream": (
        {"modules": [entry("Dropout")], "streams": {"rng": {"state": -1}}},
        "the structure: the state is invalid",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_structures_are_refused_without_memory(tmp_path, name):
    structure, says = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    write_checkpoint(path, Checkpoint(structure=structure))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=says) as caught:
            xcnn.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + (2 << 20)  # parsed JSON takes several times its length
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", KNOWN)
def test_no_layer_takes_memory_for_its_options(name):
    """Whatever the file claims: arrays are made when their shapes have been compared with those in the file."""
    arguments, options = next((row[1:3] for row in LAYERS if row[0] == name), (ARGUMENTS.get(name, ()), {}))
    structure = describe(KNOWN[name](*arguments, **options))
    *inside, layer = structure["modules"]
    for key in [key for key, value in layer["options"].items() if type(value) is int and value > 0]:
        claims = layer["options"] | {key: 2**41} | ({"groups": 1} if "groups" in layer["options"] else {})
        said = ""
        tracemalloc.start()
        try:
            build({**structure, "modules": [*inside, {"class": name, "options": claims}]}, {})
        except CheckpointError as error:
            said = str(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
        assert "MemoryError" not in said


def test_weights_are_not_widened(tmp_path):
    """A byte for each number would otherwise become four or eight."""
    path = tmp_path / "hostile.safetensors"
    model = nn.Linear(100, 100, bias=False)
    write_checkpoint(path, Checkpoint(structure=describe(model), state={"weight": np.ones((100, 100), bool)}))
    with pytest.raises(CheckpointError, match="weight is of the dtype bool, expected one like float32"):
        xcnn.load(path)


def test_loading_takes_twice_the_memory_of_the_file(tmp_path):
    path = xcnn.save(nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))), tmp_path / "large.safetensors")
    tracemalloc.start()
    model = xcnn.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + (1 << 20)
    assert model[7].weight.data.any()


def test_a_thousand_layers_and_a_hundred_levels_are_built():
    wide = nn.Sequential(*[levels(98)] * 5, *(nn.ReLU() for _ in range(1000)))
    assert len(build(describe(wide), {})) == 1005
