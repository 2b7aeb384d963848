"""Calibrating int8 files on images of a run or of other data, and measuring what int8 costs in accuracy."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Unreadable, UnreadableImage
from ..data.layouts import with_kind
from ..data.sources import FolderSplit, find_images
from ..errors import RunFailed, UsageError
from ..export import Calibration, Description, Written
from ..tasks import Trained, open_images, task_of
from ..words import counted
from .deployable import DeployableNetwork
from .evaluate import evaluate
from .exported import ExportedNet, exported_recipe
from .foreign import UNKNOWN_SOURCE

IMAGES = 256
MAX_ELEMENTS = 2**29  # numbers in all images together, 2 GiB


@dataclass(frozen=True)
class CalibrationOptions:
    """What the user chooses.

    Args:
        data: a source of images as for training, or a folder of images; None: the run's own.
        images: how many; None: 256, or fewer large ones.
        keep_within: percentage points that the accuracy may fall; layers stay in float32 until it holds.
    """

    data: str | None = None
    images: int | None = None
    keep_within: float | None = None
    bias_correction: bool = True

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise UsageError(f"--calibrate-images (={self.images}) must be at least 1")
        if self.keep_within is not None and not 0 <= self.keep_within <= 100:
            raise UsageError(f"--keep-within (={self.keep_within:g}) must be from 0 to 100 percentage points")


class Quantized:
    """An int8 export of a network: its calibration, and its accuracy before and after.

    Args:
        trained: what the network was made from, if that is a run or a file of weights.
        size: of the exported network's images; None: the test size.
        say: called with each message for the user.

    Raises:
        UsageError: there are no images, or ``keep_within`` needs an accuracy that cannot be measured.
    """

    def __init__(
        self,
        network: DeployableNetwork,
        trained: Trained | None,
        options: CalibrationOptions,
        size: int | None,
        say: Callable[[str], None],
    ):
        if network.preprocessing.depth is not None:
            raise UsageError(f"precision (='int8') is for networks of images; {network.name} takes volumes")
        self.options, self.say, self.size = options, say, size
        self.network = _as_trained(network) if trained is None else trained
        own = trained is not None and trained.recipe.data.source != UNKNOWN_SOURCE
        if options.data is None and not own:
            raise UsageError(f"{network.name} does not say where images are; give --calibrate DATA")
        self.task = task_of(self.network.recipe)
        self.flat = options.data is not None and _is_flat(options.data)
        self.scores: tuple[float, float] | None = None
        if options.keep_within is not None:
            self._check_measurable()
            self.float32 = self._score(self.network.model)
        self.images = self._images()

    @property
    def data(self) -> str:
        return self.options.data or self.network.recipe.data.source

    @property
    def calibration(self) -> Calibration:
        accept = None if self.options.keep_within is None else self._accept
        return Calibration(self.images, self.options.bias_correction, accept)

    def report(self, written: Written) -> list[str]:
        """Lines about a written file; its accuracy is measured if that was not done."""
        if self.scores is None and not self.flat:
            try:
                self.scores = self._score(self.network.model), self._score(ExportedNet(str(written.path)))
            except (UsageError, RunFailed) as error:
                self.say(f"the accuracy is not measured: {error}")
        biases = "biases corrected" if self.options.bias_correction else "biases not corrected"
        lines = [f"calibrated on {counted(len(self.images), 'image')} of {self.data}, {biases}"]
        if written.kept:
            lines.append(f"in float32 stay {counted(len(written.kept), 'layer')}: {', '.join(written.kept)}")
        if self.scores is not None:
            float32, int8 = map(self._shown, self.scores)
            lines.append(f"{self.task.score_label}: float32 {float32}, int8 {int8}")
        return lines

    def _accept(self, path: Path, kept: Sequence[str]) -> bool:
        int8 = self._score(ExportedNet(str(path)))
        self.scores = self.float32, int8
        which = f"{counted(len(kept), 'layer')} in float32" if kept else "all layers in int8"
        self.say(f"{which}: {self.task.score_label} {self._shown(int8)}, float32 {self._shown(self.float32)}")
        return self.float32 - int8 <= (self.options.keep_within or 0) / 100 + 1e-12

    def _check_measurable(self) -> None:
        if "%" not in self.task.score_format:
            raise UsageError(f"--keep-within is in percentage points, which {self.task.score_label} is not measured in")
        if self.flat:
            raise UsageError(
                f"--keep-within needs an accuracy; {self.data} is a folder of images without labels: give data with "
                "labels, such as imagefolder:PATH"
            )

    def _score(self, model: nn.Module) -> float:
        """The task's score on the test images."""
        trained = dataclasses.replace(self.network, model=model)
        found = evaluate(trained, self.options.data, size=self.size, say=lambda line: None)
        score = found.measured.scores[self.task.score]
        if score is None:
            raise RunFailed(f"{self.data} gives no {self.task.score_label}")
        return score

    def _shown(self, score: float) -> str:
        return format(score, self.task.score_format).replace("%", " %")

    def _images(self) -> Tensor:
        """Some of the training images, chosen with seed 0, as inputs of the network."""
        network = dataclasses.replace(self.network, recipe=copy.deepcopy(self.network.recipe))
        if self.size:
            data = network.recipe.data
            data.test_size, data.test_width = self.size, None
        high = max(1, MAX_ELEMENTS // math.prod(network.shape))
        count = min(IMAGES, high) if self.options.images is None else self.options.images
        if count > high:
            shape = " x ".join(map(str, network.shape))
            raise UsageError(f"--calibrate-images (={count}) must be at most {high:,} for images of {shape}")
        split, views, view = self._split(network), list[Tensor](), network.view
        for index in torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist():
            try:
                views.append(view(split.image(index)))
            except UnreadableImage as error:
                self.say(f"skipped unreadable image {Unreadable.of(split.name(index), error)}")
            if len(views) == count:
                break
        if not views:
            raise UsageError(f"{self.data} has no image to calibrate on")
        return torch.stack(views)

    def _split(self, network: Trained) -> Any:
        """The images to calibrate on: those for training."""
        recipe, data = network.recipe, self.options.data
        if data is None:
            return open_images(recipe, network.held_out).train
        if self.flat:
            levels = recipe.data.value_range
            levels = levels if isinstance(levels, tuple | list) else None
            return FolderSplit([(str(path), 0) for path in find_images([data])], recipe.data.channels, levels)
        source = self.task.open(recipe, with_kind(data))
        return source.train if len(source.train) else source.test


def _is_flat(data: str) -> bool:
    """Whether data are a folder of images without classes or other labels."""
    folder = Path(data).expanduser()
    kind = with_kind(data).removesuffix(f":{data}") if folder.is_dir() else ""
    return kind == "imagefolder" and not any(child.is_dir() for child in folder.iterdir())


def _as_trained(network: DeployableNetwork) -> Trained:
    """A network by name, with the recipe that an exported file of it has."""
    outputs = int(getattr(network.model, "num_classes", len(network.classes or ())))
    about = Description(network.name, network.preprocessing, network.classes, "float32", None, None, "", "")
    about = dataclasses.replace(about, task=network.task.kind, shape=(outputs,), targets=network.targets)
    recipe, classes, names = exported_recipe(about, network.name)
    return Trained(network.model, recipe, task_of(recipe), classes, network.name, names, list(range(1, 1 + outputs)))
