"""ONNX files as graphs of layers that infer and train.

`reader.py` does the work. `values.py` finds what is known before the network runs. The tables of `operators*.py` say
what each operator is in terms of layers. Files are not trusted: `limits.py` opens them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcnn import nn
from xcnn.errors import explained
from xcnn.onnx.runtime import package

__all__ = ["File", "load", "read"]


@dataclass(frozen=True)
class File:
    """What an ONNX file holds.

    Attributes
    ----------
    graph : the network.
    shape : the shape of one input, without the batch; () if a size is open, or there are several inputs.
    classes : the names of the classes; () if the file does not say.
    preprocessing : how images become inputs, as in `Metadata`; {} if the file does not say.
    softmax : whether the file says that the network ends with a softmax.
    inputs, outputs : the names of the inputs and outputs; the graph takes and returns tuples if there are several.
    opset : the version of the operators.
    producer : the program that wrote the file, or "".
    """

    graph: nn.Graph
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    softmax: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    producer: str


@explained
def load(path: str | Path) -> nn.Graph:
    """Return the network in an ONNX file, as a graph of layers that infers and trains.

    The weights are the graph's parameters. A layer whose weight is called `P.weight` in the file is the node `P`, so
    that `state_dict` has the names of the file; other tensors are nodes under their own names. Weights of 16 bits
    become float32. A file that was written for one size of the batch gives a network for any, unless the exporter has
    repeated a weight for that size.

    Parameters
    ----------
    path : the file.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or has nodes that are not supported; the message names them all.
    UsageError
        If the package onnx is not installed.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from xcnn import nn, onnx
    >>> path = onnx.save(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), f"{tempfile.mkdtemp()}/small.onnx", (2,))
    >>> onnx.load(path)(np.ones((4, 2), np.float32)).shape
    (4, 3)
    """
    return read(path).graph


def read(path: str | Path, shape: Sequence[int] | None = None) -> File:
    """Return the network in an ONNX file with what else the file says.

    Parameters
    ----------
    path : the file.
    shape : the shape of one input, without the batch, for a file that leaves it open. Most networks do not need it.

    Raises
    ------
    CheckpointError, UsageError
        As in `load`; also if the input cannot have the shape.
    """
    package("onnx")
    from xcnn.onnx.reader import read_file

    return File(**read_file(path, shape))
