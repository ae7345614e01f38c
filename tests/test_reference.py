"""The reference loops against cases computed by hand and, if it is installed, PyTorch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from calls import FAMILIES, Call
from hypothesis import given, settings
from hypothesis import strategies as st

from xcnn.ops._op import OPS

NAN = math.nan
SQUARE = [[[1, 2], [3, 4]]]
HALF = 1 / math.sqrt(1 + 1e-5)  # (x - mean) / sqrt(var + eps) for mean 2 and variance 1

BY_HAND: list[tuple[str, dict[str, Any], Any]] = [
    ("conv1d", {"x": [[1, 2, 3]], "weight": [[[1, 10]]]}, [[21, 32]]),
    ("conv1d", {"x": [[1, 2, 3]], "weight": [[[1, 10]]], "bias": [5], "padding": [(1, 0)]}, [[15, 26, 37]]),
    ("conv1d", {"x": [[1, 2, 3]], "weight": [[[1, 10]]], "padding": "same"}, [[21, 32, 3]]),
    ("conv1d", {"x": [[1, 2, 3, 4]], "weight": [[[1, 10]]], "stride": 2}, [[21, 43]]),
    ("conv1d", {"x": [[1, 2, 3]], "weight": [[[1, 10]]], "dilation": 2}, [[31]]),
    ("conv1d", {"x": [[1], [2]], "weight": [[[3]], [[4]]], "groups": 2}, [[3], [8]]),
    ("conv2d", {"x": SQUARE, "weight": [[[[1, 10], [100, 1000]]]]}, [[[4321]]]),
    ("conv3d", {"x": [SQUARE], "weight": [[[[[1, 10], [100, 1000]]]]]}, [[[[4321]]]]),
    ("conv_transpose1d", {"x": [[1, 2]], "weight": [[[1, 10]]], "bias": [100]}, [[101, 112, 120]]),
    ("conv_transpose1d", {"x": [[1, 2]], "weight": [[[1, 10]]], "stride": 2}, [[1, 10, 2, 20]]),
    ("conv_transpose1d", {"x": [[1, 2]], "weight": [[[1, 10]]], "padding": 1, "output_padding": 1}, [[12, 20]]),
    ("conv_transpose1d", {"x": [[1], [2]], "weight": [[[3]], [[4]]], "groups": 2}, [[3], [8]]),
    ("conv_transpose2d", {"x": [[[2]]], "weight": [[[[1, 10], [100, 1000]]]]}, [[[2, 20], [200, 2000]]]),
    ("conv_transpose3d", {"x": [[[[2]]]], "weight": [[[[[1, 10]]]]]}, [[[[2, 20]]]]),
    ("max_pool1d", {"x": [[1, 4, 3, 2, 5]], "kernel_size": 2}, [[4, 3]]),
    ("max_pool1d", {"x": [[1, 4, 3, 2, 5]], "kernel_size": 2, "ceil_mode": True}, [[4, 3, 5]]),
    ("max_pool1d", {"x": [[-1, -4, NAN, -2]], "kernel_size": 2, "padding": 1}, [[-1, NAN, -2]]),
    ("max_pool1d", {"x": [[1, 4, 3, 2]], "kernel_size": 2, "stride": 1, "dilation": 2}, [[3, 4]]),
    ("max_pool2d", {"x": SQUARE, "kernel_size": (1, 2)}, [[[2], [4]]]),
    ("max_pool3d", {"x": [SQUARE], "kernel_size": (1, 2, 2)}, [[[[4]]]]),
    ("avg_pool1d", {"x": [[1, 4, 3]], "kernel_size": 2, "padding": 1}, [[0.5, 3.5]]),
    ("avg_pool1d", {"x": [[1, 4, 3]], "kernel_size": 2, "padding": 1, "count_include_pad": False}, [[1, 3.5]]),
    ("avg_pool1d", {"x": [[1, 4, 3]], "kernel_size": 2, "ceil_mode": True}, [[2.5, 3]]),
    ("avg_pool1d", {"x": [[1, 4, 3, 2]], "kernel_size": 2, "stride": 1, "dilation": 2}, [[2, 3]]),
    ("avg_pool1d", {"x": [[1, 4]], "kernel_size": 2, "stride": 1, "padding": [(1, 0)]}, [[0.5, 2.5]]),
    ("max_pool1d", {"x": [[-1, -4]], "kernel_size": 2, "stride": 1, "padding": [(0, 1)]}, [[-1, -4]]),
    ("avg_pool2d", {"x": SQUARE, "kernel_size": 2}, [[[2.5]]]),
    ("avg_pool2d", {"x": SQUARE, "kernel_size": 2, "divisor_override": 5}, [[[2]]]),
    ("avg_pool3d", {"x": [SQUARE], "kernel_size": (1, 2, 1)}, [[[[2, 3]]]]),
    ("adaptive_avg_pool1d", {"x": [[1, 2, 6]], "output_size": 2}, [[1.5, 4]]),
    ("adaptive_avg_pool1d", {"x": [[1, 3]], "output_size": 4}, [[1, 1, 3, 3]]),
    ("adaptive_avg_pool2d", {"x": SQUARE, "output_size": (1, None)}, [[[2, 3]]]),
    ("adaptive_avg_pool3d", {"x": [SQUARE], "output_size": 1}, [[[[2.5]]]]),
    ("adaptive_max_pool1d", {"x": [[1, 6, 2]], "output_size": 2}, [[6, 6]]),
    ("adaptive_max_pool2d", {"x": SQUARE, "output_size": (1, None)}, [[[3, 4]]]),
    ("adaptive_max_pool3d", {"x": [SQUARE], "output_size": 1}, [[[[4]]]]),
    ("interpolate", {"x": [[[1, 3]]], "scale_factor": 2}, [[[1, 1, 3, 3]]]),
    ("interpolate", {"x": [[[1, 3, 5]]], "size": 2}, [[[1, 3]]]),
    ("interpolate", {"x": [[[1, 3, 5]]], "size": 2, "mode": "nearest-exact"}, [[[1, 5]]]),
    ("interpolate", {"x": [[[1, 3]]], "scale_factor": 2, "mode": "linear"}, [[[1, 1.5, 2.5, 3]]]),
    ("interpolate", {"x": [[[1, 3]]], "size": 5, "mode": "linear", "align_corners": True}, [[[1, 1.5, 2, 2.5, 3]]]),
    ("pixel_shuffle", {"x": [[[1]], [[2]], [[3]], [[4]]], "upscale_factor": 2}, SQUARE),
    ("channel_shuffle", {"x": [[1, 2, 3, 4, 5, 6]], "groups": 2}, [[1, 4, 2, 5, 3, 6]]),
    ("pixel_unshuffle", {"x": SQUARE, "downscale_factor": 2}, [[[1]], [[2]], [[3]], [[4]]]),
    ("global_avg_pool", {"x": [SQUARE]}, [[2.5]]),
    ("global_max_pool", {"x": [SQUARE]}, [[4]]),
    ("pad", {"x": [1, 2, 3], "pad": (1, 2), "value": 7}, [7, 1, 2, 3, 7, 7]),
    ("pad", {"x": [1, 2, 3], "pad": (-1, 1)}, [2, 3, 0]),
    ("pad", {"x": [1, 2, 3], "pad": (2, 1), "mode": "reflect"}, [3, 2, 1, 2, 3, 2]),
    ("pad", {"x": [1, 2, 3], "pad": (2, 1), "mode": "replicate"}, [1, 1, 1, 2, 3, 3]),
    ("pad", {"x": [1, 2, 3], "pad": (2, 1), "mode": "circular"}, [2, 3, 1, 2, 3, 1]),
    ("pad", {"x": [1, 2, 3], "pad": (-1, 1), "mode": "circular"}, [2, 3, 2]),
    ("pad", {"x": [[1, 2]], "pad": (0, 1, 1, 0)}, [[0, 0, 0], [1, 2, 0]]),
    ("relu", {"x": [-1, 0, 2]}, [0, 0, 2]),
    ("leaky_relu", {"x": [-1, 2], "negative_slope": 0.1}, [-0.1, 2]),
    ("prelu", {"x": [[-1, -1], [2, -2]], "weight": [0.1, 0.5]}, [[-0.1, -0.5], [2, -1]]),
    ("prelu", {"x": [-1, 2], "weight": [0.1]}, [-0.1, 2]),
    ("relu6", {"x": [-1, 2, 7]}, [0, 2, 6]),
    ("hardtanh", {"x": [-2, 0.5, 7]}, [-1, 0.5, 1]),
    ("hardtanh", {"x": [-2, 0.5, 7], "min_val": 0, "max_val": 4}, [0, 0.5, 4]),
    ("hardsigmoid", {"x": [-4, 0, 1.5, 4]}, [0, 0.5, 0.75, 1]),
    ("hardswish", {"x": [-4, 0, 1.5, 4]}, [0, 0, 1.125, 4]),
    ("softplus", {"x": [0, math.log(3), 25]}, [math.log(2), math.log(4), 25]),
    ("softplus", {"x": [1], "beta": 2, "threshold": 1.5}, [1]),
    ("softplus", {"x": [math.log(3) / 2], "beta": 2}, [math.log(2)]),
    ("mish", {"x": [math.log(3)]}, [math.log(3) * 15 / 17]),
    ("elu", {"x": [-math.log(2), 2], "alpha": 3}, [-1.5, 2]),
    ("gelu", {"x": [0, 1, -1]}, [0, 0.841344746068543, -0.158655253931457]),  # the normal distribution at 1 and -1
    ("gelu", {"x": [0, 30, -30], "approximate": "tanh"}, [0, 30, 0]),
    ("silu", {"x": [math.log(3)]}, [0.75 * math.log(3)]),
    ("sigmoid", {"x": [0, math.log(3), -1000]}, [0.5, 0.75, 0]),
    ("tanh", {"x": [math.log(2)]}, [0.6]),
    ("softmax", {"x": [[0, math.log(3)], [5, 5]]}, [[0.25, 0.75], [0.5, 0.5]]),
    ("softmax", {"x": [[0, 5], [math.log(3), 5]], "dim": 0}, [[0.25, 0.5], [0.75, 0.5]]),
    ("softmax", {"x": 7.0, "dim": 0}, 1),
    ("log_softmax", {"x": [0, 1e4]}, [-1e4, 0]),
    ("linear", {"x": [1, 2], "weight": [[1, 10], [3, 0]], "bias": [0, 5]}, [21, 8]),
    ("flatten", {"x": [[[1, 2], [3, 4]]]}, [[1, 2, 3, 4]]),
    ("flatten", {"x": [[[1, 2], [3, 4]]], "start_dim": 0, "end_dim": 1}, [[1, 2], [3, 4]]),
    ("unflatten", {"x": [[1, 2, 3, 4]], "dim": 1, "unflattened_size": (2, 2)}, [[[1, 2], [3, 4]]]),
    ("permute", {"x": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]], "dims": (1, 2, 0)}, [[[1, 5], [2, 6]], [[3, 7], [4, 8]]]),
    ("permute", {"x": [[1, 2], [3, 4]], "dims": (-1, 0)}, [[1, 3], [2, 4]]),
    ("reshape", {"x": [[1, 2, 3], [4, 5, 6]], "shape": (3, -1)}, [[1, 2], [3, 4], [5, 6]]),
    ("reshape", {"x": [[7]], "shape": ()}, 7),
    ("slice", {"x": [0, 1, 2, 3, 4, 5], "dim": 0, "start": 1, "stop": -1, "step": 3}, [1, 4]),
    ("slice", {"x": [0, 1, 2, 3, 4, 5], "dim": 0, "start": 4, "step": -3}, [4, 1]),
    ("slice", {"x": [0, 1, 2, 3, 4, 5], "dim": 0, "start": -9, "stop": 2}, [0, 1]),
    ("slice", {"x": [0, 1, 2, 3, 4, 5], "dim": 0, "start": 9, "stop": -9, "step": -5}, [5, 0]),
    ("slice", {"x": [[1, 2], [3, 4]], "dim": -1, "start": 1}, [[2], [4]]),
    ("slice", {"x": [1, 2], "dim": 0, "start": 1, "stop": 0}, []),
    ("mean", {"x": [[1, 2], [3, 6]]}, 3),
    ("mean", {"x": [[1, 2], [3, 6]], "dim": 0}, [2, 4]),
    ("mean", {"x": [[1, 2], [3, 6]], "dim": (0, -1), "keepdim": True}, [[3]]),
    ("sum", {"x": [[1, 2], [3, 6]]}, 12),
    ("sum", {"x": [[1, 2], [3, 6]], "dim": -1, "keepdim": True}, [[3], [9]]),
    ("matmul", {"x": [[1, 2]], "other": [[3], [4]]}, [[11]]),
    ("matmul", {"x": [1, 2], "other": [3, 4]}, 11),
    ("matmul", {"x": [1, 2], "other": [[[3], [4]], [[5], [6]]]}, [[11], [17]]),
    ("matmul", {"x": [[[1, 2]], [[3, 4]]], "other": [10, 1]}, [[12], [34]]),
    ("abs", {"x": [-2, 0, 3]}, [2, 0, 3]),
    ("negative", {"x": [-2, 0, 3]}, [2, 0, -3]),
    ("exp", {"x": [0, math.log(2)]}, [1, 2]),
    ("log", {"x": [1, math.e]}, [0, 1]),
    ("sqrt", {"x": [0, 9]}, [0, 3]),
    ("power", {"x": [4, 9], "exponent": -0.5}, [1 / 2, 1 / 3]),
    ("power", {"x": [0, -2], "exponent": 3}, [0, -8]),
    ("power", {"x": [0, -2], "exponent": 0}, [1, 1]),
    ("erf", {"x": [0, 0.5, -40]}, [0, 0.5204998778130465, -1]),
    ("softsign", {"x": [-3, 0, 1]}, [-0.75, 0, 0.5]),
    ("celu", {"x": [-2 * math.log(2), 3], "alpha": 2}, [-1, 3]),
    ("selu", {"x": [-math.log(2), 1]}, [-1.6732632423543773 / 2 * 1.0507009873554805, 1.0507009873554805]),
    ("hardsigmoid", {"x": [-3, 0.5, 4], "alpha": 0.2, "beta": 0.4}, [0, 0.5, 1]),
    ("maximum", {"x": [1, 30], "other": [[10], [20]]}, [[10, 30], [20, 30]]),
    ("minimum", {"x": [1, 30], "other": [[10], [20]]}, [[1, 10], [1, 20]]),
    ("add", {"x": [1, 2], "other": [10, 20]}, [11, 22]),
    ("add", {"x": [1, 2], "other": [[10], [20]]}, [[11, 12], [21, 22]]),
    ("subtract", {"x": [1, 2], "other": [[10], [20]]}, [[-9, -8], [-19, -18]]),
    ("divide", {"x": [1, 2], "other": [[10], [20]]}, [[0.1, 0.2], [0.05, 0.1]]),
    ("multiply", {"x": [1, 2], "other": [10, 20]}, [10, 40]),
    ("multiply", {"x": [1, 2], "other": [[10], [20]]}, [[10, 20], [20, 40]]),
    ("concat", {"xs": [[[1, 2]], [[3, 4]]], "dim": 1}, [[1, 2, 3, 4]]),
    ("dropout", {"x": [1, 2], "training": False, "rng": 0}, [1, 2]),
    ("dropout", {"x": [1, 2], "p": 1.0, "rng": 0}, [0, 0]),
    ("stochastic_depth", {"x": [1, 2], "p": 0.5, "training": False, "rng": 0}, [1, 2]),
    ("stochastic_depth", {"x": [1, 2], "p": 1.0, "rng": 0}, [0, 0]),
    ("dropout1d", {"x": [[1, 2]], "training": False, "rng": 0}, [[1, 2]]),
    ("dropout2d", {"x": SQUARE, "p": 1.0, "rng": 0}, [[[0, 0], [0, 0]]]),
    ("dropout3d", {"x": [SQUARE], "p": 0.0, "rng": 0}, [SQUARE]),
    ("local_response_norm", {"x": [[1, 2, 3]], "size": 2, "alpha": 2, "beta": 1, "k": 0}, [[1, 0.4, 3 / 13]]),
    ("layer_norm", {"x": [[1, 3], [3, 1]], "normalized_shape": 2}, [[-HALF, HALF], [HALF, -HALF]]),
    ("group_norm", {"x": [[1, 3]], "num_groups": 1, "weight": [2, 2], "bias": [0, 1]}, [[-2 * HALF, 1 + 2 * HALF]]),
    ("cross_entropy", {"x": [[0, math.log(3)]], "target": [1]}, math.log(4 / 3)),
    ("cross_entropy", {"x": [[0, 0], [9, 9]], "target": [1, -100]}, math.log(2)),
    ("cross_entropy", {"x": [[0, 0]], "target": [[0.5, 0.5]], "weight": [1.0, 3.0]}, 2 * math.log(2)),
    ("cross_entropy", {"x": [0, math.log(3)], "target": 1, "label_smoothing": 1.0}, math.log(4) - math.log(3) / 2),
    ("nll_loss", {"x": [[-1, -2], [-3, -4]], "target": [0, 1], "weight": [1.0, 3.0]}, 13 / 4),
    ("nll_loss", {"x": [[-1, -2], [-3, -4]], "target": [0, 1], "reduction": "none"}, [1, 4]),
    ("mse_loss", {"x": [1.0, 5.0], "target": [0, 2]}, 5),
    ("l1_loss", {"x": [1.0, 5.0], "target": [2, 2], "reduction": "sum"}, 4),
    ("huber_loss", {"x": [1.0, 5.0], "target": [0, 2], "delta": 2}, (0.5 + 2 * (3 - 1)) / 2),
    ("binary_cross_entropy_with_logits", {"x": [0, 1000], "target": [1, 0]}, (math.log(2) + 1000) / 2),
    ("binary_cross_entropy_with_logits", {"x": [0], "target": [1], "pos_weight": [3], "weight": [2]}, 6 * math.log(2)),
]
"""Name of the op, its arguments (lists are arrays), and y."""


@pytest.mark.parametrize(("name", "arguments", "wanted"), BY_HAND, ids=[f"{i}-{c[0]}" for i, c in enumerate(BY_HAND)])
def test_reference_agrees_with_results_by_hand(name: str, arguments: dict[str, Any], wanted: Any) -> None:
    def array(argument: str, value: Any) -> Any:
        if argument in ("xs",):
            return [np.array(one, dtype=float) for one in value]
        return np.array(value) if argument in OPS[name].arrays else value

    y = getattr(reference, name)(**{argument: array(argument, value) for argument, value in arguments.items()})
    np.testing.assert_allclose(y, wanted, rtol=1e-13, atol=1e-13)


def test_batch_norm_moves_the_statistics_by_hand() -> None:
    x, mean, var = np.array([[1.0], [3.0]]), np.array([10.0]), np.array([20.0])
    y, new_mean, new_var = reference.batch_norm(x, mean, var, training=True, momentum=0.5)
    np.testing.assert_allclose(y, [[-HALF], [HALF]])
    assert (new_mean, new_var) == (6.0, 11.0)  # the unbiased variance of 1, 3 is 2
    y, new_mean, new_var = reference.batch_norm(x, np.array([2.0]), np.array([1.0]))
    np.testing.assert_allclose(y, [[-HALF], [HALF]])
    assert (new_mean, new_var) == (2.0, 1.0)


def test_instance_norm_moves_the_statistics_by_hand() -> None:
    x, mean, var = np.array([[[1.0, 3.0]], [[6.0, 6.0]]]), np.array([10.0]), np.array([20.0])
    y, new_mean, new_var = reference.instance_norm(x, mean, var, momentum=0.5)
    np.testing.assert_allclose(y, [[[-HALF, HALF]], [[0, 0]]])
    assert (new_mean, new_var) == (7.0, 10.5)  # means of (6, 8), and of (11, 10)
    y, new_mean, new_var = reference.instance_norm(x, np.array([2.0]), np.array([1.0]), use_input_stats=False)
    np.testing.assert_allclose(y[0], [[-HALF, HALF]])
    assert (new_mean, new_var) == (2.0, 1.0)


def test_every_reference_is_worked_out_by_hand() -> None:
    assert set(OPS) - {name for name, _, _ in BY_HAND} == {"batch_norm", "instance_norm"}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch says so, once
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_reference_agrees_with_pytorch(family: Callable[[], st.SearchStrategy[Call]]) -> None:
    torch = pytest.importorskip("torch")

    @settings(max_examples=20)
    @given(family())
    def agree(call: Call) -> None:
        arrays = call.draw(np.random.default_rng(call.seed))
        wanted, _ = call.in_torch(torch, arrays)
        y = getattr(reference, call.name)(**arrays, **call.options)
        y = y[0] if type(y) is tuple else y
        np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-9, atol=1e-9)

    agree()
