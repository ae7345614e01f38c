"""Convolutional networks with hand-written forward and backward passes, on any array library.

`xcnn.ops` are the passes themselves, `xcnn.nn` layers and containers, `xcnn.optim` update rules, `xcnn.data` data sets
and loaders, `xcnn.models` named networks, `xcnn.training` the `Trainer` and what goes with it, `xcnn.runs` whole runs
and their files. `xcnn.device` opens a device by its string; `xcnn.set_num_threads` says how many threads compute on the
CPU.
"""

from xcnn import data, errors, models, nn, ops, optim, runs, training
from xcnn.devices import device
from xcnn.errors import XcnnError
from xcnn.threads import get_num_threads, set_num_threads
from xcnn.training import Trainer

__all__ = [
    "Trainer",
    "XcnnError",
    "__version__",
    "data",
    "device",
    "errors",
    "get_num_threads",
    "models",
    "nn",
    "ops",
    "optim",
    "runs",
    "set_num_threads",
    "training",
]

__version__ = "0.1.0"
