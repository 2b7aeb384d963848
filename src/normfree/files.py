"""Files that appear whole: written under another name and renamed, or appended to in one call; pipes are not opened.

Whatever moment a process is killed at, a reader finds what was there before or all of what is new. Lines that a full
disk or another program cut off are left out by the readers here, and counted.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from .errors import RunFailed

P = TypeVar("P", bound=str | Path)
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def regular(path: P) -> P:
    """The path itself, to be opened, if it is a file: opening or reading a pipe, a socket or a device may never end.

    What is not there is for the caller's ``open`` to refuse.

    Raises:
        OSError: it is something else; ``strerror`` says what.

    Example:
        >>> regular("weights.npz")
        'weights.npz'
    """
    try:
        kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return path
    if kind is not None:
        raise OSError(errno.EINVAL, f"{kind}, not a file", os.fspath(path))
    return path


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` at the end of the block; on an error or Ctrl-C it is removed.

    A symbolic link stays one: the file that it names is written. A pipe or a device is written to as it is.

    Raises:
        RunFailed: the file cannot be written, or is a folder; what was there before is intact.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_file(f"{folder}/note.txt") as part:
        ...         _ = part.write_text("whole")
        ...     os.listdir(folder)
        ['note.txt']
    """
    path = Path(path)
    if os.path.isdir(path):
        raise RunFailed(f"cannot write {path}: it is a folder")
    direct = os.path.exists(path) and not os.path.isfile(path)
    target = Path(os.path.realpath(path)) if os.path.islink(path) and not direct else path
    part = path if direct else target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if not direct:
            os.umask(mask := os.umask(0))
            part.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read
            sync(part)
            os.replace(part, target)
    except BaseException as error:
        if not direct:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise RunFailed(f"cannot write {path}: {error}") from error
        raise


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file as a whole.

    Raises:
        RunFailed: it cannot be written; what was there before is intact.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/run.json", {"step": 3})
        ...     read_object(f"{folder}/run.json")
        {'step': 3}
    """
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def append_line(path: str | Path, content: Mapping[str, Any]) -> None:
    """Append one line of JSON, whole or not at all.

    Raises:
        RunFailed: it cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     append_line(f"{folder}/log.jsonl", {"step": 1})
        ...     append_line(f"{folder}/log.jsonl", {"step": 2})
        ...     read_lines(f"{folder}/log.jsonl")
        ([{'step': 1}, {'step': 2}], 0)
    """
    line = (json.dumps(content) + "\n").encode()
    try:
        descriptor = os.open(regular(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, line) < len(line):  # the disk is full
                os.ftruncate(descriptor, before)
                raise OSError(None, "No space left on device")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror or error}") from error


def read_object(path: str | Path) -> dict[str, Any]:
    """What :func:`write_json` wrote; nothing where there is no such file, or it is damaged.

    Example:
        >>> read_object("no such file.json")
        {}
    """
    try:
        content = json.loads(regular(Path(path)).read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    r"""What :func:`append_line` wrote, and how many other lines there are: cut off, or in another encoding.

    Raises:
        OSError: the file cannot be read.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "log.jsonl")
        ...     _ = path.write_text('{"step": 1}\n{"st')
        ...     read_lines(path)
        ([{'step': 1}], 1)
    """
    objects, damaged = [], 0
    for line in regular(Path(path)).read_bytes().splitlines():
        try:
            content = json.loads(line.decode())
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            objects.append(content)
        else:
            damaged += 1
    return objects, damaged


def sync(path: Path) -> None:
    """Onto the disk, not only into the system's cache.

    Example:
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     sync(Path(file.name))
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
