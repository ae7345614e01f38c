"""`Reporter`: a callback that also receives the events of a whole run."""

from xcnn.training import Callback, Metrics, Trainer

__all__ = ["Reporter"]


class Reporter(Callback):
    """Base class of callbacks that report a run to its user; pass it to `xcnn.runs.train` among the callbacks."""

    writes = True
    events = ("on_note", "on_download", "on_test_batch")

    def on_note(self, message: str) -> None:
        """Called with a sentence that the user should read, such as a difference found in a resumed run."""

    def on_download(self, file: str, done: int, total: int | None) -> None:
        """Called as bytes of a data set arrive, or files of a folder are checked (`checking images`)."""

    def on_test_batch(self, trainer: Trainer, images: int, metrics: Metrics) -> None:
        """Called after every batch of the final test, with the number of test images and the metrics so far."""
