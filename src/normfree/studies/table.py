"""results.csv, a row for each run; table.md, the reports."""

import csv
import io
from collections.abc import Sequence

from ..tasks import task_of
from ..words import counted, printable
from .cost import Cost
from .results import ENDS, Result, Results
from .study import Study
from .summary import Entry, Summary

PER_CENT = ("top1", "top5", "ema_top1", "ema_top5")
WORDS = dict(last="last evaluation", best="best evaluation")


def csv_text(study: Study, results: Results) -> str:
    """A row for each run: values of the axes, seed, status, metrics, steps, seconds, operations, reason."""
    every = results.every()
    names = [axis.name for axis in study.axes]
    metrics = list(dict.fromkeys(name for _, result in every for name in (*result.last, *result.best)))
    heads = ["run", *names, "seed", "status", *(f"{which}_{name}" for name in metrics for which in ("last", "best"))]
    heads += ["steps_planned", "steps", "seconds", "images", "parameters", "operations", "reason"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for planned, result in every:
        cell, cost = planned.cell, planned.cost
        row = [cell.name, *(cell.names[name] for name in names), cell.seed, result.status]
        row += [which.get(name, "") for name in metrics for which in (result.last, result.best)]
        row += [cost.steps if cost else "", result.step, "" if result.seconds is None else round(result.seconds, 3)]
        row += ["", "", ""] if cost is None else [result.step * cost.batch, cost.parameters, _part(cost, result)]
        writer.writerow([*row, printable(result.reason)])
    return out.getvalue()


def _part(cost: Cost, result: Result) -> int | str:
    """Operations of the steps that were trained."""
    return "" if cost.operations is None else cost.operations // cost.steps * result.step


def markdown(study: Study, results: Results, summaries: Sequence[Summary]) -> str:
    """All reports of a study as tables, and what is missing in them."""
    every = results.every()
    finished = sum(result.status == "finished" for _, result in every)
    parts = [f"# {study.title}\n", f"{finished} of {counted(len(every), 'run')} finished.\n"]
    for summary in summaries:
        parts.append(_table(study, summary))
    if ended := [(planned, result) for planned, result in every if result.status in ENDS]:
        parts.append("## Runs that did not finish\n")
        parts += [f"- {planned.cell.name}: {result.status}, {printable(result.reason)}" for planned, result in ended]
        parts.append("")
    return "\n".join(parts)


def caption(summary: Summary, seeds: int) -> str:
    """What the numbers of a report are, in a sentence."""
    report = summary.report
    unit = " in per cent" if summary.metric in PER_CENT else ""
    of = counted(seeds, "seed") if report.keep is None else f"the best {report.keep} of {counted(seeds, 'seed')}"
    spread = "lowest and highest" if report.spread == "range" else "standard deviation"
    text = f"{summary.metric}{unit} of the {WORDS[report.at]}: {report.statistic} of {of}, with {spread}"
    if report.choose:
        text += f"; of the best {report.choose}, named behind it"
    if report.where:
        text += f"; {', '.join(f'{name} {value}' for name, value in report.where.items())}"
    return text


def _table(study: Study, summary: Summary) -> str:
    report = summary.report
    head = " / ".join(report.lines) + (f" \\ {report.x}" if report.x else "")
    lines = [f"## {report.title}\n"] if report.title else []
    lines += [f"{caption(summary, len(study.seeds))}.\n"]
    columns = [name or summary.metric for name in summary.columns]
    rows = [[head.strip(), *columns], ["---", *("---:" for _ in columns)]]
    for row in summary.rows:
        entries = [summary.entries.get((row, column)) for column in summary.columns]
        rows.append([" / ".join(row) or summary.metric, *(entry_text(entry, summary.metric) for entry in entries)])
    lines += ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def entry_text(entry: Entry | None, metric: str) -> str:
    """``97.5 (97.2 .. 98.1) at 0.02, 1 of 5 diverged``; a dash where there is nothing yet."""
    if entry is None:
        return ""
    told, spread = [], entry.spread
    if spread is not None:
        text = number(spread.centre, metric)
        if spread.deviation is not None:
            text += f" ± {number(spread.deviation, metric)}"
        elif spread.high > spread.low:
            text += f" ({number(spread.low, metric)} .. {number(spread.high, metric)})"
        told.append(f"{text} at {entry.chosen}" if entry.chosen else text)
    for status in ENDS:
        if count := sum(one.status == status for one in entry.ended):
            told.append(status if count == entry.asked else f"{count} of {entry.asked} {status}")
    waiting = entry.asked - entry.finished - len(entry.ended)
    if waiting and told:
        told.append(f"{waiting} of {entry.asked} to come")
    return ", ".join(told) or "\N{EN DASH}"


def number(value: float, metric: str) -> str:
    """A metric as text; accuracies in per cent."""
    return f"{100 * value:.2f}" if metric in PER_CENT else f"{value:.4g}"


def score_label(results: Results) -> str:
    """What the score of the study's task is called."""
    return task_of(next(one.asked for one in results.planned if one.asked is not None)).score_label


def _cell(text: str) -> str:
    """A text inside of a Markdown table."""
    return printable(text).replace("|", "\\|")
