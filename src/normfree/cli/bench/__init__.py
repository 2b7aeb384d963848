"""``normfree bench``: a measurement per file."""

import argparse
import importlib
from collections.abc import Sequence

from ..parser import Parser
from .options import WHAT


def run(argv: Sequence[str]) -> int:
    """Measure on this machine."""
    what = argv[0] if argv else None
    if what in WHAT:
        return importlib.import_module(f".{what}", __package__).run(argv[1:])
    lines = "\n".join(f"  {name:8} {text}" for name, text in WHAT.items())
    parser = Parser(
        "bench",
        usage="normfree bench WHAT [options]",
        description=f"Measure training on this machine.\n\nWHAT is one of\n{lines}\n\n"
        "normfree bench WHAT --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="WHAT", choices=WHAT, help=argparse.SUPPRESS)
    parser.parse_args(list(argv))
    return 0  # --help has been printed
