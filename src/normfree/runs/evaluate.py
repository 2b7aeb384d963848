"""Measuring a trained network."""

import copy
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import Unreadable
from ..errors import RunFailed, UsageError
from ..tasks import Measured, Trained, open_test_images
from ..training import evaluate as run_over
from ..training import pick_device
from ..words import tell
from .foreign import UNKNOWN_SOURCE
from .load import load


@dataclass(frozen=True)
class Evaluation:
    """The metrics, the number of images, and their source."""

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
        say: called with each message for the user.

    Raises:
        UsageError: the network or the images are not there, or do not fit.
        RunFailed: no image could be read, too many are unreadable, or none has the targets that are measured.

    Example:
        >>> result = normfree.runs.evaluate("runs/digits")  # doctest: +SKIP
        >>> result.measured.scores["top1"]  # doctest: +SKIP
        0.9944
    """
    trained = network if isinstance(network, Trained) else load(network)
    trained = dataclasses.replace(trained, recipe=copy.deepcopy(trained.recipe))  # the caller's stays as it is
    task, config = trained.task, trained.recipe.data
    if data is None and config.source == UNKNOWN_SOURCE:
        raise UsageError(f"{trained.source} does not say where images are; give --data SOURCE")
    if size:
        config.test_size, config.test_width, config.test_depth = size, None, None
    source = open_test_images(trained.recipe, trained.classes, trained.source, data, trained.held_out)
    task.check_test(source, config)
    for line in source.notes:
        say(line)
    where = pick_device(device)
    loader = task.loader(source.test, trained.transform, batch_size, workers=workers, timeout=config.timeout)
    loader.say = say
    metrics = task.metrics_of(trained)
    scores, unreadable = run_over(trained.model.to(where), loader, metrics, where)
    _check_unreadable(int(scores["images"]), unreadable, config.max_unreadable, say)
    if missing := task.missing_targets(metrics):
        raise RunFailed(f"none of the {scores['images']} test images of {data or config.source} has {missing}")
    return Evaluation(task.measured(metrics, trained.names), int(scores["images"]), data or config.source)


def _check_unreadable(read: int, unreadable: Sequence[Unreadable], allowed: int, say: Callable[[str], None]) -> None:
    for image in unreadable:
        say(f"skipped unreadable image {image}")
    if not read:
        raise RunFailed(f"none of the {len(unreadable)} images could be read")
    if len(unreadable) > allowed:
        raise RunFailed(f"{len(unreadable)} images are unreadable, data.max_unreadable is {allowed}")
