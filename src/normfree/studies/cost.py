"""What a study costs: steps, images, parameters and operations of each cell, before anything is trained."""

import contextlib
import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..data.torchvision_places import without_downloads
from ..errors import UsageError
from ..recipes import Recipe
from ..runs.cost import Cost, count_classifier, count_network, sam_part
from ..runs.decided import open_and_decide
from ..runs.prepare import fit_batch
from ..tasks import open_images
from .cells import Cell, cells
from .study import Study

# fields of the recipe that say how many images there are, and of how many classes
IMAGES = ("source", "val_fraction", "val_seed", "train_fraction", "train_seed", "allow_missing_classes", "channels")
IMAGES += ("mask_values", "mask_ignored")


@dataclass(frozen=True)
class Planned:
    """A cell with its recipe and its cost, or why there are none.

    Attributes:
        asked: the recipe; None where its settings do not fit together.
        cost: None where the images or the network cannot be had.
        refused: why.
        missing: why the images are not there, where their number is the study's.
    """

    cell: Cell
    asked: Recipe | None = None
    cost: Cost | None = None
    refused: str = ""
    missing: str = ""


def plan(study: Study, *, download: bool = True) -> list[Planned]:
    """All cells of a study with their cost.

    Args:
        download: whether a data set of torchvision that is not there is downloaded.

    Raises:
        UsageError: no cell can be run; the message is the first one's.
    """
    meter = _Meter(study)
    with contextlib.nullcontext() if download else without_downloads():
        found = [meter.planned(cell) for cell in cells(study)]
    if all(one.refused for one in found):
        raise UsageError(found[0].refused)
    return found


class _Meter:
    """Opens each set of images once, and counts each network once."""

    def __init__(self, study: Study):
        self.study = study
        self.opened: dict[str, tuple[int, Sequence[str]] | UsageError] = {}
        self.networks: dict[str, tuple[int, int | None]] = {}
        self.first: dict[tuple[str, ...], Planned] = {}  # of the seeds of a combination of values

    def planned(self, cell: Cell) -> Planned:
        """A cell with its cost; that of another seed is the same."""
        key = tuple(cell.names.values())
        if key not in self.first:
            self.first[key] = self._planned(cell)
        one = self.first[key]
        asked = copy.deepcopy(one.asked)
        if asked is not None:
            asked.train.seed = cell.seed
        return dataclasses.replace(one, cell=cell, asked=asked)

    def _planned(self, cell: Cell) -> Planned:
        try:
            asked = cell.recipe()
        except UsageError as error:
            return Planned(cell, refused=str(error))
        recipe = copy.deepcopy(asked)
        try:
            images, classes, missing = self._images(recipe)
            fit_batch(recipe, images)
            parameters, macs = self._network(recipe, classes)
        except UsageError as error:
            return Planned(cell, asked, refused=str(error))
        train = recipe.train
        whole = images // train.batch_size
        steps = train.total_steps(Fraction(images, train.batch_size) if train.across_epochs else max(1, whole))
        return Planned(cell, asked, Cost(steps, train.batch_size, parameters, macs, sam_part(recipe)), missing=missing)

    def _images(self, recipe: Recipe) -> tuple[int, Sequence[str], str]:
        """The number of training images, and the classes; where they are not there what the study states, and why."""
        if recipe.data.decides:
            with contextlib.suppress(UsageError):  # below, the study's number of images may take their place
                source, _ = open_and_decide(recipe)
                return len(source.train), source.classes, ""
        data, task = dataclasses.asdict(recipe.data), recipe.task
        key = json.dumps([task.name, task.labels, *(data[name] for name in IMAGES)])
        if key not in self.opened:
            try:
                source = open_images(recipe)
                self.opened[key] = len(source.train), source.classes
            except UsageError as error:
                self.opened[key] = error
        found = self.opened[key]
        if not isinstance(found, UsageError):
            return *found, ""
        if self.study.images is None:
            raise found
        return self.study.images, [str(number) for number in range(self.study.classes or 1000)], str(found)

    def _network(self, recipe: Recipe, classes: Sequence[str]) -> tuple[int, int | None]:
        """Parameters, and multiply-adds of a training image."""
        quick = count_classifier(recipe, classes)
        if quick is not None:
            return quick
        data = recipe.data
        sizes = data.channels, data.image_size, data.image_width, data.image_depth
        key = json.dumps([dataclasses.asdict(recipe.model), dataclasses.asdict(recipe.task), len(classes), sizes])
        if key not in self.networks:
            self.networks[key] = count_network(recipe, classes)
        return self.networks[key]


def total(planned: Sequence[Planned]) -> dict[str, Any]:
    """Sums over cells: how many there are, steps, images and operations."""
    costs = [one.cost for one in planned if one.cost is not None]
    operations = [cost.operations for cost in costs]
    return dict(
        runs=len(planned),
        steps=sum(cost.steps for cost in costs),
        images=sum(cost.images for cost in costs),
        operations=None if None in operations else math.fsum(operations),  # pyright: ignore[reportArgumentType]
    )
