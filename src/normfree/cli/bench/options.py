"""Options and words that all measurements share."""

import argparse
import functools
import sys
from collections.abc import Sequence

from tqdm import tqdm

from ...bench import Samples
from ...bench.timing import ProgressBar
from ...errors import UsageError
from ...limits import MAX_INPUT_SIDE
from ...training import keep_freed_memory, pick_device
from ...words import tell
from ..parser import Parser

WHAT = {
    "step": "time and memory of a training step of networks, and of a forward pass",
    "tables": "the papers' tables of training speed: Normalizer-Free networks beside those with BatchNorm",
    "scaling": "time and memory of a step against batch, image size and depth, with a picture",
}
MOST_BATCH, MOST_ROUNDS = 65536, 10000


def add_common(parser: Parser, *, batch: int, size: int | None, rounds: int, compile_too: bool = True) -> None:
    """Options of every measurement, with its defaults."""
    parser.add_argument(
        "--batch-size",
        "--batch",
        dest="batch",
        type=int,
        default=batch,
        metavar="N",
        help=f"images per step; default: {batch}",
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"samples of each; default: {rounds}")
    add_machine(parser, size=size, compile_too=compile_too)


def add_machine(
    parser: Parser,
    *,
    size: int | None,
    precisions: Sequence[str] = ("float32", "bfloat16"),
    compile_too: bool = True,
) -> None:
    """Options of images, precision and device."""
    text = "the table's" if size is None else size
    parser.add_argument("--size", type=int, default=size, metavar="PX", help=f"side of the images; default: {text}")
    parser.add_argument("--precision", choices=precisions, default="float32", help="default: float32")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; default: auto")
    parser.add_argument("--contiguous", action="store_true", help="layout of the maps; default: channels last")
    if compile_too:
        parser.add_argument("--compile", action="store_true", help="forward and backward through torch.compile")


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """With device, layout and compilation as they are used.

    Raises:
        UsageError: a number out of range, or a device that is not there.
    """
    for name, most in (
        ("batch", MOST_BATCH),
        ("size", MAX_INPUT_SIDE),
        ("rounds", MOST_ROUNDS),
        ("steps", MOST_ROUNDS),
    ):
        value = getattr(options, name, None)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not 1 <= number <= most:
                raise UsageError(f"--{name} (={number}) must be at least 1 and at most {most}")
    options.device = pick_device(options.device, float64=True)
    keep_freed_memory()  # as in training
    options.channels_last = not options.contiguous
    options.compile = getattr(options, "compile", False)
    return options


def form(options: argparse.Namespace) -> str:
    """Layout and compilation in words."""
    return f"{'channels last' if options.channels_last else 'contiguous'}{', compiled' if options.compile else ''}"


def milliseconds(samples: Samples) -> str:
    """Two cells of a table: median, and smallest to largest."""
    low, high = samples.spread
    return f"{1e3 * samples.median:.0f} | {1e3 * low:.0f} to {1e3 * high:.0f}"


def say(what: str) -> None:
    """What is at work, where somebody watches."""
    if sys.stderr.isatty():
        tell(f"{what} ...", file=sys.stderr)


def rounds_bar(what: str = "rounds") -> ProgressBar:
    """A bar on standard error, where that is a terminal."""
    return functools.partial(tqdm, desc=what, unit="round", delay=2, leave=False, disable=None)
