"""Pictures of results and of what a network has learned, as PNG or SVG.

Each function writes a file to `path`, a PNG or an SVG as its name ends, under a title if there is one, and returns the
path. `svg` returns a picture for a page instead. Matplotlib (extra `plots`) is imported when the first
picture is drawn.
"""

from xcnn.plots._figure import NoMatplotlibError, check, svg
from xcnn.plots.backward import (
    convolution_backward,
    linear_backward,
    pooling_backward,
    relu_backward,
    softmax_backward,
)
from xcnn.plots.findings import activation_statistics, certain_mistakes, confused_pairs, embedding
from xcnn.plots.images import (
    attributions,
    feature_maps,
    filters,
    maximized,
    network_maps,
    receptive_fields,
)
from xcnn.plots.network import network
from xcnn.plots.results import comparison, confusion, curves, lr_finder, prediction, search, speeds
from xcnn.plots.steps import convolution, pooling, relu, softmax

__all__ = [
    "NoMatplotlibError",
    "activation_statistics",
    "attributions",
    "certain_mistakes",
    "check",
    "comparison",
    "confused_pairs",
    "confusion",
    "convolution",
    "convolution_backward",
    "curves",
    "embedding",
    "feature_maps",
    "filters",
    "linear_backward",
    "lr_finder",
    "maximized",
    "network",
    "network_maps",
    "pooling",
    "pooling_backward",
    "prediction",
    "receptive_fields",
    "relu",
    "relu_backward",
    "search",
    "softmax",
    "softmax_backward",
    "speeds",
    "svg",
]
