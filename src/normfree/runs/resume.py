"""Going on with a run: which run, and what may change on the way."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import read_object, whole_file
from ..recipes import Recipe, dump_recipe, field_paths, load_recipe, with_earlier_defaults
from ..training import read_description
from ..training.checkpoints import WEIGHTS, read_state
from ..training.environment import basis_of
from ..training.run import ENVIRONMENT, LOCK, RECIPE, STARTING, has_checkpoint
from . import record
from .record import as_asked

# how long the run is, which may change; the run's recipe.yaml is written anew then
LENGTH = ("train.epochs", "train.steps", "train.patience", "optim.restarts")
LONGEST = 80  # letters of a value in a message
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
# of these, what changes the last bits of a run, beside its length
ROUNDING = [f"train.{name}" for name in ("micro_batch", "activation_checkpointing", "compile", "channels_last")]


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


def changed(folder: Path, checkpoint: Path, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """By dotted path what a run's checkpoint was trained by, and what ``recipe`` says instead.

    Raises:
        UsageError: what may not change on the way has been changed, in recipe.yaml.
    """
    content = read_description(checkpoint / WEIGHTS).get("recipe")
    if content is None:  # of a trainer without a recipe
        return {}
    before, now = as_asked(Recipe.from_dict(with_earlier_defaults(content), str(checkpoint))), as_asked(recipe)
    found = {}
    for path in field_paths():
        section, field = path.split(".")
        if before[section][field] != now[section][field]:
            found[path] = before[section][field], now[section][field]
    fixed = {path: pair for path, pair in found.items() if path not in CHANGEABLE}
    if fixed:
        raise UsageError(
            f"{folder / RECIPE} is not what the run was trained by: {instead(fixed)}; "
            "set it back, or start a new run with --out"
        )
    return found


def other_rounding(
    folder: Path, checkpoint: Path, changes: Mapping[str, tuple[Any, Any]], now: Mapping[str, str]
) -> list[str]:
    """What keeps a run from going on bit for bit, in a line for the user; no line if nothing does.

    Args:
        changes: of :func:`changed`.
        now: versions, kind of device and threads, of :func:`.training.environment.basis`.
    """
    before = read_state(checkpoint).get("environment")
    before = before if isinstance(before, dict) else basis_of(read_object(folder / ENVIRONMENT))
    told = [f"{name} {now[name]} instead of {was}" for name, was in before.items() if now.get(name, was) != was]
    told += [instead({path: changes[path]}) for path in ROUNDING if path in changes]
    return [f"goes on, no longer bit for bit: {', '.join(told)}"] if told else []


def instead(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """``optim.lr is 0.2 instead of 0.1, train.steps is 8 instead of null``."""
    return ", ".join(f"{path} is {_yaml(now)} instead of {_yaml(before)}" for path, (before, now) in changes.items())


def _yaml(value: Any) -> str:
    text = repr(value).removesuffix(".0") if isinstance(value, float) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def write_lengths(folder: Path, recipe: Recipe) -> None:
    """Write the length of a run that goes on into its recipe.yaml, and nothing else; the file stays if it says it."""
    written = load_recipe(str(folder / RECIPE))
    if all(value_at(written, path) == value_at(recipe, path) for path in LENGTH):
        return
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
