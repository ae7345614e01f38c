"""`Optimizer`: parameter groups with their options, the state of each parameter, and saving both.

An update rule is a subclass that gives `_update`, which sees many parameters at once, so that a kernel may update them
in one go (see `rules.py`). Its options are the keyword arguments that it hands to `Optimizer.__init__`, and each option
has one line in `_OPTIONS`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from xcnn._array import Array, namespace_of
from xcnn._check import flag, number
from xcnn.devices import like, to_numpy
from xcnn.errors import CheckpointError, DtypeError, ShapeError, UsageError, unknown
from xcnn.optim._check import parameters
from xcnn.parameter import Parameter

__all__ = ["Optimizer"]


def _in(interval: str) -> Callable[[str, str, Any], float]:
    return lambda caller, name, value: number(caller, name, value, interval)


def _betas(caller: str, name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UsageError(f"{caller}: {name} must be two numbers, got {value!r}")
    return number(caller, f"{name}[0]", value[0], "[0, 1)"), number(caller, f"{name}[1]", value[1], "[0, 1)")


# What each option must be, whichever rule has it.
_OPTIONS: dict[str, Callable[[str, str, Any], Any]] = {
    "lr": _in("[0, inf)"),
    "initial_lr": _in("[0, inf)"),  # left in a group by the schedules
    "momentum": _in("[0, 1]"),
    "dampening": _in("[0, 1]"),
    "weight_decay": _in("[0, inf)"),
    "nesterov": flag,
    "betas": _betas,
    "eps": _in("[0, inf)"),
    "alpha": _in("[0, 1)"),
    "centered": flag,
}


_Call = tuple[dict[str, Any], list[Parameter], list[Array], list[Array], list[dict[str, Any]]]
"""A group and some of its parameters, with their data, gradients and states."""


class Optimizer:
    """Base of the update rules.

    Parameters
    ----------
    params : an iterable of Parameter; or of dicts, the parameter groups, each with its parameters under `"params"` and
        any options that differ from the defaults: `{"params": biases, "weight_decay": 0}`.
    **defaults : the rule's options and their values for groups that do not say otherwise.

    Attributes
    ----------
    param_groups : list of dicts with the key `"params"` and every option. Schedules write `lr` here; so may you.
    state : what the rule remembers of each parameter, by Parameter; filled by the first step that changes it.

    Raises
    ------
    UsageError
        For no parameters, a thing that is no Parameter, a Parameter given twice, and unknown or senseless options.
    """

    def __init__(self, params: Iterable[Parameter] | Iterable[Mapping[str, Any]], **defaults: Any) -> None:
        self._name = type(self).__name__
        self.defaults = self._options(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Parameter, dict[str, Any]] = {}
        groups: Any = list(params) if isinstance(params, Iterable) and not isinstance(params, Mapping | str) else params
        if isinstance(groups, list) and groups and all(isinstance(group, Mapping) for group in groups):
            for group in groups:
                self.add_param_group(group)
        else:
            self.add_param_group({"params": groups})

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a dict with parameters under `"params"` and any options that differ from the defaults."""
        options = dict(group)
        if "params" not in options:
            raise UsageError(f"{self._name}: a parameter group needs the key 'params', got {sorted(options)}")
        added = parameters(self._name, options.pop("params"))
        seen = {parameter for other in self.param_groups for parameter in other["params"]}
        for parameter in added:
            if parameter in seen:
                raise UsageError(f"{self._name}: {parameter!r} is given twice; a parameter belongs to one group, once")
            seen.add(parameter)
        for name in options:
            if name not in self.defaults:
                raise unknown(f"{self._name} option", name, self.defaults)
        self.param_groups.append({"params": added, **self._options({**self.defaults, **options})})

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check a group's options; rules whose options depend on each other extend it."""
        return {name: _OPTIONS[name](self._name, name, value) for name, value in options.items()}

    def _update(
        self, data: list[Array], grads: list[Array], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> Iterable[Array]:
        """Give the new value of one parameter after the other, in its array or a new one.

        A generator is best: if memory runs out, the parameters that it has come to are updated and the others are not.

        Parameters
        ----------
        data : of the parameters, at least one; all of one library, dtype and device. Rules may change the list.
        grads : of the same shapes and dtype. Rules may change the list.
        states : of each parameter, to keep in it what the next step needs; all have the same names, and the same `step`
            if any.
        group : the options.
        """
        raise NotImplementedError(f"{self._name} gives no _update(data, grads, states, group)")

    def step(self) -> None:
        """Update every parameter that has a gradient.

        Raises
        ------
        ShapeError, DtypeError
            If a gradient has another shape or dtype than its parameter; nothing is updated then.
        """
        for group, alike, data, grads, states in self._calls():
            dtype = data[0].dtype
            for state in states:
                for name, entry in state.items():
                    if getattr(entry, "dtype", dtype) != dtype:  # the model was given another dtype
                        state[name] = namespace_of(entry).astype(entry, dtype)
            for parameter, new in zip(alike, self._update(data, grads, states, group), strict=True):
                parameter.data = new
                parameter.updates += 1

    def _calls(self) -> list[_Call]:
        """Check every gradient and return what to call `_update` with."""
        calls: list[_Call] = []
        for group in self.param_groups:
            kinds: list[Any] = []  # of this group's calls, the last of all; no dict: CuPy's devices cannot be hashed
            last: Any = None
            for parameter in group["params"]:
                grad, data = parameter.grad, parameter.data
                if grad is None:
                    continue
                dtype = data.dtype
                if grad.shape != data.shape:
                    raise ShapeError(f"{self._name}: the gradient of {parameter!r} has shape {tuple(grad.shape)}")
                if grad.dtype != dtype:
                    raise DtypeError(f"{self._name}: the gradient of {parameter!r} is {grad.dtype}, it is {dtype}")
                state = self.state.setdefault(parameter, {})
                # JAX's tracers have no device.
                kind = (type(data), dtype, getattr(data, "device", None), state.get("step"), *state)
                if kind != last:
                    last = kind
                    if kind in kinds:
                        call = calls[kinds.index(kind) - len(kinds)]
                    else:
                        kinds.append(kind)
                        calls.append(call := (group, [], [], [], []))
                    _, alike, arrays, grads, states = call
                alike.append(parameter)
                arrays.append(data)
                grads.append(grad)
                states.append(state)
        return calls

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _parameters(self) -> list[Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return options and state as plain data.

        Returns
        -------
        `{"state": {index: {name: host array or number}}, "param_groups": [{option: value, "params": [index, ...]}]}`,
        where parameters are numbered through all groups.
        """
        numbered = {parameter: index for index, parameter in enumerate(self._parameters())}
        state = {
            numbered[parameter]: {
                name: value if isinstance(value, int) else to_numpy(value) for name, value in entry.items()
            }
            for parameter, entry in self.state.items()
            if entry
        }
        groups = [{**group, "params": [numbered[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over options and state; arrays go to the library, device and dtype of their parameter.

        Nothing is changed where an error is raised.

        Parameters
        ----------
        state : what `state_dict` of the same rule gave, for parameters of the same shapes in the same groups. It may
            have been through JSON, which makes strings of indices and lists of tuples.

        Raises
        ------
        CheckpointError
            If groups, options or shapes are others than here.
        """
        groups, parameters = self._loaded_groups(state.get("param_groups", ())), self._parameters()
        entries: dict[Parameter, dict[str, Any]] = {}
        for key, saved in state.get("state", {}).items():
            index = int(key)
            if not 0 <= index < len(parameters):
                raise CheckpointError(f"{self._name}: the state is of parameter {index}, here are {len(parameters)}")
            parameter = parameters[index]
            for name, value in saved.items():
                if name == "step":
                    if not isinstance(value, int) or not 0 <= value < 2**53:
                        raise CheckpointError(f"{self._name}: step of parameter {index} is {value!r}")
                elif isinstance(value, int) or np.shape(value) != tuple(parameter.data.shape):
                    came = f"{name} of parameter {index} has shape {np.shape(value)}"
                    raise CheckpointError(f"{self._name}: {came}, its {parameter!r}")
            entries[parameter] = {
                name: value if isinstance(value, int) else like(np.asarray(value), parameter.data)
                for name, value in saved.items()
            }
        self.state = entries
        for group, options in zip(self.param_groups, groups, strict=True):
            group.update(options)

    def _loaded_groups(self, saved: Any) -> list[dict[str, Any]]:
        """Check the groups of a state against those here and return their options."""
        have, came = (
            [len(group["params"]) for group in self.param_groups],
            [len(group.get("params", ())) for group in saved],
        )
        if have != came:
            raise CheckpointError(f"{self._name}: the state has groups of {came} parameters, here are groups of {have}")
        groups = [{name: value for name, value in group.items() if name != "params"} for group in saved]
        for group in groups:
            if group.keys() - {"initial_lr"} != self.defaults.keys():
                raise CheckpointError(
                    f"{self._name}: the state has the options {', '.join(group)}, not {', '.join(self.defaults)}; "
                    "is it of another optimizer?"
                )
        return [self._options(group) for group in groups]
