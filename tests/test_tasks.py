"""The trainer for every task: what a target may be, losses of one's own, accuracy, and parts of a batch."""

import copy

import numpy as np
import pytest
from tasks import BATCHES, IMAGES, TASKS, X, batch_norm_network, network, pixels, torch_loss, trainer_of, vectors

from xcnn import nn, ops, optim
from xcnn.errors import DivergedError, DtypeError, ShapeError, UsageError
from xcnn.training import (
    EMA,
    LOSSES,
    KeepBest,
    Loss,
    Metrics,
    Trainer,
    class_weight,
    count_classes,
    loss_named,
    r2_score,
    trainer,
)

RNG = np.random.default_rng(1)


def naive_accuracy(name, output, target):
    """Count answer by answer; None for regression."""
    if name in ("mse_loss", "l1_loss", "huber_loss"):
        return None
    if name == "binary_cross_entropy_with_logits":
        return np.mean([(o > 0) == (t == 1) for o, t in zip(output.ravel(), target.ravel(), strict=True)])
    rows = np.moveaxis(output, 1, -1).reshape(-1, output.shape[1])
    if target.shape == output.shape:
        truth = [max(range(3), key=row.__getitem__) for row in np.moveaxis(target, 1, -1).reshape(-1, 3)]
    else:
        truth = target.ravel().tolist()
    return np.mean([max(range(3), key=row.__getitem__) == t for row, t in zip(rows, truth, strict=True) if t != -100])


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_and_is_evaluated_as_a_whole(task):
    """Loss and accuracy are those over all answers together, for batches of any size."""
    model, name, x, y = TASKS[task]
    training = trainer_of(copy.deepcopy(model), name)
    before = training.evaluate([(x, y)])
    history = training.fit([(x, y)] * 4, 5, validation=[(x[:7], y[:7]), (x[7:], y[7:])])
    assert history[-1]["train_loss"] < before.loss
    whole, parts = training.evaluate([(x, y)]), training.evaluate([(x[i : i + 5], y[i : i + 5]) for i in (0, 5, 10)])
    output = training.model(x)
    assert whole.loss == pytest.approx(torch_loss(name, output, y), rel=1e-10)
    assert whole.loss == pytest.approx(parts.loss, rel=1e-12)
    assert whole.loss == pytest.approx(history[-1]["val_loss"], rel=1e-12)
    expected = naive_accuracy(name, output, y)
    assert whole.accuracy == parts.accuracy == history[-1]["val_accuracy"]
    assert whole.accuracy == (None if expected is None else pytest.approx(expected, abs=1e-15))
    assert whole.samples == parts.samples == 12
    np.testing.assert_array_equal(training.predict(x), LOSSES[name].activation(output))


@pytest.mark.parametrize("backend", ["strict-device1", "torch"], indirect=True)
def test_every_library_counts_alike(backend):
    """With ignored pixels, class weights and several labels per sample."""
    weighted = loss_named("cross_entropy", weight=[1.0, 2.0, 0.5], ignore_index=1)
    tasks = [TASKS[name] for name in ("segmentation", "soft targets", "multi-label")]
    tasks.append((pixels(), weighted, IMAGES, RNG.integers(0, 3, (12, 5, 6))))
    with backend.setting("float64"):
        for model, loss, x, y in tasks:
            records = []
            for where in ("cpu", backend.spec):
                training = trainer_of(copy.deepcopy(model), loss, device=where, accumulate=3)
                (record,) = training.fit([(x, y)] * 2, 1, validation=[(x, y)])
                records.append([record[f"{part}_{what}"] for part in ("train", "val") for what in ("loss", "accuracy")])
            np.testing.assert_allclose(records[1], records[0], rtol=1e-10)


@pytest.mark.parametrize(
    ("loss", "outputs", "target", "kind", "says"),
    [
        ("cross_entropy", 3, np.zeros(12), DtypeError, "use mse_loss for regression, or integer classes"),
        ("cross_entropy", 3, np.zeros((12, 1)), DtypeError, r"the output \(12, 3\), the target \(12, 1\) of float64"),
        ("nll_loss", 3, np.zeros(12), DtypeError, "^nll_loss takes integer class indices .* use mse_loss"),
        ("mse_loss", 1, np.zeros(12), ShapeError, r"the output \(12, 1\), the target \(12,\); reshape .* y\[:, None\]"),
        ("l1_loss", 3, np.zeros(12, int), ShapeError, "^l1_loss takes .*; use cross_entropy for class indices"),
        ("huber_loss", 3, np.zeros((12, 2)), ShapeError, "let the network return one number for each of the target"),
        ("binary_cross_entropy_with_logits", 1, np.zeros(12), ShapeError, "reshape the target"),
        (lambda output, target: 3.0, 1, np.zeros(12), UsageError, r"a loss must return \(loss, backward\), got float"),
        (
            lambda output, target: ops.mse_loss(output, target, "none"),
            1,
            np.zeros((12, 1)),
            ShapeError,
            r"a loss must be one number, the mean of the batch, got shape \(12, 1\)",
        ),
        (
            "binary_cross_entropy_with_logits",
            1,
            np.full((12, 1), 255.0),
            UsageError,
            "holds 255.0, expected probabilities from 0 to 1; divide masks of 0 and 255 by 255",
        ),
        ("cross_entropy", 3, np.ones((12, 3)), UsageError, "sum to 3, .* use binary_cross_entropy_with_logits"),
        ("binary_cross_entropy_with_logits", 1, np.ones(12, int), ShapeError, r"reshape .* by y\[:, None\]$"),
        ("cross_entropy", 3, np.full(12, -100), UsageError, "every label of the batch is -100, which is ignored"),
        ("cross_entropy", 3, np.zeros((12, 1), int), ShapeError, r"of shape \(12,\) for .* \(12, 1\); pass y\[:, 0\]$"),
        ("nll_loss", 3, np.eye(3, dtype=int)[[0] * 12], ShapeError, r"one-hot, pass y.argmax\(axis=1\)$"),
        ("nll_loss", 3, np.zeros(11, int), ShapeError, r"got shape \(11,\); pass one target per example$"),
        ("mse_loss", 3, np.zeros((11, 3)), ShapeError, r"the target \(11, 3\); pass one target per example$"),
        ("cross_entropy", 3, np.zeros((12, 2), int), ShapeError, r"for the output \(12, 3\), got shape \(12, 2\)$"),
        *(
            (lambda output, target, made=made: (0.0, made), 3, np.zeros(12), kind, f"^<lambda>: backward.*{says}$")
            for made, kind, says in (
                (lambda dy: (dy,), UsageError, "missing a required argument: 'dy'"),
                (lambda: np.zeros((12, 3), np.float32), ShapeError, r"must return a tuple .* \(12, 3\), got ndarray"),
                (lambda: (np.zeros((12, 12), np.float32),), ShapeError, r"got float32 \(12, 12\)"),
                (lambda: (np.zeros((12, 3), int),), ShapeError, r"float64 .*, got int64 \(12, 3\)"),
                (lambda: (1.0,), ShapeError, "got float"),
                (lambda: (), ShapeError, "got tuple"),
            )
        ),
    ],
)
def test_a_target_that_does_not_fit_the_loss_is_named_with_a_fix(loss, outputs, target, kind, says):
    training = trainer_of(vectors(outputs), loss)
    with pytest.raises(kind, match=says):
        training.step(X, target)


def test_classes_on_the_last_axis_are_told_where_they_belong():
    training = trainer_of(network(nn.Linear(4, 10), nn.Unflatten(1, (5, 2))), "cross_entropy")
    with pytest.raises(ShapeError, match=r"shape \(12, 2\) .* got shape \(12, 5\); if the last axis .* to axis 1$"):
        training.step(X, np.zeros((12, 5), int))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: loss_named("mse_loss", reduction="sum"), "mse_loss: reduction must be 'mean' for training, got 'sum'"),
        (lambda: loss_named("cross_entropy", weight=["a"]), r"cross_entropy: weight must hold numbers, got \['a'\]"),
        (lambda: loss_named("cross_entropy", weight=[[1], [1, 2]]), "cross_entropy: weight must hold numbers"),
        (lambda: Loss(print, target="class"), "unknown Loss target 'class'; did you mean 'classes'"),
        (lambda: class_weight("balance", [0], 1), "did you mean 'balanced'"),
        (lambda: class_weight("balanced", [0, 2], ["a", "b", "c"]), "no target is of the class b; leave out"),
        (lambda: class_weight("balanced", [0, 3], 3), "class indices from 0 to 2 or -100, got 3"),
        (lambda: class_weight("balanced", [0.5], 3), "integer class indices, got float64"),
        (lambda: class_weight("balanced", [0], 0), "classes must be an integer of at least 1, got 0"),
        (lambda: trainer_of(vectors(1), "mse_loss", metrics=r2_score), "Trainer: metrics must map names to functions"),
        (lambda: trainer_of(vectors(1), "mse_loss", metrics={"loss": r2_score}), "other names than loss"),
        (
            lambda: trainer_of(vectors(1), "mse_loss", accumulate=0),
            "Trainer: accumulate must be an integer of at least",
        ),
        (lambda: class_weight("balanced", [[0], [1, 2]], 3), "integer class indices, got object"),
        (lambda: EMA(1.0), r"EMA: decay must be a number in \[0, 1\), got 1.0"),
        (lambda: Metrics().per_class(), "per_class: there is no confusion matrix"),
        (lambda: KeepBest().restore(None), "KeepBest: there are no weights to restore"),
        (
            lambda: trainer_of(vectors(1), "mse_loss", metrics={"m": lambda t, p: "x"}).evaluate([(X, X[:, :1])]),
            "the metric m must return a number, got 'x'",
        ),
    ],
)
def test_strange_arguments_are_refused_in_one_sentence(make, says):
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.parametrize("where", ["cpu", "strict:device1", "torch"])
@pytest.mark.parametrize("task", ["classes", "multi-label", "regression", "segmentation", "soft targets", "weights"])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(task, where):
    """Also if the parts hold unequal numbers of answers that count, or none."""
    pytest.importorskip("array_api_strict" if "strict" in where else "torch")
    model, loss, x, y = TASKS["segmentation" if task == "weights" else task]
    y = y.copy()
    if task in ("classes", "segmentation", "weights"):
        y[:5] = -100  # the first part of three has no answer
    if task == "weights":
        loss = loss_named("cross_entropy", weight=[5.0, 1.0, 0.1])
    made = []
    for parts in (1, 3, 5, 99):
        training = trainer_of(copy.deepcopy(model), loss, accumulate=parts, clip_norm=0.3, device=where)
        made.append([training.step(x, y), *training.model.state_dict().values()])
    for other in made[1:]:
        for ours, whole in zip(other, made[0], strict=True):
            np.testing.assert_allclose(ours, whole, rtol=1e-6 if task == "weights" else 1e-10, atol=1e-12)


def test_parts_are_cut_by_the_shape_alone():
    seen = []

    class Look(nn.Module):
        def forward(self, x, train):
            seen.append(x.shape[0])
            return x, lambda dy, need_dx: dy

    training = trainer_of(network(Look(), nn.Linear(4, 1)), "mse_loss", accumulate=3)
    for n in (12, 10, 2, 1):
        training.step(X[:n], X[:n, :1])
    assert seen == [4, 4, 4, 3, 3, 4, 1, 1, 1]
    assert training.steps == 4
    with pytest.raises(ShapeError, match="step: x has 12 samples, y has 11"):
        training.step(X, X[:11, :1])


@pytest.mark.parametrize("where", ["strict", "torch"])
def test_a_device_finds_targets_that_are_no_probabilities(where):
    pytest.importorskip({"strict": "array_api_strict"}.get(where, where))
    training = trainer_of(vectors(1), "binary_cross_entropy_with_logits", device=where)
    with pytest.raises(UsageError, match=r"the targets hold 255\.0, the loss takes probabilities from 0 to 1"):
        training.step(X, np.full((12, 1), 255.0))
    assert np.isnan(training.evaluate([(X, np.full((12, 1), 255.0))]).loss)


@pytest.mark.parametrize("where", ["cpu", "strict"])
def test_a_number_that_is_not_finite_is_found_in_its_part(where):
    class Bad(nn.Module):
        """Infinite at the last samples only."""

        def forward(self, x, train):
            xp = np if where == "cpu" else pytest.importorskip("array_api_strict")
            y = xp.where(x > 50.0, xp.asarray(np.inf), x)
            return y, lambda dy, need_dx: dy

    training = trainer_of(network(nn.Linear(4, 4), Bad(), nn.Linear(4, 1)), "mse_loss", accumulate=4, device=where)
    before, x = training.model.state_dict(), X.copy()
    x[-1] = 1e4
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match=r"layer 1 \(Bad\) returned the first numbers"):
        training.step(x, np.zeros((12, 1)))
    for key, value in training.model.state_dict().items():
        assert value.tobytes() == before[key].tobytes()


def test_running_out_of_memory_suggests_parts():
    class Greedy(nn.Module):
        def forward(self, x, train):
            if x.shape[0] > 4:
                raise MemoryError
            return x, lambda dy, need_dx: dy

    training = trainer_of(network(Greedy(), nn.Linear(4, 1)), "mse_loss")
    with pytest.raises(MemoryError, match=r"try a batch size of 6, accumulate=2 \(the same batch in 2 parts\), or a"):
        training.step(X, X[:, :1])
    again = trainer_of(training.model, "mse_loss", accumulate=3)
    again.step(X, X[:, :1])


def test_the_time_of_waiting_for_data_is_its_own(monkeypatch):
    """Each batch takes a second and each step two, by a clock that only they move."""
    ticks = [0]

    def batches():
        for batch in BATCHES:
            ticks[0] += 1
            yield batch

    monkeypatch.setattr(trainer, "clock", lambda: float(ticks[0]))
    training = trainer_of(batch_norm_network(), "cross_entropy")
    step = training.optimizer.step
    training.optimizer.step = lambda: (ticks.__setitem__(0, ticks[0] + 2), step())
    (record,) = training.fit(batches())
    assert (record["seconds"], record["data_seconds"], record["samples_per_second"]) == (12.0, 4.0, 2.0)


def test_a_loss_of_ones_own_says_what_its_target_is():
    """A Dice loss for segmentation, with probabilities, accuracy per pixel and a confusion matrix."""

    def dice(output, target):
        p, softmax_backward = ops.softmax(output, dim=1)
        t = (target[:, None] == np.arange(3)[:, None, None]).astype(p.dtype)
        top, bottom = 2 * (p * t).sum(), (p + t).sum()
        return np.asarray(1 - top / bottom), lambda: softmax_backward(-(2 * t * bottom - top) / bottom**2)

    loss = Loss(dice, lambda output: ops.softmax(output, dim=1)[0], count_classes, target="classes")
    y = (IMAGES[:, 0] > 0).astype(int)
    training = trainer_of(pixels(), loss, lr=3.0)
    history = training.fit([(IMAGES, y)] * 10, 3)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    metrics = training.evaluate([(IMAGES, y)])
    assert metrics.accuracy == (training.predict(IMAGES).argmax(axis=1) == y).mean() > 0.8
    assert metrics.confusion.sum() == y.size


def test_a_function_may_say_how_many_answers_count():
    """Here those whose target is not 0, for a target that only the loss understands."""

    def near(output, target):
        counted = target[:, 0] != 0
        return (abs(output - target)[counted] < 1).sum(), counted.sum()

    loss = Loss(lambda output, target: ops.mse_loss(output, target), correct=near)
    y = np.where(RNG.random((12, 1)) < 0.5, 0.0, 3 * RNG.standard_normal((12, 1)))
    training = trainer_of(vectors(1), loss, lr=0.0, accumulate=2)
    (record,) = training.fit([(X, y)], validation=[(X[:5], y[:5]), (X[5:], y[5:])])
    output = training.predict(X)
    right = [abs(o - t) < 1 for o, t in zip(output[:, 0], y[:, 0], strict=True) if t != 0]
    assert record["val_accuracy"] == record["train_accuracy"] == np.mean(right)


@pytest.mark.parametrize("where", ["cpu", "torch"])
def test_labels_that_are_all_ignored_are_named_also_in_parts(where):
    pytest.importorskip("torch")
    training = trainer_of(vectors(3), "cross_entropy", accumulate=3, device=where)
    with pytest.raises(UsageError, match=r"^every label of the batch is -100, which is ignored$"):
        training.step(X, np.full(12, -100))


def test_an_empty_batch_is_named():
    with pytest.raises(UsageError, match=r"^the batch is empty"):
        trainer_of(vectors(3), "cross_entropy").step(X[:0], np.zeros(0, int))


def test_parameters_that_the_optimizer_lacks_are_told_once():
    model, said = vectors(3), []
    training = Trainer(model, optim.SGD(model[2].parameters(), lr=0.1), tell=said.append)
    y = np.arange(12) % 3
    model[0].weight.grad = None
    training.fit([(X, y)])
    once = model[0].weight.grad
    training.optimizer.param_groups[0]["lr"] = 0.0
    training.fit([(X, y)])
    first = model[0].weight.grad.copy()
    training.fit([(X, y)])
    np.testing.assert_array_equal(model[0].weight.grad, first)  # not added up over the steps
    assert once is not None
    assert said == [
        "the optimizer does not have 2 of the model's parameters, such as 0.weight, which stay as they are; freeze() "
        "their layers, which saves their gradients, or give them to the optimizer"
    ]
    said.clear()
    model[0].freeze()
    Trainer(model, optim.SGD(model[2].parameters(), lr=0.1), tell=said.append).fit([(X, y)])
    assert not said


def test_masks_with_an_axis_too_many_are_told_the_fix():
    masks = RNG.integers(0, 3, (12, 5, 6))
    for y, fix in ((masks[:, None], r"y\[:, 0\]"), (masks[..., None], r"y\[\.\.\., 0\]")):
        with pytest.raises(ShapeError, match=f"; pass {fix}$"):
            trainer_of(pixels(), "cross_entropy").evaluate((IMAGES, y))


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_function_of_a_loss_is_the_loss(name):
    assert loss_named(getattr(ops, name)) is LOSSES[name]
    assert loss_named(ops.cross_entropy, label_smoothing=0.1).correct is LOSSES["cross_entropy"].correct
