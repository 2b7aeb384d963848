"""Weights of others: the authors' Haiku files and timm's networks, read and written."""

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
