"""The gradient noise scale of a run: ``normfree noise-scale``."""

import copy
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Batch, Unreadable
from ..errors import RunFailed, UsageError
from ..private import NoiseScale, Spread, refuse_batch_norm
from ..private import noise_scale as of_batches
from ..private.passes import Loss
from ..recipes import Recipe
from ..tasks import Task, Trained, open_images, task_of
from ..training import pick_device
from ..training.train_log import layer_of
from ..words import tell
from .foreign import UNKNOWN_SOURCE
from .load import load_trained
from .named import Kind, kind_of


@dataclasses.dataclass(frozen=True)
class RunNoise:
    """The gradient noise scale of a trained network on its training images.

    Attributes:
        noise: over the whole network, and by parameter.
        parts: by stage and by layer outside of the stages.
        batch_size: of the run, for comparison.
        source: the file of the weights.
    """

    noise: NoiseScale
    parts: dict[str, Spread]
    batch_size: int
    source: str


def noise_scale(
    run: str | Path,
    *,
    images: int = 1000,
    batch_size: int = 50,
    checkpoint: str | None = None,
    weights: str | None = None,
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: tell(line, file=sys.stderr),
) -> RunNoise:
    """The gradient noise scale of a run's network, from training images augmented as in training.

    In training mode, so that dropout and stochastic depth count as noise. The loss is that of the run.

    Args:
        run: a run folder or a checkpoint.
        images: how many gradients to take; no less than the noise scale, or it is not seen.
        batch_size: images at a time, which changes memory and time alone.
        checkpoint: a run folder's "last" (None: the same) or "best".
        weights: a run folder's "raw" (None: the same, since these are trained) or "ema".
        seed: of the choice of images and of their augmentation.
        say: called with each message for the user.

    Raises:
        UsageError: no network of a run; its images are not there; it is a detector, or has BatchNorm.
        RunFailed: no image can be read.

    Example:
        >>> normfree.runs.noise_scale("runs/digits").noise.scale  # doctest: +SKIP
        412.5
    """
    if images < 2 or batch_size < 1:
        raise UsageError(f"images (={images}) must be at least 2, and batch_size (={batch_size}) at least 1")
    kind = kind_of(str(run))
    trained = load_trained(str(run), checkpoint, weights or ("raw" if kind is Kind.RUN else None))
    recipe = copy.deepcopy(trained.recipe)
    if recipe.data.source == UNKNOWN_SOURCE:
        raise UsageError(f"{run} does not say where its training images are; give a run folder or its checkpoint")
    if recipe.task.name == "detection":
        raise UsageError(f"{run} is a detector; a noise scale needs a loss that is a mean over images")
    refuse_batch_norm(trained.model)
    where = pick_device(device)
    task, given = _task(recipe, trained, seed, batch_size), recipe.train.batch_size
    for line in task.notes:
        say(line)
    torch.manual_seed(seed)
    unreadable: list[Unreadable] = []
    model = trained.model.to(where).train()
    batches = ((batch.inputs, _loss(task, batch)) for batch in _batches(task, images, where, unreadable))
    try:
        noise = of_batches(model, batches)
    finally:
        task.train.close()
    if len(unreadable) > recipe.data.max_unreadable:
        raise RunFailed(f"{len(unreadable)} images are unreadable, data.max_unreadable is {recipe.data.max_unreadable}")
    return RunNoise(noise, by_part(noise, model), given, trained.source)


def _task(recipe: Recipe, trained: Trained, seed: int, batch_size: int) -> Task:
    """The task on the training images, in batches of another size."""
    source = open_images(recipe, trained.held_out)
    if not len(source.train):
        raise UsageError(f"{recipe.data.source} has no training images")
    other = copy.deepcopy(recipe)
    other.train.batch_size, other.train.seed = min(batch_size, len(source.train)), seed
    other.train.across_epochs = True  # no image is left out
    return task_of(other).from_recipe(other, source)


def _loss(task: Task, batch: Batch) -> Loss:
    return lambda output: task.loss(output, batch)


def _batches(task: Task, images: int, where: torch.device, unreadable: list[Unreadable]) -> Iterator[Batch]:
    """Batches of so many images in all."""
    left, epoch = images, 0
    while left:
        task.train.set_epoch(epoch)
        before = left
        for batch in task.train:
            unreadable += batch.unreadable
            batch = batch.part(slice(0, left))
            if len(batch):
                yield batch.to(where)
            left -= len(batch)
            if not left:
                break
        if left == before:
            raise RunFailed("none of the training images can be read")
        epoch += 1


def by_part(noise: NoiseScale, model: nn.Module) -> dict[str, Spread]:
    """Sums over the parameters of each stage, and of each layer outside of the stages, in the network's order."""
    parts: dict[str, Spread] = {}
    for name, spread in noise.parameters.items():
        head, _, last = layer_of(name).rpartition(".")
        part = head if last.isdigit() and head else layer_of(name)
        before = parts.get(part, Spread(0.0, 0.0))
        parts[part] = Spread(before.trace + spread.trace, before.square + spread.square)
    return parts


def as_json(found: RunNoise) -> dict[str, Any]:
    """Plain numbers; an infinite noise scale is null."""
    whole = found.noise.whole
    parts = {name: _finite(spread.scale) for name, spread in found.parts.items()}
    return dict(
        network=found.source,
        images=found.noise.examples,
        noise_scale=_finite(whole.scale),
        certain=found.noise.certain,
        trace=whole.trace,
        squared_gradient=whole.square,
        batch_size=found.batch_size,
        parts=parts,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def in_words(found: RunNoise) -> list[str]:
    """The result for the terminal."""
    noise = found.noise
    lines = [f"{found.source}: gradients of {noise.examples:,} training images"]
    if noise.certain:
        lines.append(f"noise scale {noise.scale:,.0f} images (the run's batch: {found.batch_size:,})")
        ratio = noise.scale / found.batch_size
        saved = 1 - (1 + ratio / 2) / (1 + ratio)
        lines.append(f"twice the batch would take about {saved:.0%} fewer steps, which are 1 + noise scale / batch")
    else:
        shown = f"about {noise.scale:,.0f}" if math.isfinite(noise.scale) else "no mean gradient is seen"
        lines.append(f"noise scale: {shown}, which {noise.examples:,} images do not tell; take more (--images N)")
    width = max(map(len, found.parts))
    for name, spread in found.parts.items():
        scale = f"{spread.scale:,.0f}" if spread.scale < noise.examples else f"over {noise.examples:,}"
        lines.append(f"  {name:{width}}  {scale:>12}   {spread.trace / noise.whole.trace:6.1%} of the noise")
    return lines
