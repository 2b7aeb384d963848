"""Holding out some images of a source for testing, if it has no test split."""

import hashlib
import json
import os
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UsageError
from ..files import regular, write_json

HELD_OUT = "held_out.json"  # in a run's folder
DAMAGED = "{} is damaged: it should hold a fraction, a seed and the names of the images held out"
BLOCK = 2**15  # bytes of a large file that are hashed at each of three positions


class NoTestImages(UsageError):
    """A source has no test images, and none of its images are to be held out for testing."""


@dataclass(frozen=True)
class Part:
    """Some images of a split, in the order of ``indices``."""

    split: Any
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Tensor:
        return self.split.image(self.indices[index])

    def label(self, index: int) -> int:
        return self.split.label(self.indices[index])

    def name(self, index: int) -> str:
        return self.split.name(self.indices[index])

    def target(self, index: int) -> Tensor:
        return self.split.target(self.indices[index])


@dataclass(frozen=True)
class HeldOut:
    """Which images of a source without a test split are for testing.

    Attributes:
        fraction: of the images of each class, at least one of each.
        seed: of the choice, which depends only on the seed and the names of the images, not on their order.
        names: of the images held out, relative to the source, sorted; None: not chosen yet.
        expected: the fingerprint of the choice in a checkpoint; None: not known.
    """

    fraction: float
    seed: int = 0
    names: tuple[str, ...] | None = None
    expected: str | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the names."""
        text = "\0".join(self.names or ())
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def chosen(self, names: Sequence[str], groups: Sequence[Hashable], files: Sequence[Hashable]) -> "HeldOut":
        """The same with names: in each group, those with the smallest hash of seed and name.

        Args:
            names: of all images.
            groups: class of each image.
            files: identity of each image's file; images of one file are held out together.

        Raises:
            UsageError: a group has only one file, which cannot be both for training and for testing.
        """
        if self.names is not None:
            return self
        first = dict[Hashable, int]()  # of each file
        for index, file in enumerate(files):
            first.setdefault(file, index)
        members = dict[Hashable, list[int]]()
        for index in first.values():
            members.setdefault(groups[index], []).append(index)
        held_files = set[Hashable]()
        for group, indices in members.items():
            if len(indices) < 2:
                raise UsageError(
                    f"data.val_fraction (={self.fraction:g}) needs two images of every class, one to train and one to "
                    f"test; {group} has one"
                )
            count = min(len(indices) - 1, max(1, round(self.fraction * len(indices))))
            ordered = sorted(indices, key=lambda index: (_hash(self.seed, names[index]), names[index]))
            held_files |= {files[index] for index in ordered[:count]}
        chosen = sorted({name for name, file in zip(names, files, strict=True) if file in held_files})
        return HeldOut(self.fraction, self.seed, tuple(chosen))

    def write(self, folder: Path) -> None:
        """Write the list into a run folder."""
        write_json(folder / HELD_OUT, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "HeldOut | None":
        """Read what :meth:`write` wrote; None if there is no file.

        Raises:
            UsageError: the file is damaged.
        """
        path = folder / HELD_OUT
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_bytes().decode())
            fraction, seed, names = (content[field] for field in ("fraction", "seed", "names"))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(DAMAGED.format(path)) from error
        is_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not is_names or type(seed) is not int or type(fraction) not in (int, float) or not 0 <= fraction <= 1:
            raise UsageError(DAMAGED.format(path))
        return cls(float(fraction), seed, tuple(names))

    def divided(self, split: Any, names: Sequence[str]) -> tuple[Part, Part]:
        """Images to train with, and those held out."""
        held_names = set(self.names or ())
        train = [index for index, name in enumerate(names) if name not in held_names]
        return Part(split, train), Part(split, [index for index, name in enumerate(names) if name in held_names])

    def gone(self, names: Sequence[str]) -> str | None:
        """A note about held-out images that do not exist any more, if there are any."""
        held_names = self.names or ()
        missing = sorted(set(held_names) - set(names))
        if not missing:
            return None
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return f"{len(missing)} of {len(held_names)} images held out for testing are not there any more: {shown}"


def hold_out(
    held_out: HeldOut, split: Any, root: str | os.PathLike[str], groups: Sequence[Hashable] | None = None
) -> tuple[Part, Part, HeldOut, list[str]]:
    """Divide a split of files below a folder: training images, held-out images, which these are, notes for the user.

    Args:
        groups: class of each image; None: all images are one group.

    Raises:
        UsageError: see :meth:`HeldOut.chosen`; the choice is not the expected one; no training image or no held-out
            image exists any more.
    """
    paths = [split.name(index) for index in range(len(split))]
    names = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
    new, expected = held_out.names is None, held_out.expected
    held_out = held_out.chosen(names, groups or [str(root)] * len(names), [_identity(path) for path in paths])
    if expected is not None and held_out.fingerprint != expected:
        if not new:
            raise UsageError(f"{HELD_OUT} of the run has changed: it lists other images than the run has held out")
        raise UsageError(
            f"{root} holds other images than when training began: which were held out is not known, and {HELD_OUT} of "
            "the run, which lists them, is not there"
        )
    train, test = held_out.divided(split, names)
    if not len(test) or not len(train):
        which = "test" if not len(test) else "training"
        raise UsageError(f"{root}: no {which} images are left of those that the run was started with")
    notes = [f"{root} has no test split: {len(test)} of {len(names)} images are held out (seed {held_out.seed})"]
    if not new:
        notes = [sentence] if (sentence := held_out.gone(names)) else []
    return train, test, held_out, notes


def content_hash(content: bytes) -> str:
    """The SHA-256 of content as text."""
    return hashlib.sha256(content).hexdigest()


def file_hash(path: str) -> str:
    """A hash of a file's name, size and content; of a large file only the first, middle and last ``BLOCK`` bytes."""
    try:
        with open(regular(path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            content = b""
            for place in (0, (size - BLOCK) // 2, size - BLOCK) if size > 3 * BLOCK else (0,):
                file.seek(place)
                content += file.read(BLOCK if size > 3 * BLOCK else size)
    except OSError:
        size, content = -1, b""
    name = os.path.basename(path).encode("utf-8", "surrogatepass")
    return content_hash(b"%d\0%b\0%b" % (size, name, content))


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()


def _identity(path: str) -> Hashable:
    """The same value for all links to one file."""
    try:
        status = os.stat(path)
    except OSError:
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path
