"""Training: the trainer, what listens to it, losses, and evaluation."""

from xcnn.training.callbacks import EarlyStopping, HistoryFile, KeepBest
from xcnn.training.evaluation import Metrics, confusion_matrix
from xcnn.training.losses import LOSSES, Loss, loss_named
from xcnn.training.signals import terminable
from xcnn.training.trainer import Callback, Trainer, clock

__all__ = [
    "LOSSES",
    "Callback",
    "EarlyStopping",
    "HistoryFile",
    "KeepBest",
    "Loss",
    "Metrics",
    "Trainer",
    "clock",
    "confusion_matrix",
    "loss_named",
    "terminable",
]
