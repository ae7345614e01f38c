"""`xcnn.testing`: correct ops pass, and every planted fault is found and named in one sentence."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import reference

from xcnn import nn, ops, testing
from xcnn.errors import UsageError
from xcnn.ops import OPS, sample


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    """Restore the table of ops after the test."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


def product(forward: Callable[..., Any] | None = None, **backwards: Any) -> Callable[..., Any]:
    """Make the op `product`, y = x * weight, with some parts replaced."""
    saves = backwards.pop("saves", "x weight")
    samples = backwards.pop("samples", [sample({"x": (2, 3), "weight": (2, 3)})])
    constants = backwards.pop("constants", "")
    dx = backwards.pop("dx", lambda dy, x, weight, needs: dy * weight if needs[0] else None)
    dweight = backwards.pop("dweight", lambda dy, x, weight, needs: dy * x if needs[1] else None)
    assert not backwards

    @ops.op("x weight", saves=saves, constants=constants, samples=samples)
    def product(x, weight):
        y = x * weight if forward is None else forward(x, weight)
        return y, lambda dy, needs: (dx(dy, x, weight, needs), dweight(dy, x, weight, needs))

    return product


def swish(beta_slope: bool = True) -> Callable[..., Any]:
    @ops.op("x", saves="x s", samples=[sample({"x": (2, 3)}), sample({"x": (4,)}, beta=2.0)])
    def swish(x, beta=1.0):
        s, slope = ops.sigmoid(beta * x)

        def backward(dy, needs):
            return (dy * s + beta * slope(dy * x)[0] if needs[0] else None,)

        return x * s, backward

    return swish


def failure(op: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as error:
        testing.check_op(op, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_right_op_passes_on_every_library() -> None:
    testing.check_op(product())
    testing.check_op("product", reference=lambda x, weight: x * weight)


def test_our_own_ops_pass_by_the_public_door() -> None:
    testing.check_op(ops.conv1d, reference=reference.conv1d, devices=["cpu", "strict"], dtypes=["float32"])


def test_an_op_made_of_ops_passes() -> None:
    testing.check_op(swish())


def wrong_element(dy, x, weight, needs):
    grad = dy * x
    grad = grad + 0.0
    index = (1, 2)
    grad[index] = grad[index] * 1.001
    return grad if needs[1] else None


def modifies(x, weight):
    y = x * weight
    x[0, 1] = 7.0
    return y


def overwrites(dy, x, weight, needs):
    dy *= weight
    return dy if needs[0] else None


class Counter:
    """A gradient that differs at each call."""

    def __init__(self) -> None:
        self.count = 0.0

    def __call__(self, dy: Any, x: Any, weight: Any, needs: Any) -> Any:
        self.count += 1e-11
        return dy * weight + self.count if needs[0] else None


NUMPY = {"devices": ["cpu"], "dtypes": ["float64"]}
HERE = "product: sample 0 on cpu, float64: "
FAULTS = {
    "a wrong gradient element": (
        {"dweight": wrong_element}, HERE + r"dweight at \[1, 2\] must be -?[\d.e-]+ within [\d.e-]+, got -?[\d.e-]+$",
    ),
    "x modified": ({"forward": modifies}, HERE + r"input x, which the op must not modify, at \[0, 1\] must.*got 7$"),
    "dy modified": ({"dx": overwrites}, HERE + r"input dy, which the op must not modify, at \["),
    "a wrong dtype": (
        {"dx": lambda dy, x, weight, needs: (dy * weight).astype(np.float32)},
        HERE + "dx must have dtype float64, got float32$",
    ),
    "a wrong shape": (
        {"dx": lambda dy, x, weight, needs: np.sum(dy * weight, axis=0)},
        HERE + r"dx must have shape \(2, 3\), got \(3,\)$",
    ),
    "a gradient that is missing": (
        {"dx": lambda dy, x, weight, needs: None},
        HERE + "dx must be an array, got None; name an array that has no gradient in `constants`$",
    ),
    "a gradient of a constant": ({"constants": "weight"}, HERE + "dweight must be None, got an array$"),
    "a gradient that changes": ({"dx": Counter()}, HERE + "dx of a second call of backward at "),
    "needs ignored": (
        {"dx": lambda dy, x, weight, needs: dy * weight},
        r"product: sample 0 with needs=\(False, False\) on numpy: dx must be None, got an array$",
    ),
    "needs changes a gradient": (
        {"dx": lambda dy, x, weight, needs: (dy * weight if needs[1] else dy * weight * 2) if needs[0] else None},
        r"product: sample 0 with needs=\(True, False\) on numpy: dx at \[\d, \d\] must be ",
    ),
    "an array kept that saves does not name": (
        {"saves": "x"}, "product: sample 0 on numpy: backward keeps weight, which is not in saves='x'$",
    ),
    "an array in saves that is not kept": (
        {"saves": "x weight y"},
        r"product: sample 0 on numpy: backward does not keep y, which saves names; write y\? if it may$",
    ),
    "an error in backward": (
        {"dx": lambda dy, x, weight, needs: dy @ weight},
        "product: sample 0 on cpu, float64: raised ValueError: matmul: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(fault: str) -> None:
    changes, message = FAULTS[fault]
    assert re.search(f"^{message}", failure(product(**changes), **NUMPY)), failure(product(**changes), **NUMPY)


def test_a_copy_and_a_hidden_array_are_found() -> None:
    def keep(copied: bool) -> Callable[..., Any]:
        @ops.op("x", saves="x", samples=[sample({"x": (2, 3)})])
        def double(x):
            hidden = [x.copy()]
            if copied:
                x = x.copy()
            return 2 * x, lambda dy, needs: (2 * dy + 0 * x + (0 if copied else 0 * hidden[0]) if needs[0] else None,)

        return double

    assert failure(keep(True), **NUMPY).endswith("backward keeps a copy of x; keep x itself")
    assert failure(keep(False), **NUMPY).endswith("an array of shape (2, 3) that none of its variables is")


def test_an_array_of_another_library_is_found() -> None:
    def to_host(dy, x, weight, needs):
        return np.ones(x.shape, np.float32) if needs[0] else None

    message = failure(product(dx=to_host), devices=["strict"], dtypes=["float32"])
    assert message == "product: sample 0 on strict, float32: dx must have library array_api_strict, got numpy"


def test_what_only_one_library_refuses_is_found() -> None:
    message = failure(product(forward=lambda x, weight: np.multiply(x, weight)))
    assert re.search("^product: sample 0 on (strict|torch)", message)


def test_a_wrong_y_is_found_by_a_reference() -> None:
    op = product()
    message = failure(op, reference=lambda x, weight: x * weight + 1e-3, **NUMPY)
    assert message.startswith(f"{HERE}y at ")
    cube = {"reference": lambda x, weight: x * np.abs(weight)}
    assert failure(op, **cube, **NUMPY).startswith(f"{HERE}y at ")


@pytest.mark.parametrize(
    ("op", "message"),
    [
        ("nonsense", "check_op: nonsense is not an op; decorate it with xcnn.ops.op"),
        (print, "check_op: print is not an op; decorate it with xcnn.ops.op"),
        (np.tanh, "check_op: tanh is not an op; decorate it with xcnn.ops.op"),
    ],
)
def test_what_is_no_op_is_refused(op: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        testing.check_op(op)


def test_an_op_without_samples_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^check_op: product has no samples; give ops\.op"):
        testing.check_op(product(samples=[]))


def test_gradients_of_functions_and_modules() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape) for shape in [(2, 3, 5), (4, 3, 3), (4,)])
    testing.check_gradients(ops.conv1d, {"x": x, "weight": weight, "bias": bias})
    testing.check_gradients(lambda x: ops.cross_entropy(x, np.asarray([0, 2])), [x[:, :, 0]])
    testing.check_gradients(ops.cross_entropy, [x[:, :, 0], np.asarray([0, 2])])
    model = nn.Sequential(nn.Conv1d(3, 2, 3), nn.BatchNorm1d(2), nn.Dropout(), nn.Flatten(), nn.Linear(6, 2))
    before = model.state_dict(), model[2].rng.bit_generator.state
    testing.check_gradients(model, [x])
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[0][key])
    assert model[2].rng.bit_generator.state == before[1]
    testing.check_gradients(nn.Add(), [x, x])


def test_a_device_and_a_dtype_may_be_given_alone() -> None:
    testing.check_op(product(), devices="cpu", dtypes="float32")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: testing.check_op("tanh", dtypes=["int7"]), "unknown check_op dtypes 'int7'"),
        (lambda: testing.check_gradients(ops.tanh, np.ones((2, 3))), "arrays must be a list or dict of arrays, got nd"),
        (
            lambda: testing.check_op("tanh", dtypes=[], devices=5),
            "device takes a string such as 'cpu', or an opened dev",
        ),
        (lambda: testing.check_op("tanh", dtypes=5), "unknown check_op dtypes 5"),
        (
            lambda: testing.check_gradients(ops.tanh, [np.ones(2)], seed=-1),
            "seed must be an integer of at least 0, got -1",
        ),
        (lambda: testing.check_gradients(ops.tanh, None), "arrays must be a list or dict of arrays, got NoneType"),
    ],
)
def test_wrong_arguments_of_a_check_are_one_sentence(check: Callable[[], None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check()


def test_a_failure_at_a_kink_names_that_cause() -> None:
    with pytest.raises(AssertionError, match=r"a kink of f near the arrays would explain it too$"):
        testing.check_gradients(ops.relu, [np.asarray([1e-5, 1.0])])


class Scale(nn.Module):
    def __init__(self, wrong: str = "") -> None:
        self.weight, self.wrong = nn.Parameter(np.asarray([2.0, 3.0], np.float32)), wrong

    def forward(self, x, train):
        weight = self.weight.data

        def backward(dy, need_dx):
            if self.wrong != "missing":
                self.weight.accumulate((dy * x).sum(axis=0) * (1.01 if self.wrong == "weight" else 1))
            return dy * weight * (1.01 if self.wrong == "x" else 1)

        return x * weight, backward


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("weight", r"Scale: dweight at \[\d\] must be .* within .*, got .*"),
        ("x", r"Scale: gradient 0 at \[\d, \d\] must be .* within .*, got .*"),
        ("missing", "Scale: dweight must be an array, got None"),
    ],
)
def test_a_wrong_gradient_of_a_module_is_named(wrong: str, message: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 2))
    testing.check_gradients(Scale(), [x])
    with pytest.raises(AssertionError, match=f"^{message}$"):
        testing.check_gradients(Scale(wrong), [x])


def test_a_wrong_gradient_of_a_function_is_named() -> None:
    def cube(x):
        return x**3, lambda dy: (2 * x**2 * dy,)

    with pytest.raises(AssertionError, match=r"^cube: dx at \[2\] must be .* within .*, got "):
        testing.check_gradients(cube, {"x": np.asarray([0.1, -0.2, 2.0])})


# --- errors of `ops.op` itself ---------------------------------------------------------------------------------------


def declared(arrays: str = "x", module: str = __name__, **options: Any) -> Callable[..., Any]:
    def mine(x, factor=2.0):
        return factor * x, lambda dy, needs: (factor * dy if needs[0] else None,)

    mine.__module__ = module
    return ops.op(arrays, **options)(mine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"saves": 3}, "op: saves must be a string of names separated by spaces, got 3"),
        ({"samples": [3]}, "op: samples must be a list of ops.sample(...), got [3]"),
        ({"arrays": "y"}, "mine: arrays must name arguments of the function, its first one first; it takes x, factor"),
        ({"arrays": ""}, "mine: arrays must name arguments of the function"),
        ({"constants": "z"}, "unknown constant of mine 'z'"),
        ({"samples": [sample({"z": (2,)})]}, "unknown argument in a sample of mine 'z'"),
        ({"samples": [sample({"x": (2,)}, facto=3)]}, "in a sample of mine 'facto'; did you mean 'factor'?"),
        ({"samples": [sample({})]}, "mine: a sample lacks the array argument 'x'"),
    ],
)
def test_a_registration_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        declared(**options)
    assert "mine" not in OPS


def test_a_name_belongs_to_one_module() -> None:
    declared()
    declared()  # as when the module is loaded again
    message = f"mine: there is an op of this name already, in {__name__}; choose another name"
    with pytest.raises(UsageError, match=message):
        declared(module="elsewhere")

    def relu(x):
        return x, lambda dy, needs: (dy,)

    with pytest.raises(UsageError, match=r"^relu: there is an op of this name already, in xcnn.ops.activation"):
        ops.op("x")(relu)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x, "^mine: an op must return \\(y, backward\\), got ndarray$"),
        (lambda x: (x, 3), "^mine: an op must return \\(y, backward\\), got tuple$"),
        (lambda x: (1.5, lambda dy, needs: (dy,)), "^mine: an op must return an array and its backward, got float$"),
        (lambda x: (x, lambda dy, needs: dy), "^mine: backward must return a tuple of 1 gradients, got ndarray$"),
        (lambda x: (x, lambda dy, needs: (dy, dy)), "^mine: backward must return a tuple of 1 gradients, got 2$"),
    ],
)
def test_an_op_that_returns_something_else_is_refused(result: Callable[..., Any], message: str) -> None:
    @ops.op("x")
    def mine(x):
        return result(x)

    x = np.ones(3)
    with pytest.raises(UsageError, match=message):
        mine(x)[1](x)
