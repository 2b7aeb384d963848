"""``normfree train``."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data import Source, open_source
from ..data.sources import ArraySplit
from ..errors import UsageError
from ..recipes import DEFAULT, Recipe, dump_recipe, load_recipe
from ..spp import Film, plot_film, read_film
from ..tasks import Classification
from ..training import Run, Summary, Trainer, new_folder, pick_device, plot_curves
from .main import Parser
from .options import fields_help, parse_overrides
from .trained import describe, initialize

FILM, STRIP, PROBE = "spp.jsonl", "spp.png", 32  # recorded signals, their picture, images that are shown each time
FOLDER_RECIPE = "folder"  # what images of one's own are trained with unless a recipe is named


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
        "--recipe", help=f"name or YAML file (default: {DEFAULT}, or {FOLDER_RECIPE} with --data imagefolder:...)"
    )
    parser.add_argument(
        "--data", metavar="SOURCE", help="digits, or imagefolder:PATH with PATH/train/CLASS/* and PATH/val/CLASS/*"
    )
    parser.add_argument("--model", metavar="NAME", help="short for --model.name")
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/RECIPE, numbered if it exists)")
    parser.add_argument(
        "--init", metavar="WEIGHTS", help="start from a run folder, a .safetensors file or the authors' .npz"
    )
    parser.add_argument(
        "--spp-every",
        type=int,
        metavar="N",
        help="record the signal propagation plot every N steps into the run folder, and draw a film strip",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options, rest = parser.parse_known_args(list(argv))
    overrides = parse_overrides(rest)
    if options.data is not None:
        overrides["data.source"] = options.data
    if options.model is not None:
        overrides["model.name"] = options.model
    if options.spp_every is not None:
        overrides["train.spp_every"] = options.spp_every
    recipe_name = options.recipe or _default_recipe(overrides.get("data.source"))
    recipe = load_recipe(recipe_name, overrides)
    trainer, folder = prepare(
        recipe, Path(recipe_name).stem, options.out, init=options.init, progress=not options.quiet
    )
    try:
        summary = trainer.fit()
    finally:
        draw_film(folder)
    print(report(summary, folder, trainer))
    return 0


def prepare(
    recipe: Recipe, name: str, out: str | None, *, init: str | None = None, progress: bool = True
) -> tuple[Trainer, Path]:
    """Open the images, build the network and the run folder; nothing is written before all of the input is good."""
    pick_device(recipe.train.device)
    source = open_source(recipe.data.source, recipe.data.channels)
    if recipe.data.source.startswith("imagefolder:"):  # the run must find its images from any folder
        recipe.data.source = f"imagefolder:{Path(recipe.data.source.partition(':')[2]).expanduser().resolve()}"
    torch.manual_seed(recipe.train.seed)
    model = recipe.model.build(num_classes=len(source.classes), in_chans=recipe.data.channels)
    if init is not None:
        print(initialize(model, init), file=sys.stderr)
    recipe.data.image_size = recipe.data.image_size or model.default_cfg["input_size"][-1]
    recipe.data.test_size = recipe.data.test_size or model.default_cfg["test_input_size"][-1]
    task = Classification(
        source,
        recipe.task,
        recipe.data,
        image_size=recipe.data.image_size,
        test_size=recipe.data.test_size,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
    )
    folder = new_folder(name, out)
    trainer = Trainer(
        model,
        task,
        Run(folder, describe(recipe, source.classes)),
        train=recipe.train,
        optim=recipe.optim,
        max_unreadable=recipe.data.max_unreadable,
        progress=progress,
    )
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    write_examples(source, folder / "examples")
    if recipe.train.spp_every is not None:
        trainer.watch = Film(
            model, probe(task).to(trainer.device), recipe.train.spp_every, folder / FILM, last=trainer.total_steps
        )
    params = sum(p.numel() for p in model.parameters())
    print(
        f"{name}: {recipe.model.name} ({params / 1e6:.2f} M parameters) on {recipe.data.source}: "
        f"{len(source.train)} training and {len(source.test)} test images of {len(source.classes)} classes; "
        f"{trainer.total_steps} steps of {recipe.train.batch_size} on {trainer.device}; into {folder}",
        file=sys.stderr,
    )
    return trainer, folder


def draw_film(folder: Path) -> None:
    """The film strip of a run, as far as it got; a film that a full disk cut off must not hide why the run ended."""
    with contextlib.suppress(UsageError, OSError):
        plot_film(read_film(folder / FILM)).savefig(folder / STRIP)


def probe(task: Classification) -> Tensor:
    """The first readable test images; drawn without touching the random state that training goes on with."""
    with torch.random.fork_rng(devices=[]):
        for batch in task.test:
            if len(batch):
                return batch.images[:PROBE]
    raise UsageError("train.spp_every needs a readable test image, and there is none")


def write_examples(source: Source, folder: Path, count: int = 10) -> None:
    """A few test images of an embedded set as PNG files named by their label, to try ``normfree predict`` with."""
    if not isinstance(source.test, ArraySplit):
        return
    folder.mkdir()
    for index in range(count):
        label = source.classes[source.test.label(index)]
        pixels = source.test.image(index).permute(1, 2, 0).squeeze(2).numpy()
        Image.fromarray(pixels).save(folder / f"test{index}_label{label}.png")


def report(summary: Summary, folder: Path, trainer: Trainer) -> str:
    """The end of a run in a few lines."""
    last, score = summary.last, trainer.task.score
    averaged = f"ema_{score}" in last
    key = f"ema_{score}" if averaged else score
    lines = [
        f"test accuracy {last[key]:.2%}"
        + (f" with averaged weights ({last[score]:.2%} without)" if averaged else "")
        + f", best {summary.best[key]:.2%} at epoch {summary.best['epoch']:g}",
        f"{summary.steps} steps in {summary.train_seconds:.1f} s ({summary.seconds:.1f} s with evaluations)",
    ]
    if summary.unreadable:
        lines.append(f"{len(summary.unreadable)} unreadable images were skipped")
    plot_curves(folder)
    places = dict(
        recipe="recipe.yaml", metrics="metrics.jsonl", curves="curves.png", weights="checkpoints/last, checkpoints/best"
    )
    if (folder / STRIP).is_file():
        places["signal"] = f"{STRIP}, {FILM}"
    lines += [
        f"  {what:8} {', '.join(str(folder / part) for part in where.split(', '))}" for what, where in places.items()
    ]
    examples = folder / "examples"
    lines.append(f"next: normfree eval {folder}")
    lines.append(f"      normfree predict {folder} {examples if examples.is_dir() else 'IMAGE_OR_FOLDER ...'}")
    return "\n".join(lines)


def _default_recipe(source: object) -> str:
    if source is None or not isinstance(source, str) or not source.startswith("imagefolder"):
        return DEFAULT
    return FOLDER_RECIPE
