"""Weights without a description of their network, loaded into it: of timm, of the authors, of other checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models import ResidualNet
from ..models.config import ModelConfig
from ..recipes import Recipe
from ..tasks.task import config_of
from ..weights import convert as weights
from ..weights.file import Weights, read_weights_file
from ..weights.pretrained import published_weights
from .named import PREFIX

UNKNOWN_SOURCE = "imagefolder:imagenet"  # of weights without a description; the path of a run is absolute


@dataclass(frozen=True)
class Opened:
    """A model with the weights of a file: their form, names and shapes there, and notes for the user."""

    form: str
    file: Path
    model: ResidualNet
    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()


def read_named(text: str, kind: str | None = None) -> Weights:
    """The weights of a file, or ``pretrained:NAME``; ``kind`` is "ema" or "raw" where the file has both."""
    if text.startswith(PREFIX):
        return published_weights(text.removeprefix(PREFIX))
    return read_weights_file(text, kind)


def open_foreign(text: str, config: ModelConfig | None = None, kind: str | None = None) -> Opened:
    """Load weights into their network.

    Args:
        text: a file, or ``pretrained:NAME``.
        config: of the network; None finds it by the tensors.
        kind: "ema" or "raw" if the file has both.

    Raises:
        UsageError: unreadable, or of no known network, or of several.
    """
    loaded = read_named(text, kind)
    shapes, notes = weights.shapes_of(loaded.tensors, loaded.form), list(loaded.notes)
    config = config or ModelConfig()
    if not config.name and text.startswith(PREFIX):
        config.name = text.removeprefix(PREFIX)
    elif not config.name:
        config.name, others = weights.choose_model(shapes, loaded.form, text)
        also = f" ({', '.join(others)}, timm's function, as well: --model)" if others else ""
        notes.append(f"the tensors are those of {config.name}{also}")
    model = weights.load(config, loaded.tensors, loaded.form, text)
    types = {str(t.dtype) for t in _leaves(loaded.tensors)} - {"torch.float32", "float32", "torch.int64"}
    if types:
        notes.append(f"numbers of type {', '.join(sorted(types)).replace('torch.', '')} became float32")
    stateful = [name for name, _ in model.named_buffers() if name.endswith("running_mean")]
    if loaded.form == "haiku" and stateful and not any(name.endswith("/average") for name in shapes):
        notes.append("no running statistics of BatchNorm in it: they are mean 0 and variance 1 now")
    return Opened(loaded.form, Path(text), model, config, shapes, tuple(notes))


def _leaves(tensors: Mapping[str, Any]) -> list[Any]:
    return [leaf for value in tensors.values() for leaf in (value.values() if isinstance(value, Mapping) else [value])]


def recipe_of(opened: Opened, overrides: Mapping[str, Any]) -> Recipe:
    """A recipe with the papers' evaluation of the network, and ``overrides`` of its fields by dotted path.

    Raises:
        UsageError: no classifier; an unknown field.
    """
    model, config = opened.model, config_of(opened.model)
    channels, train = model.in_chans, config["input_size"][-1]
    if not model.num_classes:
        raise UsageError(f"{opened.file} has 0 classes; a normfree file is of a classifier")
    size = {"data.image_size": train, "data.test_size": config["test_input_size"][-1]}
    statistics = {f"data.{key}": list(config[key]) for key in ("mean", "std") if channels == 3}
    # null: 8 bits per value; for other images nothing tells which values are black and white
    fixed = {"data.source": UNKNOWN_SOURCE, "data.channels": channels, "data.value_range": None}
    data = fixed | size | statistics
    recipe = recipe_from(data | dict(overrides))
    recipe.model = opened.config
    return recipe


def recipe_from(fields: Mapping[str, Any]) -> Recipe:
    """A recipe from fields by dotted path."""
    content: dict[str, Any] = {}
    for path, value in fields.items():
        *sections, name = path.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return Recipe.from_dict(content, "the command line")


def class_names(count: int) -> tuple[list[str], list[str]]:
    """Folders of the classes, sorted in the order of the labels, and names of the classes.

    1000 classes are those of ImageNet (WordNet's identifiers and words); others are numbers.
    """
    numbers = [f"{i:0{len(str(count - 1))}d}" for i in range(count)]
    if count != 1000:
        return numbers, numbers
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError:
        return numbers, numbers
    info = ImageNetInfo()
    return info.label_names(), list(info.label_descriptions())
