"""Charts of what was logged during training, over optimizer steps."""

import dataclasses
import math

from .charts import BINS, MAX_POINTS, Chart, Series, draw, spans
from .clipping import only_bias_clipped
from .head import About
from .markup import Markup, missing, section, tag
from .run_files import Line, RunFiles, curve, value
from .scores import EMA, FRACTIONS, best_line, deciding, label, score_names

MAX_SCORES = 6  # charts
COLORS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")
TRAIN, TEST, AVERAGED = "c7", "c0", "c1"  # the same in all charts
# the score that "accuracy" in training is, where it is not the deciding one; for detection it is none of them
TRAINING_SCORE = {"miou": "pixel_accuracy", "ap": None, "map": None, "r2": None}
# the title of its own chart then
TRAINING_TITLE = {"ap": "regions whose class is right", "map": "classes that are right"}
TRAINING_TITLE |= {"r2": "numbers within half a standard deviation"}


def curves(run: RunFiles, about: About) -> Markup:
    """Loss, scores, clipping, norms, learning rate and speed over the steps."""
    if not run.train and not run.evals:
        return section("curves", "Curves", missing("nothing has been logged yet"))
    last = max(run.step, 1)
    charts = [_loss(run), *_scores(run, about), _clipped(run), *_norms(run)]
    charts.append(Chart("learning rate", [Series("", curve(run.train, "lr"))], low=0))
    charts.append(Chart("images per second", [Series("", curve(run.train, "images_per_s"))], low=0))
    drawn = [draw(_over(chart, last)) for chart in charts if any(one.points for one in chart.series)]
    without = [chart.title for chart in charts if not any(one.points for one in chart.series)]
    notes = ["Horizontally: optimizer steps."]
    if len(run.train) > MAX_POINTS:
        per_bin = round(len(run.train) / BINS)
        notes.append(f"Lines are means of about {per_bin} logged values, shades the range of these.")
    if without:
        notes.append(f"Not logged by this run: {', '.join(without)}.")
    parts = [tag("div", drawn, class_="charts"), tag("p", " ".join(notes), class_="note", style="margin-top:18px")]
    return section("curves", "Curves", parts)


def _over(chart: Chart, last: int) -> Chart:
    """The chart with the horizontal axis that all charts share: from 0 to the last step."""
    return dataclasses.replace(chart, ends=(0, last))


def _loss(run: RunFiles) -> Chart:
    series = [
        Series("training, as optimized", curve(run.train, "loss"), TRAIN, "thin"),
        Series("test", curve(run.evals, "loss"), TEST),
        Series("test, averaged weights", curve(run.evals, EMA + "loss"), AVERAGED),
    ]
    return Chart("loss", series, log=spans(series, 8))


def _scores(run: RunFiles, about: About) -> list[Chart]:
    charts = []
    in_training = TRAINING_SCORE.get(about.score, about.score)
    for name in [name for name in score_names(run.evals, about.score) if name != "loss"][:MAX_SCORES]:
        chosen = name == about.score
        decides = deciding(run.evals, name)
        best = best_line(run.evals, decides) if chosen else None
        marks = [] if best is None else [(best["step"], best[decides])]
        series = [
            Series("training, augmented", curve(run.train, "accuracy") if name == in_training else [], TRAIN, "thin"),
            Series("test", curve(run.evals, name), TEST, marks=[] if decides != name else marks),
            Series(
                "test, averaged weights", curve(run.evals, EMA + name), AVERAGED, marks=marks if decides != name else []
            ),
        ]
        note = "The dot is the best evaluation." if marks else ""
        charts.append(Chart(label(name), series, fraction=name in FRACTIONS, note=note))
    if in_training is None:
        series = [Series("training, augmented", curve(run.train, "accuracy"), TRAIN, "thin")]
        charts.append(Chart(TRAINING_TITLE[about.score], series, fraction=True))
    return charts


def _clipped(run: RunFiles) -> Chart:
    """A curve of all units and one per stage, without stages of which only the bias is clipped: always 0 or 100 %."""
    stages = list({name: None for line in run.train for name in _stages(line)})
    ratios = {name: [_stages(line, "largest_ratio").get(name, math.nan) for line in run.train] for name in stages}
    bias_only = [name for name in stages if only_bias_clipped(ratios[name])]
    stages = [name for name in stages if name not in bias_only]
    series = [
        Series(name, curve([{"step": line["step"], **_stages(line)} for line in run.train], name), color, shaded=False)
        for name, color in zip(stages, COLORS * (len(stages) // len(COLORS) + 1), strict=False)
    ]
    total = Series(
        "all" if series else "", curve(run.train, "clipped"), "ink" if series else "c0", "thick" if series else ""
    )
    note = f"Without {', '.join(bias_only)}, whose bias alone is clipped." if bias_only else ""
    return Chart("fraction of units clipped", [*series, total], fraction=True, low=0, note=note)


def _stages(line: Line, of: str = "clipped_by_stage") -> dict[str, float]:
    stages = line.get(of)
    return (
        {name: number for name in stages if (number := value(stages, name)) is not None}
        if isinstance(stages, dict)
        else {}
    )


def _norms(run: RunFiles) -> list[Chart]:
    names = ("gradient_norm", "parameter_norm")
    return [Chart(name.replace("_", " "), [Series("", curve(run.train, name))], log=None) for name in names]
