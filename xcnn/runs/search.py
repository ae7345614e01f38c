"""A search over settings: runs with values that Optuna chooses. If it is interrupted, it goes on from its folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from xcnn._check import flag, integer
from xcnn.errors import UsageError, WriteError, XcnnError, explained
from xcnn.runs.settings import Config, check
from xcnn.runs.study import Search, Study, Trial
from xcnn.runs.vary import varied
from xcnn.training import Callback

__all__ = ["search"]


@explained
def search(
    config: Config,
    vary: Sequence[str],
    trials: int,
    folder: str | Path,
    callbacks: Sequence[Callback] = (),
    *,
    prune: bool = True,
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
    callbacks : passed to every run.
    prune : whether a trial ends after an epoch in which the best of its values is worse than the median of the others'
        in that epoch. The first epoch and the first five trials are left alone.
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
    try:
        integer("search", "trials", trials)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("search: "), setting="trials") from None
    flag("search", "prune", prune)
    folder = Path(folder)
    with Study(folder, config, variables, prune) as study:
        code = 0
        try:
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
