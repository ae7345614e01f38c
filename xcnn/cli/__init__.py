"""The command `xcnn`, with one file per subcommand.

Results go to stdout; progress, notes and errors go to stderr. Exit codes:

- 0: success.
- 1: failure.
- 2: an invalid request.
- 130: interrupted by Ctrl-C.
- 141: the reader of stdout, such as `head`, exited before the last result. A training run has still been completed.
- 143: terminated by SIGTERM.

If stderr breaks, progress is no longer shown, and the work continues.

Of the processes that `mpiexec` starts, the first prints; an error that only one of them meets ends all.
"""

import difflib
import re
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import get_args

import cyclopts
import numpy as np

from xcnn._dispatch import COMPILATION
from xcnn.cli._console import OutputError, error_line, help_console, in_flags, leave_terminal, note, one_voice
from xcnn.cli.bench import bench
from xcnn.cli.compare import compare
from xcnn.cli.datasets import datasets
from xcnn.cli.devices import devices
from xcnn.cli.draw import draw
from xcnn.cli.evaluate import evaluate
from xcnn.cli.explain import explain
from xcnn.cli.export import export
from xcnn.cli.models import models
from xcnn.cli.predict import predict
from xcnn.cli.report import report
from xcnn.cli.search import search
from xcnn.cli.serve import serve
from xcnn.cli.train import RUN, fill_in, train
from xcnn.data import DATASETS
from xcnn.devices import LIBRARIES
from xcnn.errors import UsageError, XcnnError
from xcnn.models import MODELS
from xcnn.parallel import fail, processes
from xcnn.training import terminable
from xcnn.training.progress import COMPILING

__all__ = ["app", "main"]


def _check_values(app: cyclopts.App, commands: tuple[str, ...], arguments: cyclopts.ArgumentCollection) -> None:
    """Take commas between several integers, and refuse values that Cyclopts would convert.

    It would make 2.7 an integer, and an empty path the current folder.
    """
    for argument in arguments:
        if argument.hint == tuple[int, ...]:
            argument.tokens[:] = [
                token.evolve(value=value, index=place)
                for place, (token, value) in enumerate(
                    (token, value) for token in argument.tokens for value in token.value.split(",")
                )
            ]
        types = {argument.hint, *get_args(argument.hint)}
        types |= {inner for hint in types for inner in get_args(hint)}  # tuple[int, int, int] | None
        for token in argument.tokens:
            if int in types and not re.fullmatch(r"[+-]?[0-9]+", token.value):
                raise UsageError(f"{argument.name} takes an integer, got {token.value!r}")
            if Path in types and not token.value:
                raise UsageError(f"{argument.name} takes a path, got ''")


app = cyclopts.App(
    name="xcnn",
    help="Convolutional networks from hand-written passes. Add --debug to any command for tracebacks.",
    version_flags=["--version"],
    console=help_console,
    config=[_check_values],
    default_parameter=cyclopts.Parameter(
        json_dict=False,  # a file may be called [1].png
        json_list=False,
        show_default=lambda value: None if value is None or value is False else str(value),
    ),
    suppress_keyboard_interrupt=False,  # `main` prints that it was interrupted
)
app.command(train, config=[fill_in, _check_values], group_parameters=RUN)
app.command(search, config=[fill_in, _check_values], group_parameters=RUN)
for _command in (evaluate, predict, explain, report, serve, export, compare, bench, draw, models, datasets, devices):
    app.command(_command)
app.register_install_completion_command(
    help="Complete commands and flags with the Tab key from now on (bash, zsh, fish)."
)

_ALONE = {"bench", "compare", "draw", "explain", "export", "report", "search", "serve"}
"""The commands that are refused if several processes run them."""

_NAMES: dict[str, Container[str]] = {
    "--dataset": DATASETS,
    "--model": MODELS,
    "--models": MODELS,
    "--device": LIBRARIES,
    "--devices": LIBRARIES,
}
"""The names that each flag takes. The error for a name without its flag suggests the flag."""

_ELSEWHERE = {
    "--learning-rate": "--lr",
    "--weight-decay": "--wd",
    "--optimizer": "--opt",
    "--scheduler": "--schedule",
    "--output": "--out",
    "--output-dir": "--out",
    "--early-stopping": "--patience",
    "--num-threads": "--threads",
    "--gpu": "--device cuda",
    "--cuda": "--device cuda",
    "--cpu": "--device cpu",
    "--checkpoint": "--resume",
    "--data": "--data-dir",
    "--train-dir": "--data-dir",
    "--path": "--data-dir",
    "--size": "--image-size",
    "--imgsz": "--image-size",
    "--modes": "--mode",
    "--bs": "--batch-size",
    "--batch": "--batch-size",
    "--val-split": "--validation",
    "--weights": "--init",
    "--pretrained": "--init",
    "--pics": "--pictures",
    "--crop": "--resize crop",
    "--pad": "--resize pad",
    "--stretch": "--resize stretch",
}
"""What other programs call our flags, and names that are too short to be similar."""

_CALLER = re.compile("^(load|read_image|read_idx|to_model|save|quantize|restore|serve): ")
"""The functions with whose names errors begin, which say nothing to a user of the command."""

_SIMILAR = 0.7
"""The least similarity of a flag that is suggested, from 0 to 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        # Before anything that can fail in one of them alone. It waits for all, and SIGTERM, which Python would only
        # handle afterwards, must end it.
        together = processes()
        # xcnn reports overflow and invalid numbers itself.
        with np.errstate(all="ignore"), terminable(), COMPILATION.announced(lambda: note(COMPILING)):
            if getattr(sys, "stdout", None) is None:  # refused before anything is computed
                raise OutputError(ValueError("it is closed"))
            _refuse_several(tokens, together.size)
            with one_voice(together.rank):
                result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        return _failed(2, _parsing(error))
    except KeyboardInterrupt:
        return _failed(130, "interrupted")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return _failed(code, "terminated" if code == 143 else "") if code else 0
    except Exception as error:
        if debug:
            raise
        code = getattr(error, "exit_code", 1)
        if isinstance(error, OutputError) and error.reader_left:
            return _failed(code, "")
        if isinstance(error, XcnnError | OSError):
            return _failed(code, _with_flag(error))
        if isinstance(error, MemoryError):
            return _failed(code, f"out of memory ({error})")
        return _failed(code, f"unexpected {type(error).__name__}: {error} (--debug shows where)")
    finally:
        leave_terminal()
    return result if isinstance(result, int) else 0


def _failed(code: int, message: str) -> int:
    """Print an error unless it is "", end the job if there are other processes, and return the exit code."""
    return fail(code, message, error_line)


def _refuse_several(tokens: Sequence[str], size: int) -> None:
    """Raise a UsageError for a command that is for one process, if there are several."""
    if size > 1 and tokens and tokens[0] in _ALONE and not {"--help", "-h"} & set(tokens):
        raise UsageError(f"xcnn {tokens[0]} runs in one process; start it without mpiexec or srun")


def _with_flag(error: Exception) -> str:
    """Return the message of an error in the words of the command line."""
    message, setting = in_flags(_CALLER.sub("", str(error))), getattr(error, "setting", "")
    flag = f"--{setting.replace('_', '-')}"
    if not setting:
        return message
    return flag + message[len(setting) :] if re.match(rf"{setting}\b", message) else f"{flag}: {message}"


def _parsing(error: cyclopts.CycloptsError) -> str:
    """Return one sentence on why a command line cannot be parsed."""
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None and error.command_chain:
        name, count, got = error.argument.name, error.argument.token_count()[0], len(error.tokens_so_far)
        if not name.startswith("-"):
            return f"{error.command_chain[0]} needs {name}; see xcnn {error.command_chain[0]} --help"
        return f"{name} takes {'a value' if count == 1 else f'{count} values, got {got}'}"
    if isinstance(error, cyclopts.UnknownOptionError) and error.token.source == "cli":
        return _unknown_flag(error)
    if not isinstance(error, cyclopts.UnusedCliTokensError) or not error.unused_tokens:
        return " ".join(str(error).split())
    command, token = " ".join(error.command_chain or ()), error.unused_tokens[0]
    flags = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
    for flag, names in _NAMES.items():
        if flag in flags and token in names:
            return f"{command} takes no argument {token!r}; did you mean {flag} {token}?"
    return f"{command} takes no argument {token!r}; see xcnn {command} --help"


def _unknown_flag(error: cyclopts.UnknownOptionError) -> str:
    """Return one sentence on a flag that does not exist, with the one that was probably meant."""
    command, flag = " ".join(("xcnn", *(error.command_chain or ()))), error.token.keyword or error.token.value
    names = [name for argument in error.argument_collection for name in argument.names]
    meant = _ELSEWHERE.get(flag.replace("_", "-"), "")
    if meant.split(" ")[0] not in names:
        bare = {name.lstrip("-"): name for name in names}  # the dashes would make all of them similar
        near = difflib.get_close_matches(flag.lstrip("-").replace("_", "-"), bare, n=1, cutoff=_SIMILAR)
        meant = bare[near[0]] if near else ""
    return f"{command} has no flag {flag}; " + (f"did you mean {meant}?" if meant else f"see {command} --help")
