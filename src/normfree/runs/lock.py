"""A lock, so that only one process at a time writes a run's folder. It does not outlive a killed process.

The file RUN/lock names the process that holds the lock. On the same machine, the lock is taken over if no process has
that number and time of start, and if the system's lock on the file (fcntl) is free; this lock works on most shared file
systems, too. For other machines, the holder updates the file's modification time, and a holder that does not for
``SILENCE`` seconds is gone. Clocks of two machines are never compared: only a change of the file counts. A lock that
was copied with its folder is recognized by its inode.
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

RENEWAL, SILENCE = 15.0, 60.0  # seconds between updates of the file; without an update until a remote holder is gone
HELD_BY_OTHER, UNSUPPORTED = (errno.EACCES, errno.EAGAIN), (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        place: host, boot and process namespace, in which ``pid`` is unique.
        started: time of start of the process.
        token: unique for each lock.
        inode: of the lock's file; 0 in locks of earlier versions.
    """

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


class FolderInUse(UsageError):
    """Another process writes the run."""


class RunLock:
    """The lock of a run's folder; a context manager that releases it at the end.

    Args:
        say: called with a message when this process waits for another one, and when it takes over the lock.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None):
        self.say = say
        self.path: Path | None = None
        self.file: Any = None
        self.holder: Holder | None = None
        self._released = threading.Event()  # set: stop renewing

    def take(self, folder: Path) -> None:
        """Lock an existing folder; nothing happens if this object holds its lock already.

        Raises:
            FolderInUse: another process holds the lock, and the message names it.
            UsageError: the file cannot be written.
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
        """Raise RunFailed if another process has taken over the lock because this one did not renew it in time."""
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
        """Whether this object still holds the lock; closing a second open file would release the system's lock."""
        self.file.seek(0)
        return self.path is not None and _same_file(self.path, self.file) and _parsed(self.file.read()) == self.holder

    def _locked(self, path: Path) -> Any:
        """The file, empty, with the system's lock if there are such locks."""
        while True:
            file = _opened(path)
            try:
                before = _parsed(file.read())
                if not _system_lock(file) or (before is not None and self._alive(before, path, file)):
                    raise FolderInUse(
                        f"{path.parent} is in use by {before or 'another process'}; one process at a time writes a "
                        f"run (if it is gone for certain, remove {path})"
                    )
                if _same_file(path, file):
                    if before is not None:
                        self.say(f"{before} {_reason(before, path, file)}; this process takes over")
                    file.seek(0)
                    file.truncate()
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # its holder has removed it meanwhile

    def _alive(self, holder: Holder, path: Path, file: Any) -> bool:
        if holder.place and holder.place == _place():
            return _started(holder.pid) == holder.started and not _copied(holder, file)
        self.say(f"{holder} holds {path.parent}; waiting up to {SILENCE:.0f} s for a sign of life")
        return _changes(path)

    def _renew(self, path: Path, released: threading.Event) -> None:
        while not released.wait(RENEWAL):
            with contextlib.suppress(OSError):  # a file system that is unavailable for a while
                os.utime(path)


def _opened(path: Path) -> Any:
    """Open for reading and writing as text, with any bytes; create a missing file."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link, not a file", str(path))
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(regular(path), flags, 0o666), "r+", encoding="utf-8", errors="replace")


def _copied(holder: Holder, file: Any) -> bool:
    """Whether the holder wrote into another file, of which this one is a copy.

    Only for holders on this machine: on some network file systems each machine has different inodes.
    """
    return holder.inode not in (0, os.fstat(file.fileno()).st_ino)


def _reason(holder: Holder, path: Path, file: Any) -> str:
    if holder.place == _place() and _copied(holder, file):
        return f"held the folder that {path.parent} is a copy of"
    return f"held {path.parent} and is gone"


def _changes(path: Path) -> bool:
    """Whether a file's time changes within ``SILENCE``; opening it makes network file systems refresh the time."""
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
    """Take the system's lock; False if another process has it, True also where there are no such locks."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which data loader workers would inherit
    except OSError as error:
        if error.errno in HELD_BY_OTHER:
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
    """None for a lock without a holder: empty, incomplete after a kill, or damaged."""
    try:
        holder = Holder(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    return holder if all(type(getattr(holder, field.name)) is field.type for field in fields(Holder)) else None


def _place() -> str:
    """Host, boot and process namespace of this process; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """The time of start of a running process of this machine, in clock ticks; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
