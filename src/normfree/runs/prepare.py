"""From a recipe to a trainer and its run folder."""

import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data import HeldOut, Source
from ..data.held_out import HELD_OUT
from ..data.layouts import with_kind
from ..data.scenes import SceneSplit
from ..data.sources import ArraySplit, absolute
from ..data.volumes import VolumeSplit
from ..errors import RunFailed, UsageError
from ..files import whole_file
from ..optim import freeze
from ..recipes import Recipe, describe, dump_recipe
from ..spp import Film
from ..tasks import Task, task_of
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
from .agreement import compare_processes, contents, on_all, settings
from .cost import Cost, count_network, sam_part
from .decided import open_and_decide
from .fitted import fit_to_images
from .lock import RunLock
from .privacy import draw_secretly, noise_of, refuse_network, refuse_recipe, set_noise, told
from .resume import LENGTH, describe_changes, recipe_changes, rounding_changes, write_lengths
from .started import as_asked, compare_images, describe_images, read_started, write_started

MAX_LETTERS = 40  # of a class in the name of an example
PROBE = 32  # test images that are shown each time signals are recorded
T = TypeVar("T")
Initialize = Callable[[Recipe, Sequence[str]], tuple[nn.Module, str]]  # the network, and what was loaded


@dataclass(frozen=True)
class Inputs:
    """All that a run trains with.

    Attributes:
        images: of :func:`.started.describe_images`.
        description: of the network, for the checkpoints.
        checkpoint: the one that a resumed run starts from.
        changes: of :func:`.resume.recipe_changes`, for a resumed run.
        messages: for the user.
    """

    source: Source[Any]
    images: dict[str, Any]
    model: nn.Module
    task: Task
    description: dict[str, Any]
    checkpoint: Path | None
    changes: dict[str, tuple[Any, Any]]
    messages: list[str]


def prepare(
    recipe: Recipe,
    name: str,
    out: str | None,
    *,
    lock: RunLock,
    init: Initialize | None = None,
    resume: Path | None = None,
    warm_restart: bool = False,
    progress: bool = True,
    replicas: Replicas | None = None,
    stop: StopRequests | None = None,
    on_evaluation: Callable[[Mapping[str, float], float], None] = lambda metrics, part: None,
) -> tuple[Trainer, Path]:
    """Open the images, build the network and the run folder. Nothing is written before all inputs are checked.

    Args:
        lock: locks the folder; the caller releases it at the end of the run.
        init: builds the network with other weights, and returns it with a sentence that says with which.
        resume: folder of the run to resume; its recipe is ``recipe``.
        warm_restart: start the learning rate schedule again from the step at which the run is resumed.
        stop, on_evaluation: see :class:`Trainer`.
    """
    replicas = replicas or Replicas()
    if resume is None:
        recipe.model.constants = None  # a new run finds its own
    as_given = as_asked(recipe)
    inputs = open_inputs(recipe, resume, warm_restart, init, replicas)
    folder = resume or on_main(replicas, lambda: new_folder(name, out, lock.take))
    trackers = recipe.train.trackers if replicas.main else []
    trainer = Trainer(
        inputs.model,
        inputs.task,
        Run(folder, inputs.description, recipe.train.keep_every, trackers=trackers, check=lock.check),
        train=recipe.train,
        optim=recipe.optim,
        max_unreadable=recipe.data.max_unreadable,
        progress=progress,
        replicas=replicas,
        stop=stop,
        private=recipe.private,
        on_evaluation=on_evaluation,
    )
    messages = [*inputs.messages, *_workers(inputs.task, recipe)]
    if inputs.checkpoint is not None:
        messages += _resume(trainer, inputs.checkpoint, recipe, inputs.changes, warm_restart)
    elif replicas.main:
        write_start(folder, recipe, as_given, inputs)
    if recipe.train.spp_every is not None and replicas.main:
        images, last = probe_images(inputs.task).to(trainer.device), trainer.total_steps
        trainer.on_step = Film(inputs.model, images, recipe.train.spp_every, folder / FILM, last=last)
    messages += told(recipe, trainer, len(inputs.source.train)) if replicas.main else []
    say(replicas, *messages, summary(recipe, name, inputs.source, trainer))
    return trainer, folder


def open_inputs(
    recipe: Recipe,
    resume: Path | None,
    warm_restart: bool,
    init: Initialize | None,
    replicas: Replicas,
) -> Inputs:
    """Open the images, compare them and the recipe with those of a resumed run, build the network."""
    checkpoint, notes, changes = None, [], {}
    refuse_recipe(recipe, fresh=resume is None)
    if resume is not None:
        checkpoint, notes = on_main(replicas, lambda: find_checkpoint(resume / CHECKPOINTS))
    source, decided = on_all(replicas, lambda: open_source(recipe, resume, checkpoint, init is not None))
    images = describe_images(source)
    compare_processes(replicas, settings(recipe) | contents(images))
    messages = [*source.notes, *notes, *decided]
    if checkpoint is None or resume is None:
        messages += fit_batch(recipe, len(source.train))
    else:
        if warm_restart:
            recipe.optim.restarts = tuple(sorted({*recipe.optim.restarts, read_state(checkpoint)["step"]} - {0}))
        changes = on_main(replicas, lambda: recipe_changes(resume, checkpoint, recipe))
        messages += on_main(replicas, lambda: image_changes(resume, checkpoint, images, recipe.data.source))
    model, notes = network(recipe, source, init, replicas)
    task_of(recipe).set_sizes(recipe, model)
    task = on_all(replicas, lambda: task_of(recipe).from_recipe(recipe, source, replicas.share))
    messages += [*notes, *task.notes]
    if recipe.private.on:
        refuse_network(model, fitted=checkpoint is None and init is None)
        set_noise(recipe, on_main(replicas, lambda: noise_of(recipe, task)))
        draw_secretly(recipe, task, replicas)
    if checkpoint is None and init is None:
        messages += on_all(replicas, lambda: fit_to_images(model, task))
        replicas.share_weights(model)
    description = describe(recipe, source.classes, source.numbers)
    if source.held_out is not None:
        description["held_out"] = source.held_out.fingerprint
    messages += task.check_targets(recipe.data)
    return Inputs(source, images, model, task, description, checkpoint, changes, messages)


def open_source(
    recipe: Recipe, resume: Path | None, checkpoint: Path | None, pretrained: bool = False
) -> tuple[Source[Any], list[str]]:
    """The images of a recipe, and messages for the user; its ``data.source`` becomes an absolute path.

    Args:
        pretrained: whether training starts from other weights, for the fields that follow from the images.

    Raises:
        UsageError: the device or the images do not exist; a process does not see the run's folder; the list of the
            held-out images is missing or has changed.
    """
    pick_device(recipe.train.device, float64=True)
    if checkpoint is not None and not (checkpoint / STATE).is_file():
        raise UsageError(f"{checkpoint} is not there; all machines must see the folder of a run that goes on")
    held_out = None if resume is None or checkpoint is None else held_out_before(resume, checkpoint)
    source, decided = open_and_decide(recipe, held_out, pretrained)
    recipe.data.source = absolute(with_kind(recipe.data.source))  # the run must find its images from any folder
    return source, decided


def held_out_before(folder: Path, checkpoint: Path) -> HeldOut | None:
    """The images that a run holds out for testing, with the fingerprint in its checkpoint; None if there are none."""
    held_out, expected = HeldOut.read(folder), read_description(checkpoint / WEIGHTS).get("held_out")
    if held_out is None and expected is not None:
        raise UsageError(
            f"{folder / HELD_OUT} is missing, the list of the images that the run has held out for testing"
        )
    return None if held_out is None else replace(held_out, expected=expected)


def network(
    recipe: Recipe, source: Source[Any], init: Initialize | None, replicas: Replicas
) -> tuple[nn.Module, list[str]]:
    """The initialized network, the same in all processes, and messages for the user."""
    torch.manual_seed(recipe.train.seed)
    messages = list[str]()
    if init is None:
        model = on_all(replicas, lambda: task_of(recipe).build_network(recipe, source.classes))
    else:
        model, loaded = on_all(replicas, lambda: init(recipe, source.classes))
        messages.append(loaded)
    replicas.share_weights(model)
    recipe.optim.check_pull(model)
    freeze(model, recipe.optim.frozen)
    set_checkpointing(model, recipe.train.activation_checkpointing)
    if replicas.world > 1:  # the same weights, but other dropout masks
        torch.manual_seed(recipe.train.seed + 1_000_003 * (replicas.rank + 1))
    return model, messages


def fit_batch(recipe: Recipe, images: int) -> list[str]:
    """Limit the batch size to the number of training images, and adapt the learning rate.

    Returns:
        Messages for the user.
    """
    train, optim = recipe.train, recipe.optim
    if train.batch_size <= images:
        return []
    given, rate = train.batch_size, optim.peak_lr(train.batch_size)
    optim.lr_reference_batch, train.batch_size = optim.lr_reference_batch or given, images
    return [
        f"train.batch_size (={given}) is more than the {counted(images, 'training image')}: batches of {images}, and a "
        f"peak learning rate of {optim.peak_lr(images):.4g} instead of {rate:.4g}"
    ]


def image_changes(folder: Path, checkpoint: Path, now: dict[str, Any], origin: str) -> list[str]:
    """What has changed about the images of a resumed run; the new ones are noted in its folder.

    Raises:
        UsageError: they have other classes.
    """
    started = read_started(folder)
    before = started.get("images") or dict(classes=read_description(checkpoint / WEIGHTS)["classes"])
    messages = compare_images(before, now, origin)
    if messages and started:
        write_started(folder, started["asked"], now)
    return messages


def _workers(task: Task, recipe: Recipe) -> list[str]:
    """How many processes decode images, where that was chosen for the user."""
    workers = task.train.loader.num_workers
    if not workers or recipe.data.workers is not None:
        return []
    return [f"{counted(workers, 'process', 'processes')} for decoding images (--data.workers N changes it)"]


def write_start(folder: Path, recipe: Recipe, as_given: dict[str, Any], inputs: Inputs) -> None:
    """Write what a new run starts with: recipe, images, held-out images, examples."""
    write_started(folder, as_given, inputs.images)
    with whole_file(folder / RECIPE) as part:
        part.write_text(dump_recipe(recipe), encoding="utf-8")
    if inputs.source.held_out is not None:
        inputs.source.held_out.write(folder)
    write_examples(inputs.source, folder / "examples")


def check_length(step: int, total: int, changes: Mapping[str, tuple[Any, Any]], warm_restart: bool) -> None:
    """Refuse a length of the run that ends before its checkpoint.

    Args:
        step: of the checkpoint; total: of the run.
        changes: of :func:`.resume.recipe_changes`.

    Raises:
        UsageError: it does, or a warm restart is asked for at the end of the run.
    """
    if step > total:
        lengths = {path: pair for path, pair in changes.items() if path in LENGTH}
        why = f" ({describe_changes(lengths)})" if lengths else ""
        raise UsageError(f"the run has done {step} steps already; with this length it would have {total}{why}")
    if warm_restart and step == total:
        raise UsageError(f"the run has done its {total} steps; a warm restart needs more: --train.epochs N")


def _resume(
    trainer: Trainer, checkpoint: Path, recipe: Recipe, changes: dict[str, tuple[Any, Any]], warm_restart: bool
) -> list[str]:
    """Load the checkpoint; messages for the user."""
    check_length(read_state(checkpoint)["step"], trainer.total_steps, changes, warm_restart)
    notes = trainer.resume(checkpoint)
    return notes + on_main(
        trainer.replicas, lambda: _note_resumption(trainer, checkpoint, recipe, changes, warm_restart)
    )


def _note_resumption(
    trainer: Trainer, checkpoint: Path, recipe: Recipe, changes: dict[str, tuple[Any, Any]], warm_restart: bool
) -> list[str]:
    """Write a new length into the run's recipe; what has changed, from which step training goes on, the schedule."""
    folder, step, total, messages = trainer.run.folder, trainer.state.step, trainer.total_steps, []
    write_lengths(folder, recipe)
    if changes:
        messages.append(describe_changes(changes))
    if step < total and not changes.keys().isdisjoint(LENGTH):
        which = "begins again at its peak" if warm_restart else f"is that of a run of {total} steps from its start"
        messages.append(f"the schedule of the learning rate {which}: {trainer.lr(step):.4g} at step {step}")
    messages += rounding_changes(folder, checkpoint, changes, basis(trainer.device))
    messages.append(f"goes on after step {step} of {total} ({checkpoint})")
    return messages


def summary(recipe: Recipe, name: str, source: Source[Any], trainer: Trainer) -> str:
    """The network, its images, the steps and the folder, in one line."""
    replicas = trainer.replicas
    params = sum(p.numel() for p in trainer.model.parameters())
    processes = f" in {replicas.world} processes" if replicas.world > 1 else ""
    task = task_of(recipe)
    kind = f" for {task.name}" if task.targets == "pairs" else ""
    return (
        f"{name}: {recipe.model.name}{kind}{_converted(recipe)} ({params / 1e6:.2f} M parameters) on "
        f"{recipe.data.source}: "
        f"{len(source.train)} training and {counted(len(source.test), 'test image')}"
        f"{task.describe_classes(source.classes)}; "
        f"{counted(trainer.total_steps, 'step')} of {recipe.train.batch_size} on {trainer.device}{processes}"
        f"{operations(recipe, source, trainer)}; into {trainer.run.folder}"
    )


def _converted(recipe: Recipe) -> str:
    how = recipe.model.convert
    return "" if how is None else f" without its normalization (model.convert {how})"


def operations(recipe: Recipe, source: Source[Any], trainer: Trainer) -> str:
    """How many floating-point operations training takes, where they can be counted."""
    try:
        params, macs = count_network(copy.deepcopy(recipe), source.classes)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # a network of one's own that needs real tensors
        return ""
    cost = Cost(trainer.total_steps, recipe.train.batch_size, params, macs, sam_part(recipe))
    return "" if cost.operations is None else f", {cost.operations:.3g} operations"


def on_main(replicas: Replicas, do: Callable[[], T]) -> T:
    """The result of ``do`` in the main process, for all processes; or its error."""
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


def probe_images(task: Task) -> Tensor:
    """The first readable test images (N, C, H, W), read without a change of the random state of training."""
    with torch.random.fork_rng(devices=[]):
        for batch in task.test:
            if len(batch):
                return task.probe(batch.images[:PROBE])
    raise UsageError("train.spp_every needs a readable test image, and there is none")


def write_examples(source: Source[Any], folder: Path, count: int = 10) -> None:
    """A few test images of arrays or scenes as PNG files named by label, to try ``normfree predict`` with.

    Of made volumes, NumPy files.
    """
    split = source.test
    if isinstance(split, VolumeSplit):
        folder.mkdir(exist_ok=True)
        for index in range(min(count, len(split))):
            with whole_file(folder / f"test{index}.npy") as part, part.open("wb") as file:
                np.save(file, split.image(index)[0].numpy())
        return
    if not isinstance(split, ArraySplit | SceneSplit) or split.image(0).shape[0] not in (1, 3):
        return
    folder.mkdir(exist_ok=True)
    for index in range(min(count, len(split))):
        label = ""
        if isinstance(split, ArraySplit):
            label = "_label" + re.sub(r"[^\w-]+", "_", source.classes[split.label(index)])[:MAX_LETTERS]
        pixels = split.image(index).permute(1, 2, 0).squeeze(2).numpy()
        with whole_file(folder / f"test{index}{label}.png") as part:
            Image.fromarray(pixels).save(part, format="png")
