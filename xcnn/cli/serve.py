"""`xcnn serve`."""

import contextlib
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xcnn.cli._console import Bar, EpochReport, note, print_line
from xcnn.cli._model import Source
from xcnn.errors import UsageError
from xcnn.runs import Config, latest_run
from xcnn.runs import train as run_training
from xcnn.serve import Server, Session
from xcnn.serve.server import check

__all__ = ["serve"]

_FIRST = Config(dataset="digits", augment=("rotate",))
"""The run that is trained if there is none, in a few seconds; drawn digits are never quite upright."""


def serve(
    checkpoint: Path | None = None,
    /,
    *,
    port: int = 8000,
    open: Annotated[bool, Parameter(negative=())] = False,
    source: Source | None = None,
) -> int:
    """Show a page on this machine to play with a network: draw, watch every layer, change weights.

    The page changes a copy in memory, never the file. Only this machine can open it. Ends with Ctrl-C.

    Parameters
    ----------
    checkpoint
        folder of a run, a checkpoint, an ONNX file, weights of safetensors or PyTorch together with --model, or the
        name of an installed package of weights. By default the newest run in `runs/`, or, without any, a network that
        is trained on the digits first, which takes a few seconds.
    port
        port of 127.0.0.1 to listen on; 0 takes any that is free.
    open
        open the page in the browser.
    """
    check(port)  # before anything is loaded or trained
    restored = (source or Source()).restore(_newest() if checkpoint is None else checkpoint, Bar())
    server = Server(Session(restored, note), port, note)
    print_line(server.url)
    note("ends with Ctrl-C")
    if open:
        threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        server.run()
    note("ended")
    return 0


def _newest() -> Path:
    """Return the folder of the newest run, or of one that is trained now."""
    try:
        folder = latest_run()
    except UsageError:
        note("there is no run in runs/ yet: training a small network on the digits for a few seconds")
        folder = run_training(_FIRST, None, [EpochReport(False, _FIRST.network)]).folder
    note(f"the newest run: {folder}")
    return folder
