"""The most confused classes, the most certain mistakes, and features laid out in the plane."""

from typing import Any

import numpy as np
import pytest

from xcnn import data, explain, models
from xcnn.errors import ShapeError, UsageError, XcnnError
from xcnn.explain import ConfusedPair


def test_confused_pairs_come_by_count_and_then_by_share() -> None:
    counts = np.asarray([[90, 4, 0, 6], [4, 3, 1, 0], [0, 2, 50, 4], [0, 0, 0, 0]])
    found = explain.confused_pairs(counts, ["a", "b", "c", "d"])
    assert [(pair.true, pair.predicted, pair.count) for pair in found] == [
        *(("a", "d", 6), ("b", "a", 4), ("c", "d", 4), ("a", "b", 4), ("c", "b", 2), ("b", "c", 1)),
    ]
    assert [round(pair.share, 3) for pair in found] == [0.06, 0.5, 0.071, 0.04, 0.036, 0.125]
    assert explain.confused_pairs(counts, "abcd", count=1) == [ConfusedPair("a", "d", 6, 0.06)]
    assert explain.confused_pairs(np.diag([3, 4]), ["a", "b"]) == []


def test_certain_mistakes_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    labels[7] = -100
    wrong = [i for i in range(200) if labels[i] >= 0 and max(range(4), key=probabilities[i].__getitem__) != labels[i]]
    expected = sorted(wrong, key=lambda i: -max(probabilities[i]))
    assert explain.certain_mistakes(probabilities, labels, 10).tolist() == expected[:10]
    assert explain.certain_mistakes(probabilities, labels, 1000).tolist() == expected
    assert explain.certain_mistakes(probabilities, probabilities.argmax(1)).tolist() == []
    alike = np.tile([[0.8, 0.2], [0.9, 0.1]], (99, 1))
    assert explain.certain_mistakes(alike, np.ones(198, int), 198).tolist() == [*range(1, 198, 2), *range(0, 198, 2)]


def test_pca_is_that_of_the_covariance_matrix() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 6)) @ np.diag([5, 4, 1, 1, 0.5, 0.1]) + 7
    points = explain.embed(rows)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    vectors = vectors * np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0))
    by_hand = (rows - rows.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(points, by_hand, rtol=0, atol=1e-9)
    np.testing.assert_allclose(points.var(0, ddof=1), values[::-1][:2], rtol=1e-9)
    np.testing.assert_array_equal(points, explain.embed(rows))
    assert explain.embed([[1.0], [2.0], [4.0]]).shape == (3, 2)
    assert explain.embed([[1.0, 2.0, 3.0]]).tolist() == [[0, 0]]


def separated(points: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of points whose nearest other point has the same label."""
    squares = ((points[:, None] - points) ** 2).sum(-1)
    np.fill_diagonal(squares, np.inf)
    return float((labels[squares.argmin(1)] == labels).mean())


@pytest.mark.parametrize(("method", "module"), [("tsne", "sklearn.manifold"), ("umap", "umap")])
@pytest.mark.filterwarnings("ignore")
def test_other_embeddings_keep_neighbours_and_repeat_themselves(method: str, module: str) -> None:
    pytest.importorskip(module, reason=f"{method} needs {module}")
    _, test = data.load("digits")
    rows, labels = data.to_float(test.x[:120]).reshape(120, -1), test.y[:120]
    points = explain.embed(rows, method, rng=1)
    assert points.shape == (120, 2)
    assert separated(points, labels) > 0.75
    np.testing.assert_array_equal(points, explain.embed(rows, method, rng=1))
    assert explain.embed(rows[:5], method).shape == (5, 2)
    with pytest.raises(UsageError, match=f"^embed: {method}: .*neighbourhood"):
        explain.embed(rows, method, neighbourhood=3)


def test_features_of_a_network_can_be_embedded() -> None:
    _, test = data.load("digits")
    rows = explain.features(models.build("report", shape=test.shape, classes=10, seed=0), test)
    assert explain.embed(rows).shape == (len(test), 2)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("xcnn.explain.embedding.importlib.import_module", missing)
    for method, package in (("tsne", "scikit-learn"), ("umap", "umap-learn")):
        with pytest.raises(XcnnError, match=f"^embed: {method} needs {package}; pip install {package}, or use pca$"):
            explain.embed(np.zeros((3, 2)), method)


def test_wrong_arguments_are_refused() -> None:
    rows = np.zeros((3, 2))
    for call, error, message in [
        (lambda: explain.confused_pairs(np.eye(2, dtype=int), "abc"), ShapeError, r"confused_pairs: confusion must ha"),
        (lambda: explain.confused_pairs(np.eye(2), "ab"), UsageError, "confused_pairs: confusion must be counts, inte"),
        (lambda: explain.certain_mistakes(rows, [0, 1]), ShapeError, r"certain_mistakes: labels must have shape \(3,"),
        (lambda: explain.certain_mistakes(rows[0], [0]), ShapeError, "certain_mistakes: probabilities must be"),
        (lambda: explain.certain_mistakes(rows, [0.0, 1.0, 1.0]), UsageError, "certain_mistakes: labels must be inte"),
        (
            lambda: explain.confused_pairs([[1, 2], [3]], "ab"),
            UsageError,
            "confused_pairs: confusion must be an array ",
        ),
        (
            lambda: explain.certain_mistakes([[0.1], [0.2, 0.8]], [0, 1]),
            UsageError,
            "certain_mistakes: probabilities m",
        ),
        (lambda: explain.certain_mistakes([["a", "b"]], [0]), UsageError, "certain_mistakes: probabilities must be an"),
        (lambda: explain.embed([[1.0], [2.0, 3.0]]), UsageError, r"embed: features must be an array of numbers, got"),
        (lambda: explain.embed(rows, "pac"), UsageError, "unknown embed: method 'pac'; did you mean 'pca'"),
        (lambda: explain.embed(rows, perplexity=3), UsageError, "embed: pca has no option 'perplexity'$"),
        (lambda: explain.embed(rows[0]), ShapeError, r"embed: features must be rows of numbers \(n, d\), got array"),
        (
            lambda: explain.embed(rows * np.nan),
            UsageError,
            "embed: features must be finite, got 6 numbers of 6 that are not$",
        ),
        (lambda: explain.embed(rows, rng=-1), UsageError, "embed: rng must be a seed of at least 0, got -1$"),
    ]:
        with pytest.raises(error, match=f"^{message}"):
            call()  # type: ignore[no-untyped-call]
