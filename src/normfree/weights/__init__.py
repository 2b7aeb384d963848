"""Reading and writing weights: the authors' Haiku files, timm's networks, checkpoints of other programs."""

from .haiku import haiku_names, load_haiku, to_haiku
from .pretrained import create_model, load_pretrained
from .timm import load_timm, timm_names, to_timm
from .unpickle import read_arrays

__all__ = [
    "create_model",
    "haiku_names",
    "load_haiku",
    "load_pretrained",
    "load_timm",
    "read_arrays",
    "timm_names",
    "to_haiku",
    "to_timm",
]
