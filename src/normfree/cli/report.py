"""``normfree report``."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import whole_file
from ..report import read_run
from ..runs.outputs import check_output
from ..runs.report import page
from ..words import tell
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Write one HTML page about a training run."""
    options = _parser().parse_args(list(argv))
    for name in ("examples", "workers"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name} (={getattr(options, name)}) must be at least 0")
    folder = Path(options.run)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no run folder; a run folder is what `normfree train` printed")
    files = read_run(folder)
    out = Path(options.out) if options.out else folder / "report.html"
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    check_output("--out", out, (".html", ".htm"))
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: folder {out.parent} does not exist")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"--out {out}: folder {out.parent} cannot be written to")
    examples = None if options.no_examples else options.examples
    html = page(files, examples=examples, workers=options.workers, device=options.device)
    with whole_file(out) as part:
        part.write_bytes(html)
    tell(f"report {out} ({len(html) / 1000:,.0f} kB)")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "report",
        description="Write one HTML page about a training run: curves, clipping by layer, signal propagation, and the "
        "test images that the network gets wrong, or what it says about each pixel of some. It needs nothing else and "
        "opens from disk.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, finished or not")
    parser.add_argument("--out", metavar="FILE", help="the page; default: RUN/report.html")
    parser.add_argument(
        "--examples",
        type=int,
        default=24,
        metavar="N",
        help="pictures of images it gets wrong, or of any where every pixel has an answer; default: 24",
    )
    parser.add_argument("--no-examples", action="store_true", help="do not run the network over the test images")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images; default: 0")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    return parser
