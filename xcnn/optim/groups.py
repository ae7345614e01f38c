"""Parameter groups by the names of the parameters: other learning rates or weight decay for a part of a network."""

from collections.abc import Mapping
from typing import Any

from xcnn._check import matching
from xcnn.errors import UsageError, explained
from xcnn.optim.optimizer import Group
from xcnn.parameter import Parameter

__all__ = ["param_groups"]


@explained
def param_groups(model: Any, patterns: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """Return the parameters of a model as groups, for any optimizer.

    Parameters
    ----------
    model : an `nn.Module`, or any object with its `named_parameters()`.
    patterns : the options of each group by a pattern of names, in which `*` stands for any characters, `?` for one and
        `[01]` for one of several. A parameter belongs to the first pattern that matches its name; those that none
        matches are the last group, with the options of the optimizer. A shared parameter has its first name.

    Raises
    ------
    UsageError
        If a pattern matches no parameter that is not taken by an earlier one, or an argument is not as above. The
        optimizer checks the options.

    Examples
    --------
    >>> from xcnn import nn, optim
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> groups = optim.param_groups(model, {"*.bias": {"weight_decay": 0}, "0.*": {"lr": 1e-4}})
    >>> [[parameter.data.shape for parameter in group["params"]] for group in groups]
    [[(4,), (2,)], [(4, 8)], [(2, 4)]]
    >>> optimizer = optim.AdamW(groups, lr=1e-3)
    """
    if not callable(getattr(model, "named_parameters", None)):
        raise UsageError(f"param_groups: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(patterns, Mapping):
        raise UsageError(f"param_groups: patterns must map patterns to options, got {type(patterns).__name__}")
    left: dict[str, Parameter] = dict(model.named_parameters())
    names = tuple(left)
    groups: list[Group] = []
    for pattern, options in patterns.items():
        if not isinstance(pattern, str) or not isinstance(options, Mapping) or "params" in options:
            raise UsageError(
                f"param_groups: a pattern and its options must be a string and a dict such as {{'lr': 0.01}}, got "
                f"{pattern!r}: {options!r}"
            )
        taken = [name for name in matching("param_groups", "parameter", pattern, names) if name in left]
        if not taken:
            raise UsageError(f"param_groups: all parameters that {pattern!r} matches belong to earlier patterns")
        groups.append({**options, "params": [left.pop(name) for name in taken]})
    return [*groups, {"params": list(left.values())}] if left or not groups else groups
