"""A trained network from a run folder or a checkpoint file."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import EvalTransform
from ..errors import UsageError
from ..models import ResidualNet
from ..recipes import Recipe
from ..tasks.classification import image_statistics
from ..training import load_weights, read_checkpoint
from ..weights import load_haiku, load_pretrained, read_arrays

MOST_PIXELS = 4096  # side of an image that a file may ask for; the largest network of the papers takes 608


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode and what it needs: class names, recipe, where it came from.

    ``classes`` are folder names; ``names`` say the same to a reader, where the file has such.
    """

    model: ResidualNet
    recipe: Recipe
    classes: list[str]
    source: str
    names: list[str]


def describe(recipe: Recipe, classes: list[str]) -> dict[str, Any]:
    """What a checkpoint says about itself, so that it can be used alone."""
    return dict(recipe=dataclasses.asdict(recipe), classes=classes)


def load_trained(path: str, which: str | None = None, weights: str | None = None) -> Trained:
    """The network of a run folder or a .safetensors file.

    Args:
        which: a run folder's "last" (None: the same) or "best" checkpoint.
        weights: its "ema" or "raw" weights; None takes the average where there is one.

    Raises:
        UsageError: nothing there, unreadable, tensors of another architecture, or a choice where there is one file.
    """
    for flag, value in (("checkpoint", which), ("weights", weights)):
        if value and Path(path).is_file():
            raise UsageError(f"--{flag} chooses among a run folder's files; {path} is one file")
    kind = {"raw": "weights", "ema": "ema", None: None}[weights]
    state, description, file = read_checkpoint(path, which or "last", kind)
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
    try:
        recipe = Recipe.from_dict(content, str(file))
        _check_size(recipe, classes, state, str(file))
    except (UsageError, RecursionError) as error:  # its words are whatever the file says
        reason = "".join(c if c.isprintable() else " " for c in str(error).removeprefix(f"{file}: ")[:600])
        raise UsageError(f"{file}: {reason}") from error
    model = recipe.model.build(num_classes=len(classes), in_chans=recipe.data.channels)
    load_weights(model, state, str(file))
    return Trained(model.eval(), recipe, classes, str(file), names)


def _check_size(recipe: Recipe, classes: list[str], state: Mapping[str, Tensor], file: str) -> None:
    """Build and fill the network on the meta device: a file of a kilobyte must not claim terabytes."""
    depths = recipe.model.options.get("depths", ())
    if not isinstance(depths, list | tuple) or not all(type(n) is int for n in depths) or sum(depths) > len(state):
        raise UsageError(
            f"model.options.depths (={depths!r:.60}) must be numbers of blocks; it has {len(state)} tensors"
        )
    most = max(recipe.data.test_size or 0, recipe.data.resize_margin)
    if most > MOST_PIXELS:
        raise UsageError(f"images of {most} px are larger than {MOST_PIXELS} px")
    try:
        with torch.device("meta"):
            model = recipe.model.build(num_classes=len(classes), in_chans=recipe.data.channels)
    except UsageError:
        raise
    except Exception as error:  # options are whatever the file says
        raise UsageError(f"model.options do not build {recipe.model.name}: {error}") from error
    load_weights(model, state, file)


def initialize(model: ResidualNet, path: str) -> str:
    """Start from other weights: a run folder, a .safetensors file of one, the authors' .npz, or ``pretrained:NAME``.

    Where the number of classes differs, the classifier stays freshly initialized.

    Returns:
        What was done, in one sentence.

    Raises:
        UsageError: nothing there, unreadable, or weights of another architecture.
    """
    if path.startswith("pretrained:"):
        load_pretrained(model, path.partition(":")[2])
        return f"published weights of {path.partition(':')[2]}" + (
            ""
            if model.num_classes == 1000
            else f", with a new classifier ({model.num_classes} classes instead of 1000)"
        )
    if path.endswith(".npz"):
        source, file = read_arrays(path), path
        head = next((p["w"].shape for module, p in source.items() if module.endswith("/~/linear") and "w" in p), ())
        head, load = head[::-1], load_haiku
    else:
        source, _, file = read_checkpoint(path)
        head = tuple(source["head.fc.weight"].shape) if "head.fc.weight" in source else ()
        load = functools.partial(load_weights, origin=str(file))
    wanted = model.num_classes
    classes = head[0] if head[1:] == (model.num_features,) else None  # else the file does not hold so many numbers
    if classes in (None, wanted):
        load(model, source)
        return f"weights from {file}"
    model.reset_classifier(classes)
    load(model, source)
    model.reset_classifier(wanted)
    return f"weights from {file}, with a new classifier ({wanted} classes instead of {classes})"


def evaluation_transform(trained: Trained) -> EvalTransform:
    """The preprocessing that the network is evaluated with."""
    data = trained.recipe.data
    size = data.test_size or trained.model.default_cfg["test_input_size"][-1]
    return EvalTransform(size, data.resize_margin, *image_statistics(data))
