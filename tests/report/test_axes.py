"""Scales and numbers."""

import itertools
import math

import pytest

from normfree.report.axes import Scale, compact, duration, number, percent, scale_of, tick

RANGES = [(0, 1), (0.0012, 0.0047), (-3, 17), (0, 3.7e5), (99.1, 99.4), (1e-9, 2e-9), (-1e8, -1e3), (5, 5), (0, 0)]


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize("log", [False, True])
def test_a_scale_has_all_values_and_a_few_ticks(ends, log):
    scale = scale_of(ends, log=log)
    shown = [value for value in ends if value > 0 or not log]
    slack = 1e-12 * max(map(abs, ends))  # a multiple of a step is rounded
    assert all(scale.low - slack <= value <= scale.high + slack for value in shown)
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    if shown:
        assert 2 <= len(ticks) <= 12
    assert all(-1e-9 <= scale.at(value) <= 1 + 1e-9 for value in ticks)
    assert len({tick(value) for value in ticks}) == len(ticks)  # labels tell them apart


def test_places():
    assert Scale(0, 10).at(2.5) == 0.25
    assert Scale(1e-4, 1, log=True).at(1e-3) == pytest.approx(0.25)
    assert (Scale(0, 1).at(-3), Scale(0, 1).at(7)) == (0, 1)
    assert Scale(1e-4, 1, log=True).at(0) == 0


@pytest.mark.parametrize("log", [False, True])
def test_what_is_not_finite_does_not_count(log):
    assert scale_of([math.nan, 1, 2, math.inf, -math.inf, 1e305], log=log) == scale_of([1, 2], log=log)
    assert scale_of([math.nan], log=log) == Scale(0, 1)


def test_many_decades_are_thinned_out():
    ticks = Scale(1e-20, 1e20, log=True).ticks()
    assert 3 <= len(ticks) <= 6
    assert len({round(math.log10(b / a)) for a, b in itertools.pairwise(ticks)}) == 1


def test_given_ends_stay():
    assert scale_of([0.2, 0.31], low=0).low == 0
    assert scale_of([0.2], low=0, high=1) == Scale(0, 1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((0, "0"), (1.23456, "1.235"), (0.0001234, "0.0001234"), (-0.5, "-0.5"), (123456, "123,500")),
        *((1e-7, "1e-7"), (1.25e-9, "1.25e-9"), (2.5e9, "2.5e9")),
        *((math.inf, "inf"), (math.nan, "nan"), (None, "\N{EN DASH}")),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_units():
    assert percent(0.69444).replace("\N{NARROW NO-BREAK SPACE}", " ") == "69.44 %"
    assert percent(None) == "\N{EN DASH}"
    assert [compact(v) for v in (950, 9_999, 12_000, 1_500_000, 2e9)] == ["950", "9,999", "12k", "1.5M", "2G"]
    assert [duration(s) for s in (6.42, 59.96, 75, 3_675, 200_000)] == [
        "6.4 s",
        "60.0 s",
        "1 min 15 s",
        "1 h 1 min",
        "2 d 7 h",
    ]
