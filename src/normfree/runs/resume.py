"""Resuming a run: which run, and which fields of its recipe may change."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import read_object, whole_file
from ..recipes import Recipe, check_import, dump_recipe, field_paths, load_recipe, with_earlier_defaults
from ..training import read_description
from ..training.checkpoints import WEIGHTS, read_state
from ..training.environment import basis_of
from ..training.run import ENVIRONMENT, LOCK, RECIPE, STARTING, has_checkpoint
from .started import as_asked, read_started

# the length of the run may change; it is then written into the run's recipe.yaml
LENGTH = ("train.epochs", "train.steps", "train.patience", "optim.restarts")
MAX_LETTERS = 80  # of a value in a message
# fields that may change: where and how the run is computed, not what
CHANGEABLE = {"data.source", "data.cache", "data.workers", "data.timeout", "data.max_unreadable", *LENGTH} | {
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
        "wandb",
        "mlflow",
        "channels_last",
    )
}
# of these, fields that change the last bits of the results
ROUNDING = [f"train.{name}" for name in ("micro_batch", "activation_checkpointing", "compile", "channels_last")]


def run_to_go_on_with(out: str, recipe: Recipe) -> Recipe | None:
    """The recipe to resume the run in ``out`` with; None if there is no run with a checkpoint.

    It is the run's recipe with the fields of ``recipe`` that may change. Fields of the length are taken where they
    differ from what the run was started with.

    Raises:
        UsageError: the run there is by another recipe.
    """
    folder = Path(out)
    if not has_checkpoint(folder):
        return None
    written = load_recipe(str(folder / RECIPE))
    started, wanted = read_started(folder).get("asked", {}), as_asked(recipe)
    before = as_asked(written)
    for path in field_paths():
        section, field = path.split(".")
        new, old = wanted[section][field], started.get(section, {}).get(field, before[section][field])
        if path in CHANGEABLE:
            if path not in LENGTH or new != old:
                set_value(written, path, value_at(recipe, path))
        elif new not in (None, "auto") and new != old:  # null and "auto" have been filled in since
            raise UsageError(
                f"--out {out} is a run with {path} (={old!r}), not {new!r}; name a new folder, or the same"
            )
    return written


def resumed_recipe(run: str, overrides: dict[str, object]) -> tuple[str, Recipe]:
    """Name and recipe of a run to resume, with ``overrides`` of the fields that may change.

    Raises:
        UsageError: no run folder, or an override of another field.
    """
    path = Path(run) / RECIPE
    if not path.is_file():
        if not any((Path(run) / name).is_file() for name in (LOCK, STARTING)):
            raise UsageError(f"--resume {run} is no run folder: it has no recipe.yaml")
        raise UsageError(f"--resume {run} has nothing to go on with; --out {run} --resume starts the run there")
    written, recipe = load_recipe(str(path)), load_recipe(str(path), overrides)
    check_import(recipe.optim.name, overrides, str(path))
    started = read_started(Path(run)).get("asked", {})
    for name in sorted(overrides.keys() - CHANGEABLE):
        section, field = name.split(".")[:2]
        before, now = (as_asked(r)[section][field] for r in (written, recipe))
        if now not in (before, started.get(section, {}).get(field, before)):
            raise UsageError(
                f"--{name} would make it another run: {section}.{field} is {before!r} there, not {now!r}; "
                f"--resume takes {', '.join(sorted(CHANGEABLE))}"
            )
    return Path(run).resolve().name, recipe


def recipe_changes(folder: Path, checkpoint: Path, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """The fields of ``recipe`` that differ from those of a run's checkpoint: dotted path to (before, now).

    Raises:
        UsageError: a field that may not change has been changed in recipe.yaml.
    """
    content = read_description(checkpoint / WEIGHTS).get("recipe")
    if content is None:  # from a trainer without a recipe
        return {}
    before, now = as_asked(Recipe.from_dict(with_earlier_defaults(content), str(checkpoint))), as_asked(recipe)
    changes = {}
    for path in field_paths():
        section, field = path.split(".")
        if before[section][field] != now[section][field]:
            changes[path] = before[section][field], now[section][field]
    fixed = {path: pair for path, pair in changes.items() if path not in CHANGEABLE}
    if fixed:
        raise UsageError(
            f"{folder / RECIPE} is not what the run was trained by: {describe_changes(fixed)}; "
            "set it back, or start a new run with --out"
        )
    return changes


def rounding_changes(
    folder: Path, checkpoint: Path, changes: Mapping[str, tuple[Any, Any]], now: Mapping[str, str]
) -> list[str]:
    """One line for the user about what keeps a resumed run from being the same bit for bit; none if nothing does.

    Args:
        changes: of :func:`recipe_changes`.
        now: versions, kind of device and threads, of :func:`.training.environment.basis`.
    """
    before = read_state(checkpoint).get("environment")
    before = before if isinstance(before, dict) else basis_of(read_object(folder / ENVIRONMENT))
    reasons = [f"{name} {now[name]} instead of {was}" for name, was in before.items() if now.get(name, was) != was]
    reasons += [describe_changes({path: changes[path]}) for path in ROUNDING if path in changes]
    return [f"goes on, no longer bit for bit: {', '.join(reasons)}"] if reasons else []


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """``optim.lr is 0.2 instead of 0.1, train.steps is 8 instead of null``."""
    return ", ".join(f"{path} is {_yaml(now)} instead of {_yaml(before)}" for path, (before, now) in changes.items())


def _yaml(value: Any) -> str:
    text = repr(value).removesuffix(".0") if isinstance(value, float) else json.dumps(value)
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}..."


def write_lengths(folder: Path, recipe: Recipe) -> None:
    """Write the length of a resumed run into its recipe.yaml, and nothing else, unless it is there already."""
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
    """Set a field of a recipe by its dotted path; the section is checked again."""
    section, field = path.split(".")
    setattr(recipe, section, dataclasses.replace(getattr(recipe, section), **{field: value}))
