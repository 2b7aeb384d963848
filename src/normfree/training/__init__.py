"""Training a network on a task: step, loop, evaluation, checkpoints, curves."""

from .checkpoint import load_weights, read_weights, save_weights
from .config import TrainConfig
from .curves import plot_curves
from .evaluate import evaluate
from .loop import Summary, Trainer, pick_device
from .run import Run, new_folder, read_checkpoint, read_metrics
from .step import StepResult, TrainStep

__all__ = [
    "Run",
    "StepResult",
    "Summary",
    "TrainConfig",
    "TrainStep",
    "Trainer",
    "evaluate",
    "load_weights",
    "new_folder",
    "pick_device",
    "plot_curves",
    "read_checkpoint",
    "read_metrics",
    "read_weights",
    "save_weights",
]
