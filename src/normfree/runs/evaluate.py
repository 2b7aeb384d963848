"""Measuring a trained network."""

import copy
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunFailed, UsageError
from ..tasks import Measured, Trained, open_test_images
from ..training import evaluate as run_over
from ..training import pick_device
from ..words import tell
from .foreign import UNSAID
from .load import load


@dataclass(frozen=True)
class Evaluation:
    """What was measured, on how many images, and where these are from."""

    measured: Measured
    images: int
    data: str


def evaluate(
    network: Trained | str | Path,
    data: str | None = None,
    *,
    size: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: tell(line, file=sys.stderr),
) -> Evaluation:
    """Measure a trained network on the test split of its images, or on others for its task: ``normfree eval``.

    Args:
        network: a run folder, a file of weights, an exported file or "pretrained:NAME"; or what
            :func:`normfree.runs.load` made of one.
        data: other images, such as "imagefolder:PATH"; of the same classes.
        size: side of the images in pixels; None: the recipe's test size.
        workers: processes that decode images.
        say: told what a user should know.

    Raises:
        UsageError: the network or the images are not there, or do not fit.
        RunFailed: no image could be read, too many could not, or none has what is measured.

    Example:
        >>> found = normfree.runs.evaluate("runs/digits")  # doctest: +SKIP
        >>> found.measured.scores["top1"]  # doctest: +SKIP
        0.9944
    """
    if isinstance(network, Trained):  # whose own settings stay as they are
        trained = dataclasses.replace(network, recipe=copy.deepcopy(network.recipe))
    else:
        trained = load(network)
    task, own = trained.task, trained.recipe.data
    if data is None and own.source == UNSAID:
        raise UsageError(f"{trained.source} does not say where images are; give --data SOURCE")
    if size:
        own.test_size, own.test_width = size, None
    source = open_test_images(trained.recipe, trained.classes, trained.source, data, trained.held_out)
    task.check_test(source, own)
    for line in source.notes:
        say(line)
    place = pick_device(device)
    loader = task.loader(source.test, trained.transform, batch_size, workers=workers, timeout=own.timeout)
    loader.say = say
    metrics = task.metrics_of(trained)
    scores, unreadable = run_over(trained.model.to(place), loader, metrics, place)
    for one in unreadable:
        say(f"skipped unreadable image {one}")
    if not scores["images"]:
        raise RunFailed(f"none of the {len(unreadable)} images could be read")
    if len(unreadable) > own.max_unreadable:
        raise RunFailed(f"{len(unreadable)} images are unreadable, data.max_unreadable is {own.max_unreadable}")
    if missing := task.missing_targets(metrics):
        raise RunFailed(f"none of the {scores['images']} test images of {data or own.source} has {missing}")
    return Evaluation(task.measured(metrics, trained.names), int(scores["images"]), data or own.source)
