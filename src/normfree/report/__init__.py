"""One HTML page about a training run, from the files in its folder and what the caller adds."""

from .axes import percent
from .examples import Confusion, Example
from .head import About
from .markup import Missing
from .mistakes import Mistake, Mistakes
from .overlays import Colors, Overlay, Overlays, Range, Table
from .page import Report, write_page
from .run_files import RunFiles, read_run
from .signal import Recorded

__all__ = [
    "About",
    "Colors",
    "Confusion",
    "Example",
    "Missing",
    "Mistake",
    "Mistakes",
    "Overlay",
    "Overlays",
    "Range",
    "Recorded",
    "Report",
    "RunFiles",
    "Table",
    "percent",
    "read_run",
    "write_page",
]
