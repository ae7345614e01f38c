"""The named networks by the size of their images, and torchvision's networks of the same names."""

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
    build = getattr(pytest.importorskip("torchvision").models, name, None)
    if build is None:
        pytest.skip(f"torchvision has no {name}")
    with torch.device("cpu" if drawn else "meta"):
        return build(num_classes=classes, **ARGUMENTS.get(name, {}))


def without_dropout(network: Any) -> Any:
    """Set the probability of dropout and of stochastic depth to 0 in a network of xcnn or PyTorch, and return it."""
    modules = network.modules()
    for module in dict(modules).values() if hasattr(network, "reset_parameters") else modules:
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    return network
