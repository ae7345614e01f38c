"""The table of attributions by name, which commands and pages offer."""

from collections.abc import Callable
from typing import Any

from xcnn.explain.cam import grad_cam, grad_cam_plus_plus
from xcnn.explain.gradients import (
    gradient_times_input,
    guided_backprop,
    input_gradient,
    integrated_gradients,
    smooth_grad,
)
from xcnn.explain.occlusion import occlusion

__all__ = ["ATTRIBUTIONS"]

ATTRIBUTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        input_gradient,
        gradient_times_input,
        smooth_grad,
        integrated_gradients,
        guided_backprop,
        grad_cam,
        grad_cam_plus_plus,
        occlusion,
    )
}
"""The attributions: functions `(model, x, target=None)` that return an array of the shape of x, or (n, h, w)."""
