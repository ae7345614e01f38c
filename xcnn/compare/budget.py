"""The error budget of every op: the one table that says how its error is scaled and how large it may be.

The unit of error is `|error| / (eps * S)`: eps is the machine epsilon of the dtype under test, S the size of what the
op rounds, element by element (`scales.py` has it for every kind of op). The budget is

    units <= constant + growth * sqrt(K)

with K the number of terms that an element sums. In the worst case the error of a sum grows as K / 2 (Higham's gamma_K);
if roundings behave like random numbers, as sqrt(K) (Higham, section 3.1; Higham and Mary 2019). Libraries that add
pairwise or in blocks stay below that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn._dispatch import portable
from xcnn.compare import scales
from xcnn.compare.scales import Arrays, Example, Scale, Scales, each

__all__ = ["BUDGETS", "WIDE", "Budget", "Error", "Expected", "Reference", "budget", "errors", "reference", "tensors"]

WIDE: dict[str, Any] = {"float32": np.float64, "float64": np.longdouble}
"""The dtype of the reference for each dtype under test, whose own error is negligible. (On a platform without a long
double, float64 is compared with float64, and the error of the reference counts as the device's.)"""


@dataclass(frozen=True)
class Budget:
    """One row of the table.

    Attributes
    ----------
    scale : function that returns S and K of each result and gradient; see `scales.py`.
    constant, growth : the bound, in units.
    """

    scale: Callable[[Example], Scales]
    constant: float
    growth: float = 0.0

    def bound(self, terms: float) -> float:
        """Return the largest error, in units, allowed for a sum of so many terms."""
        return float(self.constant + self.growth * np.sqrt(terms))

    def __str__(self) -> str:
        growth = "" if self.growth == 1 else f"{self.growth:g} "
        return f"{self.constant:g} + {growth}√K" if self.growth else f"{self.constant:g}"


def _rows(names: str, budget: Budget) -> dict[str, Budget]:
    return dict.fromkeys(names.split(), budget)


BUDGETS: dict[str, Budget] = {
    **_rows("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", Budget(scales.products, 2, 2)),
    **_rows("linear add concat flatten pad", Budget(scales.products, 2, 2)),
    **_rows("avg_pool1d avg_pool2d avg_pool3d global_avg_pool", Budget(scales.means, 3, 0.5)),
    **_rows("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", Budget(scales.means, 3, 0.5)),
    **_rows("max_pool1d max_pool2d max_pool3d", Budget(scales.selections, 3, 1)),
    **_rows("global_max_pool leaky_relu dropout", Budget(scales.selections, 3)),
    "relu": Budget(scales.selections, 1),
    **_rows("elu sigmoid", Budget(scales.curves, 4)),
    "tanh": Budget(scales.curves, 20),  # JAX's hyperbolic tangent is off by 3 eps, which its square doubles
    "silu": Budget(scales.gates, 4),
    "gelu": Budget(scales.gates, 60),  # the same, times 0.8 x (1 + 0.13 x^2) in the slope of the tanh gate
    "batch_norm": Budget(scales.batch_norm, 6, 1),
    "layer_norm": Budget(scales.layer_norm, 6, 1),
    "group_norm": Budget(scales.group_norm, 6, 1),
    "instance_norm": Budget(scales.instance_norm, 6, 1),
    "softmax": Budget(scales.softmax, 6, 1),
    "log_softmax": Budget(scales.log_softmax, 6, 1),
    "cross_entropy": Budget(scales.cross_entropy, 6, 1),
    "nll_loss": Budget(scales.nll_loss, 4, 0.1),
    **_rows("mse_loss l1_loss", Budget(scales.differences, 4, 0.1)),
    "binary_cross_entropy_with_logits": Budget(scales.binary_cross_entropy, 9, 0.1),
}
"""The budget of every op of this package by name; `budget` has one for all others.

The numbers were measured and then multiplied by about three: the largest units of every op over its samples (five
seeds) and over sizes met in practice (convolutions of up to 4,608 terms per pixel, matrices of 8,192 columns, 1,000
classes, maps of 32 x 32, norms of numbers far from zero and close together; signed numbers and positive ones, whose
sums err most), in float32 and float64, on NumPy, array-api-strict, PyTorch and JAX, all on one CPU.
"""

_OTHERS = Budget(scales.largest, 10, 2)


def budget(op: str) -> Budget:
    """Return the budget of an op: `10 + 2 sqrt(K)` units if it is not in `BUDGETS`.

    S is then the largest magnitude of the tensor, the arguments and dy, and K the number of elements of all arguments:
    no sum over them is longer.
    """
    return BUDGETS.get(op, _OTHERS)


@dataclass(frozen=True)
class Expected:
    """One result or gradient of the reference run: its value, the scale of its error, and the bound."""

    value: np.ndarray
    scale: Scale
    bound: float


@dataclass(frozen=True)
class Reference:
    """One call in the reference's dtype: arrays and gradient of y rounded to `dtype`, and the expected tensors."""

    arrays: Arrays
    dy: np.ndarray
    tensors: dict[str, Expected]


@dataclass(frozen=True)
class Error:
    """The error of one tensor.

    Attributes
    ----------
    tensor : `y`, `dx`, `dweight`, ...
    units : the largest |error| / (eps * S) of its elements; infinite for NaN, and for a wrong shape or dtype.
    bound : the largest value of `units` that is allowed.
    ulp : the largest |error| in spacings of the floating-point numbers there; large where terms cancel.
    """

    tensor: str
    units: float
    bound: float
    ulp: float

    @property
    def share(self) -> float:
        """The share of the budget in use; above 1 it is exceeded."""
        return self.units / self.bound

    @property
    def within(self) -> bool:
        """Whether the budget holds."""
        return self.units <= self.bound


def _round(array: Any, dtype: str) -> Any:
    """Return numbers that `dtype` holds exactly, in the reference's dtype; labels as they are."""
    return np.asarray(array).astype(dtype).astype(WIDE[dtype]) if array.dtype.kind == "f" else array


def reference(
    op: str,
    function: Callable[[Arrays], tuple[Any, Any]],
    arrays: Arrays,
    options: Mapping[str, Any],
    dy: Callable[[tuple[int, ...]], np.ndarray],
    dtype: str,
) -> Reference:
    """Run one op forward and backward in the reference's dtype with the portable code, and return what to expect.

    Parameters
    ----------
    op : name of the op whose budget applies.
    function : (arrays by name) -> (y, backward).
    arrays : host arrays by name; their numbers, and those of dy, are first rounded to `dtype`.
    options : options on which the scale may depend; `function` knows them already.
    dy : function that returns the gradient of y for its shape.
    dtype : dtype under test.
    """
    arrays = each(lambda array: _round(array, dtype), arrays)
    with portable(np):  # a kernel under test must not be its own reference
        y, backward = function(arrays)
        results = y if type(y) is tuple else (y,)
        gradient = _round(dy(results[0].shape), dtype)
        example = Example(function, arrays, dict(options), gradient, results, backward, backward(gradient))
        sizes = tensors(arrays, *budget(op).scale(example))
    values = tensors(arrays, results, example.gradients)
    wanted = {n: Expected(np.asarray(values[n]), s, budget(op).bound(s.terms)) for n, s in sizes.items() if n in values}
    return Reference(arrays, gradient, wanted)


def tensors(arrays: Arrays, results: Sequence[Any], gradients: Sequence[Any]) -> dict[str, Any]:
    """Return results and gradients by name: `y`, `y1`, `y2`, ... (or running statistics), and `d` + each argument.

    An argument that is a list of arrays has the gradients `dxs[0]`, `dxs[1]`, ...; tensors that are None are left out.
    """
    names = ["y", *(f"y{i}" for i in range(1, len(results)))]
    if len(results) == 3 and "running_mean" in arrays:
        names[1:] = ["running_mean", "running_var"]
    for name, value in arrays.items():
        names += [f"d{name}[{i}]" for i in range(len(value))] if isinstance(value, list) else [f"d{name}"]
    return {n: tensor for n, tensor in zip(names, (*results, *gradients), strict=True) if tensor is not None}


def errors(wanted: Reference, got: Mapping[str, Any], dtype: str) -> list[Error]:
    """Return the errors of a device's results, host arrays by tensor name, against the expected ones."""
    return [_error(name, want, got.get(name), dtype) for name, want in wanted.tensors.items()]


def _error(name: str, want: Expected, got: Any, dtype: str) -> Error:
    if got is None or got.shape != want.value.shape or got.dtype != dtype:
        return Error(name, np.inf, want.bound, np.inf)
    info = np.finfo(dtype)
    same = (got == want.value) | (np.isnan(got) & np.isnan(want.value))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(got.astype(want.value.dtype) - want.value))
        # An error below the smallest normal number is underflow, which no relative budget covers.
        units = off / (float(info.eps) * want.scale.size + float(info.tiny))
        ulp = off / np.spacing(np.abs(want.value).astype(dtype)).astype(want.value.dtype)
    return Error(name, _worst(units), want.bound, _worst(ulp))


def _worst(array: Any) -> float:
    return float(np.max(np.where(np.isnan(array), np.inf, array), initial=0.0))
