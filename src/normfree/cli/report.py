"""``normfree report``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import whole_file
from ..report import RunFiles, read_run
from ..runs.comparison import comparison
from ..runs.outputs import check_output
from ..runs.report import page
from ..words import tell
from .parser import Parser

EXAMPLES = 24  # pictures


def run(argv: Sequence[str]) -> int:
    """Write one HTML page about a training run, or about several."""
    options = _parser().parse_args(list(argv))
    if len(options.run) > 1:
        return _several(options)
    for name in ("examples", "workers"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name} (={getattr(options, name)}) must be at least 0")
    files = _read(options.run[0])
    out = _checked(Path(options.out) if options.out else files.folder / "report.html")
    examples = None if options.no_examples else options.examples
    html = page(files, examples=examples, workers=options.workers, device=options.device)
    return _write(out, html)


def _several(options: argparse.Namespace) -> int:
    given = {"--no-examples": options.no_examples, "--examples": options.examples != EXAMPLES}
    given |= {"--workers": options.workers != 0, "--device": options.device != "auto"}
    if wrong := next((flag for flag, there in given.items() if there), None):
        raise UsageError(f"{wrong} is for the report of one run; of several runs no test images are shown")
    files = [_read(run) for run in options.run]
    out = _checked(Path(options.out or "comparison.html"))
    return _write(out, comparison(files))


def _read(run: str) -> RunFiles:
    if not Path(run).is_dir():
        raise UsageError(f"{run} is no run folder; a run folder is what `normfree train` printed")
    return read_run(Path(run))


def _checked(out: Path) -> Path:
    """The file of the page, if it can be written."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    check_output("--out", out, (".html", ".htm"))
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: folder {out.parent} does not exist")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"--out {out}: folder {out.parent} cannot be written to")
    return out


def _write(out: Path, html: bytes) -> int:
    with whole_file(out) as part:
        part.write_bytes(html)
    tell(f"report {out} ({len(html) / 1000:,.0f} kB)")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "report",
        usage="normfree report RUN [RUN ...] [options]",
        description="Write one HTML page about a training run: curves, clipping by layer, signal propagation, and the "
        "test images that the network gets wrong, or what it says about each pixel of some. It needs nothing else and "
        "opens from disk. Of several runs: the settings that differ, the scores, and the curves over one another.",
    )
    parser.add_argument("run", metavar="RUN", nargs="+", help="run folder, finished or not")
    parser.add_argument(
        "--out", metavar="FILE", help="the page; default: RUN/report.html, of several runs comparison.html"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=EXAMPLES,
        metavar="N",
        help="pictures of images it gets wrong, or of any where every pixel has an answer; default: 24",
    )
    parser.add_argument("--no-examples", action="store_true", help="do not run the network over the test images")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images; default: 0")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    return parser
