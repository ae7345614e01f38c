"""The trainer for every task: what a target may be, accuracy, metrics, class weights, parts of a batch, averages."""

import copy
import functools
import pickle

import numpy as np
import pytest

from xcnn import nn, ops, optim
from xcnn.errors import CheckpointError, DivergedError, DtypeError, ShapeError, UsageError
from xcnn.training import (
    EMA,
    LOSSES,
    Callback,
    EarlyStopping,
    KeepBest,
    Loss,
    Metrics,
    Trainer,
    class_weight,
    confusion_matrix,
    count_classes,
    evaluation,
    loss_named,
    mean_iou,
    r2_score,
    trainer,
)

RNG = np.random.default_rng(0)


def network(*layers, dtype="float64"):
    made = nn.Sequential(*layers)
    made.reset_parameters(0)
    return made.to("cpu", dtype)


def trainer_of(model, loss, lr=0.1, **options):
    return Trainer(model, optim.SGD(model.parameters(), lr=lr, momentum=0.9), loss, **options)


def vectors(outputs):
    return network(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))


def pixels(kind=nn.Conv2d, classes=3):
    return network(kind(1, 4, 3, padding=1), nn.Tanh(), kind(4, classes, 1))


def signals():
    return network(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.GlobalAvgPool(), nn.Linear(4, 3))


def masks(*shape, ignored=0.3):
    y = RNG.integers(0, 3, shape)
    return np.where(RNG.random(shape) < ignored, -100, y)


def soft(*shape):
    raw = RNG.random(shape)
    return raw / raw.sum(axis=1, keepdims=True)


X = RNG.standard_normal((12, 4))
IMAGES = RNG.standard_normal((12, 1, 5, 6))

TASKS = {
    "classes": (vectors(3), "cross_entropy", X, masks(12)),
    "soft targets": (vectors(3), "cross_entropy", X, soft(12, 3)),
    "single precision soft targets": (vectors(3), "cross_entropy", X, soft(12, 3).astype(np.float32)),
    "multi-label": (vectors(5), "binary_cross_entropy_with_logits", X, RNG.integers(0, 2, (12, 5))),
    "regression": (vectors(1), "mse_loss", X, RNG.standard_normal((12, 1))),
    "counts": (vectors(2), "l1_loss", X, RNG.integers(0, 9, (12, 2))),
    "huber": (vectors(2), "huber_loss", X, 3 * RNG.standard_normal((12, 2)).astype(np.float32)),
    "segmentation": (pixels(), "cross_entropy", IMAGES, masks(12, 5, 6)),
    "segmentation in bytes": (pixels(), "cross_entropy", IMAGES, RNG.integers(0, 3, (12, 5, 6)).astype(np.uint8)),
    "soft segmentation": (pixels(), "cross_entropy", IMAGES, soft(12, 3, 5, 6)),
    "log-probabilities": (network(nn.Linear(4, 3), nn.LogSoftmax()), "nll_loss", X, masks(12)),
    "signals": (signals(), "cross_entropy", RNG.standard_normal((12, 2, 9)), masks(12, ignored=0)),
    "volumes": (pixels(nn.Conv3d), "cross_entropy", RNG.standard_normal((12, 1, 3, 4, 2)), masks(12, 3, 4, 2)),
}


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


def torch_loss(name, output, target, **options):
    torch = pytest.importorskip("torch")
    function = getattr(torch.nn.functional, name)
    target = torch.tensor(target)
    indices = name in ("cross_entropy", "nll_loss") and not target.is_floating_point()
    return function(torch.tensor(output), target.long() if indices else target.double(), **options).item()


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
    ],
)
def test_a_target_that_does_not_fit_the_loss_is_named_with_a_fix(loss, outputs, target, kind, says):
    training = trainer_of(vectors(outputs), loss)
    with pytest.raises(kind, match=says):
        training.step(X, target)


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


# Metrics.


def test_metrics_see_the_whole_set_once():
    calls = []

    def largest(targets, predictions):
        calls.append((targets, predictions))
        return np.float32(np.abs(targets - predictions).max())

    y = 0.3 * X @ RNG.standard_normal((4, 1))
    stopping = EarlyStopping("val_r2", patience=9)
    training = trainer_of(
        vectors(1), "mse_loss", lr=0.02, metrics={"r2": r2_score, "largest": largest}, callbacks=[stopping]
    )
    history = training.fit([(X, y)] * 3, 2, validation=[(X[:5], y[:5]), (X[5:], y[5:])])
    predictions = training.predict(X)
    assert len(calls) == 2
    np.testing.assert_array_equal(calls[1][0], y)
    np.testing.assert_allclose(calls[1][1], predictions, rtol=1e-12)
    expected = 1 - ((y - predictions) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert history[1]["val_r2"] == pytest.approx(expected, rel=1e-10)
    assert history[1]["val_largest"] == pytest.approx(np.abs(y - predictions).max(), rel=1e-6)
    assert stopping.best == max(record["val_r2"] for record in history)
    assert "val_r2" not in trainer_of(vectors(1), "mse_loss", metrics={"r2": r2_score}).fit([(X, y)])[0]
    assert training.evaluate([(X, y)]).values["r2"] == pytest.approx(expected, rel=1e-10)


def test_figures_of_each_class_are_those_counted_one_by_one():
    model, name, x, y = copy.deepcopy(TASKS["segmentation"])
    training = trainer_of(model, name)
    metrics = training.evaluate([(x[:5], y[:5]), (x[5:], y[5:])])
    said = training.predict(x).argmax(axis=1)[y != -100]
    true = y[y != -100]
    np.testing.assert_array_equal(metrics.confusion, confusion_matrix(np.eye(3)[said], true))
    precision, recall, f1, support = metrics.per_class()
    ious = []
    for k in range(3):
        hits = sum(t == s == k for t, s in zip(true, said, strict=True))
        named, there = sum(s == k for s in said), sum(t == k for t in true)
        assert precision[k] == (hits / named if named else 0)
        assert recall[k] == hits / there
        assert f1[k] == pytest.approx(2 * hits / (named + there))
        assert support[k] == there
        ious.append(hits / (named + there - hits))
    assert mean_iou(y, training.predict(x)) == pytest.approx(np.mean(ious))
    empty = Metrics(confusion=np.array([[2, 0], [0, 0]])).per_class()
    assert [column.tolist() for column in empty] == [[1, 0], [1, 0], [1, 0], [2, 0]]
    with pytest.raises(UsageError, match=r"the targets hold 7, the model has classes 0 \.\. 2"):
        trainer_of(copy.deepcopy(model), name, device="strict").evaluate([(x, np.where(y == 1, 7, y))])


@pytest.mark.parametrize("labels", [(4,), (4, 3)])
def test_figures_of_each_label_are_those_counted_one_by_one(labels):
    model = network(nn.Linear(4, 4)) if len(labels) == 1 else network(nn.Linear(4, 12), nn.Unflatten(1, labels))
    training = trainer_of(model, "binary_cross_entropy_with_logits")
    y = RNG.integers(0, 2, (12, *labels))
    metrics = training.evaluate([(X[:5], y[:5]), (X[5:], y[5:])])
    figures, said = metrics.per_class(), training.predict(X) > 0.5
    for k in range(4):
        hits = sum(t == s == 1 for t, s in zip(y[:, k].flat, said[:, k].flat, strict=True))
        assert figures.precision[k] == (hits / said[:, k].sum() if said[:, k].any() else 0)
        assert figures.recall[k] == hits / y[:, k].sum()
        assert figures.support[k] == y[:, k].sum()
        assert figures.f1[k] == pytest.approx(2 * hits / (said[:, k].sum() + y[:, k].sum()))
    assert metrics.confusion is None


@pytest.mark.parametrize(
    ("score", "arrays", "value"),
    [
        (mean_iou, ([0, 0, 2, -100], [0, 2, 2, 1]), (1 / 2 + 1 / 2) / 2),
        (mean_iou, ([[0, 1]], [[[0.2, 0.9], [0.8, 0.1]]]), 0.0),
        (r2_score, ([[1, 5], [3, 5]], [[1, 5], [3, 5]]), 1.0),
        (r2_score, ([[1, 5], [3, 5]], [[2, 5], [2, 4]]), 0.0),
    ],
)
def test_scores_of_a_few_numbers(score, arrays, value):
    assert score(*map(np.asarray, arrays)) == pytest.approx(value)
    with pytest.raises(ShapeError, match=rf"^{score.__name__}: expected "):
        score(np.zeros(3, int), np.zeros(4, int))


# Class weights.


def test_balanced_class_weights_follow_pytorch():
    y = np.array([0, 0, 0, 0, 1, 1, 2, 0, 0, 1, 2, -100])
    weight = class_weight("balanced", y, ["a", "b", "c"])
    expected = [11 / (3 * (y == k).sum()) for k in range(3)]
    np.testing.assert_allclose(weight, expected, rtol=1e-15)
    loss = loss_named("cross_entropy", weight=weight)
    training = trainer_of(vectors(3), pickle.loads(pickle.dumps(loss)))
    theirs = torch_loss("cross_entropy", training.model(X), y, weight=pytest.importorskip("torch").tensor(expected))
    parts = training.evaluate([(X[:3], y[:3]), (X[3:], y[3:])])  # weighted, so not the mean of the means
    assert parts.loss == pytest.approx(theirs, rel=1e-6)
    assert training.step(X, y) == pytest.approx(theirs, rel=1e-12)
    single = trainer_of(vectors(3).to("cpu", "float32"), loss)
    assert single.step(X.astype(np.float32), y) == pytest.approx(theirs, rel=1e-5)
    assert loss == loss_named("cross_entropy", weight=tuple(weight))


def test_a_positive_weight_reaches_binary_cross_entropy():
    torch = pytest.importorskip("torch")
    y = RNG.integers(0, 2, (12, 2))
    training = trainer_of(vectors(2), loss_named("binary_cross_entropy_with_logits", pos_weight=[3.0, 0.5]))
    theirs = torch_loss(
        "binary_cross_entropy_with_logits", training.model(X), y, pos_weight=torch.tensor([3.0, 0.5]).double()
    )
    assert training.step(X, y) == pytest.approx(theirs, rel=1e-12)


# Parts of a batch.


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
    assert seen == [4, 4, 4, 4, 4, 2, 1, 1, 1]
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


# Averages and the best weights.


def batch_norm_network():
    return network(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3), dtype="float32")


BATCHES = [(X[i : i + 6].astype(np.float32), RNG.integers(0, 3, 6)) for i in (0, 6)] * 2


class States(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, trainer, epoch, batch, metrics):
        self.seen.append(trainer.model.state_dict())


def test_averaged_weights_are_those_of_the_formula():
    states, plain = States(), trainer_of(batch_norm_network(), "cross_entropy")
    training = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[ema := EMA(0.7), states])
    expected = {name: value.astype(np.float64) for name, value in plain.model.state_dict().items()}
    (*_, record) = training.fit(BATCHES, 3, validation=BATCHES)
    (*_, last) = plain.fit(BATCHES, 3, validation=BATCHES)
    assert ema.updates == 12
    for t, state in enumerate(states.seen, 1):
        decay = min(0.7, (1 + t) / (10 + t))
        for name, value in state.items():
            counts = value.dtype.kind == "i"  # such as the number of batches
            expected[name] = value if counts else decay * expected[name] + (1 - decay) * value
    raw = training.model.state_dict()
    with training.inference_weights():
        averaged = training.model.state_dict()
        for name, value in expected.items():
            np.testing.assert_allclose(averaged[name], value, rtol=1e-5, atol=1e-6)
        assert training.state_dict()["weights"]["0.weight"].tobytes() == raw["0.weight"].tobytes()
        with pytest.raises(UsageError, match=r"^fit: leave `with trainer"):
            training.fit(BATCHES)
    other = batch_norm_network()
    other.load_state_dict(averaged)
    x = BATCHES[0][0]
    assert training.predict(x).tobytes() == ops.softmax(other(x), dim=1)[0].tobytes()
    assert record["val_loss"] == trainer_of(other, "cross_entropy").evaluate(BATCHES).loss != last["val_loss"]
    assert record["train_loss"] == last["train_loss"]
    for name, value in plain.model.state_dict().items():  # training does not know of the average
        assert raw[name].tobytes() == value.tobytes() == training.model.state_dict()[name].tobytes()


def test_the_average_of_what_does_not_change_keeps_its_bits():
    model = batch_norm_network()
    training = trainer_of(model, "cross_entropy", lr=0.0, callbacks=[EMA(0.9)])
    before = model.state_dict()
    training.fit(BATCHES, 2)
    with training.inference_weights():
        for name in ("0.weight", "1.weight", "3.bias"):
            assert model.state_dict()[name].tobytes() == before[name].tobytes()


@pytest.mark.parametrize("average", [False, True])
def test_the_best_weights_can_be_restored(average):
    best = KeepBest(monitor="val_loss")
    callbacks = [EMA(0.5), best] if average else [best]
    training = trainer_of(batch_norm_network(), "cross_entropy", lr=1.0, callbacks=callbacks)
    other = [(BATCHES[0][0] + 1, BATCHES[1][1])]
    history = training.fit(BATCHES, 6, validation=other)
    losses = [record["val_loss"] for record in history]
    assert losses[-1] > min(losses)
    assert best.describe(len(history)) == f"epoch {np.argmin(losses) + 1} of 6, best val_loss {min(losses):.4g}"
    assert training.evaluate(other).loss == losses[-1]
    best.restore(training)
    assert training.evaluate(other).loss == min(losses)
    assert trainer_of(training.model, "cross_entropy").evaluate(other).loss == min(losses)
    assert KeepBest().describe(3) == "no epoch of 3, as none has a val_loss"


def test_a_function_saves_the_averaged_weights():
    saved = []
    keep = KeepBest(lambda record: saved.append((training.model.state_dict(), training.state_dict()["weights"])))
    training = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[EMA(0.5), keep])
    training.fit(BATCHES, 1, validation=BATCHES)
    with training.inference_weights():
        assert saved[0][0]["0.weight"].tobytes() == training.model.state_dict()["0.weight"].tobytes()
    assert saved[0][1]["0.weight"].tobytes() == training.model.state_dict()["0.weight"].tobytes()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("EMA", {"average": 3}),
        ("EMA", {"average": {"0.weight": np.zeros(3)}}),
        ("EMA", {"updates": -1}),
        ("EMA", {"updates": "x"}),
        ("KeepBest", {"weights": {"a": 3}}),
    ],
)
def test_a_damaged_state_is_refused(name, change):
    training = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[EMA(), KeepBest(monitor="train_loss")])
    training.fit(BATCHES)
    state = training.state_dict()
    state["callbacks"][name].update(change)

    def load_and_train():
        training.load_state_dict(state)
        training.fit(BATCHES)

    with pytest.raises(CheckpointError):
        load_and_train()


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


def test_several_averages_give_the_weights_back():
    training = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[EMA(0.9), EMA(0.5)])
    plain = trainer_of(batch_norm_network(), "cross_entropy")
    for one in (training, plain):
        one.fit(BATCHES, 2, validation=BATCHES)
        one.predict(BATCHES[0][0])
    for name, value in plain.model.state_dict().items():
        assert training.model.state_dict()[name].tobytes() == value.tobytes()


def test_an_average_begins_anew_after_reset():
    start = batch_norm_network().state_dict()
    training = trainer_of(batch_norm_network(), "cross_entropy", lr=0.0, callbacks=[ema := EMA(0.9)])
    training.fit(BATCHES)
    start["0.weight"] = start["0.weight"] + 1
    training.model.load_state_dict(start)
    ema.reset()
    assert ema.updates == 0
    training.fit(BATCHES)
    with training.inference_weights():
        assert training.model.state_dict()["0.weight"].tobytes() == start["0.weight"].tobytes()


def test_the_ignored_class_is_left_out_of_iou():
    model, _, x, y = copy.deepcopy(TASKS["segmentation"])
    void = np.where(y == -100, 255, y)
    loss = loss_named("cross_entropy", ignore_index=255)
    iou = functools.partial(mean_iou, ignore_index=255)
    values = trainer_of(model, loss, metrics={"iou": iou}).evaluate([(x, void)]).values
    assert values == trainer_of(model, "cross_entropy", metrics={"iou": mean_iou}).evaluate([(x, y)]).values
    with pytest.raises(UsageError, match="mean_iou: ignore_index must be an integer, got None"):
        mean_iou(void, void, None)


@pytest.mark.parametrize("where", ["cpu", "torch"])
def test_labels_that_are_all_ignored_are_named_also_in_parts(where):
    pytest.importorskip("torch")
    training = trainer_of(vectors(3), "cross_entropy", accumulate=3, device=where)
    with pytest.raises(UsageError, match=r"^every label of the batch is -100, which is ignored$"):
        training.step(X, np.full(12, -100))


def test_validation_makes_no_confusion_matrix_but_checks_labels(monkeypatch):
    made = []
    monkeypatch.setattr(evaluation, "_confused", lambda *arguments: made.append(arguments))
    training = trainer_of(vectors(3), "cross_entropy", device="strict")
    y = np.arange(12) % 3
    training.fit([(X, y)], validation=[(X, y)])
    assert not made
    training.evaluate([(X, y)])
    assert made
    with pytest.raises(UsageError, match=r"the targets hold 7, the model has classes 0 \.\. 2"):
        training.fit([(X, y)], validation=[(X, np.where(y == 1, 7, y))])


def test_many_classes_have_no_confusion_matrix():
    training = trainer_of(network(nn.Linear(4, 4097)), "cross_entropy")
    assert training.evaluate([(X, np.arange(12))]).confusion is None


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
