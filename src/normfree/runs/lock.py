"""One process at a time writes a run's folder: a lock that a killed process does not leave behind.

The file RUN/lock names its holder. On one machine the process itself is looked for, by its number and time of start,
and the system's own lock on the file (fcntl) is asked; it works on most shared file systems, too. Between machines the
holder renews the file's time, and a holder that does not for ``SILENCE`` is gone. The times of two machines are never
compared: the file is watched for a change. A lock that was copied with its folder is known by the number of its file.
"""

import contextlib
import errno
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import RunFailed, UsageError
from ..files import regular
from ..training.run import LOCK

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

RENEWAL, SILENCE = 15.0, 60.0  # seconds between signs of life, and without one until a holder elsewhere is gone
HELD, UNSUPPORTED = (errno.EACCES, errno.EAGAIN), (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """A process: the name of its host, which boot of it and which of its process spaces, number, time of start, and a
    number of its own for each lock; that of the file it is written into (its inode), 0 in locks from before."""

    host: str
    place: str
    pid: int
    started: str
    token: str
    inode: int = 0

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        return cls(platform.node(), _place(), os.getpid(), _started(os.getpid()) or "", uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class RunLock:
    """The lock of one run's folder; a context manager that releases it at the end.

    Args:
        say: told when the process waits for a sign of life, and when it takes over from one that is gone.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None):
        self.say = say
        self.path: Path | None = None
        self.file: Any = None
        self.holder: Holder | None = None
        self._released = threading.Event()  # set: no longer to be renewed

    def take(self, folder: Path) -> None:
        """Lock the folder, which is there; nothing is done if this object holds it already.

        Raises:
            UsageError: another process holds it, by name; the file cannot be written.
        """
        path = (folder / LOCK).absolute()
        if self.path == path:
            return
        self.release()
        holder = Holder.here()
        try:
            file = self._locked(path)
            holder = replace(holder, inode=os.fstat(file.fileno()).st_ino)
            file.write(json.dumps(asdict(holder)))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
        self.path, self.file, self.holder = path, file, holder
        self._released = threading.Event()
        threading.Thread(target=self._renew, args=(path, self._released), daemon=True).start()

    def check(self) -> None:
        """Raise RunFailed if another process has taken over, which it does when this one stood still for long."""
        if self.path is None or self._own():
            return
        other = _read(self.path)
        if other is not None and other != self.holder:
            raise RunFailed(f"{other} has taken over {self.path.parent}, since this process gave no sign of life")

    def release(self) -> None:
        """Release the lock."""
        if self.path is None:
            return
        self._released.set()
        with contextlib.suppress(OSError):
            if self._own():
                self.path.unlink()
        self.file.close()
        self.path = self.file = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()

    def _own(self) -> bool:
        """Read through the open file: to close another one would give the system's lock back."""
        self.file.seek(0)
        return self.path is not None and _same_file(self.path, self.file) and _parsed(self.file.read()) == self.holder

    def _locked(self, path: Path) -> Any:
        """The file, empty, with the system's lock where there is such."""
        while True:
            file = _opened(path)
            try:
                before = _parsed(file.read())
                if not _system_lock(file) or (before is not None and self._alive(before, path, file)):
                    raise UsageError(
                        f"{path.parent} is in use by {before or 'another process'}; one process at a time writes a "
                        f"run (if it is gone for certain, remove {path})"
                    )
                if _same_file(path, file):
                    if before is not None:
                        self.say(f"{before} {_story(before, path, file)}; this process takes over")
                    file.seek(0)
                    file.truncate()
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # its holder removed it in between

    def _alive(self, holder: Holder, path: Path, file: Any) -> bool:
        if holder.place and holder.place == _place():
            return _started(holder.pid) == holder.started and not _copied(holder, file)
        self.say(f"{holder} holds {path.parent}; waiting up to {SILENCE:.0f} s for a sign of life")
        return _changes(path)

    def _renew(self, path: Path, released: threading.Event) -> None:
        while not released.wait(RENEWAL):
            with contextlib.suppress(OSError):  # a file system that is away for a while
                os.utime(path)


def _opened(path: Path) -> Any:
    """For reading and writing, whatever its bytes; made where it is not there."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link, not a file", str(path))
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(regular(path), flags, 0o666), "r+", encoding="utf-8", errors="replace")


def _copied(holder: Holder, file: Any) -> bool:
    """Whether the holder wrote into another file, of which this one is a copy.

    To be asked of holders on this machine alone: on some network file systems the numbers are each machine's own.
    """
    return holder.inode not in (0, os.fstat(file.fileno()).st_ino)


def _story(holder: Holder, path: Path, file: Any) -> str:
    if holder.place == _place() and _copied(holder, file):
        return f"held the folder that {path.parent} is a copy of"
    return f"held {path.parent} and is gone"


def _changes(path: Path) -> bool:
    """Whether a file's time changes within ``SILENCE``; opening it makes a network's file system look anew."""
    first, end = _time(path), time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENCE / 20))
        if _time(path) != first:
            return True
    return False


def _time(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _system_lock(file: Any) -> bool:
    """False if another process has it; True with it, or where there is none."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which processes that decode images would inherit
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno not in UNSUPPORTED:
            raise
    return True


def _same_file(path: Path, file: Any) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _read(path: Path) -> Holder | None:
    try:
        return _parsed(regular(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def _parsed(text: str) -> Holder | None:
    """None of a lock that is empty, cut off by a kill, or damaged: it is nobody's."""
    try:
        holder = Holder(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    return holder if all(type(getattr(holder, field.name)) is field.type for field in fields(Holder)) else None


def _place() -> str:
    """Where the numbers of processes mean the same as here; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """The time of start of a process of this machine that has not ended, in its own units."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
