"""``normfree report``."""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePath
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data import HeldOut, Loader, Source, Split, Unreadable, UnreadableImage
from ..errors import UsageError
from ..files import whole_file
from ..recipes import Recipe, field_paths, load_recipe, open_images, open_test_images
from ..report import (
    About,
    Confusion,
    Example,
    Missing,
    Mistake,
    Mistakes,
    Overlays,
    Recorded,
    Report,
    RunFiles,
    percent,
    read_run,
    write_page,
)
from ..report.drawing import rgb_picture
from ..spp import record, spectra
from ..tasks import Classification, Depth, Detection, MultiLabel, Regression, Segmentation
from ..training import evaluate, find_checkpoint, pick_device
from ..training.checkpoints import read_state
from ..training.run import CHECKPOINTS, RECIPE
from ..version import __version__
from ..words import counted, tell
from .main import Parser
from .outputs import check_output
from .report_looks import look
from .report_objects import objects
from .report_pixels import pixels
from .report_vectors import Far, furthest
from .shown import shown_to
from .trained import Trained, evaluation_transform, load_trained

BATCH = 64
# what is wrong with files, data or device: a line on the page in the place of a part of it
EXPECTED = (UsageError, OSError, RuntimeError)
TASKS = dict(
    classification=Classification, regression=Regression, segmentation=Segmentation, depth=Depth, detection=Detection
)
# of the tasks whose answers are pictures: how test images are looked at, by its name
WAYS = dict(segmentation=pixels, depth=pixels, detection=objects)
T = TypeVar("T")


def run(argv: Sequence[str]) -> int:
    """Write one HTML page about a training run."""
    options = _parser().parse_args(list(argv))
    for name in ("examples", "workers"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name} (={getattr(options, name)}) must be at least 0")
    folder = Path(options.run)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no run folder; a run folder is what `normfree train` printed")
    files = read_run(folder)
    out = Path(options.out) if options.out else folder / "report.html"
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    check_output("--out", out, (".html", ".htm"))
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: folder {out.parent} does not exist")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"--out {out}: folder {out.parent} cannot be written to")
    found = Found(files, pick_device(options.device))
    page = write_page(_report(found, None if options.no_examples else options.examples, options.workers))
    with whole_file(out) as part:
        part.write_bytes(page)
    tell(f"report {out} ({len(page) / 1000:,.0f} kB)")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "report",
        description="Write one HTML page about a training run: curves, clipping by layer, signal propagation, and the "
        "test images that the network gets wrong, or what it says about each pixel of some. It needs nothing else and "
        "opens from disk.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, finished or not")
    parser.add_argument("--out", metavar="FILE", help="the page; default: RUN/report.html")
    parser.add_argument(
        "--examples",
        type=int,
        default=24,
        metavar="N",
        help="pictures of images it gets wrong, or of any where every pixel has an answer; default: 24",
    )
    parser.add_argument("--no-examples", action="store_true", help="do not run the network over the test images")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images; default: 0")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    return parser


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


def _open(recipe: Recipe, folder: Path, trained: Trained | Missing) -> Source:
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
        about.score = (MultiLabel if recipe.task.labels == "multi" else TASKS[recipe.task.name]).score
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
    known = not isinstance(found.source, Missing) and len(found.source.train)
    if recipe.train.across_epochs and known:
        return Fraction(len(found.source.train), recipe.train.batch_size)
    for line in found.files.train[-1:] + found.files.evals[-1:]:
        epoch = line.get("epoch")
        if isinstance(epoch, int | float) and epoch >= 1:
            return round(line["step"] / epoch)
    if not known:
        return None
    return max(1, len(found.source.train) // recipe.train.batch_size)


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
            report.examples, report.introduction, report.confusion = seen.examples, seen.introduction, seen.confusion
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


@dataclass(frozen=True)
class Seen:
    """What the network makes of the test images."""

    examples: list[Example] | Overlays
    introduction: str
    confusion: Confusion | None = None


def _look(found: Found, count: int, workers: int) -> Seen:
    """Run the network over the test images.

    Raises:
        UsageError: there is no network or no image, or the classes are others now.
    """
    trained, source = _needed(found.trained), _needed(found.source)
    if list(source.classes) != trained.classes:
        raise UsageError(f"{trained.recipe.data.source} now has other classes than the network")
    bar = functools.partial(tqdm, desc="test images", unit="batch", delay=2, leave=False, disable=None)
    if trained.dense:
        way = WAYS[trained.recipe.task.name](trained, source.test, found.device)
        looked = look(trained, source.test, found.device, count, workers, bar, way)
        _note(found, looked.unreadable, looked.images)
        return Seen(looked.shown, looked.introduction)
    if trained.task in ("multi-label", "regression"):
        return _look_at_vectors(found, count, workers, bar)
    mistakes = Mistakes(count)
    loader = Loader(source.test, evaluation_transform(trained), BATCH, workers=workers)
    measured, unreadable = evaluate(trained.model, bar(loader), mistakes, found.device)
    wrong, images = measured["wrong"], measured["images"]
    _note(found, unreadable, images)
    examples = [example for one in mistakes.worst if (example := _example(one, source.test, trained.names))]
    said = f"{wrong:,} of {counted(images, 'test image')} ({percent(wrong / images)}) {'is' if wrong == 1 else 'are'} "
    said += f"classified wrongly by the {found.weights()}."
    if examples:
        said += (
            f" The {len(examples)} it is surest of: the true class \N{RIGHTWARDS ARROW} what it says, with the "
            "probability it gives that, and the one it gives the truth."
        )
    return Seen(examples, said, Confusion(trained.names, mistakes.confusions))


def _look_at_vectors(found: Found, count: int, workers: int, bar: Callable) -> Seen:
    """The test images whose answers are furthest from the truth."""
    trained, split = _needed(found.trained), _needed(found.source).test
    metric, what = furthest(trained, count)
    loader = Loader(split, evaluation_transform(trained), BATCH, workers=workers, vectors=True)
    measured, unreadable = evaluate(trained.model, bar(loader), metric, found.device)
    _note(found, unreadable, measured["images"])
    shown = [example for one in metric.worst if (example := _far(one, split))]
    said = (
        f"Of {measured['images']:,} test images, the {len(shown)} that the {found.weights()} are furthest from, {what}"
    )
    return Seen(shown, said if shown else "")


def _far(one: Far, split: Split) -> Example | None:
    """An image with its picture; None if it cannot be read any more."""
    try:
        picture = _picture(split.image(one.index))
    except UnreadableImage:
        return None
    name = split.name(one.index)
    return Example(picture, f"{one.true} \N{RIGHTWARDS ARROW} {one.said}", "/".join(PurePath(name).parts[-2:]), name)


def _picture(image: Tensor) -> Image.Image:
    return rgb_picture(image).convert("L") if len(image) == 1 else rgb_picture(image)


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


def _example(mistake: Mistake, split: Split, names: Sequence[str]) -> Example | None:
    """A mistake with its picture, as it is stored; None if it cannot be read any more."""
    try:
        picture = _picture(split.image(mistake.index))
    except UnreadableImage:
        return None
    name = split.name(mistake.index)
    probability, of_truth = percent(mistake.probability, 1), percent(mistake.of_truth, 1)
    return Example(
        picture,
        f"{names[mistake.true]} \N{RIGHTWARDS ARROW} {names[mistake.said]}",
        f"{probability}, truth {of_truth}\n{'/'.join(PurePath(name).parts[-2:])}",
        name,
    )
