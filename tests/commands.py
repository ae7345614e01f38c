"""What tests of the command line share: a run of a second, and the command in a process of its own."""

import os
import subprocess
import sys

__all__ = ["PORTABLE", "QUICK", "start"]

QUICK = ["train", "--model", "report", "--epochs", "2", "--validation", "0.2"]


PORTABLE = os.environ | {"XCNN_KERNELS": "off"}
"""The environment of commands whose kernels are not tested, as loading their compiler takes time."""


def start(*argv: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "xcnn", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
