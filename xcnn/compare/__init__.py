"""Comparison of devices: errors of ops and layers against their budgets, distances after training steps, and speed.

`bench` compares speed and memory with other libraries.
"""

from xcnn.compare.bench import Dropped, Failed, Growth, Result, Timing, bench, contestants, growths, speed
from xcnn.compare.budget import BUDGETS, WIDE, Budget, Error
from xcnn.compare.case import MODES, Case
from xcnn.compare.contestants import PEERS, Contestant
from xcnn.compare.files import TOGETHER, Comparison, Opened, Pair, compare_files, open_file
from xcnn.compare.finding import Finding, nearest
from xcnn.compare.gpu import CPU, describe
from xcnn.compare.inference import RUNTIME, Runtime, inference_errors, network_errors
from xcnn.compare.layers import layer_errors
from xcnn.compare.markdown import markdown
from xcnn.compare.op import op_errors, op_name
from xcnn.compare.profile import Row, profile
from xcnn.compare.report import Record, read, report
from xcnn.compare.steps import PARTING, RANDOM, batches, distances, per_pixel
from xcnn.compare.sweep import BOUNDS, Mean, means, worst
from xcnn.compare.worker import SpeedError
from xcnn.machine import machine

__all__ = [
    "BOUNDS",
    "BUDGETS",
    "CPU",
    "MODES",
    "PARTING",
    "PEERS",
    "RANDOM",
    "RUNTIME",
    "TOGETHER",
    "WIDE",
    "Budget",
    "Case",
    "Comparison",
    "Contestant",
    "Dropped",
    "Error",
    "Failed",
    "Finding",
    "Growth",
    "Mean",
    "Opened",
    "Pair",
    "Record",
    "Result",
    "Row",
    "Runtime",
    "SpeedError",
    "Timing",
    "batches",
    "bench",
    "compare_files",
    "contestants",
    "describe",
    "distances",
    "growths",
    "inference_errors",
    "layer_errors",
    "machine",
    "markdown",
    "means",
    "nearest",
    "network_errors",
    "op_errors",
    "op_name",
    "open_file",
    "per_pixel",
    "profile",
    "read",
    "report",
    "speed",
    "worst",
]
