"""The contestants of a benchmark: xcnn, its peers and the yardsticks, a module each of the same name.

Each module has a context manager `opened(case, device, way)`, which yields the step to time: a function without
arguments that returns the loss of a training step, or the scores of inference, on the host. All contestants start with
the same weights and the same batch on the device. A module of a library that trains in several processes takes a fourth
argument, the `Group` of this one, which is None if it is alone; each computes its part of the batch. A yardstick also
has a function `work(device)`, which returns the amount of work of a step. Libraries are imported inside functions, as
they may be missing. To add a peer, add a module and a row of `PEERS`, and of `ONLY` or `RANKS` if it runs some cases
only.

A module of a library that can run a part of a network by itself has a function `alone(case, device, way, module, x,
wanted)`, which returns the `Passes` of a module of xcnn on a host array x, or on a tuple of arrays, with the gradients
of those that are `wanted`. If it trains, it has `updating(case, passes)`, which returns an update of their parameters.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xcnn import nn
from xcnn.compare.case import Case
from xcnn.compare.gpu import CPU, entered, hardware, kind
from xcnn.compare.op import called
from xcnn.compare.traffic import Metered
from xcnn.devices import LIBRARIES
from xcnn.errors import UsageError

__all__ = [
    "ENVIRONMENT",
    "ONLY",
    "PEERS",
    "RANKS",
    "SEVERAL",
    "YARDSTICKS",
    "Contestant",
    "Group",
    "Passes",
    "Step",
    "bound",
    "refusal",
]

Step = Callable[[], Any]


@dataclass(frozen=True)
class Passes:
    """A part of a network on a fixed input.

    Attributes
    ----------
    forward : function that returns the result.
    backward : function of the result and its gradient that computes the gradients of the parameters and the input.
    place : function that makes an array of the library of one of the host.
    parameters : the parameters, each with an attribute `grad`.
    clear : function that sets all gradients to None.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any, Any], Any]
    place: Callable[[Any], Any]
    parameters: Sequence[Any]
    clear: Callable[[], None]


@dataclass
class Group:
    """The processes of a contestant that trains in several.

    Attributes
    ----------
    rank : the number of this process.
    size : how many there are.
    folder : a folder of their own.
    traffic : what the contestant tells of its communication; None if it tells nothing.
    """

    rank: int
    size: int
    folder: str
    traffic: Metered | None = None

    def rows(self, count: int) -> slice:
        """Return the rows of this process among `count`."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


PEERS: dict[str, dict[str, tuple[str, ...]]] = {
    "torch": {
        "cpu": ("NCHW", "channels_last", "NCHW 1 thread", "channels_last 1 thread"),
        "cuda": ("NCHW", "channels_last", "NCHW compiled", "NCHW graphs"),
    },
    "torch-compile": {"cpu": ("NCHW compiled",)},
    "jax": {"cpu": ("NCHW", "NHWC")},
    "onnxruntime": {"cpu": ("NCHW", "NCHW 1 thread")},
}
"""The ways in which each peer is measured, by its name and the kind of hardware.

A way is a memory layout, alone or followed by `compiled`, `graphs` (compiled and captured), or `1 thread` (faster than
all threads for little work). A compiler chooses the layout inside by itself. A peer `library-compile` is the compiler
of a library, whose module it shares.
"""

ONLY: dict[str, str] = {"onnxruntime": "infer"}
"""The mode of the peers that run one of the modes of a `Case` only."""

RANKS: dict[str, tuple[int, ...]] = {"channels_last": (2, 3)}
"""The numbers of spatial axes for which there is a memory layout; any unless stated here."""

SEVERAL = ("xcnn", "torch")
"""The contestants that train in several processes, on the CPU."""

YARDSTICKS: dict[str, tuple[str, ...]] = {"cpu": ("sgemm",), "cuda": ("sgemm", "copy")}
"""The yardsticks of each kind of hardware: a matrix product, and copies in its memory."""

ENVIRONMENT: dict[str, dict[str, str]] = {
    "sgemm": {"CUPY_TF32": "0"},  # the peak of float32 arithmetic, even if xcnn uses TF32
    "jax": {"JAX_PLATFORMS": "cpu"},  # otherwise JAX reserves most of a GPU's memory
    "torch-compile": {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},  # the first step takes as long every time
}
"""Environment variables of the processes of contestants."""


@dataclass(frozen=True)
class Contestant:
    """What is timed.

    Attributes
    ----------
    name : `"xcnn"`, a peer, or a yardstick.
    device : device string.
    way : the way of a peer, one of `PEERS`, or "".
    ranks : the number of processes that train together.
    """

    name: str
    device: str = CPU
    way: str = ""
    ranks: int = 1

    def __str__(self) -> str:
        where = self.device if self.name not in PEERS else self.hardware.removeprefix(CPU)
        return " ".join(word for word in (self.name, where, self.way, self._ranks) if word)

    @property
    def hardware(self) -> str:
        """The hardware that computes. Contestants on the same hardware are compared."""
        return hardware(self.device)

    @property
    def variant(self) -> str:
        """The way of a peer, and the device of xcnn or a yardstick; with the number of processes if there are more."""
        return " ".join(word for word in (self.way or self.device, self._ranks) if word)

    @property
    def _ranks(self) -> str:
        return f"{self.ranks} ranks" if self.ranks > 1 else ""

    @property
    def library(self) -> str:
        """The library of a peer, without the suffix of its compiler."""
        return self.name.removesuffix("-compile")

    @property
    def package(self) -> tuple[str, str]:
        """The module of a peer, and how to install it."""
        library = LIBRARIES.get(self.library)
        return (self.library, f"pip install onnx {self.library}") if library is None else (library.module, library.hint)

    @property
    def is_yardstick(self) -> bool:
        """Whether this contestant is a yardstick."""
        return self.name in YARDSTICKS[kind(self.device)]

    @contextlib.contextmanager
    def opened(self, case: Case, group: Group | None = None) -> Iterator[Step]:
        """Yield the step inside a `with` block. Its first call is cold."""
        several = () if group is None else (group,)
        with entered(self.device), self._module().opened(case, self.device, self.way, *several) as step:
            yield step

    @property
    def runs_parts(self) -> bool:
        """Whether the library can run parts of a network; its compiler does not."""
        return self.library == self.name and hasattr(self._module(), "alone")

    def alone(self, case: Case, module: nn.Module, x: Any, wanted: Sequence[bool]) -> Passes:
        """Return the passes of a part of the network of a case, inside `opened`."""
        found: Passes = self._module().alone(case, self.device, self.way, module, x, wanted)
        return found

    def updating(self, case: Case, passes: Sequence[Passes]) -> Step:
        """Return the update of the parameters of these parts."""
        found: Step = self._module().updating(case, [one for part in passes for one in part.parameters])
        return found

    def work(self) -> int:
        """Return the amount of work of a yardstick's step."""
        return int(self._module().work(self.device))

    def _module(self) -> Any:
        return importlib.import_module(f"{__name__}.{self.library}")


def refusal(contestant: Contestant, case: Case) -> str:
    """Return why a contestant cannot run a case, or "" if it may."""
    mode = ONLY.get(contestant.name, case.mode)
    if mode != case.mode:
        return f"it runs {mode} only"
    if contestant.ranks > 1 and (case.mode != "train" or case.batch < contestant.ranks):
        return f"{contestant.ranks} ranks train, with an image each or more"
    rank = len(case.shape) - 1
    if rank not in RANKS.get(contestant.way.partition(" ")[0], (rank,)):
        return f"it does not run images of shape {case.shape}"
    return ""


def bound(module: nn.Module, library: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return what a module of one op gives it, as `Layer.bound` does; the op of others is `""`.

    Raises
    ------
    UsageError
        If the module's class does not inherit its computation from a class of `xcnn.nn`.
    """
    for name in ("forward", "call_op"):
        own = getattr(type(module), name, None)
        if own is not None and not own.__module__.startswith("xcnn.nn."):
            raise UsageError(f"bench: {type(module).__name__} defines its own {name}, so {library} cannot run it")
    return called(module) or ("", {}, {})
