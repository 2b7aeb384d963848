"""The cells of a study: a run for each combination of values and seed."""

import functools
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..recipes import Recipe, check_import, load_recipe, path_names
from ..words import shown
from .axes import Value
from .study import PLACE, SEED, Study

MOST_CELLS, MOST_LETTERS = 100_000, 160


@dataclass(frozen=True)
class Cell:
    """A run of a study.

    Attributes:
        name: of its folder.
        values: by the name of the axis.
        fields: what is set in the base recipe, by dotted path.
        init: weights that it starts from; None: none.
    """

    name: str
    base: str
    values: dict[str, Value]
    seed: int
    fields: dict[str, Any]
    init: str | None = None

    @property
    def names(self) -> dict[str, str]:
        """The names of the values, by axis."""
        return {axis: value.name for axis, value in self.values.items()}

    def recipe(self) -> Recipe:
        """The recipe that it is trained by.

        Raises:
            UsageError: its settings do not fit together.
        """
        check_import(self.fields.get("optim.name"), None, "a study")
        return load_recipe(self.base, self.fields)


def cells(study: Study) -> list[Cell]:
    """All cells of a study; the first seed of every combination comes before the second one.

    Raises:
        UsageError: there are none, or far too many.
    """
    count = functools.reduce(lambda many, axis: many * len(axis.values), study.axes, len(study.seeds))
    if count > MOST_CELLS:
        raise UsageError(f"study {study.name} has {count:,} runs; there can be {MOST_CELLS:,}")
    short = _short_names([axis.name for axis in study.axes])
    found: list[Cell] = []
    for seed in study.seeds:
        for combination in itertools.product(*(axis.values for axis in study.axes)):
            values = {axis.name: value for axis, value in zip(study.axes, combination, strict=True)}
            if any(all(values[name].name in some for name, some in entry.items()) for entry in study.skip):
                continue
            fields = dict(study.settings)
            for value in combination:
                fields |= value.fields
            parts = [(short[name], value.name) for name, value in values.items()]
            name = folder_name([*parts, ("seed", str(seed))])
            found.append(
                Cell(name, study.base, values, seed, fields | {**study.given, SEED: seed}, _init(study, values, seed))
            )
    if not found:
        raise UsageError(f"study {study.name} has no run: skip leaves out all of them")
    names = [cell.name for cell in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"study {study.name}: two values make the same folder {twice}; give one another name")
    return found


def _init(study: Study, values: Mapping[str, Value], seed: int) -> str | None:
    """The weights that a cell starts from: names of axes become its values, as in the names of folders."""
    names = {axis: _plain(value.name) for axis, value in values.items()} | {"seed": str(seed)}
    return PLACE.sub(lambda found: names[found[1]], study.init) or None


def share(every: Sequence[Cell], part: tuple[int, int] | None) -> list[Cell]:
    """The cells of one part of several, such as (3, 16): the third one, and every sixteenth from there.

    >>> share(list("abcdefg"), (2, 3))
    ['b', 'e']
    """
    return list(every) if part is None else list(every[part[0] - 1 :: part[1]])


def parse_part(text: str) -> tuple[int, int]:
    """Which part of how many, of ``3/16``.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UsageError(f"--shard (={shown(text)}) must be which part of how many, from 1/16 to 16/16")
    return part, parts


def folder_name(parts: Sequence[tuple[str, str]]) -> str:
    """The name of a cell's folder, of letters that every file system and shell takes.

    >>> folder_name([("network", "NF, with AGC"), ("clipping", "0.02"), ("seed", "0")])
    'network=NF-with-AGC,clipping=0.02,seed=0'
    """
    name = ",".join(f"{key}={_plain(value)}" for key, value in parts)
    if len(name) > MOST_LETTERS:
        name = f"{name[:MOST_LETTERS]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _plain(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", value).strip("-") or "-"


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of a field's name where no other axis has the same."""
    last = {name: path_names(name)[-1] for name in names}
    several = list(last.values())
    return {name: last[name] if several.count(last[name]) == 1 else name for name in names}
