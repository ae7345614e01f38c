"""The error budget of every op: how its error is scaled, and how large it may be.

The unit of error is `|error| / (eps * S)`: eps is the machine epsilon of the dtype under test, and S the size of what
the op rounds, for each element (`scales.py` computes it for every kind of op). The budget is

    units <= constant + growth * sqrt(K)

where K is the number of terms that an element sums. The error of a sum grows as K / 2 in the worst case (Higham's
gamma_K), and as sqrt(K) if roundings behave like random numbers (Higham, section 3.1; Higham and Mary 2019). Sums that
are added pairwise or in blocks have smaller errors.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn._check import choice
from xcnn._dispatch import portable
from xcnn.compare import scales
from xcnn.compare.scales import Arrays, Example, Scale, Scales, each
from xcnn.ops._op import OPS

__all__ = [
    "BUDGETS",
    "WIDE",
    "Budget",
    "Error",
    "Expected",
    "Reference",
    "budget",
    "call_op",
    "error",
    "errors",
    "reference",
    "tensors",
]

WIDE: dict[str, Any] = {"float32": np.float64, "float64": np.longdouble}
"""The dtype of the reference for each dtype under test. Its own error is negligible, except on platforms without a long
double, where float64 is compared with float64."""


@dataclass(frozen=True)
class Budget:
    """The budget of an op.

    Attributes
    ----------
    scale : function of `scales.py` that returns S and K of each result and gradient.
    constant, growth : parameters of the bound, in units.
    """

    scale: Callable[[Example], Scales]
    constant: float
    growth: float = 0.0

    def bound(self, terms: float) -> float:
        """Return the largest error, in units, that is allowed for a sum of `terms` terms."""
        return float(self.constant + self.growth * np.sqrt(terms))

    def __str__(self) -> str:
        growth = "" if self.growth == 1 else f"{self.growth:g} "
        return f"{self.constant:g} + {growth}√K" if self.growth else f"{self.constant:g}"


def _rows(names: str, budget: Budget) -> dict[str, Budget]:
    return dict.fromkeys(names.split(), budget)


BUDGETS: dict[str, Budget] = {
    **_rows("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", Budget(scales.products, 2, 2)),
    **_rows("linear add concat flatten unflatten pad multiply divide matmul", Budget(scales.products, 2, 2)),
    **_rows("subtract maximum minimum stochastic_depth", Budget(scales.selections, 2, 2)),
    **_rows("permute reshape slice channel_shuffle abs negative", Budget(scales.selections, 1)),
    **_rows("interpolate pixel_shuffle pixel_unshuffle", Budget(scales.products, 2, 2)),
    **_rows("avg_pool1d avg_pool2d avg_pool3d global_avg_pool mean", Budget(scales.means, 3, 0.5)),
    "sum": Budget(scales.products, 3, 0.5),
    **_rows("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", Budget(scales.means, 3, 0.5)),
    **_rows("max_pool1d max_pool2d max_pool3d", Budget(scales.selections, 3, 1)),
    **_rows("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", Budget(scales.selections, 3, 1)),
    **_rows("global_max_pool leaky_relu dropout dropout1d dropout2d dropout3d", Budget(scales.selections, 3)),
    **_rows("relu relu6 hardtanh", Budget(scales.selections, 1)),
    "hardsigmoid": Budget(scales.curves, 3),
    "prelu": Budget(scales.weighted, 3, 1),
    **_rows("elu celu selu sigmoid softplus softsign exp log sqrt power erf", Budget(scales.curves, 4)),
    "tanh": Budget(scales.curves, 20),  # JAX's tanh has an error of 3 eps, and the slope contains its square
    **_rows("silu hardswish mish", Budget(scales.gates, 4)),
    "gelu": Budget(scales.gates, 60),  # the same tanh; the slope of the gate multiplies it by 0.8 x (1 + 0.13 x^2)
    "batch_norm": Budget(scales.batch_norm, 6, 1),
    "layer_norm": Budget(scales.layer_norm, 6, 1),
    "group_norm": Budget(scales.group_norm, 6, 1),
    "instance_norm": Budget(scales.instance_norm, 6, 1),
    "local_response_norm": Budget(scales.response_norm, 6, 1),
    "softmax": Budget(scales.softmax, 6, 1),
    "log_softmax": Budget(scales.log_softmax, 6, 1),
    "cross_entropy": Budget(scales.cross_entropy, 6, 1),
    "nll_loss": Budget(scales.nll_loss, 4, 0.1),
    **_rows("mse_loss l1_loss huber_loss", Budget(scales.differences, 4, 0.1)),
    "binary_cross_entropy_with_logits": Budget(scales.binary_cross_entropy, 9, 0.1),
}
"""The budget of every op of this package by name; `budget` has one for all others.

The bounds are about three times the largest errors measured, in float32 and float64, with NumPy, array-api-strict,
PyTorch and JAX on one CPU. The ops ran on their samples (five seeds) and in sizes met in practice: convolutions of up
to 4,608 terms per pixel, matrices of 8,192 columns, 1,000 classes, maps of 32 x 32, norms of numbers far from zero and
close together. The inputs had mixed signs, or were all positive, which makes the errors of sums largest.
"""

_OTHERS = Budget(scales.largest, 10, 2)


def budget(op: str) -> Budget:
    """Return the budget of an op: `10 + 2 sqrt(K)` units if it is not in `BUDGETS`.

    S is then the largest magnitude of the tensor, the arguments and dy. K is the number of elements of all arguments,
    as no sum over them has more terms.
    """
    return BUDGETS.get(op, _OTHERS)


@dataclass(frozen=True)
class Expected:
    """The expected value of a result or gradient, with the scale and bound of its error."""

    value: np.ndarray
    scale: Scale
    bound: float


@dataclass(frozen=True)
class Reference:
    """A call of an op with numbers rounded to `dtype`, the dtype under test, and its expected results and gradients."""

    op: str
    dtype: str
    call: Example
    tensors: dict[str, Expected]


@dataclass(frozen=True)
class Error:
    """The error of one tensor.

    Attributes
    ----------
    tensor : name of the tensor: `y`, `dx`, `dweight`, ...
    units : largest |error| / (eps * S) of its elements; infinite for NaN, and for a wrong shape or dtype.
    bound : largest value of `units` that is allowed.
    ulp : largest |error| in spacings of floating-point numbers at the expected value; large where terms cancel.
    """

    tensor: str
    units: float
    bound: float
    ulp: float

    def __str__(self) -> str:
        return f"{self.units:.2f} of {self.bound:.1f} ({self.ulp:.0f})" + ("" if self.within else " OVER")

    @property
    def share(self) -> float:
        """The error as a share of its bound. Above 1, it exceeds its budget."""
        return self.units / self.bound

    @property
    def within(self) -> bool:
        """Whether the error is within its budget."""
        return self.units <= self.bound


def _round(array: Any, dtype: str) -> Any:
    """Round numbers to `dtype`, and return them in the reference's dtype; return labels unchanged."""
    return np.asarray(array).astype(dtype).astype(WIDE[dtype]) if array.dtype.kind == "f" else array


def call_op(name: str, options: Mapping[str, Any], arrays: Arrays) -> tuple[Any, Any]:
    """Call an op by name with copies of the options, as dropout advances its generator."""
    y, backward = OPS[name].function(**arrays, **copy.deepcopy(dict(options)))
    return y, backward


def reference(
    op: str,
    arrays: Arrays,
    options: Mapping[str, Any],
    dy: Callable[[tuple[int, ...]], np.ndarray],
    dtype: str,
    function: Callable[[Arrays], tuple[Any, Any]] | None = None,
) -> Reference:
    """Run an op forward and backward in the reference's dtype with the portable code.

    Parameters
    ----------
    op : name of the op.
    arrays : host arrays by name; those left out are None. Their numbers, and those of dy, are first rounded to `dtype`.
    options : options of the op.
    dy : function that returns the gradient of y for the shape of y.
    dtype : dtype under test.
    function : (arrays by name) -> (y, backward), called with exactly `arrays`; by default the op.

    Raises
    ------
    UsageError
        If there is no wider dtype for `dtype`.
    """
    choice("compare", "dtype", dtype, WIDE)
    if function is None:
        arrays = {name: arrays.get(name) for name in OPS[op].arrays}
        function = functools.partial(call_op, op, options)
    arrays = each(lambda array: _round(array, dtype), arrays)
    with portable(np):  # a kernel must not be its own reference
        y, backward = function(arrays)
        results = y if type(y) is tuple else (y,)
        gradient = _round(dy(results[0].shape), dtype)
        call = Example(function, arrays, dict(options), gradient, results, backward, backward(gradient))
        sizes = tensors(arrays, *budget(op).scale(call))
    values = tensors(arrays, results, call.gradients)
    wanted = {n: Expected(np.asarray(values[n]), s, budget(op).bound(s.terms)) for n, s in sizes.items() if n in values}
    return Reference(op, dtype, call, wanted)


def tensors(arrays: Arrays, results: Sequence[Any], gradients: Sequence[Any]) -> dict[str, Any]:
    """Return results and gradients by name: `y`, `y1`, `y2`, ... (or running statistics), and `d` + each argument.

    An argument that is a list of arrays has the gradients `dxs[0]`, `dxs[1]`, ... Tensors that are None are left out.
    """
    names = ["y", *(f"y{i}" for i in range(1, len(results)))]
    if len(results) == 3 and "running_mean" in arrays:
        names[1:] = ["running_mean", "running_var"]
    for name, value in arrays.items():
        names += [f"d{name}[{i}]" for i in range(len(value))] if isinstance(value, list) else [f"d{name}"]
    return {n: tensor for n, tensor in zip(names, (*results, *gradients), strict=True) if tensor is not None}


def errors(wanted: Reference, got: Mapping[str, Any]) -> list[Error]:
    """Return the errors of a device's results and gradients, host arrays by name."""
    return [error(name, want, got.get(name), wanted.dtype) for name, want in wanted.tensors.items()]


def error(name: str, want: Expected, got: Any, dtype: str) -> Error:
    """Return the error of a result or gradient, a host array; None stands for one that is missing."""
    if got is None or got.shape != want.value.shape or got.dtype != dtype:
        return Error(name, np.inf, want.bound, np.inf)
    info = np.finfo(dtype)
    same = (got == want.value) | (np.isnan(got) & np.isnan(want.value))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(got.astype(want.value.dtype) - want.value))
        # `tiny` allows for underflow, which no relative budget covers.
        units = off / (float(info.eps) * want.scale.size + float(info.tiny))
        ulp = off / np.spacing(np.abs(want.value).astype(dtype)).astype(want.value.dtype)
    return Error(name, _worst(units), want.bound, _worst(ulp))


def _worst(array: Any) -> float:
    return float(np.max(np.where(np.isnan(array), np.inf, array), initial=0.0))
