"""Training a network on a task: step, loop, evaluation, checkpoints, curves."""

from .activation_checkpointing import set_checkpointing
from .checkpoints import Checkpoints, damage, find_checkpoint
from .config import TrainConfig
from .device import pick_device
from .distributed import Replicas, replicas
from .evaluate import evaluate
from .loop import Summary, Trainer
from .memory import keep_freed_memory
from .plot import plot_curves
from .run import Run, new_folder, read_checkpoint, read_metrics
from .signals import StopRequests
from .step import StepResult, TrainStep
from .weights_file import load_weights, read_description, read_weights, save_weights

__all__ = [
    "Checkpoints",
    "Replicas",
    "Run",
    "StepResult",
    "StopRequests",
    "Summary",
    "TrainConfig",
    "TrainStep",
    "Trainer",
    "damage",
    "evaluate",
    "find_checkpoint",
    "keep_freed_memory",
    "load_weights",
    "new_folder",
    "pick_device",
    "plot_curves",
    "read_checkpoint",
    "read_description",
    "read_metrics",
    "read_weights",
    "replicas",
    "save_weights",
    "set_checkpointing",
]
