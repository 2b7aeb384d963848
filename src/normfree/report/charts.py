"""Line charts: curves as SVG that stretches with the page, with labels and legend as HTML text around it."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .axes import Scale, compact, scale_of, tick
from .markup import Markup, tag

BINS, MAX_POINTS = 240, 480  # a curve of more points is drawn as means over bins, with the range of each bin shaded
SIDE = 1000  # units of the drawing, which is stretched to the size of its area on the page
LOG_SPAN = 25.0  # a chart whose values span more is logarithmic by default

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        points: (x, y) with increasing x; points that are not finite are left out.
        color: a class of the style sheet, "c0" to "c7" or "ink".
        style: "", "thin", "thick" or "dashed".
        marks: points drawn as dots.
        shaded: where points are means over bins, shade the range of each bin.
        ranges: (x, lowest, highest) of each bin; computed by the chart.
    """

    name: str
    points: Sequence[Point]
    color: str = "c0"
    style: str = ""
    marks: Sequence[Point] = ()
    shaded: bool = True
    ranges: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """Curves over one horizontal axis.

    Attributes:
        fraction: show values as per cent.
        log: whether the vertical scale is logarithmic; None: it is where the values span more than LOG_SPAN.
        low, high: fix an end of the vertical scale; None chooses it from the values.
        ends: both ends of the horizontal scale; None takes those of the points.
        names: names of the positions 1, 2, ... on the horizontal axis, shown in the tooltip.
        unit: what the horizontal axis counts.
    """

    title: str
    series: Sequence[Series]
    fraction: bool = False
    log: bool | None = False
    low: float | None = None
    high: float | None = None
    ends: tuple[float, float] | None = None
    names: Sequence[str] = ()
    unit: str = "step"
    note: str = ""


def spans(series: Sequence[Series], factor: float = LOG_SPAN) -> bool:
    """Whether the largest positive value is over ``factor`` times the smallest, too much for a linear scale."""
    values = [y for one in series for _, y in one.points if math.isfinite(y) and y > 0]
    return bool(values) and max(values) > factor * min(values)


def draw(chart: Chart) -> Markup:
    """The chart as a figure; without points the figure says that there are no values."""
    shown = [_reduced(one) for one in chart.series if any(math.isfinite(y) for _, y in one.points)]
    legend = [tag("span", tag("i", class_=f"{one.color} {one.style}"), one.name) for one in shown if one.name]
    caption = tag("figcaption", tag("b", chart.title), tag("span", legend, class_="legend"))
    note = tag("p", chart.note, class_="note") if chart.note else None
    if not shown:
        return tag("figure", caption, tag("p", "no values", class_="missing"), class_="chart")
    log = spans(chart.series) if chart.log is None else chart.log
    values = [y for one in shown for y in (*(y for _, y in one.points), *(y for _, *ends in one.ranges for y in ends))]
    y = scale_of(values, log=log, low=chart.low, high=chart.high)
    x = Scale(*_ends([x for one in shown for x, _ in one.points]) if chart.ends is None else chart.ends)
    body = tag(
        "div",
        _labels(y, chart.fraction),
        tag("div", drawing(shown, x, y), class_="area", data_chart=_values(chart, shown, x)),
        below(x, names=bool(chart.names)),
        class_="plot",
    )
    return tag("figure", caption, body, note, class_="chart")


def drawing(series: Sequence[Series], x: Scale, y: Scale, grid: bool = True) -> Markup:
    """Grid and curves as SVG that stretches with the page while line widths stay the same."""
    lines = "".join(f"M0 {_up(y, value)}H{SIDE}" for value in y.ticks()) if grid else ""
    parts = [tag("path", d=lines, class_="grid")] if lines else []
    for one in series:
        if one.ranges:
            edge = [(a, high) for a, _, high in one.ranges] + [(a, low) for a, low, _ in reversed(one.ranges)]
            parts.append(tag("path", d=_path(edge, x, y) + "Z", class_=f"range {one.color}"))
        parts.append(tag("path", d=_path(one.points, x, y), class_=f"curve {one.color} {one.style}".strip()))
        single = one.points if len(one.points) == 1 else ()
        if marks := [*one.marks, *single]:
            dots = "".join(f"M{_right(x, a)} {_up(y, b)}h0" for a, b in marks if math.isfinite(b))
            parts.append(tag("path", d=dots, class_=f"dots {one.color}"))
    return tag("svg", parts, viewBox=f"0 0 {SIDE} {SIDE}", preserveAspectRatio="none", aria_hidden="true")


def below(x: Scale, *, names: bool = False) -> Markup:
    """Tick labels of a horizontal axis, placed in per cent of its width."""
    ticks = [value for value in x.ticks(5) if not names or value == int(value)]
    spans = [tag("span", compact(value), style=f"left:{100 * x.at(value):.2f}%") for value in ticks]
    return tag("div", spans, class_="below")


def _labels(y: Scale, fraction: bool) -> Markup:
    spans = [tag("span", tick(value, fraction), style=f"bottom:{100 * y.at(value):.2f}%") for value in y.ticks()]
    return tag("div", spans, class_="left")


def _values(chart: Chart, shown: Sequence[Series], x: Scale) -> str:
    """The chart's values as JSON for the tooltips of the script."""
    series = [
        dict(name=one.name, color=one.color, points=[[_short(a), _short(b)] for a, b in one.points]) for one in shown
    ]
    return json.dumps(
        dict(
            low=_short(x.low),
            high=_short(x.high),
            unit=chart.unit,
            fraction=chart.fraction,
            names=list(chart.names),
            series=series,
        ),
        separators=(",", ":"),
    )


def _reduced(one: Series) -> Series:
    """A series of more than MAX_POINTS points becomes the means of BINS bins, with the range of each bin."""
    points = [(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
    if len(points) <= MAX_POINTS:
        return dataclasses.replace(one, points=points)
    edges = [round(number * len(points) / BINS) for number in range(BINS + 1)]
    bins = [points[a:b] for a, b in itertools.pairwise(edges)]
    means = [(statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)) for part in bins]
    ranges = [(x, min(y for _, y in part), max(y for _, y in part)) for (x, _), part in zip(means, bins, strict=True)]
    return dataclasses.replace(one, points=means, ranges=ranges if one.shaded else ())


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{_right(x, a)} {_up(y, b)}" for a, b in points)


def _right(x: Scale, value: float) -> str:
    return f"{SIDE * x.at(value):.4g}"


def _up(y: Scale, value: float) -> str:
    return f"{SIDE * (1 - y.at(value)):.4g}"


def _short(value: float) -> float | int:
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 2**53 else rounded
