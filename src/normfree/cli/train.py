"""``normfree train``."""

import argparse
import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data import Source
from ..data.scenes import SceneSplit
from ..data.sources import ArraySplit, absolute
from ..errors import UsageError
from ..optim import freeze
from ..recipes import (
    DEFAULT,
    Recipe,
    build_network,
    build_task,
    dump_recipe,
    field_paths,
    is_dense,
    load_recipe,
    open_images,
    set_sizes,
)
from ..recipes.build import Task
from ..spp import Film, plot_film, read_film
from ..training import (
    Replicas,
    Run,
    Summary,
    Trainer,
    find_checkpoint,
    keep_freed_memory,
    new_folder,
    pick_device,
    plot_curves,
    replicas,
    set_checkpointing,
)
from ..training.run import CHECKPOINTS, METRICS
from .main import Parser
from .options import fields_help, parse_overrides
from .trained import describe, initialize

FILM, STRIP, PROBE = "spp.jsonl", "spp.png", 32  # recorded signals, their picture, images that are shown each time
# what may change when a run goes on: where and how it is computed, not what
CHANGEABLE = {"data.source", "data.workers", "data.max_unreadable"} | {
    f"train.{name}"
    for name in (
        "device",
        "threads",
        "micro_batch",
        "activation_checkpointing",
        "recompute_weights",
        "compile",
        "log_every",
        "save_every",
        "keep_every",
        "skip_nonfinite",
        "tensorboard",
        "channels_last",
    )
}
SAME = "the run of --out"  # --resume without a value
FOLDER_RECIPE = "folder"  # what images of one's own are trained with unless a recipe is named
RECIPE_OF = dict.fromkeys(("imagefolder", "wds", "synthetic"), FOLDER_RECIPE)
RECIPE_OF |= dict.fromkeys(("scenes", "masks", "voc"), "demo_segmentation")
RECIPE_OF |= dict.fromkeys(("depth", "nyu"), "demo_depth") | dict(coco="demo_detection")


def run(argv: Sequence[str]) -> int:
    """Train by a recipe into a new run folder."""
    parser = Parser(
        "train",
        description=f"Train a network by a recipe. Without options: recipe {DEFAULT}.",
        epilog=f"Every field of the recipe is an option (values in YAML):\n{fields_help()}\n\n"
        "normfree recipes lists the recipes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--recipe", help=f"name or YAML file (default: {DEFAULT}, or {FOLDER_RECIPE} with other --data)"
    )
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="digits, imagefolder:PATH with PATH/train/CLASS/* and PATH/val/CLASS/*, wds:FOLDER or wds:TRAIN,VAL (tar "
        "shards), synthetic:N; for segmentation and depth scenes:N, voc:PATH, masks:PATH, nyu:FILE.mat, depth:PATH; "
        "for detection scenes:N, coco:PATH",
    )
    parser.add_argument("--model", metavar="NAME", help="short for --model.name")
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/RECIPE, numbered if it exists)")
    parser.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="start from a run folder, a .safetensors file, the authors' .npz, or pretrained:NAME (published weights)",
    )
    parser.add_argument(
        "--spp-every",
        type=int,
        metavar="N",
        help="record the signal propagation plot every N steps into the run folder, and draw a film strip",
    )
    parser.add_argument(
        "--micro-batch",
        type=lambda text: int(text) if text.isascii() and text.isdigit() else text,  # the recipe says what is wrong
        metavar="N|auto",
        help="images per backward pass; the update is that of the whole batch",
    )
    parser.add_argument("--parallel", metavar="ddp|fsdp", help="how several processes share the network")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const=SAME,
        help="go on with a run from its last checkpoint, as if it had not stopped; without RUN, with the one of --out, "
        "or start it: one command for a scheduler that may restart it",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options, rest = parser.parse_known_args(list(argv))
    keep_freed_memory()
    overrides = parse_overrides(rest)
    if options.data is not None:
        overrides["data.source"] = options.data
    if options.model is not None:
        overrides["model.name"] = options.model
    for name in ("spp_every", "micro_batch", "parallel"):
        if getattr(options, name) is not None:
            overrides[f"train.{name}"] = getattr(options, name)
    if options.resume in (None, SAME):
        name = options.recipe or _default_recipe(overrides.get("data.source"))
        recipe = load_recipe(name, overrides)
    else:
        for flag in ("recipe", "out", "init", "model"):
            if getattr(options, flag) is not None:
                raise UsageError(f"--{flag} is for new runs; --resume {options.resume} goes on with that run's")
        name, recipe = resumed_recipe(options.resume, overrides)
    with replicas(recipe.train.device) as group:
        resume = options.resume
        if resume == SAME:
            resume = group.from_main(run_to_go_on_with(options.out, recipe) if group.main else None)
        trainer, folder = prepare(
            recipe,
            Path(name).stem,
            options.out,
            init=options.init,
            resume=resume,
            progress=not options.quiet,
            replicas=group,
        )
        try:
            summary = trainer.fit()
        finally:
            if group.main:
                draw_film(folder)
        if group.main:
            print(stopped(summary, folder) if summary.stopped else report(summary, folder, trainer))
    return 0


def run_to_go_on_with(out: str | None, recipe: Recipe) -> str | None:
    """``out`` if there is a run with a checkpoint; what a run left that was killed before its first one is removed.

    Raises:
        UsageError: no ``out``, or the run there is by another recipe.
    """
    if out is None:
        raise UsageError("--resume without a run needs --out: the run to start or to go on with")
    folder, written = Path(out), Path(out) / "recipe.yaml"
    saved = [p for p in (folder / CHECKPOINTS).glob("step-*") if p.name.removeprefix("step-").isdigit()]
    if not saved:
        metrics = folder / METRICS
        if metrics.is_file() and not metrics.stat().st_size:  # a run that was killed before its first checkpoint
            for left in (folder / "examples", folder / CHECKPOINTS):
                shutil.rmtree(left, ignore_errors=True)
            written.unlink(missing_ok=True)
            metrics.unlink()
        return None
    ours, theirs = (dataclasses.asdict(r) for r in (recipe, load_recipe(str(written), {})))
    for path in field_paths():
        section, field = path.split(".")
        a, b = ours[section][field], theirs[section][field]
        if path not in CHANGEABLE and a is not None and a != b:
            raise UsageError(f"--out {out} is a run with {path} (={b!r}), not {a!r}; name a new folder, or the same")
    return out


def resumed_recipe(run: str, overrides: dict[str, object]) -> tuple[str, Recipe]:
    """Name and recipe of a run that is to go on, with what may change on the way.

    Raises:
        UsageError: no run folder, or an option that would make it another run.
    """
    other = sorted(overrides.keys() - CHANGEABLE)
    if other:
        raise UsageError(f"--{other[0]} would make it another run; --resume takes {', '.join(sorted(CHANGEABLE))}")
    path = Path(run) / "recipe.yaml"
    if not path.is_file():
        raise UsageError(f"--resume {run} is no run folder: it has no recipe.yaml")
    return Path(run).resolve().name, load_recipe(str(path), overrides)


def prepare(
    recipe: Recipe,
    name: str,
    out: str | None,
    *,
    init: str | None = None,
    resume: str | None = None,
    progress: bool = True,
    replicas: Replicas | None = None,
) -> tuple[Trainer, Path]:
    """Open the images, build the network and the run folder; nothing is written before all of the input is good."""
    replicas = replicas or Replicas()
    pick_device(recipe.train.device)
    source = open_images(recipe)
    recipe.data.source = absolute(recipe.data.source)  # the run must find its images from any folder
    checkpoint, told = find_checkpoint(Path(resume) / CHECKPOINTS) if resume is not None else (None, [])
    torch.manual_seed(recipe.train.seed)
    model = build_network(recipe, source.classes)
    if init is not None:
        say(replicas, initialize(model, init))
    freeze(model, recipe.optim.frozen)
    set_checkpointing(model, recipe.train.activation_checkpointing)
    if replicas.world > 1:  # the same weights everywhere, other dropout masks
        torch.manual_seed(recipe.train.seed + 1_000_003 * (replicas.rank + 1))
    set_sizes(recipe, model)
    task = build_task(recipe, source, replicas.share)
    folder = Path(resume) if resume is not None else main_makes_folder(replicas, name, out)
    trainer = Trainer(
        model,
        task,
        Run(
            folder,
            describe(recipe, source.classes),
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
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
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


def stopped(summary: Summary, folder: Path) -> str:
    """The end of a run that was asked to stop."""
    return f"stopped at step {summary.steps} and saved it\nnext: normfree train --resume {folder}"


def draw_film(folder: Path) -> None:
    """The film strip of a run, as far as it got; a film that a full disk cut off must not hide why the run ended."""
    with contextlib.suppress(UsageError, OSError):
        plot_film(read_film(folder / FILM)).savefig(folder / STRIP)


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


def report(summary: Summary, folder: Path, trainer: Trainer) -> str:
    """The end of a run in a few lines."""
    last, score = summary.last, trainer.task.score
    averaged = f"ema_{score}" in last
    key = f"ema_{score}" if averaged else score
    lines = [
        f"{trainer.task.score_label} {last[key]:.2%}"
        + (f" with averaged weights ({last[score]:.2%} without)" if averaged else "")
        + f", best {summary.best[key]:.2%} at epoch {summary.best['epoch']:g}",
        f"{summary.steps} steps in {summary.train_seconds:.1f} s ({summary.seconds:.1f} s with evaluations)",
    ]
    if summary.unreadable:
        lines.append(f"{len(summary.unreadable)} unreadable images were skipped")
    plot_curves(folder, score)
    places = dict(
        recipe="recipe.yaml", metrics="metrics.jsonl", curves="curves.png", weights="checkpoints/last, checkpoints/best"
    )
    if (folder / STRIP).is_file():
        places["signal"] = f"{STRIP}, {FILM}"
    lines += [
        f"  {what:8} {', '.join(str(folder / part) for part in where.split(', '))}" for what, where in places.items()
    ]
    examples = folder / "examples"
    lines += [f"next: normfree eval {folder}", f"      normfree report {folder}"]
    lines.append(f"      normfree predict {folder} {examples if examples.is_dir() else 'IMAGE_OR_FOLDER ...'}")
    return "\n".join(lines)


def _default_recipe(source: object) -> str:
    kind = source.partition(":")[0] if isinstance(source, str) else ""
    return RECIPE_OF.get(kind, DEFAULT)
