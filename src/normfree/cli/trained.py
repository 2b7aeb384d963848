"""A trained network from a run folder or a checkpoint file."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import EvalTransform, HeldOut
from ..data.dense import DenseTransform
from ..data.objects import ObjectTransform
from ..errors import UsageError
from ..models import DenseNet, DetectionNet, ResidualNet
from ..models.dense import OnBackbone
from ..recipes import Recipe, as_it_was, build_network, is_dense, set_sizes
from ..tasks import dense, detection
from ..tasks.regression import in_units
from ..tasks.statistics import image_statistics
from ..training import load_weights, read_checkpoint
from ..weights import load_haiku, load_pretrained, read_arrays


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode and what it needs: class names, recipe, where it came from.

    ``classes`` are folder names; ``names`` say the same to a reader, where the file has such. ``numbers`` are what the
    files of the training data called them (COCO's categories), else they count from 1. ``held_out`` says which images
    were held out for testing, where the source has no test split.
    """

    model: ResidualNet | DenseNet | DetectionNet
    recipe: Recipe
    classes: list[str]
    source: str
    names: list[str]
    numbers: list[int]
    held_out: HeldOut | None = None

    @property
    def task(self) -> str:
        """What it is for, as exported files call it: "multi-label" is classification with several classes per image."""
        return "multi-label" if self.recipe.task.labels == "multi" else self.recipe.task.name

    @property
    def dense(self) -> bool:
        """Whether it answers for places in an image: each pixel, or each object."""
        return is_dense(self.recipe)


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
    numbers = description.get("numbers") or list(range(1, 1 + len(classes)))
    if not isinstance(numbers, list) or not all(type(n) is int for n in numbers) or len(numbers) != len(classes):
        raise UsageError(f"{file}: the numbers of its classes (={numbers!r:.60}) must be a list of integers")
    try:
        recipe = Recipe.from_dict(as_it_was(content), str(file))
        _check_size(recipe, classes, state, str(file))
    except (UsageError, RecursionError) as error:  # its words are whatever the file says
        reason = "".join(c if c.isprintable() else " " for c in str(error).removeprefix(f"{file}: ")[:600])
        raise UsageError(f"{file}: {reason}") from error
    model = build_network(recipe, classes)
    load_weights(model, state, str(file))
    if recipe.task.name == "regression":
        mean, std = recipe.task.target_mean, recipe.task.target_std
        if mean is None or len(mean) != len(classes):
            raise UsageError(f"{file}: task.target_mean (={mean!s:.60}) must have {len(classes)} numbers")
        in_units(model.get_classifier(), torch.tensor(mean), torch.tensor(std))
    held_out = _held_out(path, recipe, description)
    return Trained(model.eval(), recipe, classes, str(file), names, numbers, held_out)


def _held_out(path: str, recipe: Recipe, description: Mapping[str, Any]) -> HeldOut | None:
    """Which images were held out: a run folder has the list, a file alone its fingerprint."""
    if recipe.data.val_fraction is None:
        return None
    listed = HeldOut.read(Path(path)) if Path(path).is_dir() else None
    return listed or HeldOut(recipe.data.val_fraction, recipe.data.val_seed, expected=str(description.get("held_out")))


def _check_size(recipe: Recipe, classes: list[str], state: Mapping[str, Tensor], file: str) -> None:
    """Build and fill the network on the meta device: a file of a kilobyte must not claim terabytes."""
    depths = recipe.model.options.get("depths", ())
    if not isinstance(depths, list | tuple) or not all(type(n) is int for n in depths) or sum(depths) > len(state):
        raise UsageError(
            f"model.options.depths (={depths!r:.60}) must be numbers of blocks; it has {len(state)} tensors"
        )
    try:
        with torch.device("meta"):
            model = build_network(recipe, classes)
    except UsageError:
        raise
    except Exception as error:  # options are whatever the file says
        raise UsageError(f"model.options do not build {recipe.model.name}: {error}") from error
    load_weights(model, state, file)


def initialize(model: ResidualNet | DenseNet | DetectionNet, path: str) -> str:
    """Start from other weights: a run folder, a .safetensors file of one, the authors' .npz, or ``pretrained:NAME``.

    Where the number of classes differs, the classifier stays freshly initialized. Of a network that answers for places
    the backbone is filled, and the head as well where the weights are of one for the same task and classes.

    Returns:
        What was done, in one sentence.

    Raises:
        UsageError: nothing there, unreadable, or weights of another architecture.
    """
    if isinstance(model, OnBackbone):
        return _initialize_dense(model, path)
    if path.startswith("pretrained:"):
        load_pretrained(model, path.partition(":")[2])
        return f"published weights of {path.partition(':')[2]}" + (
            ""
            if model.num_classes in (0, 1000)
            else f", with a new classifier ({model.num_classes} classes instead of 1000)"
        )
    if path.endswith(".npz"):
        source, file = read_arrays(path), path
        # ROOT/~/linear; gates have a linear layer further down
        linear = (p for module, p in source.items() if module.split("/")[1:] == ["~", "linear"])
        head = next((p["w"].shape for p in linear if "w" in p), ())
        head, load = head[::-1], load_haiku
    else:
        source, _, file = read_checkpoint(path)
        source = backbone_of(source)
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
    if not wanted:
        return f"weights from {file}, without their classifier"
    return f"weights from {file}, with a new classifier ({wanted} classes instead of {classes})"


def _initialize_dense(model: OnBackbone, path: str) -> str:
    if not path.startswith("pretrained:") and not path.endswith(".npz"):
        source, _, file = read_checkpoint(path)
        own = {name: value.shape for name, value in model.state_dict().items()}
        if own == {name: value.shape for name, value in source.items()}:
            load_weights(model, source, str(file))
            return f"weights from {file}"
    return f"{initialize(model.backbone, path)}, into the backbone; what stands behind it is new"


def backbone_of(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of the backbone of a network that answers for places; those of another network as they are."""
    prefix = "backbone."
    if not any(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def evaluation_transform(trained: Trained) -> EvalTransform | DenseTransform | ObjectTransform:
    """The preprocessing that the network is evaluated with; of one for places, that of image and target."""
    set_sizes(trained.recipe, trained.model)
    data = trained.recipe.data
    if trained.dense:
        return (detection if trained.recipe.task.name == "detection" else dense).test_transform(data)
    return EvalTransform(data.test_size, data.resize_margin, *image_statistics(data), data.test_crop)
