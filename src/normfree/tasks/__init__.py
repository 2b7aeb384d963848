"""What a network is trained for: data, loss and metrics."""

from .classification import Classification
from .config import TaskConfig
from .depth import Depth
from .detection import Detection
from .segmentation import Segmentation

__all__ = ["Classification", "Depth", "Detection", "Segmentation", "TaskConfig"]
