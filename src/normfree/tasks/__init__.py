"""What a network is trained for: data, loss and metrics."""

from .classification import Classification
from .config import TaskConfig
from .depth import Depth
from .detection import Detection
from .multilabel import MultiLabel
from .regression import Regression
from .segmentation import Segmentation

__all__ = ["Classification", "Depth", "Detection", "MultiLabel", "Regression", "Segmentation", "TaskConfig"]
