"""Every example of `docs/extending.md` runs as it stands, is short, and uses no name that is not public."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import PORTABLE

from xcnn import nn, ops
from xcnn.errors import ShapeError, UsageError

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"

LONGEST = 25
"""Maximum number of lines of an example, without blank ones."""

PRIVATE = r"(?<!\w)_(?!_\w+__)\w"
"""A name that begins with an underscore, except Python's special names such as `__init__`."""

COMMAND = "import sys; sys.path.pop(0); from xcnn.cli import main; sys.exit(main(sys.argv[1:]))"
"""Runs a command as the installed script does, whose path has no current folder."""


def sections() -> dict[str, list[tuple[str, str]]]:
    """Return the blocks of each section of the page, as (language, text)."""
    text = PAGE.read_text("utf-8") if PAGE.exists() else ""
    parts = [part.partition("\n") for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]
    found = {title: re.findall(r"^```(\w+)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL) for title, _, part in parts}
    return {title: blocks for title, blocks in found.items() if blocks}


def file_name(block: str) -> str | None:
    """Return the name of a block's file, if its first line names one."""
    found = re.match(r"# (\w+\.py)\n", block)
    return found[1] if found else None


EVERY = [(title, language, block) for title, blocks in sections().items() for language, block in blocks]


def test_the_examples_are_found() -> None:
    if not PAGE.exists():
        pytest.skip("runs away from the source tree, without docs/")
    assert {"An op", "A layer of an op", "A layer from scratch", "A network"} <= set(sections())
    opened = re.findall(r"^```\w+$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(opened) == len(EVERY) == PAGE.read_text("utf-8").count("\n```\n")  # each block ends in its section


@pytest.mark.parametrize(("title", "block"), [(title, block) for title, _, block in EVERY])
def test_an_example_is_short_and_public(title: str, block: str) -> None:
    assert sum(bool(line.strip()) for line in block.splitlines()) <= LONGEST
    assert re.findall(PRIVATE, block) == []


def test_a_private_name_is_seen() -> None:
    for private in ("_hidden = 3", "self._x", "nn._module.Module", "__mangled", "f(_x)"):
        assert re.search(PRIVATE, private)
    for public in ("def __init__(self)", "super().__init__()", "y, _ = f(x)", "a_b", "__name__"):
        assert not re.search(PRIVATE, public)


@pytest.mark.parametrize("title", sections())
def test_an_example_runs(title: str, tmp_path: Path) -> None:
    if title == "ONNX":
        pytest.importorskip("onnxruntime")
    for _, _, block in EVERY:
        if name := file_name(block):
            (tmp_path / name).write_text(block, "utf-8")
    path = os.pathsep.join(filter(None, sys.path))  # the path on which this process finds xcnn and the libraries
    environment = {"python": os.environ | {"PYTHONPATH": path}, "sh": PORTABLE | {"PYTHONPATH": path}}
    for number, (language, block) in enumerate(sections()[title]):
        script = tmp_path / (file_name(block) or f"block{number}.py")
        script.write_text(block, "utf-8")
        calls = {"python": [[str(script)]], "sh": [["-c", COMMAND, *line.split()[1:]] for line in block.splitlines()]}
        for call in calls[language]:
            done = subprocess.run(
                [sys.executable, "-W", "error", *call],
                cwd=tmp_path, env=environment[language], capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr


# --- what the page says beyond its examples ---------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, x, train):
        return 2 * x, lambda dy, need_dx: 2 * dy if need_dx else None


class Net(nn.Module):
    """Children in every kind of collection."""

    def __init__(self) -> None:
        self.blocks = [nn.Linear(3, 3), (nn.BatchNorm1d(3), nn.Dropout(0.5))]
        self.heads = {"a": nn.Linear(3, 2), "b": {"deep": [nn.Linear(3, 1)]}}
        self.scales = [nn.Parameter(np.ones(3, np.float32)), 7, None]
        self.sizes, self.names = (1, 2), {"x": "y"}

    def forward(self, x, train):
        y, first = self.blocks[0].forward(x, train)
        y, second = self.heads["a"].forward(y, train)
        return y, lambda dy, need_dx: first(second(dy), need_dx)


KEYS = [
    *("scales.0", "blocks.0.weight", "blocks.0.bias", "blocks.1.0.weight", "blocks.1.0.bias"),
    *("blocks.1.0.running_mean", "blocks.1.0.running_var", "blocks.1.0.num_batches_tracked"),
    *("heads.a.weight", "heads.a.bias", "heads.b.deep.0.weight", "heads.b.deep.0.bias"),
]


def test_children_in_collections_are_found() -> None:
    net = nn.Sequential(Net())
    assert list(net.state_dict()) == [f"0.{key}" for key in KEYS]
    assert len(net.parameters()) == 9
    assert [name for name, _ in net.named_generators()] == ["0.blocks.1.1.rng"]
    assert [name for name, _ in net[0].children()] == [
        "blocks.0",
        "blocks.1.0",
        "blocks.1.1",
        "heads.a",
        "heads.b.deep.0",
    ]
    assert [row.name for row in nn.summary(net, (3,)).rows] == ["0.blocks.0", "0.heads.a", "0.scales.0"]
    net.reset_parameters(0)
    state = net.state_dict()
    net.reset_parameters(1)
    assert not np.array_equal(net.state_dict()["0.heads.b.deep.0.weight"], state["0.heads.b.deep.0.weight"])
    net.load_state_dict(state)
    np.testing.assert_array_equal(net[0].heads["b"]["deep"][0].weight.data, state["0.heads.b.deep.0.weight"])
    net.to("cpu", "float64")
    assert {array.dtype for key, array in net.state_dict().items() if "tracked" not in key} == {np.dtype("float64")}
    assert "(heads.b.deep.0): Linear(3, 1)" in repr(net)


def test_keys_of_collections_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")

    class Theirs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(3))])
            pair = torch.nn.ModuleList([torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)])
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 3), pair])
            deep = torch.nn.ModuleDict({"deep": torch.nn.ModuleList([torch.nn.Linear(3, 1)])})
            self.heads = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": deep})

    assert list(Theirs().state_dict()) == KEYS


def test_attributes_of_a_graph_that_are_not_nodes_are_found() -> None:
    class WithHead(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 2), nn.ReLU())
            self.head, self.first = nn.Linear(2, 1), self[0]

        def forward(self, x, train):
            y, first = super().forward(x, train)
            y, second = self.head.forward(y, train)
            return y, lambda dy, need_dx: first(second(dy), need_dx)

    net, x = WithHead(), np.ones((4, 3), np.float32)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "head.weight", "head.bias"]
    assert net(x).shape == net.forward(x)[0].shape == (4, 1)
    assert len(net) == 2


@pytest.mark.parametrize("call", [lambda net, x: net(x), lambda net, x: net.forward(x)])
def test_an_error_names_the_layer_in_modules_composed_by_hand(call) -> None:
    with pytest.raises(ShapeError, match=r"^0\.blocks\.0 \(Linear\): linear: "):
        call(nn.Sequential(Net()), np.ones((4, 5), np.float32))
    with pytest.raises(ShapeError, match=r"^blocks\.0 \(Linear\): linear: "):
        call(Net(), np.ones((4, 5), np.float32))


def test_optional_arguments_of_forward_may_be_omitted() -> None:
    y, backward = Double().forward(np.ones(2))
    np.testing.assert_array_equal(backward(y), [4, 4])
    with pytest.raises(UsageError, match=r"^Double: backward was called already"):
        backward(y)
    assert Double().forward(np.ones(2), False)[1](y, need_dx=False) is None


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: (x, None), r"^Odd: forward must take \(x, train\) and return \(y, backward\)$"),
        (lambda self, x, train: x, r"^Odd: forward must return \(y, backward\), got ndarray$"),
        (lambda self, x, train: (x, x), r"^Odd: forward must return \(y, backward\), got tuple$"),
    ],
)
def test_a_forward_that_is_something_else_is_refused(forward, message) -> None:
    odd = type("Odd", (nn.Module,), {"forward": forward})
    with pytest.raises(UsageError, match=message):
        odd()(np.ones(2))


def test_type_errors_inside_a_forward_are_raised_unchanged() -> None:
    class Broken(nn.Module):
        def __init__(self, size=3) -> None:
            self.size = size + ("" if size == 3 else 1)

        def forward(self, x, train):
            return x + "text", None

    with pytest.raises(TypeError, match="unsupported operand"):
        Broken()
    with pytest.raises(TypeError):
        Broken(4)(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(3, 8, 3, strid=2), "Conv2d: no argument 'strid'; did you mean 'stride'? (known: in"),
        (lambda: nn.Conv2d(3, 8), "Conv2d: missing a required argument: 'kernel_size'"),
        (lambda: nn.MaxPool2d(2, strides=2), "MaxPool2d: no argument 'strides'; did you mean 'stride'?"),
        (lambda: nn.MaxPool2d(), "MaxPool2d: missing a required argument: 'kernel_size'"),
        (lambda: nn.LeakyReLU(slope=0.1), "LeakyReLU: no argument 'slope'; did you mean 'negative_slope'?"),
        (lambda: nn.ReLU(inplace=True), "ReLU: no argument 'inplace'"),
        (lambda: nn.Sequential(nn.ReLU(), name="a"), "Sequential: no argument 'name'"),
        (lambda: nn.Graph([], ouput="x"), "Graph: no argument 'ouput'; did you mean 'output'?"),
        (lambda: nn.Branches(nn.ReLU(), merged="add"), "Branches: no argument 'merged'; did you mean 'merge'?"),
        (lambda: nn.BatchNorm2d(3, momentun=1), "BatchNorm2d: no argument 'momentun'; did you mean 'momentum'?"),
        (lambda: nn.Dropout(0.5, 1, 2), "Dropout: too many positional arguments"),
        (lambda: ops.conv2d(1, 2, strid=2), "conv2d: no argument 'strid'; did you mean 'stride'?"),
        (lambda: ops.relu(), "relu: missing a required argument: 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_names_the_class_and_the_nearest(make, message) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value).startswith(message)


def test_every_layer_names_itself_where_an_argument_is_wrong() -> None:
    kinds = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    for kind in kinds:
        with pytest.raises(UsageError, match=rf"^{kind.__name__}: (no argument 'nonsense'|missing)"):
            kind(nonsense=1)


def test_errors_name_a_users_own_network_class() -> None:
    class Mine(nn.Conv2d):
        def __init__(self, width):
            super().__init__(3, width, 3, strid=2)

    with pytest.raises(UsageError, match=r"^Mine: no argument 'strid'; did you mean 'stride'\?"):
        Mine(3)
    with pytest.raises(UsageError, match=r"^Mine: no argument 'widht'; did you mean 'width'\?"):
        Mine(widht=3)


def test_signatures_stay_readable() -> None:
    import inspect

    assert list(inspect.signature(nn.Linear).parameters) == ["in_features", "out_features", "bias", "init"]
    assert list(inspect.signature(nn.LeakyReLU).parameters) == ["negative_slope"]
    assert list(inspect.signature(ops.relu).parameters) == ["x"]


def test_what_is_not_an_op_or_an_array_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^Odd: op must be a function decorated with ops\.op, got <function"):

        class Odd(nn.Layer, op=lambda x: x):
            pass

    with pytest.raises(TypeError, match=r"^Parameter: data must be an array, got list$"):
        nn.Parameter([1.0])

    class Raw(nn.Layer, op=ops.linear):
        weight = np.ones((2, 3), np.float32)

    with pytest.raises(UsageError, match=r"^Raw: weight must be a Parameter, a Buffer or None, got ndarray$"):
        Raw()(np.ones((1, 3), np.float32))


def test_a_layer_uses_the_defaults_of_its_op() -> None:
    class Leaky(nn.Layer, op=ops.leaky_relu):
        pass

    class Drop(nn.Layer, op=ops.dropout):
        p, rng = 1.0, np.random.default_rng(0)

    x = np.asarray([-1.0, 2.0], np.float32)
    np.testing.assert_allclose(Leaky()(x), [-0.01, 2.0])
    np.testing.assert_array_equal(Drop()(x), x)
    np.testing.assert_array_equal(Drop().forward(x)[0], [0, 0])
    assert repr(Leaky()) == "Leaky()"
