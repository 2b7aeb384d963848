"""A signal propagation plot every so many training steps, as a file of lines and as a film strip."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import UsageError
from ..files import append_line, read_lines, regular
from .frame import Frame
from .plot import COLORS, LOG_RANGE, PANELS, new_figure
from .record import record
from .result import SPP
from .spectra import Spectrum, spectra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAMES = 8  # of a strip, chosen evenly from what was recorded


class Film:
    """Records a network again and again on the same inputs, appending to ``path`` (JSON lines).

    Args:
        model: the network in training; ``record`` leaves it as it is.
        inputs: of every recording.
        every: steps between recordings; step ``last`` is always recorded.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, every: int, path: str | Path, last: int | None = None):
        if every < 1:
            raise UsageError(f"steps between recordings (={every}) must be at least 1")
        self.model, self.inputs, self.every, self.path, self.last = model, inputs, every, Path(path), last

    def __call__(self, step: int) -> None:
        """Record if ``step`` is due."""
        if step % self.every == 0 or step == self.last:
            frame = Frame(step, record(self.model, self.inputs), spectra(self.model))
            line = dict(step=step, spp=frame.spp.to_dict(), spectra=[dataclasses.asdict(s) for s in frame.spectra])
            append_line(self.path, line)


def frame_of(line: dict[str, Any]) -> Frame:
    """A line of a film's file.

    Raises:
        UsageError: it is no such line.
    """
    try:
        return Frame(line["step"], SPP.from_dict(line["spp"]), [Spectrum(**s) for s in line["spectra"]])
    except (TypeError, KeyError) as error:
        raise UsageError(f"not a frame of a film: {error}") from error


def read_film(path: str | Path) -> list[Frame]:
    """The frames of a file of :class:`Film`; an incomplete line is left out.

    >>> class Residual(nn.Conv2d):
    ...     def forward(self, x):
    ...         return x + super().forward(x)
    >>> path = Path(tempfile.mkdtemp()) / "spp.jsonl"
    >>> film = Film(Residual(4, 4, 3, padding=1), torch.randn(2, 4, 8, 8), every=10, path=path)
    >>> film(0)
    >>> [frame.step for frame in read_film(path)]
    [0]

    Raises:
        UsageError: no such file, or another kind of file.
    """
    try:
        lines, unreadable = read_lines(path)
        if unreadable and not lines:
            raise UsageError("its lines are not JSON")
        return [frame_of(line) for line in lines]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except UsageError as error:
        raise UsageError(f"{path} is not a file of recorded signal propagation plots: {error}") from error


def read_first(path: str | Path) -> Frame | None:
    """The first frame of such a file, even if later lines are damaged; None if there is none.

    >>> class Residual(nn.Conv2d):
    ...     def forward(self, x):
    ...         return x + super().forward(x)
    >>> path = Path(tempfile.mkdtemp()) / "spp.jsonl"
    >>> film = Film(Residual(4, 4, 3, padding=1), torch.randn(2, 4, 8, 8), every=10, path=path)
    >>> film(0)
    >>> film(10)
    >>> read_first(path).step
    0
    """
    try:
        with regular(Path(path)).open() as file:
            return frame_of(json.loads(file.readline()))
    except (OSError, ValueError, UsageError):
        return None


def plot_film(frames: Sequence[Frame]) -> "Figure":
    """Columns are steps, rows the three statistics over block depth and the weights' condition numbers over layers.

    >>> class Residual(nn.Conv2d):
    ...     def forward(self, x):
    ...         return x + super().forward(x)
    >>> path = Path(tempfile.mkdtemp()) / "spp.jsonl"
    >>> film = Film(Residual(4, 4, 3, padding=1), torch.randn(2, 4, 8, 8), every=10, path=path)
    >>> film(0)
    >>> film(10)
    >>> figure = plot_film(read_film(path))
    """
    if not frames:
        raise UsageError("a film needs at least one frame")
    count = min(FRAMES, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count)]
    figure = new_figure(1.2 + 1.9 * count, 8)
    rows = [(text, [_known(getattr(frame.spp, field)) for frame in chosen]) for field, text in PANELS]
    rows.append(("condition number of weights", [[s.condition for s in frame.spectra] for frame in chosen]))
    grid = figure.subplots(len(rows), count, squeeze=False)
    for number, (axes_row, (text, curves)) in enumerate(zip(grid, rows, strict=True)):
        limits = _limits(curves)
        for column, (axes, curve) in enumerate(zip(axes_row, curves, strict=True)):
            axes.plot(range(1, len(curve) + 1), curve, ".-", color=COLORS[number], linewidth=1.1, markersize=3)
            axes.set(**limits)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
            axes.tick_params(labelsize=7, labelleft=column == 0)
            if column == 0:
                axes.set_ylabel(
                    text.replace("average channel ", "average\nchannel ").replace(" of ", "\nof "), fontsize=8
                )
            if number == 0:
                axes.set_title(f"step {chosen[column].step}", fontsize=9)
    for axes in figure.axes[-count:]:
        axes.set_xlabel("layer", fontsize=8)
    for axes in figure.axes[2 * count : 3 * count]:
        axes.set_xlabel("block depth", fontsize=8)
    return figure


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _limits(curves: list[list[float]]) -> dict[str, Any]:
    """One scale for all frames of a row."""
    values = [value for curve in curves for value in curve if math.isfinite(value) and value > 0]
    if not values:
        return {}
    if max(values) > LOG_RANGE * min(values):
        return dict(yscale="log", ylim=(0.7 * min(values), 1.4 * max(values)))
    return dict(ylim=(0, 1.08 * max(values)))
