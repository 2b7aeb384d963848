"""Curves are where their numbers are."""

import json
import math
import re

import pytest
from report.pages import Page

from normfree.report.charts import BINS, Chart, Series, draw, spans


def page(chart: Chart) -> Page:
    return Page(str(draw(chart)).encode())


def path(page: Page, style: str) -> list[tuple[float, float]]:
    (d,) = [a["d"] for a in page.all("path") if style in a["class"].split()]
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.e-]+) ([\d.e-]+)", d)]


def test_a_curve():
    shown = page(Chart("loss", [Series("a", [(0, 0), (5, 2), (10, 4)])], low=0, high=4))
    assert path(shown, "curve") == [(0, 1000), (500, 500), (1000, 0)]
    (data,) = shown.data("chart")
    assert (data["low"], data["high"]) == (0, 10)
    assert data["series"] == [dict(name="a", color="c0", points=[[0, 0], [5, 2], [10, 4]])]


def test_a_logarithmic_curve():
    shown = page(Chart("norm", [Series("a", [(0, 1e-2), (1, 1e-1), (2, 1)])], log=True, low=1e-2, high=1))
    assert path(shown, "curve") == [(0, 1000), (500, 500), (1000, 0)]


def test_what_is_not_finite_is_left_out():
    shown = page(
        Chart("loss", [Series("a", [(0, 1), (1, math.nan), (2, math.inf), (3, 2)]), Series("b", [(0, math.nan)])])
    )
    (data,) = shown.data("chart")
    assert [(one["name"], one["points"]) for one in data["series"]] == [("a", [[0, 1], [3, 2]])]
    assert ">b<" not in shown.source


@pytest.mark.parametrize("points", [[], [(0, math.nan)]])
def test_nothing_to_show(points):
    shown = page(Chart("loss", [Series("a", points)]))
    assert "no values" in shown.source
    assert not shown.data("chart")


def test_a_point_alone_is_a_dot():
    shown = page(Chart("loss", [Series("a", [(7, 2)])]))
    assert [a["class"] for a in shown.all("path")].count("dots c0") == 1


def test_many_points_become_means_and_their_range():
    points = [(step, (step % 8) / 7) for step in range(8 * BINS)]
    points[999] = (999, 50.0)  # one line of 1,920 is odd
    shown = page(Chart("loss", [Series("a", points)], low=0, high=50))
    (data,) = shown.data("chart")
    found = data["series"][0]["points"]
    assert len(found) == BINS
    means = [sum(y for _, y in points[i : i + 8]) / 8 for i in range(0, len(points), 8)]
    assert [y for _, y in found] == pytest.approx(means, rel=1e-4)
    assert min(y for _, y in path(shown, "range")) == pytest.approx(0, abs=1)  # the odd one is at the top
    assert len(shown.source) < 30_000
    without = page(Chart("loss", [Series("a", points, shaded=False)]))
    assert "range" not in without.source


def test_names_are_text():
    hostile = '</script><script>alert("1")</script>'
    shown = page(Chart(hostile, [Series(hostile, [(1, 1), (2, 2)])], names=[hostile] * 2, note=hostile))
    assert not shown.all("script")
    (data,) = shown.data("chart")
    assert data["names"] == [hostile] * 2
    json.dumps(data, allow_nan=False)


def test_spans():
    assert spans([Series("", [(0, 1), (1, 30)])])
    assert not spans([Series("", [(0, 1), (1, 20), (2, 0), (3, math.nan)])])
    assert not spans([Series("", [])])
