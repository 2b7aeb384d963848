"""Collecting the content of a run's report: files, recipe, network, and predictions for test images."""

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
from .signal_inputs import signal_inputs

# errors of files, data or device: the page has a line about it in place of the missing part
MISSING_ERRORS = (UsageError, OSError, RuntimeError)
T = TypeVar("T")


def page(files: RunFiles, *, examples: int | None = 24, workers: int = 0, device: str = "auto") -> bytes:
    """The HTML page about a run: ``normfree report``.

    Args:
        files: of :func:`normfree.report.read_run`.
        examples: number of test images to show; None: do not run the network over them.
        workers: processes that decode images.
    """
    return write_page(_report(RunContent(files, pick_device(device)), examples, workers))


def _attempt(function: Callable[[], T]) -> T | Missing:
    """The result of a function, or the reason why there is none."""
    try:
        return function()
    except MISSING_ERRORS as error:
        if isinstance(error, OSError):
            return Missing(f"{error.filename or 'input or output'}: {error.strerror or error}")
        return Missing(error)


def _needed(value: T | Missing) -> T:
    """The value, or an error with the reason why it is missing, for use inside an attempt."""
    if isinstance(value, Missing):
        raise UsageError(value)
    return value


class RunContent:
    """A run as far as it can be opened: files, recipe, images, and the network of its last checkpoint."""

    def __init__(self, files: RunFiles, device: torch.device):
        self.files, self.device = files, device
        self.unreadable: list[Unreadable] = []
        self.recipe = _attempt(lambda: load_recipe(str(files.folder / RECIPE)))
        self.trained = _attempt(lambda: _load(files.folder, device))
        self.source = _attempt(lambda: _open(_needed(self.recipe), files.folder, self.trained))
        self.about = _about(self)

    def weights(self) -> str:
        """Which weights of the run the network has, in words."""
        kind = "averaged" if Path(_needed(self.trained).source).stem == "ema" else "raw"
        return f"{kind} weights" + ("" if self.about.saved is None else f" of step {self.about.saved:,}")


def _open(recipe: Recipe, folder: Path, trained: Trained | Missing) -> Source[Any]:
    """The images; only the test images if the others are missing."""
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


def _about(run: RunContent) -> About:
    about, recipe = About(score=Classification.score), run.recipe
    if not isinstance(run.trained, Missing):
        about.parameters = sum(p.numel() for p in run.trained.model.parameters())
        about.classes = len(run.trained.classes) or None
    if not isinstance(run.source, Missing) and len(run.source.train):
        about.images = len(run.source.train), len(run.source.test)
        about.classes = len(run.source.classes) or None
    if not isinstance(recipe, Missing):
        about.model, about.data = recipe.model.name, recipe.data.source
        about.score = task_of(recipe).score
        about.clips, about.save_every = recipe.optim.clips, recipe.train.save_every
        about.clipping, about.clipping_eps = recipe.optim.clipping, recipe.optim.clipping_eps
        about.clipping_kind = recipe.optim.clipping_kind
        per_epoch = _steps_per_epoch(run, recipe)
        about.planned = recipe.train.steps if per_epoch is None else recipe.train.total_steps(per_epoch)
    state = _attempt(lambda: read_state(find_checkpoint(run.files.folder / CHECKPOINTS)[0]))
    if not isinstance(state, Missing):
        about.saved, about.seconds = state.get("step"), state.get("seconds")
        run.unreadable = [Unreadable.stored(one) for one in state.get("unreadable", [])]
        about.unreadable = [str(one) for one in run.unreadable]
    return about


def _steps_per_epoch(run: RunContent, recipe: Recipe) -> Fraction | int | None:
    """Steps per epoch from the logged lines; in the first epoch, where epochs are too rounded, from the images."""
    images = 0 if isinstance(run.source, Missing) else len(run.source.train)
    if recipe.train.across_epochs and images:
        return Fraction(images, recipe.train.batch_size)
    for line in run.files.train[-1:] + run.files.evals[-1:]:
        epoch = line.get("epoch")
        if isinstance(epoch, int | float) and epoch >= 1:
            return round(line["step"] / epoch)
    if not images:
        return None
    return max(1, images // recipe.train.batch_size)


def _report(run: RunContent, count: int | None, workers: int) -> Report:
    """The content of the page; a reason in place of each part that is missing.

    Args:
        count: number of images to show; None: no images.
    """
    report = Report(
        run.files,
        run.about,
        changed=_attempt(lambda: _changed(_needed(run.recipe))),
        recorded=_attempt(lambda: _recorded(run)),
        examples=Missing("--no-examples was given"),
        made=f"normfree {__version__}, {time.strftime('%F %H:%M')}",
    )
    if count is not None:
        gallery = _attempt(lambda: _gallery(run, count, workers))
        if isinstance(gallery, Missing):
            report.examples = gallery
        else:
            report.examples, report.introduction, report.confusion = (
                gallery.shown,
                gallery.introduction,
                gallery.confusion,
            )
    return report


def _changed(recipe: Recipe) -> dict[str, str]:
    """Each field that differs from its default, and the default as YAML."""
    ours, default = dataclasses.asdict(recipe), dataclasses.asdict(Recipe())
    paths = [path.split(".") for path in field_paths()]
    differing = [(section, field) for section, field in paths if ours[section][field] != default[section][field]]
    return {f"{section}.{field}": json.dumps(default[section][field]) for section, field in differing}


def _recorded(run: RunContent) -> Recorded:
    """The signal on the first test images, as with ``train --spp-every``; on noise if there are none."""
    trained = _needed(run.trained)
    inputs = signal_inputs(trained, None if isinstance(run.source, Missing) else run.source.test)
    spp = record(trained.model, inputs.images.to(run.device), name=trained.recipe.model.name)
    return Recorded(spp, f"{run.weights()}, shown {inputs.description}", spectra(trained.model), inputs.of_training)


def _gallery(run: RunContent, count: int, workers: int) -> Gallery:
    """Run the network over the test images.

    Raises:
        UsageError: there is no network, no image can be read, or the classes have changed.
    """
    trained, source = _needed(run.trained), _needed(run.source)
    if list(source.classes) != trained.classes:
        raise UsageError(f"{trained.recipe.data.source} now has other classes than the network")
    bar = functools.partial(tqdm, desc="test images", unit="batch", delay=2, leave=False, disable=None)
    gallery = trained.task.gallery(Look(trained, source.test, run.device, count, workers, run.weights(), bar))
    _note_unreadable(run, gallery.unreadable, gallery.images)
    return gallery


def _note_unreadable(run: RunContent, unreadable: Sequence[Unreadable], images: int) -> None:
    """Add images that could not be read to those of the page.

    Raises:
        UsageError: no image could be read.
    """
    known = {one.image for one in run.unreadable}
    run.unreadable += [one for one in unreadable if one.image not in known]
    run.about.unreadable = [str(one) for one in run.unreadable]
    if not images:
        many = f"none of the {len(unreadable)} test images can be read"
        raise UsageError(many if len(unreadable) != 1 else "the only test image cannot be read")
