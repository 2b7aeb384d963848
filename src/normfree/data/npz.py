"""Images and labels as arrays in one .npz file."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError, did_you_mean
from ..files import regular
from ..limits import MAX_ARRAY_BYTES, MAX_NAME_LENGTH
from .array_splits import Labels, array_split, check_count, check_images, labels_of
from .held_out import HeldOut, NoTestImages, hold_out
from .machine import memory
from .shards import MAX_LABEL
from .sources import VALIDATION_NAMES, ArraySplit, Source, array_parts
from .splits import Split
from .tables import without_images

# names of images and labels, {} being train, val or test
PAIRS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_data", "{}_labels"))
ALONE = (("images", "labels"), ("x", "y"), ("data", "labels"))  # of a file without splits
CLASSES = ("classes", "class_names", "label_names")
WANTED = "images and labels, or train_images, train_labels, test_images, test_labels, or x_train, y_train, ..."


@dataclass(frozen=True)
class Arrays:
    """What a .npz file holds; arrays are read when asked for, and pickles never."""

    path: Path
    names: dict[str, str]  # by their lower case

    @classmethod
    def of(cls, path: Path) -> "Arrays":
        """Look at the list of a file's arrays.

        Raises:
            UsageError: there is no such file, or it is another one.
        """
        if not path.is_file():
            raise UsageError(f"data.source: {path} is not a file; it must be arrays in a .npz file")
        try:
            with zipfile.ZipFile(regular(path)) as opened:
                names = [name.removesuffix(".npy") for name in opened.namelist() if name.endswith(".npy")]
        except Exception as error:  # a damaged list makes zipfile fail in many ways
            raise UsageError(f"data.source: {path} is no .npz file: {_one_line(error)}") from error
        return cls(path, {name.lower(): name for name in names})

    def pair(self, part: str) -> tuple[str, str] | None:
        """The names of the images and labels of "train", "val", ...; of "" those of a file without splits."""
        for pair in PAIRS if part else ALONE:
            images, labels = (self.names.get(name.format(part)) for name in pair)
            if images is not None and labels is not None:
                return images, labels
        return None

    def prefix(self, name: str) -> str:
        """What messages call an array."""
        return f"{self.path}/{name}"

    def read(self, name: str, images: bool = False) -> np.ndarray:
        """An array, in this machine's order of bytes.

        Raises:
            UsageError: it is damaged, larger than what can be held, holds Python objects, or is no ``images``.
        """
        try:
            with zipfile.ZipFile(self.path) as opened, opened.open(f"{name}.npy") as file:
                shape, dtype = _header(file)
                if dtype.hasobject:
                    raise ValueError("it holds Python objects, which are not loaded; store numbers or plain text")
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if size > min(MAX_ARRAY_BYTES, memory()):
                    raise ValueError(f"{size:,} bytes, more than this machine can hold in memory")
                if size > opened.getinfo(f"{name}.npy").file_size:
                    raise ValueError(f"truncated: its {size:,} bytes of numbers are not all there")
                if images:
                    check_images(shape, dtype, self.prefix(name))
                file.seek(0)
                found = np.lib.format.read_array(file, allow_pickle=False)
        except UsageError:
            raise
        except Exception as error:  # whatever the file holds
            raise UsageError(f"data.source: {self.prefix(name)} cannot be read: {_one_line(error)}") from error
        return found.astype(found.dtype.newbyteorder("="), copy=False)

    def classes(self) -> list[str] | None:
        """The names of the classes, where the file has them.

        Raises:
            UsageError: they are no texts, or two are the same.
        """
        name = next((self.names[name] for name in CLASSES if name in self.names), None)
        if name is None:
            return None
        found = self.read(name)
        if found.ndim != 1 or found.dtype.kind not in "US" or not 0 < len(found) <= MAX_LABEL + 1:
            what = f"{self.prefix(name)} is an array of shape {found.shape} of {found.dtype!s:.40}"
            raise UsageError(f"data.source: {what}; names of classes are (K,) text")
        texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in found.tolist()]
        wrong = next((one for one in texts if not one.strip() or len(one) > MAX_NAME_LENGTH), None)
        if wrong is not None or len(set(texts)) < len(texts):
            raise UsageError(f"data.source: {self.prefix(name)}: names must be there, short, and each only once")
        return texts


def array_file(
    text: str,
    channels: int = 3,
    *,
    answers: str = "class",
    held_out: HeldOut | None = None,
    known: Sequence[str] | None = None,
) -> Source[Split]:
    """Images and labels in FILE.npz: ``train_images, train_labels``, the same of val and test; Keras' ``x_train``, ...

    Tested is on val where it is there, else on test; "FILE.npz:test" says on which. Of ``images`` and ``labels`` alone
    some are held out. Images are (N, H, W), (N, H, W, C) or (N, C, H, W); labels (N,) or (N, 1) integers from 0, for
    several classes (N, K) of 0 and 1. ``classes`` may have their names.

    >>> file = Path(tempfile.mkdtemp()) / "noise.npz"
    >>> arrays = {f"{part}_images": np.zeros((4, 8, 8), np.uint8) for part in ("train", "test")}
    >>> np.savez(file, **arrays, train_labels=np.arange(4), test_labels=np.arange(4))
    >>> source = array_file(str(file))
    >>> len(source.train), source.train.image(0).shape, source.classes
    (4, torch.Size([3, 8, 8]), ['0', '1', '2', '3'])

    Args:
        answers, held_out: as of :func:`.folders.open_source`.
        known: classes of a network that is measured, which needs no training images: ``train`` is empty then.

    Raises:
        UsageError: another file, arrays that do not go together, no test images and none held out, or both.
    """
    path, part = array_parts(text)
    arrays = Arrays.of(Path(path).expanduser())
    tested = [name for name in (VALIDATION_NAMES if part is None else (part,)) if arrays.pair(name)]
    if part is not None and not tested:
        raise UsageError(f"data.source: {_lacking(arrays, part)}")
    names = arrays.classes()
    if known is not None:
        pair = arrays.pair(tested[0] if tested else "")
        if pair is None:
            raise UsageError(f"data.source: {_lacking(arrays, 'test')}")
        classes = names or list(known)
        images, said = _read(arrays, pair, answers, classes)
        split = array_split(images, said, arrays.prefix(pair[0]), channels)
        nothing = ArraySplit(torch.zeros(0, channels, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "")
        return Source(nothing, split, classes, tuple(_not_tested(said, classes)))
    pair = arrays.pair("train") or arrays.pair("")
    if pair is None:
        raise UsageError(f"data.source: {_lacking(arrays, 'train')}")
    images, said = _read(arrays, pair, answers, names)
    classes = names or _counted(said, answers)
    if len(classes) == 1 and answers == "class":
        raise UsageError(f"data.source: {arrays.prefix(pair[1])} has one class; a classifier needs two or more")
    split = array_split(images, said, arrays.prefix(pair[0]), channels)
    if not tested:
        return _held_out(arrays, split, said, classes, held_out)
    if held_out is not None:
        raise UsageError(f"data.val_fraction (={held_out.fraction:g}): {arrays.path} has test images of its own")
    pair = arrays.pair(tested[0])
    assert pair is not None  # as it is among those that are there
    images, said = _read(arrays, pair, answers, classes)
    test = array_split(images, said, arrays.prefix(pair[0]), channels)
    return Source(split, test, classes, (*_unused(arrays, tested[0]), *_not_tested(said, classes)))


def _read(
    arrays: Arrays, pair: tuple[str, str], answers: str, classes: Sequence[str] | None
) -> tuple[np.ndarray, Labels]:
    said = labels_of(arrays.read(pair[1]), arrays.prefix(pair[1]), answers)
    if classes is not None:
        check_count(said, arrays.prefix(pair[1]), classes)
    return arrays.read(pair[0], images=True), said


def _counted(said: Labels, answers: str) -> list[str]:
    """Names of classes that have none: their numbers."""
    return [f"number{i}" if answers == "numbers" else str(i) for i in range(said.count)]


def _held_out(arrays: Arrays, split: Any, said: Labels, classes: list[str], held_out: HeldOut | None) -> Source[Split]:
    if held_out is None:
        raise NoTestImages(
            f"data.source: {arrays.path} has no test images; --data.val_fraction 0.1 holds a tenth of the images out"
        )
    groups = None if said.targets is not None else [classes[label] for label in said.labels.tolist()]
    train, test, held_out, notes = hold_out(held_out, split, arrays.path, groups)
    return Source(train, test, classes, tuple(notes), held_out=held_out)


def _not_tested(said: Labels, classes: Sequence[str]) -> list[str]:
    return without_images(set(said.labels.tolist()), classes) if said.targets is None else []


def _unused(arrays: Arrays, used: str) -> list[str]:
    """The sentence about other test images than those that are used, if there are such."""
    others = [name for name in VALIDATION_NAMES if name != used and arrays.pair(name)]
    if not others:
        return []
    return [
        f"{', '.join(others)} of {arrays.path} not used; {used} is what is tested on "
        f"(arrays:{arrays.path}:{others[-1]} tests on {others[-1]})"
    ]


def _lacking(arrays: Arrays, part: str) -> str:
    """What a file should hold, and holds."""
    there = ", ".join(sorted(arrays.names.values())[:8]) or "no arrays"
    wanted = [name.format(part) for pair in PAIRS for name in pair]
    missing = next((name for name in wanted if name not in arrays.names), wanted[0])
    near = did_you_mean(missing, arrays.names.values(), f"it must hold {WANTED}")
    return f"{arrays.path} has no {part} images with labels, but {there}; {near}"


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, by the beginning of its file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
