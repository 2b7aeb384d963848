"""Collecting what a page about several runs shows: ``normfree report RUN RUN ...``."""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..recipes import Recipe, field_paths, load_recipe
from ..report import About, Compared, Missing, RunFiles, write_comparison
from ..tasks import Classification, task_of
from ..training.run import RECIPE
from ..version import __version__


def comparison(files: Sequence[RunFiles]) -> bytes:
    """The HTML page about several runs.

    Args:
        files: of :func:`normfree.report.read_run`; at least two.

    Raises:
        UsageError: there are fewer, or the same folder comes twice.
    """
    if len(files) < 2:
        raise UsageError("a comparison needs at least two runs")
    folders = [one.folder.resolve() for one in files]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UsageError(f"{twice} is given twice")
    names = _names(folders)
    made = f"normfree {__version__}, {time.strftime('%F %H:%M')}"
    return write_comparison([_compared(one, name) for one, name in zip(files, names, strict=True)], made)


def _compared(files: RunFiles, name: str) -> Compared:
    try:
        recipe = load_recipe(str(files.folder / RECIPE))
    except (UsageError, OSError) as error:
        return Compared(files, name, Missing(error), About(score=Classification.score))
    return Compared(files, name, _fields(recipe), About(score=task_of(recipe).score, planned=recipe.train.steps))


def _fields(recipe: Recipe) -> dict[str, str]:
    """Every field as text, the entries of mappings each for itself."""
    content, found = dataclasses.asdict(recipe), dict[str, str]()
    for path in field_paths():
        section, name = path.split(".")
        value = content[section][name]
        if isinstance(value, dict):
            found |= {f"{path}.{key}": json.dumps(entry, ensure_ascii=False) for key, entry in value.items()}
        else:
            found[path] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; where two have the same, the paths below the folder that all share."""
    names = [folder.name for folder in folders]
    if len(set(names)) == len(names):
        return names
    shared = os.path.commonpath(folders)
    return [os.path.relpath(folder, shared) for folder in folders]
