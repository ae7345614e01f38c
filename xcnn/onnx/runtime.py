"""ONNX Runtime: sessions that run a file or a model on the CPU. The packages of the extra `onnx` are imported here."""

import importlib
from collections.abc import Mapping
from os import PathLike
from types import ModuleType
from typing import Any

import numpy as np

from xcnn._check import flag, integer, path
from xcnn.errors import CheckpointError, UsageError
from xcnn.onnx.metadata import Metadata, read
from xcnn.threads import get_num_threads

__all__ = ["Session", "content", "package", "sentence"]


def package(name: str) -> ModuleType:
    """Return the package `onnx` or `onnxruntime`, or a module of it.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"ONNX needs the package {name.split('.')[0]}; pip install onnx onnxruntime") from None


class Session:
    """A network in ONNX Runtime, on the CPU.

    Parameters
    ----------
    source : the path of a file, its bytes, or an `onnx.ModelProto`.
    threads : number of threads; by default `xcnn.get_num_threads()`.
    spins : whether threads without work spin for a while, ready for the next call, before they sleep.

    Attributes
    ----------
    inputs, outputs : the names of the inputs and the outputs.
    shapes : the shapes of the inputs and those of the outputs, by name; a letter, or None, stands for any size.
    metadata : what the file says about its network.

    Raises
    ------
    UsageError
        If onnxruntime is not installed, or `threads` is not an integer of at least 1.
    CheckpointError
        If ONNX Runtime cannot read the network.

    Examples
    --------
    >>> import numpy as np
    >>> from xcnn import nn, onnx
    >>> session = onnx.Session(onnx.to_model(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), (2,)))
    >>> session(np.ones((4, 2), np.float32)).shape
    (4, 3)
    """

    def __init__(self, source: Any, threads: int | None = None, spins: bool = True) -> None:
        runtime = package("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # fatal ones alone; errors are raised
        options.intra_op_num_threads = integer("Session", "threads", get_num_threads() if threads is None else threads)
        options.inter_op_num_threads = 1
        spins = flag("Session", "spins", spins)
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
        network = str(path("Session", "source", source)) if isinstance(source, str | PathLike) else content(source)
        try:
            self._session = runtime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of several types, which have no common base
            raise CheckpointError(f"ONNX Runtime cannot read the network: {sentence(error)}") from None
        self.shapes: tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]]] = (
            {entry.name: tuple(entry.shape) for entry in self._session.get_inputs()},
            {entry.name: tuple(entry.shape) for entry in self._session.get_outputs()},
        )
        self.inputs, self.outputs = map(tuple, self.shapes)

    @property
    def metadata(self) -> Metadata:
        """What the file says about its network."""
        return read(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, *inputs: Any) -> Any:
        """Return the output for the inputs in the order of `inputs`, a host array; a tuple of several outputs."""
        if len(inputs) != len(self.inputs):
            raise UsageError(f"Session: the network takes {len(self.inputs)} inputs, got {len(inputs)}")
        results = tuple(self.run(dict(zip(self.inputs, inputs, strict=True))).values())
        return results[0] if len(results) == 1 else results

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the outputs by name for inputs by name, host arrays.

        Raises
        ------
        UsageError
            If ONNX Runtime refuses the inputs.
        """
        try:
            results = self._session.run(list(self.outputs), {name: np.asarray(x) for name, x in inputs.items()})
        except Exception as error:
            raise UsageError(f"ONNX Runtime: {sentence(error)}") from None
        return dict(zip(self.outputs, results, strict=True))


def content(source: Any) -> bytes:
    """Return the bytes of a file, of bytes or of an `onnx.ModelProto`.

    Raises
    ------
    UsageError
        If it is something else.
    CheckpointError
        If the file cannot be read.
    """
    if isinstance(source, str | PathLike):
        try:
            return path("Session", "source", source).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{source} cannot be read: {error.strerror or error}") from None
    if hasattr(source, "SerializeToString"):
        return bytes(source.SerializeToString())
    if not isinstance(source, bytes):
        raise UsageError(f"Session: source must be a path, bytes or an onnx.ModelProto, got {type(source).__name__}")
    return source


def sentence(error: Exception) -> str:
    """Return the message of an error of ONNX Runtime in one line, without the code that it begins with."""
    return " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
