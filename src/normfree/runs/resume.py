"""Going on with a run: which run, and what may change on the way."""

import dataclasses
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import whole_file
from ..recipes import Recipe, dump_recipe, field_paths, load_recipe
from ..training.run import LOCK, RECIPE, STARTING, has_checkpoint
from . import record

# how long the run is, which may change; the run's recipe.yaml is written anew then
LENGTH = ("train.epochs", "train.steps", "train.patience", "optim.restarts")
# what may change otherwise: where and how it is computed, not what
CHANGEABLE = {"data.source", "data.workers", "data.timeout", "data.max_unreadable", *LENGTH} | {
    f"train.{name}"
    for name in (
        "device",
        "threads",
        "micro_batch",
        "activation_checkpointing",
        "recompute_weights",
        "compile",
        "log_every",
        "save_every",
        "keep_every",
        "skip_nonfinite",
        "tensorboard",
        "channels_last",
    )
}


def run_to_go_on_with(out: str, recipe: Recipe) -> Recipe | None:
    """How to go on with the run in ``out`` if it has a checkpoint; None if there is none to go on with.

    The recipe is the run's own, with what may change from ``recipe``; of the length of the run, what is not as it was
    asked for at the start.

    Raises:
        UsageError: the run there is by another recipe.
    """
    folder = Path(out)
    if not has_checkpoint(folder):
        return None
    theirs = load_recipe(str(folder / RECIPE))
    asked, ours = record.read(folder).get("asked", {}), record.as_asked(recipe)
    before = record.as_asked(theirs)
    for path in field_paths():
        section, field = path.split(".")
        a, b = ours[section][field], asked.get(section, {}).get(field, before[section][field])
        if path in CHANGEABLE:
            if path not in LENGTH or a != b:
                set_value(theirs, path, value_at(recipe, path))
        elif a not in (None, "auto") and a != b:  # what was null or "auto" has been filled in since
            raise UsageError(f"--out {out} is a run with {path} (={b!r}), not {a!r}; name a new folder, or the same")
    return theirs


def resumed_recipe(run: str, overrides: dict[str, object]) -> tuple[str, Recipe]:
    """Name and recipe of a run that is to go on, with what may change on the way.

    Raises:
        UsageError: no run folder, or an option that would make it another run.
    """
    path = Path(run) / RECIPE
    if not path.is_file():
        if not any((Path(run) / name).is_file() for name in (LOCK, STARTING)):
            raise UsageError(f"--resume {run} is no run folder: it has no recipe.yaml")
        raise UsageError(f"--resume {run} has nothing to go on with; --out {run} --resume starts the run there")
    written, recipe = load_recipe(str(path)), load_recipe(str(path), overrides)
    asked = record.read(Path(run)).get("asked", {})
    for name in sorted(overrides.keys() - CHANGEABLE):
        section, field = name.split(".")[:2]
        before, now = (record.as_asked(r)[section][field] for r in (written, recipe))
        if now not in (before, asked.get(section, {}).get(field, before)):
            raise UsageError(
                f"--{name} would make it another run: {section}.{field} is {before!r} there, not {now!r}; "
                f"--resume takes {', '.join(sorted(CHANGEABLE))}"
            )
    return Path(run).resolve().name, recipe


def lengths_changed(folder: Path, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """What a run's recipe.yaml says of its length, and what ``recipe`` says instead."""
    before = load_recipe(str(folder / RECIPE))
    pairs = {path: (value_at(before, path), value_at(recipe, path)) for path in LENGTH}
    return {path: (a, b) for path, (a, b) in pairs.items() if a != b}


def write_lengths(folder: Path, recipe: Recipe) -> None:
    """Write the length of a run that goes on into its recipe.yaml, and nothing else."""
    written = load_recipe(str(folder / RECIPE))
    for path in LENGTH:
        set_value(written, path, value_at(recipe, path))
    with whole_file(folder / RECIPE) as part:
        part.write_text(dump_recipe(written))


def value_at(recipe: Recipe, path: str) -> Any:
    """A field of a recipe by its dotted path."""
    section, field = path.split(".")
    return getattr(getattr(recipe, section), field)


def set_value(recipe: Recipe, path: str, value: Any) -> None:
    """Set a field of a recipe by its dotted path; the section is checked anew."""
    section, field = path.split(".")
    setattr(recipe, section, dataclasses.replace(getattr(recipe, section), **{field: value}))
