"""plot.svg: a panel for each report, lines with bands, without a browser's help: sizes and colours are in it."""

import re
from collections.abc import Sequence

from ..recipes import path_names
from ..report.axes import Scale, compact, scale_of, tick
from ..report.markup import Markup, tag
from ..report.style import CSS
from .study import Study
from .summary import Summary
from .table import PER_CENT, caption

COLORS: list[str] = re.findall(r"--c\d:\s*(#[0-9a-f]{6})", CSS)[:8]  # of the report of a run, on a bright page
INK, SOFT, GRID, PAPER = "#1d2024", "#646b75", "#e4e6e9", "#ffffff"
WIDTH, HEIGHT = 520, 300  # of the area with lines
LEFT, TOP, BOTTOM, GAP = 70, 62, 50, 36
LEGEND, ROW, LETTER = 18, 17, 6.3  # widths of a legend's mark, heights of its rows, mean width of a letter of 12 px
LOG_FACTOR = 1.5  # an axis whose values grow by more from one to the next is logarithmic
Band = list[tuple[float, float, float, float]]  # x, lowest, centre, highest


def draw(study: Study, summaries: Sequence[Summary]) -> str:
    """The plot of a study, one panel beneath the other."""
    panels, top = [], 0.0
    captions = [caption(summary, len(study.seeds)) for summary in summaries]
    width = LEFT + WIDTH + 24 + max(_legend_width(summary) for summary in summaries)
    width = max(width, LEFT + 20 + 0.9 * LETTER * max(map(len, captions)))
    for summary in summaries:
        panels.append(tag("g", _panel(study, summary), transform=f"translate(0 {top:.0f})"))
        top += TOP + max(HEIGHT, len(summary.rows) * ROW) + BOTTOM + GAP
    style = dict(font_family="system-ui, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif", font_size="12")
    background = tag("rect", width="100%", height="100%", fill=PAPER)
    size = dict(width=f"{width:.0f}", height=f"{top:.0f}", viewBox=f"0 0 {width:.0f} {top:.0f}")
    return tag("svg", background, *panels, xmlns="http://www.w3.org/2000/svg", **size, **style) + "\n"


def _panel(study: Study, summary: Summary) -> list[Markup]:
    report, factor = summary.report, 100 if summary.metric in PER_CENT else 1
    x, places = _horizontal(study, summary)
    bands: list[Band] = []
    lost: list[list[float]] = []  # where no run of a line came to its end
    for row in summary.rows:
        entries = [(place, summary.entries.get((row, name))) for name, place in places.items()]
        spreads = [(place, entry.spread) for place, entry in entries if entry is not None and entry.spread is not None]
        bands.append([(p, factor * s.low, factor * s.centre, factor * s.high) for p, s in spreads])
        lost.append([p for p, entry in entries if entry is not None and entry.spread is None and entry.ended])
    seen = [value for band in bands for _, *values in band for value in values]
    y = scale_of(seen or [0.0, 1.0])
    title = report.title or study.title
    parts = [_text(LEFT, 20, title, font_size="14", font_weight="600", fill=INK)]
    parts += [_text(LEFT, 38, caption(summary, len(study.seeds)), fill=SOFT, font_size="11")]
    parts += _grid(x, y, places, report.x)
    for index, band in enumerate(bands):
        color = COLORS[index % len(COLORS)]
        parts += _line(band, x, y, color, dashed=index >= len(COLORS))
        for place in lost[index]:  # crosses at one place stand above one another
            below = sum(place in others for others in lost[:index])
            parts.append(_cross(_right(x, place), TOP + HEIGHT - 7 - 12 * below, color))
    return [*parts, *_legend(summary, any(lost))]


def _horizontal(study: Study, summary: Summary) -> tuple[Scale, dict[str, float]]:
    """The horizontal scale, and where each column stands on it: numbers at their place, names one after the other."""
    axis = next((axis for axis in study.axes if axis.name == summary.report.x), None)
    numbers = {} if axis is None else {value.name: value.number for value in axis.values}
    found = [numbers.get(name) for name in summary.columns]
    at = [value for value in found if value is not None]
    if len(at) < len(found) or len(at) < 2:
        places = {name: float(index) for index, name in enumerate(summary.columns)}
        return Scale(-0.5, len(places) - 0.5), places
    places = dict(zip(summary.columns, at, strict=True))
    low, high = min(at), max(at)
    log = low > 0 and (high / low) ** (1 / (len(at) - 1)) > LOG_FACTOR
    if log:
        return Scale(low / (high / low) ** 0.03, high * (high / low) ** 0.03, log=True), places
    return Scale(low - 0.03 * (high - low), high + 0.03 * (high - low)), places


def _grid(x: Scale, y: Scale, places: dict[str, float], name: str) -> list[Markup]:
    """Lines of both axes at round values, and their labels; the columns label the horizontal one themselves."""
    parts = []
    for value in y.ticks():
        at = _up(y, value)
        parts.append(tag("path", d=f"M{LEFT} {at:.1f}H{LEFT + WIDTH}", stroke=GRID, fill="none"))
        parts.append(_text(LEFT - 8, at + 4, tick(value), text_anchor="end", fill=SOFT))
    bottom, free = TOP + HEIGHT, -1e9
    for label, value in sorted(places.items(), key=lambda place: place[1]):
        at, shown = _right(x, value), compact(value) if x.log and value == int(value) else label
        parts.append(tag("path", d=f"M{at:.1f} {bottom}v5", stroke=SOFT, fill="none"))
        half = len(shown) * LETTER / 2 + 3
        if at - half >= free:  # labels that would overlap are left out
            parts.append(_text(at, bottom + 19, shown, text_anchor="middle", fill=SOFT))
            free = at + half
    parts.append(tag("path", d=f"M{LEFT} {TOP}V{bottom}H{LEFT + WIDTH}", stroke=SOFT, fill="none"))
    parts.append(_text(LEFT + WIDTH / 2, bottom + 38, name, text_anchor="middle", fill=INK))
    return parts


def _line(band: Band, x: Scale, y: Scale, color: str, *, dashed: bool) -> list[Markup]:
    """A line through the centres with dots, and its band."""
    parts = []
    if len(band) > 1:
        edge = [(p, high) for p, _, _, high in band] + [(p, low) for p, low, _, _ in reversed(band)]
        parts.append(tag("path", d=_path(edge, x, y) + "Z", fill=color, fill_opacity="0.15", stroke="none"))
        dash = "5 4" if dashed else None
        centres = _path([(p, centre) for p, _, centre, _ in band], x, y)
        parts.append(tag("path", d=centres, fill="none", stroke=color, stroke_width="2", stroke_dasharray=dash))
    for place, low, centre, high in band:
        at = _right(x, place)
        if len(band) == 1 and high > low:
            ends = f"M{at:.1f} {_up(y, low):.1f}V{_up(y, high):.1f}"
            parts.append(tag("path", d=ends, stroke=color, stroke_opacity="0.5", stroke_width="2"))
        parts.append(tag("circle", cx=f"{at:.1f}", cy=f"{_up(y, centre):.1f}", r="3", fill=color))
    return parts


def _legend(summary: Summary, lost: bool) -> list[Markup]:
    left, parts, at = LEFT + WIDTH + 16, [], TOP + 8
    for index, row in enumerate(summary.rows):
        color, dash = COLORS[index % len(COLORS)], "5 4" if index >= len(COLORS) else None
        d = f"M{left} {at - 4}h{LEGEND}"
        parts.append(tag("path", d=d, stroke=color, stroke_width="2", stroke_dasharray=dash, fill="none"))
        parts.append(_text(left + LEGEND + 6, at, _name(row, summary), fill=INK))
        at += ROW
    if lost:
        parts.append(_cross(left + LEGEND / 2, at - 4, SOFT))
        parts.append(_text(left + LEGEND + 6, at, "no run finished", fill=SOFT))
    return parts


def _legend_width(summary: Summary) -> float:
    names = [*(_name(row, summary) for row in summary.rows), "no run finished"]
    return LEGEND + 22 + LETTER * max(map(len, names))


def _name(row: tuple[str, ...], summary: Summary) -> str:
    """``nf_agc``; of a field, whose values are numbers, its last part in front."""
    lines = summary.report.lines
    parts = [f"{path_names(n)[-1]} {value}" if "." in n else value for n, value in zip(lines, row, strict=True)]
    return ", ".join(parts) or summary.metric


def _cross(x: float, y: float, color: str) -> Markup:
    return tag("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", stroke=color, stroke_width="2", fill="none")


def _text(x: float, y: float, content: str, **attributes: str) -> Markup:
    return tag("text", content, x=f"{x:.1f}", y=f"{y:.1f}", **attributes)


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{_right(x, a):.1f} {_up(y, b):.1f}" for a, b in points)


def _right(x: Scale, value: float) -> float:
    return LEFT + WIDTH * x.at(value)


def _up(y: Scale, value: float) -> float:
    return TOP + HEIGHT * (1 - y.at(value))
