"""Networks of ONNX files for classification, read by `xcnn.onnx`."""

from pathlib import Path
from typing import Any

from xcnn import nn, onnx
from xcnn.errors import CheckpointError

__all__ = ["is_onnx_file", "read_onnx"]

_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"
"""The first bytes of the fields of a model after that of its version, which all programs write first."""


def is_onnx_file(path: Path, start: bytes) -> bool:
    """Return whether a file that begins with these bytes is an ONNX file, or has its suffix."""
    versioned = start[:1] == b"\x08" and 0 < int.from_bytes(start[1:2]) < 64 and start[2:3] in _FIELDS
    return path.suffix.lower() == ".onnx" or (versioned and start[8:9] != b"{")


def read_onnx(path: Path) -> tuple[nn.Graph, onnx.File, dict[str, Any]]:
    """Return the network of an ONNX file without the softmax at its end, what else the file says, and its settings.

    The settings are those with which `data.read_image` makes an input of an image.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, has nodes that are not supported, or takes other images than RGB or grey ones
        with values from 0 to 1.
    UsageError
        If the package onnx is not installed.
    """
    file = onnx.read(path)
    said = file.preprocessing
    if said.get("channels") == "BGR" or list(said.get("range", (0, 1))) != [0, 1]:
        raise CheckpointError(f"{path} takes images as {said}; here they are RGB or grey, with values from 0 to 1")
    return _scores(file.graph), file, {name: said[name] for name in ("resize", "background") if name in said}


def _scores(graph: nn.Graph) -> nn.Graph:
    """Return a network that gives scores where it gave their softmax: the loss and predictions apply it."""
    options = graph.options()
    name, last, before = options["nodes"][-1]
    if options["output"] != name or not isinstance(before, str) or len(options["nodes"]) < 2:
        return graph
    op = last.op if isinstance(last, nn.Apply) else last.bound()[0] if isinstance(last, nn.Layer) else ""
    return nn.Graph(options["nodes"][:-1], before, options.get("inputs", "x")) if op == "softmax" else graph
