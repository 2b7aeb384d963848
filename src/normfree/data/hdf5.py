"""HDF5 files, whose handles do not survive into another process."""

import functools
import math
import os
from typing import Any

from ..errors import UsageError
from ..limits import MAX_HDF5_CHUNK_BYTES


def opened(path: str, what: str) -> Any:
    """An HDF5 file, open in this process.

    Args:
        what: the data set, for the message.

    Raises:
        UsageError: h5py is not installed.
    """
    return _opened(path, what, os.getpid())


@functools.lru_cache(maxsize=8)
def _opened(path: str, what: str, process: int) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UsageError(f'data.source: {what} needs h5py; pip install "normfree[depth]"') from error
    return h5py.File(path, "r")


def check_chunks(array: Any, file: object, name: str) -> None:
    """Refuse arrays whose parts would take very much memory.

    Raises:
        UsageError: they would.
    """
    if math.prod(array.chunks or (1,)) * array.dtype.itemsize > MAX_HDF5_CHUNK_BYTES:
        raise UsageError(f"data.source: {file}: {name} are stored in parts of more than {MAX_HDF5_CHUNK_BYTES:,} bytes")


def one_line(error: Exception) -> str:
    """What an error says, in a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
