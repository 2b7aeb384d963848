"""Heat maps of layers over steps: a picture with one pixel per cell that the page stretches, with text around it."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..words import counted
from .axes import Scale
from .charts import below
from .markup import Markup, tag

MAX_COLUMNS = 240
MAX_HEIGHT, ROW = 560, (10, 18)  # pixels: height of a map, if rows have their minimum; minimum and maximum of a row


@dataclass(frozen=True)
class Ramp:
    """Evenly spaced colours from 0 to 1, as "rrggbb", for light and for dark pages."""

    light: tuple[str, ...]
    dark: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """A matrix (layers, columns) whose columns stand for equal numbers of steps.

    Attributes:
        spans: the first and the last logged step that each column was made from.
        last: the last step.
    """

    values: np.ndarray
    spans: Sequence[tuple[int, int]]
    last: int


@dataclass(frozen=True)
class HeatMap:
    """A matrix of layers (rows) over steps (columns of equal width).

    Attributes:
        rows: names of the layers.
        columns: the values, nan where unknown.
        shades: the positions of the values on the ramp, 0 .. 1.
        ticks: (position on the ramp, label) for the legend.
        side: a number per row as text, shown at its end; ``heading`` is its title.
        kind: how tooltips write a value: "fraction" or "ratio".
        marked: position of the tick that is a threshold; None: no tick is.
    """

    title: str
    rows: Sequence[str]
    columns: Columns
    shades: np.ndarray
    ramp: Ramp
    ticks: Sequence[tuple[float, str]]
    side: Sequence[str]
    heading: str
    kind: str
    marked: float | None = None
    note: str = ""


def columns(steps: Sequence[int], rows: np.ndarray, pool: Callable[[np.ndarray], np.ndarray]) -> Columns:
    """Resample lines logged at any steps to columns of equal numbers of steps.

    A line stands for the steps since the line before it. With few lines, a column shows the line that stands for its
    middle; with many, it pools all lines that stand for any of its steps.

    Args:
        steps: steps of the lines, above 0 and increasing.
        rows: (lines, layers).
        pool: (lines, layers) to (layers,).
    """
    ends, begins = np.array(steps), np.array([0, *steps[:-1]])
    edges = np.round(np.linspace(0, steps[-1], MAX_COLUMNS + 1), 6)
    if len(steps) <= MAX_COLUMNS:
        first = np.searchsorted(ends, (edges[:-1] + edges[1:]) / 2)
        last = first + 1
    else:
        first = np.searchsorted(ends, edges[:-1], side="right")
        last = np.searchsorted(begins, edges[1:])
    pooled = np.stack([pool(rows[a:b]) for a, b in zip(first, last, strict=True)], axis=1)
    return Columns(pooled, [(steps[a], steps[b - 1]) for a, b in zip(first, last, strict=True)], steps[-1])


def draw_map(chart: HeatMap) -> Markup:
    """The heat map as a figure with its legend."""
    row = max(ROW[0], min(ROW[1], MAX_HEIGHT // len(chart.rows)))
    style = f"--row:{row}px;--rows:{len(chart.rows)}"
    groups = [name.rpartition(".")[0] or name for name in chart.rows]
    starts = [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]
    lines = [tag("u", style=f"top:{100 * i / len(groups):.3f}%") for i in starts]
    names = [tag("span", name, title=name) for name in chart.rows]
    alt = f"{chart.title}: {counted(len(chart.rows), 'layer')} up to step {chart.columns.last}"
    body = tag(
        "div",
        tag("div", names, class_="rows"),
        tag("div", _picture(chart, alt), lines, class_="field", data_map=_values(chart)),
        tag("div", [tag("span", value) for value in chart.side], class_="side"),
        tag("span"),
        below(Scale(0, chart.columns.last)),
        tag("span", chart.heading, class_="heading"),
        class_="map",
        style=style,
    )
    note = tag("p", chart.note, class_="note") if chart.note else None
    return tag("figure", tag("figcaption", tag("b", chart.title)), _legend(chart), body, note, class_="heat")


def _legend(chart: HeatMap) -> Markup:
    labels = [
        tag("span", label, style=f"left:{100 * place:.2f}%", class_="marked" if place == chart.marked else None)
        for place, label in chart.ticks
    ]
    bars = [
        tag("i", class_=f"bar {scheme}", style=f"background:linear-gradient(90deg,{_gradient(colors)})")
        for scheme, colors in (("light", chart.ramp.light), ("dark", chart.ramp.dark))
    ]
    line = [] if chart.marked is None else [tag("u", style=f"left:{100 * chart.marked:.2f}%")]
    return tag("div", bars, line, tag("div", labels, class_="below"), class_="scale")


def _gradient(colors: Sequence[str]) -> str:
    return ",".join(f"#{color}" for color in colors)


def _picture(chart: HeatMap, alt: str) -> Markup:
    """The picture in light and in dark colours; the browser shows the one for its colour scheme."""
    light, dark = (_png(chart.shades, colors) for colors in (chart.ramp.light, chart.ramp.dark))
    source = tag("source", srcset=dark, media="(prefers-color-scheme: dark)")
    return tag("picture", source, tag("img", src=light, alt=alt))


def _png(shades: np.ndarray, colors: Sequence[str]) -> str:
    """(rows, columns) of 0 .. 1 as a PNG data URL with a palette of 255 colours; nan is transparent."""
    index = np.where(np.isnan(shades), 255, np.round(np.nan_to_num(np.clip(shades, 0, 1)) * 254)).astype(np.uint8)
    image = Image.fromarray(index)
    image = Image.frombytes("P", image.size, image.tobytes())
    anchors = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in colors], dtype=float)
    places = np.linspace(0, 1, len(colors))
    palette = np.stack([np.interp(np.arange(255) / 254, places, anchors[:, c]) for c in range(3)], axis=1)
    image.putpalette([*palette.round().astype(np.uint8).flatten().tolist(), 0, 0, 0])
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True, transparency=255)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _values(chart: HeatMap) -> str:
    """The map's values as JSON for the tooltips of the script."""
    rows = [[None if np.isnan(v) else float(f"{v:.3g}") for v in row] for row in chart.columns.values]
    content = dict(names=list(chart.rows), steps=chart.columns.spans, kind=chart.kind, values=rows)
    return json.dumps(content, separators=(",", ":"))
