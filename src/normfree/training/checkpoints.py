"""The checkpoints of a run: folders that appear whole, with a checksum per file; the newest good one is found."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import RunFailed, UsageError
from ..files import regular, sync

MANIFEST, STATE, WEIGHTS, KEY = "manifest.json", "state.json", "weights.safetensors", "normfree"
FORMAT = 2  # of a run's JSON files, written as "format"; files of format 1 do not have this entry
# errors of systems without symbolic links, or without the permission to make them (EINVAL: Windows)
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
FOLDER_NAME = re.compile(r"step-[0-9]{8,}(\.part|\.old)?")  # only folders of such a name are ever removed
Tensors = Mapping[str, Tensor]


class Checkpoints:
    """Writes ``FOLDER/step-N/`` and the links ``last`` and ``best`` to them.

    A folder is written under another name, synchronized with the disk and renamed, so that a kill at any moment leaves
    the previous checkpoint intact. The last two are kept, in case the disk damages the last one. Without symbolic
    links, the newest is the last one, and its state names the best one.

    Args:
        folder: of all checkpoints of a run.
        description: JSON that goes into every safetensors file, so that it can be used alone.
        keep_every: keep the checkpoints of steps that are multiples of it.

    Attributes:
        saved_step: of the last checkpoint; None: there is none.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, Any], keep_every: int | None = None):
        self.folder, self.description, self.keep_every = Path(folder), dict(description), keep_every
        self.saved_step: int | None = None
        self._recent: list[int] = []  # steps of the checkpoints that the next save keeps, newest first
        self._source: Path | None = None  # the checkpoint that the run was resumed from, if the user has renamed it

    def resume_from(self, step: int, *, source: Path | None = None, provisional: bool = False) -> None:
        """Continue after the checkpoint of ``step`` in the folder ``source``; ``provisional`` as in :meth:`save`."""
        self.saved_step = step
        self._source = source if source is not None and _order(source)[0] not in (-1, step) else None
        steps = dict.fromkeys(_order(path)[0] for path in saved(self.folder))
        self._recent = [n for n in steps if n < step or (n == step and not provisional)][:2]

    def save(
        self,
        step: int,
        files: Mapping[str, Tensors],
        state: Mapping[str, Any],
        *,
        best: bool = False,
        provisional: bool = False,
    ) -> Path:
        """One checkpoint: ``NAME.safetensors`` of each set of tensors, and ``state`` as JSON.

        Args:
            best: it is the best one so far.
            provisional: the weights are those of the previous checkpoint, so this one does not count as one of the last
                two: no older one is removed for it, and the next save removes it.

        Raises:
            RunFailed: it cannot be written; the previous ones are intact.
        """
        final = self.folder / _name(step)
        part, old = final.with_name(final.name + ".part"), _old(final)
        state = dict(format=FORMAT, **state)
        try:
            self._restore_old()
            self._write_folder(part, step, files, state)
            if final.exists():  # a damaged one, or this step a second time
                os.rename(final, old)
            os.rename(part, final)
            shutil.rmtree(old, ignore_errors=True)
            best_step = step if best else _best_step(state)
            # before "last": after a kill between the two, this step is done again
            if best_step is not None and (best or self._lacks_link(best_step)):
                _link(self.folder / "best", _name(best_step))
            _link(self.folder / "last", final.name)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            self._remove_unfinished_links()
            reason = getattr(error, "strerror", None) or error
            raise RunFailed(f"cannot write checkpoint {final}: {reason}") from error
        self.saved_step = step
        earlier = [n for n in self._recent if n < step]
        self._recent = earlier if provisional else [step, *earlier][:2]
        self._remove_others(step, *self._recent, _best_step(state))
        return final

    def _write_folder(self, folder: Path, step: int, files: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
        """All files of a checkpoint, and their checksums."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, tensors in files.items():
            description = {**self.description, **state.get("metrics", {}), "step": step, "kind": name}
            _write_tensors(folder / f"{name}.safetensors", tensors, description)
        _write(folder / STATE, json.dumps(state).encode())
        sums = {path.name: dict(bytes=path.stat().st_size, sha256=_sha256(path)) for path in sorted(folder.iterdir())}
        _write(folder / MANIFEST, json.dumps(dict(format=FORMAT, step=step, files=sums), indent=1).encode())
        sync(folder)

    def tidy(self, best: int | None) -> None:
        """Remove the leftovers of a killed run: unfinished checkpoints, and those that a save would have removed.

        Args:
            best: step of the best checkpoint.
        """
        self._restore_old()
        self._remove_others(self.saved_step, *self._recent, best)
        self._remove_unfinished_links()

    def saved_in(self, *, elsewhere: bool = False) -> Path | None:
        """Path of the last checkpoint, for a message; None if none has been saved, or it is gone.

        Args:
            elsewhere: another process has written it, perhaps to the disk of another machine.
        """
        if self.saved_step is None:
            return None
        final, link = self.folder / _name(self.saved_step), self.folder / "last"
        if elsewhere and not self.folder.is_dir():
            return final
        if link.is_symlink() and link.exists() and final.exists() and os.path.samefile(link, final):
            return link
        return next((path for path in (final, _old(final), self._source, link) if path and path.is_dir()), None)

    def _lacks_link(self, best: int) -> bool:
        """Whether the best checkpoint exists without its link, as in a copy without links."""
        link = self.folder / "best"
        return not link.is_symlink() and not link.is_dir() and (self.folder / _name(best)).is_dir()

    def _restore_old(self) -> None:
        """Undo a save that was killed between its two renames."""
        for old in self._own(".old"):
            final = old.with_name(old.name.removesuffix(".old"))
            if damage(old) is None and (not final.exists() or damage(final) is not None):
                shutil.rmtree(final, ignore_errors=True)
                os.rename(old, final)
            else:
                shutil.rmtree(old, ignore_errors=True)

    def _remove_others(self, *steps: int | None) -> None:
        """Remove all checkpoints except those of ``steps``, the linked ones, and those of ``keep_every``."""
        keep = {_name(step) for step in steps if step is not None}
        keep |= {os.readlink(link) for name in ("last", "best") if (link := self.folder / name).is_symlink()}
        if self._source is not None:
            keep.add(self._source.name)
        for path in self._own():
            number = path.name.removeprefix("step-")
            every = self.keep_every and number.isdigit() and int(number) % self.keep_every == 0 and int(number) > 0
            if path.name not in keep and not every:
                shutil.rmtree(path, ignore_errors=True)

    def _own(self, ending: str = "") -> list[Path]:
        """Folders with names that this class gives."""
        return [path for path in self.folder.glob(f"step-*{ending}") if FOLDER_NAME.fullmatch(path.name)]

    def _remove_unfinished_links(self) -> None:
        for link in ("last.part", "best.part"):
            (self.folder / link).unlink(missing_ok=True)


def check_format(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a JSON file of a run whose format is newer than this version reads.

    Raises:
        UsageError: it is newer, by name.
        ValueError: its format is not a positive integer.
    """
    number = content.get("format", 1)
    if type(number) is not int or number < 1:
        raise ValueError(f"format (={number!r})")
    if number > FORMAT:
        raise UsageError(f"{path} was written by a newer normfree: format {number}, this one reads up to {FORMAT}")


def damage(checkpoint: str | Path) -> str | None:
    """The problem of a checkpoint's folder, in words; None if every file is as it was written.

    >>> folder = Path(tempfile.mkdtemp())
    >>> checkpoints = Checkpoints(folder, dict(model="linear"))
    >>> path = checkpoints.save(1, dict(weights=nn.Linear(2, 1).state_dict()), dict(step=1))
    >>> damage(path)
    >>> (path / "weights.safetensors").write_bytes(b"half")
    4
    >>> damage(path)  # doctest: +ELLIPSIS
    'weights.safetensors has 4 bytes instead of ...'

    Raises:
        UsageError: a newer version wrote it.
    """
    checkpoint = Path(checkpoint)
    try:
        manifest = json.loads(regular(checkpoint / MANIFEST).read_bytes())
        if _contradicts_state(checkpoint, manifest):
            return f"{MANIFEST} is damaged"
        check_format(manifest, checkpoint / MANIFEST)
        for name in (WEIGHTS, STATE):
            if name not in manifest["files"]:
                return f"{MANIFEST} names no {name}"
        for name, expected in manifest["files"].items():
            path = checkpoint / name
            if path.name != name or (path.exists() and not path.is_file()):
                return f"{MANIFEST} names {name!r:.60}, which is no file of a checkpoint"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if _sha256(path) != expected["sha256"]:
                return f"{name} is not what was written"
    except UsageError:
        raise
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name}: {error.strerror or error}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return None


def _contradicts_state(checkpoint: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest has another format or step than the state."""
    try:
        state = read_state(checkpoint)
        return (state.get("format", 1), state.get("step", manifest["step"])) != (
            manifest.get("format", 1),
            manifest["step"],
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        return False  # the checksum of the state decides


def find_checkpoint(folder: str | Path, which: str = "last") -> tuple[Path, list[str]]:
    """The checkpoint ``which`` of a run's checkpoints, or if it is damaged the newest good one.

    It is found even without the links, and if it was being replaced when the run was killed.

    >>> folder = Path(tempfile.mkdtemp())
    >>> checkpoints = Checkpoints(folder, dict(model="linear"))
    >>> path = checkpoints.save(1, dict(weights=nn.Linear(2, 1).state_dict()), dict(step=1))
    >>> find_checkpoint(folder) == (path, [])
    True

    Returns:
        Its folder, and messages for the user about damaged checkpoints.

    Raises:
        UsageError: there is no good one, or a newer version wrote it.
    """
    folder = Path(folder)
    steps = saved(folder)
    chosen = _chosen(folder, which, steps)
    if chosen is None and which == "best" and steps:
        raise UsageError(f"{folder} has no best checkpoint yet; the first evaluation chooses it")
    paths = [*([] if chosen is None else [chosen]), *steps, *_copied(folder / which)]
    candidates: dict[Path, None] = dict.fromkeys(paths)
    notes = []
    for path in candidates:
        problem = damage(path)
        if problem is None:
            return path, [*notes, f"checkpoint {path} is used instead"] if notes else []
        notes.append(f"checkpoint {path} is damaged ({problem})")
    reason = "; ".join(notes) if candidates else "there is none"
    raise UsageError(f"{folder} has no good checkpoint: {reason}; a run folder is what `normfree train` printed")


def saved(folder: Path) -> list[Path]:
    """All complete checkpoints, newest first; each is followed by the one that it was replacing, if any."""
    return sorted((path for path in folder.glob("step-*") if _order(path)[0] >= 0), key=_order, reverse=True)


def _chosen(folder: Path, which: str, steps: list[Path]) -> Path | None:
    """The target of the link ``which``, or what it would be in a copy without links; None: the newest, or no best."""
    link = folder / which
    if link.is_symlink():
        final = folder / os.readlink(link)
        return _old(final) if _old(final).is_dir() and not final.is_dir() else final
    if which == "last":
        return None
    if copied := _copied(link):
        return copied[0]
    newest = next((path for path in steps if damage(path) is None), None)
    best = None if newest is None else _best_step(read_state(newest))
    return next((path for path in steps if _order(path)[0] == best), None)


def _copied(link: Path) -> list[Path]:
    """The folder in the place of a link, as some copies have it."""
    return [link] if link.is_dir() and not link.is_symlink() else []


def _order(path: Path) -> tuple[int, bool]:
    """The step of a checkpoint's folder (-1: it is none), and whether it was not being replaced."""
    number = path.name.removeprefix("step-").removesuffix(".old")
    return (int(number) if number.isdecimal() else -1), not path.name.endswith(".old")


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _old(final: Path) -> Path:
    return final.with_name(final.name + ".old")


def _best_step(state: Mapping[str, Any]) -> int | None:
    """The step of the best evaluation in a state."""
    best = state.get("best")
    step = best.get("step") if isinstance(best, Mapping) else None
    return step if type(step) is int else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint that :func:`find_checkpoint` found."""
    return json.loads(regular(checkpoint / STATE).read_bytes())


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """The tensors in ``NAME.safetensors`` of such a checkpoint; empty without this file."""
    path = checkpoint / f"{name}.safetensors"
    return load_file(path) if path.is_file() else {}


def _write_tensors(path: Path, tensors: Tensors, description: Mapping[str, Any]) -> None:
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, path, metadata={KEY: json.dumps(description)})
    os.umask(mask := os.umask(0))
    path.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read
    sync(path)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync(path)


def _sha256(path: Path) -> str:
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(link: Path, target: str) -> None:
    """Set a symbolic link in one step; a folder in its place, from a copy, is removed.

    On systems without symbolic links, the link is missing afterwards.
    """
    part, old = link.with_name(link.name + ".part"), _old(link)
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    shutil.rmtree(old, ignore_errors=True)
    if _copied(link):
        os.rename(link, old)
    try:
        os.symlink(target, part, target_is_directory=True)
        os.replace(part, link)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        link.unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)
