"""How long a training step takes and what memory, on this machine: what `normfree bench` measures."""

from .scaling import Point
from .step import image_batch, step_memory, training_step
from .tables import TABLES
from .timing import Samples, alternate, machine

__all__ = ["TABLES", "Point", "Samples", "alternate", "image_batch", "machine", "step_memory", "training_step"]
