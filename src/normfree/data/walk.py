"""Which image files a folder holds: one walk for everything that lists files."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .decode import EXTENSIONS, MISSING

Identity = tuple[int, int]  # of a folder: its device and inode
MAX_SHOWN = 3  # names in a sentence


class Walk:
    """Lists folders and remembers what it left out, so that a command can say it.

    Links to files and to folders are followed, but each folder is read once, by its own name where it has one in the
    tree; so time and memory grow with what is there, however folders are linked. Hidden files and folders are left out
    without a word. Nothing but regular files is ever opened.
    """

    def __init__(self) -> None:
        self.others: Counter[str] = Counter()  # suffixes of files that are no images
        self.loops: list[str] = []
        self.again: list[str] = []  # links to folders that are read already
        self.dead: list[str] = []
        self.special: list[str] = []
        self.closed: list[str] = []
        self.unsearched: list[str] = []
        self.loose: list[str] = []

    def images(self, folder: str | Path, deep: bool = True, endings: tuple[str, ...] | None = None) -> list[str]:
        """The files in a folder whose names end so, sorted by folder and name; with ``deep``, in its folders too.

        Without ``endings``, the image files.

        A dead link is an image that cannot be read, so it is among them.
        """
        images = []
        for place, entry in self._entries(str(folder), deep):
            suffix, kind = os.path.splitext(entry.name)[1].lower(), _kind(entry)
            if kind is not None:
                getattr(self, kind).append(entry.path)
            if entry.name.lower().endswith(endings or EXTENSIONS) and kind != "special":
                images.append((place, entry.name))
            elif kind is None:
                self.others[suffix] += 1
        return [os.path.join(*both) for both in sorted(images)]

    def folders(self, folder: str | Path) -> list[str]:
        """Sorted names of the folders in a folder."""
        ancestors, names = _ancestors(str(folder)) | {_identity(folder)}, []
        for entry in self._scan(str(folder)):
            if not _is_folder(entry):
                if os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    self.loose.append(entry.path)
                elif _kind(entry) == "dead":
                    self.dead.append(entry.path)
            elif _identity(entry.path) in ancestors:
                self.loops.append(entry.path)
            else:
                names.append(entry.name)
        return sorted(names)

    def notes(self, where: str | Path) -> list[str]:
        """What was left out, a sentence for each kind; ``where`` says of what."""
        lines = []
        needing = {suffix: self.others[suffix] for suffix in MISSING if self.others[suffix]}
        for suffix, count in needing.items():
            lines.append(f"skipped {_counted(count, f'{suffix} file')}: {MISSING[suffix]}")
        others = {
            suffix: count
            for suffix, count in sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
            if suffix not in needing
        }
        if others:
            kinds = [f"{suffix or 'without a suffix'} {count}" for suffix, count in others.items()]
            shown = ", ".join(kinds[:8]) + (", ..." if len(kinds) > 8 else "")
            count = sum(others.values())
            lines.append(
                f"skipped {_counted(count, 'file')} that {'is no image' if count == 1 else 'are no images'}: {shown}"
            )
        for paths, noun, before, after in (
            (self.loops, "link", "skipped ", "to a folder that holds it"),
            (self.again, "link", "skipped ", "to a folder that is read anyway"),
            (self.dead, "link", "", "to nothing"),
            (self.special, "special file", "skipped ", "(pipes, sockets, devices)"),
            (self.closed, "folder", "skipped ", "that cannot be opened"),
            (self.unsearched, "folder", "skipped ", "among the images"),
            (self.loose, "image", "skipped ", "outside of the class folders"),
        ):
            if paths:
                lines.append(f"{before}{_counted(len(paths), noun)} {after}: {_listed(paths)}")
        return [f"{where}: {line}" for line in lines]

    def reason(self) -> str:
        """Why images may have been left out that a user knows to be there: "; and what is missing"; or nothing."""
        return "".join(f"; {why}" for suffix, why in MISSING.items() if self.others[suffix])

    def _entries(self, folder: str, deep: bool) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Everything in a folder that is no folder, each with the folder it lies in.

        Links wait until all folders are read that lie in the tree themselves.
        """
        start = _Folder(folder, _identity(folder), None)
        ancestors, visited = _ancestors(folder), {start.identity}
        folders, links = [start], deque[_Folder]()
        while folders or links:
            current = folders.pop() if folders else links.popleft()
            if current.link and current.parent is not None:
                if current.identity in ancestors or current.parent.lies_in(current.identity) or _holds(current.path):
                    self.loops.append(current.path)
                    continue
                if current.identity in visited:
                    self.again.append(current.path)
                    continue
                visited.add(current.identity)
            inner_folders = []
            for entry in self._scan(current.path):
                if not _is_folder(entry):
                    yield current.path, entry
                elif not deep:
                    self.unsearched.append(entry.path)
                elif (inner := self._inside(entry, current)) is None:
                    continue
                elif inner.link:
                    links.append(inner)
                elif inner.identity not in visited and inner.identity not in ancestors:  # else linked or mounted
                    visited.add(inner.identity)
                    inner_folders.append(inner)
            folders += reversed(inner_folders)

    def _inside(self, entry: os.DirEntry[str], parent: "_Folder") -> "_Folder | None":
        try:
            return _Folder(entry.path, _identity(entry.path), parent, entry.is_symlink())
        except OSError:  # it has gone, or its path is too long for the system
            self.closed.append(entry.path)
            return None

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
        except OSError:
            self.closed.append(folder)
            return []


@dataclass(frozen=True)
class _Folder:
    """A folder on the way of a walk, and the one that it was found in."""

    path: str
    identity: Identity
    parent: "_Folder | None"
    link: bool = False

    def lies_in(self, identity: Identity) -> bool:
        """Whether it is that folder, or in it, by the names of the walk."""
        folder: _Folder | None = self
        while folder is not None and folder.identity != identity:
            folder = folder.parent
        return folder is not None


def _holds(link: str) -> bool:
    """Whether a link leads to a folder in which it truly lies."""
    place, target = os.path.realpath(os.path.dirname(link)), os.path.realpath(link)
    return os.path.commonpath((place, target)) == target


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead to each other
        return False


def _kind(entry: os.DirEntry[str]) -> str | None:
    """What an entry that is no folder is, where it is no regular file."""
    try:
        return None if entry.is_file() else "special" if os.path.exists(entry.path) else "dead"
    except OSError:
        return "dead"


def _ancestors(folder: str) -> frozenset[Identity]:
    """The folders that a folder lies in, by its name and in truth."""
    path = Path(folder).absolute()
    return frozenset(map(_identity, {*path.parents, *path.resolve().parents}))


def _identity(folder: str | Path) -> Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:MAX_SHOWN]) + (f" and {len(paths) - MAX_SHOWN} more" if len(paths) > MAX_SHOWN else "")
