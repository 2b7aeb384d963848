"""Statistics, the choice of the best value, tables and plots, of results that are written by hand."""

import csv
import io
import itertools
import statistics
import xml.etree.ElementTree as ElementTree

import pytest

from normfree import UsageError, studies
from normfree.studies.plot import draw
from normfree.studies.results import Result
from normfree.studies.summary import summarize
from normfree.studies.table import csv_text, markdown


class Made:
    """Results by the name of the cell; those that are not there wait."""

    def __init__(self, planned, by_name):
        self.planned, self.by_name = planned, by_name

    def every(self):
        return [(one, self.by_name.get(one.cell.name, Result("waiting"))) for one in self.planned]

    def score(self):
        return "top1"


def finished(top1: float, best: float | None = None) -> Result:
    return Result("finished", step=2, seconds=1.5, last={"top1": top1}, best={"top1": best or top1})


def made(write, report, values, **parts):
    """``values``: (lr, net) to the results of seeds 0, 1, ..."""
    seeds = max(len(some) for some in values.values())
    study = studies.load_study(write(report=report, seeds=seeds, **parts))
    by_name = {
        f"lr={lr},net={net},seed={seed}": finished(one) if isinstance(one, float) else one
        for (lr, net), some in values.items()
        for seed, one in enumerate(some)
        if one is not None
    }
    return study, Made(studies.plan(study), by_name)


def summary(write, report, values):
    study, results = made(write, report, values)
    return summarize(study, study.reports[0], results)


FIVE = [0.5, 0.9, 0.7, 0.6, 0.8]


@pytest.mark.parametrize(
    ("report", "centre", "low", "high"),
    [
        ({}, 0.7, 0.5, 0.9),
        (dict(statistic="median", spread="std"), 0.7, 0.7 - statistics.stdev(FIVE), 0.7 + statistics.stdev(FIVE)),
        (dict(statistic="mean"), 0.7, 0.7 - statistics.stdev(FIVE), 0.7 + statistics.stdev(FIVE)),
        (dict(statistic="mean", spread="range", keep=4), 0.75, 0.6, 0.9),
        (dict(keep=2), 0.85, 0.8, 0.9),
    ],
)
def test_statistics_by_hand(write, report, centre, low, high):
    found = summary(write, dict(x="net", **report), {(0.1, "bare"): FIVE})
    spread = found.entries[("0.1",), "bare"].spread
    assert (spread.centre, spread.low, spread.high) == pytest.approx((centre, low, high))


def test_the_best_value_of_an_axis_is_that_of_the_median(write):
    values = {(0.1, "bare"): [0.5, 0.6, 0.7], (0.4, "bare"): [0.1, 0.5, 0.99], (0.1, "clipped"): [0.2, 0.2, 0.2]}
    found = summary(write, dict(x="net", choose="optim.lr"), values)
    assert (found.rows, found.columns) == ([()], ["clipped", "bare"])
    bare, clipped = found.entries[(), "bare"], found.entries[(), "clipped"]
    assert (bare.chosen, bare.spread.centre) == ("0.1", 0.6)
    assert (clipped.chosen, clipped.spread.centre) == ("0.1", 0.2)  # the other one waits


def test_a_run_that_diverged_counts_as_worst_when_the_best_is_chosen(write):
    lost = Result("diverged", "the loss is nan")
    values = {(0.1, "bare"): [0.5, 0.5, 0.5], (0.4, "bare"): [0.9, lost, lost]}
    entry = summary(write, dict(x="net", choose="optim.lr"), values).entries[(), "bare"]
    assert (entry.chosen, entry.spread.centre) == ("0.1", 0.5)
    values = {(0.1, "bare"): [0.5, 0.5, 0.5], (0.4, "bare"): [0.9, 0.9, lost]}
    entry = summary(write, dict(x="net", choose="optim.lr"), values).entries[(), "bare"]
    assert (entry.chosen, entry.spread.low, len(entry.ended)) == ("0.4", 0.9, 1)
    kept = summary(write, dict(x="net", choose="optim.lr", keep=1), {(0.1, "bare"): [0.5], (0.4, "bare"): [lost]})
    assert kept.entries[(), "bare"].chosen == "0.1"


def test_the_best_evaluation(write):
    study, results = made(write, dict(x="net", at="best"), {(0.1, "bare"): [finished(0.3, best=0.4)]})
    assert summarize(study, study.reports[0], results).entries[("0.1",), "bare"].spread.centre == 0.4


def test_a_metric_that_there_is_not(write):
    with pytest.raises(UsageError, match=r"metric \(='top2'\) is in no evaluation; did you mean top1"):
        summary(write, dict(metric="top2"), {(0.1, "bare"): [0.5]})


def test_the_table(write):
    lost = Result("diverged", "the loss is nan", step=1)
    values = {
        (0.1, "clipped"): [0.5, 0.6, 0.71],
        (0.4, "clipped"): [0.8, lost, 0.9],
        (0.1, "bare"): [lost, lost, lost],
        (0.4, "bare"): [0.7, None, None],
    }
    study, results = made(write, dict(x="optim.lr", title="Rates"), values)
    text = markdown(study, results, [summarize(study, study.reports[0], results)])
    assert "6 of 12 runs finished." in text
    assert "## Rates" in text
    assert "top1 in per cent of the last evaluation: median of 3 seeds, with lowest and highest." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        ["net \\ optim.lr", "0.1", "0.4"],
        ["---", "---:", "---:"],
        ["clipped", "60.00 (50.00 .. 71.00)", "85.00 (80.00 .. 90.00), 1 of 3 diverged"],
        ["bare", "diverged", "70.00, 2 of 3 to come"],
    ]
    assert "- lr=0.4,net=clipped,seed=1: diverged, the loss is nan" in text


def test_several_reports_that_are_limited(write):
    reports = [dict(x="optim.lr", where={"net": "bare"}), dict(x="net", where={"optim.lr": 0.4})]
    study, results = made(write, reports, {(0.1, "bare"): [0.5], (0.4, "bare"): [0.6], (0.4, "clipped"): [0.7]})
    one, two = (summarize(study, report, results) for report in study.reports)
    assert (one.rows, one.columns, two.columns) == ([()], ["0.1", "0.4"], ["clipped", "bare"])
    assert one.entries[(), "0.4"].spread.centre == two.entries[(), "bare"].spread.centre == 0.6


def test_the_rows_of_runs(write):
    values = {(0.1, "clipped"): [finished(0.5, best=0.6)], (0.4, "bare"): [Result("refused", "no, not so", step=0)]}
    study, results = made(write, {}, values)
    rows = list(csv.DictReader(io.StringIO(csv_text(study, results))))
    assert [row["status"] for row in rows] == ["finished", "waiting", "waiting", "refused"]
    first, cost = rows[0], results.planned[0].cost
    assert (first["optim.lr"], first["net"], first["seed"]) == ("0.1", "clipped", "0")
    assert (first["last_top1"], first["best_top1"], first["steps"], first["seconds"]) == ("0.5", "0.6", "2", "1.5")
    assert int(first["operations"]) == cost.operations
    assert int(first["images"]) == 2 * 8
    assert rows[3]["reason"] == "no, not so"


def test_the_plot_is_an_image_with_a_line_for_each_row(write):
    lost = Result("diverged", "the loss is nan")
    axes = {"train.batch_size": {"from": 1, "to": 4096, "times": 4}, "net": {"a<b": {}, "c": {"optim.clipping": None}}}
    study = studies.load_study(write(axes=axes, report=dict(x="train.batch_size")))
    by_name = {cell.name: finished(0.1 * place) for place, cell in enumerate(studies.cells(study)) if place % 2 == 0}
    by_name["batch_size=4096,net=c,seed=0"] = lost
    results = Made(studies.plan(study), by_name)
    tree = ElementTree.fromstring(draw(study, [summarize(study, study.reports[0], results)]))
    texts = [one.text for one in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1", "4", "64", "1,024", "4,096", "train.batch_size", "a<b", "c", "no run finished"} <= set(texts)
    dots = list(tree.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(dots) == 7
    across = [float(dot.get("cx")) for dot in dots]
    steps = [b - a for a, b in itertools.pairwise(across)]
    assert max(steps) - min(steps) < 0.5  # the axis of batch sizes is logarithmic


def test_labels_of_numbers_that_fall(write):
    axes = {"batch": {64: {"train.batch_size": 64}, 8: {"train.batch_size": 8}, 2: {"train.batch_size": 2}}}
    study = studies.load_study(write(axes=axes))
    results = Made(studies.plan(study), {"batch=8,seed=0": finished(0.5)})
    drawn = summarize(study, study.reports[0], results)
    assert drawn.columns == ["64", "8", "2"]  # as in the file
    texts = [one.text for one in ElementTree.fromstring(draw(study, [drawn])).iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text in ("64", "8", "2")] == ["2", "8", "64"]


def test_a_plot_without_any_result(write):
    study, results = made(write, {}, {(0.1, "bare"): [None]})
    assert ElementTree.fromstring(draw(study, [summarize(study, study.reports[0], results)])) is not None
