"""The pictures in a run's folder: its curves, and the strip of its recorded signals."""

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
    """The film strip of a run, as far as it got; none where nothing was recorded, or a full disk cut the film off."""
    with _drawing(folder / STRIP), contextlib.suppress(UsageError):
        strip = plot_film(read_film(folder / FILM))
        with whole_file(folder / STRIP) as part:
            strip.savefig(part, format="png")


@contextlib.contextmanager
def _drawing(picture: Path) -> Iterator[None]:
    """A picture is drawn: what goes wrong is a warning, whatever it is, and hides neither a run nor why it ended."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, RunFailed | UsageError) else f"{type(error).__name__}: {error}"
        tell(f"warning: {picture} is not drawn: {' '.join(reason.split())}", file=sys.stderr)


def draw_curves(folder: Path, score: str) -> None:
    """Loss and score of a run over its steps.

    Args:
        score: of the run's task, such as "top1".
    """
    with _drawing(folder / CURVES):
        plot_curves(folder, score)
