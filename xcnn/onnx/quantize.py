"""`quantize`: a network with weights and activations of 8 bits, by ONNX Runtime's own static quantiser."""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xcnn._check import path as checked_path
from xcnn._check import shown
from xcnn._files import replacing
from xcnn.errors import UsageError, XcnnError, explained
from xcnn.onnx.runtime import Session, content, package, sentence

__all__ = ["quantize", "quantized"]


@explained
def quantize(source: Any, path: str | Path, batches: Iterable[Any]) -> Path:
    """Write a network with weights and activations of 8 bits to an ONNX file.

    Batch norm is first merged into convolutions. Weights get a scale per channel and 7 of the bits, so that the sums of
    no processor overflow; activations get one scale per array, which is measured on `batches`. The nodes stay those of
    the standard, between `QuantizeLinear` and `DequantizeLinear`; inputs, outputs and metadata stay as they are. The
    error is that of 8 bits, so measure the accuracy. An older file stays until the new one is complete.

    Parameters
    ----------
    source : the network in float32: the path of a file, its bytes, or an `onnx.ModelProto`.
    path : the file to write.
    batches : typical inputs (n, ...), such as some hundred training images; for several inputs, tuples of arrays.

    Returns
    -------
    The path.

    Raises
    ------
    UsageError
        If onnx or onnxruntime is not installed, there are no batches, or ONNX Runtime cannot run or quantise them.
    CheckpointError
        If ONNX Runtime cannot read the network.
    WriteError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from xcnn import nn, onnx
    >>> model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), np.random.default_rng(0).random((100, 64), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = onnx.quantize(onnx.to_model(model, (64,)), f"{folder}/small.onnx", [x])
    ...     bool(np.abs(onnx.Session(path)(x) - model(x)).max() < 0.05)
    True
    """
    path = checked_path("quantize", "path", path)
    made = quantized(source, batches)
    with replacing(path) as temporary:
        temporary.write_bytes(made)
    return path


def quantized(source: Any, batches: Iterable[Any]) -> bytes:
    """Return what `quantize` writes; the arguments and errors are those of it."""
    onnx, tool = package("onnx"), package("onnxruntime.quantization")
    session = Session(source)
    reader = _reader(tool, session, batches)
    with tempfile.TemporaryDirectory() as folder:
        first, merged, last = (Path(folder, name) for name in ("float32.onnx", "merged.onnx", "int8.onnx"))
        with replacing(first) as temporary:
            temporary.write_bytes(content(source))
        try:
            with _quiet():
                merge = package("onnxruntime.quantization.shape_inference").quant_pre_process
                merge(first, merged, skip_symbolic_shape=True)
                # Some processors add pairs of products in 16 bits, where weights of 7 bits fit.
                unsigned = tool.QuantType.QUInt8  # faster than signed activations on x86
                tool.quantize_static(
                    merged, last, reader, per_channel=True, activation_type=unsigned, reduce_range=True
                )
            made = onnx.load(last)
        except XcnnError:
            raise
        except Exception as error:  # of any type
            raise UsageError(f"quantize: ONNX Runtime cannot quantise the network: {sentence(error)}") from None
    used = {node.domain for node in made.graph.node}
    for operators in [one for one in made.opset_import if one.domain not in used]:
        made.opset_import.remove(operators)
    return bytes(made.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the tool logs inside a `with`: it warns of every layer that it leaves in float32."""

    def others(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # without any, the first warning would add one for good
    root.addFilter(others)
    try:
        yield
    finally:
        root.removeFilter(others)
        root.removeHandler(handler)


def _reader(tool: Any, session: Session, batches: Iterable[Any]) -> Any:
    """Return the inputs as the tool reads them, after one has been tried."""

    def inputs() -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            arrays = batch if isinstance(batch, tuple) else (batch,)
            if len(arrays) != len(session.inputs):
                raise UsageError(f"quantize: the network takes {len(session.inputs)} inputs, a batch has {len(arrays)}")
            yield dict(zip(session.inputs, map(np.asarray, arrays), strict=True))

    if not isinstance(batches, Iterable):
        raise UsageError(f"quantize: batches must be a list or iterator of inputs, got {shown(batches)}")
    rest = inputs()
    first = next(rest, None)
    if first is None or not all(map(np.size, first.values())):
        raise UsageError("quantize: batches must have at least one batch of inputs, got none")
    session.run(first)

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return given.pop() if given else next(rest, None)

    given = [first]
    return Reader()
