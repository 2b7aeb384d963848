"""The options of ``normfree train``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.layouts import with_kind
from ..errors import UsageError
from ..recipes import DEFAULT, list_recipes
from ..runs.start import FOLDER_RECIPE
from ..words import shown
from .options import fields_help, parse_overrides, parse_value
from .parser import Parser

SAME = "the run of --out"  # --resume without a value
# short options of recipe fields
SHORT = {
    "epochs": ("train.epochs", "N", "passes over the training images"),
    "batch_size": ("train.batch_size", "N", "images per step"),
    "lr": ("optim.lr", "RATE", "peak learning rate, of the batch optim.lr_reference_batch if the recipe has that"),
    "micro_batch": ("train.micro_batch", "N|auto", "images per backward pass; the update is that of the whole batch"),
    "spp_every": ("train.spp_every", "N", "record the signal propagation plot every N steps, and draw a film strip"),
    "parallel": ("train.parallel", "ddp|fsdp", "how several processes share the network"),
}
NEW = ("recipe", "out", "init", "model")  # options of a new run


def parse(argv: Sequence[str], parser: Parser | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and the fields of the recipe that they override.

    Args:
        parser: of another command that takes these options, with :func:`add_training`; None: of ``normfree train``.

    Raises:
        UsageError: an unknown option, or options that do not go together.
    """
    options, rest = (parser or _parser()).parse_known_args(list(argv))
    words = list[str]()
    overrides = parse_overrides(rest, words)
    if words:
        options.data = _images(words, options.data)
    if options.data is not None:
        overrides["data.source"] = options.data
    if isinstance(overrides.get("data.source"), str):
        overrides["data.source"] = with_kind(overrides["data.source"])
    if options.model is not None:
        overrides["model.name"] = options.model
    for name, (path, _, _) in SHORT.items():
        text = getattr(options, name)
        if text is not None:
            if path in overrides:
                raise UsageError(f"--{name.replace('_', '-')} and --{path} say the same; give one of them")
            overrides[path] = parse_value(text, f"--{name.replace('_', '-')}", path)
    if None not in (overrides.get("train.epochs"), overrides.get("train.steps")):
        raise UsageError("--train.epochs and --train.steps both say how long the run is; give one of them")
    if options.resume not in (None, SAME):
        for flag in NEW:
            if getattr(options, flag) is not None:
                raise UsageError(f"--{flag} is for new runs; --resume {options.resume} goes on with that run's")
    if options.warm_restart and options.resume in (None, SAME):
        raise UsageError("--warm-restart needs --resume RUN, the run to go on with, and its new length: --epochs N")
    return options, overrides


def _images(words: Sequence[str], data: str | None) -> str:
    """The images that are given without ``--data``: one folder, or one source such as "csv:labels.csv".

    Raises:
        UsageError: there are several, ``--data`` is given too, or it does not exist.
    """
    first = words[0]
    if first.startswith("-"):
        raise UsageError(f"argument {first!r} is unexpected; options look like --optim.lr 0.2")
    if len(words) > 1:
        raise UsageError(f"{shown(words[1])} is unexpected: the images are {shown(first)}; give one folder of them")
    if data is not None:
        raise UsageError(f"{shown(first)} and --data {shown(data)} both say which images; give one of them")
    if first in list_recipes() and first != DEFAULT and not Path(first).exists():
        raise UsageError(f"{first} is a recipe, not a folder of images; --recipe {first} takes it")
    if ":" not in first and first != DEFAULT and not Path(first).expanduser().exists():
        raise UsageError(
            f"{shown(first)} does not exist; normfree train takes a folder of images, or what --data takes"
        )
    return first


def add_training(parser: Parser) -> None:
    """Add the options that say what is trained, and how."""
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--recipe", metavar="NAME", help=f"name or YAML file (default: {DEFAULT}, or {FOLDER_RECIPE} with other --data)"
    )
    what.add_argument(
        "--data",
        metavar="SOURCE",
        help="a folder, or KIND:WHERE (default: the recipe's). Classes: digits, imagefolder:PATH with "
        "PATH/train/CLASS/* and PATH/val/CLASS/*, csv:FILE (a row per image), wds:FOLDER or wds:TRAIN,VAL (tar "
        "shards), arrays:FILE.npz, torchvision:NAME (such as CIFAR10), hf:NAME (of the Hugging Face hub), "
        "synthetic:N. Segmentation and depth: scenes:N, voc:PATH, masks:PATH, nyu:FILE.mat, depth:PATH. Detection: "
        "scenes:N, coco:PATH. Of a folder alone, its layout says which it is",
    )
    what.add_argument("--model", metavar="NAME", help="short for --model.name (default: the recipe's)")
    what.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="start from a run folder, a file of weights (.safetensors, .pth, .ckpt, .npz, ...), or pretrained:NAME "
        "(published weights); without --model their network is built",
    )
    how = parser.add_argument_group("how (default: the recipe's)")
    for name, (path, metavar, text) in SHORT.items():
        how.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=f"{text}; short for --{path}")
    parser.epilog = (
        "Every field of the recipe is an option. Values are YAML; in brackets: the type, and the value where "
        f"the recipe says\nnothing.\n{fields_help()}\n\nnormfree recipes lists the recipes."
    )


def _parser() -> Parser:
    parser = Parser(
        "train",
        usage="normfree train [IMAGES] [options]",
        description="Train a network. IMAGES is a folder with a folder of images for each class, or what --data takes; "
        f"length, batch,\nlearning rate and size follow from it. Without arguments: recipe {DEFAULT}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_training(parser)
    where = parser.add_argument_group("where, and going on")
    where.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/RECIPE, numbered if it exists)")
    where.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const=SAME,
        help="go on with a run from its last checkpoint, as if it had not stopped; with --epochs N to another length; "
        "without RUN, with the one of --out, or start it: one command for a scheduler that may restart it",
    )
    where.add_argument(
        "--warm-restart",
        action="store_true",
        help="with --resume RUN --epochs N: the schedule of the learning rate begins again at its peak",
    )
    where.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser
