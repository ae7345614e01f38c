"""Training: the trainer, what listens to it, losses, and evaluation."""

from xcnn.training.callbacks import EarlyStopping, HistoryFile, KeepBest
from xcnn.training.ema import EMA
from xcnn.training.evaluation import Metrics, PerClass
from xcnn.training.finder import LRFinder, find_lr
from xcnn.training.losses import (
    LOSSES,
    Loss,
    class_weight,
    count_classes,
    count_labels,
    exp,
    identity,
    loss_named,
    sigmoid,
    softmax,
)
from xcnn.training.progress import Progress
from xcnn.training.scores import confusion_matrix, mean_iou, r2_score
from xcnn.training.signals import terminable
from xcnn.training.trainer import Callback, Trainer, clock

__all__ = [
    "EMA",
    "LOSSES",
    "Callback",
    "EarlyStopping",
    "HistoryFile",
    "KeepBest",
    "LRFinder",
    "Loss",
    "Metrics",
    "PerClass",
    "Progress",
    "Trainer",
    "class_weight",
    "clock",
    "confusion_matrix",
    "count_classes",
    "count_labels",
    "exp",
    "find_lr",
    "identity",
    "loss_named",
    "mean_iou",
    "r2_score",
    "sigmoid",
    "softmax",
    "terminable",
]

Trainer.make_progress = Progress
