"""A network in one line."""

import itertools
from typing import Any

from xcnn import nn

__all__ = ["sketch"]


def sketch(module: Any) -> str:
    """Return a network in one line: layers in order with their main numbers, and equal neighbours once.

    A convolution has its kernel and its number of outputs, then the stride after `/`, the dilation after `@` and the
    groups after `g`. `a | b` are the ways of a block that are added or joined.

    Examples
    --------
    >>> from xcnn import nn
    >>> conv = [nn.Conv2d(8, 8, 3, 2, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU()]
    >>> sketch(nn.Sequential(*conv, nn.Residual(nn.Conv2d(8, 8, 1)), nn.Flatten(), nn.Linear(8, 2)))
    'conv2d 3x3 8 /2 g8, batchnorm2d, relu, add(conv2d 1x1 8 | x), flatten, linear 2'
    """
    if isinstance(module, nn.Sequential):
        runs = [(text, len([*equal])) for text, equal in itertools.groupby(map(sketch, module))]
        return ", ".join(f"{count} x ({text})" if count > 1 else text for text, count in runs)
    if isinstance(module, nn.Residual | nn.Branches):
        *ways, (_, join, sources) = module._plan.nodes
        inputs = [sketch(way) for _, way, _ in ways] + (["x"] if "x" in sources else [])
        return f"{type(join).__name__.lower()}({' | '.join(inputs)})"
    if isinstance(module, nn.Graph):
        nodes = [
            (name, sketch(one), [inputs] if isinstance(inputs, str) else inputs)
            for name, one, inputs in module._plan.nodes
        ]
        return "; ".join(
            f"{name} = {text} of {', '.join(inputs)}" if inputs else f"{name}" for name, text, inputs in nodes
        ).join("()")
    if isinstance(module, nn.Apply):
        return str(module.op)
    words = [type(module).__name__.lower()]
    if (kernel := getattr(module, "kernel_size", None)) is not None:
        words.append("x".join(map(str, kernel)) if isinstance(kernel, tuple) else str(kernel))
    outputs = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
    words += [str(outputs)] if outputs else []
    for mark, key in (("/", "stride"), ("@", "dilation"), ("g", "groups"), ("g", "num_groups"), ("", "scale_factor")):
        value = getattr(module, key, None)
        value = value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
        words += [f"{mark}{value}"] if value not in (None, 1) else []
    return " ".join(words)
