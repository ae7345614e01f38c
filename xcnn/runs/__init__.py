"""Runs in folders: settings, checkpoints, resuming, and models restored from their files."""

from xcnn.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from xcnn.runs.exported import Exported, export_onnx
from xcnn.runs.folder import latest_run, recorded_settings
from xcnn.runs.network import load, save
from xcnn.runs.reporter import Reporter
from xcnn.runs.restored import Prediction, Restored, restore
from xcnn.runs.run import Result, train
from xcnn.runs.saving import Checkpoints
from xcnn.runs.search import search
from xcnn.runs.settings import SETTINGS, Config, read_settings
from xcnn.runs.study import Search, Trial

__all__ = [
    "SETTINGS",
    "Checkpoint",
    "Checkpoints",
    "Config",
    "Exported",
    "Prediction",
    "Reporter",
    "Restored",
    "Result",
    "Search",
    "Trial",
    "export_onnx",
    "latest_run",
    "load",
    "load_checkpoint",
    "read_settings",
    "recorded_settings",
    "restore",
    "save",
    "save_checkpoint",
    "search",
    "train",
]
