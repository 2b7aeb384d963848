"""The checkpoints of a run: folders that appear whole, with a checksum per file; the newest good one is found."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import RunFailed, UsageError
from ..files import regular, sync

MANIFEST, STATE, KEY = "manifest.json", "state.json", "normfree"
Tensors = Mapping[str, Tensor]


class Checkpoints:
    """Writes ``FOLDER/step-N/`` and the links ``last`` and ``best`` to them.

    A folder is written under another name, synchronized with the disk and renamed, so that a kill at any moment leaves
    the one before; that one is kept, too, in case the disk damages the last.

    Args:
        folder: of all checkpoints of a run.
        description: JSON that goes into every safetensors file, so that it can be used alone.
        keep_every: keep the checkpoints of steps that are multiples of it.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, Any], keep_every: int | None = None):
        self.folder, self.description, self.keep_every = Path(folder), dict(description), keep_every
        self.saved_step: int | None = None

    def save(self, step: int, files: Mapping[str, Tensors], state: Mapping[str, Any], *, best: bool = False) -> Path:
        """One checkpoint: ``NAME.safetensors`` of each set of tensors, and ``state`` as JSON.

        Raises:
            RunFailed: it cannot be written; the ones before are intact.
        """
        final = self.folder / f"step-{step:08d}"
        part = final.with_name(final.name + ".part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name, tensors in files.items():
                description = {**self.description, **state.get("metrics", {}), "step": step, "kind": name}
                _write_tensors(part / f"{name}.safetensors", tensors, description)
            _write(part / STATE, json.dumps(dict(state)).encode())
            sums = {path.name: dict(bytes=path.stat().st_size, sha256=_sum(path)) for path in sorted(part.iterdir())}
            _write(part / MANIFEST, json.dumps(dict(step=step, files=sums), indent=1).encode())
            sync(part)
            old = final.with_name(final.name + ".old")
            if final.exists():  # a damaged one, or this step a second time
                os.rename(final, old)
            os.rename(part, final)
            shutil.rmtree(old, ignore_errors=True)
            _link(self.folder / "last", final.name)
            if best:
                _link(self.folder / "best", final.name)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            for link in ("last.part", "best.part"):
                (self.folder / link).unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or error
            raise RunFailed(f"cannot write checkpoint {final}: {reason}") from error
        before, self.saved_step = self.saved_step, step
        self._remove_others(step, before)
        return final

    def _remove_others(self, *steps: int | None) -> None:
        """All but the given ones, the best, and those to keep."""
        keep = {f"step-{step:08d}" for step in steps if step is not None}
        keep |= {os.readlink(link) for name in ("last", "best") if (link := self.folder / name).is_symlink()}
        for path in self.folder.glob("step-*"):
            number = path.name.removeprefix("step-")
            every = self.keep_every and number.isdigit() and int(number) % self.keep_every == 0 and int(number) > 0
            if path.name not in keep and not every:
                shutil.rmtree(path, ignore_errors=True)


def damage(checkpoint: str | Path) -> str | None:
    """What is wrong with a checkpoint's folder, in words; None if every file is as it was written."""
    checkpoint = Path(checkpoint)
    try:
        files = json.loads(regular(checkpoint / MANIFEST).read_bytes())["files"]
        for name, expected in files.items():
            path = checkpoint / name
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if _sum(path) != expected["sha256"]:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name}: {error.strerror or error}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def find_checkpoint(folder: str | Path, which: str = "last") -> tuple[Path, list[str]]:
    """The checkpoint ``which`` of a run's checkpoints, or if it is damaged the newest good one.

    Returns:
        Its folder, and what to tell the user about damaged ones.

    Raises:
        UsageError: there is no good one.
    """
    folder = Path(folder)
    wanted = folder / os.readlink(folder / which) if (folder / which).is_symlink() else None
    others = sorted((p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()), reverse=True)
    candidates = ([wanted] if wanted is not None else []) + [path for path in others if path != wanted]
    if wanted is None and which == "best" and others:
        raise UsageError(f"{folder} has no best checkpoint yet; the first evaluation chooses it")
    told = [] if wanted is not None else [f"{folder} has no link {which}"]
    for path in candidates:
        wrong = damage(path)
        if wrong is None:
            return path, [*told, f"checkpoint {path} is used instead"] if told else []
        told.append(f"checkpoint {path} is damaged ({wrong})")
    reason = "; ".join(told) if candidates else "there is none"
    raise UsageError(f"{folder} has no good checkpoint: {reason}; a run folder is what `normfree train` printed")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint that :func:`find_checkpoint` found."""
    return json.loads(regular(checkpoint / STATE).read_bytes())


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """The tensors ``NAME.safetensors`` of such a checkpoint; none if it has no such file."""
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


def _sum(path: Path) -> str:
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(link: Path, target: str) -> None:
    """Point a symbolic link somewhere else in one step."""
    part = link.with_name(link.name + ".part")
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    os.symlink(target, part)
    os.replace(part, link)
