"""Normalisation layers. Names, order and defaults are PyTorch's; weight and bias scale and shift at the end."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from xcnn import ops
from xcnn._array import full, namespace_of
from xcnn._check import integers
from xcnn.errors import ShapeError, UsageError
from xcnn.nn._layer import Layer, positive
from xcnn.nn._module import Module
from xcnn.ops._options import Integers
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
]


class _Affine(Layer):
    """A layer whose weight starts at one and whose bias at zero; either may be missing."""

    weight: Parameter | None
    bias: Parameter | None

    def _set(self, shape: tuple[int, ...], weight: bool, bias: bool) -> None:
        self.weight = Parameter(np.ones(shape, np.float32)) if weight else None
        self.bias = Parameter(np.zeros(shape, np.float32)) if bias else None

    def initialize(self, rng: np.random.Generator) -> None:
        """Draw the initial state; see `Module.initialize`."""
        _fill(self.weight, 1)
        _fill(self.bias, 0)


def _fill(slot: Parameter | Buffer | None, value: float) -> None:
    if slot is not None:
        slot.data = full(namespace_of(slot.data), slot.data.shape, value, slot.data)


class LayerNorm(_Affine, op=ops.layer_norm):
    """Normalise each sample over its last axes; see `ops.layer_norm`.

    Parameters
    ----------
    normalized_shape : sizes of the last axes, or of the last one.
    eps : added to the variance.
    elementwise_affine : whether there is a weight, of `normalized_shape`.
    bias : whether there is a bias too.

    Raises
    ------
    UsageError
        For sizes below 1.
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
        self.normalized_shape, self.eps, self.elementwise_affine = shape, eps, elementwise_affine
        self._set(shape, elementwise_affine, elementwise_affine and bias)


class GroupNorm(_Affine, op=ops.group_norm):
    """Normalise each sample over groups of channels (axis 1); see `ops.group_norm`.

    Parameters
    ----------
    num_groups : divides `num_channels`.
    num_channels : of x.
    eps : added to the variance.
    affine : whether there are a weight and a bias per channel.

    Raises
    ------
    UsageError
        For sizes below 1 and groups that do not divide the channels.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise UsageError(f"GroupNorm: num_groups must divide num_channels, got {num_groups} and {num_channels}")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self._set((num_channels,), affine, affine)


def _check_axes(layer: Module, x: Any, axes: tuple[str, ...]) -> None:
    if x.ndim not in {len(names.split()) for names in axes}:
        takes = " or ".join(f"({', '.join(names.split())})" for names in axes)
        raise ShapeError(f"{type(layer).__name__}: x must have axes {takes}, got shape {tuple(x.shape)}")


class _InstanceNorm(_Affine):
    _axes: ClassVar[tuple[str, ...]]

    def __init__(self, num_features: int, eps: float = 1e-5, *, affine: bool = False) -> None:
        positive(type(self).__name__, num_features=num_features)
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self._set((num_features,), affine, affine)

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        """Return y and its backward pass; see `Module.forward`."""
        _check_axes(self, x, self._axes)
        return super().forward(x, train)


class InstanceNorm2d(_InstanceNorm, op=ops.instance_norm):
    """Normalise each channel of each image (n, c, h, w) over its pixels; see `ops.instance_norm`.

    It has no running statistics, so its arguments are not in PyTorch's order: give `affine` by name.

    Parameters
    ----------
    num_features : channels of x.
    eps : added to the variance.
    affine : whether there are a weight and a bias per channel.

    Raises
    ------
    UsageError
        For sizes below 1.
    """

    _axes = ("n c h w",)


class InstanceNorm1d(_InstanceNorm, op=ops.instance_norm):
    """Normalise each channel of each signal (n, c, w): `InstanceNorm2d` with one axis, arguments too."""

    _axes = ("n c w",)


class InstanceNorm3d(_InstanceNorm, op=ops.instance_norm):
    """Normalise each channel of each volume (n, c, d, h, w): `InstanceNorm2d` with three axes, arguments too."""

    _axes = ("n c d h w",)


class _BatchNorm(_Affine):
    _axes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        positive(type(self).__name__, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self._set((num_features,), affine, affine)
        tracked = track_running_stats
        self.running_mean = Buffer(np.zeros(num_features, np.float32)) if tracked else None
        self.running_var = Buffer(np.ones(num_features, np.float32)) if tracked else None
        self.num_batches_tracked = Buffer(np.zeros((), np.int64)) if tracked else None

    def initialize(self, rng: np.random.Generator) -> None:
        """Draw the initial state; see `Module.initialize`."""
        super().initialize(rng)
        _fill(self.running_mean, 0)
        _fill(self.running_var, 1)
        _fill(self.num_batches_tracked, 0)

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        """Return y and its backward pass; see `Module.forward`."""
        _check_axes(self, x, self._axes)
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is None or var is None or count is None:
            (y, _, _), backward = self.call_op(x, training=True, momentum=0.0)
            return y, backward
        momentum = self.momentum
        if momentum is None:  # makes the running statistics the plain mean over all batches
            momentum = 1 / (int(count.data) + 1) if train else 0.0
        (y, new_mean, new_var), backward = self.call_op(x, training=train, momentum=momentum)
        if train:
            mean.data, var.data, count.data = new_mean, new_var, namespace_of(x).asarray(count.data + 1)
        return y, backward


class BatchNorm2d(_BatchNorm, op=ops.batch_norm):
    """Normalise each channel of images (n, c, h, w) over the batch; see `ops.batch_norm`.

    In training it uses the statistics of the batch and moves its running ones towards them; in inference it uses the
    running ones.

    Parameters
    ----------
    num_features : channels of x.
    eps : added to the variance.
    momentum : how far the running statistics move per batch; None makes them the mean over all batches.
    affine : whether there are a weight and a bias per channel.
    track_running_stats : whether there are running statistics; without, those of the batch are always used.

    Raises
    ------
    UsageError
        For sizes below 1.
    """

    _axes = ("n c h w",)


class BatchNorm1d(_BatchNorm, op=ops.batch_norm):
    """Normalise each feature (n, c), or channel of signals (n, c, w), over the batch: as `BatchNorm2d`."""

    _axes = ("n c", "n c w")


class BatchNorm3d(_BatchNorm, op=ops.batch_norm):
    """Normalise each channel of volumes (n, c, d, h, w) over the batch: `BatchNorm2d` with three spatial axes."""

    _axes = ("n c d h w",)
