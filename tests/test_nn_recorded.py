"""Compiled calls of inference that are recorded: the same bits as those of the program, and never of old parameters."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_nn_inference import LAYOUTS, NETWORKS, cut, images, made, singly, together

from xcnn import nn, ops, optim, threads
from xcnn._dispatch import BODIES, bound, kernel, kernels, portable
from xcnn.errors import ShapeError
from xcnn.nn import _inference, _plan
from xcnn.nn._program import Program

pytest.importorskip("llvmlite")
from xcnn.kernels.cpu import record
from xcnn.kernels.cpu.record import recorded

RECORDED = {"plain", "residual", "mobile", "dense", "next", "moved", "outputs"}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    kernels(np)  # what is prepared before they are loaded is prepared again
    monkeypatch.setattr(_inference, "OFTEN", 1)


def records(model):
    programs = model._plan.joined().programs.values()
    return [one.record for one in programs if isinstance(one, Program) and one.record is not None]


def warm(model, x):
    """Return the result of a record, which must exist."""
    model(x), model(x)
    assert records(model)
    return model(x)


def by_program(model, x):
    """Return what the program of the model returns, which is there also when it is repeated."""
    joined, held = model._plan.current()
    return next(one for one in joined.programs.values() if isinstance(one, Program))(x, held)


def is_right(model, x):
    """Compare with the layers of a copy, as watched layers would have a program of their own."""
    y = model(x)
    np.testing.assert_allclose(y, singly(copy.deepcopy(model), x)[0], rtol=2e-5, atol=2e-5)
    return y


@pytest.mark.parametrize("name", NETWORKS)
def test_a_record_gives_the_bits_of_the_program(name):
    model = made(name)
    for dtype in (np.float32, np.float64):
        model.to("cpu", np.dtype(dtype).name)
        for seed in range(6):
            x = images(1, seed, dtype)
            y = together(model, x)
            for one, other in zip(y, singly(copy.deepcopy(model), x), strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
            expected = by_program(model, x)
            for one, other in zip(y, expected if isinstance(expected, tuple) else (expected,), strict=True):
                np.testing.assert_array_equal(one, other)
        assert bool(records(model)) == (name in RECORDED)


def test_what_was_returned_stays_as_it_was():
    model, x = made("residual"), images(1)
    warm(model, x)
    y = model(x)
    kept, before = y.copy(), x.copy()
    for seed in range(5):
        other = model(images(1, seed))
        assert not np.shares_memory(y, other)
    y += 1
    np.testing.assert_array_equal(model(x), kept)
    np.testing.assert_array_equal(x, before)


CHANGES = {
    "weight in place": lambda model: model[0].weight.data.__imul__(2),
    "a number in place": lambda model: model[0].weight.data.__setitem__((0, 0, 0, 0), 9.0),
    "weight": lambda model: setattr(model[0].weight, "data", model[0].weight.data[::-1].copy()),
    "strided weight": lambda model: setattr(model[0].weight, "data", model[0].weight.data[::-1]),
    "mean in place": lambda model: model[1].running_mean.data.__iadd__(1),
    "variance": lambda model: setattr(model[1].running_var, "data", model[1].running_var.data * 3),
    "eps": lambda model: setattr(model[1], "eps", 0.5),
    "a bias": lambda model: setattr(model[0], "bias", nn.Parameter(np.ones(4, np.float32))),
    "no bias": lambda model: setattr(model[1], "bias", None),
    "a parameter": lambda model: setattr(model[1], "weight", nn.Parameter(np.full(4, 2, np.float32))),
    "dilation": lambda model: setattr(model[0], "dilation", 2),
    "vars": lambda model: vars(model[0]).update(padding=2),
    "a layer": lambda model: model.__setitem__(2, nn.Hardtanh(-20.0, 20.0)),
    "a layer inside": lambda model: setattr(model[3].body, "2", nn.SiLU()),
    "a state": lambda model: model.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()}),
    "new weights": lambda model: model.reset_parameters(3),
    "a step": lambda model: step(model),
    "statistics of a batch": lambda model: model.forward(images(4)),
    "forward": lambda model: setattr(model[2], "forward", lambda x, train=True: (x, None)),
    "dtype": lambda model: model.to("cpu", "float64"),
}


def step(model):
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    y, backward = model.forward(images(4, 5))
    backward(y)
    optimizer.step()


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_missed(change):
    model, x = made("residual"), images(1)
    model[1].bias.data += 0.5
    if change == "a step":
        step(model)
    before = warm(model, x)
    CHANGES[change](model)
    x = x.astype(model[0].weight.data.dtype)
    for _ in range(3):
        assert np.any(is_right(model, x) != before)


def test_training_and_inference_in_turns():
    model, x = made("residual"), images(1)
    twin = copy.deepcopy(model)
    for _ in range(5):
        for one in (model, twin):
            step(one)
        y = [model(x) for _ in range(3)]
        np.testing.assert_allclose(y[0], singly(twin, x)[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(y[0], y[1])
        np.testing.assert_array_equal(y[0], y[2])
    assert records(model)


def test_copies_have_records_of_their_own():
    model, x = made("residual"), images(1)
    y = warm(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(warm(twin, x), y)
        twin[0].weight.data *= 2
        assert np.any(twin(x) != y)
        np.testing.assert_array_equal(model(x), y)


@pytest.mark.filterwarnings("ignore:Setting the (shape|strides):DeprecationWarning")
def test_arrays_whose_heads_are_set_in_place_are_seen():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)), np.ones((1, 4), np.float32)
    warm(model, x)
    weight = model[2].weight.data
    for _ in range(2):
        weight.strides = weight.strides[::-1]  # its transpose
        is_right(model, x)
    warm(model, x)
    model[0].weight.data.shape = 24, 1
    with pytest.raises(ShapeError, match="weight takes 1 features, x has 4"):
        model(x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout(layout):
    model, x, change = made("mobile"), images(1), LAYOUTS[layout]
    y = warm(model, x)
    np.testing.assert_array_equal(model(change(x)), y)
    locked = x.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(model(locked), y)
    for _, slot in [*model.named_parameters(), *model.named_buffers()]:
        slot.data = change(slot.data) if slot.data.ndim else slot.data
        np.testing.assert_array_equal(model(x), y)


def test_numbers_that_are_not_finite():
    model, x = made("residual"), images(1)
    warm(model, x)
    for value in (np.nan, np.inf):
        x[0, 1, 3, 3] = value
        np.testing.assert_array_equal(model(x), by_program(model, x))
    wide = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())  # in tiles, which do not take infinities
    x = np.random.default_rng(0).standard_normal((1, 32, 8, 8)).astype(np.float32)
    warm(wide, x)
    x[0, 1, 3, 3] = np.inf
    np.testing.assert_array_equal(wide(x), by_program(wide, x))
    assert not np.isfinite(wide(x)).all()


def test_threads_share_a_record():
    model, xs = made("mobile"), [images(1, seed) for seed in range(16)]
    warm(model, xs[0])
    wanted = [by_program(model, x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for y, expected in zip(pool.map(model, xs), wanted, strict=True):
                np.testing.assert_array_equal(y, expected)


def test_threads_record_at_the_same_time():
    models, x = [made("residual", seed) for seed in range(8)], images(1)
    wanted = [made("residual", seed)(x) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for y, expected in zip(pool.map(lambda model: model(x), models), wanted, strict=True):
                np.testing.assert_array_equal(y, expected)


def test_nothing_is_repeated_without_kernels():
    model, x = made("residual"), images(1)
    y = warm(model, x)
    with portable(np):
        np.testing.assert_allclose(model(x), y, rtol=2e-5, atol=2e-5)
        assert not records(model)
    np.testing.assert_array_equal(model(x), y)


@pytest.mark.parametrize("faster", [True, False])
def test_work_for_several_threads_is_recorded_if_one_is_faster(faster, monkeypatch):
    before = threads.get_num_threads()
    x = np.random.default_rng(0).standard_normal((1, 16, 96, 96)).astype(np.float32)
    monkeypatch.setattr(record, "_seconds", lambda run, *_: float((type(run) is Program) == faster))
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.SiLU(), nn.GlobalAvgPool())
    try:
        threads.set_num_threads(2)
        y = model(x)
        np.testing.assert_array_equal([model(x) for _ in range(4)], [y] * 4)
        assert bool(records(model)) == faster
        threads.set_num_threads(1)
        np.testing.assert_array_equal([model(x) for _ in range(4)], [y] * 4)
        assert records(model)
    finally:
        threads.set_num_threads(before)


def test_modules_of_ones_own_run_each_time():
    seen = []

    class Own(nn.Module):
        def forward(self, x, train):
            seen.append(len(seen))
            return x * len(seen), lambda dy, need_dx: dy

    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), Own()), images(1)
    y = [model(x) for _ in range(5)]
    assert len(seen) == 5
    np.testing.assert_allclose(y[4], y[0] * 5, rtol=1e-6)


def by_numpy(x):
    return np.maximum(x, 0)


def in_place(x):
    x += 0.125
    return x


def of_numbers(x):
    return ops.leaky_relu(x, float(1 / (1 + np.abs(x).max())))[0]


def of_a_part(x):
    return np.ascontiguousarray(x[:, ::-1])


MEMORY = np.zeros((1, 2, 8, 8), np.float32)


def by_memory(x):
    MEMORY[...] = x
    return MEMORY


def by_nothing(x):
    return x


@pytest.mark.parametrize("function", [by_numpy, in_place, of_numbers, of_a_part, by_memory, by_nothing])
def test_what_is_not_compiled_is_noticed(function):
    gelu, x = bound(BODIES["elementwise"], np, (images(1), ("gelu", "none"))), images(1)

    def run(x, held):
        return gelu(function(gelu(x, None)), None)

    found = recorded(run, x, [])
    assert (found is None) == (function is not by_nothing)
    if found is not None:
        np.testing.assert_array_equal(found(x + 1, []), run(x + 1, []))
    assert recorded(lambda x, held: function(gelu(x, None)), x, []) is None or function is by_nothing


def test_parameters_that_are_copied_by_numpy_are_noticed():
    x, weight = images(1)[0, 0], np.random.default_rng(0).random((8, 8), np.float32)
    run = bound(BODIES["linear_inference"], np, (x, weight, None, None, None, None))
    after = (None, None, None, None)
    found = recorded(lambda x, held: run(x, held[0], *after), x, [weight])
    np.testing.assert_allclose(found(x, [weight]), x @ weight.T, rtol=1e-5, atol=1e-5)
    assert recorded(lambda x, held: run(x, held[0] * 1, *after), x, [weight]) is None
    assert recorded(lambda x, held: run(x, np.ascontiguousarray(held[0].T), *after), x, [weight]) is None


def test_an_interruption_is_not_lost(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    model, x = made("residual"), images(1)
    model(x)
    with monkeypatch.context() as patch:
        patch.setattr(record, "_Call", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(x)
    is_right(model, x)
    assert not records(model)
    assert warm(made("residual"), x) is not None


def test_kernels_of_others_and_formulas_in_python_are_called_each_time():
    seen = []

    def fast(x, activation):
        return NotImplemented

    def bind(x, activation):
        return lambda x, activation: (seen.append(1), np.maximum(x, -100, out=x))[1]  # of which a run may show nothing

    fast.__name__ = "elementwise"
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Softplus()), images(1)
    kernel(np, bind)(fast)
    try:
        for count in range(5):
            model(x)
            assert len(seen) == count
        assert not records(model)
    finally:
        kernels(np)["elementwise"].remove(fast)


def test_batches_that_are_cut_are_not_recorded(monkeypatch):
    cut(monkeypatch)
    model, x = made("residual"), images(6)
    y = [model(x) for _ in range(4)]
    assert not records(model)
    np.testing.assert_array_equal(y[0], y[3])


def test_large_results_are_not_recorded():
    """Recording keeps all results of two runs, and would gain nothing."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.GlobalAvgPool())
    for size, kept in ((16, True), (200, False)):
        x = np.ones((1, 3, size, size), np.float32)
        for _ in range(40):
            model(x)
        program = next(one for key, one in model._plan.joined().programs.items() if key[0][1] == x.shape)
        assert (program.record is not None) == kept


def test_the_latest_records_are_kept(monkeypatch):
    """However many shapes there are: the first ones are not the only ones that are fast."""
    monkeypatch.setattr(_plan, "_MOST_RECORDED", 2)
    monkeypatch.setattr(_plan, "_MOST_PROGRAMS", 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GlobalAvgPool())
    for size in (5, 6, 7, 8, 9, 10, 11, 5):
        x = np.ones((1, 3, size, size), np.float32)
        warm(model, x)
        assert next(one for key, one in model._plan.joined().programs.items() if key[0][1] == x.shape).record
        assert len(records(model)) <= 2
    assert len(records(model)) == 2
