"""One HTML page about a training run, or about several, from the files in its folder and what the caller adds."""

from .axes import percent
from .comparison import Compared, write_comparison
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
    "Compared",
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
    "write_comparison",
    "write_page",
]
