"""Containers: modules made of modules. `Graph` runs any directed acyclic graph; the others are common graphs.

    nn.Sequential(a, b, c)             c(b(a(x)))
    nn.Residual(body, shortcut)        body(x) + shortcut(x)
    nn.Branches(a, b)                  a(x) and b(x), side by side
    nn.Graph([("a", a, "x"), ("b", b, "a"), ("sum", nn.Add(), ("a", "b"))])

All forward and backward logic is in `Graph`; which nodes it runs as one, `_fused.py` says. Its backward is the idea of
HIPS/autograd's `backward_pass`: visit the nodes in reverse, adding up per name the gradients that its consumers return.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from xcnn.errors import UsageError, XcnnError, unknown
from xcnn.nn._fused import Fused, fuse
from xcnn.nn._module import Module, Once
from xcnn.nn.combine import Add, Concat

__all__ = ["Branches", "Graph", "Node", "Residual", "Sequential", "Step"]

Node = tuple[str, Module, str | Sequence[str]]
"""Name, module, and what it takes: one name for one array, a sequence of names for a tuple of arrays."""

Step = tuple[str, Module, str | Sequence[str], set[str]]
"""A node that is run, with the names that nothing needs after it."""


class Graph(Module):
    """Modules connected as a directed acyclic graph.

    Parameters
    ----------
    nodes : (name, module, inputs) in an order in which inputs come before their use. `inputs` is the name of an earlier
        node or `"x"`, the graph's own input; a sequence of such names gives the module a tuple.
    output : the node whose result is the graph's; by default the last. Nodes that do not lead to it are not run.

    Raises
    ------
    UsageError
        For nodes that are no such triples, and names that are unknown, taken, or no valid key.

    Examples
    --------
    >>> graph = Graph([("a", Sequential(), "x"), ("b", Sequential(), "a")])
    >>> graph(1.5)
    1.5
    """

    def __init__(self, nodes: Iterable[Node], output: str | None = None) -> None:
        kind = type(self).__name__
        self._nodes = tuple(nodes)
        known = ["x"]
        for node in self._nodes:
            if not isinstance(node, Sequence) or len(node) != 3:
                raise UsageError(f"{kind}: a node must be a tuple (name, module, inputs), got {node!r}")
            name, module, inputs = node
            if not isinstance(name, str) or not name or "." in name or name in known:
                raise UsageError(f"{kind}: {name!r} cannot name a node; names are new, not 'x' and without a dot")
            if not isinstance(module, Module):
                raise UsageError(f"{kind}: node {name!r} must be a module, got {module!r}")
            if not isinstance(inputs, Sequence) or not inputs:
                raise UsageError(f"{kind}: node {name!r} needs an input, such as 'x'")
            for source in _names(inputs):
                if source not in known:
                    raise UsageError(f"{kind}: node {name!r}: {unknown('input', source, known)}")
            known.append(name)
        self._output = known[-1] if output is None else output
        if self._output not in known:
            raise UsageError(f"{kind}: {unknown('output', self._output, known)}")
        needed = _leading(self._nodes, self._output)
        together = fuse(needed)
        self._singly, self._jointly = _steps(needed, self._output), _steps(together, self._output)
        self._fused = [module for _, module, _ in together if isinstance(module, Fused)]
        self._wanted = {need_dx: _wanted(self._singly, need_dx) for need_dx in (False, True)}

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules with the names of their nodes."""
        for name, module, _ in self._nodes:
            yield name, module

    def __call__(self, x: Any) -> Any:
        """Return the output in inference mode, keeping no result longer than it is needed."""
        return self._run(x, self._plan(), lambda name, module, value: module(value))

    def _forward(self, x: Any, train: bool) -> tuple[Any, Callable[[Any, bool], Any]]:
        steps, backs = self._plan(), dict[str, Once]()

        def forward(name: str, module: Module, value: Any) -> Any:
            y, backs[name] = module.forward(value, train)
            return y

        def backward(dy: Any, need_dx: bool) -> Any:
            wanted = self._wanted[need_dx]
            grads = {self._output: dy}
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

        return self._run(x, steps, forward), backward

    def _plan(self) -> list[Step]:
        """Return what to run: layers with their ReLUs, or, while one is watched, each by itself."""
        return self._singly if any(fused.watched() for fused in self._fused) else self._jointly

    def _run(self, x: Any, steps: list[Step], call: Callable[[str, Module, Any], Any]) -> Any:
        values = {"x": x}
        for name, module, inputs, done in steps:
            value = values[inputs] if isinstance(inputs, str) else tuple(values[source] for source in inputs)
            try:
                values[name] = call(name, module, value)
            except XcnnError as error:
                _locate(error, name, module)
                raise
            for source in done:
                del values[source]
        return values[self._output]


def _names(inputs: str | Sequence[str]) -> Sequence[str]:
    return (inputs,) if isinstance(inputs, str) else inputs


def _wanted(steps: Sequence[Step], need_dx: bool) -> set[str]:
    """Return the names whose gradients lead to a parameter, or to x where that is wanted."""
    wanted = {"x"} if need_dx else set()
    for name, module, inputs, _ in steps:
        if any(source in wanted for source in _names(inputs)) or any(module.named_parameters()):
            wanted.add(name)
    return wanted


def _leading(nodes: Sequence[Node], output: str) -> list[Node]:
    """Return the nodes that lead to the output."""
    leading = []
    needed = {output}
    for node in reversed(nodes):
        if node[0] in needed:
            leading.append(node)
            needed.update(_names(node[2]))
    return leading[::-1]


def _steps(nodes: Sequence[Node], output: str) -> list[Step]:
    """Return the nodes with the names that nothing needs after each."""
    steps = []
    needed = {output}
    for name, module, inputs in reversed(nodes):
        steps.append((name, module, inputs, set(_names(inputs)) - needed))
        needed.update(_names(inputs))
    return steps[::-1]


def _locate(error: XcnnError, name: str, module: Module) -> None:
    """Open the error's sentence with the layer it came from: `3 (Conv2d): conv2d: ...`, then `body.3 (Conv2d): ...`."""
    if isinstance(module, Fused):
        name, module = module.name, module.layer
    inside = f"{name}." if error.layer else f"{name} ({type(module).__name__}): "
    error.layer = f"{name}.{error.layer}" if error.layer else name
    error.args = (f"{inside}{error}",)


class Sequential(Graph):
    """Modules one after the other; their names are their positions, as in PyTorch: `0.weight`.

    Parameters
    ----------
    *modules : in the order of the forward pass.

    Raises
    ------
    UsageError
        For something that is no module.
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__([(str(i), module, str(i - 1) if i else "x") for i, module in enumerate(modules)])

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.children())

    def __getitem__(self, index: int | slice) -> Module:
        """Return one module, or a Sequential of a slice of them, which shares their parameters."""
        modules = list(self)[index]
        return modules if isinstance(modules, Module) else Sequential(*modules)


class Residual(Graph):
    """A body with a shortcut around it: `body(x) + shortcut(x)`; state keys start with `body.` and `shortcut.`.

    Parameters
    ----------
    body : keeps the shape, or changes it as `shortcut` does.
    shortcut : by default x itself.

    Raises
    ------
    UsageError
        For something that is no module.
    ShapeError
        At a forward pass in which both give different shapes.

    Notes
    -----
    K. He, X. Zhang, S. Ren and J. Sun, Deep residual learning for image recognition, 2016, arXiv:1512.03385.
    """

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        ways: list[Node] = [("body", body, "x")]
        if shortcut is not None:
            ways.append(("shortcut", shortcut, "x"))
        super().__init__([*ways, ("add", Add(), ("body", "x" if shortcut is None else "shortcut"))])


class Branches(Graph):
    """Modules side by side on the same input, their results joined; their names are their positions.

    Parameters
    ----------
    *modules : one or more.
    merge : `"concat"` along axis `dim`, or `"add"`.
    dim : the axis, by default the channels.

    Raises
    ------
    UsageError
        For something that is no module, no module at all, or an unknown merge.
    ShapeError
        At a forward pass in which the results do not fit together.
    """

    def __init__(self, *modules: Module, merge: str = "concat", dim: int = 1) -> None:
        joins = {"concat": Concat(dim), "add": Add()}
        if merge not in joins:
            raise unknown("merge", merge, joins)
        if not modules:
            raise UsageError("Branches: at least one module is needed")
        ways: list[Node] = [(str(i), module, "x") for i, module in enumerate(modules)]
        super().__init__([*ways, (merge, joins[merge], [name for name, _, _ in ways])])
