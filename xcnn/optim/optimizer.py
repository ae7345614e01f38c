"""`Optimizer`, the base class of the update rules: it holds, saves and loads the parameter groups and the state.

`docs/extending.md` has an example of a rule.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from xcnn._array import Array, is_array, namespace_of
from xcnn._check import flag, integer, number
from xcnn.devices import like, to_numpy
from xcnn.errors import CheckpointError, DtypeError, Explained, ShapeError, UsageError, making_sense, unknown
from xcnn.parameter import Parameter

__all__ = ["Group", "Optimizer", "Params", "States", "options_of", "parameters"]

Params = Iterable[Parameter] | Iterable[Mapping[str, Any]]  # parameters or groups
Group = dict[str, Any]  # the parameters of a group, under "params", and its options
States = list[dict[str, Any]]  # the state of each parameter


def options_of(rule: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of the arguments of a rule, with those of its base classes if it takes `**options`."""
    bases = rule.__mro__ if isinstance(rule, type) else ()
    inits = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)] or [rule]
    found: dict[str, Any] = {}
    for init in inits:
        parameters = inspect.signature(init).parameters
        found = {name: parameter.default for name, parameter in parameters.items()} | found
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found


class Optimizer(Explained):
    """Base class of the update rules.

    A subclass passes its options to `Optimizer.__init__` as keyword arguments and defines `update`, which takes many
    parameters at once so that a kernel can update them together. It may also set `intervals`, and override
    `check_options` and `state_shape`.

    Parameters
    ----------
    params : an iterable of Parameter, or of dicts, the parameter groups. A group has its parameters under `"params"`
        and any options that differ from the defaults: `{"params": biases, "weight_decay": 0}`.
    **defaults : the options of the rule, used by groups that do not set them.

    Attributes
    ----------
    intervals : the interval of each numeric option, such as `{"beta": "[0, 1)"}`. A subclass lists those it adds.
    param_groups : list of dicts with the key `"params"` and every option. Schedules set `lr` here, and you may too.
    state : the state of each parameter, by Parameter; empty before the first step.

    Raises
    ------
    UsageError
        If there are no parameters, an entry is not a Parameter, a Parameter occurs twice, or an option is unknown or
        outside its interval.
    """

    intervals: ClassVar[Mapping[str, str]] = {
        "lr": "[0, inf)",
        "initial_lr": "[0, inf)",  # schedules add it to groups
        "momentum": "[0, 1]",
        "dampening": "[0, 1]",
        "weight_decay": "[0, inf)",
        "betas": "[0, 1)",
        "eps": "[0, inf)",
        "alpha": "[0, 1)",
    }

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        bases = [vars(base).get("intervals", {}) for base in reversed(cls.__mro__)]
        cls.intervals = {name: interval for intervals in bases for name, interval in intervals.items()}

    def __init__(self, params: Params, **defaults: Any) -> None:
        self._name = type(self).__name__
        self.defaults = self.check_options(defaults)
        self.param_groups: list[Group] = []
        self.state: dict[Parameter, dict[str, Any]] = {}
        groups: Any = list(params) if isinstance(params, Iterable) and not isinstance(params, Mapping | str) else params
        if isinstance(groups, list) and groups and all(isinstance(group, Mapping) for group in groups):
            for group in groups:
                self.add_param_group(group)
        else:
            self.add_param_group({"params": groups})

    def update(self, data: list[Array], grads: list[Array], states: States, group: Group) -> Iterable[Array]:
        """Return the new value of each parameter, in the same order. Every rule defines this method.

        Prefer a generator: if memory runs out, the parameters yielded so far are updated and the others are not. A new
        value has the shape and dtype of the old one, and may be the same array, changed in place.

        Parameters
        ----------
        data : the parameters' arrays, at least one; all of one library, dtype and device.
        grads : the gradients, of the same shapes and dtype.
        states : a dict for each parameter, empty at first, for the arrays and Python numbers that the next step needs.
            Arrays have the dtype of the parameter. All dicts of a call have the same keys, and the same `step` if they
            have one.
        group : the options.
        """
        raise NotImplementedError(f"{self._name} must define update(data, grads, states, group)")

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked options of a group; override this method for options that depend on each other.

        The type of an option is that of its default in `__init__`. A float, or an option in `intervals`, must be a
        number in its interval; a tuple must hold as many such numbers as the default; an integer must be at least 0.
        Options of other types are not checked.
        """
        defaults, checked = options_of(type(self)), {}
        for name, value in options.items():
            default = defaults.get(name)
            interval = self.intervals.get(name, "(-inf, inf)")
            if isinstance(default, bool):
                value = flag(self._name, name, value)
            elif isinstance(default, tuple):
                if not isinstance(value, tuple | list) or len(value) != len(default):
                    raise UsageError(f"{self._name}: {name} must be {len(default)} numbers, got {value!r}")
                value = tuple(number(self._name, f"{name}[{i}]", x, interval) for i, x in enumerate(value))
            elif name in self.intervals or isinstance(default, float):
                value = number(self._name, name, value, interval)
            elif isinstance(default, int):
                value = integer(self._name, name, value, 0)
            checked[name] = value
        return checked

    def state_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape of the array that `update` stores under a name, or None if it stores a Python number.

        By default `step` is a number, and everything else has the shape of the parameter. A rule with other state
        overrides this method, so that loaded states can be checked.

        Parameters
        ----------
        name : the key in the dict of the parameter.
        shape : the shape of the parameter.
        """
        return None if name == "step" else shape

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a dict with parameters under `"params"` and any options that differ from the defaults."""
        options = dict(group)
        if "params" not in options:
            raise UsageError(f"{self._name}: a parameter group needs the key 'params', got {sorted(options)}")
        added = parameters(self._name, options.pop("params"))
        seen = set(self._parameters())
        for parameter in added:
            if parameter in seen:
                raise UsageError(
                    f"{self._name}: {parameter!r} occurs twice; a parameter may be in one group only, once"
                )
            seen.add(parameter)
        for name in options:
            if name not in self.defaults:
                raise unknown(f"{self._name} option", name, self.defaults)
        self.param_groups.append({"params": added, **self.check_options({**self.defaults, **options})})

    def step(self) -> None:
        """Update every parameter that has a gradient and is not frozen.

        Raises
        ------
        ShapeError, DtypeError
            If a gradient, or an array that `update` returns, differs from its parameter in shape or dtype. Gradients
            are checked before any parameter is updated.
        """
        for group, alike in self._calls():
            data, grads = [p.data for p in alike], [p.grad for p in alike]
            states, dtype, total, count = [self.state[p] for p in alike], data[0].dtype, len(alike), 0
            for state in states:
                for name, entry in state.items():
                    if getattr(entry, "dtype", dtype) != dtype:  # the model was moved to another dtype
                        state[name] = namespace_of(entry).astype(entry, dtype)
            updated = self.update(data, grads, states, group)
            if not hasattr(updated, "__iter__"):
                raise UsageError(f"{self._name}: update must return {total} arrays, got {updated!r}")
            updated = iter(updated)
            for parameter, new in zip(alike, updated, strict=False):
                if new is not parameter.data:
                    if not is_array(new) or new.shape != parameter.data.shape or new.dtype != dtype:
                        kind = ShapeError if getattr(new, "dtype", None) == dtype else DtypeError
                        got = f"{new.dtype} of shape {tuple(new.shape)}" if is_array(new) else type(new).__name__
                        raise kind(f"{self._name}: update must return {dtype} for {parameter!r}, got {got}")
                    parameter.data = data[count] = new  # frees the old array, as the next one may need its memory
                parameter.updates += 1
                count += 1
            more = next(updated, data) is not data
            if count < total or more:
                raise UsageError(f"{self._name}: update must return {total} arrays, got {'more' if more else count}")

    def _calls(self) -> list[tuple[Group, list[Parameter]]]:
        """Check every gradient; return the group and the parameters of each call of `update`."""
        calls = []
        for group in self.param_groups:
            kinds: list[tuple[Any, list[Parameter]]] = []  # a list, as CuPy's devices cannot be hashed
            alike: list[Parameter] = []
            last: Any = None
            for parameter in group["params"]:
                grad, data = parameter.grad, parameter.data
                if grad is None or not parameter.trainable:
                    continue
                dtype = data.dtype
                if grad.shape != data.shape:
                    raise ShapeError(f"{self._name}: the gradient of {parameter!r} has shape {tuple(grad.shape)}")
                if grad.dtype != dtype:
                    raise DtypeError(
                        f"{self._name}: the gradient of {parameter!r} is {grad.dtype}, the parameter {dtype}"
                    )
                state = self.state.setdefault(parameter, {})
                # JAX's tracers have no device.
                kind = (type(data), dtype, getattr(data, "device", None), state.get("step"), *state)
                if kind != last:  # most parameters are of the same kind as the one before
                    last, alike = kind, next((same for other, same in kinds if other == kind), [])
                    if not alike:
                        kinds.append((kind, alike))
                alike.append(parameter)
            calls += [(group, alike) for _, alike in kinds]
        return calls

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to None."""
        for parameter in self._parameters():
            parameter.grad = None

    def _parameters(self) -> list[Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return options and state as plain data.

        Returns
        -------
        `{"state": {index: {name: host array or number}}, "param_groups": [{option: value, "params": [index, ...]}]}`,
        where the parameters of all groups are numbered consecutively.

        Raises
        ------
        UsageError
            If the state does not match `state_shape`, so that it could not be loaded.
        """
        state = {}
        for index, parameter in enumerate(self._parameters()):
            if entry := self.state.get(parameter):
                state[index] = {name: to_numpy(value) if is_array(value) else value for name, value in entry.items()}
                if wrong := self._wrong_entry(index, parameter, state[index]):
                    raise UsageError(f"{wrong}; override state_shape to describe the state")
        numbered = {parameter: index for index, parameter in enumerate(self._parameters())}
        groups = [{**group, "params": [numbered[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load options and state; arrays go to the library, device and dtype of their parameter.

        If an error is raised, the optimizer is unchanged.

        Parameters
        ----------
        state : what `state_dict` of the same rule returned, for parameters of the same shapes in the same groups. It
            may have been stored as JSON: indices may be strings, and tuples and arrays may be lists.

        Raises
        ------
        CheckpointError
            If groups, options, shapes or numbers are not those of this optimizer.
        UsageError
            If an option is outside its interval.
        """
        with making_sense(self._name, state):
            groups, entries = self._loaded_groups(state.get("param_groups", ())), self._loaded_state(state)
        self.state = entries
        for group, options in zip(self.param_groups, groups, strict=True):
            group.update(options)

    def _loaded_state(self, state: Mapping[str, Any]) -> dict[Parameter, dict[str, Any]]:
        """Return the state of each parameter after checking it, on the parameter's library, device and dtype."""
        parameters, entries = self._parameters(), {}
        for key, saved in state.get("state", {}).items():
            index = int(key)
            if not 0 <= index < len(parameters):
                raise CheckpointError(
                    f"{self._name}: the state has a parameter {index}, the optimizer has {len(parameters)}"
                )
            parameter = parameters[index]
            if wrong := self._wrong_entry(index, parameter, saved):
                raise CheckpointError(wrong)
            shape = tuple(parameter.data.shape)
            entries[parameter] = {
                name: value if self.state_shape(name, shape) is None else like(np.asarray(value), parameter.data)
                for name, value in saved.items()
            }
        return entries

    def _wrong_entry(self, index: int, parameter: Parameter, entry: Mapping[str, Any]) -> str:
        """Return the error message for the first invalid entry in the state of a parameter, or ""."""
        for name, value in entry.items():
            shape = self.state_shape(name, tuple(parameter.data.shape))
            what = f"{self._name}: {name} of parameter {index}"
            if shape is None:
                if not isinstance(value, int | float) or (name == "step" and not (type(value) is int and value >= 0)):
                    return f"{what} is {value!r}, expected a number"
            elif np.asarray(value).dtype.kind in "OSUcmM" or np.shape(value) != shape:
                return f"{what} has shape {np.shape(value)}, expected {shape}"
        return ""

    def _loaded_groups(self, saved: Any) -> list[dict[str, Any]]:
        """Return the options of the groups of a state after checking them against those of this optimizer."""
        have = [len(group["params"]) for group in self.param_groups]
        came = [len(group.get("params", ())) for group in saved]
        if have != came:
            raise CheckpointError(f"{self._name}: the state has groups of {came} parameters, the optimizer of {have}")
        groups = [{name: value for name, value in group.items() if name != "params"} for group in saved]
        for group in groups:
            if group.keys() - {"initial_lr"} != self.defaults.keys():
                raise CheckpointError(
                    f"{self._name}: the state has the options {', '.join(group)}, not {', '.join(self.defaults)}; "
                    "does it belong to another optimizer?"
                )
        return [self.check_options(group) for group in groups]


def parameters(caller: str, values: Any) -> list[Parameter]:
    """Return one Parameter or an iterable of them as a list, after checking that it is not empty."""
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, dict | str) else [values]
    for value in found:
        if not isinstance(value, Parameter):
            raise UsageError(f"{caller}: expected parameters, got {type(value).__name__}; pass model.parameters()")
    if not found:
        raise UsageError(
            f"{caller}: there are no parameters; does the model have any, or was a generator already consumed?"
        )
    return found
