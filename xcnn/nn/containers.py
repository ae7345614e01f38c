"""Containers: modules made of modules. `Graph` runs any directed acyclic graph; the others are special cases.

    nn.Sequential(a, b, c)             c(b(a(x)))
    nn.Residual(body, shortcut)        body(x) + shortcut(x)
    nn.Branches(a, b)                  a(x) and b(x), concatenated or added
    nn.Graph([("a", a, "x"), ("b", b, "a"), ("sum", nn.Add(), ("a", "b"))])

The modules may have names, and are attributes by them: `nn.Sequential({"conv": a, "fc": b}).fc`.

All forward and backward logic is in `Graph`; `_plan.py` prepares its steps. The backward pass works as
HIPS/autograd's `backward_pass`: it visits the nodes in reverse and adds up the gradients of each name.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from xcnn._check import choice, integer, shown
from xcnn.errors import ShapeError, UsageError, XcnnError, unknown
from xcnn.nn._forward import ABSENT, is_one_image, locate
from xcnn.nn._inference import infer
from xcnn.nn._module import Module
from xcnn.nn._plan import Node, Plan, Step, names
from xcnn.nn._repeat import trained
from xcnn.nn.combine import Add, Concat
from xcnn.parameter import Buffer, Parameter

__all__ = ["Branches", "Graph", "Node", "Residual", "Sequential"]


class Graph(Module):
    """Modules connected as a directed acyclic graph.

    Parameters
    ----------
    nodes : triples (name, module, inputs) in the order of the forward pass. `inputs` is the name of an earlier node or
        of an input of the graph; with a sequence of such names, the module receives a tuple. A `Parameter` or `Buffer`
        may take the place of a module, with the inputs `()`: the node's result is its array. A name may contain dots,
        so that `layer1.conv` has the state key `layer1.conv.weight`.
    output : the node whose result is that of the graph; by default the last. Nodes that do not lead to it do not run.
        With a sequence of names, the graph returns a tuple.
    inputs : the name of the graph's own input. With a sequence of names, the graph takes a tuple of arrays.

    Raises
    ------
    UsageError
        If a node is not such a triple, or a name is unknown, used twice or empty.

    Examples
    --------
    >>> graph = Graph([("a", Sequential(), "x"), ("b", Sequential(), "a")])
    >>> graph(1.5)
    1.5
    """

    def __init__(
        self, nodes: Iterable[Node], output: str | Sequence[str] | None = None, inputs: str | Sequence[str] = "x"
    ) -> None:
        kind = type(self).__name__
        if not isinstance(nodes, Iterable):
            raise UsageError(f"{kind}: nodes must be tuples (name, module, inputs), got {nodes!r}")
        triples = tuple(nodes)
        if not isinstance(inputs, Sequence) or not inputs or not all(isinstance(one, str) for one in inputs):
            raise UsageError(f"{kind}: inputs must be a name or several, got {inputs!r}")
        known = dict.fromkeys(names(inputs))
        if len(known) < len(names(inputs)) or "" in known:
            raise UsageError(f"{kind}: each input must have a name of its own, got {inputs!r}")
        for node in triples:
            if not isinstance(node, Sequence) or len(node) != 3:
                raise UsageError(f"{kind}: a node must be a tuple (name, module, inputs), got {node!r}")
            name, module, sources = node
            if not isinstance(name, str) or not all(name.split(".")) or name in known:
                raise UsageError(f"{kind}: {name!r} cannot name a node; a name must be new, and not that of an input")
            if not isinstance(module, Module | Parameter | Buffer):
                raise UsageError(
                    f"{kind}: node {name!r} must be a module, got {shown(module)}"
                    + (f"; unpack it: {kind}(*layers)" if isinstance(module, list | tuple) else "")
                )
            if isinstance(module, Parameter | Buffer):
                if sources != () and sources != []:
                    held = type(module).__name__
                    raise UsageError(f"{kind}: node {name!r} is a {held} and takes no inputs, only (), got {sources!r}")
            elif not isinstance(sources, Sequence) or not sources:
                raise UsageError(f"{kind}: node {name!r} needs an input, such as {names(inputs)[0]!r}")
            for source in names(sources):
                if not isinstance(source, str) or source not in known:
                    raise UsageError(f"{kind}: node {name!r}: {unknown('input', source, known)}")
            known[name] = None
        nodes_named = {name for name, _, _ in triples}
        for name in nodes_named:  # otherwise `a.b` could be a node, or the child `b` of the node `a`
            parts = name.split(".")
            for above in (".".join(parts[:i]) for i in range(1, len(parts))):
                if above in nodes_named:
                    raise UsageError(f"{kind}: {name!r} cannot name a node beside {above!r}")
        output = next(reversed(known)) if output is None else output
        if not isinstance(output, Sequence) or not output:
            raise UsageError(f"{kind}: {unknown('output', output, known)}")
        for one in names(output):
            if not isinstance(one, str) or one not in known:
                raise UsageError(f"{kind}: {unknown('output', one, known)}")
        self._plan = Plan(triples, output, inputs)

    @functools.cached_property
    def _plan(self) -> Plan:
        raise UsageError(f"{type(self).__name__}: __init__ must call super().__init__")

    def __getattr__(self, name: str) -> Any:
        """Return the module of a node by its name."""
        plan = vars(self).get("_plan")
        for node, module, _ in () if plan is None else plan.nodes:
            if node == name:
                return module
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Put a module in the place of a node of this name, such as a new head; build the optimizer afterwards.

        In a built-in container, a module under another name would not run, and neither would another value under that
        of a node; both are refused.
        """
        ours, module = (
            type(self) in (Graph, Sequential, Residual, Branches),
            isinstance(value, Module | Parameter | Buffer),
        )
        if "_plan" in vars(self) and (ours or module):
            nodes = {node: one for node, one, _ in self._plan.nodes}
            if name in nodes:
                self._replace(name, value)
                return
            if ours and module and all(value is not one for one in nodes.values()):
                raise UsageError(
                    f"{type(self).__name__}: a module that is assigned to {name!r} would not run; "
                    f"the names of its nodes are {', '.join(nodes) or '-'}"
                )
        super().__setattr__(name, value)

    def _replace(self, name: str, module: Module | Parameter | Buffer) -> None:
        """Put a module in the place of a node, also where an attribute holds the old one."""
        if isinstance(module, Module) and any(inner is self for _, inner in module.modules()):
            raise UsageError(f"{type(self).__name__}: {name} cannot be a module that contains this one")
        nodes = list(self._plan.nodes)
        place = next(i for i, (node, _, _) in enumerate(nodes) if node == name)
        _, old, inputs = nodes[place]
        if isinstance(old, Module) != isinstance(module, Module) or not isinstance(module, Module | Parameter | Buffer):
            kind = "module" if isinstance(old, Module) else type(old).__name__
            raise UsageError(f"{type(self).__name__}: {name!r} must be a {kind}, got {shown(module)}")
        nodes[place] = name, module, inputs
        self._plan = Plan(nodes, self._plan.output, self._plan.inputs)
        vars(self).update({key: module for key, value in vars(self).items() if value is old})

    def options(self) -> dict[str, Any]:
        """Return the arguments of the constructor; see `Module.options`."""
        if not self._made_by(Graph):
            return super().options()
        plan = self._plan
        return {"nodes": plan.nodes, "output": plan.output} | ({"inputs": plan.inputs} if plan.inputs != "x" else {})

    def _made_by(self, cls: type["Graph"]) -> bool:
        """Return whether the constructor is that of `cls`, whose arguments are known from the nodes."""
        return type(self).__init__ is cls.__init__

    def _entries(self) -> Iterable[tuple[str, Any]]:
        slots = [(name, one) for name, one, _ in self._plan.nodes if not isinstance(one, Module)]
        return [*slots, *super()._entries()] if slots else super()._entries()

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules of the nodes with their names, then modules among the attributes that are not nodes."""
        for name, module, _ in self._plan.nodes:
            if isinstance(module, Module):
                yield name, module
        for name, module in super().children():
            if all(module is not node for _, node, _ in self._plan.nodes):
                yield name, module

    def __call__(self, x: Any = ABSENT, *more: Any, **others: Any) -> Any:
        """Return the output for x, the only argument, in inference mode; no result is kept longer than needed."""
        if more or others or x is ABSENT or type(self).forward is not Graph.forward or "forward" in vars(self):
            return super().__call__(x, *more, **others)
        y = infer(self._plan, x)
        if y is not NotImplemented:
            return y
        try:
            return self._run(x, self._plan.singly, self._plan.output, lambda name, module, value, inputs: module(value))
        except ShapeError as error:
            # Otherwise the words of the layer are right: it may refuse other channels, and x may be no image at all.
            if is_one_image(self, x):
                axes, came = ", ".join(("n", "c", *"dhw"[4 - x.ndim :])), f"got one image of shape {tuple(x.shape)}"
                raise ShapeError(f"{type(self).__name__}: x must be a batch ({axes}), {came}; pass x[None]") from error
            raise

    def _inner(self) -> Any:
        cls = type(self)
        known = cls.forward is Graph.forward and cls.__call__ is Graph.__call__ and "forward" not in vars(self)
        return self._plan if known else None

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        try:
            return trained(self._plan, self._inputs(x), train)
        except XcnnError as error:
            error.module = self
            raise

    def _inputs(self, x: Any) -> Sequence[Any]:
        """Return the arrays of the inputs."""
        taken = self._plan.inputs
        if isinstance(taken, str):
            return (x,)
        if isinstance(x, tuple | list) and len(x) == len(taken):
            return x
        came = f"{len(x)} of them" if isinstance(x, tuple | list) else type(x).__name__
        raise UsageError(
            f"{type(self).__name__}: x must be a tuple of {len(taken)} arrays, {', '.join(taken)}, got {came}"
        )

    def _run(
        self,
        x: Any,
        steps: list[Step],
        output: str | Sequence[str],
        call: Callable[[str, Any, Any, Any], Any],
    ) -> Any:
        values = dict(zip(names(self._plan.inputs), self._inputs(x), strict=True))
        for name, module, inputs, done, path in steps:
            value = values[inputs] if type(inputs) is str else tuple([values[source] for source in inputs])
            try:
                values[name] = call(name, module, value, inputs)
            except XcnnError as error:
                for key, one in path:
                    locate(error, key, one)
                error.module = self
                raise
            for source in done:
                del values[source]
        return values[output] if isinstance(output, str) else tuple(values[name] for name in output)


class Sequential(Graph):
    """Modules one after the other; their names are their positions, as in PyTorch: `0.weight`.

    Parameters
    ----------
    *modules : the modules in the order of the forward pass, or one dict of them by name.

    Raises
    ------
    UsageError
        If one of them is not a module, or a name cannot be one.

    Examples
    --------
    >>> from xcnn import nn
    >>> model = nn.Sequential({"conv": nn.Conv2d(1, 8, 3), "pool": nn.GlobalAvgPool(), "fc": nn.Linear(8, 2)})
    >>> model.fc = nn.Linear(8, 5)  # a new head
    >>> list(model.state_dict())
    ['conv.weight', 'conv.bias', 'fc.weight', 'fc.bias']
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        first = modules[0] if len(modules) == 1 else None
        named = first if isinstance(first, Mapping) else {str(i): module for i, module in enumerate(modules)}
        before = ("x", *named)
        nodes: list[Any] = [(name, module, before[i]) for i, (name, module) in enumerate(named.items())]
        super().__init__(nodes)

    def options(self) -> dict[str, Any]:
        if not self._made_by(Sequential):
            return super().options()
        named = {name: module for name, module, _ in self._plan.nodes}
        return {"modules": tuple(self) if list(named) == [str(i) for i in range(len(named))] else (named,)}

    def _named(self) -> dict[str, Module]:
        return {name: module for name, module, _ in self._plan.nodes if isinstance(module, Module)}

    def __len__(self) -> int:
        return len(self._plan.nodes)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._named().values())

    def __getitem__(self, index: int | slice) -> Module:
        """Return one module, or a Sequential of a slice of them that shares their parameters."""
        if not isinstance(index, slice):
            return list(self)[self._place(index)]
        named = dict(list(self._named().items())[index])
        return Sequential(*named.values()) if all(map(str.isdecimal, named)) else Sequential(named)

    def __setitem__(self, index: int, module: Module) -> None:
        """Put a module in the place of another, such as a new head; build the optimizer afterwards."""
        name = self._plan.nodes[self._place(index)][0]
        if not isinstance(module, Module):
            raise UsageError(f"{type(self).__name__}: [{index}] must be a module, got {shown(module)}")
        self._replace(name, module)

    def _place(self, index: int) -> int:
        return integer(type(self).__name__, "index", index, -len(self), len(self) - 1)


class Residual(Graph):
    """A body with a shortcut around it: `body(x) + shortcut(x)`; state keys start with `body.` and `shortcut.`.

    Parameters
    ----------
    body : a module whose result has the shape of that of `shortcut`, or one that broadcasts with it.
    shortcut : a module; by default the identity.

    Raises
    ------
    UsageError
        If one of the two is not a module.
    ShapeError
        In a forward pass, if the shapes of the two results do not broadcast.

    Notes
    -----
    K. He, X. Zhang, S. Ren and J. Sun, Deep residual learning for image recognition, 2016, arXiv:1512.03385.
    """

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        ways: list[Node] = [("body", body, "x")]
        if shortcut is not None:
            ways.append(("shortcut", shortcut, "x"))
        super().__init__([*ways, ("add", Add(), ("body", "x" if shortcut is None else "shortcut"))])

    def options(self) -> dict[str, Any]:
        ways = {name: module for name, module, _ in self._plan.nodes[:-1]}
        return ways if self._made_by(Residual) else super().options()


class Branches(Graph):
    """Modules that take the same input, and whose results are joined; their names are their positions.

    Parameters
    ----------
    *modules : one or more.
    merge : `"concat"` joins the results along axis `dim`, `"add"` adds them.
    dim : the axis, by default the channels.

    Raises
    ------
    UsageError
        If there are no modules, one of them is not a module, or `merge` is unknown.
    ShapeError
        In a forward pass, if the results do not fit together.
    """

    def __init__(self, *modules: Module, merge: str = "concat", dim: int = 1) -> None:
        joins = {"concat": Concat(dim), "add": Add()}
        choice("Branches", "merge", merge, joins)
        if not modules:
            raise UsageError("Branches: at least one module is needed")
        ways: list[Node] = [(str(i), module, "x") for i, module in enumerate(modules)]
        super().__init__([*ways, (merge, joins[merge], [name for name, _, _ in ways])])

    def options(self) -> dict[str, Any]:
        if not self._made_by(Branches):
            return super().options()
        *ways, (merge, join, _) = self._plan.nodes
        joined = {"dim": join.dim} if isinstance(join, Concat) else {}
        return {"modules": tuple(module for _, module, _ in ways), "merge": merge, **joined}
