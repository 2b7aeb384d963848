"""What a network is trained for: data, loss and metrics."""

from .classification import Classification, TaskConfig

__all__ = ["Classification", "TaskConfig"]
