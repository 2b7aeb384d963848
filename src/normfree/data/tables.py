"""Labels of images from a CSV file: a row per image, with the image file in the first column."""

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
SPLIT = "split"  # the column with the split of each image
SEPARATORS = ";|"  # between classes of one image
BOOLEANS = {"false": 0.0, "true": 1.0}
MAX_COLUMNS = 100_000
MAX_SHOWN = 3  # lines in a message


@dataclass(frozen=True)
class Table:
    """Rows of a CSV file.

    Attributes:
        path: of the CSV file.
        files: of the images, one per row.
        columns: names of the other columns, without ``split``.
        cells: a list for each row, with a cell per column.
        lines: line number of each row, for messages.
        splits: of each row; None if there is no column ``split``.
    """

    path: Path
    files: list[str]
    columns: list[str]
    cells: list[list[str]]
    lines: list[int]
    splits: list[str] | None = None

    def at(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path} line {self.lines[row]}"

    def rows(self, chosen: Sequence[int]) -> "Table":
        """Some of the rows."""
        parts = {name: [getattr(self, name)[row] for row in chosen] for name in ("files", "cells", "lines")}
        return replace(self, **parts, splits=None)


def read_table(path: Path) -> Table:
    """A CSV file with a heading: the image file, relative to the folder of the CSV file, then labels, maybe ``split``.

    Columns are separated by comma, semicolon or tab: the first of them in the heading.

    Raises:
        UsageError: it cannot be read; it has no heading or no rows; a row has more or fewer columns than the heading;
            an image file does not exist.
    """
    rows = _csv_rows(path)
    if len(rows) < 2:
        raise UsageError(f"{path} has no rows; it must have a heading, such as file,class, and a row per image")
    columns = rows.pop(0)[1]
    if not 2 <= len(columns) <= MAX_COLUMNS:
        raise UsageError(
            f"{path} must have two columns or more, the file of an image and its label; it has {_listed(columns)}"
        )
    if os.path.isfile(path.parent / columns[0]):
        raise UsageError(f"{path} must begin with a heading, such as file,class; its first line names an image")
    duplicate = next((name for name, count in Counter(columns).items() if count > 1), None)
    if duplicate is not None:
        raise UsageError(f"{path} has two columns {duplicate!r:.100}")
    for line, row in rows:
        if len(row) != len(columns):
            raise UsageError(f"{path} line {line} has {len(row)} columns; the heading has {len(columns)}")
    split = next((i for i, name in enumerate(columns) if name.lower() == SPLIT and i), None)
    labels = [i for i in range(1, len(columns)) if i != split]
    if not labels:
        raise UsageError(f"{path} has no column of labels")
    return Table(
        path,
        _existing_files(path, columns[0], rows),
        [columns[i] for i in labels],
        [[row[i] for i in labels] for _, row in rows],
        [line for line, _ in rows],
        None if split is None else [row[split].lower() for _, row in rows],
    )


def _csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of each row that is not blank."""
    try:
        with open(regular(path), newline="", encoding="utf-8-sig") as file:
            heading = file.readline()
            delimiter = next((letter for letter in heading if letter in ",;\t"), ",")
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} must be CSV in UTF-8: {error}") from error


def _existing_files(path: Path, heading: str, rows: list[tuple[int, list[str]]]) -> list[str]:
    """The image file of each row; ``heading`` is that of the first column."""
    files = [str(path.parent / row[0]) for _, row in rows]
    existing = {file for file in set(files) if os.path.isfile(file)}
    missing = [(line, row[0]) for (line, row), file in zip(rows, files, strict=True) if file not in existing]
    if not missing:
        return files
    if all(row[0].isdigit() for _, row in rows):
        raise UsageError(
            f"{path}: its first column ({heading!r:.100}) holds numbers; the first one must be the file of an "
            "image (pandas: to_csv(index=False))"
        )
    shown = ", ".join(f"{name!r:.100} (line {line})" for line, name in missing[:MAX_SHOWN])
    more = f" and {len(missing) - MAX_SHOWN} more" if len(missing) > MAX_SHOWN else ""
    raise UsageError(f"{path}: no such image in {path.parent}: {shown}{more}")


@dataclass(frozen=True)
class Labelled:
    """Image files with labels.

    Attributes:
        files: of the images.
        classes: names of the classes, or of the numbers.
        labels: class of each image, if it has one class.
        targets: (N, classes) float32: 0 or 1 for each class, or numbers, if an image has several.
        several: whether ``targets`` are classes.
    """

    files: list[str]
    classes: list[str]
    labels: list[int] | None = None
    targets: Tensor | None = None
    several: bool = False

    @property
    def groups(self) -> list[str] | None:
        """The groups that images are held out by: the class; the rarest one of several; None for numbers."""
        if self.labels is not None:
            return [self.classes[label] for label in self.labels]
        if self.targets is None or not self.several:
            return None
        counts = self.targets.sum(0)
        rarest = torch.where(self.targets > 0, counts, math.inf).min(1)
        names = [self.classes[i] if n < math.inf else "" for n, i in zip(*map(Tensor.tolist, rarest), strict=True)]
        sizes = Counter(names)
        largest = max(sizes, key=sizes.__getitem__)
        return [name if sizes[name] > 1 else largest for name in names]  # a group of one cannot be split

    def without_images(self) -> list[str]:
        """See :func:`without_images`."""
        if self.labels is not None:
            return without_images(set(self.labels), self.classes)
        if self.targets is None or not self.several:
            return []
        return without_images(set(self.targets.any(0).nonzero().flatten().tolist()), self.classes)


def without_images(labels: set[int], classes: Sequence[str]) -> list[str]:
    """A note about classes of which a test split has no images, if there are any; ``labels`` are those that it has."""
    missing = [name for label, name in enumerate(classes) if label not in labels]
    if not missing:
        return []
    rest = f"the {len(classes) - len(missing)} of {len(classes)} classes that have test images"
    return [f"there are no test images of {_listed(missing)}: scores are over {rest}"]


def splits_of(table: Table, names: Sequence[str]) -> list[Table]:
    """Training and test rows by the column ``split``; the table alone where it has none.

    Args:
        names: of test splits; the first one in the table is used.

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
    """A note about rows of splits that :func:`splits_of` does not use, if there are any."""
    used = next((name for name in names if name in (table.splits or ())), None)
    left = Counter(name for name in table.splits or () if name in names and name != used)
    rows = [f"{count} row{'s' * (count > 1)} of split {name!r}" for name, count in left.items()]
    return [f"{' and '.join(rows)} of {table.path} are not used; {used} is what is tested on"] if rows else []


def labelled(table: Table, answers: str, classes: list[str] | None = None) -> Labelled:
    """The labels in a table.

    Args:
        answers: "class", one per image; "classes", several; or "numbers".
        classes: the allowed classes; None takes those of the table, sorted unless they are its columns.

    Raises:
        UsageError: a cell is not such a label, or not one of ``classes``.
    """
    if answers == "numbers":
        values = _numbers(table)
        if classes is not None and classes != table.columns:
            raise UsageError(f"{table.path} has numbers {_listed(table.columns)}; they must be {_listed(classes)}")
        if classes is None:
            _check_precision(table, values)
        return Labelled(table.files, table.columns, targets=values.float())
    if answers == "class":
        names = _one_class(table)
        classes = _check_classes(table, set(names), classes)
        labels = {name: label for label, name in enumerate(classes)}
        return Labelled(table.files, classes, labels=[labels[name] for name in names])
    columns = table.columns if len(table.columns) > 1 else None
    table, classes_of = _several_classes(table)
    classes = _check_classes(table, set(columns or set().union(*classes_of)), classes, columns)
    labels = {name: label for label, name in enumerate(classes)}
    if len(classes_of) * len(classes) > MAX_TARGETS and len(classes) > len(classes_of) // 10:
        raise UsageError(
            f"{table.path} names {len(classes):,} classes for {len(classes_of):,} images, too many to hold in memory; "
            "is its column of classes another one?"
        )
    targets = torch.zeros(len(classes_of), len(classes))
    for row, names in enumerate(classes_of):
        targets[row, [labels[name] for name in names]] = 1
    return Labelled(table.files, classes, targets=targets, several=True)


def _check_classes(
    table: Table, names: set[str], classes: list[str] | None, ordered: list[str] | None = None
) -> list[str]:
    """``classes``, which must contain those of the table; if None, those of the table."""
    if classes is None:
        return ordered or sorted(names)
    unknown = sorted(names - set(classes))
    if unknown:
        raise UsageError(f"{table.path} has images of {_listed(unknown)}, which have no training images")
    return classes


def _one_class(table: Table) -> list[str]:
    """The class of each image.

    Raises:
        UsageError: several columns, an image twice, no class, or numbers that are no classes.
    """
    if len(table.columns) > 1:
        raise UsageError(
            f"{table.path} has {len(table.columns)} columns of labels ({_listed(table.columns)}); it must have one, or "
            "use --task.labels multi for several classes per image, --task.name regression for numbers; "
            "take the other columns out of the file"
        )
    _check_unique(table, "use --task.labels multi if an image has several classes")
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
    """The table with each image once, and the classes of each image, which may be none.

    They are in one column, separated by ; or |, or in several rows per image; or each class has a column of 0 and 1.

    Raises:
        UsageError: a cell of such a column is neither 0 nor 1.
    """
    classes_of: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    for row, (file, cells) in enumerate(zip(table.files, table.cells, strict=True)):
        first.setdefault(file, row)
        classes = classes_of.setdefault(file, set())
        if len(table.columns) == 1:
            parts = cells[0].replace(SEPARATORS[1], SEPARATORS[0]).split(SEPARATORS[0])
            classes |= {part.strip() for part in parts} - {""}
            continue
        for name, cell in zip(table.columns, cells, strict=True):
            number = BOOLEANS.get(cell.lower(), _number(cell))
            if number not in (0, 1):
                raise UsageError(f"{table.at(row)}: {name} (={cell!r:.40}) must be 0 or 1, or false or true")
            classes |= {name} if number else set()
    return table.rows(list(first.values())), list(classes_of.values())


def _numbers(table: Table) -> Tensor:
    """The numbers of each image: (N, columns) float64.

    Raises:
        UsageError: a cell is no finite number; an image twice.
    """
    _check_unique(table, "an image must have one row")
    rows = []
    for row, cells in enumerate(table.cells):
        values = [_number(cell) for cell in cells]
        for name, cell, value in zip(table.columns, cells, values, strict=True):
            if value is None:
                raise UsageError(f"{table.at(row)}: {name} (={cell!r:.40}) must be a finite number for regression")
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), len(table.columns))


def _check_precision(table: Table, values: Tensor) -> None:
    """Refuse numbers that differ in float64 but not in float32, the type that networks compute in."""
    for name, column in zip(table.columns, values.T, strict=True):
        low, high = column.min(), column.max()
        if low < high and low.float() == high.float():
            raise UsageError(
                f"{table.path}: the numbers of {name} ({low:.15g} to {high:.15g}) differ too little for their size; "
                "subtract a constant from them"
            )


def _check_unique(table: Table, hint: str) -> None:
    """Refuse an image that has several rows."""
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
