"""Training: the trainer, what listens to it, losses, and evaluation."""

from xcnn.training.callbacks import EarlyStopping, HistoryFile, KeepBest
from xcnn.training.evaluation import Metrics, confusion_matrix
from xcnn.training.finder import LRFinder, find_lr
from xcnn.training.losses import LOSSES, Loss, loss_named
from xcnn.training.progress import Progress
from xcnn.training.signals import terminable
from xcnn.training.trainer import Callback, Trainer, clock

__all__ = [
    "LOSSES",
    "Callback",
    "EarlyStopping",
    "HistoryFile",
    "KeepBest",
    "LRFinder",
    "Loss",
    "Metrics",
    "Progress",
    "Trainer",
    "clock",
    "confusion_matrix",
    "find_lr",
    "loss_named",
    "terminable",
]

Trainer.make_progress = Progress
