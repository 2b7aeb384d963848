"""Variables of MATLAB's .mat files, looked through before they are built."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..limits import MAX_MATLAB_BYTES, MAX_MATLAB_NESTING

_HEADER = 128  # bytes
_MATRIX, _PACKED = 14, 15  # types of elements


def matlab(path: str, names: Sequence[str]) -> dict[str, Any]:
    """Some variables of a .mat file of version 5 to 7.2.

    Raises:
        UsageError: scipy is not installed.
        ValueError: another kind of file, or one whose content is too large or too deep for what is read here: scipy
            would end the process. (It also raises what it likes on what is damaged.)
    """
    try:
        from scipy.io import loadmat  # on demand: it takes a moment; scikit-learn brings it
    except ImportError as error:
        raise UsageError("data.source: .mat files need scipy; pip install scipy") from error
    _look_through(Path(path))
    return loadmat(path, variable_names=list(names))


def _look_through(path: Path) -> None:
    """Unpack each variable as far as it may be, and see how deep arrays lie in arrays."""
    with path.open("rb") as file:
        content = file.read(MAX_MATLAB_BYTES + 1)
    if len(content) > MAX_MATLAB_BYTES:
        raise ValueError(f"more than {MAX_MATLAB_BYTES >> 20} MB")
    if content[124:128] not in (b"\0\1IM", b"\1\0MI"):
        raise ValueError("not a MATLAB file of version 5 to 7.2")
    order, at, left = "<" if content[126:127] == b"I" else ">", _HEADER, MAX_MATLAB_BYTES
    while at + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, at)
        inner = content[at + 8 : at + 8 + length]
        if kind == _PACKED:
            unpacker = zlib.decompressobj()
            inner = unpacker.decompress(inner, left)
            if unpacker.unconsumed_tail:
                raise ValueError(f"more than {MAX_MATLAB_BYTES >> 20} MB when unpacked")
            _check_depth(inner, order, 0)
        elif kind == _MATRIX:
            _check_depth(content[at : at + 8 + length], order, 0)
        left -= len(inner)
        if left <= 0:
            raise ValueError(f"more than {MAX_MATLAB_BYTES >> 20} MB when unpacked")
        at += 8 + length + (-length % 8 if kind != _PACKED else 0)


def _check_depth(content: bytes, order: str, depth: int) -> None:
    """See how deep arrays lie in arrays of a run of elements."""
    if depth > MAX_MATLAB_NESTING:
        raise ValueError(f"arrays in arrays, more than {MAX_MATLAB_NESTING} deep")
    at = 0
    while at + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:  # a small element, whose four bytes lie in the same eight
            at += 8
            continue
        if kind == _MATRIX:
            _check_depth(content[at + 8 : at + 8 + length], order, depth + 1)
        at += 8 + length + -length % 8
