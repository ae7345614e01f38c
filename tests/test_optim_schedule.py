"""Schedules against PyTorch's, step by step; the named ones by their shape; resuming; every error."""

import copy
import inspect
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcnn import nn, optim
from xcnn.errors import CheckpointError, UsageError, XcnnError
from xcnn.parameter import Parameter
from xcnn.training import Callback, Trainer

STEPS = 36
RATES = [0.4, 0.03]


def make(rule="SGD", **options):
    """Return an optimizer of two groups with different rates."""
    groups = [{"params": [Parameter(np.ones(1))], "lr": lr} for lr in RATES]
    return getattr(optim, rule)(groups, **options)


def trace(optimizer, schedule, steps=STEPS):
    """Return the options of each group at each step, the first included."""
    seen = [settings_of(optimizer)]
    for _ in range(steps):
        schedule.step()
        seen.append(settings_of(optimizer))
    return seen


def settings_of(optimizer):
    return [[g["lr"], *([g["momentum"]] if "momentum" in g else g["betas"])] for g in optimizer.param_groups]


def torch_trace(build, rule="SGD", steps=STEPS, **options):
    """Return the same of PyTorch's optimizer, with the schedule that `build(module, optimizer)` makes."""
    torch = pytest.importorskip("torch")
    groups = [{"params": [torch.ones(1, dtype=torch.float64, requires_grad=True)], "lr": lr} for lr in RATES]
    optimizer = getattr(torch.optim, rule)(groups, **options)
    schedule = build(torch.optim.lr_scheduler, optimizer)
    seen = [settings_of(optimizer)]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        seen.append(settings_of(optimizer))
    return seen


BUILDS = {
    "step": lambda m, o: m.StepLR(o, 7),
    "step-gamma": lambda m, o: m.StepLR(o, 1, 0.9),
    "cosine": lambda m, o: m.CosineAnnealingLR(o, 35),
    "cosine-back": lambda m, o: m.CosineAnnealingLR(o, 13, 0.01),
    "multi-step": lambda m, o: m.MultiStepLR(o, [20, 3, 11, 11]),
    "multi-step-gamma": lambda m, o: m.MultiStepLR(o, (0, 7), gamma=0.5),
    "exponential": lambda m, o: m.ExponentialLR(o, 0.93),
    "polynomial": lambda m, o: m.PolynomialLR(o),
    "polynomial-power": lambda m, o: m.PolynomialLR(o, 30, 0.9),
    "lambda": lambda m, o: m.LambdaLR(o, lambda n: 1 / (1 + n)),
    "lambda-each": lambda m, o: m.LambdaLR(o, [lambda n: 0.9**n, lambda n: max(0, 1 - n / 20)]),
    "linear": lambda m, o: m.LinearLR(o),
    "linear-down": lambda m, o: m.LinearLR(o, 1.0, 0.25, 20),
    "warm-cosine": lambda m, o: m.SequentialLR(o, [m.LinearLR(o, 0.1, 1.0, 6), m.CosineAnnealingLR(o, 30)], [6]),
    "three": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.2, 1.0, 9), m.StepLR(o, 4, 0.5), m.CosineAnnealingLR(o, 16, 1e-3)], milestones=[5, 19]
    ),
}


@pytest.mark.parametrize("name", BUILDS)
def test_learning_rates_are_torchs(name):
    optimizer = make()
    ours = trace(optimizer, BUILDS[name](optim, optimizer))
    # PyTorch computes most of these by recursion and so rounds at every step.
    np.testing.assert_allclose(ours, torch_trace(BUILDS[name]), rtol=1e-12, atol=1e-15)


CYCLES = [
    {"max_lr": 0.5, "total_steps": 37},
    {"max_lr": [0.5, 0.1], "epochs": 4, "steps_per_epoch": 10},
    {"max_lr": 1, "total_steps": 37, "anneal_strategy": "linear", "pct_start": 0.5, "div_factor": 5.0},
    {"max_lr": 1, "total_steps": 40, "three_phase": True, "final_div_factor": 10.0},
    {"max_lr": 1, "total_steps": 37, "base_momentum": 0.5, "max_momentum": 0.8, "pct_start": 0.0},
    {"max_lr": 1, "total_steps": 37, "cycle_momentum": False},
]


@pytest.mark.parametrize(("rule", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("RMSprop", {})])
@pytest.mark.parametrize("cycle", CYCLES, ids=str)
def test_one_cycle_is_torchs(rule, options, cycle):
    optimizer = make(rule, **options)
    ours = trace(optimizer, optim.OneCycleLR(optimizer, **cycle))
    theirs = torch_trace(lambda m, o: m.OneCycleLR(o, **cycle), rule, **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(
    metrics=st.lists(st.sampled_from([0.1, 0.5, 0.50001, 0.8, 1.0, 2.0, math.nan]), min_size=1, max_size=40),
    mode=st.sampled_from(["min", "max"]),
    threshold_mode=st.sampled_from(["rel", "abs"]),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 1e-4, 0.3]),
    min_lr=st.sampled_from([0.0, 0.02, [0.1, 0.0]]),
)
def test_plateau_is_torchs(metrics, **options):
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([{"params": [torch.ones(1)], "lr": lr} for lr in RATES])
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, **options)
    optimizer = make()
    schedule = optim.ReduceLROnPlateau(optimizer, factor=0.5, **options)
    assert schedule.unit == "epoch"
    for metric in metrics:
        reference.step(metric)
        schedule.step(metric)
        assert schedule.get_last_lr() == [group["lr"] for group in theirs.param_groups]


def test_plateau_by_hand():
    optimizer = make()
    schedule = optim.ReduceLROnPlateau(optimizer, patience=1)
    for metric, lr in [(1.0, 0.4), (0.9, 0.4), (0.95, 0.4), (0.9, 0.04), (0.8, 0.04)]:
        schedule.step(metric)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)


def test_defaults_and_argument_order_are_torchs():
    torch = pytest.importorskip("torch")
    names = [name for name in optim.__all__ if name.endswith("LR") or "LROn" in name]
    assert len(names) == 10
    for name in names:
        ours = dict(inspect.signature(getattr(optim, name)).parameters)
        unit = ours.pop("unit", None)
        assert (unit is None) == (name in ("SequentialLR", "ReduceLROnPlateau"))
        assert unit is None or (unit.kind is unit.KEYWORD_ONLY and unit.default in ("epoch", "step"))
        theirs = inspect.signature(getattr(torch.optim.lr_scheduler, name)).parameters
        assert list(ours) == [key for key in theirs if key != "last_epoch"], name
        assert [p.default for p in ours.values()] == [theirs[key].default for key in ours], name


def test_schedules_count_epochs_or_steps():
    """By default what PyTorch's users step them by; the sequence counts what its schedules count."""
    for name, build in BUILDS.items():
        assert build(optim, make()).unit == "epoch", name
    assert optim.OneCycleLR(make(), 1.0, 9).unit == "step"
    o = make()
    parts = [optim.LinearLR(o, unit="step"), optim.PolynomialLR(o, 30, unit="step")]
    assert optim.SequentialLR(o, parts, [5]).unit == "step"


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_trainer_steps_a_schedule_by_its_unit(unit):
    x, y = np.ones((6, 3)), np.zeros((6, 2))
    model = nn.Linear(3, 2).to("cpu", "float64")
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    schedule = optim.ExponentialLR(optimizer, 0.5, unit=unit)
    seen = []

    class Look(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            seen.append(schedule.get_last_lr()[0])

    Trainer(model, optimizer, "mse_loss", schedule=schedule, callbacks=[Look()]).fit([(x, y)] * 3, 2)
    assert seen == {"epoch": [0.5] * 3 + [0.25] * 3, "step": [0.5**n for n in range(2, 8)]}[unit]
    assert schedule.last_epoch == {"epoch": 2, "step": 6}[unit]


@pytest.mark.parametrize(
    ("build", "end"),
    [
        (lambda o: optim.CosineAnnealingLR(o, 12), 12),
        (lambda o: optim.PolynomialLR(o, 7), 7),
        (lambda o: optim.OneCycleLR(o, 1.0, 9), 9),
        (lambda o: optim.LinearLR(o, 1.0, 0.5, 4), 4),
        (lambda o: optim.LinearLR(o), None),
        (lambda o: optim.SequentialLR(o, [optim.LinearLR(o), optim.CosineAnnealingLR(o, 8)], [5]), 13),
        (lambda o: optim.SequentialLR(o, [optim.LinearLR(o), optim.StepLR(o, 8)], [5]), None),
        (lambda o: optim.StepLR(o, 8), None),
        (lambda o: optim.ReduceLROnPlateau(o), None),
    ],
)
def test_a_schedule_of_fixed_length_is_lowest_at_its_end(build, end):
    optimizer = make()
    schedule = build(optimizer)
    assert schedule.end == end
    if end is not None:
        lowest = schedule.at(end, optimizer.param_groups[0])["lr"]
        assert lowest <= min(schedule.at(step, optimizer.param_groups[0])["lr"] for step in range(end))


@pytest.mark.parametrize("name", [*BUILDS, "cycle"])
def test_a_resumed_schedule_goes_on_bit_for_bit(name):
    build = BUILDS.get(name, lambda m, o: m.OneCycleLR(o, 1.0, 40))
    optimizer = make(momentum=0.9)
    schedule = build(optim, optimizer)
    trace(optimizer, schedule, 15)
    saved = json.loads(json.dumps([optimizer.state_dict(), schedule.state_dict()]))
    expected = trace(optimizer, schedule, 20)
    assert saved[1] == {"last_epoch": 15}

    resumed = make(momentum=0.9)
    later = build(optim, resumed)
    resumed.load_state_dict(saved[0])
    later.load_state_dict(saved[1])
    assert trace(resumed, later, 20) == expected

    after = make(momentum=0.9)  # also where the schedule is made after the optimizer was loaded
    after.load_state_dict(saved[0])
    later = build(optim, after)
    later.load_state_dict(saved[1])
    np.testing.assert_allclose(trace(after, later, 20), expected, rtol=1e-15)


def test_a_resumed_plateau_goes_on():
    metrics = np.random.default_rng(0).uniform(0, 1, 30).tolist()
    optimizer = make()
    schedule = optim.ReduceLROnPlateau(optimizer, patience=2, cooldown=1)
    for metric in metrics[:13]:
        schedule.step(metric)
    saved = json.loads(json.dumps([optimizer.state_dict(), schedule.state_dict()]))
    resumed = make()
    later = optim.ReduceLROnPlateau(resumed, patience=2, cooldown=1)
    resumed.load_state_dict(saved[0])
    later.load_state_dict(saved[1])
    for metric in metrics[13:]:
        schedule.step(metric)
        later.step(metric)
        assert later.get_last_lr() == schedule.get_last_lr()
    assert schedule.get_last_lr()[0] < 0.4


def test_a_group_added_later_follows():
    optimizer = make()
    schedule = optim.StepLR(optimizer, 2)
    optimizer.add_param_group({"params": [Parameter(np.ones(1))], "lr": 8.0})
    schedule.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.04, 0.003, 0.8])


class TestNamed:
    """`make_schedule`, what the command line calls."""

    def rates(self, name, warmup=0, total=60, rule="SGD", **options):
        optimizer = make(rule, **options)
        schedule = optim.make_schedule(name, optimizer, total, 10, warmup)
        if schedule is None:
            return [0.4] * total
        assert schedule.unit == "step"
        return [groups[0][0] for groups in trace(optimizer, schedule, total)]

    def test_table(self):
        assert list(optim.SCHEDULES) == ["constant", "step", "cosine", "polynomial", "one-cycle", "plateau"]
        assert list(optim.OPTIMIZERS) == ["sgd", "adam", "adamw", "rmsprop"]
        assert [rule.__name__.lower() for rule in optim.OPTIMIZERS.values()] == list(optim.OPTIMIZERS)

    def test_constant(self):
        assert set(self.rates("constant")) == {0.4}
        assert self.rates("constant", warmup=3)[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])

    def test_step(self):
        expected = [0.4] * 20 + [0.04] * 20 + [0.004] * 20
        assert self.rates("step")[:60] == pytest.approx(expected)
        assert self.rates("step", warmup=3, total=63)[:63] == pytest.approx([0.1, 0.2, 0.3, *expected])

    def test_cosine(self):
        rates = self.rates("cosine", warmup=9)
        assert rates[:10] == pytest.approx([0.04 * i for i in range(1, 11)])
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert rates[60] == pytest.approx(0, abs=1e-15)

    def test_polynomial(self):
        rates = self.rates("polynomial", warmup=9, total=60)
        assert rates == pytest.approx([0.04 * i for i in range(1, 10)] + [0.4 * (1 - i / 51) for i in range(52)])

    @pytest.mark.parametrize(("warmup", "peak"), [(0, 17), (5, 5), (58, 58)])
    def test_one_cycle(self, warmup, peak):
        rates = self.rates("one-cycle", warmup)
        assert np.argmax(rates) == peak
        assert rates[peak] == pytest.approx(0.4)
        assert rates[0] == pytest.approx(0.4 / 25)

    @pytest.mark.parametrize(
        ("rule", "options"), [("SGD", {}), ("SGD", {"momentum": 0.5}), ("Adam", {"betas": (0.8, 0.99)})]
    )
    def test_one_cycle_leaves_momentum_and_betas_alone(self, rule, options):
        optimizer = make(rule, **options)
        schedule = optim.make_schedule("one-cycle", optimizer, 20, 5)
        for _ in range(20):
            for name, value in options.items():
                assert optimizer.param_groups[0][name] == value
            assert optimizer.param_groups[0].get("momentum", 0) == options.get("momentum", 0)
            optimizer.step()
            schedule.step()

    def test_plateau(self):
        assert isinstance(optim.make_schedule("plateau", make(), 20, 5), optim.ReduceLROnPlateau)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("cosin", 20, 5), "unknown schedule 'cosin'; did you mean 'cosine'? (known: "),
            (("step", 0, 5), "make_schedule: total_steps must be an integer of at least 1, got 0"),
            (("step", 10, 2.5), "make_schedule: steps_per_epoch must be an integer of at least 1, got 2.5"),
            (("step", 10, 2, -1), "make_schedule: warmup must be an integer of at least 0, got -1"),
            (("step", 10, 2, 10), "make_schedule: warmup must be less than total_steps=10, got 10"),
            (
                ("plateau", 10, 2, 3),
                "make_schedule: plateau counts epochs and takes no warmup; choose another schedule",
            ),
        ],
    )
    def test_refusals(self, arguments, message):
        with pytest.raises(UsageError) as caught:
            optim.make_schedule(arguments[0], make(), *arguments[1:])
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda o: optim.StepLR(3, 1), "StepLR: expected an optimizer, got int"),
        (lambda o: optim.StepLR(o, 0), "StepLR: step_size must be an integer of at least 1, got 0"),
        (lambda o: optim.StepLR(o, 1, -1), "StepLR: gamma must be a number in (0, inf), got -1"),
        (
            lambda o: optim.CosineAnnealingLR(o, 1.5),
            "CosineAnnealingLR: T_max must be an integer of at least 1, got 1.5",
        ),
        (
            lambda o: optim.CosineAnnealingLR(o, 1, -1),
            "CosineAnnealingLR: eta_min must be a number in [0, inf), got -1",
        ),
        (lambda o: optim.StepLR(o, 1, unit="batch"), "unknown StepLR unit 'batch' (known: epoch, step)"),
        (lambda o: optim.MultiStepLR(o, 3), "MultiStepLR: milestones must be a list of integers, got 3"),
        (lambda o: optim.MultiStepLR(o, "35"), "MultiStepLR: milestones must be a list of integers, got '35'"),
        (lambda o: optim.MultiStepLR(o, [3, -1]), "MultiStepLR: milestones must be an integer of at least 0, got -1"),
        (lambda o: optim.MultiStepLR(o, [3], 0), "MultiStepLR: gamma must be a number in (0, inf), got 0"),
        (lambda o: optim.ExponentialLR(o, "x"), "ExponentialLR: gamma must be a number in (0, inf), got 'x'"),
        (lambda o: optim.PolynomialLR(o, 0), "PolynomialLR: total_iters must be an integer of at least 1, got 0"),
        (lambda o: optim.PolynomialLR(o, 1, -1), "PolynomialLR: power must be a number in (0, inf), got -1"),
        (lambda o: optim.LambdaLR(o, 3), "LambdaLR: lr_lambda must be a function or a list of functions, got 3"),
        (lambda o: optim.LambdaLR(o, [abs]), "LambdaLR: lr_lambda must be one function or one per group, got 1 for 2"),
        (lambda o: optim.LambdaLR(o, str), "LambdaLR: lr_lambda(0) must be a number in [0, inf), got '0'"),
        (lambda o: optim.LambdaLR(3, abs), "LambdaLR: expected an optimizer, got int"),
        (
            lambda o: optim.SequentialLR(o, [optim.LinearLR(o), optim.StepLR(o, 3, unit="step")], [5]),
            "SequentialLR: LinearLR counts epochs, StepLR counts steps; give all of them the same unit",
        ),
        (
            lambda o: optim.OneCycleLR(o, 1, epochs=3, steps_per_epoch=4, unit="epoch"),
            "OneCycleLR: pass total_steps, the number of epochs",
        ),
        (lambda o: optim.LinearLR(o, 0), "LinearLR: start_factor must be a number in (0, 1], got 0"),
        (lambda o: optim.LinearLR(o, 1, 2), "LinearLR: end_factor must be a number in [0, 1], got 2"),
        (lambda o: optim.LinearLR(o, 1, 1, 0), "LinearLR: total_iters must be an integer of at least 1, got 0"),
        (
            lambda o: optim.SequentialLR(o, [None], []),
            "SequentialLR: schedulers must be a list of schedules, got [None]",
        ),
        (
            lambda o: optim.SequentialLR(o, [], []),
            "SequentialLR: milestones must be one fewer than schedulers, got 0 and 0",
        ),
        (
            lambda o: optim.SequentialLR(o, [optim.StepLR(o, 1)] * 3, [4, 2]),
            "SequentialLR: milestones must increase, got [4, 2]",
        ),
        (
            lambda o: optim.SequentialLR(o, [optim.StepLR(o, 1), optim.ReduceLROnPlateau(o)], [4]),
            "SequentialLR: ReduceLROnPlateau depends on more than the number of steps; leave it out",
        ),
        (
            lambda o: optim.SequentialLR(o, [optim.StepLR(make(), 1)], []),
            "SequentialLR: the StepLR has another optimizer",
        ),
        (lambda o: optim.OneCycleLR(3, 1, 9), "OneCycleLR: expected an optimizer, got int"),
        (lambda o: optim.OneCycleLR(o, 1), "OneCycleLR: pass total_steps, or epochs and steps_per_epoch"),
        (lambda o: optim.OneCycleLR(o, 1, 0), "OneCycleLR: total_steps must be an integer of at least 1, got 0"),
        (lambda o: optim.OneCycleLR(o, 1, None, 0, 3), "OneCycleLR: epochs must be an integer of at least 1, got 0"),
        (
            lambda o: optim.OneCycleLR(o, [1], 9),
            "OneCycleLR: max_lr must be one number or one per group, got 1 for 2 groups",
        ),
        (lambda o: optim.OneCycleLR(o, -1, 9), "OneCycleLR: max_lr must be a number in [0, inf), got -1"),
        (lambda o: optim.OneCycleLR(o, 1, 9, pct_start=2), "OneCycleLR: pct_start must be a number in [0, 1], got 2"),
        (
            lambda o: optim.OneCycleLR(o, 1, 9, pct_start=0.7, three_phase=True),
            "OneCycleLR: pct_start must be a number in [0, 0.5], got 0.7",
        ),
        (
            lambda o: optim.OneCycleLR(o, 1, 9, anneal_strategy="cosine"),
            "unknown OneCycleLR anneal_strategy 'cosine'; did you mean 'cos'? (known: cos, linear)",
        ),
        (
            lambda o: optim.OneCycleLR(o, 1, 9, div_factor=0),
            "OneCycleLR: div_factor must be a number in (0, inf), got 0",
        ),
        (lambda o: optim.ReduceLROnPlateau(o, "mix"), "unknown ReduceLROnPlateau mode 'mix'; did you mean"),
        (lambda o: optim.ReduceLROnPlateau(o, factor=1), "ReduceLROnPlateau: factor must be a number in (0, 1), got 1"),
        (
            lambda o: optim.ReduceLROnPlateau(o, patience=-1),
            "ReduceLROnPlateau: patience must be an integer of at least 0",
        ),
        (lambda o: optim.ReduceLROnPlateau(o, threshold_mode="x"), "unknown ReduceLROnPlateau threshold_mode 'x'"),
        (
            lambda o: optim.ReduceLROnPlateau(o, min_lr=[0]),
            "ReduceLROnPlateau: min_lr must be one number or one per group",
        ),
        (
            lambda o: optim.ReduceLROnPlateau(o).step(),
            "ReduceLROnPlateau: step needs the metric of the epoch, such as ",
        ),
    ],
)
def test_refusals(build, message):
    optimizer = make()
    with pytest.raises(UsageError) as caught:
        build(optimizer)
    assert str(caught.value).startswith(message)


def test_a_schedule_needs_a_learning_rate():
    class Plain(optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, size=0.1)

    with pytest.raises(UsageError, match=r"^StepLR: Plain has no learning rate lr to change"):
        optim.StepLR(Plain([Parameter(np.ones(1))]), 3)


def test_one_cycle_needs_a_momentum_to_cycle():
    class Plain(optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)

    optimizer = Plain([Parameter(np.ones(1))], 0.1)
    with pytest.raises(UsageError, match="OneCycleLR: Plain has no momentum; pass cycle_momentum=False"):
        optim.OneCycleLR(optimizer, 1, 9)
    assert optimizer.param_groups[0]["lr"] == 0.1
    optim.OneCycleLR(optimizer, 1, 9, cycle_momentum=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda schedule: pickle.loads(pickle.dumps(schedule))])
def test_schedules_can_be_copied_and_pickled(copied):
    for schedule in (
        optim.OneCycleLR(make(), 0.8, 9),
        optim.ReduceLROnPlateau(make()),
        optim.make_schedule("cosine", make(), 9, 5, 2),
    ):
        other = copied(schedule)
        for _ in range(4):
            schedule.step(1.0)
            other.step(1.0)
        assert other.get_last_lr() == schedule.get_last_lr()
        assert other.optimizer is not schedule.optimizer


def test_one_cycle_ends():
    optimizer = make()
    schedule = optim.OneCycleLR(optimizer, 1.0, 3)
    for _ in range(3):
        schedule.step()
    with pytest.raises(UsageError, match="OneCycleLR: step 4 is after the last one; increase total_steps, which is 3"):
        schedule.step()


def test_a_cycle_of_few_steps_is_told_once():
    for steps, says in ((1, "1 steps in all, with learning rates from 1.2e-08 to"), (9, "9 steps"), (10, "")):
        schedule = optim.OneCycleLR(make(), 0.003, steps)
        assert says in (told := schedule.check_length(1, steps))
        assert ("more epochs, or with a smaller batch_size" in told) == bool(says)
        assert optim.OneCycleLR(make(), 0.003, steps, unit="epoch").check_length(1, 5) == ""
        schedule.step()
        assert schedule.check_length(1, steps, 1) == ""


def test_the_state_of_another_schedule_is_refused():
    schedule = optim.StepLR(make(), 1)
    with pytest.raises(CheckpointError, match="StepLR: the state must have last_epoch, got last_epoch, best, "):
        schedule.load_state_dict(optim.ReduceLROnPlateau(make()).state_dict())
    with pytest.raises(CheckpointError, match="got nothing; does it belong to another one"):
        schedule.load_state_dict({})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda o: optim.StepLR(o, 3).load_state_dict(5),
            "StepLR: the state is invalid: it must be a mapping",
        ),
        (lambda o: optim.StepLR(o, 3).load_state_dict({1: 2}), "StepLR: the state must have last_epoch, got 1; "),
        (lambda o: optim.ReduceLROnPlateau(o).step("x"), "ReduceLROnPlateau: metrics must be a number, got 'x'"),
        (lambda o: optim.SequentialLR(o, 5, [1]), "SequentialLR: schedulers must be a list of schedules, got 5"),
    ],
)
def test_strange_states_and_metrics_are_refused_in_one_sentence(wrong, message):
    with pytest.raises(XcnnError) as caught:
        wrong(optim.SGD([Parameter(np.ones(2))]))
    assert str(caught.value).startswith(message)
