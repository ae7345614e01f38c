"""Networks of torchvision, written by both of PyTorch's exporters: what they compute here, and their gradients.

    python tests/onnx_torch.py                         # needs torch, torchvision and onnxscript; takes minutes
    python tests/onnx_torch.py --models resnet18 --exporters dynamo

The weights are random, of a scale that keeps scores near 1. PyTorch computes in float64, and so does the graph from the
file. Gradients are compared for the input, and for all parameters that have a name and numbers of the network:
exporters fold batch norms into convolutions, and give products with a matrix new names.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.onnx import load

__all__ = ["Errors", "calibrated", "export"]

MODELS = (
    "resnet18 alexnet squeezenet1_1 densenet121 googlenet mobilenet_v2 mobilenet_v3_small shufflenet_v2_x1_0 "
    "efficientnet_b0 convnext_tiny"
)
BOUND = 1e-4
"""The largest error of scores and gradients; the exporters fold and write constants in float32."""


def calibrated(model: Any, x: Any) -> Any:
    """Give a network random weights, and batch norms the statistics of x; return it for inference."""
    import torch

    rng = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if p.ndim > 1 and not name.endswith("layer_scale"):
            p.data = torch.randn(p.shape, generator=rng) * (2 / p[0].numel()) ** 0.5
        elif name.endswith("bias"):
            p.data = torch.randn(p.shape, generator=rng) * 0.2
        else:
            p.data = torch.rand(p.shape, generator=rng) * 0.5 + 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def export(model: Any, x: Any, path: Path, dynamo: bool) -> Path:
    """Write a network with one of PyTorch's exporters."""
    import torch

    if dynamo:
        options: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("N", min=1)},)}
    else:  # PRESERVE keeps the batch norms
        axes = {"x": {0: "N"}, "y": {0: "N"}}
        options = {"dynamic_axes": axes, "training": torch.onnx.TrainingMode.PRESERVE, "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), path, dynamo=dynamo, input_names=["x"], output_names=["y"], verbose=False, **options
        )
    return path


class Errors:
    """How a graph from a file and the network of PyTorch differ, relative to the norm of what PyTorch gives.

    Attributes
    ----------
    y, dx : the errors of the scores, and of the gradient of the input.
    weights : the largest error of the gradient of a parameter.
    compared, parameters : how many parameters were compared, and how many the graph has.
    """

    def __init__(self, model: Any, graph: nn.Graph, x: np.ndarray) -> None:
        import torch

        model, rng = model.double(), np.random.default_rng(0)
        tx = torch.from_numpy(x).double().requires_grad_()
        ty = model(tx)
        dy = rng.standard_normal(ty.shape)
        ty.backward(torch.from_numpy(dy))
        for _, slot in (*graph.named_parameters(), *graph.named_buffers()):
            if slot.data.dtype == np.float32:
                slot.data = slot.data.astype(np.float64)
        y, backward = graph.forward(x.astype(np.float64), train=False)
        self.y, self.dx = _error(y, ty), _error(backward(dy), tx.grad)
        theirs, found = dict(model.named_parameters()), []
        ours = dict(graph.named_parameters())
        for name, parameter in ours.items():
            twin = theirs.get(name)
            if twin is not None and np.array_equal(parameter.data, twin.detach().numpy()):
                found.append(_error(parameter.grad, twin.grad))
        self.weights, self.compared, self.parameters = max(found, default=0.0), len(found), len(ours)

    def __str__(self) -> str:
        numbers = f"y {self.y:.0e}, dx {self.dx:.0e}, weights {self.weights:.0e}"
        return f"{numbers} ({self.compared} of {self.parameters} compared)"


def _error(came: Any, expected: Any) -> float:
    wanted = expected.detach().numpy()
    return float(np.linalg.norm(came - wanted) / np.linalg.norm(wanted))


def main() -> int:
    import torch
    import torchvision

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS.split()))
    parser.add_argument("--exporters", default="script,dynamo")
    options = parser.parse_args()
    good = True
    for name in options.models.split(","):
        more = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
        size = 224 if name == "alexnet" else 64
        rng = torch.Generator().manual_seed(0)
        build = getattr(torchvision.models, name)
        x = torch.randn(8, 3, size, size, generator=rng)[: 2 if size == 224 else 8]
        for exporter in options.exporters.split(","):
            model = calibrated(build(weights=None, **more), x)
            with tempfile.TemporaryDirectory() as folder:
                path = export(model, x[:2], Path(folder) / "model.onnx", exporter == "dynamo")
                found = Errors(model, load(path), x[:2].numpy())
            good = good and max(found.y, found.dx, found.weights) < BOUND
            print(f"{name} {exporter}: {found}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
