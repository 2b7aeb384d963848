"""What a search varies: ranges and choices of a recipe's fields, as the command line writes them."""

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import UsageError
from ..recipes import describe_type, field_paths
from ..words import shown
from .axes import check_field, label

DIGITS = 4  # of a number that is drawn: it is short in commands and names, and exactly what was trained with
LINEAR = ":linear"


class Draws(Protocol):
    """What is needed of a trial of Optuna."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, which are drawn by their logarithm or evenly.

    Attributes:
        whole: whether they are integers.
    """

    low: float
    high: float
    log: bool = True
    whole: bool = False

    def draw(self, trial: Draws, path: str) -> float:
        """A value of the field ``path`` for a trial; the same trial gives the same value again."""
        if self.whole:
            return trial.suggest_int(path, int(self.low), int(self.high), log=self.log)
        value = float(f"{trial.suggest_float(path, self.low, self.high, log=self.log):.{DIGITS}g}")
        return min(self.high, max(self.low, value))

    def ends(self) -> tuple[Any, ...]:
        """Values that show whether all of it fits a recipe."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def __str__(self) -> str:
        ends = f"{label(self.low)}..{label(self.high)}"
        return ends if self.log else ends + LINEAR


@dataclass(frozen=True)
class Choices:
    """Values one of which is drawn, whatever they are."""

    values: tuple[Any, ...]

    def draw(self, trial: Draws, path: str) -> Any:
        """A value of the field ``path`` for a trial."""
        names = [label(value) for value in self.values]
        return self.values[names.index(trial.suggest_categorical(path, names))]

    def ends(self) -> tuple[Any, ...]:
        """Values that show whether all of it fits a recipe."""
        return self.values

    def __str__(self) -> str:
        return f"[{', '.join(map(label, self.values))}]"


Space = Range | Choices


def split(overrides: Mapping[str, Any]) -> tuple[dict[str, Space], dict[str, Any]]:
    """What is searched, and what all trials have alike, by dotted path.

    ``a..b`` is a range by its logarithm, ``a..b:linear`` an even one; a list holds choices. Of a field that takes a
    list itself, a list of lists holds choices.

    Raises:
        UsageError: a range is not one of rising numbers, or begins at 0 without ``:linear``.

    Example:
        >>> spaces, fixed = split({"optim.lr": "0.05..2", "train.batch_size": [16, 32], "train.epochs": 3})
        >>> {path: str(space) for path, space in spaces.items()}, fixed
        ({'optim.lr': '0.05..2', 'train.batch_size': '[16, 32]'}, {'train.epochs': 3})
    """
    spaces: dict[str, Space] = {}
    for path, value in overrides.items():
        check_field(path, f"--{path}")
        if isinstance(value, str) and ".." in value and _takes_numbers(path):
            spaces[path] = _range(path, value)
        elif isinstance(value, list) and value and (not _takes_lists(path) or isinstance(value[0], list)):
            spaces[path] = _choices(path, value)
    return spaces, {path: value for path, value in overrides.items() if path not in spaces}


def _range(path: str, text: str) -> Range:
    ends = re.fullmatch(r"(.+?)\.\.(.+?)(:linear)?", text)
    try:
        low, high = (float(end) for end in ends.groups()[:2]) if ends else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    if ends is None or not -math.inf < low < high < math.inf:
        raise UsageError(
            f"--{path} (={shown(text)}) must be a range of rising numbers, such as 0.05..2 or 0..0.5{LINEAR}"
        )
    log, integers = ends[3] is None, all(re.fullmatch(r"[+-]?\d+", end) for end in ends.groups()[:2])
    if log and low <= 0:
        raise UsageError(f"--{path} (={shown(text)}) is drawn by its logarithm and must be above 0; or {text}{LINEAR}")
    kind = _kind(path)
    whole = "integer" in kind and "a number" not in kind
    if whole and not integers:
        raise UsageError(f"--{path} (={shown(text)}) must be a range of integers, such as 16..256")
    return Range(low, high, log, whole or (not kind and integers))


def _choices(path: str, values: list[Any]) -> Choices:
    names = [label(value) for value in values]
    if len(set(names)) < len(names):
        raise UsageError(f"--{path} (={shown(values)}) has a value twice; leave one of them out")
    return Choices(tuple(values))


def _kind(path: str) -> str:
    """What a field holds, in words; empty for an option of a network, which is whatever it is."""
    fields = field_paths()
    if path in fields:
        return describe_type(fields[path].type)
    of = next(item.type for name, item in fields.items() if path.startswith(f"{name}."))
    kind = typing.get_args(of)[1]
    return "" if kind is Any else describe_type(kind)


def _takes_numbers(path: str) -> bool:
    kind = _kind(path)
    return not kind or "a number" in kind or "integer" in kind


def _takes_lists(path: str) -> bool:
    kind = _kind(path)
    return not kind or "a list" in kind
