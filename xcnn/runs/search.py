"""A search over settings: runs with values that Optuna chooses. If it is interrupted, it goes on from its folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from xcnn._check import flag, integer
from xcnn.errors import UsageError, WriteError, XcnnError, explained
from xcnn.runs.settings import Config, check
from xcnn.runs.study import POLL, Search, Study, Trial
from xcnn.runs.vary import varied
from xcnn.threads import get_num_threads, set_num_threads
from xcnn.training import Callback, terminable

__all__ = ["search"]

_COMMAND = "from xcnn.runs.search import _main; _main()"
"""The Python code that each of several processes runs."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""The variables from which the libraries below NumPy read their number of threads."""


@explained
def search(
    config: Config,
    vary: Sequence[str],
    trials: int,
    folder: str | Path,
    callbacks: Sequence[Callback] = (),
    *,
    prune: bool = True,
    processes: int = 1,
    watch: Callable[[Trial], object] = lambda trial: None,
) -> Search:
    """Train with values that are chosen by the results so far, and test the best of these runs.

    The trials are compared by the best value of `config.monitor`, which is of held-out images. The test images are read
    once, at the end, for the best trial.

    The same call goes on with a search that was interrupted, at the epoch where its trials were, and so does a call
    with more trials. Processes that make the same call meanwhile, on this machine or another one that has the folder,
    work on the same trials, and all return when the last one has ended. Of one process, all results are reproducible,
    also after interruptions.

    Parameters
    ----------
    config : the settings that are not varied.
    vary : what is varied, such as `["lr=1e-4..1e-1:log", "batch_size=32,64,128", "model_options.filters=4..32"]`; see
        `xcnn.runs.vary.varied`.
    trials : the number of trials in all. Those that ended early or failed count.
    folder : the folder of the search, created if it does not exist.
    callbacks : passed to every run; not with several processes.
    prune : whether a trial ends after an epoch in which the best of its values is worse than the median of the others'
        in that epoch. The first epoch and the first five trials are left alone.
    processes : the number of processes that train at the same time, each with its share of the threads.
    watch : called with each trial that begins or has ended.

    Returns
    -------
    The result. After Ctrl-C or SIGTERM, the states of unfinished trials are saved, and nothing is tested.

    Raises
    ------
    XcnnError
        If Optuna is not installed, the settings are invalid, the folder belongs to another search, it cannot be
        written, or its journal is damaged. A trial that diverges or that needs too much memory is no error.
    """
    config, variables = check(config), varied(vary, config)
    if not isinstance(folder, str | Path) or not str(folder):
        raise UsageError(f"folder must be the path of the search, got {folder!r}", setting="out")
    for name, count in (("trials", trials), ("processes", processes)):
        try:
            integer("", name, count)
        except UsageError as error:
            raise UsageError(str(error).removeprefix(": "), setting=name) from None
    flag("search", "prune", prune)
    if processes > 1 and callbacks:
        raise UsageError("callbacks cannot be called in several processes; pass none, or set processes to 1")
    folder = Path(folder)
    with Study(folder, config, variables, prune) as study:
        code = 0
        try:
            if processes > 1:
                _share(study, trials, processes, watch)
            else:
                code = study.work(trials, callbacks, watch)
            if not code:
                study.test_best(trials)
        except (KeyboardInterrupt, SystemExit) as stop:
            code = int(stop.code or 0) if isinstance(stop, SystemExit) else 130
        except XcnnError:
            study.remove_if_useless()
            raise
        except OSError as error:
            raise WriteError(f"cannot write into {folder}: {error.strerror or error}") from None
        return study.result(code)


# Several processes


def _share(study: Study, trials: int, processes: int, watch: Callable[[Trial], object]) -> None:
    """Let processes of their own work on the trials until all have ended."""
    threads, seen = max(1, get_num_threads() // processes), {one.number for one in study.trials() if one.ended}
    request = {
        **study.settings,
        "trials": trials,
        "folder": str(study.folder.absolute()),
        "threads": threads,
        "path": sys.path,
    }

    def report() -> None:
        for one in study.trials():
            if one.ended and one.number not in seen:
                seen.add(one.number)
                watch(one)

    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(json.dumps(request), threads)) for _ in range(processes)]
        try:
            working = True
            while working:
                time.sleep(POLL)
                working = any(one.process.poll() is None for one in workers)
                for one in workers:
                    if one.process.poll() not in (None, 0):
                        raise one.error()
                report()
        finally:
            for one in workers:
                one.stop()
            for one in workers:
                one.process.wait()
            report()


class _Worker:
    """A process that works on trials until none is left, or until `stop`."""

    def __init__(self, request: str, threads: int) -> None:
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, request],
            stdin=subprocess.PIPE,
            stdout=self.output,
            stderr=self.output,
            env=os.environ | dict.fromkeys(_THREADS, str(threads)),
            start_new_session=True,  # Ctrl-C reaches only the parent, which ends the workers
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()  # it has ended, unless a second signal came
        self.process.wait()
        self.output.close()

    def stop(self) -> None:
        """Let it save its state and end."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def error(self) -> XcnnError:
        """Return why it has failed."""
        self.output.seek(0)
        last = (self.output.read().strip().splitlines() or [f"it ended with exit code {self.process.returncode}"])[-1]
        with contextlib.suppress(ValueError):
            setting, message = json.loads(last)
            return UsageError(message, setting=setting) if setting is not None else XcnnError(message)
        return XcnnError(f"a process of the search failed: {last}; start the same search again to go on")


def _main() -> None:
    """Work on the search that the argument of the process describes, until no trial is left or stdin ends."""
    request = json.loads(sys.argv[1])
    sys.path[:] = request["path"]
    set_num_threads(request["threads"])
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    config = check(Config(**request["config"]))
    try:
        with (
            terminable(),
            Study(Path(request["folder"]), config, varied(request["vary"], config), request["prune"]) as study,
        ):
            code = study.work(request["trials"], (), lambda trial: None)
    except XcnnError as error:
        print(json.dumps([getattr(error, "setting", None), str(error)]))
        code = error.exit_code
    sys.exit(code)


def _end_with_stdin() -> None:
    """End this process as SIGTERM does, after its step, when the parent closes the pipe or does not exist any more."""
    while os.read(0, 1):  # not through a stream, whose lock a daemon thread would hold while the interpreter exits
        pass
    signal.raise_signal(signal.SIGTERM)
