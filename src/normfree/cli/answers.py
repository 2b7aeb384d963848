"""What `normfree predict` does whatever the task: images in, in batches; lines, JSON, CSV and a summary out."""

import argparse
import contextlib
import csv
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Unreadable, UnreadableImage, decode_image
from ..data.turned import header
from ..errors import RunFailed, UsageError
from ..words import as_json, tell
from .images import given_images
from .outputs import check_output

TABLES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Asked:
    """An image that was read: its file, a name for files about it, and its pixels (C, H, W) uint8."""

    path: Path
    name: str
    image: Tensor


class Answers:
    """What a network says about images, and the files that are written about it; a subclass per task.

    Attributes:
        channels, value_range: that images are decoded to, see :func:`normfree.data.decode_image`.
        columns: of the CSV file, after the image's path; known when the first image was asked about.
    """

    channels: int = 3
    value_range: tuple[float, ...] | None = None
    columns: Sequence[str] = ()

    def begin(self, paths: Sequence[Path]) -> None:
        """The start: all images that are asked about."""

    def placed(self, path: Path, image: Tensor) -> Tensor:
        """An upright image as answers are to be about it.

        Raises:
            UnreadableImage: it is not the image that they are to be about.
        """
        return image

    def view(self, image: Tensor) -> Tensor:
        """What the network sees of an image (C, H, W) uint8: (C, H', W') float32."""
        raise NotImplementedError

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[Any]:
        """An answer for each of a batch: ``seen`` is (N, C, H', W'), ``images`` are as they were decoded."""
        raise NotImplementedError

    def tell(self, asked: Asked, answer: Any) -> dict[str, Any]:
        """What is said about an image, as plain data; writes the files about it."""
        raise NotImplementedError

    def lines(self, told: dict[str, Any]) -> list[str]:
        """The same for people."""
        raise NotImplementedError

    def rows(self, told: dict[str, Any]) -> Iterator[Sequence[Any]]:
        """The same as rows of the CSV file."""
        raise NotImplementedError

    def finish(self) -> list[str]:
        """The end: write what is about all images; what was found in all, in lines."""
        return []


def predict(answers: Answers, options: argparse.Namespace) -> int:
    """Ask about each image; the exit code: 1 where some could not be read.

    Raises:
        UsageError: no image, or none that can be read; a CSV file that cannot be written.
    """
    paths = list(dict.fromkeys(given_images(options.images)))
    names, unreadable, written = _names(paths), [], 0
    _check_places(answers, options, names)
    answers.begin(paths)
    with contextlib.closing(_Table(options.csv)) as table:
        for batch in _batches(answers, paths, names, options.batch_size, unreadable):
            seen = torch.stack([view for _, view in batch])
            said = answers.ask(seen, [asked.image for asked, _ in batch])
            for (asked, _), answer in zip(batch, said, strict=True):
                told = dict(path=str(asked.path)) | answers.tell(asked, answer)
                tell(*([as_json(told)] if options.json else answers.lines(told)), flush=options.json)
                table.write(["path", *answers.columns], ([told["path"], *cells] for cells in answers.rows(told)))
                written += 1
    if not written:
        raise UsageError(f"none of the {len(paths)} images could be read")
    end = answers.finish()
    if options.masks or options.depths or (options.boxes and not options.annotations):
        turned = sum(header(str(path))[1] != 1 for path in paths)
        if turned:
            tell(f"EXIF turns {turned} of the images; what is written is for images as they are shown", file=sys.stderr)
    if not options.json and (len(paths) > 1 or any(map(Path.is_dir, map(Path, options.images)))):
        tell(_count(written, len(unreadable)), *end, *([f"  table {options.csv}"] if options.csv else []))
    return 1 if unreadable else 0


def writing(place: str | Path, error: OSError) -> RunFailed:
    """Of a file that cannot be written."""
    return RunFailed(f"{place} cannot be written: {error.strerror or error}")


def check_csv(path: str, inputs: Iterable[str | Path] = ()) -> None:
    """Tell now, not after minutes, that a table cannot be written; a file that is there stays as it is.

    Raises:
        UsageError: it cannot.
    """
    check_output("--csv", path, TABLES, inputs)
    there = Path(path).exists()
    try:
        Path(path).open("a").close()
    except OSError as error:
        raise UsageError(f"--csv {path} cannot be written: {error.strerror or error}") from error
    if not there:
        Path(path).unlink()


def _check_places(answers: Answers, options: argparse.Namespace, names: Mapping[Path, str]) -> None:
    """No file that is written is one that is read.

    Raises:
        UsageError: one is.
    """
    inputs = [options.network, *names, *filter(None, [options.annotations])]
    for flag, endings in dict(csv=TABLES, boxes=(".json",)).items():
        if path := getattr(options, flag):
            check_output(f"--{flag}", path, endings, inputs)
    drawn = f"_{answers.pictures.task}.png" if hasattr(answers, "pictures") else ".png"
    for flag, endings in dict(masks=(".png",), depths=(".png", ".npy"), out=(drawn,)).items():
        if folder := getattr(options, flag):
            read = set(map(os.path.realpath, names))
            for place in (os.path.join(folder, name + ending) for name in names.values() for ending in endings):
                if os.path.realpath(place) in read:
                    raise UsageError(f"--{flag} {folder}: {place} is an image that is read here; name another folder")


def make_folder(flag: str, folder: str | Path) -> Path:
    """A folder for files about images.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--{flag} {folder} cannot be made: {error.strerror or error}") from error
    return Path(folder)


def _batches(
    answers: Answers, paths: Sequence[Path], names: dict[Path, str], most: int, unreadable: list[Path]
) -> Iterator[list[tuple[Asked, Tensor]]]:
    """Images in order and what the network sees of them, together where that is of one size; the rest is named."""
    batch: list[tuple[Asked, Tensor]] = []
    for path in paths:
        try:
            image = answers.placed(path, decode_image(path, answers.channels, value_range=answers.value_range))
            view = answers.view(image)
        except UnreadableImage as error:
            tell(f"skipped unreadable image {Unreadable.of(str(path), error)}", file=sys.stderr)
            unreadable.append(path)
            continue
        if batch and (len(batch) == most or batch[0][1].shape != view.shape):
            yield batch
            batch = []
        batch.append((Asked(path, names[path], image), view))
        if len(batch) == most:  # with one image at a time, an answer does not wait for the next image
            yield batch
            batch = []
    if batch:
        yield batch


class _Table:
    """A CSV file in UTF-8, or none where there is no path.

    Raises:
        UsageError: it cannot be opened.
    """

    def __init__(self, path: str | None):
        self.path, self.writer = path, None
        try:
            how = dict(newline="", encoding="utf-8", errors="surrogateescape")
            self.file = path and Path(path).open("w", **how)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise UsageError(f"--csv {path} cannot be written: {error.strerror or error}") from error

    def write(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Append rows, in front of the first ones the names of the columns."""
        if not self.file:
            return
        try:
            if self.writer is None:
                self.writer = csv.writer(self.file)
                self.writer.writerow(columns)
            self.writer.writerows(rows)
            self.file.flush()
        except OSError as error:
            raise writing(self.path, error) from error

    def close(self) -> None:
        if self.file:
            self.file.close()


def _names(paths: list[Path]) -> dict[Path, str]:
    """A name for the files about each image; images of one name in several folders are numbered."""
    taken: set[str] = set()
    names, numbers = {}, Counter[str]()
    for path in paths:
        name = path.stem
        while name in taken:
            numbers[path.stem] += 1
            name = f"{path.stem}-{1 + numbers[path.stem]}"
        taken.add(name)
        names[path] = name
    return names


def _count(read: int, unreadable: int) -> str:
    told = f"{read} image{'s' if read != 1 else ''}"
    return told + (f", {unreadable} more could not be read" if unreadable else "")
