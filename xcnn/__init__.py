"""Convolutional networks with hand-written forward and backward passes, for any array library.

`xcnn.ops` has the passes themselves, `xcnn.nn` layers and containers, `xcnn.optim` update rules, `xcnn.data` data sets
and loaders, `xcnn.models` named networks, `xcnn.training` the training loop, `xcnn.parallel` several processes for it,
`xcnn.runs` whole runs and their files, `xcnn.explain` what a network has learned, `xcnn.plots` pictures, `xcnn.pages`
pages on answers and runs, `xcnn.serve` a page to play with a network, `xcnn.onnx` networks to and from ONNX,
`xcnn.testing` the checks for ops and layers of your own. `xcnn.Trainer` trains a network, `xcnn.save` and `xcnn.load`
keep it in one file, `xcnn.device` opens a device by its string, and `xcnn.set_num_threads` sets the number of CPU
threads. Each subpackage is imported when it is first used.
"""

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing `typing` takes longer than the rest of this file
    from typing import Any

    from xcnn import (
        compare,
        data,
        devices,
        errors,
        explain,
        models,
        nn,
        onnx,
        ops,
        optim,
        pages,
        parallel,
        plots,
        runs,
        serve,
        testing,
        training,
    )
    from xcnn.devices import device
    from xcnn.errors import XcnnError
    from xcnn.runs import load, save
    from xcnn.threads import get_num_threads, set_num_threads
    from xcnn.training import Trainer

__all__ = [
    "Trainer",
    "XcnnError",
    "__version__",
    "compare",
    "data",
    "device",
    "devices",
    "errors",
    "explain",
    "get_num_threads",
    "load",
    "models",
    "nn",
    "onnx",
    "ops",
    "optim",
    "pages",
    "parallel",
    "plots",
    "runs",
    "save",
    "serve",
    "set_num_threads",
    "testing",
    "training",
]

__version__ = "0.1.0"

_ROOMS = {
    "Trainer": "training",
    "XcnnError": "errors",
    "device": "devices",
    "get_num_threads": "threads",
    "load": "runs",
    "save": "runs",
    "set_num_threads": "threads",
}


def __getattr__(name: str) -> "Any":
    if name in _ROOMS:
        return getattr(importlib.import_module(f"xcnn.{_ROOMS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"xcnn.{name}")
    raise AttributeError(f"module 'xcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
