"""The structure of a network as JSON: its modules by the names of their classes, with the arguments of constructors.

    {"modules": [
        {"class": "Conv2d", "options": {"in_channels": 1, "out_channels": 6, "kernel_size": [5, 5], ...}},
        {"class": "ReLU", "options": {}},
        {"class": "Sequential", "options": {"modules": [{"module": 0}, {"module": 1}, {"module": 1}]}}],
     "streams": {}, "frozen": ["0.weight", "0.bias"]}

A module refers only to modules before it, so that there are no cycles; the last is the network. A module that is used
twice is one entry. In options, JSON's arrays are tuples; lists and dicts are `{"list": [...]}` and `{"dict": {...}}`. A
parameter or buffer among them is `{"Parameter": ["float32", 3, 1]}`, its dtype and shape.
`streams` has the states of the random generators by name, and `frozen` the names of the parameters and buffers that are
not trained. A name of a class is looked up among the layers of `xcnn.nn` and the classes that the caller passes;
nothing is imported.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xcnn import nn
from xcnn.devices import to_numpy
from xcnn.errors import CheckpointError, UsageError, XcnnError, making_sense
from xcnn.nn._weighted import filled, undrawn
from xcnn.runs.sealed import pack

__all__ = [
    "LAYERS",
    "Makers",
    "Structure",
    "build",
    "describe",
    "load_weights",
    "require_faithful",
    "strangers",
    "try_describe",
]

LAYERS: dict[str, type[nn.Module]] = {
    name: kind
    for name, kind in ((name, getattr(nn, name)) for name in nn.__all__)
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in (nn.Module, nn.Layer)
}
"""The classes of `xcnn.nn` by name."""

Structure = dict[str, Any]
Makers = Mapping[str, Callable[..., nn.Module]]

# A small file could otherwise describe more modules than fit into memory, as each may be used twice by the next, and
# nest them deeper than Python calls functions. Each container looks at all modules inside it when it is made, which
# takes a microsecond or two for each.
_MOST_REPEATED = 10_000
_MOST_LOOKS = 20  # at each module
_DEEPEST = 100

_DTYPES = ("float32", "float64", "int32", "int64", "bool")
"""Of parameters and buffers that are the nodes of a graph."""


# Writing


def describe(model: nn.Module) -> Structure:
    """Return the structure of a network.

    Raises
    ------
    UsageError
        If it is not a module, an argument of a constructor is not kept or cannot be saved, or two classes have the same
        name.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"save: model must be an nn.Module, got {type(model).__name__}")
    entries: list[dict[str, Any]] = []
    try:
        _add(model, entries, {}, {})
    except RecursionError:
        raise UsageError(f"save: modules are nested too deep; at most {_DEEPEST} may be") from None
    streams, arrays = pack({name: rng.bit_generator.state for name, rng in model.named_generators()}, "streams")
    if arrays:
        raise UsageError(f"save: the state {min(arrays)} is an array; use generators of numpy.random.default_rng")
    frozen = [name for name, slot in model._attributes(nn.Parameter, nn.Buffer) if not slot.trainable]
    return {"modules": entries, "streams": streams, "frozen": frozen}


def try_describe(model: nn.Module) -> Structure | None:
    """Return the structure of a network, or None if the network made again from it would differ."""
    try:
        structure = describe(model)
        require_faithful(model, structure)
        return structure
    except Exception:  # of any kind, from an `options()` of the user's class: training goes on
        return None


def _add(
    module: nn.Module,
    entries: list[dict[str, Any]],
    places: dict[int, tuple[nn.Module, int | None]],
    own: dict[str, type],
) -> int:
    """Append a module and those among its options to `entries`, each once, and return its place."""
    kind = type(module)
    name = kind.__name__
    if id(module) in places:
        place = places[id(module)][1]
        if place is None:
            raise UsageError(f"save: {name} contains itself")
        return place
    if LAYERS.get(name) is not kind and (name in LAYERS or own.setdefault(name, kind) is not kind):
        raise UsageError(f"save: two classes are named {name!r}, and files know classes by name; rename yours")
    given = kind.options(module)  # not that of the instance, which may be an argument of this name
    if not isinstance(given, dict):
        raise UsageError(f"save: {name}: options() must return a dict of arguments, got {type(given).__name__}")
    places[id(module)] = module, None  # the module, too, as the id of one that is gone may come again
    options = {
        key: _plain(value, f"{name}: the argument {key!r}", lambda inner: _add(inner, entries, places, own))
        for key, value in given.items()
        if not (key == "init" and callable(value))  # an initialiser; the weights are in the file
    }
    entries.append({"class": name, "options": options})
    places[id(module)] = module, len(entries) - 1
    return len(entries) - 1


def _plain(value: Any, what: str, add: Callable[[nn.Module], int]) -> Any:
    """Return the JSON of an option; `add` returns the place of a module."""
    if isinstance(value, nn.Module):
        return {"module": add(value)}
    if isinstance(value, nn.Parameter | nn.Buffer):
        data = to_numpy(value.data)
        return {type(value).__name__: [data.dtype.name, *data.shape]}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, tuple):
        return [_plain(entry, what, add) for entry in value]
    if isinstance(value, list):
        return {"list": [_plain(entry, what, add) for entry in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _plain(entry, what, add) for key, entry in value.items()}}
    raise UsageError(
        f"save: {what} is of the type {type(value).__name__}; files hold numbers, text, modules, and tuples, lists and "
        "dicts of these; define options() that returns such arguments"
    )


def require_faithful(model: nn.Module, structure: Structure) -> None:
    """Check that the network which is built from its structure has the same modules, slots and plain attributes.

    Raises
    ------
    UsageError
        If it does not, as when an attribute has been changed or a parameter is shared by two modules.
    """
    own = {type(module).__name__: type(module) for _, module in model.modules()}
    try:
        twin = _outline(build(structure, own))
    except CheckpointError as error:
        raise UsageError(f"save: the network cannot be made again from its options: {error}") from None
    ours = _outline(model)
    for name in [*ours, *twin]:
        here, there = ours.get(name, "nothing"), twin.get(name, "nothing")
        if here != there:
            raise UsageError(
                f"save: {name} is {here}, but {there} in the network made again from the options of its modules; make "
                "it in the __init__ of a class, from arguments that the class keeps as they came"
            )


def _outline(model: nn.Module) -> dict[str, str]:
    """Return the kind of each module, slot and generator of a network, or the name under which it came before.

    Attributes that are numbers, text, None or tuples of these are described, too.
    """
    found: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, one in [*model.modules(), *model._attributes(nn.Parameter, nn.Buffer, np.random.Generator)]:
        shape = f" {tuple(one.data.shape)}" if isinstance(one, nn.Parameter | nn.Buffer) else ""
        before = first.setdefault(id(one), name)
        found[name or "the network"] = f"the same as {before}" if before != name else f"a {type(one).__name__}{shape}"
        if isinstance(one, nn.Module) and before == name:
            # Weights from a named initialiser are in the file; one that is a function is left out.
            plain = {key: _shown(value) for key, value in vars(one).items() if key != "init"}
            found |= {f"{name}.{key}" if name else key: text for key, text in plain.items() if text}
    return found


def _shown(value: Any) -> str:
    """Return how a number, text, None or a tuple of these is written; empty for other values."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, tuple):
        entries = list(map(_shown, value))
        return f"({', '.join(entries)})" if all(entries) else ""
    # An enumeration's member is compared as the number or text that the file holds.
    kind = next((kind for kind in (bool, int, float, str, type(None)) if isinstance(value, kind)), None)
    return kind.__repr__(value) if kind else ""  # type: ignore[call-arg]


# Reading


def strangers(structure: Structure, modules: Makers) -> list[str]:
    """Return the names of the classes of a structure that are neither in `xcnn.nn` nor in `modules`."""
    with making_sense("the structure"):
        return sorted({str(entry["class"]) for entry in structure["modules"]} - LAYERS.keys() - modules.keys())


def build(structure: Structure, modules: Makers) -> nn.Module:
    """Build a network without weights: parameters and buffers take no memory, and `load_weights` must follow.

    Parameters
    ----------
    structure : what `describe` returned.
    modules : the classes that are not in `xcnn.nn`, by name.

    Raises
    ------
    CheckpointError
        If it is not the structure of a network, or needs other classes.
    """
    built: list[nn.Module] = []
    sizes: list[tuple[int, int]] = []  # of each module: how many it has with those inside it, how deep they are nested
    total = 0
    try:
        with making_sense("the structure"):
            for entry in structure["modules"]:
                options, size = _options(entry, built, sizes)
                most, total = len(structure["modules"]) + _MOST_REPEATED, total + size[0]
                if size[0] > most or size[1] > _DEEPEST or total > _MOST_LOOKS * most:
                    limits = f"at most {_DEEPEST} may be nested, and {_MOST_REPEATED:,} repeated"
                    raise CheckpointError(f"the structure: it has too many modules; {limits}")
                name = entry["class"]
                kind = LAYERS.get(name) or modules.get(name)
                if kind is None:
                    raise CheckpointError(f"the structure: the class {name!r} is not known")
                built.append(_made(f"the structure: module {len(built)} ({name})", kind, options))
                sizes.append(size)
            streams, generators = structure["streams"], dict(built[-1].named_generators())
            if streams.keys() != generators.keys():
                raise CheckpointError("the structure: its random streams are not those of its modules")
            for name, generator in generators.items():
                generator.bit_generator.state = streams[name]
            _freeze(built[-1], structure.get("frozen", []))
    except RecursionError:
        raise CheckpointError("the structure: its values are nested too deep") from None
    return built[-1]


def _freeze(model: nn.Module, names: list[str]) -> None:
    """Freeze the parameters and buffers of these names alone, whatever the constructors have frozen."""
    slots, frozen = dict(model._attributes(nn.Parameter, nn.Buffer)), set(names)
    if not isinstance(names, list) or not frozen <= slots.keys():
        raise CheckpointError("the structure: what is frozen must be a list of names of its parameters and buffers")
    for name, slot in slots.items():
        slot.trainable = name not in frozen


def _options(
    entry: dict[str, Any], built: list[nn.Module], sizes: list[tuple[int, int]]
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return the options of the next module, and its size."""
    inside = [(0, 0)]

    def take(place: Any) -> nn.Module:
        if type(place) is not int or not 0 <= place < len(built):
            raise CheckpointError(f"the structure: module {len(built)}: there is no module {place!r} before it")
        inside.append(sizes[place])
        return built[place]

    options = {key: _value(value, take) for key, value in entry["options"].items()}
    return options, (1 + sum(count for count, _ in inside), 1 + max(depth for _, depth in inside))


def _value(plain: Any, take: Callable[[Any], nn.Module]) -> Any:
    """Return an option from its JSON; `take` returns the module at a place."""
    if isinstance(plain, list):
        return tuple(_value(entry, take) for entry in plain)
    if not isinstance(plain, dict):
        return plain
    ((kind, inner),) = plain.items()
    if kind == "module":
        return take(inner)
    if kind in ("Parameter", "Buffer"):
        dtype, *shape = inner
        if dtype not in _DTYPES:
            raise CheckpointError(f"the structure: there are no parameters of the dtype {dtype!r}")
        with undrawn():
            return filled(getattr(nn, kind), tuple(map(int, shape)), 0, dtype)
    if kind == "list":
        return [_value(entry, take) for entry in inner]
    if kind == "dict":
        return {key: _value(entry, take) for key, entry in inner.items()}
    raise CheckpointError(f"the structure: there are no values of the kind {kind!r}")


def _made(what: str, kind: Callable[..., nn.Module], options: dict[str, Any]) -> nn.Module:
    """Call a class with its options."""
    try:
        parameters = inspect.signature(kind).parameters.values()
        given, named = [], dict(options)
        by_place = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                given += named.pop(parameter.name)
            elif parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(parameter.name)
            elif parameter.kind is parameter.POSITIONAL_ONLY or (
                by_place and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            ):
                given.append(named.pop(parameter.name))
        with undrawn():
            module = kind(*given, **named)
    except XcnnError as error:
        raise CheckpointError(f"{what}: {error}") from None
    except Exception as error:  # of a class of the caller, which gets what the file says
        raise CheckpointError(f"{what} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{what} must be a module, got {type(module).__name__}")
    return module


def load_weights(model: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Load weights into a network from `build`, in the dtypes that they have; no memory is taken if they do not fit.

    Raises
    ------
    CheckpointError
        If they do not fit the network.
    """
    for name, slot in (*model.named_parameters(), *model.named_buffers()):
        came = state.get(name)
        if came is not None and isinstance(slot.data, np.ndarray):
            if came.dtype.kind != slot.data.dtype.kind:  # conversion could take eight times the memory of the file
                raise CheckpointError(f"{name} is of the dtype {came.dtype}, expected one like {slot.data.dtype}")
            slot.data = np.broadcast_to(np.zeros((), came.dtype), slot.data.shape)
    model.load_state_dict(state)
