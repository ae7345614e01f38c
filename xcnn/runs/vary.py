"""What a search varies, as text: `lr=1e-4..1e-1:log`, `batch_size=32,64,128`, `model_options.filters=4..32`."""

import contextlib
import dataclasses
import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from xcnn.errors import UsageError, unknown
from xcnn.runs.settings import SETTINGS, Config, check

__all__ = ["Variable", "varied", "with_values"]

_SHAPE = "expected NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"

_FIXED = {
    **dict.fromkeys(("dataset", "data_dir", "skip_broken", "validation"), "they are compared on the same images"),
    "seed": "it determines the images on which they are compared",
    "monitor": "they are compared by it",
    "device": "devices round differently",
    **dict.fromkeys(("workers", "checkpoint_every", "keep_checkpoints"), "no result depends on it"),
}  # fmt: skip
"""The settings that all trials of a search share, and why."""

_LOSS = ("label_smoothing", "class_weight")
"""The settings that change what the validation loss is."""

_OPTIONS = ("model_options", "opt_options")

_TYPES = {row.name: row.type for row in dataclasses.fields(Config)}


@dataclass(frozen=True)
class Variable:
    """A setting that a search varies, or an option of the network or the optimizer; either choices or a range.

    Attributes
    ----------
    name : the setting, or `model_options.NAME` or `opt_options.NAME`.
    choices : the values by their texts; empty for a range.
    low, high : the ends of a range, which belong to it; integers if only integers do.
    log : whether factors are equally likely in the range, not differences.
    """

    name: str
    choices: Mapping[str, Any] = field(default_factory=dict)
    low: float = 0
    high: float = 0
    log: bool = False

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={','.join(self.choices)}"
        return f"{self.name}={self.low!r}..{self.high!r}{':log' * self.log}"

    def value(self, drawn: Any) -> Any:
        """Return the value of what was drawn: the text of a choice, or a number of the range."""
        kind = type(self.low)
        if self.choices and isinstance(drawn, str) and drawn in self.choices:
            return self.choices[drawn]
        if not self.choices and type(drawn) in (int, kind) and self.low <= drawn <= self.high:
            return kind(drawn)
        raise UsageError(f"vary: {str(drawn)[:40]!r} is no value of {self}", setting="vary")


def varied(texts: Sequence[str], config: Config) -> tuple[Variable, ...]:
    """Return what texts such as `lr=1e-4..1e-1:log` vary in the settings, after checking every end and every choice.

    Values are written as on the command line, except that `+` is between several names, as in
    `augment=none,shift,shift+rotate`; `none` is no value.

    Raises
    ------
    UsageError
        If a text is malformed, a value is invalid, or a setting must be the same in all trials.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise UsageError(f"vary must be a list of texts such as 'lr=1e-4..1e-1:log', got {texts!r}", setting="vary")
    found: dict[str, Variable] = {}
    for text in texts:
        try:
            one = _parse(text)
            _allow(one, config)
            for value in one.choices.values() if one.choices else (one.low, one.high):
                with_values(config, {one.name: value})
        except UsageError as error:
            raise UsageError(f"vary: {error}", setting="vary") from None
        if one.name in found:
            raise UsageError(f"vary: {one.name} is given twice: {found[one.name]} and {one}", setting="vary")
        found[one.name] = one
    return tuple(found.values())


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return settings with other values, by the names of variables."""
    changed: dict[str, Any] = {}
    for name, value in values.items():
        setting, _, option = name.partition(".")
        if option:
            value = {**(changed.get(setting, getattr(config, setting)) or {}), option: value}
        changed[setting] = value
    return check(dataclasses.replace(config, **changed))


def _parse(text: Any) -> Variable:
    name, given, values = text.partition("=") if isinstance(text, str) else ("", "", "")
    name = name.strip().replace("-", "_")
    setting, dot, option = name.partition(".")
    if not given or not values.strip():
        raise UsageError(f"{_SHAPE}, got {text!r}")
    if setting not in SETTINGS:
        raise unknown("setting", setting, [name for name in SETTINGS if name not in _FIXED])
    if (setting in _OPTIONS) != bool(option) or (dot and not option):
        some = f"{setting}.NAME=..." if setting in _OPTIONS else f"{setting}=..."
        raise UsageError(f"{name} is no single value; name {some}")
    kind = _kind(setting)
    if ".." in values and kind in (int, float, dict):
        return _range(name, kind, values.strip())
    texts = map(str.strip, re.split(r",(?![^\[]*\])", values))  # the commas outside of lists
    choices = {choice: _choice(name, kind, choice) for choice in texts}
    if len(choices) < 2:
        raise UsageError(f"{name} has one value only, {values!r}; {_SHAPE}")
    return Variable(name, choices)


def _kind(setting: str) -> type:
    """Return the type of a setting that is not None."""
    hint: Any = _TYPES[setting]
    if get_origin(hint) is types.UnionType:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    found: type = get_origin(hint) or hint
    return found


def _range(name: str, kind: type, text: str) -> Variable:
    found = re.fullmatch(r"([^:]+?)\.\.([^:]+)(:log)?", text)
    if found is None:
        raise UsageError(f"{_SHAPE}, got {name}={text}")
    low, high = _number(name, found[1]), _number(name, found[2])
    if kind is float or (kind is dict and not (isinstance(low, int) and isinstance(high, int))):
        low, high = float(low), float(high)
    elif not (isinstance(low, int) and isinstance(high, int)):
        raise UsageError(f"{name} takes integers, got {text}")
    if not low < high:
        raise UsageError(f"the range of {name} must begin with its lower end, got {text}")
    if found[3] and low <= 0:
        raise UsageError(f"a logarithmic range must begin above 0, got {name}={text}")
    return Variable(name, low=low, high=high, log=bool(found[3]))


def _number(name: str, text: str) -> float:
    for read in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            number: float = read(text)
            if math.isfinite(number):
                return number
    raise UsageError(f"the ends of the range of {name} must be numbers, got {text!r}")


def _choice(name: str, kind: type, text: str) -> Any:
    """Return the value that a text stands for."""
    if not text:
        raise UsageError(f"a choice of {name} is empty; write none for no value")
    if kind is tuple:
        return () if text == "none" else tuple(text.split("+"))
    if text == "none":
        return None
    if kind in (int, float, bool, dict):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return text


def _allow(one: Variable, config: Config) -> None:
    """Refuse what makes the trials of a search incomparable."""
    if one.name in _FIXED:
        raise UsageError(f"{one.name} must be the same in all trials, as {_FIXED[one.name]}")
    if one.name in _LOSS and config.monitor == "val_loss":
        raise UsageError(f"{one.name} changes the loss by which the trials are compared; set monitor to val_accuracy")
