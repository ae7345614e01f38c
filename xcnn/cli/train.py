"""`xcnn train`."""

import dataclasses
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import cyclopts.config
from cyclopts import Parameter, Token

from xcnn import plots
from xcnn._dispatch import COMPILATION
from xcnn._plugins import is_foreign, refuse_foreign
from xcnn.cli._console import EpochReport, note, percent, print_json, print_table, program, use_threads
from xcnn.devices import device as open_device
from xcnn.errors import UsageError
from xcnn.parallel import processes
from xcnn.runs import SETTINGS, Config, Result, latest_run, read_settings, recorded_settings
from xcnn.runs import train as run_training

__all__ = ["RUN", "Flags", "fill_in", "given", "train"]


def _names(type_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(name for token in tokens for name in token.value.split(",") if name)


def _options(type_: Any, tokens: Sequence[Token]) -> dict[str, Any]:
    """Parse NAME=VALUE, where the value is JSON, or otherwise a string."""
    options: dict[str, Any] = {}
    for token in tokens:
        name, given, value = token.value.partition("=")
        if not given:
            raise UsageError(f"expected NAME=VALUE, got {token.value!r}")  # Cyclopts names the flag
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = {"True": True, "False": False}.get(value, value)
    return options


_PARAMETERS = {
    "batch_size": {"name": ["--batch-size", "-b"]},
    "skip_broken": {"negative": ()},
    "normalize": {"negative": ()},
    "sync_batch_norm": {"negative": ()},
    "augment": {"converter": _names, "n_tokens": 1, "negative": (), "show_default": False},
    "freeze": {"converter": _names, "n_tokens": 1, "negative": (), "show_default": False},
    "model_options": {"converter": _options, "n_tokens": 1, "negative": ()},
    "opt_options": {"converter": _options, "n_tokens": 1, "negative": ()},
}

_GROUPS = {
    "Data": (
        *("dataset", "data_dir", "image_size", "resize", "background", "skip_broken", "augment", "normalize"),
        *("validation", "workers"),
    ),
    "Network and training": (
        *("model", "model_options", "init", "freeze", "epochs", "batch_size"),
        *("opt", "lr", "momentum", "wd", "opt_options", "schedule", "warmup"),
        *("label_smoothing", "class_weight", "ema", "accumulate", "sync_batch_norm"),
        *("clip_norm", "monitor", "patience"),
    ),
}
"""The settings by their headings in the help; all others are under that of the run."""
RUN = cyclopts.Group("The run", sort_key=9)
"""The heading of all other flags."""
_HEADING = {name: cyclopts.Group(head, sort_key=i) for i, (head, rows) in enumerate(_GROUPS.items()) for name in rows}


def _flag(row: dataclasses.Field[Any]) -> tuple[str, Any, Any]:
    group = _HEADING.get(row.name, RUN)
    parameter = Parameter(help=SETTINGS[row.name].help, group=group, **_PARAMETERS.get(row.name, {}))  # type: ignore[arg-type]
    # Cyclopts takes a flag whose hint is a dict only once.
    hint = tuple[str, ...] | None if row.name.endswith("_options") else row.type
    return row.name, Annotated[hint, parameter], dataclasses.field(default=row.default)


Flags = Parameter(name="*")(
    dataclasses.make_dataclass(
        "Flags", map(_flag, dataclasses.fields(Config)), bases=(Config,), frozen=True, kw_only=True
    )
)
"""The settings of a run as flags: `Config` with the help of each."""
Flags.__module__ = __name__  # otherwise that of `make_dataclass`, and Cyclopts takes its types for builtin ones


def train(
    flags: Flags | None = None,  # type: ignore[valid-type]
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    resume: str | None = None,
    config: Path | None = None,
    threads: int | None = None,
    deterministic: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a network, test it, and write a folder with all results.

    Started by mpiexec or srun, several processes train one network together; see --accumulate.

    Parameters
    ----------
    out
        folder for the results; by default `runs/DATASET-MODEL-TIME`.
    resume
        folder of a run that ended early, or `latest`: continue it with its settings, except those given here.
    config
        file with the settings that are not given here: JSON, such as the `config.json` of a run, or TOML.
    threads
        number of threads; by default all cores that the process may use. No result depends on it.
    deterministic
        refuse a device that does not guarantee the same bits for the same seed. The cpu does, for any number of
        threads, given the same versions and the same processor.
    json
        print JSON lines on stdout, one per epoch and a last one with the results of the test.
    """
    settings = given(flags)
    use_threads(threads)
    if deterministic and open_device(settings.device).name != "cpu":
        raise UsageError(f"--deterministic: {settings.device} may round differently in every run; use --device cpu")
    if resume is not None and out is not None:
        raise UsageError("--out cannot be given with --resume: the run continues in its own folder")
    folder = out if resume is None else _folder(resume)
    together = processes()
    callbacks = [EpochReport(json, settings.network)]
    result = run_training(settings, folder, callbacks, resume=resume is not None, parallel=together)
    if together.rank == 0:
        _draw(result, settings)
    if result.interrupted:
        note(f"{result.note}; the weights are in {result.checkpoint}")
        again = _again(result.folder, settings, "dataset", "model", "opt", "schedule")
        note(f"resume with: {program()} train --resume {again}")
        return result.interrupted
    if result.note:
        note(f"stopped early: {result.note}")
    if json:
        record = {key: getattr(result, key) for key in ("test_accuracy", "test_loss", "seconds", "checkpoint_seconds")}
        record |= {"compile_seconds": COMPILATION.seconds, "device": result.device, "best_epoch": result.best_epoch}
        record |= {"monitor": settings.monitor if result.best_epoch else None}
        print_json({**record, "checkpoint": str(result.checkpoint)})
    else:
        rows = [
            ("test accuracy", percent(result.test_accuracy)),
            ("test loss", f"{result.test_loss:.4f}"),
            ("weights", result.weights),
            ("training time", _time(result, resume is not None)),
            ("checkpoint", result.checkpoint),
            ("folder", f"{result.folder}/"),
        ]
        print_table(settings.title, "", rows=rows, fold=False)  # paths can be copied
        note(f"a page on the run: {program()} report {_again(result.folder, settings, 'dataset', 'model')}")
        note(f"next: {program()} predict {_again(result.checkpoint, settings, 'dataset', 'model')} --index 0")
    return 0


def given(flags: Config | None) -> Config:
    """Return the settings that the flags give; a folder of images without the data set `folder` is refused."""
    settings: Config = flags or Flags()
    if settings.dataset == Config.dataset and settings.data_dir is not None:
        hint = f"for images of your own in {settings.data_dir}, add --dataset folder"
        raise UsageError(f"the data set {settings.dataset} is part of the package; {hint}", setting="data_dir")
    return settings


def _again(path: Path, settings: Config, *names: str) -> str:
    """Return a path quoted for the shell, with flags for the names of user code, which no file may supply."""
    flags = ((f"--{name}", getattr(settings, name)) for name in names if is_foreign(getattr(settings, name)))
    return shlex.join([str(path), *itertools.chain.from_iterable(flags)])


def fill_in(app: cyclopts.App, commands: tuple[str, ...], arguments: cyclopts.ArgumentCollection) -> None:
    """Take the settings that the command line leaves out from the run of `--resume`, or the file of `--config`."""
    resume, config = (_value(arguments, flag) for flag in ("--resume", "--config"))
    if resume is not None and config is not None:
        raise UsageError("--config cannot be given with --resume: the run has its own settings")
    if resume is not None:
        source: Path = _folder(resume)
        # So that `latest` is looked up once.
        arguments.match("--resume")[0].tokens[:] = [Token(keyword="--resume", value=str(source))]
        settings = recorded_settings(source, note)
        source /= "config.json"
    elif config is not None:
        source = Path(config)
        settings = read_settings(source)
    else:
        return
    names = {name: settings.get(name) for name in ("dataset", "model", "opt", "schedule")}
    refuse_foreign(source, **{name: value for name, value in names.items() if _value(arguments, f"--{name}") is None})
    for setting in ("model_options", "opt_options"):
        if isinstance(options := settings.get(setting), dict):
            settings[setting] = [f"{name}={json.dumps(value, default=str)}" for name, value in options.items()]
    given = {name: value for name, value in settings.items() if value != []}  # an empty list is the default
    cyclopts.config.Dict(given, source=str(source), use_commands_as_keys=False)(app, commands, arguments)


def _value(arguments: cyclopts.ArgumentCollection, flag: str) -> str | None:
    tokens = [token for argument in arguments if flag in argument.names for token in argument.tokens]
    return tokens[0].value if tokens else None


def _folder(resume: str) -> Path:
    return latest_run() if resume == "latest" else Path(resume)


def _time(result: Result, resumed: bool) -> str:
    share = result.checkpoint_seconds / result.seconds if result.seconds > 1 else 0.0  # too short to measure
    saving = f", {share:.0%} of it for checkpoints" if share >= 0.01 else ""
    compiling = f", after {COMPILATION.seconds:.0f} s of compiling kernels" if COMPILATION.seconds >= 0.5 else ""
    since = " since it was resumed" if resumed else ""
    return f"{result.seconds:.1f} s{since} on {result.device}{saving}{compiling}"


def _draw(result: Result, config: Config) -> None:
    """Draw the pictures into the folder, if Matplotlib is installed."""
    title = config.title
    try:
        if result.history:
            plots.curves(result.history, result.folder / "curves.png", title, result.best_epoch or None)
        if result.confusion is not None:
            title = f"{title}: test accuracy {percent(result.test_accuracy)}"
            plots.confusion(result.confusion, result.classes, result.folder / "confusion.png", title)
    except plots.NoMatplotlibError as error:
        note(f"no pictures: {error}")
