"""The named networks by the size of their images, and torchvision's networks of the same names."""

import functools
from typing import Any

import pytest

from xcnn import models

__all__ = ["IMAGENET", "LARGE", "SMALL", "torchvision_network", "without_dropout"]

SMALL = [name for name, entry in models.MODELS.items() if max(entry.shape[1:]) <= 32]
"""Those that are quick enough for every test."""

IMAGENET = [name for name, entry in models.MODELS.items() if entry.shape == (3, 224, 224)]

LARGE = [name for name in models.MODELS if name not in SMALL]

ARGUMENTS: dict[str, dict[str, Any]] = {"googlenet": {"aux_logits": False, "init_weights": True}}


def torchvision_network(name: str, classes: int = 1000, drawn: bool = False) -> Any:
    """Return torchvision's network of a name, or skip the test if there is none.

    Unless its weights are drawn, it is on the device `meta`, where they take no memory.
    """
    torch = pytest.importorskip("torch")
    build = OTHERS.get(name) or getattr(pytest.importorskip("torchvision").models, name, None)
    if build is None:
        pytest.skip(f"torchvision has no {name}")
    with torch.device("cpu" if drawn else "meta"):
        network = build(num_classes=classes, **ARGUMENTS.get(name, {}))
    for module in network.modules():
        if isinstance(module, torch.nn.Hardsigmoid):  # PyTorch's own gradient takes float32's 1/6 in float64 too
            module.forward = lambda x: torch.nn.functional.relu6(x + 3) / 6
    return network


def without_dropout(network: Any) -> Any:
    """Set the probability of dropout and of stochastic depth to 0 in a network of xcnn or PyTorch, and return it."""
    modules = network.modules()
    for module in dict(modules).values() if hasattr(network, "reset_parameters") else modules:
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    return network


def efficientnet_lite0(num_classes: int) -> Any:
    """Return torchvision's EfficientNet-B0 with ReLU6, without squeeze-and-excitation and padded as in TensorFlow."""
    torch = pytest.importorskip("torch")
    room = pytest.importorskip("torchvision").models.efficientnet
    rows = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3)]
    rows += [(6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1)]
    block = functools.partial(room.MBConv, se_layer=lambda *_, **__: torch.nn.Identity())
    norm = functools.partial(torch.nn.BatchNorm2d, eps=0.001, momentum=0.01)
    stages = [room.MBConvConfig(*row, block=block) for row in rows]
    network = room.EfficientNet(stages, 0.2, num_classes=num_classes, norm_layer=norm)

    def pad(conv: Any, inputs: Any) -> Any:
        sizes = inputs[0].shape[2:]
        h, w = (max((-(-size // 2) - 1) * 2 + k - size, 0) for size, k in zip(sizes, conv.kernel_size, strict=True))
        return torch.nn.functional.pad(inputs[0], (w // 2, w - w // 2, h // 2, h - h // 2))

    for module in list(network.modules()):
        if isinstance(module, room.MBConv):
            module.block = torch.nn.Sequential(*(m for m in module.block if not isinstance(m, torch.nn.Identity)))
        elif isinstance(module, torch.nn.SiLU):
            module.forward = torch.nn.functional.relu6
        elif isinstance(module, torch.nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(pad)
    return network


OTHERS = {"efficientnet_lite0": efficientnet_lite0}
"""Networks that torchvision does not have, made of its parts."""
