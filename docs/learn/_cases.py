"""The check of each exercise, by the number of its file. A check raises an AssertionError that says what is wrong."""

from typing import Any

import numpy as np
from _comparing import Function, compare, every, gradients, normal, require, shown, spaced

from xcnn import ops, testing

__all__ = ["EXERCISES"]

# --- 01: one filter --------------------------------------------------------------------------------------------------


def _map(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    maps: np.ndarray = ops.conv2d(image[None], kernel[None])[0]
    return maps[0, 0]


def _bright_below(function: Function) -> None:
    came = function()
    require(came is not None, "must return an array of shape (3, 3), but returns None: is there a `return`?")
    kernel = np.asarray(came, dtype=np.float64)
    require(kernel.shape == (3, 3), f"must return an array of shape (3, 3), but returns shape {kernel.shape}")
    down = np.repeat([0.0, 0, 1, 1], 4).reshape(4, 4)
    for name, image, sign in [
        ("on an image that is grey everywhere", np.full((4, 4), 0.5), 0),
        ("where it is dark above and bright below", down, 1),
        ("where it is bright above and dark below", 1 - down, -1),
        ("where it is dark on the left and bright on the right", down.T, 0),
    ]:
        answer = _map(image[None], kernel[None])
        wanted = {0: "0", 1: "above 0", -1: "below 0"}[sign]
        fits = np.allclose(answer, 0)
        if sign:  # a filter of two rows sees the edge in one of the windows only
            fits = (sign * answer >= 0).all() and not fits
        require(bool(fits), f"{name}\nthe answers must be {wanted}, but are {shown(answer)}")


ONE_FILTER = {
    "map_size": compare(lambda size, window: size - window + 1, (3, 2), (5, 5), (28, 5)),
    "convolve": compare(
        _map,
        (np.array([[[1.0, 2], [3, 4]]]), np.array([[[1.0, 0], [0, 0]]])),
        (np.array([[[1.0]], [[2]]]), np.array([[[3.0]], [[4]]])),
        (normal(1, 3, 4), normal(1, 2, 2)),
        (normal(3, 6, 5), normal(3, 3, 2)),
        hints={
            "this is what a kernel gives that was turned by 180 degrees.": lambda image, kernel: _map(
                image, kernel[:, ::-1, ::-1]
            ),
            "only the first channel was used.": lambda image, kernel: _map(image[:1], kernel[:1]),
        },
    ),
    "bright_below": _bright_below,
}


# --- 02: padding, stride, pooling ------------------------------------------------------------------------------------

PADDING_STRIDE_POOLING = {
    "output_size": compare(
        lambda size, window, padding, stride: (size - window + 2 * padding) // stride + 1,
        (3, 2, 0, 1),
        (3, 3, 1, 1),
        (4, 2, 0, 2),
        (7, 2, 0, 2),
        (28, 3, 1, 2),
        (28, 5, 2, 3),
        hints={
            "padding is added on both sides.": lambda size, window, padding, stride: (
                (size - window + padding) // stride + 1
            ),
            "what is left over at the end gives no window.": lambda size, window, padding, stride: (
                -(-(size - window + 2 * padding) // stride) + 1
            ),
            "the result counts things: it must be a whole number.": lambda size, window, padding, stride: (
                (size - window + 2 * padding) / stride + 1
            ),
        },
    ),
    "pad": compare(np.pad, (np.array([[5.0]]), 1), (np.array([[1.0, 2], [3, 4]]), 0), (normal(2, 3), 2)),
    "max_pool": compare(
        lambda image, size: ops.max_pool2d(image[None, None], size)[0][0, 0],
        (np.array([[1.0, 2], [4, 3]]), 2),
        (np.array([[-1.0, -2], [-4, -3]]), 2),
        (np.array([[1.0, 2, 9], [4, 3, 9]]), 2),
        (spaced(4, 6), 2),
        (spaced(5, 7), 2),
        (spaced(9, 9), 3),
        hints={
            "all numbers of this window are below 0; where does the 0 come from?": lambda image, size: np.maximum(
                ops.max_pool2d(image[None, None], size)[0][0, 0], 0
            ),
            "the last column is not a whole window.": lambda image, size: ops.max_pool2d(
                image[None, None], size, ceil_mode=True
            )[0][0, 0],
            "this is the mean of the window.": lambda image, size: ops.avg_pool2d(image[None, None], size)[0][0, 0],
        },
    ),
}


# --- 03: gradients ---------------------------------------------------------------------------------------------------


def _as_linear(function: Function) -> Function:
    return lambda x, W, b: (W @ x + b, lambda dz: function(dz, x, W))


def _as_convolution(function: Function) -> Function:
    return lambda image, kernel: (_map(image[None], kernel[None]), lambda dy: function(dy, image, kernel))


def _as_relu(function: Function) -> Function:
    return lambda x: (np.maximum(x, 0), lambda dy: (function(dy, x),))


GRADIENTS = {
    "softmax": compare(
        lambda z: ops.softmax(z[None])[0][0],
        (np.array([0.0, 0]),),
        (np.array([3.8, 3.1]),),
        (np.array([1.0, 2, 3]),),
        (np.array([1000.0, 1001]),),
        hints={
            "exp(1000) is too large for a number: subtract the largest score first.": lambda z: (
                np.exp(z) / np.exp(z).sum()
            )
        },
    ),
    "cross_entropy": compare(
        lambda p, label: -np.log(p[label]),
        (np.array([0.5, 0.5]), 0),
        (np.array([0.67, 0.33]), 1),
        (np.array([0.2, 0.7, 0.1]), 2),
        hints={
            "this is the base-10 logarithm: the report's mistake.": lambda p, label: -np.log10(p[label]),
            "the sign: a loss is not below 0.": lambda p, label: np.log(p[label]),
            "take only the probability of the right class.": lambda p, label: -np.log(p),
        },
    ),
    "relu_backward": every(
        compare(lambda dy, x: dy * (x > 0), (np.array([5.0, 5]), np.array([2.0, -2]))),
        gradients(_as_relu, {"x": spaced(3)}, {"x": spaced(2, 3)}),
    ),
    "linear_backward": gradients(
        _as_linear,
        {"x": np.array([10.0]), "W": np.array([[0.5]]), "b": np.array([1.2])},
        {"x": np.array([10.0, 8]), "W": np.array([[0.5, -0.3], [-0.2, 0.7]]), "b": np.array([1.2, -0.5])},
        {"x": normal(3), "W": normal(2, 3), "b": normal(2)},
    ),
    "convolve_backward": gradients(
        _as_convolution,
        {"image": np.array([[2.0]]), "kernel": np.array([[3.0]])},
        {"image": np.array([[2.0, 5], [4, 0]]), "kernel": np.array([[1.0, 0], [2, -1]])},
        {"image": np.array([[1.0, 0, 2], [2, 5, 1], [4, 0, 3]]), "kernel": np.array([[1.0, 0], [2, -1]])},
        {"image": normal(4, 5), "kernel": normal(2, 3)},
    ),
}


# --- 04: the first network -------------------------------------------------------------------------------------------


def _loss(scores: np.ndarray, labels: np.ndarray) -> Any:
    return ops.cross_entropy(scores, labels)[0]


def _loss_gradient(scores: np.ndarray, labels: np.ndarray) -> Any:
    return ops.cross_entropy(scores, labels)[1]()[0]


BATCHES = [
    (np.array([[1.0, 0]]), np.array([0])),
    (np.array([[1.0, 0], [1, 0]]), np.array([0, 1])),
    (np.array([[0.5, -0.5, 2], [3, 1, 1]]), np.array([2, 1])),
    (normal(5, 4), np.array([3, 0, 1, 1, 2])),
]

FIRST_NETWORK = {
    "accuracy": compare(
        lambda scores, labels: float((scores.argmax(axis=1) == labels).mean()),
        *BATCHES,
        hints={"this is the number of right answers, not their share.": lambda s, y: (s.argmax(axis=1) == y).sum()},
    ),
    "mean_loss": compare(
        _loss,
        *BATCHES,
        hints={"this is the sum over the batch: divide by the number of images.": lambda s, y: len(y) * _loss(s, y)},
    ),
    "mean_loss_gradient": compare(
        _loss_gradient,
        *BATCHES,
        hints={
            "the loss is a mean: divide by the number of images.": lambda s, y: len(y) * _loss_gradient(s, y),
            "divided by the number of classes, not of images: the report's mistake.": lambda s, y: (
                len(y) / s.shape[1] * _loss_gradient(s, y)
            ),
            "the sign: this is y - p.": lambda s, y: -_loss_gradient(s, y),
            "subtract 1 from the probability of the right class.": lambda s, y: ops.softmax(s)[0] / len(y),
        },
    ),
    "step": compare(
        lambda weights, grads, rate: [w - rate * dw for w, dw in zip(weights, grads, strict=True)],
        ([np.array([1.0])], [np.array([2.0])], 0.1),
        ([normal(2, 2), normal(2)], [normal(2, 2), normal(2)], 0.01),
        hints={
            "this goes uphill.": lambda weights, grads, rate: [
                w + rate * dw for w, dw in zip(weights, grads, strict=True)
            ]
        },
    ),
}


# --- 05: initialisation ----------------------------------------------------------------------------------------------


def _kaiming(function: Function) -> None:
    for shape in ((256, 1, 3, 3), (32, 64, 3, 3), (64, 16, 5, 5), (300, 200)):
        drawn = np.asarray(function(np.random.default_rng(1), shape))
        where, n = f"kaiming(rng, {shape})", int(np.prod(shape[1:]))
        require(drawn.shape == shape, f"{where}\nmust have the shape {shape}, but has {drawn.shape}")
        again = np.asarray(function(np.random.default_rng(2), shape))
        require(not np.array_equal(drawn, again), f"{where}\nmust draw from rng: two generators gave the same weights")
        same = np.array_equal(drawn, np.asarray(function(np.random.default_rng(1), shape)))
        require(same, f"{where}\nmust draw from rng alone: one seed gave two different arrays of weights")
        mean, spread, wanted = float(drawn.mean()), float(drawn.std()), (2 / n) ** 0.5
        near = 5 / drawn.size**0.5  # a sample of this size is that near
        require(abs(mean) < near * wanted, f"{where}\nthe mean must be about 0, but is {mean:.3g}")
        hint = ""
        if abs(spread - wanted**2) < near * wanted**2:
            hint = "\nHint: 2 / n is the variance; the spread is its root."
        elif abs(spread - wanted / 2**0.5) < near * wanted:
            hint = "\nHint: this is sqrt(1 / n); ReLU halves, so it takes sqrt(2 / n)."
        elif abs(spread - (2 / shape[0]) ** 0.5) < near * (2 / shape[0]) ** 0.5:
            hint = "\nHint: shape[0] is the number of filters, not of the terms in a sum."
        elif len(shape) > 2 and abs(spread - (2 / shape[1]) ** 0.5) < near * (2 / shape[1]) ** 0.5:
            hint = "\nHint: a window has rows and columns, too."
        text = f"{where}\nthe spread must be about sqrt(2 / {n}) = {wanted:.4f}, but is {spread:.4f}{hint}"
        require(abs(spread - wanted) < near * wanted, text)


def _dead(maps: np.ndarray) -> float:
    return float((maps <= 0).all(axis=(0, 2, 3)).mean())


INITIALISATION = {
    "terms": compare(
        lambda shape: int(np.prod(shape[1:])),
        ((1, 1, 1, 1),),
        ((5, 2, 1, 1),),
        ((16, 16, 3, 3),),
        ((6, 3, 5, 2),),
        ((10, 196),),
        hints={"the number of filters does not matter: each makes its own sum.": lambda shape: int(np.prod(shape))},
    ),
    "kaiming": _kaiming,
    "dead_share": compare(
        _dead,
        (np.array([[[[0.0]], [[1.0]]]]),),
        (np.array([[[[0.0, 0]]], [[[0, 1.0]]]]),),
        (np.maximum(normal(3, 4, 2, 2) - np.array([0, 5, 0, 5])[:, None, None], 0),),
        hints={
            "this is the share of zeros; a dead filter has no other number.": lambda maps: float((maps <= 0).mean()),
            "a dead filter gives 0 in all images, not in one.": lambda maps: float((maps <= 0).all(axis=(2, 3)).mean()),
        },
    ),
}


# --- 06: batch norm --------------------------------------------------------------------------------------------------


def _batch_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> Any:
    mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    return _with_averages(x, mean, variance, weight, bias, eps)


def _with_averages(x: np.ndarray, mean: Any, variance: Any, weight: Any, bias: Any, eps: float) -> Any:
    at = (slice(None), None, None)
    return (x - mean[at]) / np.sqrt(variance[at] + eps) * weight[at] + bias[at]


def _together(x: np.ndarray, weight: Any, bias: Any, eps: float) -> Any:
    at = (slice(None), None, None)
    return (x - x.mean()) / np.sqrt(x.var() + eps) * weight[at] + bias[at]


def _apart(x: np.ndarray, weight: Any, bias: Any, eps: float) -> Any:
    at, axes = (slice(None), None, None), (2, 3)
    spread = np.sqrt(x.var(axis=axes, keepdims=True) + eps)
    return (x - x.mean(axis=axes, keepdims=True)) / spread * weight[at] + bias[at]


def _as_normalise(function: Function) -> Function:
    return lambda x: ((x - x.mean()) / x.std(), lambda dy: (function(dy, x),))


BATCH_NORM = {
    "batch_norm": compare(
        _batch_norm,
        (np.array([[[[1.0]]], [[[3.0]]]]), np.array([1.0]), np.array([0.0]), 1e-5),
        (np.array([[[[5.0]]], [[[5.0]]]]), np.array([1.0]), np.array([2.0]), 1e-5),
        (normal(2, 2, 1, 2), np.array([1.0, 1]), np.array([0.0, 0]), 1e-5),
        (normal(3, 2, 2, 2), np.array([2.0, -1]), np.array([0.5, 3]), 0.1),
        hints={
            "all channels were normalised together; each has a mean of its own.": _together,
            "each image was normalised by itself; the mean is over the batch, too.": _apart,
            "divide by the root of the variance.": lambda x, w, b, eps: _with_averages(
                x, x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3)) ** 2, w, b, eps
            ),
            "eps is added to the variance, under the root.": lambda x, w, b, eps: _with_averages(
                x, x.mean(axis=(0, 2, 3)), (x.std(axis=(0, 2, 3)) + eps) ** 2, w, b, 0.0
            ),
        },
    ),
    "update": compare(
        lambda average, batch, momentum: (1 - momentum) * average + momentum * batch,
        (0.0, 10.0, 0.1),
        (4.0, 8.0, 0.25),
        (normal(3), normal(3), 0.1),
        hints={
            "momentum is the share of the new batch.": lambda average, batch, momentum: (
                momentum * average + (1 - momentum) * batch
            )
        },
    ),
    "batch_norm_after_training": compare(
        _with_averages,
        (np.array([[[[3.0]]]]), np.array([1.0]), np.array([4.0]), np.array([1.0]), np.array([0.0]), 1e-5),
        (normal(2, 2, 2, 1), normal(2), np.array([0.5, 2]), np.array([2.0, -1]), np.array([0.5, 3]), 1e-5),
    ),
    "normalise_backward": gradients(_as_normalise, {"x": np.array([1.0, 2, 4])}, {"x": spaced(6)}),
}


# --- 07: overfitting -------------------------------------------------------------------------------------------------


def _moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    rows, columns = image.shape
    result = np.zeros_like(image)
    for i in range(rows):
        for j in range(columns):
            if 0 <= i - down < rows and 0 <= j - right < columns:
                result[i, j] = image[i - down, j - right]
    return result


def _stop(losses: list[float], patience: int) -> int:
    for epoch in range(1, len(losses) + 1):
        if epoch - (1 + losses.index(min(losses[:epoch]))) >= patience:
            return epoch
    return len(losses)


OVERFITTING = {
    "best_epoch": compare(
        lambda losses: 1 + int(np.argmin(losses)),
        ([0.5],),
        ([0.9, 0.4, 0.6],),
        ([2.2, 1.3, 0.9, 0.7, 0.9, 1.0],),
        hints={"epochs are counted from 1, places in a list from 0.": lambda losses: int(np.argmin(losses))},
    ),
    "move": compare(
        _moved,
        (np.array([[1.0, 2], [3, 4]]), 0, 0),
        (np.array([[1.0, 2], [3, 4]]), 1, 0),
        (np.array([[1.0, 2], [3, 4]]), 0, -1),
        (normal(3, 4), -1, 2),
        hints={
            "what leaves on one side came back on the other.": lambda image, down, right: np.roll(
                image, (down, right), (0, 1)
            ),
            "this is the other direction.": lambda image, down, right: _moved(image, -down, -right),
        },
    ),
    "stop_epoch": compare(
        _stop,
        ([0.5], 1),
        ([0.5, 0.6], 1),
        ([0.9, 0.5, 0.6, 0.4, 0.5, 0.6, 0.7], 2),
        ([0.9, 0.8, 0.9, 0.85, 0.82, 0.3], 3),
        ([5.0, 4.0, 3.0], 2),
    ),
}


# --- 08: mistakes ----------------------------------------------------------------------------------------------------


def _most_confused(confusion: np.ndarray) -> tuple[int, int]:
    wrong = confusion * (1 - np.eye(len(confusion), dtype=int))
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    return int(true), int(predicted)


CONFUSIONS = [
    (np.array([[3, 1], [0, 4]]),),
    (np.array([[9, 0, 1], [4, 5, 0], [0, 2, 8]]),),
    (np.array([[9, 0, 1], [0, 5, 3], [0, 2, 0]]),),
]

PIXELS = [
    (np.array([0.5, 0.5]), np.array([3.0, -0.01]), 0.1),
    (np.array([0.05, 0.95]), np.array([-1.0, 2.0]), 0.1),
    (abs(normal(2, 3)) / 4, normal(2, 3) + 0.05, 0.2),
]

MISTAKES = {
    "recall": compare(
        lambda confusion: np.diag(confusion) / confusion.sum(axis=1),
        *CONFUSIONS,
        hints={"this is the precision: a row is a true class.": lambda c: np.diag(c) / c.sum(axis=0)},
    ),
    "most_confused": compare(
        _most_confused,
        *CONFUSIONS,
        hints={
            "the diagonal holds the right answers.": lambda c: tuple(map(int, np.unravel_index(c.argmax(), c.shape))),
            "the true class comes first.": lambda c: _most_confused(c)[::-1],
        },
    ),
    "attack": compare(
        lambda x, dx, epsilon: np.clip(x + epsilon * np.sign(dx), 0, 1),
        *PIXELS,
        hints={
            "a pixel is from 0 to 1.": lambda x, dx, epsilon: x + epsilon * np.sign(dx),
            "this makes the loss smaller.": lambda x, dx, epsilon: np.clip(x - epsilon * np.sign(dx), 0, 1),
            "every pixel moves by epsilon, however small its gradient is: use the sign.": lambda x, dx, epsilon: (
                np.clip(x + epsilon * dx, 0, 1)
            ),
        },
    ),
}


# --- 09: backends ----------------------------------------------------------------------------------------------------


def _careful_sum(function: Function) -> None:
    for count, value in ((1, 0.5), (4, 0.1), (100_000, 0.1), (50_000, 3.3)):
        numbers = np.full(count, value, np.float32)
        wanted = count * float(np.float32(value))
        result = function(numbers)
        dtype = "None: is there a `return`?" if result is None else np.asarray(result).dtype
        require(dtype == np.float32, f"careful_sum of {count:,} times {value}\nmust be a float32, but is {dtype}")
        came = float(result)
        text = f"careful_sum of {count:,} times {value}\nmust be {wanted:.8g} within a millionth, but is {came:.8g}"
        require(abs(came - wanted) <= 1e-6 * wanted, text)


BACKENDS = {
    "relative_error": compare(
        lambda came, exact: float(np.max(np.abs(came - exact)) / np.max(np.abs(exact))),
        (np.array([1.0]), np.array([2.0])),
        (np.array([3.0]), np.array([2.0])),
        (np.array([1.0, -10.5]), np.array([1.1, -10.0])),
        (np.array([0.001, 5.0]), np.array([0.0, 4.0])),
        hints={
            "errors have no sign.": lambda came, exact: float(np.max(came - exact) / np.max(np.abs(exact))),
            "divide by the largest exact number, not by each.": lambda came, exact: float(
                np.max(np.abs((came - exact) / exact))
            ),
        },
    ),
    "careful_sum": _careful_sum,
    "soft_step": lambda function: testing.check_op(function, reference=lambda x: x / (1 + np.abs(x))),
}


# --- 10: a residual network ------------------------------------------------------------------------------------------


def _body(x: np.ndarray) -> tuple[Any, Any]:
    y, backward = ops.tanh(0.5 * x)
    return y, lambda dy: 0.5 * backward(dy)[0]


def _residual(function: Function) -> None:
    def alone(x: np.ndarray) -> Any:
        return function(x, _body)

    def forward(x: np.ndarray) -> Any:
        return alone(x)[0]

    forward.__name__ = function.__name__
    xs = np.array([2.0]), normal(2, 3)
    came = alone(xs[0])
    pair = isinstance(came, tuple) and len(came) == 2 and callable(came[1])
    require(pair, "residual(x=[2.0], body)\nmust return two results: y, and a function that returns dx for dy")
    compare(lambda x: _body(x)[0] + x, *((x,) for x in xs), hints={"the shortcut is missing.": lambda x: _body(x)[0]})(
        forward
    )
    gradients(lambda function: lambda x: alone(x), *({"x": x} for x in xs))(function)


def _field(layers: list[tuple[int, int]]) -> int:
    size, jump = 1, 1
    for window, stride in layers:
        size, jump = size + (window - 1) * jump, jump * stride
    return size


RESIDUAL_NETWORK = {
    "residual": _residual,
    "weights": compare(
        lambda inputs, outputs, window, bias: outputs * (inputs * window * window + bool(bias)),
        (1, 1, 1, False),
        (1, 1, 3, False),
        (3, 2, 3, True),
        (16, 32, 5, True),
        hints={
            "each filter has one bias, not one per weight.": lambda i, o, w, bias: o * (i * w * w + bool(bias) * i),
            "a window has rows and columns.": lambda i, o, w, bias: o * (i * w + bool(bias)),
        },
    ),
    "seen": compare(
        _field,
        ([(3, 1)],),
        ([(3, 1), (3, 1)],),
        ([(2, 2), (3, 1)],),
        ([(3, 1), (2, 2), (3, 1), (2, 2)],),
        hints={
            "after a stride of 2, a step in the map is 2 steps in the image.": lambda layers: (
                1 + sum(w - 1 for w, _ in layers)
            )
        },
    ),
}


EXERCISES: dict[str, dict[str, Function]] = {
    "01": ONE_FILTER,
    "02": PADDING_STRIDE_POOLING,
    "03": GRADIENTS,
    "04": FIRST_NETWORK,
    "05": INITIALISATION,
    "06": BATCH_NORM,
    "07": OVERFITTING,
    "08": MISTAKES,
    "09": BACKENDS,
    "10": RESIDUAL_NETWORK,
}
