"""Labels of images from a CSV file: a row per image, its file first."""

import csv
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from ..files import regular
from ..limits import MAX_TARGETS

LABELS = "labels.csv"
SPLIT = "split"  # the column that says which split an image is of
SEPARATORS = ";|"  # between classes of one image
BOOLEANS = {"false": 0.0, "true": 1.0}
MOST_COLUMNS = 100_000
SHOWN = 3  # lines in a message


@dataclass(frozen=True)
class Table:
    """Rows of a CSV file.

    Attributes:
        path: of the CSV file.
        files: of the images, one per row.
        columns: names of the other columns, but for ``split``.
        cells: a list for each row, a cell per column.
        lines: number of each row's line, for messages.
        splits: of each row, where there is a column ``split``.
    """

    path: Path
    files: list[str]
    columns: list[str]
    cells: list[list[str]]
    lines: list[int]
    splits: list[str] | None = None

    def at(self, row: int) -> str:
        """Where a row is, for a message."""
        return f"{self.path} line {self.lines[row]}"

    def rows(self, chosen: Sequence[int]) -> "Table":
        """Some of the rows."""
        parts = {name: [getattr(self, name)[row] for row in chosen] for name in ("files", "cells", "lines")}
        return replace(self, **parts, splits=None)


def read_table(path: Path) -> Table:
    """A CSV file with a heading: the image's file, relative to the CSV's folder, then labels; perhaps ``split``.

    Columns are separated by comma, semicolon or tab, whichever the heading has first.

    Raises:
        UsageError: it cannot be read, has no heading or no rows, a row has other columns, or files do not exist.
    """
    try:
        with open(regular(path), newline="", encoding="utf-8-sig") as file:
            heading = file.readline()
            delimiter = next((one for one in heading if one in ",;\t"), ",")
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} must be CSV in UTF-8: {error}") from error
    if len(rows) < 2:
        raise UsageError(f"{path} has no rows; it must have a heading, such as file,class, and a row per image")
    columns = rows.pop(0)[1]
    if not 2 <= len(columns) <= MOST_COLUMNS:
        raise UsageError(
            f"{path} must have two columns or more, the file of an image and its label; it has {_listed(columns)}"
        )
    if os.path.isfile(path.parent / columns[0]):
        raise UsageError(f"{path} must begin with a heading, such as file,class; its first line names an image")
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise UsageError(f"{path} has two columns {twice[0]!r:.100}")
    for line, row in rows:
        if len(row) != len(columns):
            raise UsageError(f"{path} line {line} has {len(row)} columns; the heading has {len(columns)}")
    place = next((i for i, name in enumerate(columns) if name.lower() == SPLIT and i), None)
    kept = [i for i in range(1, len(columns)) if i != place]
    if not kept:
        raise UsageError(f"{path} has no column of labels")
    files = [str(path.parent / row[0]) for _, row in rows]
    there = {file for file in set(files) if os.path.isfile(file)}
    lacking = [(line, row[0]) for (line, row), file in zip(rows, files, strict=True) if file not in there]
    if lacking:
        if all(row[0].isdigit() for _, row in rows):
            raise UsageError(
                f"{path}: its first column ({columns[0]!r:.100}) holds numbers; the first one must be the file of an "
                "image (pandas: to_csv(index=False))"
            )
        shown = ", ".join(f"{name!r:.100} (line {line})" for line, name in lacking[:SHOWN])
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise UsageError(f"{path}: no such image in {path.parent}: {shown}{more}")
    return Table(
        path,
        files,
        [columns[i] for i in kept],
        [[row[i] for i in kept] for _, row in rows],
        [line for line, _ in rows],
        None if place is None else [row[place].lower() for _, row in rows],
    )


@dataclass(frozen=True)
class Labelled:
    """Image files with labels.

    Attributes:
        files: of the images.
        classes: names of the classes, or of the numbers.
        labels: class of each image, where it has one.
        targets: (N, classes) float32: 0 or 1 for each class, or numbers; where an image has several.
        several: whether targets are of classes.
    """

    files: list[str]
    classes: list[str]
    labels: list[int] | None = None
    targets: Tensor | None = None

    several: bool = False

    @property
    def groups(self) -> list[str] | None:
        """What images are held out by: their class; of several the rarest one; None for numbers."""
        if self.labels is not None:
            return [self.classes[label] for label in self.labels]
        if self.targets is None or not self.several:
            return None
        counts = self.targets.sum(0)
        rarest = torch.where(self.targets > 0, counts, math.inf).min(1)
        names = [self.classes[i] if n < math.inf else "" for n, i in zip(*map(Tensor.tolist, rarest), strict=True)]
        sizes = Counter(names)  # one image alone can only be for training or for testing
        largest = max(sizes, key=sizes.__getitem__)
        return [
            name if sizes[name] > 1 else largest for name in names
        ]  # one image alone is for training or for testing

    def without_images(self) -> list[str]:
        """See :func:`without_images`."""
        if self.labels is not None:
            return without_images(set(self.labels), self.classes)
        if self.targets is None or not self.several:
            return []
        return without_images(set(self.targets.any(0).nonzero().flatten().tolist()), self.classes)


def without_images(there: set[int], classes: Sequence[str]) -> list[str]:
    """The sentence about classes that a test split has no images of, if there are such."""
    missing = [name for label, name in enumerate(classes) if label not in there]
    if not missing:
        return []
    rest = f"the {len(classes) - len(missing)} of {len(classes)} classes that have test images"
    return [f"there are no test images of {_listed(missing)}: scores are over {rest}"]


def splits_of(table: Table, names: Sequence[str]) -> list[Table]:
    """Training and test rows by the column ``split``; the table alone where it has none.

    Args:
        names: of test splits; the first that there is counts.

    Raises:
        UsageError: a split of another name, or one of the two has no rows.
    """
    if table.splits is None:
        return [table]
    known = ("train", "training", *names)
    for row, name in enumerate(table.splits):
        if name not in known:
            raise UsageError(f"{table.at(row)}: split (={name!r:.40}) must be one of {', '.join(known)}")
    test = next((name for name in names if name in table.splits), None)
    chosen = [[row for row, name in enumerate(table.splits) if name in some] for some in (known[:2], (test,))]
    for rows, name in zip(chosen, ("train", "val"), strict=True):
        if not rows:
            raise UsageError(f"{table.path} has a column split, but no row of {name}")
    return [table.rows(rows) for rows in chosen]


def unused(table: Table, names: Sequence[str]) -> list[str]:
    """The sentence about rows of other splits than those that :func:`splits_of` takes, if there are such."""
    used = next((name for name in names if name in (table.splits or ())), None)
    left = Counter(name for name in table.splits or () if name in names and name != used)
    rows = [f"{count} row{'s' * (count > 1)} of split {name!r}" for name, count in left.items()]
    return [f"{' and '.join(rows)} of {table.path} are not used; {used} is what is tested on"] if rows else []


def labelled(table: Table, answers: str, classes: list[str] | None = None) -> Labelled:
    """What a table says about its images.

    Args:
        answers: "class", one per image; "classes", several; or "numbers".
        classes: that there may be; None takes those of the table, sorted where they are not its columns.

    Raises:
        UsageError: cells that are no such labels, or of other classes.
    """
    if answers == "numbers":
        values = _numbers(table)
        if classes is not None and classes != table.columns:
            raise UsageError(f"{table.path} has numbers {_listed(table.columns)}; they must be {_listed(classes)}")
        if classes is None:
            _told_apart(table, values)
        return Labelled(table.files, table.columns, targets=values.float())
    if answers == "class":
        names = _one_class(table)
        classes = _known(table, set(names), classes)
        places = {name: label for label, name in enumerate(classes)}
        return Labelled(table.files, classes, labels=[places[name] for name in names])
    columns = table.columns if len(table.columns) > 1 else None
    table, found = _several_classes(table)
    classes = _known(table, set(columns or set().union(*found)), classes, columns)
    places = {name: label for label, name in enumerate(classes)}
    if len(found) * len(classes) > MAX_TARGETS and len(classes) > len(found) // 10:
        raise UsageError(
            f"{table.path} names {len(classes):,} classes for {len(found):,} images, too many to hold in memory; "
            "is its column of classes another one?"
        )
    targets = torch.zeros(len(found), len(classes))
    for row, names in enumerate(found):
        targets[row, [places[name] for name in names]] = 1
    return Labelled(table.files, classes, targets=targets, several=True)


def _known(table: Table, names: set[str], classes: list[str] | None, ordered: list[str] | None = None) -> list[str]:
    """The classes, among which all of the table's must be."""
    if classes is None:
        return ordered or sorted(names)
    unknown = sorted(names - set(classes))
    if unknown:
        raise UsageError(f"{table.path} has images of {_listed(unknown)}, of which there are no training images")
    return classes


def _one_class(table: Table) -> list[str]:
    """The class of each image.

    Raises:
        UsageError: several columns, an image twice, no class, or numbers that are no classes.
    """
    if len(table.columns) > 1:
        raise UsageError(
            f"{table.path} has {len(table.columns)} columns of labels ({_listed(table.columns)}); it must have one, or "
            "say --task.labels multi for several classes per image, --task.name regression for numbers; "
            "take the other columns out of the file"
        )
    _once(table, "say --task.labels multi if an image has several classes")
    labels = [row[0] for row in table.cells]
    for row, label in enumerate(labels):
        if not label:
            raise UsageError(f"{table.at(row)} has no class")
    numbers = [_number(label) for label in labels]
    fraction = next((label for label, n in zip(labels, numbers, strict=True) if n is not None and n % 1), None)
    if None not in numbers and fraction is not None:
        raise UsageError(
            f"{table.path} holds numbers such as {fraction}, not classes; --task.name regression learns numbers"
        )
    return labels


def _several_classes(table: Table) -> tuple[Table, list[set[str]]]:
    """Each image once, and its classes, perhaps none.

    They are in one column, separated by ; or |, or in several rows of an image; or each class has a column of 0 and 1.

    Raises:
        UsageError: a cell of such a column is neither 0 nor 1.
    """
    found: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    for row, (file, cells) in enumerate(zip(table.files, table.cells, strict=True)):
        first.setdefault(file, row)
        classes = found.setdefault(file, set())
        if len(table.columns) == 1:
            parts = cells[0].replace(SEPARATORS[1], SEPARATORS[0]).split(SEPARATORS[0])
            classes |= {part.strip() for part in parts} - {""}
            continue
        for name, cell in zip(table.columns, cells, strict=True):
            number = BOOLEANS.get(cell.lower(), _number(cell))
            if number not in (0, 1):
                raise UsageError(f"{table.at(row)}: {name} (={cell!r:.40}) must be 0 or 1, or false or true")
            classes |= {name} if number else set()
    return table.rows(list(first.values())), list(found.values())


def _numbers(table: Table) -> Tensor:
    """The numbers of each image: (N, columns) float64.

    Raises:
        UsageError: a cell is no finite number; an image twice.
    """
    _once(table, "an image has one row")
    rows = []
    for row, cells in enumerate(table.cells):
        values = [_number(cell) for cell in cells]
        for name, cell, value in zip(table.columns, cells, values, strict=True):
            if value is None:
                raise UsageError(f"{table.at(row)}: {name} (={cell!r:.40}) must be a finite number for regression")
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), len(table.columns))


def _told_apart(table: Table, values: Tensor) -> None:
    """Refuse numbers that differ, but not in float32, in which networks compute."""
    for name, column in zip(table.columns, values.T, strict=True):
        low, high = column.min(), column.max()
        if low < high and low.float() == high.float():
            raise UsageError(
                f"{table.path}: the numbers of {name} ({low:.15g} to {high:.15g}) differ too little for their size; "
                "subtract a constant from them"
            )


def _once(table: Table, hint: str) -> None:
    first: dict[str, int] = {}
    for row, file in enumerate(table.files):
        if first.setdefault(file, row) != row:
            raise UsageError(f"{table.at(row)} names {file} again, after line {table.lines[first[file]]}; {hint}")


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:100] for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
