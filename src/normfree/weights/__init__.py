"""Weights of other implementations, read and written."""

from .haiku import haiku_names, load_haiku, to_haiku
from .unpickle import read_arrays

__all__ = ["haiku_names", "load_haiku", "read_arrays", "to_haiku"]
