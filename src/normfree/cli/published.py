"""``normfree published``."""

from collections.abc import Sequence

from ..errors import RunFailed
from ..report.published import FIGURES, draw_published, published_figure
from ..runs.published import point_of
from ..words import counted, tell
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Draw published accuracies, and those of runs beside them."""
    parser = Parser("published", description="Draw a figure of published accuracies with those of your runs beside.")
    parser.add_argument("figure", help=f"one of {', '.join(FIGURES)}")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders of classification")
    parser.add_argument("--out", metavar="FILE", help="picture, .png, .svg or .pdf; default: FIGURE.png")
    options = parser.parse_args(list(argv))
    figure = published_figure(options.figure)
    own = [point_of(folder, figure.axis) for folder in options.runs]
    out = options.out or f"{options.figure}.png"
    try:
        draw_published(figure, own).savefig(out)
    except (OSError, ValueError) as error:  # of a format that matplotlib does not know
        raise RunFailed(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error
    points = sum(map(len, figure.lines.values()))
    tell(f"{figure.title}: {counted(points, 'published point')}, {counted(len(own), 'run')}; picture {out}")
    return 0
