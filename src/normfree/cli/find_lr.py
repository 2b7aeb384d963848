"""``normfree find-lr``."""

import argparse
import re
import shlex
from collections.abc import Sequence

from ..errors import UsageError
from ..runs.find_lr import PICTURE, TABLE, FoundRate, find_lr
from ..training.lr_range import below
from ..words import tell
from .parser import Parser
from .train_options import add_training, parse

OWN = ("--rates", "--steps", "--out")  # options of this command, which `normfree train` does not take


def run(argv: Sequence[str]) -> int:
    """Test learning rates, and suggest one."""
    options, overrides = parse(argv, _parser())
    found = find_lr(
        options.recipe,
        overrides,
        out=options.out,
        init=options.init,
        rates=None if options.rates is None else _rates(options.rates),
        steps=options.steps,
        progress=not options.quiet,
    )
    tell(*_told(found, argv))
    return 0


def _rates(text: str) -> tuple[float, float]:
    parts = re.fullmatch(r"([^.].*?)\.\.(.+)", text)
    try:
        lowest, highest = (float(part) for part in (parts[1], parts[2])) if parts else (0.0, 0.0)
    except ValueError:
        lowest = highest = 0.0
    if not 0 < lowest < highest:
        raise UsageError(f"--rates (={text!r}) must be two rising learning rates above 0, such as 0.001..10")
    return lowest, highest


def _told(found: FoundRate, argv: Sequence[str]) -> list[str]:
    """The suggestion, where it comes from, and how to use it."""
    lowest = min(found.rows, key=lambda row: row.smoothed)
    setting = f"{found.setting:.2g}"
    factor = below(found.rows)
    part = "the rate" if factor == 1 else f"1/{factor:g} of the rate"
    scaled = "" if setting == f"{found.lr:.2g}" else f", which is {found.lr:.2g} for this batch"
    return [
        f"suggestion: --lr {setting}{scaled}",
        f"the rule: {part} of the lowest smoothed loss ({lowest.smoothed:.3g} at {lowest.lr:.3g}); "
        f"the recipe's own rate is {found.own:.3g}",
        f"  table    {found.folder / TABLE}",
        f"  picture  {found.folder / PICTURE}",
        f"next: {shlex.join(['normfree', 'train', *_of_training(argv), '--lr', setting])}",
    ]


def _of_training(argv: Sequence[str]) -> list[str]:
    """The arguments that `normfree train` takes as well, without a learning rate."""
    rest, kept = list(argv), list[str]()
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if name in (*OWN, "--lr", "--optim.lr"):
            if not equals:
                rest.pop(0)
        elif word not in ("--quiet", "--traceback"):
            kept.append(word)
    return kept


def _parser() -> Parser:
    parser = Parser(
        "find-lr",
        usage="normfree find-lr [IMAGES] [options]",
        description="The learning rate range test: the rate rises from step to step, and a rate is suggested from the "
        "loss.\nWhat is trained is said as for normfree train.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_training(parser)
    test = parser.add_argument_group("the test")
    test.add_argument(
        "--rates",
        metavar="A..B",
        help="lowest and highest learning rate (default: 0.001 and 100 times the recipe's peak)",
    )
    test.add_argument(
        "--steps", type=int, metavar="N", help="steps (default: an epoch, but at least 200 and at most 1,000)"
    )
    test.add_argument("--out", metavar="FOLDER", help="the folder to write (default: runs/RECIPE-find-lr, numbered)")
    test.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(resume=None, warm_restart=False)
    return parser
