"""The tensors in files of ``torch.save``.

A checkpoint is a pickle that may name any callable of any module: beside the tensors it may have options
(``argparse.Namespace``), optimizers, schedulers, numbers of numpy. torch runs such a file to read it, or refuses it
with ``weights_only=True``. Here every name is replaced by a placeholder, except those of tensors; nothing is imported
or run. Reading the pickle only describes the tensors; they are mapped from the file on demand.
"""

import functools
import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import UsageError
from ..files import regular
from ..limits import MAX_SHARING
from .pickles import Placeholders, are_axes, check_opcodes, full_name, is_plain, one_line

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # .tar: .pth.tar

_TYPES = dict(Double=torch.float64, Float=torch.float32, Half=torch.float16, BFloat16=torch.bfloat16)
_TYPES |= dict(Long=torch.int64, Int=torch.int32, Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool)
_UNSUPPORTED = dict(QInt8=torch.qint8, QUInt8=torch.quint8, QInt32=torch.qint32)  # known types that weights do not have
_UNSUPPORTED |= dict(ComplexFloat=torch.complex64, ComplexDouble=torch.complex128)
# the largest network with average and momentum takes about 5 MB and 300,000 opcodes
_MAX_PICKLE_BYTES, _MAX_OPCODES = 2**26, 800_000
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file by torch before 1.6
MAGIC = b"\x80\x02\x8a\n" + _MAGIC.to_bytes(10, "little")


@dataclass(frozen=True, slots=True)
class _Storage:
    """A storage in the file: its type (None: one that weights do not have), name, and number of elements."""

    dtype: torch.dtype | None
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The description of a tensor by the pickle; the numbers are not read yet.

    Values that no tensor can have are None, so that comparing two descriptions is fast.
    """

    storage: _Storage | None
    offset: int | None
    size: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    usual: bool  # whether the other arguments are those of a tensor

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a tensor is changed after it was made")


class _Name:
    """A storage type, or a function that makes tensors; a pickle can call it, but not change it."""

    __slots__ = ("_function", "dtype")

    def __init__(self, function: Callable[..., Any] | None = None, dtype: torch.dtype | None = None):
        self._function, self.dtype = function, dtype

    def __call__(self, *args: Any) -> Any:
        if self._function is None:
            raise pickle.UnpicklingError("a type of storage is called")
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a name is given a state")


class _Mapping(dict[Any, Any]):
    """An OrderedDict without attributes."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Resolves the names of which tensors consist; all others become placeholders."""

    def __init__(self, file: Any):
        super().__init__(file)
        self._names: dict[str, _Name] = {
            f"torch.{kind}Storage": _Name(dtype=dtype) for kind, dtype in (_TYPES | _UNSUPPORTED).items()
        }
        self._names["collections.OrderedDict"] = _Name(self._mapping)
        self._names["torch._utils._rebuild_tensor_v2"] = _Name(_tensor)
        self._names["torch._utils._rebuild_tensor"] = _Name(_tensor)
        for name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            self._names[f"torch._utils.{name}"] = _Name(_parameter)
        self._others, self._copied = Placeholders(), 0
        self.storages: dict[str, _Storage] = {}

    def _mapping(self, pairs: Any = ()) -> _Mapping:
        self._copied += len(pairs)
        if not isinstance(pairs, (list, tuple)) or self._copied > _MAX_OPCODES or not all(map(_is_pair, pairs)):
            raise pickle.UnpicklingError("an OrderedDict is not made of pairs of a name and a value")
        return _Mapping(pairs)

    def find_class(self, module: str, name: str) -> Any:
        full = full_name(module, name)
        return self._names[full] if full in self._names else self._others[full]

    def persistent_load(self, pid: Any) -> _Storage:
        if (
            not isinstance(pid, tuple)
            or len(pid) not in (5, 6)
            or pid[0] != "storage"
            or (pid[5:] or (None,)) != (None,)
        ):
            raise pickle.UnpicklingError("it refers to something that is no tensor's numbers")
        _, kind, key, _, count = pid[:5]
        if not isinstance(key, str) or not key.isalnum() or len(key) > 40 or not are_axes((count,)):
            raise pickle.UnpicklingError("it refers to numbers that cannot be there")
        return self.storages.setdefault(key, _Storage(getattr(kind, "dtype", None), key, count))


def _is_pair(value: Any) -> bool:
    """Whether a value is a pair with a plain name; ``check_opcodes`` does not see that this one will be hashed."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and is_plain(value[0])


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *flags: Any) -> Stored:
    return Stored(
        storage if isinstance(storage, _Storage) else None,
        offset if are_axes((offset,)) else None,
        size if are_axes(size) else None,
        stride if are_axes(stride) else None,
        all(flag is None or isinstance(flag, bool | dict) for flag in flags),
    )


def _parameter(data: Any, *flags: Any) -> Stored:
    if not isinstance(data, Stored):
        raise pickle.UnpicklingError("a parameter is not made of a tensor")
    return data


class TorchFile:
    """A file of ``torch.save``.

    Attributes:
        content: the saved object: dicts, lists, numbers and texts unchanged, tensors as :class:`Stored`, all else as
            :class:`Placeholder`.
    """

    def __init__(self, path: Path, content: Any, places: dict[str, tuple[int, int]]):
        self.path, self.content, self._places = path, content, places
        self._flat: dict[str, Tensor] = {}

    def tensors(self, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
        """Tensors by name, on the CPU, mapped from the file if they are aligned there.

        Raises:
            UsageError: the file cannot have one of them, or too many share the same numbers.
        """
        state, total, limit = {}, 0, MAX_SHARING * self.path.stat().st_size
        for name, description in stored.items():
            state[name] = self.tensor(description, name)
            total += state[name].nbytes
            if total > limit:
                raise UsageError(f"{self.path}: its tensors hold more than {MAX_SHARING} times the bytes of the file")
        return state

    def tensor(self, stored: Stored, name: str) -> Tensor:
        """One tensor.

        Raises:
            UsageError: the file cannot have it.
        """
        storage, size, stride = stored.storage, stored.size, stored.stride
        problem = self._problem(stored)
        if problem is not None or storage is None or storage.dtype is None or size is None or stride is None:
            raise UsageError(f"{self.path} is damaged, or no state dict: {name!r:.60} {problem}")
        if 0 in size:
            return torch.empty(size, dtype=storage.dtype)
        return self._numbers(storage, storage.dtype).as_strided(size, stride, stored.offset)

    def _numbers(self, storage: _Storage, dtype: torch.dtype) -> Tensor:
        """All elements of a storage; copied once if they are not aligned in the file."""
        if storage.key not in self._flat:
            memory, (start, _) = self._mapped, self._places[storage.key]
            if start % dtype.itemsize:
                memory, start = bytearray(memory[start : start + storage.count * dtype.itemsize]), 0
            self._flat[storage.key] = torch.frombuffer(memory, dtype=dtype, count=storage.count, offset=start)
        return self._flat[storage.key]

    @functools.cached_property
    def _mapped(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def _problem(self, stored: Stored) -> str | None:
        """Why the file cannot have a tensor; None if it can."""
        storage, offset, size, stride = stored.storage, stored.offset, stored.size, stored.stride
        if storage is None or storage.dtype is None or storage.dtype not in _TYPES.values():
            return "is of numbers that weights are not made of"
        if size is None or stride is None or offset is None or len(size) != len(stride):
            return "has no shape that a tensor can have"
        if not stored.usual:
            return "has something in it that no tensor has"
        _, nbytes = self._places.get(storage.key, (0, -1))
        count = 1
        for n in size:
            count *= n
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
        if (
            nbytes != storage.count * storage.dtype.itemsize
            or count > storage.count
            or (count and last >= storage.count)
        ):
            return "claims more or less bytes than the file has of it"
        return None


def read_torch(path: str | Path) -> TorchFile:
    """Read the description of a file of ``torch.save``, of any version of torch since 0.2; no code in it is run.

    Raises:
        UsageError: no such file; truncated; an archive of another kind, by name.
    """
    path = Path(path)
    try:
        with regular(path).open("rb") as file:
            start = file.read(len(MAGIC))
            file.seek(0)
            return _read_legacy(path, file) if start == MAGIC else _read_zip(path, file)
    except UsageError:
        raise
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path} is truncated, or was not written by torch.save") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a hostile or broken file can fail in any way; no code of it has run
        raise UsageError(f"{path} is damaged, or no file of torch.save: {one_line(error)}") from error


def _read_zip(path: Path, file: BinaryIO) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise UsageError(f"{path} is a TorchScript archive; save the state_dict() of the network instead")
        if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries):
            raise UsageError(f"{path} is compressed, which torch.save does not do")
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise UsageError(
                f"{path} is not of torch.save: it should hold one data.pkl of at most {_MAX_PICKLE_BYTES >> 20} MB"
            )
        root = pickles[0].filename.removesuffix("data.pkl")
        if any(e.filename == f"{root}byteorder" and archive.read(e) != b"little" for e in entries if e.file_size < 10):
            raise UsageError(f"{path} was written on a big-endian machine; save it again on this one")
        content = archive.read(pickles[0])
    check_opcodes(content, _MAX_OPCODES, persistent=True)
    folder, size, places = f"{root}data/", file.seek(0, io.SEEK_END), {}
    for entry in entries:
        start = _start(file, entry)
        if entry.filename.startswith(folder) and start + entry.file_size <= size:
            places[entry.filename.removeprefix(folder)] = (start, entry.file_size)
    return TorchFile(path, _Unpickler(io.BytesIO(content)).load(), places)


def _start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin."""
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return entry.header_offset + 30 + name + extra


def _read_legacy(path: Path, file: BinaryIO) -> TorchFile:
    """A file of torch before 1.6: five pickles, then the elements of each storage after their count."""
    parts: list[Any] = []
    storages: dict[str, _Storage] = {}
    for _ in ("magic number", "protocol", "machine", "content", "keys of the storages"):
        start = file.tell()
        check_opcodes(file, _MAX_OPCODES, persistent=True)
        length = file.tell() - start
        if length > _MAX_PICKLE_BYTES:
            raise UsageError(f"{path} is no state dict: its pickle has more than {_MAX_PICKLE_BYTES >> 20} MB")
        file.seek(start)
        unpickler = _Unpickler(io.BytesIO(file.read(length)))
        parts.append(unpickler.load())
        storages |= unpickler.storages
    _, _, machine, content, keys = parts
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UsageError(f"{path} was written on a big-endian machine; save it again on this one")
    at, places = file.tell(), {}
    size = file.seek(0, io.SEEK_END)
    for key in keys:
        storage = storages[key]
        if storage.dtype is None:
            raise UsageError(f"{path} holds numbers of a type that weights are not made of")
        length = storage.count * storage.dtype.itemsize
        file.seek(at)
        if at + 8 + length > size or file.read(8) != struct.pack("<q", storage.count):
            raise UsageError(f"{path} is truncated or damaged: the numbers of its tensors are not all there")
        places[key] = (at + 8, length)
        at += 8 + length
    return TorchFile(path, content, places)
