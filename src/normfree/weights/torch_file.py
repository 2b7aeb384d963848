"""Files of ``torch.save`` with a state dict: tensors by name, and nothing else.

``torch.load(weights_only=True)`` runs no code of a file's, but it makes arrays of whatever size the file asks for. A
state dict needs less than what it allows, so the file is looked through first: stored without compression, as
``torch.save`` does, and no name but those below.
"""

import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError

SUFFIXES = (".pth", ".pt", ".bin")

_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"} | {
    f"torch {kind}Storage" for kind in _KINDS
}
_MOST_BYTES, _MOST_OPCODES = 2**24, 200_000  # the largest network takes about 0.2 MB and 50,000


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors on the CPU, mapped from the file; ``{"state_dict": {...}}`` around them is taken off.

    Raises:
        UsageError: no such file; truncated; written before torch 1.6; anything but tensors in it.
    """
    try:
        sizes = _check(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:  # whose message advises to load without weights_only
        raise UsageError(f"{path} is no plain state dict of tensors") from error
    except Exception as error:  # a hostile or broken file can fail in any way; none of it has run
        raise UsageError(f"{path} is damaged or no state dict: {one_line(error)}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds {type(content).__name__}, not a state dict")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{path} is no state dict: entry {name!r:.60} is of type {type(tensor).__name__}")
        stored = tensor.untyped_storage().nbytes()
        if stored not in sizes or tensor.nbytes > stored:
            raise UsageError(f"{path} is damaged: {name!r:.60} claims more or less bytes than the file has of it")
    return dict(check_names(content, path))


def _check(path: str | Path) -> set[int]:
    """Refuse what is no state dict of ``torch.save``'s before torch looks at it; how many bytes its entries have."""
    if Path(path).exists() and not Path(path).is_file():
        raise UsageError(f"{path} is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries):
                raise UsageError(f"{path} is compressed, which torch.save does not do")
            pickles = [e for e in entries if e.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MOST_BYTES:
                raise UsageError(f"{path} is not of torch.save: it should hold one data.pkl of at most 16 MB")
            content = archive.read(pickles[0])
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path} is truncated, or was not written by torch.save of torch 1.6 or later") from error
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count > _MOST_OPCODES:
            raise UsageError(f"{path} has a pickle of more than {_MOST_OPCODES} opcodes; it is no state dict")
        if opcode.name == "GLOBAL" and argument not in _NAMES:
            raise UsageError(f"{path} names {argument.replace(' ', '.')!r:.100}, which a state dict has no use for")
    return {entry.file_size for entry in entries}


def one_line(error: BaseException) -> str:
    """What an error says, in one printable line of bounded length."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_names(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The same, if its names can be shown: printable text of at most 200 characters; UsageError otherwise."""
    for name in content:
        if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
            raise UsageError(f"{path}: {name!r:.60} is no name of a tensor")
    return content
