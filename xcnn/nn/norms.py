"""Normalisation layers. Names, order and defaults are those of PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, ClassVar

import numpy as np

from xcnn import ops
from xcnn._array import full, namespace_of
from xcnn._check import flag, integer, integers, number
from xcnn.errors import ShapeError, UsageError
from xcnn.nn._layer import Layer
from xcnn.nn._module import options
from xcnn.nn._weighted import filled
from xcnn.ops._options import Integers
from xcnn.ops.response_norm import check_options
from xcnn.parameter import Buffer, Parameter

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LocalResponseNorm",
]


class _Norm(Layer):
    """A layer whose weight starts at ones and whose bias starts at zeros; either may be None."""

    weight: Parameter | None
    bias: Parameter | None

    def _set(self, shape: tuple[int, ...], weight: bool, bias: bool) -> None:
        vars(self).pop("bias", None)  # an option of this name came first; in PyTorch's order the weight does
        self.weight = filled(Parameter, shape, 1) if weight else None
        self.bias = filled(Parameter, shape) if bias else None

    def initialize(self, rng: np.random.Generator) -> None:
        start = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
        for name, value in start.items():
            slot = getattr(self, name, None)
            if slot is not None:
                slot.data = full(namespace_of(slot.data), slot.data.shape, value, slot.data)


class LayerNorm(_Norm, op=ops.layer_norm):
    """Normalise each sample over its last axes; see `ops.layer_norm`.

    Parameters
    ----------
    normalized_shape : sizes of the last axes; an integer for one axis.
    eps : added to the variance.
    elementwise_affine : whether there is a weight, of `normalized_shape`.
    bias : whether there is also a bias.

    Raises
    ------
    UsageError
        If a size is below 1, or eps is out of range.
    """

    def __init__(
        self,
        normalized_shape: Integers,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        rank = len(normalized_shape) if isinstance(normalized_shape, Sequence) else 1
        shape = integers("LayerNorm", "normalized_shape", normalized_shape, rank)
        self.normalized_shape = shape
        self.elementwise_affine = flag("LayerNorm", "elementwise_affine", elementwise_affine)
        self.eps = number("LayerNorm", "eps", eps, "[0, inf)")
        self._set(shape, elementwise_affine, flag("LayerNorm", "bias", bias) and elementwise_affine)


@options
class GroupNorm(_Norm, op=ops.group_norm):
    """Normalise each sample over groups of channels (axis 1); see `ops.group_norm`.

    Parameters
    ----------
    num_groups : number of groups; it divides `num_channels`.
    num_channels : number of channels of x.
    eps : added to the variance.
    affine : whether there is a weight per channel.
    bias : whether there is also a bias.

    Raises
    ------
    UsageError
        If a number is below 1, the groups do not divide the channels, or eps is out of range.
    """

    num_groups: int
    num_channels: int
    eps: float = 1e-5
    affine: bool = True
    bias: Any = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        groups = integer("GroupNorm", "num_groups", self.num_groups)
        channels = integer("GroupNorm", "num_channels", self.num_channels)
        if channels % groups:
            raise UsageError(f"GroupNorm: num_groups must divide num_channels, got {groups} and {channels}")
        self.eps = number("GroupNorm", "eps", self.eps, "[0, inf)")
        flag("GroupNorm", "affine", self.affine)
        self._set((channels,), self.affine, flag("GroupNorm", "bias", self.bias) and self.affine)


@options
class _ChannelNorm(_Norm):
    """A layer that normalises channels by their own statistics or, in inference, by running ones if it has them."""

    _axes: ClassVar[dict[int, str]]
    """The axes that x may have, by number of axes."""

    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True
    bias: Any = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        name = type(self).__name__
        shape = (integer(name, "num_features", self.num_features),)
        self.eps = number(name, "eps", self.eps, "[0, inf)")
        self.momentum = None if self.momentum is None else number(name, "momentum", self.momentum, "[0, 1]")
        flag(name, "affine", self.affine)
        self._set(shape, self.affine, flag(name, "bias", self.bias) and self.affine)
        tracked = flag(name, "track_running_stats", self.track_running_stats)
        self.running_mean = filled(Buffer, shape) if tracked else None
        self.running_var = filled(Buffer, shape, 1) if tracked else None
        self.num_batches_tracked = filled(Buffer, (), 0, np.int64) if tracked else None

    def _updates(self) -> bool:
        """Return whether training updates the running statistics; frozen ones serve as in inference."""
        mean, var = self.running_mean, self.running_var
        return (mean is None or mean.trainable) and (var is None or var.trainable)

    def _check_axes(self, x: Any) -> None:
        if hasattr(x, "ndim") and x.ndim not in self._axes:
            takes = " or ".join(self._axes.values())
            raise ShapeError(f"{type(self).__name__}: x must have axes {takes}, got shape {tuple(x.shape)}")

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return self._forward(x, train)

    def _forward(self, x: Any, train: bool, **more: Any) -> tuple[Any, Callable[..., Any]]:
        (y, *results), backward = self.call_op(x, **self._given(x, train), **more)
        self._store(results, train)
        return y, backward

    def _store(self, results: Sequence[Any], train: bool) -> None:
        mean, var = self.running_mean, self.running_var
        if train and mean is not None and var is not None and self._updates():
            mean.data, var.data = results


@options
class _InstanceNorm(_ChannelNorm):
    affine: bool = False
    track_running_stats: bool = False

    def _forward(self, x: Any, train: bool, **more: Any) -> tuple[Any, Callable[..., Any]]:
        if self._batched(x):
            return super()._forward(x, train, **more)
        more = {name: value[None, ...] if name == "residual" else value for name, value in more.items()}
        y, backward = super()._forward(x[None, ...], train, **more)

        def backward_alone(dy: Any, need_dx: bool) -> Any:
            dx = backward(dy[None, ...], need_dx)
            if isinstance(dx, tuple):
                return tuple(None if one is None else one[0, ...] for one in dx)
            return None if dx is None else dx[0, ...]

        return y[0, ...], backward_alone

    def _batched(self, x: Any) -> bool:
        """Return whether x is no sample without a batch axis."""
        return getattr(x, "ndim", 0) != min(self._axes)

    def _given(self, x: Any, train: bool) -> dict[str, Any]:
        self._check_axes(x)
        own = (train and self._updates()) or self.running_mean is None
        return {"use_input_stats": own, "momentum": 0.0 if self.momentum is None else self.momentum}

    def _steady(self, x: Any) -> bool:
        return super()._steady(x) and self._batched(x)

    def _calls(self) -> tuple[str, dict[str, Any]] | None:
        name, _, options = self.bound()
        return name, options | {"use_input_stats": self.running_mean is None}


class InstanceNorm2d(_InstanceNorm, op=ops.instance_norm):
    """Normalise each channel of each image, (n, c, h, w) or (c, h, w), over its pixels; see `ops.instance_norm`.

    Parameters
    ----------
    num_features : number of channels of x.
    eps : added to the variance.
    momentum : share of a batch in the new running statistics, from 0 to 1. None leaves them unchanged, as in PyTorch;
        `num_batches_tracked` stays 0, also as in PyTorch.
    affine : whether there is a weight per channel.
    track_running_stats : whether there are running statistics, which inference then uses in place of the image's own.
    bias : whether there is a bias if there is a weight.

    Raises
    ------
    UsageError
        If num_features is below 1, or another argument is out of range.
    """

    _axes: ClassVar = {4: "(n, c, h, w)", 3: "(c, h, w)"}


class InstanceNorm1d(_InstanceNorm, op=ops.instance_norm):
    """Normalise each channel of each signal, (n, c, w) or (c, w): `InstanceNorm2d` with one spatial axis."""

    _axes: ClassVar = {3: "(n, c, w)", 2: "(c, w)"}


class InstanceNorm3d(_InstanceNorm, op=ops.instance_norm):
    """Normalise each channel of each volume, (n, c, d, h, w) or (c, d, h, w): see `InstanceNorm2d`."""

    _axes: ClassVar = {5: "(n, c, d, h, w)", 4: "(c, d, h, w)"}


class _BatchNorm(_ChannelNorm):
    def _calls(self) -> tuple[str, dict[str, Any]] | None:
        name, _, options = self.bound()
        return name, options | {"training": self.running_mean is None}

    def _given(self, x: Any, train: bool) -> dict[str, Any]:
        self._check_axes(x)
        train, count = train and self._updates(), self.num_batches_tracked
        options: dict[str, Any] = {"training": train or self.running_mean is None}
        if self.momentum is None:  # the running statistics become the mean of all batches
            options["momentum"] = 1 / (int(count.data) + 1) if train and count is not None else 0.0
        return options

    def _store(self, results: Sequence[Any], train: bool) -> None:
        super()._store(results, train)
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        if train and mean is not None and var is not None and count is not None and self._updates():
            count.data = namespace_of(count.data).asarray(count.data + 1)

    def _steady(self, x: Any) -> bool:
        return super()._steady(x) and self.momentum is not None


class BatchNorm2d(_BatchNorm, op=ops.batch_norm):
    """Normalise each channel of images (n, c, h, w) over the batch; see `ops.batch_norm`.

    Training uses the statistics of the batch and moves the running statistics towards them. Inference uses the running
    statistics.

    Parameters
    ----------
    num_features : number of channels of x.
    eps : added to the variance.
    momentum : share of a batch in the new running statistics, from 0 to 1. None makes them the mean of all batches.
    affine : whether there is a weight per channel.
    track_running_stats : whether there are running statistics; without them, inference uses those of the batch.
    bias : whether there is a bias if there is a weight.

    Raises
    ------
    UsageError
        If num_features is below 1, or another argument is out of range.
    """

    _axes: ClassVar = {4: "(n, c, h, w)"}


class BatchNorm1d(_BatchNorm, op=ops.batch_norm):
    """Normalise each feature (n, c), or each channel of signals (n, c, w), over the batch: see `BatchNorm2d`."""

    _axes: ClassVar = {2: "(n, c)", 3: "(n, c, w)"}


class BatchNorm3d(_BatchNorm, op=ops.batch_norm):
    """Normalise each channel of volumes (n, c, d, h, w) over the batch: `BatchNorm2d` with three spatial axes."""

    _axes: ClassVar = {5: "(n, c, d, h, w)"}


@options
class LocalResponseNorm(Layer, op=ops.local_response_norm):
    """Divide by a power of the mean square of `size` neighbouring channels; see `ops.local_response_norm`."""

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def __post_init__(self) -> None:
        checked = check_options("LocalResponseNorm", self.size, self.alpha, self.beta, self.k)
        self.size, self.alpha, self.beta, self.k = checked
