"""The pictures in a run's folder: its curves, and the film strip of its recorded signals."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import RunFailed, UsageError
from ..files import whole_file
from ..spp import plot_film, read_film
from ..training import plot_curves
from ..training.run import CURVES, FILM
from ..words import tell

STRIP = "spp.png"  # the picture of the recorded signals


def draw_film(folder: Path) -> None:
    """Draw the film strip of a run; none if nothing was recorded, or if the file is incomplete."""
    with drawing(folder / STRIP), contextlib.suppress(UsageError):
        strip = plot_film(read_film(folder / FILM))
        with whole_file(folder / STRIP) as part:
            strip.savefig(part, format="png")


@contextlib.contextmanager
def drawing(picture: Path) -> Iterator[None]:
    """Turn any error in drawing into a warning, so that it does not hide how a run ended."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, RunFailed | UsageError) else f"{type(error).__name__}: {error}"
        tell(f"warning: {picture} is not drawn: {' '.join(reason.split())}", file=sys.stderr)


def draw_curves(folder: Path, score: str) -> None:
    """Draw loss and score of a run over its steps.

    Args:
        score: of the run's task, such as "top1".
    """
    with drawing(folder / CURVES):
        plot_curves(folder, score)
