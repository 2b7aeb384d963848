"""The results of an evaluation, as text, as JSON and as a table."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..words import as_json, printable
from .confusion import Confusion

MAX_ROWS, MAX_MATRIX, MAX_PAIRS = 50, 20, 12  # of what is printed for people
MAX_JSON_CLASSES = 2000  # classes of a confusion matrix in JSON: 4 million numbers
NUMBERS = ("mae", "r2")  # columns that are no fractions
MAX_LETTERS = 8  # of a class name above a column of the matrix


@dataclass
class Measured:
    """The results of an evaluation.

    Attributes:
        lines: the scores of the whole split as text.
        scores: the same by name, and the number of images; None if a score is not defined.
        rows: ``name`` and scores of each class, or of each number of a regression; None if not defined.
        confusion: which classes are predicted for which, for classifiers.
        notes: sentences about the scores.
        of: what the rows are: "classes", or "numbers" of a regression.
    """

    lines: list[str]
    scores: Mapping[str, float | None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    confusion: Confusion | None = None
    notes: list[str] = field(default_factory=list)
    of: str = "classes"

    def as_text(self) -> str:
        """Scores, a line per class, the confusion matrix of up to twenty classes, notes."""
        return "\n".join(map(printable, [*self.lines, *self._table(), *self._confusions(), *self.notes]))

    def as_json(self, **about: Any) -> str:
        """One line: ``about``, the scores, ``notes``, and where there are, ``classes`` or ``numbers`` and
        ``confusion_matrix``."""
        content = about | dict(self.scores)
        if self.rows:
            content[self.of] = self.rows
        if self.confusion is not None and len(self.rows) <= MAX_JSON_CLASSES:
            content["confusion_matrix"] = self.confusion.matrix().tolist()
        return as_json(content | dict(notes=self.notes))

    def as_csv(self) -> str:
        """A row per class, or the scores in one row where there are no classes."""
        rows = self.rows or [dict(self.scores)]
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _table(self) -> list[str]:
        """Of many classes, the worst ones."""
        if not self.rows:
            return []
        columns = [name for name in self.rows[0] if name != "name"]
        shown, left = self.rows, []
        if len(shown) > MAX_ROWS:
            shown = sorted(shown, key=lambda row: math.inf if row[columns[-1]] is None else row[columns[-1]])[:MAX_ROWS]
            left = [f"  ({MAX_ROWS} of {len(self.rows)} classes, the worst ones first; --csv FILE writes all)"]
        width = max(len(row["name"]) for row in shown)
        heading = [f"  {'':{width}}" + "".join(f"  {column:>9}" for column in columns)] if len(columns) > 1 else []
        none = "-" if heading else "not there"
        cells = ["".join(f"  {_cell(column, row[column], none)}" for column in columns) for row in shown]
        lines = [f"  {row['name']:{width}}{cell}" for row, cell in zip(shown, cells, strict=True)]
        return heading + lines + left

    def _confusions(self) -> list[str]:
        """The matrix, or of many classes the pairs that are confused most."""
        if self.confusion is None:
            return []
        names = [row["name"] for row in self.rows]
        if len(names) <= MAX_MATRIX:
            matrix = self.confusion.matrix()
            width, wide = max(map(len, names)), max(MAX_LETTERS, len(str(int(matrix.max()))))
            heading = f"  {'':{width}}" + "".join(f"  {name[:wide]:>{wide}}" for name in names)
            rows = zip(names, matrix.tolist(), strict=True)
            lines = [f"  {name:{width}}" + "".join(f"  {count:{wide}}" for count in counts) for name, counts in rows]
            return ["confusion matrix: rows are true classes, columns what the network says", heading, *lines]
        wrong = [(count, true, said) for (true, said), count in self.confusion.counts.items() if true != said]
        pairs = sorted(wrong, key=lambda pair: (-pair[0], pair))[:MAX_PAIRS]
        lines = [f"  {count:6}  {names[true]} is said to be {names[said]}" for count, true, said in pairs]
        return ["confused most:", *lines] if lines else []


def _cell(column: str, value: float | None, none: str) -> str:
    if value is None:
        return f"{none:>9}"
    if isinstance(value, int):
        return f"{value:9}"
    return f"{value:9.2%}" if column not in NUMBERS else f"{value:9.5g}"


def over_classes(missing: Sequence[str], classes: int) -> str | None:
    """The sentence about classes that there are no test images of."""
    if not missing:
        return None
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return f"over {classes - len(missing)} of {classes} classes: no test image of {shown}"


def named_rows(names: Sequence[str], score: str, values: Sequence[float]) -> list[dict[str, Any]]:
    """Of each class its ``name`` and a score; None for NaN, which JSON does not have."""
    return [{"name": n, score: None if math.isnan(v) else v} for n, v in zip(names, values, strict=True)]
