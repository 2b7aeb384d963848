"""A trained network from a run folder or a checkpoint file."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import EvalTransform
from ..errors import UsageError
from ..models import ResidualNet
from ..recipes import Recipe
from ..tasks.classification import image_statistics
from ..training import load_weights, read_checkpoint
from ..weights import load_haiku, read_arrays


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode and what it needs: class names, recipe, where it came from."""

    model: ResidualNet
    recipe: Recipe
    classes: list[str]
    source: str


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
    recipe = Recipe.from_dict(content, str(file))
    model = recipe.model.build(num_classes=len(classes), in_chans=recipe.data.channels)
    load_weights(model, state, str(file))
    return Trained(model.eval(), recipe, classes, str(file))


def initialize(model: ResidualNet, path: str) -> str:
    """Start from other weights: a run folder, a .safetensors file of one, or the authors' .npz.

    Where the number of classes differs, the classifier stays freshly initialized.

    Returns:
        What was done, in one sentence.

    Raises:
        UsageError: nothing there, unreadable, or weights of another architecture.
    """
    if path.endswith(".npz"):
        source, file = read_arrays(path), path
        classes = next((len(p["b"]) for module, p in source.items() if module.endswith("/~/linear") and "b" in p), None)
        load = load_haiku
    else:
        source, _, file = read_checkpoint(path)
        classes = len(source["head.fc.bias"]) if "head.fc.bias" in source else None
        load = functools.partial(load_weights, origin=str(file))
    wanted = model.num_classes
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
