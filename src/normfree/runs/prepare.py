"""From a recipe to a trainer and its run folder."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..data import HeldOut, Source
from ..data.scenes import SceneSplit
from ..data.sources import ArraySplit, absolute
from ..errors import UsageError
from ..optim import freeze
from ..recipes import Recipe, build_network, build_task, describe, dump_recipe, is_dense, open_images, set_sizes
from ..recipes.build import Task
from ..spp import Film
from ..training import (
    Replicas,
    Run,
    Trainer,
    find_checkpoint,
    new_folder,
    pick_device,
    set_checkpointing,
)
from ..training.run import CHECKPOINTS, RECIPE

FILM, PROBE = "spp.jsonl", 32  # recorded signals; test images that are shown each time


def prepare(
    recipe: Recipe,
    name: str,
    out: str | None,
    *,
    init: Callable[[nn.Module], str] | None = None,
    resume: str | None = None,
    progress: bool = True,
    replicas: Replicas | None = None,
) -> tuple[Trainer, Path]:
    """Open the images, build the network and the run folder; nothing is written before all of the input is good."""
    replicas = replicas or Replicas()
    pick_device(recipe.train.device)
    source = open_images(recipe, held_out=None if resume is None else HeldOut.read(Path(resume)))
    say(replicas, *source.told)
    recipe.data.source = absolute(recipe.data.source)  # the run must find its images from any folder
    checkpoint, told = find_checkpoint(Path(resume) / CHECKPOINTS) if resume is not None else (None, [])
    torch.manual_seed(recipe.train.seed)
    model = build_network(recipe, source.classes)
    if init is not None:
        say(replicas, init(model))
    freeze(model, recipe.optim.frozen)
    set_checkpointing(model, recipe.train.activation_checkpointing)
    if replicas.world > 1:  # the same weights everywhere, other dropout masks
        torch.manual_seed(recipe.train.seed + 1_000_003 * (replicas.rank + 1))
    set_sizes(recipe, model)
    task = build_task(recipe, source, replicas.share)
    told += task.notes
    description = describe(recipe, source.classes, source.numbers)
    if source.held_out is not None:
        description["held_out"] = source.held_out.fingerprint
    if is_dense(recipe):
        say(replicas, *task.examine(recipe.data))
    folder = Path(resume) if resume is not None else main_makes_folder(replicas, name, out)
    trainer = Trainer(
        model,
        task,
        Run(
            folder,
            description,
            recipe.train.keep_every,
            tensorboard=recipe.train.tensorboard and replicas.main,
        ),
        train=recipe.train,
        optim=recipe.optim,
        max_unreadable=recipe.data.max_unreadable,
        progress=progress,
        replicas=replicas,
    )
    if checkpoint is not None:
        told += trainer.resume(checkpoint)
        told.append(f"goes on after step {trainer.at.step} of {trainer.total_steps} ({checkpoint})")
    elif replicas.main:
        (folder / RECIPE).write_text(dump_recipe(recipe))
        if source.held_out is not None:
            source.held_out.write(folder)
        write_examples(source, folder / "examples")
    if recipe.train.spp_every is not None and replicas.main:
        trainer.watch = Film(
            model, probe(task).to(trainer.device), recipe.train.spp_every, folder / FILM, last=trainer.total_steps
        )
    params = sum(p.numel() for p in model.parameters())
    processes = f" in {replicas.world} processes" if replicas.world > 1 else ""
    classes = f" of {len(source.classes)} classes" if source.classes else ""
    kind = f" for {recipe.task.name}" if is_dense(recipe) else ""
    told.append(
        f"{name}: {recipe.model.name}{kind} ({params / 1e6:.2f} M parameters) on {recipe.data.source}: "
        f"{len(source.train)} training and {len(source.test)} test images{classes}; "
        f"{trainer.total_steps} steps of {recipe.train.batch_size} on {trainer.device}{processes}; into {folder}"
    )
    say(replicas, *told)
    return trainer, folder


def main_makes_folder(replicas: Replicas, name: str, out: str | None) -> Path:
    """The folder of a new run, which the main process makes for all."""
    made: Path | UsageError = Path()
    if replicas.main:
        try:
            made = new_folder(name, out)
        except UsageError as error:
            made = error
    made = replicas.from_main(made)
    if isinstance(made, UsageError):
        raise made
    return made


def say(replicas: Replicas, *lines: str) -> None:
    """Print to standard error, from the main process."""
    if replicas.main:
        for line in lines:
            print(line, file=sys.stderr)


def probe(task: Task) -> Tensor:
    """The first readable test images; drawn without touching the random state that training goes on with."""
    with torch.random.fork_rng(devices=[]):
        for batch in task.test:
            if len(batch):
                return batch.images[:PROBE]
    raise UsageError("train.spp_every needs a readable test image, and there is none")


def write_examples(source: Source, folder: Path, count: int = 10) -> None:
    """A few test images of an embedded set as PNG files named by their label, to try ``normfree predict`` with."""
    split = source.test
    if not isinstance(split, ArraySplit | SceneSplit):
        return
    folder.mkdir()
    for index in range(min(count, len(split))):
        label = f"_label{source.classes[split.label(index)]}" if isinstance(split, ArraySplit) else ""
        pixels = split.image(index).permute(1, 2, 0).squeeze(2).numpy()
        Image.fromarray(pixels).save(folder / f"test{index}{label}.png")
