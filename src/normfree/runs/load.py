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

    Weights that do not say which network they are of are known by their tensors, and evaluated as in the papers;
    what is to be said about them goes to stderr.

    Args:
        which: a run folder's "last" (None: the same) or "best" checkpoint.
        weights: "ema" or "raw" of a run folder, or of a file that has both; None takes the average where there is one.
        exported: take a file of ``normfree export``, too.

    Raises:
        UsageError: nothing there, unreadable, tensors of another architecture, or a choice where there is one file.
    """
    what = kind_of(path)
    check_choice(path, what, which)
    if what is Kind.EXPORTED and exported:
        network = ExportedNet(path)
        recipe, classes, names = exported_recipe(network)
        return Trained(network.eval(), recipe, task_of(recipe), classes, path, names, list(range(1, 1 + len(classes))))
    if what not in TRAINED:
        raise other_wanted(path, what)
    if what is Kind.CHECKPOINT and weights:
        raise UsageError(f"--weights chooses among a run folder's files; {path} is one file")
    if what in (Kind.WEIGHTS, Kind.PUBLISHED):
        opened = open_foreign(path, kind=weights)
        tell(*(f"{path}: {note}" for note in opened.notes), file=sys.stderr)
        recipe, (classes, names) = recipe_of(opened, {}), class_names(opened.model.num_classes)
        return Trained(opened.model, recipe, task_of(recipe), classes, path, names, list(range(1, 1 + len(classes))))
    kind = {"raw": "weights", "ema": "ema", None: None}[weights]
    state, description, file = read_checkpoint(path, which or "last", kind, lambda line: tell(line, file=sys.stderr))
    try:
        content, classes = description["recipe"], description["classes"]
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
    try:
        recipe = Recipe.from_dict(with_earlier_defaults(content), str(file))
        _check_size(recipe, classes, state, str(file))
    except (UsageError, RecursionError) as error:  # its words are whatever the file says
        reason = "".join(c if c.isprintable() else " " for c in str(error).removeprefix(f"{file}: ")[:600])
        raise UsageError(f"{file}: {reason}") from error
    if recipe.data.value_range == "auto":  # never found: no image was seen
        recipe.data.value_range = None
    task = task_of(recipe)
    model = task.build_network(recipe, classes)
    load_weights(model, state, str(file))
    task.after_loading(model, recipe, classes, str(file))
    held_out = _held_out(path, recipe, description)
    return Trained(model.eval(), recipe, task, classes, str(file), names, numbers, held_out)


def _held_out(path: str, recipe: Recipe, description: Mapping[str, Any]) -> HeldOut | None:
    """Which images were held out: a run folder has the list, a file alone its fingerprint."""
    if recipe.data.val_fraction is None:
        return None
    folder = Path(path)
    if (folder / STATE).is_file():  # a checkpoint, in RUN/checkpoints
        folder = folder.parent.parent
    listed = HeldOut.read(folder) if folder.is_dir() else None
    if listed is not None:
        return replace(listed, expected=description.get("held_out"))
    return HeldOut(recipe.data.val_fraction, recipe.data.val_seed, expected=str(description.get("held_out")))


def _check_size(recipe: Recipe, classes: list[str], state: Mapping[str, Tensor], file: str) -> None:
    """Build and fill the network on the meta device: a file of a kilobyte must not claim terabytes."""
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
    except Exception as error:  # options are whatever the file says
        raise UsageError(f"model.options do not build {recipe.model.name}: {error}") from error
    load_weights(model, state, file)
