"""Signal propagation of the network as it is now, and during training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..spp import SPP, Frame, Spectrum
from ..spp.film import FRAMES, frame_of
from ..spp.plot import LOG_RANGE, PANELS
from .axes import Scale, number, scale_of
from .charts import Chart, Series, draw, drawing, spans
from .markup import Markup, Missing, missing, section, tag
from .run_files import Line

COLORS = dict(avg_sq_mean="c0", avg_var="c4", res_avg_var="c2", condition="c3")
CONDITION = "condition number of the weights"
_ZERO = 1e-6  # smaller values count as 0 when a scale is chosen


@dataclass(frozen=True)
class Recorded:
    """A signal propagation plot and what it was recorded from.

    Attributes:
        of: what was recorded, for example "averaged weights of step 60, 32 test images".
        spectra: singular values of the same weights.
        own: whether the inputs are those of spp.jsonl, so that its first record can be compared with this one.
    """

    spp: SPP
    of: str
    spectra: Sequence[Spectrum] = ()
    own: bool = False


def signal(recorded: Recorded | Missing, film: Sequence[Line]) -> Markup:
    """The section: the network's plot now with its diagnosis, and the film strip of the lines of spp.jsonl."""
    frames = _frames(film)
    first = None if isinstance(frames, Missing) else frames[0]
    parts = [missing(recorded)] if isinstance(recorded, Missing) else _now(recorded, first)
    parts.append(tag("h3", "During training"))
    parts.append(missing(frames) if isinstance(frames, Missing) else _strip(frames))
    return section("signal", "Signal propagation", parts)


def _frames(lines: Sequence[Line]) -> list[Frame] | Missing:
    if not lines:
        return Missing("nothing was recorded; train with --spp-every N")
    try:
        return [frame_of(line) for line in lines]
    except UsageError as error:
        return Missing(f"spp.jsonl is not a file of recorded signal propagation plots: {error}")


def _now(recorded: Recorded, first: Frame | None) -> list[Markup]:
    spp = recorded.spp
    first = first if first is not None and recorded.own and first.spp.blocks == spp.blocks else None
    findings = [tag("li", str(one)) for one in spp.diagnose(trained=True, first=first, spectra=recorded.spectra)]
    judged = "Judged by the rules for trained networks" + (
        ", without a first record to compare with." if first is None else f", against the record of step {first.step}."
    )
    parts = [
        tag("p", f"Statistics at the end of every residual block: {recorded.of}."),
        tag("ul", findings, class_="findings") if findings else tag("p", "No fault found."),
        tag("p", judged, class_="note"),
    ]
    charts = [_panel(spp, field, title) for field, title in PANELS]
    return [*parts, tag("div", charts, class_="charts three", style="margin-top:20px"), _table(spp)]


def _panel(spp: SPP, field: str, title: str) -> Markup:
    points = _points(getattr(spp, field))
    stages = [points[end] for end in spp.stage_ends]
    series = [Series("", points, COLORS[field], marks=stages)]
    if field == "avg_var":
        theory = [math.nan if row.expected_res_var is None else row.expected_var for row in spp.rows]
        if any(value is not None and math.isfinite(value) for value in theory):
            series = [Series("measured", points, COLORS[field], marks=stages)]
            series.append(Series("expected by theory", _points(theory), "ink", "dashed"))
    log = spans([Series("", [(x, y) for x, y in one.points if y > _ZERO]) for one in series], LOG_RANGE)
    title = title.removeprefix("average channel ").replace("branch's average channel", "branch's")
    ends = (1, max(len(points), 2))
    return draw(Chart(title, series, log=log, low=None if log else 0, names=spp.blocks, unit="block", ends=ends))


def _points(values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(i, math.nan if value is None else value) for i, value in enumerate(values, start=1)]


def _table(spp: SPP) -> Markup:
    heading = ("squared mean", "variance", "branch's variance", "variance by theory")
    rows = []
    for row in ([spp.stem] if spp.stem else []) + spp.rows:
        theory = None if row.expected_res_var is None else row.expected_var
        values = (row.avg_sq_mean, row.avg_var, row.res_avg_var, theory)
        rows.append(tag("tr", tag("th", row.block), [tag("td", number(value, 3), class_="n") for value in values]))
    head = tag("tr", tag("th", "block"), [tag("th", name, class_="n") for name in heading])
    table = tag("table", tag("thead", head), tag("tbody", rows))
    return tag("details", tag("summary", "The numbers"), tag("div", table, class_="wide"))


def _strip(frames: Sequence[Frame]) -> Markup:
    """The film strip: a column per step, a row per statistic; the first frame is drawn in grey behind the others."""
    count = min(FRAMES, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count)]
    cells: list[Markup] = [tag("span"), tag("span")]
    cells += [tag("span", f"step {frame.step:,}", class_="head") for frame in chosen]
    for field, title in PANELS:
        cells += _strip_row(title, COLORS[field], [_points(getattr(frame.spp, field)) for frame in chosen])
    conditions = [_points([s.condition for s in frame.spectra]) for frame in chosen]
    cells += _strip_row(CONDITION, COLORS["condition"], conditions)
    style = f"grid-template-columns:104px max-content repeat({count},minmax(62px,1fr))"
    note = (
        "Horizontally: block depth, in the last row layers. One vertical scale per row; the first frame stays in grey."
    )
    grid = tag("div", cells, class_="film", style=style)
    return tag("figure", tag("div", grid, class_="wide"), tag("p", note, class_="note"))


def _strip_row(title: str, color: str, curves: Sequence[Sequence[tuple[float, float]]]) -> list[Markup]:
    curves = [[point for point in curve if math.isfinite(point[1])] for curve in curves]
    log = spans([Series("", [(x, y) for x, y in curve if y > _ZERO]) for curve in curves], LOG_RANGE)
    kept = [[point for point in curve if point[1] > 0 or not log] for curve in curves]
    y = scale_of((value for curve in kept for _, value in curve), log=log, low=None if log else 0)
    ends = tag("span", tag("span", number(y.high, 2)), tag("span", number(y.low, 2)), class_="ends")
    cells = [tag("span", title + (", logarithmic" if log else ""), class_="name"), ends]
    for position, curve in enumerate(kept):
        x = Scale(1, max([2, *(x for x, _ in curve)]))
        first = [Series("", kept[0], "c7", "thin")] if position and kept[0] else []
        shown = [*first, Series("", curve, color)] if curve else first
        cells.append(tag("span", drawing(shown, x, y, grid=False), class_="cell"))
    return cells
