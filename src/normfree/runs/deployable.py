"""Networks to deploy: by name with published weights, trained ones, and exported files."""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.pixels import PixelTransform
from ..data.volumes import VolumeTransform
from ..errors import UsageError
from ..export import Preprocessing
from ..models import create_model as create_untrained
from ..tasks import TASKS, Classification, ReadyNetwork, Trained
from ..tasks.trained import InferenceTask
from ..training import pick_device
from ..weights import create_model
from .exported import ONNX, open_exported, run_batches, targets_of
from .load import load_trained
from .named import PREFIX, Kind, check_choice, kind_of, other_wanted


@dataclass(frozen=True)
class DeployableNetwork:
    """A network in evaluation mode with its preprocessing, classes and task.

    Attributes:
        origin: of the weights, in words.
        targets: as of :class:`.Description`.
    """

    model: nn.Module
    name: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    origin: str
    task: type[InferenceTask] = Classification
    targets: dict[str, Any] = field(default_factory=dict)


def open_trained(text: str, which: str | None = None) -> Trained | None:
    """The network of a run folder or a file of weights; None where the text names something else.

    Raises:
        UsageError: it cannot be used.
    """
    kind = kind_of(text)
    check_choice(text, kind, which)
    return load_trained(text, which) if kind in (Kind.RUN, Kind.CHECKPOINT, Kind.WEIGHTS) else None


def open_deployable(
    text: str, which: str | None = None, *, random: bool = False, trained: Trained | None = None
) -> DeployableNetwork:
    """The network that a text names (see :mod:`.named`), except exported files; published weights for a model by name.

    Args:
        which: a run folder's "last" (None: the same) or "best" checkpoint.
        random: initialize a model by name with seed 0 instead.
        trained: the result of :func:`open_trained` for the text, if there is one.

    Raises:
        UsageError: unknown, unusable, or ``which`` or ``random`` do not apply.
    """
    kind = kind_of(text)
    check_choice(text, kind, which)
    if random and kind is not Kind.MODEL:
        raise UsageError(f"--random is for models by name; {text} is {kind}")
    if kind in (Kind.EXPORTED, Kind.FUNCTION):
        raise other_wanted(text, kind)
    if kind not in (Kind.MODEL, Kind.PUBLISHED):
        trained = trained or load_trained(text, which)
        if trained.task.output is None:
            raise UsageError(f"{text} is a network for {trained.task.name}; this takes one whose answer is one tensor")
        details = trained.recipe.model.name, _preprocessing(trained), tuple(trained.names) or None, trained.source
        return DeployableNetwork(trained.model, *details, trained.task, targets_of(trained.recipe))
    torch.manual_seed(0)
    name = text.removeprefix(PREFIX)
    model = (create_untrained(name) if random else create_model(name, pretrained=True)).eval()
    classes = None if random else imagenet_classes(int(model.num_classes))
    origin = "fresh weights of seed 0" if random else "published weights"
    return DeployableNetwork(model, name, Preprocessing.of(model), classes, origin)


def _preprocessing(trained: Trained) -> Preprocessing:
    """The preprocessing of its test images, for the description of an exported file."""
    view, data = trained.transform, trained.recipe.data
    common: dict[str, Any] = dict(channels=data.channels, mean=view.mean, std=view.std, value_range=data.value_range)
    if isinstance(view, VolumeTransform):
        depth, height, width = view.size
        common |= dict(value_range=view.value_range, resize="windows", resize_margin=0, width=width)
        return Preprocessing(height, **common, depth=depth, spacing=data.spacing)
    if not isinstance(view, PixelTransform):
        return Preprocessing(view.size, **common, resize_margin=view.margin, resize=view.crop)
    common |= dict(resize="none" if view.short_side is None else "short_side", short_side=view.short_side)
    return Preprocessing(view.height, **common, resize_margin=0, width=view.width)


def open_ready(text: str, which: str | None = None, device: str = "auto", size: int | None = None) -> ReadyNetwork:
    """The network that a text names (see :mod:`.named`), ready to run; a model by name has its published weights.

    Args:
        which: a run folder's "last" (None: the same) or "best" checkpoint.
        size: side of the network's input in pixels; None: the size that it is evaluated at.

    Raises:
        UsageError: unknown or unusable; a device that does not exist, or not the CPU for an ONNX file.
    """
    kind = kind_of(text)
    check_choice(text, kind, which)
    if kind is Kind.EXPORTED:
        if Path(text).suffix == ONNX and device not in ("auto", "cpu"):
            raise UsageError(f"--device {device}: ONNX files are run on the cpu")
        file = open_exported(text, pick_device(device))
        about = file.description
        run_file = functools.partial(run_batches, file)
        options: dict[str, Any] = dict(exported=True, targets=about.targets)
        return ReadyNetwork(run_file, about.preprocessing, about.classes, TASKS[about.task], **options)
    trained = open_trained(text, which)
    if trained is not None and trained.task.targets == "pairs":
        model = trained.model.to(pick_device(device))
        return ReadyNetwork(model, None, tuple(trained.names) or None, trained.task, trained=trained)
    network = open_deployable(text, which, trained=trained)
    where, view = pick_device(device), network.preprocessing
    model = network.model.to(where)

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(image.to(where)).float().cpu()

    view = view if size is None else replace(view, size=size)
    return ReadyNetwork(run, view, network.classes, network.task, trained=trained)


def imagenet_classes(outputs: int) -> tuple[str, ...] | None:
    """The names of ImageNet's 1000 classes; None for another number of outputs."""
    if outputs != 1000:
        return None
    from timm.data.imagenet_info import ImageNetInfo  # timm takes seconds to import

    return tuple(ImageNetInfo().label_descriptions())
