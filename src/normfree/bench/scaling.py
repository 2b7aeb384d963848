"""How time and memory of a training step grow with the batch, the images' size and the depth of the network."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..models import create_model
from ..models.complexity import count_macs
from ..spp.plot import new_figure
from .step import Measuring, image_batch, memory_format, step_memory, training_step
from .timing import ProgressBar, alternate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES, SIZES = (1, 2, 4, 8, 16, 32), (96, 128, 160, 192, 224, 256, 320)
DEPTHS = tuple(f"nfnet_f{i}" for i in range(7))


@dataclass(frozen=True)
class Point:
    """One network, batch and size.

    Attributes:
        series: "batch", "size" or "depth": what grows.
        macs: multiply-adds of the forward pass, whole batch.
        seconds: of a whole step, median.
        kept: bytes that the forward pass keeps for the backward pass, whole batch.
        most: bytes at most beside weights, momentum and average, gradients included.
    """

    series: str
    model: str
    batch: int
    size: int
    params: int
    macs: int
    seconds: float
    kept: int
    most: int


@dataclass(frozen=True)
class Line:
    """A quantity as constant + slope * multiply-adds, fitted to relative errors.

    Attributes:
        worst: the largest deviation of a point from the line, relative to the line.
    """

    constant: float
    slope: float
    worst: float

    def at(self, macs: float) -> float:
        return self.constant + self.slope * macs


def grid(series: str, model: str, batch: int, size: int) -> list[tuple[str, int, int]]:
    """(model, batch, size) of each point of a series; the other two are as given."""
    return {
        "batch": [(model, count, size) for count in BATCHES],
        "size": [(model, batch, side) for side in SIZES],
        "depth": [(name, batch, size) for name in DEPTHS],
    }[series]


def measure(
    series: str,
    points: Sequence[tuple[str, int, int]],
    *,
    rounds: int,
    precision: str = "float32",
    device: str = "cpu",
    channels_last: bool = True,
    started: Callable[[str, int, int], None] = lambda model, batch, size: None,
    progress: ProgressBar = iter,
) -> Iterator[Point]:
    """Measure the points one after the other.

    Raises:
        RunFailed: a network cannot be trained so; it is named.
    """
    for name, count, size in points:
        started(name, count, size)
        torch.manual_seed(0)
        with Measuring(name, count, size):
            model = create_model(name).train().to(device).to(memory_format=memory_format(channels_last))
            batch = image_batch(count, size, device=device, channels_last=channels_last)
            kept, most = step_memory(model, batch, precision)
            step = training_step(model, batch, precision=precision)
            seconds = alternate({"": step}, rounds, device=device, warmup=1, progress=progress)[""].median
        with torch.device("meta"):
            macs = count * count_macs(create_model(name), (3, size, size))
        params = sum(p.numel() for p in model.parameters())
        yield Point(series, name, count, size, params, macs, seconds, kept, most)


def fit(macs: Sequence[float], values: Sequence[float]) -> Line:
    """The line with the smallest relative errors through at least two points."""
    x, y = np.asarray(macs, float), np.asarray(values, float)
    rows = np.stack([1 / y, x / y], 1)
    scale = np.abs(rows).max(0)  # multiply-adds are 1e10 times the constant's column
    constant, slope = np.linalg.lstsq(rows / scale, np.ones(len(x)), rcond=None)[0] / scale
    line = constant + slope * x
    return Line(float(constant), float(slope), float(np.abs(y / line - 1).max()))


def plot(points: Sequence[Point]) -> "Figure":
    """Time and memory over multiply-adds, a column for each series, dashed the lines of :func:`fit`."""
    series = list(dict.fromkeys(point.series for point in points))
    figure = new_figure(5 * len(series), 7.6)
    panels = figure.subplots(2, len(series), squeeze=False)
    for column, name in enumerate(series):
        some = [point for point in points if point.series == name]
        macs = [point.macs / 1e9 for point in some]
        for axes, values, unit in (
            (panels[0][column], [point.seconds for point in some], "seconds per step"),
            (panels[1][column], [point.kept / 2**30 for point in some], "GiB kept for the backward pass"),
        ):
            axes.plot(macs, values, "o", color="#1f77b4")
            title = _grows(name, some)
            if len(some) > 1:
                line = fit(macs, values)
                axes.plot(macs, [line.at(x) for x in macs], "--", color="#7f7f7f", lw=1)
                title += f"\nlargest distance from the line {line.worst:.0%}"
            axes.set_title(title, fontsize=10)
            for x, y, point in zip(macs, values, some, strict=True):
                axes.annotate(_label(point), (x, y), textcoords="offset points", xytext=(5, -9), fontsize=8)
            ends = dict(xlim=(0, 1.13 * max(macs)), ylim=(0, 1.08 * max(values)))  # room for the last label
            axes.set(xlabel="billion multiply-adds of the forward pass", ylabel=unit, **ends)
            axes.grid(alpha=0.25)
    return figure


def _grows(series: str, points: Sequence[Point]) -> str:
    first = points[0]
    fixed = dict(model=first.model, batch=f"batch {first.batch}", size=f"{first.size} px")
    fixed.pop("model" if series == "depth" else series)
    return f"{series} ({', '.join(fixed.values())})"


def _label(point: Point) -> str:
    return {"batch": str(point.batch), "size": f"{point.size} px", "depth": point.model.rpartition("_")[2].upper()}[
        point.series
    ]


def write(points: Sequence[Point], path: str | Path) -> None:
    """A CSV file with a row for each point."""
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)
