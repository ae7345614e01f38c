"""Embeddings: the features of a network for many images, laid out in the plane."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn._array import Array, is_array
from xcnn._check import is_integer, shown
from xcnn.devices import to_numpy
from xcnn.errors import ShapeError, UsageError, XcnnError, explained, unknown
from xcnn.explain.statistics import batches_of
from xcnn.explain.target import as_host
from xcnn.explain.trace import Trace, trace
from xcnn.nn import Linear, Module
from xcnn.training.feed import Data

__all__ = ["EMBEDDINGS", "embed", "features"]


@explained
def features(model: Module, data: Data, layer: str | None = None, batch_size: int = 64) -> np.ndarray:
    """Return what a layer makes of each example, a row of numbers on the host.

    Parameters
    ----------
    model : the network, on any device; it runs in inference mode.
    data : what `Trainer.predict` takes: an array (n, ...), a `Dataset`, a `Loader`, ... uint8 is divided by 255.
    layer : dotted name of a module; by default what the last linear layer takes, or the output if there is none.
    batch_size : examples per pass.

    Returns
    -------
    (n, d) : the output; of maps, the mean of each.

    Raises
    ------
    UsageError, DataError, ShapeError
        If there is no such layer, or an argument is not as above.
    """
    rows = []
    for x in batches_of("features", model, data, batch_size):
        y = to_numpy(_output(trace(model, x), layer))
        rows.append(y.reshape(len(y), -1) if y.ndim < 3 else y.mean(axis=tuple(range(2, y.ndim))))
    return np.concatenate(rows)


def _output(found: Trace, layer: str | None) -> Array:
    if layer is not None:
        y = found[layer].y
    else:
        y = next((call.x for call in reversed(found.layers) if isinstance(call.module, Linear)), found.y)
    if not is_array(y) or y.ndim < 1:
        name, came = "the output" if layer is None else layer, "a number" if is_array(y) else type(y).__name__
        raise UsageError(f"features: {name} must be an array (n, ...), got {came}")
    return y


@explained
def embed(features: Any, method: str = "pca", rng: int = 0, **options: Any) -> np.ndarray:
    """Return a point of the plane for each row of features, so that like rows are near each other.

    Parameters
    ----------
    features : (n, d), such as `features` returns.
    method : `"pca"` looks at the rows from the side on which they differ most; distances keep their meaning, but only
        the two largest directions are seen. `"tsne"` (needs scikit-learn) and `"umap"` (needs umap-learn) keep
        neighbours together; the distances between groups and their sizes mean nothing.
    rng : the seed of t-SNE and UMAP.
    **options : options of scikit-learn's `TSNE` or umap-learn's `UMAP`, such as `perplexity` or `n_neighbors`.

    Returns
    -------
    (n, 2), float64 on the host.

    Raises
    ------
    ShapeError, UsageError
        If `features` are not rows of finite numbers, or the method or an option is unknown.
    XcnnError
        If the package of a method is not installed.

    Notes
    -----
    L. van der Maaten and G. Hinton, Visualizing data using t-SNE, 2008; L. McInnes, J. Healy and J. Melville, UMAP:
    uniform manifold approximation and projection for dimension reduction, 2018, arXiv:1802.03426.

    Examples
    --------
    >>> points = embed([[0.0, 1.0, 1.0], [4.0, 1.0, 1.0], [2.0, 2.0, 1.0]])
    >>> points.shape, float(abs(points[0, 0] - points[1, 0]).round(6))
    ((3, 2), 4.0)
    """
    rows = as_host("embed", "features", features)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ShapeError(f"embed: features must be rows of numbers (n, d), got {shown(rows)}")
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        count = rows.size - int(np.isfinite(rows).sum())
        raise UsageError(f"embed: features must be finite, got {count} numbers of {rows.size} that are not")
    if not isinstance(method, str) or method not in EMBEDDINGS:
        raise unknown("embed: method", method, EMBEDDINGS)
    if not is_integer(rng) or rng < 0:
        raise UsageError(f"embed: rng must be a seed of at least 0, got {shown(rng)}")
    found = EMBEDDINGS[method](rows, int(rng), options)
    return np.asarray(found, np.float64)


def _pca(rows: np.ndarray, seed: int, options: dict[str, Any]) -> np.ndarray:
    """Return the rows along their two directions of largest variance, each with its largest entry positive."""
    if options:
        raise UsageError(f"embed: pca has no option {next(iter(options))!r}")
    u, sizes, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)[:, 0]
    found = (u * sizes * np.where(largest < 0, -1.0, 1.0))[:, :2]
    return np.pad(found, [(0, 0), (0, 2 - found.shape[1])])


def _tsne(rows: np.ndarray, seed: int, options: dict[str, Any]) -> Any:
    made = _package("tsne", "sklearn.manifold", "scikit-learn").TSNE
    perplexity, init = min(30.0, max(1.0, (len(rows) - 1) / 3)), "pca" if min(rows.shape) > 1 else "random"
    return _fitted("tsne", made, {"random_state": seed, "init": init, "perplexity": perplexity} | options, rows)


def _umap(rows: np.ndarray, seed: int, options: dict[str, Any]) -> Any:
    made = _package("umap", "umap", "umap-learn").UMAP
    neighbours = max(2, min(15, len(rows) - 1))
    return _fitted("umap", made, {"random_state": seed, "n_jobs": 1, "n_neighbors": neighbours} | options, rows)


def _package(method: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise XcnnError(f"embed: {method} needs {package}; pip install {package}, or use pca") from None


def _fitted(method: str, made: Callable[..., Any], options: dict[str, Any], rows: np.ndarray) -> Any:
    try:
        return made(n_components=2, **options).fit_transform(rows)
    except (TypeError, ValueError) as error:
        raise UsageError(f"embed: {method}: {error}") from None


EMBEDDINGS: dict[str, Callable[[np.ndarray, int, dict[str, Any]], Any]] = {"pca": _pca, "tsne": _tsne, "umap": _umap}
"""The methods of `embed`: functions of the rows, a seed and the options."""
