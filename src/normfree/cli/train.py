"""``normfree train``."""

import argparse
import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..recipes import DEFAULT, load_recipe
from ..runs import prepare, resumed_recipe, run_to_go_on_with
from ..runs.prepare import FILM
from ..spp import plot_film, read_film
from ..training import Summary, Trainer, keep_freed_memory, plot_curves, replicas
from .main import Parser
from .options import fields_help, parse_overrides
from .trained import initialize

STRIP = "spp.png"  # the picture of the recorded signals
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
            init=None if options.init is None else functools.partial(initialize, path=options.init),
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


def stopped(summary: Summary, folder: Path) -> str:
    """The end of a run that was asked to stop."""
    return f"stopped at step {summary.steps} and saved it\nnext: normfree train --resume {folder}"


def draw_film(folder: Path) -> None:
    """The film strip of a run, as far as it got; a film that a full disk cut off must not hide why the run ended."""
    with contextlib.suppress(UsageError, OSError):
        plot_film(read_film(folder / FILM)).savefig(folder / STRIP)


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
    if remark := trainer.task.remark(last[key]):
        lines.insert(1, remark)
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
