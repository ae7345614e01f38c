"""Training: the trainer, what listens to it, checkpoints, and whole runs."""

from xcnn.training._clock import clock
from xcnn.training.callbacks import Callback, EarlyStopping, HistoryFile, KeepBest
from xcnn.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from xcnn.training.inference import Metrics, Prediction, Restored, confusion_matrix, restore
from xcnn.training.losses import LOSSES, Loss, loss_named
from xcnn.training.run import Config, Result, train
from xcnn.training.trainer import Trainer

__all__ = [
    "LOSSES",
    "Callback",
    "Checkpoint",
    "Config",
    "EarlyStopping",
    "HistoryFile",
    "KeepBest",
    "Loss",
    "Metrics",
    "Prediction",
    "Restored",
    "Result",
    "Trainer",
    "clock",
    "confusion_matrix",
    "load_checkpoint",
    "loss_named",
    "restore",
    "save_checkpoint",
    "train",
]
