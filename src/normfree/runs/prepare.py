"""From a recipe to a trainer and its run folder."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from ..data import HeldOut, Source
from ..data.held_out import HELD_OUT
from ..data.layouts import with_kind
from ..data.scenes import SceneSplit
from ..data.sources import ArraySplit, absolute
from ..errors import RunFailed, UsageError
from ..files import whole_file
from ..optim import freeze
from ..recipes import Recipe, describe, dump_recipe
from ..spp import Film
from ..tasks import Task, open_images, task_of
from ..training import (
    Replicas,
    Run,
    StopRequests,
    Trainer,
    find_checkpoint,
    new_folder,
    pick_device,
    read_description,
    set_checkpointing,
)
from ..training.checkpoints import STATE, WEIGHTS, read_state
from ..training.environment import basis
from ..training.run import CHECKPOINTS, FILM, RECIPE
from ..words import counted, tell
from .agreement import compare_processes, contents, settings, together
from .lock import RunLock
from .record import as_asked, compare
from .record import images as images_of
from .record import read as read_started
from .record import write as write_started
from .resume import LENGTH, changed, instead, other_rounding, write_lengths

MOST_LETTERS = 40  # of a class in the name of an example
PROBE = 32  # test images that are shown each time signals are recorded
T = TypeVar("T")


def prepare(
    recipe: Recipe,
    name: str,
    out: str | None,
    *,
    lock: RunLock,
    init: Callable[[nn.Module], str] | None = None,
    resume: Path | None = None,
    warm_restart: bool = False,
    progress: bool = True,
    replicas: Replicas | None = None,
    stop: StopRequests | None = None,
) -> tuple[Trainer, Path]:
    """Open the images, build the network and the run folder; nothing is written before all of the input is good.

    Args:
        lock: takes the folder; the caller releases it at the end of the run.
        init: fills the network, and says with what.
        resume: the run folder to go on with; its recipe is ``recipe``.
        warm_restart: begin the schedule of the learning rate again where the run goes on.
        stop: what notes requests to stop, see :class:`Trainer`.
    """
    replicas = replicas or Replicas()
    asked, checkpoint, told = as_asked(recipe), None, []
    if resume is not None:
        checkpoint, told = on_main(replicas, lambda: find_checkpoint(resume / CHECKPOINTS))
    source = together(replicas, lambda: opened(recipe, resume, checkpoint))
    images = images_of(source)
    compare_processes(replicas, settings(recipe) | contents(images))
    told, changes = [*source.notes, *told], {}
    if checkpoint is None or resume is None:
        told += fit_batch(recipe, len(source.train))
    else:
        if warm_restart:
            recipe.optim.restarts = tuple(sorted({*recipe.optim.restarts, read_state(checkpoint)["step"]} - {0}))
        changes = on_main(replicas, lambda: changed(resume, checkpoint, recipe))
        told += on_main(replicas, lambda: compare_images(resume, checkpoint, images, recipe.data.source))
    model, more = network(recipe, source, init, replicas)
    told += more
    task_of(recipe).set_sizes(recipe, model)
    task = task_of(recipe).from_recipe(recipe, source, replicas.share)
    told += task.notes
    description = describe(recipe, source.classes, source.numbers)
    if source.held_out is not None:
        description["held_out"] = source.held_out.fingerprint
    told += task.check_targets(recipe.data)
    folder = resume or on_main(replicas, lambda: new_folder(name, out, lock.take))
    trainer = Trainer(
        model,
        task,
        Run(
            folder,
            description,
            recipe.train.keep_every,
            tensorboard=recipe.train.tensorboard and replicas.main,
            check=lock.check,
        ),
        train=recipe.train,
        optim=recipe.optim,
        max_unreadable=recipe.data.max_unreadable,
        progress=progress,
        replicas=replicas,
        stop=stop,
    )
    workers = task.train.loader.num_workers
    if workers and recipe.data.workers is None:
        told.append(f"{counted(workers, 'process', 'processes')} for decoding images (--data.workers N changes it)")
    if checkpoint is not None:
        check_length(read_state(checkpoint)["step"], trainer.total_steps, changes, warm_restart)
        told += trainer.resume(checkpoint)
        told += on_main(replicas, lambda: going_on(trainer, folder, checkpoint, recipe, changes, warm_restart))
    elif replicas.main:
        write_started(folder, asked, images)
        with whole_file(folder / RECIPE) as part:
            part.write_text(dump_recipe(recipe), encoding="utf-8")
        if source.held_out is not None:
            source.held_out.write(folder)
        write_examples(source, folder / "examples")
    if recipe.train.spp_every is not None and replicas.main:
        trainer.on_step = Film(
            model, probe(task).to(trainer.device), recipe.train.spp_every, folder / FILM, last=trainer.total_steps
        )
    told.append(summary(recipe, name, source, trainer))
    say(replicas, *told)
    return trainer, folder


def opened(recipe: Recipe, resume: Path | None, checkpoint: Path | None) -> Source[Any]:
    """The images of a recipe, whose source is a full path from then on.

    Raises:
        UsageError: there is no such device or no such images; a process does not see the run's folder; the list of the
            images held out is gone or has changed.
    """
    pick_device(recipe.train.device, float64=True)
    if checkpoint is not None and not (checkpoint / STATE).is_file():
        raise UsageError(f"{checkpoint} is not there; all machines must see the folder of a run that goes on")
    held_out = None if resume is None or checkpoint is None else held_out_before(resume, checkpoint)
    source = open_images(recipe, held_out=held_out)
    recipe.data.source = absolute(with_kind(recipe.data.source))  # the run must find its images from any folder
    return source


def held_out_before(folder: Path, checkpoint: Path) -> HeldOut | None:
    """The images that a run has held out for testing, with their fingerprint in its checkpoint; None: it has none."""
    listed, expected = HeldOut.read(folder), read_description(checkpoint / WEIGHTS).get("held_out")
    if listed is None and expected is not None:
        raise UsageError(
            f"{folder / HELD_OUT} is missing, the list of the images that the run has held out for testing"
        )
    return None if listed is None else replace(listed, expected=expected)


def network(
    recipe: Recipe, source: Source[Any], init: Callable[[nn.Module], str] | None, replicas: Replicas
) -> tuple[nn.Module, list[str]]:
    """The network at its start, the same in all processes, and what to tell the user."""
    torch.manual_seed(recipe.train.seed)
    model = together(replicas, lambda: task_of(recipe).build_network(recipe, source.classes))
    told = [] if init is None else [together(replicas, lambda: init(model))]
    replicas.share_weights(model)
    freeze(model, recipe.optim.frozen)
    set_checkpointing(model, recipe.train.activation_checkpointing)
    if replicas.world > 1:  # the same weights everywhere, other dropout masks
        torch.manual_seed(recipe.train.seed + 1_000_003 * (replicas.rank + 1))
    return model, told


def fit_batch(recipe: Recipe, images: int) -> list[str]:
    """Make a batch that is larger than the training images as large as they are, with the learning rate for it.

    Returns:
        What to tell the user.
    """
    train, optim = recipe.train, recipe.optim
    if train.batch_size <= images:
        return []
    asked, rate = train.batch_size, optim.peak_lr(train.batch_size)
    optim.lr_reference_batch, train.batch_size = optim.lr_reference_batch or asked, images
    return [
        f"train.batch_size (={asked}) is more than the {counted(images, 'training image')}: batches of {images}, and a "
        f"peak learning rate of {optim.peak_lr(images):.4g} instead of {rate:.4g}"
    ]


def compare_images(folder: Path, checkpoint: Path, now: dict[str, Any], where: str) -> list[str]:
    """What is different about the images of a run that goes on; the new ones are noted.

    Raises:
        UsageError: they have other classes.
    """
    started = read_started(folder)
    before = started.get("images") or dict(classes=read_description(checkpoint / WEIGHTS)["classes"])
    told = compare(before, now, where)
    if told and started:
        write_started(folder, started["asked"], now)
    return told


def check_length(step: int, total: int, changes: Mapping[str, tuple[Any, Any]], warm_restart: bool) -> None:
    """Refuse a length of a run that ends before its checkpoint.

    Args:
        step: of the checkpoint; total: of the run.
        changes: of :func:`.resume.changed`.

    Raises:
        UsageError: it does, or a warm restart begins at its end.
    """
    if step > total:
        lengths = {path: pair for path, pair in changes.items() if path in LENGTH}
        why = f" ({instead(lengths)})" if lengths else ""
        raise UsageError(f"the run has done {step} steps already; with this length it would have {total}{why}")
    if warm_restart and step == total:
        raise UsageError(f"the run has done its {total} steps; a warm restart needs more: --train.epochs N")


def going_on(
    trainer: Trainer,
    folder: Path,
    checkpoint: Path,
    recipe: Recipe,
    changes: dict[str, tuple[Any, Any]],
    warm_restart: bool,
) -> list[str]:
    """Note a new length of the run; say what has changed, where it goes on and by which schedule."""
    step, total, told = trainer.state.step, trainer.total_steps, []
    write_lengths(folder, recipe)
    if changes:
        told.append(instead(changes))
    if step < total and not changes.keys().isdisjoint(LENGTH):
        which = "begins again at its peak" if warm_restart else f"is that of a run of {total} steps from its start"
        told.append(f"the schedule of the learning rate {which}: {trainer.lr(step):.4g} at step {step}")
    told += other_rounding(folder, checkpoint, changes, basis(trainer.device))
    told.append(f"goes on after step {step} of {total} ({checkpoint})")
    return told


def summary(recipe: Recipe, name: str, source: Source[Any], trainer: Trainer) -> str:
    """What is trained on what, in a line."""
    replicas = trainer.replicas
    params = sum(p.numel() for p in trainer.model.parameters())
    processes = f" in {replicas.world} processes" if replicas.world > 1 else ""
    task = task_of(recipe)
    kind = f" for {task.name}" if task.targets == "pairs" else ""
    return (
        f"{name}: {recipe.model.name}{kind} ({params / 1e6:.2f} M parameters) on {recipe.data.source}: "
        f"{len(source.train)} training and {counted(len(source.test), 'test image')}"
        f"{task.describe_classes(source.classes)}; "
        f"{counted(trainer.total_steps, 'step')} of {recipe.train.batch_size} on {trainer.device}{processes}; "
        f"into {trainer.run.folder}"
    )


def on_main(replicas: Replicas, do: Callable[[], T]) -> T:
    """What the main process finds, in all of them; its error, too."""
    result: tuple[T] | UsageError | RunFailed | None = None
    if replicas.main:
        try:
            result = (do(),)
        except (UsageError, RunFailed) as error:
            result = error
    result = replicas.from_main(result)
    if isinstance(result, tuple):
        return result[0]
    assert result is not None  # the main process always has one
    raise result


def say(replicas: Replicas, *lines: str) -> None:
    """Print to standard error, from the main process."""
    if replicas.main:
        tell(*lines, file=sys.stderr)


def probe(task: Task) -> Tensor:
    """The first readable test images; drawn without touching the random state that training goes on with."""
    with torch.random.fork_rng(devices=[]):
        for batch in task.test:
            if len(batch):
                return batch.images[:PROBE]
    raise UsageError("train.spp_every needs a readable test image, and there is none")


def write_examples(source: Source[Any], folder: Path, count: int = 10) -> None:
    """A few test images of arrays or scenes as PNG files named by their label, to try ``normfree predict`` with."""
    split = source.test
    if not isinstance(split, ArraySplit | SceneSplit) or split.image(0).shape[0] not in (1, 3):
        return
    folder.mkdir(exist_ok=True)
    for index in range(min(count, len(split))):
        label = ""
        if isinstance(split, ArraySplit):
            label = "_label" + re.sub(r"[^\w-]+", "_", source.classes[split.label(index)])[:MOST_LETTERS]
        pixels = split.image(index).permute(1, 2, 0).squeeze(2).numpy()
        with whole_file(folder / f"test{index}{label}.png") as part:
            Image.fromarray(pixels).save(part, format="png")
