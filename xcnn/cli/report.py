"""`xcnn report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xcnn.cli._console import Bar, check_writable, note, percent, print_table
from xcnn.cli._model import Source
from xcnn.errors import UsageError

__all__ = ["report"]


def report(
    run: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    source: Source | None = None,
) -> int:
    """Write one page on a whole run: settings, curves, results, mistakes, filters, and how to repeat it.

    The page is a single file that needs no network: open it in any browser, or send it to somebody.

    Parameters
    ----------
    run
        folder of the run.
    out
        the page to write; by default `report.html` in the folder of the run.
    """
    from xcnn import pages

    out = run / "report.html" if out is None else out
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"out must be a file that ends in .html, got {out}", setting="out")
    pages.require_run(run)
    check_writable(out)
    bar, source = Bar(), source or Source()
    restored = source.restore(run, bar)
    metrics = pages.report(restored, run, out, model=source.model, watch=bar.test, tell=note)
    rows = [("weights", restored.checkpoint.weights or "unknown")]
    if metrics is not None:
        rows += [("test accuracy", percent(metrics.accuracy)), ("test loss", f"{metrics.loss:.4f}")]
    print_table(f"{restored.checkpoint.model or run.name} on {restored.title}", "", rows=rows)
    note(f"page: {out} ({out.stat().st_size / 1024:,.0f} KiB); open it in a browser")
    return 0
