"""The kind of a file, by its content, and the weights in it, from any program."""

import enum
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError, listed
from ..files import regular
from ..words import counted
from .pickles import check_names, one_line
from .state_dict import find_state
from .torch_file import MAGIC, SUFFIXES, Stored, read_torch
from .unpickle import read_arrays

DESCRIPTION = "normfree"  # entry of a .safetensors file's metadata with the description of its network


class FileKind(enum.StrEnum):
    """The kind of a file, in words."""

    CHECKPOINT = "a checkpoint of normfree"
    SAFETENSORS = "a .safetensors file of tensors"
    TORCH = "a file of torch.save"
    AUTHORS = "a file of the authors of NFNets"
    ONNX = "an ONNX file"
    ARCHIVE = "an archive of torch.export"


WEIGHTS = (FileKind.SAFETENSORS, FileKind.TORCH, FileKind.AUTHORS)  # without a description of their network
EXPORTED = (FileKind.ONNX, FileKind.ARCHIVE)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PUBLISHED_OF = "published weights of "  # start of the origin of such weights
ENDINGS = {".safetensors": FileKind.SAFETENSORS, ".npz": FileKind.AUTHORS, ".onnx": FileKind.ONNX}
ENDINGS |= {".pt2": FileKind.ARCHIVE} | dict.fromkeys(SUFFIXES, FileKind.TORCH)
_OTHERS = {  # first bytes of files that users download or name by mistake
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; `git lfs pull` fetches it",
    b"<!doctype html": "a web page, not the file itself; download the raw file",
    b"<html": "a web page, not the file itself; download the raw file",
    b"\x89hdf": "an HDF5 file; weights of Keras are not read",
}


def file_kind(path: str | Path) -> FileKind:
    """The kind of a file: by its first bytes if they are unique, else by the ending of its name.

    Raises:
        UsageError: another kind of file, by name; it does not exist.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise UsageError(f"{path} does not exist")
    by_ending = ENDINGS.get(path.suffix)
    start = _start(path) if path.is_file() else b""
    for prefix, description in _OTHERS.items():
        if start.lower().startswith(prefix):
            raise UsageError(f"{path} is {description}")
    if start.startswith(b"PK\x03\x04") and by_ending is not FileKind.ARCHIVE:
        return _archive(path)
    if start.startswith(MAGIC):
        return FileKind.TORCH
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**30:
        by_ending = FileKind.SAFETENSORS
    # a pipe is not opened, since this would wait for its writer; its reader raises the error
    if by_ending is FileKind.SAFETENSORS and path.is_file() and _describes(path):
        return FileKind.CHECKPOINT
    if by_ending is not None:
        return by_ending
    if start.startswith(b"\x80"):
        return FileKind.AUTHORS
    raise UsageError(f"{path} is no file of weights that is known; there are {', '.join(ENDINGS)}, and run folders")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(32)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _archive(path: Path) -> FileKind:
    """The kind of a zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return FileKind.TORCH  # its reader raises the error
    if any(name.endswith("archive_format") for name in names):
        return FileKind.ARCHIVE
    if names and all(name.endswith(".npy") for name in names):
        raise UsageError(f"{path} is a NumPy archive; the authors' files are pickles, named .npz all the same")
    return FileKind.TORCH


def _describes(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return DESCRIPTION in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False  # its reader raises the error


@dataclass(frozen=True)
class Weights:
    """Weights of one network, as in their file.

    Attributes:
        tensors: by name; in the authors' form ``{module: {name: array}}``.
        form: "haiku", "timm" or "normfree": of their names and shapes.
        origin: of the weights, for messages.
        notes: for the user, about their choice.
    """

    tensors: Mapping[str, Any]
    form: str
    origin: str
    notes: tuple[str, ...] = ()


def read_weights_file(path: str | Path, weights: str | None = None) -> Weights:
    """The weights in a file of any program; no code in it is run.

    Args:
        weights: "ema" or "raw" if the file has both; None takes the average.

    Raises:
        UsageError: unreadable; an exported file; no weights, or several sets of them.
    """
    kind, origin = file_kind(path), str(path)
    if kind in EXPORTED:
        raise UsageError(f"{path} is {kind}: its weights are folded; take the run or the checkpoint that it is from")
    if kind is FileKind.AUTHORS and weights:
        raise UsageError(f"weights (={weights!r}) chooses among averaged and raw ones; {path} is one file of one kind")
    if kind is FileKind.AUTHORS:
        return Weights(read_arrays(path), "haiku", origin)
    if kind is FileKind.TORCH:
        file = read_torch(path)
        stored, notes = find_state(file.content, Stored, path, weights)
        check_names(stored, path)
        state = file.tensors(stored)
    else:
        state, notes = find_state(read_safetensors(path), Tensor, path, weights)
    return Weights(state, form_of(state), origin, (*notes, *_not_finite(state)))


def weights_of(state: Mapping[str, Any], origin: str, weights: str | None = None) -> Weights:
    """The weights in the content of a file: a state dict, or a checkpoint with one inside.

    Raises:
        UsageError: no weights, or several sets of them.
    """
    state, notes = find_state(state, Tensor, origin, weights)
    return Weights(state, form_of(state), origin, (*notes, *_not_finite(state)))


def _not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """A note about values that are not finite, from a failed training."""
    floats = {name: value for name, value in state.items() if value.dtype in FLOATS and value.ndim < 8}
    names = [name for name, value in floats.items() if not bool(value.isfinite().all())]
    if not names:
        return []
    shown = f"{', '.join(names[:3])}{', ...' if names[3:] else ''}"
    return [f"{counted(len(names), 'tensor')} of them with values that are not finite ({shown})"]


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, by name.

    Raises:
        UsageError: an unreadable file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return check_names(load_file(regular(path)), path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {one_line(error)}") from error


_TIMM_PARTS = (".conv3.", ".downsample.", ".attn", "skipinit_gain")  # only in timm's names


def form_of(state: Mapping[str, Any]) -> str:
    """The form of a state dict's names: "timm" or "normfree"."""
    names = [name for name in state if name.startswith("stages.")]
    return "timm" if any(part in name for name in names for part in _TIMM_PARTS) else "normfree"


def known_endings() -> str:
    """The endings of files of weights, for messages."""
    return listed(list(ENDINGS))
