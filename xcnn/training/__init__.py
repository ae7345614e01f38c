"""Training: the trainer, what listens to it, checkpoints, and whole runs."""

from xcnn.training._clock import clock
from xcnn.training.callbacks import Callback, EarlyStopping, HistoryFile, KeepBest
from xcnn.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from xcnn.training.checkpoints import Checkpoints
from xcnn.training.config import Config, read_settings
from xcnn.training.inference import Metrics, Prediction, Restored, confusion_matrix, restore
from xcnn.training.interrupt import terminable
from xcnn.training.losses import LOSSES, Loss, loss_named
from xcnn.training.run import Result, train
from xcnn.training.run_folder import latest_run, recorded_settings
from xcnn.training.trainer import Trainer

__all__ = [
    "LOSSES",
    "Callback",
    "Checkpoint",
    "Checkpoints",
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
    "latest_run",
    "load_checkpoint",
    "loss_named",
    "read_settings",
    "recorded_settings",
    "restore",
    "save_checkpoint",
    "terminable",
    "train",
]
