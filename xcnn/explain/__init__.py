"""See what a network has learned: its arrays, gradients at the input, receptive fields, mistakes.

Everything works on any network and layer, on the arrays of any library. `xcnn.plots` draws the results.
"""

from xcnn.explain.attributions import ATTRIBUTIONS
from xcnn.explain.cam import grad_cam, grad_cam_plus_plus, upsample
from xcnn.explain.gradients import (
    completeness,
    gradient_times_input,
    guided,
    guided_backprop,
    input_gradient,
    integrated_gradients,
    smooth_grad,
)
from xcnn.explain.occlusion import occlusion
from xcnn.explain.target import Target
from xcnn.explain.trace import Call, Rule, Trace, trace

__all__ = [
    "ATTRIBUTIONS",
    "Call",
    "Rule",
    "Target",
    "Trace",
    "completeness",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_times_input",
    "guided",
    "guided_backprop",
    "input_gradient",
    "integrated_gradients",
    "occlusion",
    "smooth_grad",
    "trace",
    "upsample",
]
