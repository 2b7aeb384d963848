"""The page about a run: its files, its recipe, its network, and test images with the network's answers."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from ..data import HeldOut, Source, Unreadable
from ..errors import UsageError
from ..recipes import Recipe, field_paths, load_recipe
from ..report import About, Missing, Recorded, Report, RunFiles, write_page
from ..spp import record, spectra
from ..tasks import Classification, Gallery, Look, Trained, open_images, open_test_images, task_of
from ..training import find_checkpoint, pick_device
from ..training.checkpoints import read_state
from ..training.run import CHECKPOINTS, RECIPE
from ..version import __version__
from .load import load_trained
from .shown import shown_to

# what is wrong with files, data or device: a line on the page in the place of a part of it
EXPECTED = (UsageError, OSError, RuntimeError)
T = TypeVar("T")


def page(files: RunFiles, *, examples: int | None = 24, workers: int = 0, device: str = "auto") -> bytes:
    """The HTML page about a run: ``normfree report``.

    Args:
        files: of :func:`normfree.report.read_run`.
        examples: test images to show; None: do not look for any.
        workers: processes that decode images.
    """
    return write_page(_report(Found(files, pick_device(device)), examples, workers))


def _attempt(function: Callable[[], T]) -> T | Missing:
    """What a function returns, or why it cannot."""
    try:
        return function()
    except EXPECTED as error:
        if isinstance(error, OSError):
            return Missing(f"{error.filename or 'input or output'}: {error.strerror or error}")
        return Missing(error)


def _needed(value: T | Missing) -> T:
    """A value that something else is made of, inside an attempt."""
    if isinstance(value, Missing):
        raise UsageError(value)
    return value


class Found:
    """What there is of a run: its files, its recipe, its images, the network of its last checkpoint."""

    def __init__(self, files: RunFiles, device: torch.device):
        self.files, self.device = files, device
        self.unreadable: list[Unreadable] = []
        self.recipe = _attempt(lambda: load_recipe(str(files.folder / RECIPE)))
        self.trained = _attempt(lambda: _load(files.folder, device))
        self.source = _attempt(lambda: _open(_needed(self.recipe), files.folder, self.trained))
        self.about = _about(self)

    def weights(self) -> str:
        """Which of the run's weights the network has."""
        kind = "averaged" if Path(_needed(self.trained).source).stem == "ema" else "raw"
        return f"{kind} weights" + ("" if self.about.saved is None else f" of step {self.about.saved:,}")


def _open(recipe: Recipe, folder: Path, trained: Trained | Missing) -> Source[Any]:
    """The images; those to test with where the others are gone."""
    held_out = HeldOut.read(folder) if isinstance(trained, Missing) else trained.held_out
    try:
        return open_images(recipe, held_out=held_out)
    except UsageError:
        if isinstance(trained, Missing):
            raise
        return open_test_images(recipe, trained.classes, trained.source, held_out=held_out)


def _load(folder: Path, device: torch.device) -> Trained:
    trained = load_trained(str(folder))
    trained.model.to(device)
    return trained


def _about(found: Found) -> About:
    about, recipe = About(score=Classification.score), found.recipe
    if not isinstance(found.trained, Missing):
        about.parameters = sum(p.numel() for p in found.trained.model.parameters())
        about.classes = len(found.trained.classes) or None
    if not isinstance(found.source, Missing) and len(found.source.train):
        about.images = len(found.source.train), len(found.source.test)
        about.classes = len(found.source.classes) or None
    if not isinstance(recipe, Missing):
        about.model, about.data = recipe.model.name, recipe.data.source
        about.score = task_of(recipe).score
        about.clips, about.save_every = recipe.optim.clipping is not None, recipe.train.save_every
        about.clipping, about.clipping_eps = recipe.optim.clipping, recipe.optim.clipping_eps
        per_epoch = _steps_per_epoch(found, recipe)
        about.planned = recipe.train.steps if per_epoch is None else recipe.train.total_steps(per_epoch)
    state = _attempt(lambda: read_state(find_checkpoint(found.files.folder / CHECKPOINTS)[0]))
    if not isinstance(state, Missing):
        about.saved, about.seconds = state.get("step"), state.get("seconds")
        found.unreadable = [Unreadable.stored(one) for one in state.get("unreadable", [])]
        about.unreadable = [str(one) for one in found.unreadable]
    return about


def _steps_per_epoch(found: Found, recipe: Recipe) -> Fraction | int | None:
    """From the lines of the run, which say both; within the first epoch they are too rounded, and the images say it."""
    images = 0 if isinstance(found.source, Missing) else len(found.source.train)
    if recipe.train.across_epochs and images:
        return Fraction(images, recipe.train.batch_size)
    for line in found.files.train[-1:] + found.files.evals[-1:]:
        epoch = line.get("epoch")
        if isinstance(epoch, int | float) and epoch >= 1:
            return round(line["step"] / epoch)
    if not images:
        return None
    return max(1, images // recipe.train.batch_size)


def _report(found: Found, count: int | None, workers: int) -> Report:
    """Everything that can be had; what cannot says why.

    Args:
        count: images to show; None does not look for any.
    """
    report = Report(
        found.files,
        found.about,
        changed=_attempt(lambda: _changed(_needed(found.recipe))),
        recorded=_attempt(lambda: _recorded(found)),
        examples=Missing("--no-examples was given"),
        made=f"normfree {__version__}, {time.strftime('%F %H:%M')}",
    )
    if count is not None:
        seen = _attempt(lambda: _look(found, count, workers))
        if isinstance(seen, Missing):
            report.examples = seen
        else:
            report.examples, report.introduction, report.confusion = seen.shown, seen.introduction, seen.confusion
    return report


def _changed(recipe: Recipe) -> dict[str, str]:
    """Every field that is not as its default, and the default as YAML would have it."""
    ours, default = dataclasses.asdict(recipe), dataclasses.asdict(Recipe())
    paths = [path.split(".") for path in field_paths()]
    differing = [(section, field) for section, field in paths if ours[section][field] != default[section][field]]
    return {f"{section}.{field}": json.dumps(default[section][field]) for section, field in differing}


def _recorded(found: Found) -> Recorded:
    """The signal on the first test images, as ``train --spp-every`` shows them; on noise where there are none."""
    trained = _needed(found.trained)
    inputs = shown_to(trained, None if isinstance(found.source, Missing) else found.source.test)
    spp = record(trained.model, inputs.inputs.to(found.device), name=trained.recipe.model.name)
    return Recorded(spp, f"{found.weights()}, shown {inputs.what}", spectra(trained.model), inputs.own)


def _look(found: Found, count: int, workers: int) -> Gallery:
    """Run the network over the test images.

    Raises:
        UsageError: there is no network or no image, or the classes are others now.
    """
    trained, source = _needed(found.trained), _needed(found.source)
    if list(source.classes) != trained.classes:
        raise UsageError(f"{trained.recipe.data.source} now has other classes than the network")
    bar = functools.partial(tqdm, desc="test images", unit="batch", delay=2, leave=False, disable=None)
    gallery = trained.task.gallery(Look(trained, source.test, found.device, count, workers, found.weights(), bar))
    _note(found, gallery.unreadable, gallery.images)
    return gallery


def _note(found: Found, unreadable: Sequence[Unreadable], images: int) -> None:
    """Images that could not be read are named on the page, once.

    Raises:
        UsageError: none of them could.
    """
    known = {one.image for one in found.unreadable}
    found.unreadable += [one for one in unreadable if one.image not in known]
    found.about.unreadable = [str(one) for one in found.unreadable]
    if not images:
        many = f"none of the {len(unreadable)} test images can be read"
        raise UsageError(many if len(unreadable) != 1 else "the only test image cannot be read")
