"""Statistics over the seeds of each combination of values, and the best value of an axis."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import UsageError, did_you_mean
from .axes import Axis
from .report import Report, limited
from .results import ENDS, Result, Results
from .study import Study


@dataclass(frozen=True)
class Spread:
    """A statistic of values that are there.

    Attributes:
        centre: median or mean.
        low, high: the ends of what is said of their differences; those of one value are itself.
        deviation: the standard deviation, where it was asked for and there are two values.
    """

    centre: float
    low: float
    high: float
    deviation: float | None = None


@dataclass(frozen=True)
class Entry:
    """What a table and a plot show at one place.

    Attributes:
        spread: of the finished runs; None: there is none.
        finished, asked: numbers of runs.
        ended: results of those that diverged, failed or were refused.
        chosen: the value of the axis of which the best one is shown.
    """

    spread: Spread | None
    finished: int
    asked: int
    ended: tuple[Result, ...] = ()
    chosen: str = ""


@dataclass(frozen=True)
class Summary:
    """A report with its numbers.

    Attributes:
        metric: that is shown.
        rows: the values of the axes of the lines; columns: of x.
        entries: by row and column; where all is left out there is none.
    """

    report: Report
    metric: str
    rows: list[tuple[str, ...]]
    columns: list[str]
    entries: dict[tuple[tuple[str, ...], str], Entry]


def spread_of(values: Sequence[float], report: Report) -> Spread:
    """The statistic of a report over at least one value.

    With ``keep``, of the best ones. A standard deviation is that of a sample, with n - 1.
    """
    best = sorted(values, reverse=True)[: report.keep]
    centre = statistics.fmean(best) if report.statistic == "mean" else statistics.median(best)
    if report.spread == "range":
        return Spread(centre, min(best), max(best))
    if len(best) < 2:
        return Spread(centre, centre, centre)
    deviation = statistics.stdev(best)
    return Spread(centre, centre - deviation, centre + deviation, deviation)


def summarize(study: Study, report: Report, results: Results) -> Summary:
    """The numbers of a report, of the runs that are there by now.

    Raises:
        UsageError: its metric is none of the evaluations; the nearest one is suggested.
    """
    metric = report.metric or results.score()
    known = list(dict.fromkeys(name for _, result in results.every() for name in result.last))
    if known and metric not in known:
        hint = did_you_mean(metric, known, f"they have {', '.join(known)}")
        raise UsageError(f"study {study.name}, report: metric (={metric!r}) is in no evaluation; {hint}")
    axes = {axis.name: axis for axis in study.axes}
    groups: dict[tuple[tuple[str, ...], str], dict[str, list[Result]]] = {}
    for planned, result in results.every():
        names = planned.cell.names
        if not limited(report, names):
            continue
        place = tuple(names[name] for name in report.lines), names.get(report.x, "")
        choice = names[report.choose] if report.choose else ""
        groups.setdefault(place, {}).setdefault(choice, []).append(result)
    entries = {place: _entry(some, report, metric) for place, some in groups.items()}
    rows, columns = list(dict.fromkeys(row for row, _ in entries)), list(dict.fromkeys(column for _, column in entries))
    rows.sort(key=lambda row: [_position(axes[name], value) for name, value in zip(report.lines, row, strict=True)])
    if report.x:
        columns.sort(key=lambda column: _position(axes[report.x], column))
    return Summary(report, metric, rows, columns, entries)


def _position(axis: Axis, name: str) -> int:
    return [value.name for value in axis.values].index(name)


def _entry(choices: dict[str, list[Result]], report: Report, metric: str) -> Entry:
    """Of several choices the best one by the statistic, in which a run that ended early counts as worst of all."""
    best = max(choices, key=lambda name: _rank(choices[name], report, metric))
    some = choices[best]
    values, ended = _values(some, report, metric), tuple(one for one in some if one.status in ENDS)
    spread = spread_of(values, report) if values else None
    return Entry(spread, len(values), len(some), ended, best if spread is not None else "")


def _rank(some: Sequence[Result], report: Report, metric: str) -> tuple[float, int, float]:
    values = _values(some, report, metric)
    every = [*values, *(-math.inf for one in some if one.status in ENDS)]
    whole = spread_of(every, replace(report, spread="range")).centre if every else -math.inf
    return whole, len(values), spread_of(values, report).centre if values else -math.inf


def _values(some: Sequence[Result], report: Report, metric: str) -> list[float]:
    found = [(one.best if report.at == "best" else one.last).get(metric) for one in some if one.status == "finished"]
    return [value for value in found if value is not None]
