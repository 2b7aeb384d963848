"""The ``report`` of a study's file: what is measured, where each axis goes, and by which statistic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from ..errors import UsageError, did_you_mean
from ..words import shown
from .axes import Axis, check_keys, label

KEYS = ("title", "metric", "at", "x", "lines", "choose", "statistic", "spread", "keep", "where")
CHOICES = dict(at=("last", "best"), statistic=("median", "mean"), spread=("range", "std"))


@dataclass(frozen=True)
class Report:
    """A table and a plot.

    Attributes:
        title: above them.
        metric: a metric of the evaluations, such as top1; None: the score of the task, of averaged weights if there
            are any.
        at: whether of the last evaluation, or of the best one.
        x: the axis of the columns, which is the horizontal one of the plot; empty: there is none.
        lines: the axes of the rows, a line of the plot each.
        choose: the axis of which only the best value is shown, for each row and column; None: none.
        statistic: over the seeds.
        spread: what is said of the differences between seeds: lowest and highest, or the standard deviation.
        keep: so many of the best seeds are looked at; None: all.
        where: values of axes to which the report is limited.
    """

    title: str
    metric: str | None
    at: Literal["last", "best"]
    x: str
    lines: tuple[str, ...]
    choose: str | None
    statistic: Literal["median", "mean"]
    spread: Literal["range", "std"]
    keep: int | None
    where: Mapping[str, str]


def parse_report(content: Any, axes: Sequence[Axis], seeds: int, where: str, *, fewer: bool = False) -> Report:
    """A report as a study's file writes it. Axes that it does not name become lines; x is the last one of numbers.

    Args:
        seeds: how many there are; fewer: they are not those of the file, whose ``keep`` may be too large for them.

    Raises:
        UsageError: a key, a value or an axis is unknown; an axis is named twice.
    """
    check_keys(content, KEYS, where)
    by_name = {axis.name: axis for axis in axes}
    for key, known in CHOICES.items():
        if content.get(key, known[0]) not in known:
            raise UsageError(f"{where}: {key} (={shown(content[key])}) must be {' or '.join(known)}")
    metric, title = content.get("metric"), content.get("title", "")
    if not isinstance(title, str) or not (metric is None or isinstance(metric, str)):
        raise UsageError(f"{where}: title and metric must be text")
    keep = content.get("keep")
    if fewer and type(keep) is int:
        keep = min(keep, seeds)
    if keep is not None and (type(keep) is not int or not 1 <= keep <= seeds):
        raise UsageError(f"{where}: keep (={shown(keep)}) must be from 1 to the number of seeds, {seeds}")
    limits = _limits(content.get("where"), by_name, f"{where}, where")
    free = [name for name in by_name if name not in limits]
    choose = _axis(content, "choose", free, where)
    x = _axis(content, "x", free, where)
    if x is None:
        rest = [name for name in free if name != choose]
        x = next((name for name in reversed(rest) if by_name[name].numeric), rest[-1] if rest else "")
    lines = _lines(content.get("lines"), [name for name in free if name not in (x, choose)], where)
    if choose is not None and choose == x:
        raise UsageError(f"{where}: the axis {choose} cannot be both x and choose")
    statistic = content.get("statistic", "median")
    spread = content.get("spread", "range" if statistic == "median" else "std")
    at = cast("Literal['last', 'best']", content.get("at", "last"))
    return Report(title, metric, at, x, lines, choose, statistic, spread, keep, limits)


def _axis(content: Mapping[str, Any], key: str, free: Sequence[str], where: str) -> str | None:
    name = content.get(key)
    if name is not None and name not in free:
        hint = did_you_mean(str(name), free, f"its axes are {', '.join(free)}")
        raise UsageError(f"{where}: {key} (={shown(name)}) is no axis of the study that varies here; {hint}")
    return name


def _lines(named: Any, free: Sequence[str], where: str) -> tuple[str, ...]:
    """The axes of the lines, in the order that is given; all that are free must be there."""
    if named is None:
        return tuple(free)
    names = named if isinstance(named, list) else [named]
    for name in names:
        if name not in free:
            hint = did_you_mean(str(name), free, f"these are left: {', '.join(free) or 'none'}")
            raise UsageError(f"{where}: lines (={shown(name)}) is no axis that is left for them; {hint}")
    if missing := [name for name in free if name not in names]:
        raise UsageError(f"{where}: the axis {missing[0]} is in none of x, lines, choose and where; name it in one")
    return tuple(names)


def _limits(content: Any, axes: Mapping[str, Axis], where: str) -> dict[str, str]:
    if content is None:
        return {}
    check_keys(content, axes, where)
    return {name: axes[name].find(value, where).name for name, value in content.items()}


def dump_report(report: Report) -> dict[str, Any]:
    """A report as it is written into a file; nothing of it is left to be chosen."""
    given = dict(title=report.title, metric=report.metric, at=report.at, x=report.x or None, lines=[*report.lines])
    given |= dict(choose=report.choose, statistic=report.statistic, spread=report.spread, keep=report.keep)
    given |= dict(where=dict(report.where))
    return {key: value for key, value in given.items() if value not in (None, "", {}, [])}


def limited(report: Report, values: Mapping[str, str]) -> bool:
    """Whether values of axes are inside of a report's limits."""
    return all(values[name] == label(value) for name, value in report.where.items())
