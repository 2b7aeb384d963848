"""The page about several runs: what differs in their recipes, their scores, and their curves over one another."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..words import counted
from .charts import Chart, Point, Series, draw, spans
from .curves import COLORS, MAX_SCORES
from .head import About, state
from .markup import Markup, Missing, missing, section, tag
from .page import document
from .run_files import Line, RunFiles, value
from .scores import EMA, FRACTIONS, best_line, deciding, label, score_names, shown

STYLES = ("", "dashed")  # of curves, where there are more of them than colours


@dataclass(frozen=True)
class Compared:
    """One of the runs.

    Attributes:
        name: that tells it from the others.
        fields: of its recipe by dotted path, as text; a reason where there is none.
        about: score and planned steps are used.
    """

    run: RunFiles
    name: str
    fields: dict[str, str] | Missing
    about: About


def write_comparison(runs: Sequence[Compared], made: str = "") -> bytes:
    """The HTML file about several runs. It loads no other files.

    Curves are over optimizer steps, or over epochs where the runs have different numbers of steps per epoch.
    """
    epochs = _by_epochs(runs)
    notes = [f"{one.name}: {note}" for one in runs for note in one.run.notes]
    return document(
        f"{counted(len(runs), 'run')} compared",
        tag(
            "header",
            tag("h1", f"{counted(len(runs), 'run')} compared"),
            [tag("p", note, class_="note") for note in notes],
        ),
        section("scores", "Settings that differ, and scores", _table(runs)),
        section("curves", "Curves", _charts(runs, epochs)),
        tag("p", made, class_="note", style="margin-top:44px") if made else None,
    )


def differing(runs: Sequence[Compared]) -> list[str]:
    """Dotted paths of the fields in which the recipes differ, in their order."""
    known = [one.fields for one in runs if not isinstance(one.fields, Missing)]
    paths = dict.fromkeys(path for fields in known for path in fields)
    return [path for path in paths if len({fields.get(path) for fields in known}) > 1]


def _table(runs: Sequence[Compared]) -> Markup:
    """A row for each run: its colour, the fields that differ, its state, steps, and the scores of two evaluations."""
    paths = differing(runs)
    heads = ["run", *paths, "state", "steps"]
    scores = list(dict.fromkeys(one.about.score for one in runs))
    rows = [_row(one, place, paths, scores) for place, one in enumerate(runs)]
    numbers = [f"{which} {label(score).removesuffix(' accuracy')}" for score in scores for which in ("last", "best")]
    head = [tag("th", text) for text in heads] + [tag("th", text, class_="n") for text in (*numbers, "last loss")]
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", rows))
    without = [one.name for one in runs if isinstance(one.fields, Missing)]
    averaged = any(deciding(one.run.evals, one.about.score).startswith(EMA) for one in runs)
    notes = ["Scores are of averaged weights where a run has them." if averaged else "Scores are of raw weights."]
    if not paths:
        notes.append("The recipes have no field that differs.")
    if without:
        notes.append(f"Without a recipe that can be read: {', '.join(without)}.")
    return tag("div", tag("div", table, class_="wide"), tag("p", " ".join(notes), class_="note"))


def _row(one: Compared, place: int, paths: Sequence[str], scores: Sequence[str]) -> Markup:
    run, cells = one.run, []
    kind, word, _ = state(run, one.about)
    legend = tag("span", tag("span", tag("i", class_=_look(place)), one.name), class_="legend")
    fields = {} if isinstance(one.fields, Missing) else one.fields
    cells += [tag("td", fields.get(path, "\N{EN DASH}")) for path in paths]
    cells += [tag("td", tag("span", word, class_=kind)), tag("td", f"{run.step:,}")]
    for score in scores:
        name = deciding(run.evals, score)
        lines = [run.evals[-1] if run.evals else None, best_line(run.evals, name)]
        cells += [tag("td", shown(score, None if line is None else value(line, name)), class_="n") for line in lines]
    loss = deciding(run.evals, "loss")
    cells.append(tag("td", shown("loss", value(run.evals[-1], loss) if run.evals else None), class_="n"))
    return tag("tr", tag("th", legend), cells)


def _charts(runs: Sequence[Compared], epochs: bool) -> Markup:
    charts = [
        _chart("training loss, as optimized", runs, epochs, lambda one: (one.run.train, "loss")),
        _chart("test loss", runs, epochs, lambda one: (one.run.evals, deciding(one.run.evals, "loss"))),
    ]
    names = dict.fromkeys(name for one in runs for name in score_names(one.run.evals, one.about.score)[:MAX_SCORES])
    for name in names:
        if name != "loss":
            of = _deciding(name)
            charts.append(_chart(label(name), runs, epochs, of, fraction=name in FRACTIONS))
    charts.append(_chart("fraction of units clipped", runs, epochs, lambda one: (one.run.train, "clipped"), True, 0))
    charts.append(_chart("gradient norm", runs, epochs, lambda one: (one.run.train, "gradient_norm")))
    charts.append(_chart("learning rate", runs, epochs, lambda one: (one.run.train, "lr"), low=0))
    drawn = [draw(chart) for chart in charts if any(one.points for one in chart.series)]
    if not drawn:
        return missing("nothing has been logged yet")
    unit = "epochs, since the runs have different numbers of steps in one" if epochs else "optimizer steps"
    parts = [tag("div", drawn, class_="charts"), tag("p", f"Horizontally: {unit}.", class_="note")]
    return tag("div", parts)


def _deciding(name: str) -> Callable[[Compared], tuple[Sequence[Line], str]]:
    return lambda one: (one.run.evals, deciding(one.run.evals, name))


def _chart(
    title: str,
    runs: Sequence[Compared],
    epochs: bool,
    of: Callable[[Compared], tuple[Sequence[Line], str]],
    fraction: bool = False,
    low: float | None = None,
) -> Chart:
    """The same curve of every run that has it."""
    series = []
    for place, one in enumerate(runs):
        color, _, style = _look(place).partition(" ")
        series.append(Series(one.name, _points(*of(one), epochs), color, style, shaded=False))
    last = max((x for one in series for x, _ in one.points), default=1)
    log = spans(series, 8) if "loss" in title else None if low is None and not fraction else False
    return Chart(title, series, fraction=fraction, log=log, low=low, ends=(0, last), unit="epoch" if epochs else "step")


def _points(lines: Sequence[Line], name: str, epochs: bool) -> list[Point]:
    found = ((value(line, "epoch" if epochs else "step"), value(line, name)) for line in lines)
    return [(x, y) for x, y in found if x is not None and y is not None]


def _look(place: int) -> str:
    """Colour and style of a run's curves."""
    return f"{COLORS[place % len(COLORS)]} {STYLES[place // len(COLORS) % len(STYLES)]}".strip()


def _by_epochs(runs: Sequence[Compared]) -> bool:
    """Whether the runs' epochs have different numbers of steps, by more than rounding."""
    found = []
    for one in runs:
        lines = [line for line in (*one.run.train, *one.run.evals) if value(line, "epoch")]
        if lines:
            found.append(statistics.median(line["step"] / line["epoch"] for line in lines))
    return len(found) == len(runs) and max(found) > 1.02 * min(found)
