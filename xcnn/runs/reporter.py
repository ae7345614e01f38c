"""`Reporter`: a callback that is also told what only a whole run has to tell."""

from xcnn.training import Callback, Metrics, Trainer

__all__ = ["Reporter"]


class Reporter(Callback):
    """Base of what reports a whole run to people; give it to `xcnn.runs.train` among the callbacks."""

    def on_note(self, message: str) -> None:
        """When there is something that the user should know, such as what differs in a resumed run."""

    def on_download(self, file: str, done: int, total: int | None) -> None:
        """As the bytes of a data set arrive, before the run starts; never for files that are there already."""

    def on_test_batch(self, trainer: Trainer, images: int, metrics: Metrics) -> None:
        """After every batch of the final test, with the number of test images and the metrics so far."""
