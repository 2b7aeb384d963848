"""What a network is trained for: one class per task, in one table."""

from ..recipes.task import TaskConfig
from .answers import Answers, Asked, PredictOptions
from .classification import Classification
from .depth import Depth
from .detection import Detection
from .gallery import Gallery, Look
from .images import open_images, open_test_images
from .measured import Measured
from .multilabel import MultiLabel
from .regression import Regression
from .segmentation import Segmentation
from .table import TASKS, register, task_of
from .task import Task
from .trained import ReadyNetwork, Trained

__all__ = [
    "TASKS",
    "Answers",
    "Asked",
    "Classification",
    "Depth",
    "Detection",
    "Gallery",
    "Look",
    "Measured",
    "MultiLabel",
    "PredictOptions",
    "ReadyNetwork",
    "Regression",
    "Segmentation",
    "Task",
    "TaskConfig",
    "Trained",
    "open_images",
    "open_test_images",
    "register",
    "task_of",
]
