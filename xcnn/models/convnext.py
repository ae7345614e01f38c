"""ConvNeXt, with the `state_dict` keys of torchvision."""

from functools import partial

import numpy as np

from xcnn.models.blocks import Shape
from xcnn.nn import (
    GELU,
    Add,
    Apply,
    Conv2d,
    GlobalAvgPool,
    Graph,
    LayerNorm,
    Linear,
    Module,
    Multiply,
    Parameter,
    Sequential,
    StochasticDepth,
    init,
)

__all__ = ["convnext_tiny"]

_STAGES = ((96, 3), (192, 3), (384, 9), (768, 3))
"""Channels and number of blocks of each stage."""

_DROP = 0.1
"""Probability of `StochasticDepth` in the last block; it grows by equal steps from 0 in the first."""

_NORMAL = partial(init.normal, std=0.02)  # the published draw is cut off at 100 standard deviations


def convnext_tiny(shape: Shape, classes: int) -> Sequential:
    """Build ConvNeXt-T: 7x7 depthwise convolutions, and linear layers with GELU over the channels of each pixel.

    Notes
    -----
    Z. Liu et al., A ConvNet for the 2020s, 2022, arXiv:2201.03545.
    """
    features: list[Module] = []
    c, done, blocks = shape[0], 0, sum(count for _, count in _STAGES)
    for o, count in _STAGES:
        conv = partial(Conv2d, c, o, init=_NORMAL)
        features.append(Sequential({**_norm("0", c), "1": conv(2, 2)} if done else {"0": conv(4, 4), **_norm("1", o)}))
        features.append(Sequential(*(_block(o, _DROP * (done + i) / (blocks - 1)) for i in range(count))))
        c, done = o, done + count
    head = {"0": LayerNorm(c, eps=1e-6), "2": Linear(c, classes, init=_NORMAL)}
    return Sequential({"features": Sequential(*features), "avgpool": GlobalAvgPool(), "classifier": Sequential(head)})


def _norm(key: str, channels: int) -> dict[str, Module]:
    """Return layers by name that normalise over the channels of each pixel of maps (n, c, h, w)."""
    last, second = Apply("permute", dims=(0, 2, 3, 1)), Apply("permute", dims=(0, 3, 1, 2))
    return {"last": last, key: LayerNorm(channels, eps=1e-6), "second": second}


def _block(c: int, drop: float) -> Graph:
    body = Sequential(
        Conv2d(c, c, 7, padding=3, groups=c, init=_NORMAL),
        Apply("permute", dims=(0, 2, 3, 1)),
        LayerNorm(c, eps=1e-6),
        Linear(c, 4 * c, init=_NORMAL),
        GELU(),
        Linear(4 * c, c, init=_NORMAL),
        Apply("permute", dims=(0, 3, 1, 2)),
    )
    scale = Parameter(np.full((c, 1, 1), 1e-6, np.float32))
    return Graph(
        [
            ("layer_scale", scale, ()),
            ("block", body, "x"),
            ("scaled", Multiply(), ("layer_scale", "block")),
            ("stochastic_depth", StochasticDepth(drop), "scaled"),
            ("add", Add(), ("stochastic_depth", "x")),
        ]
    )
