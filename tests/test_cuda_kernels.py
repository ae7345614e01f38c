"""The CUDA kernels, run on the CPU: order of threads, width of indices, dropout's numbers, optimizers, large arrays.

test_ops.py (`numpy-cuda`) and test_kernels.py (`cuda`) compare their results with those of the portable code.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda_emulator as emulator
import cuda_twins as twins
import numpy as np
import pytest
from calls import convolutions
from cuda_emulator import emulated
from hypothesis import given, settings
from hypothesis import strategies as st

from xcnn import Trainer, models, ops, optim
from xcnn._dispatch import BODIES, portable
from xcnn.ops._op import OPS
from xcnn.ops._window import col2im, im2col, window_axes
from xcnn.parameter import Parameter
from xcnn.training.processes import Processes
from xcnn.training.sums import _levels, tree_sum


@pytest.fixture(autouse=True)
def launcher() -> Any:
    """The module that launches kernels, with all kernels loaded."""
    emulator.room()
    return emulator.LOADED["xcnn.kernels.cuda._launch"]


def results() -> Iterator[bytes]:
    """Run all ops on all their samples; return the bits of results and gradients."""
    for op in OPS.values():
        for sample in op.samples:
            rng = np.random.default_rng(1)
            arrays = {
                name: value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
                for name, value in sample.draw(rng).items()
            }
            if any(isinstance(value, list) for value in arrays.values()):
                continue  # ops of many arrays have no kernels
            y, backward = op.function(**arrays, **sample.options)
            first = y[0] if isinstance(y, tuple) else y
            gradients = backward(np.asarray(rng.standard_normal(first.shape), np.float32))
            for array in (*(y if isinstance(y, tuple) else (y,)), *gradients):
                if array is not None:
                    yield array.tobytes()


def test_no_bit_depends_on_the_order_of_threads_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated():
        wanted = list(results())
        monkeypatch.setattr(emulator, "BACKWARDS", [True])
        assert list(results()) == wanted


def test_wide_indices_give_the_same_bits(launcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated():
        wanted = list(results())
        monkeypatch.setattr(launcher, "LIMIT", 0)
        before = len(emulator.LAUNCHES)
        assert list(results()) == wanted
    assert ("float32", True) in launcher._MODULES
    assert len(emulator.LAUNCHES) > before


def test_every_kernel_is_launched_by_a_test_of_this_file(launcher: Any) -> None:
    emulator.LAUNCHES.clear()
    with emulated():
        for _ in results():
            pass
        for rule in (optim.SGD, optim.Adam, optim.RMSprop):
            step(rule, {}, 1)
        emulator.room()["totals"][0]([np.ones(3, np.float32)], np.float32)
        x = np.ones((2, 3), np.float32)
        ops.linear(x, x, np.ones(2, np.float32))
        y, backward = ops.conv2d(x.reshape(1, 1, 2, 3), x[:1, :1, None, None], np.ones(1, np.float32))
        backward(y)
        tree_sum(np, [(0, 0, np.ones(3, np.float32)), (1, 0, np.ones(3, np.float32))])
    assert set(emulator.LAUNCHES) == set(launcher.PARAMETERS)


def test_every_kernel_of_the_room_has_a_body() -> None:
    assert set(emulator.room()) <= set(BODIES)


@settings(max_examples=30)
@given(
    st.integers(0, 3),
    st.integers(0, 9),
    st.lists(st.integers(1, 700), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_dropout_draws_the_numbers_of_the_generator(seed: int, ahead: int, counts: list[int], p: float) -> None:
    """Also after an odd count, when the generator keeps half of a 64-bit word, and with other draws in between."""
    generators = [np.random.default_rng(seed) for _ in range(2)]
    for generator in generators:
        generator.random(ahead, np.float32)
    drawn: list[list[np.ndarray]] = []
    for context, generator in zip((portable(np), emulated()), generators, strict=True):
        with context:
            drawn.append([])
            for count in counts:
                y, backward = ops.dropout(np.full(count, 3, np.float32), p, rng=generator)
                drawn[-1] += [y, *backward(np.full(count, 2, np.float32)), generator.integers(0, 10, 3)]
    for one, other in zip(*drawn, strict=True):
        assert np.array_equal(one, other)
    assert str(generators[0].bit_generator.state) == str(generators[1].bit_generator.state)


def test_every_op_stays_within_its_error_budget(xcnn: Callable[..., tuple[int, str, str]]) -> None:
    with emulated():
        code, out, err = xcnn("compare", "--op", "all", "--devices", "cpu", "--dtype", "float32,float64")
    assert code == 0, out
    assert "errors are within their budgets" in err


def test_infinite_inputs_leave_a_constant_norm_its_gradient() -> None:
    x, ones = np.array([[np.inf, 2.0], [0.0, -np.inf]], np.float32), np.ones(2, np.float32)
    for context in (portable(np), emulated()):
        with context:
            _, backward = ops.batch_norm(x, 0 * ones, ones, ones, ones)
            dx = backward(np.full((2, 2), 3, np.float32), (True, False, False, False, False, False))[0]
        np.testing.assert_allclose(dx, 3, rtol=1e-4)


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_what_follows_a_norm_does_not_make_it_portable(activation: str | None) -> None:
    rng = np.random.default_rng(0)
    x, residual, dy = (rng.standard_normal((3, 4, 5, 6)).astype(np.float32) for _ in range(3))
    made = []
    for context in (portable(np), emulated()):
        emulator.LAUNCHES.clear()
        with context:
            (y, *_), backward = ops.batch_norm(x, training=True, residual=residual, activation=activation)
            made.append([y, *backward(dy)])
    assert {"normalise", "input_gradient"} <= set(emulator.LAUNCHES)
    for one, other in zip(*made, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_arrays_without_axes_stay_so() -> None:
    with emulated():
        y, backward = ops.dropout(np.asarray(2.0, np.float32), 0.5, rng=1)
        assert np.shape(y) == np.shape(backward(np.asarray(y))[0]) == ()
        parameter = Parameter(np.asarray(2.0, np.float32))
        parameter.grad = np.asarray(1.0, np.float32)
        optim.SGD([parameter], lr=0.5).step()
        assert parameter.data.shape == ()
        assert parameter.data == 1.5


def test_dropout_leaves_other_generators_to_the_portable_code() -> None:
    streams = [np.random.Generator(np.random.MT19937(1)) for _ in range(2)]
    x = np.ones(100, np.float32)
    with emulated():
        y = ops.dropout(x, 0.5, rng=streams[0])[0]
    assert np.array_equal(y, ops.dropout(x, 0.5, rng=streams[1])[0])


RULES: dict[str, tuple[Callable[..., optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {}),
    "momentum": (optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.2}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (optim.Adam, {"weight_decay": 0.1}),
    "adamw": (optim.AdamW, {}),
    "rmsprop": (optim.RMSprop, {}),
    "centered": (optim.RMSprop, {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
}


def guarded(host: np.ndarray) -> np.ndarray:
    """Copy numbers to memory with guards: a launch cannot check arrays whose addresses it reads from a table."""
    array = emulator.empty(host.shape, np.float32)
    array[...] = host
    return array


def step(rule: Callable[..., optim.Optimizer], options: dict[str, Any], count: int, steps: int = 3) -> list[np.ndarray]:
    """Update parameters of several sizes for some steps; return them and the state of the optimizer."""
    rng = np.random.default_rng(0)
    shapes = [(1 + i % 7, 3 + 40 * (i % 3)) for i in range(count)]
    parameters = [Parameter(guarded(rng.standard_normal(shape))) for shape in shapes]
    optimizer = rule(parameters, lr=0.05, **options)
    for number in range(steps):
        for i, parameter in enumerate(parameters):
            gradient = guarded(rng.standard_normal(parameter.data.shape))
            parameter.grad = None if number == 1 and i % 5 == 0 else gradient
        optimizer.step()
        for parameter in parameters:
            emulator.check_guards("step", parameter.data)
    kept = (a for p in parameters for a in optimizer.state[p].values())
    return [*(p.data for p in parameters), *(np.asarray(a) for a in kept)]


@pytest.mark.parametrize("count", [1, 32, 70])
@pytest.mark.parametrize("rule", RULES)
def test_optimizers_give_the_portable_bits(rule: str, count: int) -> None:
    with portable(np):
        wanted = step(*RULES[rule], count)
    with emulated():
        actual = step(*RULES[rule], count)
    for one, other in zip(actual, wanted, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_step_updates_32_parameters_per_launch() -> None:
    for count, launches in ((1, 1), (32, 1), (33, 2), (70, 3)):
        emulator.LAUNCHES.clear()
        with emulated():
            step(optim.SGD, {"momentum": 0.9}, count, steps=1)
        assert ["sgd"] * launches == emulator.LAUNCHES


def test_a_look_at_gradients_finds_what_is_not_finite() -> None:
    """In each of 70 arrays of several sizes, at the first, the last or some other place; also if sums overflow."""
    shapes = [(1 + i % 7, 3 + 40 * (i % 3)) for i in range(70)]
    totals = emulator.room()["totals"][0]
    for strange in (np.nan, np.inf, -np.inf):
        arrays = [np.full(shape, 3e38, np.float32) for shape in shapes]
        assert np.isfinite(totals(arrays, np.float32)).all()
        for i in range(0, 70, 3):
            arrays[i].flat[(0, -1, i)[i % 3] % arrays[i].size] = strange
        assert np.array_equal(np.isnan(totals(arrays, np.float32)), np.arange(70) % 3 == 0)
    assert totals(arrays, np.float64) is NotImplemented


@settings(max_examples=25)
@given(convolutions())
def test_the_twins_have_the_index_arithmetic_of_im2col_and_col2im(call: Any) -> None:
    """Against the portable code, which copies slices and computes no indices."""
    shape, kernel = call.arrays["x"], call.arrays["weight"][2:]
    options = {name: call.options.get(name, one) for name, one in (("stride", 1), ("padding", 0), ("dilation", 1))}
    rank = len(kernel)
    n, c, *sizes = (1, *shape)[-rank - 2 :]
    axes = window_axes("twin", tuple(sizes), kernel, **options)
    x = np.random.default_rng(0).standard_normal((n, c, *sizes))
    columns = im2col(np, x, axes)  # (n, c, taps, *outs)
    by_channel = np.moveaxis(columns, 0, 2)  # (c, taps, n, *outs)
    windows = c * n * int(np.prod(columns.shape[3:]))
    read, written = twins.im2col(np.arange(windows), n, c, axes)
    made = np.full(columns.size, np.nan)
    made[written] = np.where(read < 0, 0, x.ravel()[read] if x.size else 0)
    assert np.array_equal(made, by_channel.ravel())

    read = twins.col2im(np.arange(x.size), n, c, axes)
    flat = np.append(by_channel.ravel(), 0.0)  # padding is read at -1
    np.testing.assert_allclose(flat[read].sum(axis=0), col2im(np, columns, axes).ravel(), rtol=0, atol=1e-12)


def test_the_twins_have_the_order_of_images_and_channels() -> None:
    for n, c, size in itertools.product((1, 2, 3), (1, 4), (1, 5)):
        x = np.arange(n * c * size)
        assert np.array_equal(x.reshape(n, c, size).swapaxes(0, 1).ravel(), twins.lead_channels(x, n, c, size))
        assert np.array_equal(x.reshape(c, n, size).swapaxes(0, 1).ravel(), twins.finish_maps(x, n, c, size))


LARGE = [sys.executable, str(Path(__file__).with_name("cuda_large.py"))]


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_kernels_work_on_the_largest_arrays(width: str) -> None:
    """In a separate process, as an index that overflows ends it."""
    done = subprocess.run([*LARGE, width], capture_output=True, text=True)
    if done.returncode and ("MemoryError" in done.stderr or "Cannot allocate memory" in done.stderr):
        pytest.skip("this system reserves no memory that is not there")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("numbers") == 12


def test_narrow_indices_would_fail_on_them() -> None:
    """The test above would notice: it fails for the same arrays with 32-bit indices."""
    narrow = "import sys, cuda_emulator, cuda_large; cuda_emulator.room(); sys.argv[1:] = ['wide'];"
    narrow += "cuda_emulator.LOADED['xcnn.kernels.cuda._launch'].LIMIT = 1 << 62; cuda_large.main()"
    done = subprocess.run([sys.executable, "-c", narrow], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode < 0 or "AssertionError" in done.stderr


def test_the_documentation_says_what_a_step_launches() -> None:
    script = Path(__file__).with_name("cuda_launches.py")
    command = [sys.executable, str(script), "report", "lenet5", "mnist_cnn"]  # the others take longer
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    page = Path(__file__).parents[1] / "docs" / "cuda.md"
    if not page.is_file():
        pytest.skip("no documentation beside these tests")
    assert done.stdout in page.read_text("utf-8")


def test_maps_are_read_where_they_lie() -> None:
    """A convolution without bias returns channels first; batch norm and the backward passes copy nothing."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3, 8, 8), (4, 3, 3, 3)))
    with emulated():
        y, backward = ops.conv2d(x, weight, None, padding=1)
        assert y.swapaxes(0, 1).flags.c_contiguous
        (z, _, _), norm_backward = ops.batch_norm(y, training=True)
        assert z.flags.c_contiguous
        emulator.LAUNCHES.clear()
        dy = norm_backward(rng.standard_normal(z.shape).astype(np.float32))[0]
        assert dy.swapaxes(0, 1).flags.c_contiguous
        backward(dy)
    assert "lead_channels" not in emulator.LAUNCHES


@pytest.mark.parametrize("name", ["report", "lenet5", "mnist_cnn"])
def test_networks_train_as_on_the_portable_code(name: str) -> None:
    def trained() -> list[np.ndarray]:
        model = models.build(name, seed=1)
        trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
        rng = np.random.default_rng(0)
        for _ in range(2):
            trainer.step(rng.random((8, 1, 28, 28), np.float32), rng.integers(0, 10, 8))
        return list(model.state_dict().values())

    with portable(np):
        wanted = trained()
    with emulated():
        actual = trained()
    for one, other in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


BAD: dict[str, tuple[str, str]] = {
    "behind": ("KERNEL bad(real* y, index n) { EACH(i, n) y[i + 1] = 0; }", "written behind an array"),
    "before": ("KERNEL bad(real* y, index n) { EACH(i, n) y[-i] = 0; }", "written before an array"),
    "barrier": (
        "KERNEL bad(real* y, index n) { if (threadIdx.x < 9) __syncthreads(); y[0] = 0; }",
        "do not reach a barrier",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_the_emulator_notices_what_a_kernel_does_wrong(fault: str, launcher: Any) -> None:
    code, message = BAD[fault]
    kernel = launch_of(code, launcher)
    with pytest.raises(AssertionError, match=message):
        kernel((1,), (256,), (emulator.empty(5, np.float32), np.int32(5)))


def launch_of(code: str, launcher: Any) -> Any:
    source = "typedef float real;\ntypedef int index;\n"
    source += (
        Path(launcher.__file__).with_name("common.cuh").read_text("utf-8") + code.replace("{", "{\n", 1)[:-1] + "\n}"
    )
    launcher.PARAMETERS["bad"] = launcher._parameters(source)["bad"]
    try:
        return emulator.RawModule(code=source).get_function("bad")
    finally:
        del launcher.PARAMETERS["bad"]


def test_the_emulator_notices_a_missing_barrier(monkeypatch: pytest.MonkeyPatch, launcher: Any) -> None:
    """The result then depends on the order of the threads."""
    code = (
        "KERNEL bad(real* y, index n) { __shared__ int last; last = threadIdx.x; __syncthreads(); if (!threadIdx.x) "
        "y[0] = last; }"
    )
    kernel, found = launch_of(code, launcher), []
    for backwards in (False, True):
        monkeypatch.setattr(emulator, "BACKWARDS", [backwards])
        y = emulator.empty(1, np.float32)
        kernel((1,), (256,), (y, np.int32(1)))
        found.append(float(y[0]))
    assert found == [255, 0]


def test_a_launch_refuses_what_a_kernel_would_misread(launcher: Any) -> None:
    y, other = np.zeros((4, 4), np.float32), np.zeros((4, 4))
    with pytest.raises(TypeError, match="kernel mask: y takes float32, got float64"):
        launcher.launch("mask", 16, y, other, y, 16)
    with pytest.raises(TypeError, match=r"kernel mask: dx takes a C-contiguous array, got strides \(4, 16\)"):
        launcher.launch("mask", 16, y, y, y.T, 16)
    with pytest.raises(TypeError, match="kernel entropies: target takes int64, got float32"):
        launcher.launch_blocks("entropies", 4, y, y[0], 0, y, y[0], 4)
    with pytest.raises(ValueError, match="zip"):
        launcher.launch("mask", 16, y, y, y)


def test_compiling_is_counted_and_announced(launcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(launcher, "_MODULES", {})
    monkeypatch.setattr(launcher, "_READY", {})
    before = launcher.COMPILATION.seconds
    y = np.ones(4, np.float32)
    with launcher.COMPILATION.announced(lambda: said.append(1)):
        launcher.launch("mask", 4, y, y, y, 4)
    assert said == [1]
    assert launcher.COMPILATION.seconds > before


def of_one_of(size: int) -> Processes:
    processes = Processes()
    processes.size = size
    return processes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 2), (3, 7), (4, 16), (5, 13), (8, 100), (6, 1000)])
def test_sums_of_parts_have_the_portable_bits(size: int, count: int, dtype: Any) -> None:
    """The nodes of `count` parts on `size` processes, as each of them has made them."""
    keys = [key for rank in range(size) for key in _levels(of_one_of(size).share(count, rank))]
    arrays = np.random.default_rng(0).standard_normal((len(keys), 700)).astype(dtype)
    expected = tree_sum(np, [(*key, array.copy()) for key, array in zip(keys, arrays, strict=True)])
    with emulated():
        before = len(emulator.LAUNCHES)
        found = tree_sum(np, [(*key, array) for key, array in zip(keys, arrays, strict=True)])
        assert emulator.LAUNCHES[before:] == ["tree_sum"]
    assert found.tobytes() == expected.tobytes()


def test_sums_of_too_many_parts_are_left_to_the_portable_code() -> None:
    arrays = np.random.default_rng(0).standard_normal((65, 5)).astype(np.float32)
    expected = tree_sum(np, [(k, 0, array.copy()) for k, array in enumerate(arrays)])
    with emulated():
        before = len(emulator.LAUNCHES)
        assert tree_sum(np, [(k, 0, array) for k, array in enumerate(arrays)]).tobytes() == expected.tobytes()
        assert len(emulator.LAUNCHES) == before
