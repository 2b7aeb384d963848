"""Curves: what scales with the page is SVG, what must not, labels and legend, is text around it."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .axes import Scale, compact, scale_of, tick
from .markup import Markup, tag

BINS, MOST_POINTS = 240, 480  # a curve of more points is shown as means over bins, with their range shaded
SIDE = 1000  # of the drawing's own units, stretched to whatever the page gives
LOG_SPAN = 25.0  # a chart whose values span more is logarithmic unless told otherwise

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        points: (x, y), x rising; what is not finite is left out.
        color: class of the style sheet, "c0" to "c7"; style: "", "thin", "thick" or "dashed".
        marks: points to be shown as dots.
        shaded: show the range of what a point is a mean of, where it is one.
        ranges: (x, lowest, highest), made by the chart.
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
        fraction: values are fractions, shown as per cent.
        log: scale of the values; None: logarithmic where they span more than LOG_SPAN.
        low, high: ends of the vertical scale that are given.
        ends: of the horizontal one; None: those of the points.
        names: of the places 1, 2, ... of the horizontal axis, shown when the pointer is there.
        unit: of the horizontal axis.
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
    """Whether the positive values differ by more than a factor, so that a linear scale would hide some."""
    values = [y for one in series for _, y in one.points if math.isfinite(y) and y > 0]
    return bool(values) and max(values) > factor * min(values)


def draw(chart: Chart) -> Markup:
    """A figure of the chart; a line saying so where there are no points."""
    shown = [_reduced(one) for one in chart.series if any(math.isfinite(y) for _, y in one.points)]
    legend = [tag("span", tag("i", class_=f"{one.color} {one.style}"), one.name) for one in shown if one.name]
    caption = tag("figcaption", tag("b", chart.title), tag("span", legend, class_="legend"))
    note = tag("p", chart.note, class_="note") if chart.note else None
    if not shown:
        return tag("figure", caption, tag("p", "no values", class_="missing"), class_="chart")
    log = spans(chart.series) if chart.log is None else chart.log
    seen = [y for one in shown for y in (*(y for _, y in one.points), *(y for _, *ends in one.ranges for y in ends))]
    y = scale_of(seen, log=log, low=chart.low, high=chart.high)
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
    """Grid and curves as stretchable SVG; strokes keep their width."""
    lines = "".join(f"M0 {_up(y, value)}H{SIDE}" for value in y.ticks()) if grid else ""
    parts = [tag("path", d=lines, class_="grid")] if lines else []
    for one in series:
        if one.ranges:
            edge = [(a, high) for a, _, high in one.ranges] + [(a, low) for a, low, _ in reversed(one.ranges)]
            parts.append(tag("path", d=_path(edge, x, y) + "Z", class_=f"range {one.color}"))
        parts.append(tag("path", d=_path(one.points, x, y), class_=f"curve {one.color} {one.style}".strip()))
        alone = one.points if len(one.points) == 1 else ()
        if marks := [*one.marks, *alone]:
            dots = "".join(f"M{_right(x, a)} {_up(y, b)}h0" for a, b in marks if math.isfinite(b))
            parts.append(tag("path", d=dots, class_=f"dots {one.color}"))
    return tag("svg", parts, viewBox=f"0 0 {SIDE} {SIDE}", preserveAspectRatio="none", aria_hidden="true")


def below(x: Scale, *, names: bool = False) -> Markup:
    """Labels of a horizontal axis in per cent of its width."""
    ticks = [value for value in x.ticks(5) if not names or value == int(value)]
    spans = [tag("span", compact(value), style=f"left:{100 * x.at(value):.2f}%") for value in ticks]
    return tag("div", spans, class_="below")


def _labels(y: Scale, fraction: bool) -> Markup:
    spans = [tag("span", tick(value, fraction), style=f"bottom:{100 * y.at(value):.2f}%") for value in y.ticks()]
    return tag("div", spans, class_="left")


def _values(chart: Chart, shown: Sequence[Series], x: Scale) -> str:
    """What the script needs to say the values under the pointer."""
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
    """Means over bins where there are more points than can be told apart, and the range of each bin."""
    points = [(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
    if len(points) <= MOST_POINTS:
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
