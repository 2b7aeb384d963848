"""Private training: what of a recipe contradicts it, its noise, and what the user must know."""

import dataclasses
import secrets
from typing import Any

from torch import nn

from ..errors import UsageError
from ..nn import PatchWhitening2d
from ..private import noise_for, refuse_batch_norm
from ..recipes import Recipe
from ..tasks import Task
from ..training import Replicas, Trainer
from ..training.private_step import refuse_with_privacy
from ..words import counted


def refuse_recipe(recipe: Recipe, *, fresh: bool) -> None:
    """Refuse settings that contradict private training, before anything is opened.

    Args:
        fresh: whether this is a new run, whose recipe has not been filled in by its images yet.

    Raises:
        UsageError: one is set; the message names it.
    """
    if not recipe.private.on:
        return
    refuse_with_privacy(recipe.train, recipe.optim, secure=recipe.private.secure)
    data, task = recipe.data, recipe.task
    reasons: dict[str, tuple[Any, str]] = {
        "data.mixup": (data.mixup, "an image would be in the gradients of others"),
        "data.cutmix": (data.cutmix, "an image would be in the gradients of others"),
        "data.sampler": (data.sampler if data.sampler != "shuffled" else None, "each image is drawn at the same rate"),
        "task.name": (task.name if task.name == "detection" else None, "its loss is not that of single images"),
    }
    if fresh:
        counted_from = "it is computed from the training images without noise; give numbers that are known"
        reasons["task.class_weights"] = (task.class_weights if task.class_weights == "auto" else None, counted_from)
        missing = task.name == "regression" and task.target_mean is None
        reasons["task.target_mean"] = ("null" if missing else None, counted_from)
    for name, (value, reason) in reasons.items():
        if value:
            raise UsageError(f"{name} (={value}) is not for private training: {reason}")


def refuse_network(model: nn.Module, *, fitted: bool) -> None:
    """Refuse a network that private training cannot be done with.

    Args:
        fitted: whether its first layer would be fitted to the training images.

    Raises:
        UsageError: BatchNorm, or patch whitening; the message names the module.
    """
    refuse_batch_norm(model)
    for name, module in model.named_modules():
        if fitted and isinstance(module, PatchWhitening2d):
            raise UsageError(
                f"{name} (PatchWhitening2d) is not for private training: it is fitted to the training images without "
                "noise; take --model.options.stem 3x3"
            )


def noise_of(recipe: Recipe, task: Task) -> float:
    """The noise multiplier of a recipe, or the one for its budget and the length of the run.

    Raises:
        UsageError: Opacus is not installed, or no noise keeps the budget.
    """
    private = recipe.private
    assert private.epsilon is not None
    if private.noise_multiplier is not None:
        return private.noise_multiplier
    steps = recipe.train.total_steps(task.train.steps_per_epoch)
    return noise_for(private.epsilon, private.delta, rate=task.train.rate, steps=steps, accountant=private.accountant)


def set_noise(recipe: Recipe, noise: float) -> None:
    """Fill in the noise multiplier, with which the run is resumed."""
    recipe.private = dataclasses.replace(recipe.private, noise_multiplier=noise)


def draw_secretly(recipe: Recipe, task: Task, replicas: Replicas) -> None:
    """With ``private.secure``, draw batches from a seed that no file has, the same in all processes."""
    if recipe.private.on and recipe.private.secure:
        task.train.batches.seed = replicas.from_main(secrets.randbits(62))


def told(recipe: Recipe, trainer: Trainer, images: int) -> list[str]:
    """What the user must know before the first step."""
    private, ledger = recipe.private, trainer.ledger
    if ledger is None:
        return []
    spent = f", of which {ledger.epsilon():.4g} is spent" if ledger.steps else ""
    lines = [
        f"privacy: epsilon {private.epsilon:g} at delta {private.delta:g}{spent}; noise multiplier {ledger.noise:.4g}, "
        f"gradients of at most {private.max_norm:g}, each image in a step with probability {ledger.rate:.4g} "
        f"({private.accountant} accountant)"
    ]
    if private.delta * images >= 1:
        lines.append(
            f"private.delta (={private.delta:g}) should be well below 1 over the {counted(images, 'training image')}: "
            "a network that gives away a single image at random would keep this budget"
        )
    if not private.secure:
        lines.append(
            "noise and draws follow from train.seed, which the weights carry: for a network that you give away, "
            "--private.secure true"
        )
    return lines


def spent(trainer: Trainer) -> list[str]:
    """The privacy that a run has spent, for its last lines."""
    ledger = trainer.ledger
    if ledger is None:
        return []
    private = ledger.config
    of = f"of {private.epsilon:g} at delta {private.delta:g}"
    return [f"privacy: epsilon {ledger.epsilon():.4g} {of} is spent in {counted(ledger.steps, 'step')}"]
