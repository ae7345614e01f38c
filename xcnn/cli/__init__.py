"""The command `xcnn`: one file per subcommand, each of which parses, calls one function below, and prints.

Results go to stdout, everything for people (progress, notes, errors) to stderr. Exit codes: 0 done, 1 failed, 2 a
request that cannot be meant, 130 interrupted by Ctrl-C, 143 ended by SIGTERM.
"""

import os
import sys
from collections.abc import Sequence

import cyclopts
import numpy as np

from xcnn._dispatch import COMPILATION
from xcnn.cli._console import announce_compiling, error_line, stderr
from xcnn.cli.bench import bench
from xcnn.cli.compare import compare
from xcnn.cli.datasets import datasets
from xcnn.cli.devices import devices
from xcnn.cli.evaluate import evaluate
from xcnn.cli.models import models
from xcnn.cli.predict import predict
from xcnn.cli.train import fill_in, train
from xcnn.errors import XcnnError
from xcnn.training import terminable

__all__ = ["app", "main"]

app = cyclopts.App(
    name="xcnn",
    help="Convolutional networks from hand-written passes. Add --debug to any command for tracebacks.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says something before it ends
)
app.command(train, config=[fill_in])
for _command in (evaluate, predict, compare, bench, models, datasets, devices):
    app.command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        # Where a number leaves its range, xcnn says so itself, in one sentence.
        with np.errstate(all="ignore"), terminable(), COMPILATION.announced(announce_compiling):
            result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        error_line(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        error_line("interrupted")
        return 130
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == 143:
            error_line("terminated")
            return 143
        # The reader left, as `head` does, for which Rich has an exit of its own. Keep the interpreter from complaining
        # when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if isinstance(error, XcnnError | OSError):
            error_line(_with_flag(error))
        elif isinstance(error, MemoryError):
            error_line(f"out of memory ({error})")
        else:
            error_line(f"unexpected {type(error).__name__}: {error} (--debug shows where)")
        return getattr(error, "exit_code", 1)
    finally:
        stderr.show_cursor()  # a progress bar that an error ended would leave it hidden
    return result if isinstance(result, int) else 0


def _with_flag(error: Exception) -> str:
    """Return what an error says, with the flag in place of the setting that it is about."""
    setting, message = getattr(error, "setting", ""), str(error)
    if not setting:
        return message
    flag = f"--{setting.replace('_', '-')}"
    return message.replace(setting, flag, 1) if message.startswith(setting) else f"{flag}: {message}"
