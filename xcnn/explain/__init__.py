"""See what a network has learned: its arrays, gradients at the input, receptive fields, mistakes.

Everything works on any network and layer, on the arrays of any library. `xcnn.plots` draws the results.
"""

from xcnn.explain.attributions import ATTRIBUTIONS
from xcnn.explain.cam import grad_cam, grad_cam_plus_plus, upsample
from xcnn.explain.embedding import EMBEDDINGS, embed, features
from xcnn.explain.gradients import (
    completeness,
    gradient_times_input,
    guided,
    guided_backprop,
    input_gradient,
    integrated_gradients,
    smooth_grad,
)
from xcnn.explain.maps import Filters, feature_maps, filters
from xcnn.explain.maximize import maximize_activation
from xcnn.explain.mistakes import ConfusedPair, certain_mistakes, confused_pairs
from xcnn.explain.occlusion import occlusion
from xcnn.explain.receptive import Field, receptive_fields
from xcnn.explain.statistics import LayerStatistics, activation_statistics
from xcnn.explain.target import Target
from xcnn.explain.trace import Call, Rule, Trace, trace

__all__ = [
    "ATTRIBUTIONS",
    "EMBEDDINGS",
    "Call",
    "ConfusedPair",
    "Field",
    "Filters",
    "LayerStatistics",
    "Rule",
    "Target",
    "Trace",
    "activation_statistics",
    "certain_mistakes",
    "completeness",
    "confused_pairs",
    "embed",
    "feature_maps",
    "features",
    "filters",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_times_input",
    "guided",
    "guided_backprop",
    "input_gradient",
    "integrated_gradients",
    "maximize_activation",
    "occlusion",
    "receptive_fields",
    "smooth_grad",
    "trace",
    "upsample",
]
