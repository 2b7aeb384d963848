"""A trained network from a run folder or a checkpoint file."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import HeldOut
from ..errors import UsageError
from ..recipes import Recipe, with_earlier_defaults
from ..tasks import Trained, task_of
from ..training import load_weights, read_checkpoint
from ..training.checkpoints import STATE
from ..words import tell
from .exported import ExportedNet, exported_recipe
from .foreign import class_names, open_foreign, recipe_of
from .named import TRAINED, Kind, check_choice, kind_of, other_wanted


def load(network: str | Path, checkpoint: str | None = None, weights: str | None = None) -> Trained:
    """A trained network, in evaluation mode, with its classes and its preprocessing.

    Args:
        network: a run folder, a file of weights, an exported file, or "pretrained:NAME".
        checkpoint: a run folder's "last" (None: the same) or "best".
        weights: "ema" (averaged) or "raw", where there are both; None: the average.

    Raises:
        UsageError: nothing there, unreadable, of another architecture, or a choice where there is none.
    """
    return load_trained(str(network), checkpoint, weights, exported=True)


def load_trained(path: str, which: str | None = None, weights: str | None = None, *, exported: bool = False) -> Trained:
    """The network of a run folder, of a file of weights, or of ``pretrained:NAME``.

    The network of weights without a description is found by the names and shapes of their tensors, and is evaluated as
    in the papers; notes about this go to stderr.

    Args:
        which: a run folder's "last" (None: the same) or "best" checkpoint.
        weights: "ema" or "raw" of a run folder, or of a file that has both; None takes the average if there is one.
        exported: accept a file of ``normfree export``, too.

    Raises:
        UsageError: nothing there, unreadable, tensors of another architecture, or a choice where there is one file.
    """
    kind = kind_of(path)
    check_choice(path, kind, which)
    if kind is Kind.EXPORTED and exported:
        network = ExportedNet(path)
        recipe, classes, names = exported_recipe(network.file.description, path)
        return Trained(network.eval(), recipe, task_of(recipe), classes, path, names, list(range(1, 1 + len(classes))))
    if kind not in TRAINED:
        raise other_wanted(path, kind)
    if kind is Kind.CHECKPOINT and weights:
        raise UsageError(f"--weights chooses among a run folder's files; {path} is one file")
    if kind in (Kind.WEIGHTS, Kind.PUBLISHED):
        opened = open_foreign(path, kind=weights)
        tell(*(f"{path}: {note}" for note in opened.notes), file=sys.stderr)
        recipe, (classes, names) = recipe_of(opened, {}), class_names(opened.model.num_classes)
        return Trained(opened.model, recipe, task_of(recipe), classes, path, names, list(range(1, 1 + len(classes))))
    return _load_checkpoint(path, which or "last", {"raw": "weights", "ema": "ema", None: None}[weights])


def _load_checkpoint(path: str, which: str, kind: str | None) -> Trained:
    """The network of a run folder or a checkpoint file; ``kind`` is "weights" (raw) or "ema"."""
    state, description, file = read_checkpoint(path, which, kind, lambda line: tell(line, file=sys.stderr))
    classes, names, numbers = _read_classes(description, file)
    try:
        recipe = Recipe.from_dict(with_earlier_defaults(description["recipe"]), str(file))
        _check_size(recipe, classes, state, str(file))
    except (UsageError, RecursionError) as error:  # the message may quote any text of the file
        reason = "".join(c if c.isprintable() else " " for c in str(error).removeprefix(f"{file}: ")[:600])
        raise UsageError(f"{file}: {reason}") from error
    if recipe.data.value_range == "auto":  # no image was ever read to find it
        recipe.data.value_range = None
    task = task_of(recipe)
    model = task.build_network(recipe, classes)
    load_weights(model, state, str(file))
    task.after_loading(model, recipe, classes, str(file))
    held_out = _held_out(path, recipe, description)
    return Trained(model.eval(), recipe, task, classes, str(file), names, numbers, held_out)


def _read_classes(description: Any, file: Path) -> tuple[list[str], list[str], list[int]]:
    """Folders, names and numbers of the classes in a checkpoint's description, which must have a recipe, too."""
    try:
        _, classes = description["recipe"], description["classes"]
    except (TypeError, KeyError) as error:
        raise UsageError(
            f"{file} does not describe its model (no {error}); it was not written by normfree train"
        ) from error
    names = description.get("names") or classes
    for value in (classes, names):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or len(value) != len(classes):
            raise UsageError(f"{file}: its classes (={value!r:.60}) must be a list of names")
    numbers = description.get("numbers") or list(range(1, 1 + len(classes)))
    if not isinstance(numbers, list) or not all(type(n) is int for n in numbers) or len(numbers) != len(classes):
        raise UsageError(f"{file}: the numbers of its classes (={numbers!r:.60}) must be a list of integers")
    return classes, names, numbers


def _held_out(path: str, recipe: Recipe, description: Mapping[str, Any]) -> HeldOut | None:
    """The held-out images: a run folder has their list, a single file only the fingerprint of it."""
    if recipe.data.val_fraction is None:
        return None
    folder = Path(path)
    if (folder / STATE).is_file():  # a checkpoint, in RUN/checkpoints
        folder = folder.parent.parent
    held_out = HeldOut.read(folder) if folder.is_dir() else None
    if held_out is not None:
        return replace(held_out, expected=description.get("held_out"))
    return HeldOut(recipe.data.val_fraction, recipe.data.val_seed, expected=str(description.get("held_out")))


def _check_size(recipe: Recipe, classes: list[str], state: Mapping[str, Tensor], file: str) -> None:
    """Build the network on the meta device and load the weights: a small file must not make it allocate terabytes."""
    depths = recipe.model.options.get("depths", ())
    if not isinstance(depths, list | tuple) or not all(type(n) is int for n in depths) or sum(depths) > len(state):
        raise UsageError(
            f"model.options.depths (={depths!r:.60}) must be numbers of blocks; it has {len(state)} tensors"
        )
    try:
        with torch.device("meta"):
            model = task_of(recipe).build_network(recipe, classes)
    except UsageError:
        raise
    except Exception as error:  # the file may contain any options
        raise UsageError(f"model.options do not build {recipe.model.name}: {error}") from error
    load_weights(model, state, file)
