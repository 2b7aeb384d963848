"""What training costs: steps, images, parameters and floating-point operations, counted before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError
from ..models import model_info
from ..models.complexity import count_macs
from ..models.registry import lookup
from ..recipes import Recipe
from ..tasks import task_of

TRAINING = 3  # times the operations of a forward pass: one forward, two in the backward pass


@dataclass(frozen=True)
class Cost:
    """What the training of a run costs.

    Attributes:
        steps: of the optimizer; batch: images of each.
        parameters: of the network.
        macs: multiply-adds of one forward pass of one image; None: not counted, for detectors.
        sam: part of each batch that is seen twice, see ``optim.sam_fraction``; 0 without Sharpness-Aware Minimization.

    Example:
        >>> Cost(steps=10, batch=4, parameters=100, macs=1000).operations
        240000
    """

    steps: int
    batch: int
    parameters: int
    macs: int | None
    sam: float = 0.0

    @property
    def images(self) -> int:
        """Images that it is trained on, each time counted."""
        return self.steps * self.batch

    @property
    def operations(self) -> int | None:
        """Floating-point operations of training: two for a multiply-add, three forward passes for a step.

        Operations of convolutions and linear layers in a network of which all is trained. Activations, augmentation,
        evaluation and what is computed again to save memory are not counted.
        """
        return None if self.macs is None else round(2 * TRAINING * self.macs * self.images * (1 + self.sam))


def sam_part(recipe: Recipe) -> float:
    """The part of each batch that Sharpness-Aware Minimization sees twice; 0 without it."""
    return 0.0 if recipe.optim.sam_rho is None else recipe.optim.sam_fraction


def count_network(recipe: Recipe, classes: Sequence[str]) -> tuple[int, int | None]:
    """Parameters of the recipe's network, and multiply-adds of one training image; None for detectors.

    Nothing is computed (the network is on the meta device). The recipe's image sizes are filled in.
    """
    data, task = recipe.data, task_of(recipe)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = task.build_network(recipe, classes)
    task.set_sizes(recipe, model)
    shape = task.input_shape(data, data.image_size or 1, data.image_width, data.image_depth)
    macs = None if task.name == "detection" else count_macs(model, shape)
    return sum(p.numel() for p in model.parameters()), macs


def count_classifier(recipe: Recipe, classes: Sequence[str]) -> tuple[int, int] | None:
    """The same of a classifier of square images, from two blocks of each stage: many depths are counted at once.

    None for other networks, and where the recipe's network cannot be built: :func:`count_network` says why.
    """
    data, model = recipe.data, recipe.model
    if recipe.task.name != "classification" or data.image_width is not None:
        return None
    fields: dict[str, Any] = dict(num_classes=len(classes), in_chans=data.channels)
    fields |= dict(drop_rate=0.0, stochdepth_rate=0.0)  # the recipe's, which is right, costs the same
    try:
        size = data.image_size or lookup(model.name)[1]["train_size"]
        info = model_info(model.name, test_size=size, **fields, **model.options)
    except (UsageError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError):
        return None
    return info.params, info.macs_executed
