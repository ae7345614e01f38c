"""Containers: modules made of modules. `Graph` runs any directed acyclic graph; the others are special cases.

    nn.Sequential(a, b, c)             c(b(a(x)))
    nn.Residual(body, shortcut)        body(x) + shortcut(x)
    nn.Branches(a, b)                  a(x) and b(x), concatenated or added
    nn.Graph([("a", a, "x"), ("b", b, "a"), ("sum", nn.Add(), ("a", "b"))])

All forward and backward logic is in `Graph`; `_plan.py` prepares its steps. The backward pass works as
HIPS/autograd's `backward_pass`: it visits the nodes in reverse and adds up the gradients of each name.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from xcnn._check import choice, integer, shown
from xcnn.errors import UsageError, XcnnError, unknown
from xcnn.nn._forward import locate
from xcnn.nn._module import Module
from xcnn.nn._plan import Fused, Node, Plan, Step, names
from xcnn.nn.combine import Add, Concat

__all__ = ["Branches", "Graph", "Node", "Residual", "Sequential"]


class Graph(Module):
    """Modules connected as a directed acyclic graph.

    Parameters
    ----------
    nodes : triples (name, module, inputs) in the order of the forward pass. `inputs` is the name of an earlier node or
        `"x"`, the graph's own input; with a sequence of such names, the module receives a tuple.
    output : the node whose result is that of the graph; by default the last. Nodes that do not lead to it do not run.

    Raises
    ------
    UsageError
        If a node is not such a triple, or a name is unknown, used twice or empty, or contains a dot.

    Examples
    --------
    >>> graph = Graph([("a", Sequential(), "x"), ("b", Sequential(), "a")])
    >>> graph(1.5)
    1.5
    """

    def __init__(self, nodes: Iterable[Node], output: str | None = None) -> None:
        kind = type(self).__name__
        if not isinstance(nodes, Iterable):
            raise UsageError(f"{kind}: nodes must be tuples (name, module, inputs), got {nodes!r}")
        triples = tuple(nodes)
        known = {"x": None}
        for node in triples:
            if not isinstance(node, Sequence) or len(node) != 3:
                raise UsageError(f"{kind}: a node must be a tuple (name, module, inputs), got {node!r}")
            name, module, inputs = node
            if not isinstance(name, str) or not name or "." in name or name in known:
                raise UsageError(f"{kind}: {name!r} cannot name a node; a name must be new, not 'x', and without dots")
            if not isinstance(module, Module):
                raise UsageError(
                    f"{kind}: node {name!r} must be a module, got {shown(module)}"
                    + (f"; unpack it: {kind}(*layers)" if isinstance(module, list | tuple) else "")
                )
            if not isinstance(inputs, Sequence) or not inputs:
                raise UsageError(f"{kind}: node {name!r} needs an input, such as 'x'")
            for source in names(inputs):
                if not isinstance(source, str) or source not in known:
                    raise UsageError(f"{kind}: node {name!r}: {unknown('input', source, known)}")
            known[name] = None
        output = next(reversed(known)) if output is None else output
        if not isinstance(output, str) or output not in known:
            raise UsageError(f"{kind}: {unknown('output', output, known)}")
        self._plan = Plan(triples, output)

    @functools.cached_property
    def _plan(self) -> Plan:
        raise UsageError(f"{type(self).__name__}: __init__ must call super().__init__")

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a module that would not run: one in the place of a node, or any one in a built-in container."""
        if isinstance(value, Module) and "_plan" in vars(self):
            nodes = {node: module for node, module, _ in self._plan.nodes}
            built_in = type(self) in (Graph, Sequential, Residual, Branches)
            known = [nodes[name]] if name in nodes else nodes.values()
            if (built_in or name in nodes) and all(value is not module for module in known):
                raise UsageError(
                    f"{type(self).__name__}: a module that is assigned to {name!r} would not run; make a new network "
                    "of the modules, or one of the same kind and load_state_dict(..., strict=False)"
                )
        super().__setattr__(name, value)

    def options(self) -> dict[str, Any]:
        """Return the arguments of the constructor; see `Module.options`."""
        return {"nodes": self._plan.nodes, "output": self._plan.output} if self._made_by(Graph) else super().options()

    def _made_by(self, cls: type["Graph"]) -> bool:
        """Return whether the constructor is that of `cls`, whose arguments are known from the nodes."""
        return type(self).__init__ is cls.__init__

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules of the nodes with their names, then modules among the attributes that are not nodes."""
        for name, module, _ in self._plan.nodes:
            yield name, module
        for name, module in super().children():
            if all(module is not node for _, node, _ in self._plan.nodes):
                yield name, module

    def __call__(self, x: Any) -> Any:
        """Return the output for x in inference mode; no result is kept longer than needed."""
        if type(self).forward is not Graph.forward:
            return super().__call__(x)
        return self._run(x, self._plan.steps(), lambda name, module, value: module(value))

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        plan, backs = self._plan, {}
        steps = plan.steps()

        def call(name: str, module: Module | Fused, value: Any) -> Any:
            y, backs[name] = module.forward(value, train)
            return y

        def backward(dy: Any, need_dx: bool) -> Any:
            wanted = plan.wanted(need_dx)
            grads = {plan.output: dy}
            for name, _, inputs, _ in reversed(steps):
                back, dy = backs.pop(name), grads.pop(name, None)
                if name not in wanted or dy is None:
                    continue
                pairs: Iterable[tuple[str, Any]]
                if isinstance(inputs, str):
                    pairs = ((inputs, back(dy, inputs in wanted)),)
                else:
                    pairs = zip(inputs, back(dy, not wanted.isdisjoint(inputs)) or (), strict=False)
                for source, grad in pairs:
                    if source in wanted and grad is not None:
                        grads[source] = grads[source] + grad if source in grads else grad
            return grads.get("x") if need_dx else None

        return self._run(x, steps, call), backward

    def _run(self, x: Any, steps: list[Step], call: Callable[[str, Module | Fused, Any], Any]) -> Any:
        values = {"x": x}
        for name, module, inputs, done in steps:
            value = values[inputs] if isinstance(inputs, str) else tuple(values[source] for source in inputs)
            try:
                values[name] = call(name, module, value)
            except XcnnError as error:
                if isinstance(module, Fused):
                    name, module = module.name, module.layer
                locate(error, name, module)
                error.module = self
                raise
            for source in done:
                del values[source]
        return values[self._plan.output]


class Sequential(Graph):
    """Modules one after the other; their names are their positions, as in PyTorch: `0.weight`.

    Parameters
    ----------
    *modules : the modules in the order of the forward pass.

    Raises
    ------
    UsageError
        If one of them is not a module.
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__([(str(i), module, str(i - 1) if i else "x") for i, module in enumerate(modules)])

    def options(self) -> dict[str, Any]:
        return {"modules": tuple(self)} if self._made_by(Sequential) else super().options()

    def __len__(self) -> int:
        return len(self._plan.nodes)

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module, _ in self._plan.nodes)

    def __getitem__(self, index: int | slice) -> Module:
        """Return one module, or a Sequential of a slice of them that shares their parameters."""
        modules = list(self)[index]
        return modules if isinstance(modules, Module) else Sequential(*modules)

    def __setitem__(self, index: int, module: Module) -> None:
        """Put a module in the place of another, such as a new head; build the optimizer afterwards."""
        kind, nodes = type(self).__name__, list(self._plan.nodes)
        place = integer(kind, "index", index, -len(nodes), len(nodes) - 1)
        if not isinstance(module, Module):
            raise UsageError(f"{kind}: [{index}] must be a module, got {shown(module)}")
        if any(inner is self for _, inner in module.modules()):
            raise UsageError(f"{kind}: [{index}] cannot be a module that contains this one")
        name, old, inputs = nodes[place]
        nodes[place] = name, module, inputs
        self._plan = Plan(nodes, self._plan.output)
        vars(self).update({key: module for key, value in vars(self).items() if value is old})


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
