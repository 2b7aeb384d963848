"""``normfree study``."""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import studies
from ..data.layouts import with_kind
from ..errors import UsageError
from ..training import StopRequests
from ..words import counted, tell
from .options import parse_overrides
from .parser import Parser

LIST = "list"
FILES = dict(table="table.md", plot="plot.svg", rows="results.csv")


def run(argv: Sequence[str]) -> int:
    """List the studies, say what one costs, or run it."""
    arguments = list(argv)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    options, rest = _parser().parse_known_args(arguments)
    if name is None:
        raise UsageError(
            "normfree study needs the name of a study in front, or its file; `normfree study list` lists them"
        )
    if name == LIST:
        if rest:
            raise UsageError(f"argument {rest[0]!r} is unexpected; normfree study list takes none")
        return _list()
    overrides = parse_overrides(rest)
    if options.data is not None:
        overrides["data.source"] = with_kind(options.data)
    study = studies.load_study(name, overrides, scale=options.scale, seeds=_seeds(options.seeds), init=options.init)
    part = None if options.shard is None else studies.parse_part(options.shard)
    planned = studies.plan(study, download=not options.dry_run)
    out = options.out or studies.default_folder(study)
    tell(*studies.described(study, planned, whole=options.dry_run), flush=True)
    if options.dry_run:
        return 0
    again = f"`{shlex.join(['normfree', 'study', *argv])}` resumes it"
    stop = StopRequests()
    try:
        with stop.listening(signal.SIGTERM):
            outcome = studies.run(
                study,
                out,
                planned=planned,
                part=part,
                again=options.again,
                progress=not options.quiet and sys.stderr.isatty(),
                stop=stop,
                say=lambda line: tell(line, flush=True),
            )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{error or 'interrupted'}; {again}") from None
    tell(*_told(outcome, again))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "study",
        usage="normfree study NAME|FILE.yaml [options]\n       normfree study list",
        description="Train a recipe with several values of its fields and several seeds; write a table and a plot.\n"
        "The same command resumes it: finished runs are kept.",
        epilog="Every field of the recipe is an option as for `normfree train`, such as --train.epochs 3; it holds for "
        "all runs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=("small", "paper"), help="of a study that has both (default: small)")
    parser.add_argument("--data", metavar="SOURCE", help="images, as for `normfree train` (default: the study's)")
    parser.add_argument(
        "--seeds", metavar="N|LIST", help="how many seeds, or which: 3, or 0,1,7 (default: the study's)"
    )
    parser.add_argument(
        "--init", metavar="PATTERN", help="weights that each run starts from; {AXIS} and {seed} stand for its own"
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder of the study (default: studies/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="only list the runs and what they cost")
    parser.add_argument("--shard", metavar="K/N", help="run the K-th of N parts, 3/16; parts may share one --out")
    parser.add_argument(
        "--again", action="store_true", help="run those anew that were started with other settings than the study's"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _list() -> int:
    names = studies.list_studies()
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {studies.study_header(name)[0]}")
    print("\nnormfree study NAME --dry-run lists its runs and their cost; normfree study NAME runs it.")
    return 0


def _seeds(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(f"--seeds (={text!r}) must be how many, such as 3, or a list such as 0,1,7")
    numbers = [int(part) for part in parts]
    return numbers if len(numbers) > 1 else numbers[0]


def _told(outcome: studies.Outcome, again: str) -> list[str]:
    """The end of a study in a few lines."""
    statuses = [result.status for _, result in outcome.results.every()]
    told = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(sorted(statuses))]
    lines = [f"{counted(len(statuses), 'run')}: {', '.join(told)}"]
    lines += [f"  {what:5} {Path(outcome.folder) / name}" for what, name in FILES.items()]
    if outcome.elsewhere:
        lines.append(
            f"other processes are at {counted(len(outcome.elsewhere), 'run')}: {', '.join(outcome.elsewhere[:5])}"
        )
    if outcome.stopped:
        lines.append(f"stopped as asked; {again}")
    elif {"stopped", "waiting", "failed"} & set(statuses):
        lines.append(f"{again}")
    return lines
