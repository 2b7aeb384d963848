"""The files of MNIST and the sets after it: arrays of bytes behind a short head, often packed by gzip."""

import gzip
import math
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..files import regular
from ..limits import MAX_ARRAY_BYTES
from .machine import memory

BYTES = 8  # the type of an element in the head: unsigned bytes


def read_idx(path: Path) -> np.ndarray:
    """The bytes of a file, of as many axes as its head says: (N,) labels, (N, H, W) images.

    Raises:
        UsageError: it is another file, or truncated, or larger than what can be held.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(regular(path), "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != bytes([0, 0, BYTES]) or not 1 <= head[3] <= 4:
                raise ValueError("it does not begin as files of MNIST do")
            axes = file.read(4 * head[3])
            shape = tuple(int.from_bytes(axes[4 * i : 4 * i + 4], "big") for i in range(head[3]))
            size = math.prod(shape)
            if size > min(MAX_ARRAY_BYTES, memory()):
                raise ValueError(f"{size:,} bytes, more than this machine can hold in memory")
            content = file.read(size)
    except Exception as error:  # whatever the file holds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"data.source: {path} cannot be read: {reason}") from error
    if len(content) < size:
        raise UsageError(f"data.source: {path} is truncated: it ends within its {size:,} bytes")
    return np.frombuffer(bytearray(content), np.uint8).reshape(shape)


def find_idx(folder: Path, name: str) -> Path | None:
    """The file of that name, or packed, in a folder."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
