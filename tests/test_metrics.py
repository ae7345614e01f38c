"""What the trainer counts and scores: metrics, figures of each class, confusion matrices, class weights."""

import copy
import functools
import pickle

import numpy as np
import pytest
from tasks import TASKS, X, network, torch_loss, trainer_of, vectors

from xcnn import nn
from xcnn.errors import ShapeError, UsageError
from xcnn.training import (
    EarlyStopping,
    Metrics,
    class_weight,
    confusion_matrix,
    evaluation,
    loss_named,
    mean_iou,
    r2_score,
)

RNG = np.random.default_rng(1)


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


@pytest.mark.parametrize(
    ("score", "arrays", "says"),
    [
        (mean_iou, ([[0, 1], [0]], [0, 1]), "mean_iou: targets must be an array, got lists of unequal lengths"),
        (confusion_matrix, ([[0.5], [0.5, 0.5]], [0]), "confusion_matrix: probabilities must be an array, got lists"),
        (r2_score, (["a"], [1.0]), "r2_score: targets must hold numbers, got <U1"),
    ],
)
def test_scores_refuse_what_holds_no_numbers(score, arrays, says):
    with pytest.raises(UsageError, match=says):
        score(*arrays)


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


def test_the_ignored_class_is_left_out_of_iou():
    model, _, x, y = copy.deepcopy(TASKS["segmentation"])
    void = np.where(y == -100, 255, y)
    loss = loss_named("cross_entropy", ignore_index=255)
    iou = functools.partial(mean_iou, ignore_index=255)
    values = trainer_of(model, loss, metrics={"iou": iou}).evaluate([(x, void)]).values
    assert values == trainer_of(model, "cross_entropy", metrics={"iou": mean_iou}).evaluate([(x, y)]).values
    with pytest.raises(UsageError, match="mean_iou: ignore_index must be an integer, got None"):
        mean_iou(void, void, None)


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


def test_metrics_are_shown_with_the_figures_that_there_are():
    shown = Metrics(samples=3, loss_sum=1.0, size=3.0, correct=2, counted=3, values={"iou": 0.25})
    assert repr(shown) == "Metrics(loss=0.333333, accuracy=0.666667, iou=0.25, samples=3)"
    assert repr(Metrics(samples=3, loss_sum=1.0, size=3.0)) == "Metrics(loss=0.333333, samples=3)"


def test_many_classes_have_no_confusion_matrix():
    training = trainer_of(network(nn.Linear(4, 4097)), "cross_entropy")
    assert training.evaluate([(X, np.arange(12))]).confusion is None


@pytest.mark.parametrize("metric", [lambda targets: 0.0, lambda t, p, weights: 0.0, functools.partial(r2_score, X)])
def test_a_metric_that_cannot_be_called_is_refused_before_training(metric):
    with pytest.raises(
        UsageError, match=r"^Trainer: the metric mine: .*; it must be a function \(targets, predictions"
    ):
        trainer_of(vectors(1), "mse_loss", metrics={"mine": metric})


def test_an_error_of_a_metric_says_which_it_is():
    def accuracy(targets, predictions):
        raise ValueError("a mix of multiclass and continuous targets")

    training = trainer_of(vectors(3), "cross_entropy", metrics={"good": lambda t, p: 1.0, "accuracy_score": accuracy})
    says = r"continuous targets\nevaluate: this is the metric accuracy_score of targets int64 \(12,\) and predictions "
    with pytest.raises(ValueError, match=says + r"float64 \(12, 3\)$"):
        training.evaluate((X, np.arange(12) % 3))
