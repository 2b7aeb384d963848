"""One HTML page about a training run, from the files in its folder and what the caller adds."""

from .axes import percent
from .examples import Confusion, Example
from .head import About
from .markup import Missing
from .mistakes import Mistake, Mistakes
from .page import Report, write_page
from .run_files import RunFiles, read_run
from .signal import Recorded

__all__ = [
    "About",
    "Confusion",
    "Example",
    "Missing",
    "Mistake",
    "Mistakes",
    "Recorded",
    "Report",
    "RunFiles",
    "percent",
    "read_run",
    "write_page",
]
