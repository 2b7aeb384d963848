"""Predictions for images, in batches: printed lines, JSON, CSV files and a summary."""

import contextlib
import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Unreadable, UnreadableImage
from ..data.exif import header
from ..errors import UsageError
from ..tasks import TASKS, Answers, Asked, PredictOptions
from ..tasks.answers import writing
from ..tasks.trained import InferenceTask
from ..words import as_json, counted, tell
from .deployable import open_ready
from .images import given_images
from .outputs import check_output, try_to_write

TABLES = (".csv", ".tsv", ".txt")
# options that only some tasks have, in the order in which they are checked
TASK_OPTIONS = ("top", "antialias", "score", "boxes", "annotations", "masks", "depths", "out")


def open_answers(options: PredictOptions, which: str | None = None) -> Answers:
    """Open the network of ``options`` for predictions.

    Args:
        which: a run folder's "last" (None: the same) or "best" checkpoint.

    Raises:
        UsageError: no such network, or an option for another task.
    """
    network = open_ready(options.network, which, options.device, options.size)
    check_options(options, network.task)
    if network.exported and network.preprocessing is not None:
        for flag in ("size", "masks", "depths") if network.preprocessing.depth is None else ("size",):
            if getattr(options, flag):
                shape = " x ".join(map(str, network.preprocessing.shape[1:]))
                why = f"sees the centre of images, {shape} pixels" if flag != "size" else f"takes images of {shape}"
                raise UsageError(f"--{flag} is for runs and checkpoints; {options.network} {why}")
    return network.task.answers(network, options)


def check_options(options: PredictOptions, task: type[InferenceTask]) -> None:
    """Refuse options that only other tasks have.

    Raises:
        UsageError: one is given.
    """
    for name in TASK_OPTIONS:
        if name not in task.options and getattr(options, name) not in (None, False):
            tasks = [kind for kind, other in TASKS.items() if name in other.options]
            which = "that classify images" if "classification" in tasks else f"for {_listed(tasks)}"
            raise UsageError(f"--{name} is for networks {which}; {options.network} {task.purpose}")


def _listed(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def predict(answers: Answers, options: PredictOptions) -> int:
    """Predict each image and print the answers; returns the exit code, 1 if some images could not be read.

    Raises:
        UsageError: there are no images, none can be read, or the CSV file cannot be written.
    """
    names, unreadable, written = _named(answers, options), list[Path](), 0
    paths = list(names)
    with contextlib.closing(_Table(options.csv)) as table:
        for answer in _each(answers, names, options.batch_size, unreadable):
            tell(*([as_json(answer)] if options.as_json else answers.lines(answer)), flush=options.as_json)
            table.write(["path", *answers.columns], ([answer["path"], *cells] for cells in answers.rows(answer)))
            written += 1
    if not written:
        raise UsageError(f"none of the {len(paths)} images could be read")
    end = answers.finish()
    if options.masks or options.depths or (options.boxes and not options.annotations):
        turned = sum(header(str(path))[1] != 1 for path in paths)
        if turned:
            tell(f"EXIF turns {turned} of the images; what is written is for images as they are shown", file=sys.stderr)
    if not options.as_json and (len(paths) > 1 or any(map(Path.is_dir, map(Path, options.images)))):
        tell(_count(written, len(unreadable)), *end, *([f"  table {options.csv}"] if options.csv else []))
    return 1 if unreadable else 0


def predictions(
    network: str | Path, images: str | Path | Sequence[str | Path], *, checkpoint: str | None = None, **options: Any
) -> Iterator[dict[str, Any]]:
    """The predictions for each image as plain data: the lines of ``normfree predict --json``.

    Args:
        network: a run folder, a file of weights, an exported file, or the name of a model with published weights.
        images: files, or folders of them; unreadable ones are skipped, and named on standard error.
        checkpoint: a run folder's "last" (None: the same) or "best".
        options: of :class:`normfree.tasks.PredictOptions`; pictures are drawn into the folder ``out``.

    Raises:
        UsageError: no such network or image, or an option that is not for its task.

    Example:
        >>> for one in normfree.runs.predictions("runs/digits", ["photos"]):  # doctest: +SKIP
        ...     print(one["path"], one["classes"][0]["name"])
    """
    files = [images] if isinstance(images, str | Path) else images
    settings = PredictOptions(str(network), list(map(str, files)), **options)
    answers = open_answers(settings, checkpoint)
    yield from _each(answers, _named(answers, settings), settings.batch_size, [])
    answers.finish()


def _named(answers: Answers, options: PredictOptions) -> dict[Path, str]:
    """The images, and names for the files that are written about them.

    Raises:
        UsageError: there are no images; an output would overwrite one of them.
    """
    paths = list(dict.fromkeys(given_images(options.images, answers.endings)))
    names = _names(paths, answers.name)
    _check_outputs(answers, options, names)
    return names


def _each(
    answers: Answers, names: dict[Path, str], batch_size: int, unreadable: list[Path]
) -> Iterator[dict[str, Any]]:
    """The prediction for each image; unreadable images are added to ``unreadable``."""
    answers.begin(list(names))
    for batch in _batches(answers, list(names), names, batch_size, unreadable):
        views = torch.stack([view for _, view in batch])
        for (asked, _), answer in zip(batch, answers.ask(views, [asked.image for asked, _ in batch]), strict=True):
            yield dict(path=str(asked.path)) | answers.tell(asked, answer)


def check_csv(path: str, inputs: Iterable[str | Path] = ()) -> None:
    """Check early that a table can be written; an existing file stays as it is.

    Raises:
        UsageError: it cannot be written.
    """
    check_output("--csv", path, TABLES, inputs)
    try:
        try_to_write(path)
    except OSError as error:
        raise UsageError(f"--csv {path} cannot be written: {error.strerror or error}") from error


def _check_outputs(answers: Answers, options: PredictOptions, names: Mapping[Path, str]) -> None:
    """Check that no output overwrites an input.

    Raises:
        UsageError: one would.
    """
    inputs = [options.network, *names, *filter(None, [options.annotations])]
    for flag, endings in dict(csv=TABLES, boxes=(".json",)).items():
        if path := getattr(options, flag):
            check_output(f"--{flag}", path, endings, inputs)
    folders = dict(masks=answers.mask_endings, depths=(".png", ".npy"), out=(answers.picture_ending,))
    for flag, endings in folders.items():
        if folder := getattr(options, flag) or (answers.default_masks if flag == "masks" else None):
            read = set(map(os.path.realpath, names))
            for output in (os.path.join(folder, name + ending) for name in names.values() for ending in endings):
                if os.path.realpath(output) in read:
                    raise UsageError(f"--{flag} {folder}: {output} is an image that is read here; name another folder")


def _batches(
    answers: Answers, paths: Sequence[Path], names: dict[Path, str], batch_size: int, unreadable: list[Path]
) -> Iterator[list[tuple[Asked, Tensor]]]:
    """Batches of images and the network's inputs of one size, in order; unreadable images are named and skipped."""
    batch: list[tuple[Asked, Tensor]] = []
    for path in paths:
        try:
            image = answers.placed(path, answers.read(path))
            view = answers.view(image)
        except UnreadableImage as error:
            tell(f"skipped unreadable image {Unreadable.of(str(path), error)}", file=sys.stderr)
            unreadable.append(path)
            continue
        if batch and (len(batch) == batch_size or batch[0][1].shape != view.shape):
            yield batch
            batch = []
        batch.append((Asked(path, names[path], image), view))
        if len(batch) == batch_size:  # at once: an answer does not wait for the next image
            yield batch
            batch = []
    if batch:
        yield batch


class _Table:
    """A CSV file in UTF-8; without a path nothing is written.

    Raises:
        UsageError: it cannot be opened.
    """

    def __init__(self, path: str | None):
        self.path, self.file, self.writer = Path(path or ""), None, None
        if not path:
            return
        try:
            self.file = self.path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UsageError(f"--csv {path} cannot be written: {error.strerror or error}") from error

    def write(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Append rows, after a header at the first call."""
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


def _names(paths: Sequence[Path], name_of: Callable[[Path], str]) -> dict[Path, str]:
    """A name for the files about each image; images of the same name in several folders are numbered."""
    taken: set[str] = set()
    names, numbers = {}, Counter[str]()
    for path in paths:
        name = own = name_of(path)
        while name in taken:
            numbers[own] += 1
            name = f"{own}-{1 + numbers[own]}"
        taken.add(name)
        names[path] = name
    return names


def _count(read: int, unreadable: int) -> str:
    return counted(read, "image") + (f", {unreadable} more could not be read" if unreadable else "")
