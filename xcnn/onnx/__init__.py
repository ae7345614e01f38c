"""Networks to and from ONNX, the exchange format that browsers, phones and other frameworks run (extra `onnx`).

`to_model` and `save` write a network, `load` and `read` read one, `quantize` makes one 8 bits wide, and `Session` runs
a file with ONNX Runtime. `EXPORTS` is the table of the ops that can be written. Neither onnx nor onnxruntime is
imported before it is used.
"""

from xcnn.onnx.builder import EXPORTS, Builder, Exporter, exports
from xcnn.onnx.export import save, to_model
from xcnn.onnx.load import File, load, read
from xcnn.onnx.metadata import Metadata
from xcnn.onnx.quantize import quantize
from xcnn.onnx.runtime import Session, package

__all__ = [
    "EXPORTS",
    "Builder",
    "Exporter",
    "File",
    "Metadata",
    "Session",
    "exports",
    "load",
    "package",
    "quantize",
    "read",
    "save",
    "to_model",
]
