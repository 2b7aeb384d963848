"""The learning rate range test: rates, smoothing, and the rule of the suggestion."""

import itertools
import math

import pytest

from normfree import RunFailed, UsageError
from normfree.training.lr_range import BELOW, BELOW_UNCLIPPED, DIVERGED, MEMORY, RangeTest, suggested


def fed(losses, lowest=1e-3, highest=10.0, steps=None, clipped=None):
    test = RangeTest(lowest, highest, steps or len(losses))
    for loss in losses:
        test.add(loss, clipped)
        if test.done:
            break
    return test


def valley(steps, bottom):
    """Losses whose lowest one is at the step ``bottom``, linear on both sides."""
    return [1 + abs(step - bottom) / steps for step in range(steps)]


def test_rates_rise_by_one_factor():
    test = RangeTest(1e-3, 10.0, steps=9)
    rates = [test.lr(step) for step in range(9)]
    assert (rates[0], rates[-1]) == pytest.approx((1e-3, 10.0))
    assert [b / a for a, b in itertools.pairwise(rates)] == pytest.approx([10**0.5] * 8)


def test_the_smoothed_loss_is_a_weighted_mean_of_those_before():
    losses = [3.0, 1.0, 2.0, 5.0, 4.0]
    test, keep = fed(losses, steps=100), math.exp(-1 / (MEMORY * 100))
    for n, row in enumerate(test.rows, 1):
        weights = [keep ** (n - 1 - k) for k in range(n)]
        mean = sum(w * loss for w, loss in zip(weights, losses, strict=False)) / sum(weights)
        assert row.smoothed == pytest.approx(mean)
        assert (row.step, row.loss) == (n, losses[n - 1])


@pytest.mark.parametrize(("clipped", "factor"), [(None, BELOW_UNCLIPPED), (0.0, BELOW), (0.3, BELOW)])
def test_the_suggestion_lies_a_fixed_factor_below_the_lowest_loss(clipped, factor):
    test = fed(valley(200, 120), clipped=clipped)
    late = suggested(test.rows) * factor / test.lr(120)
    assert 1 <= late <= (10 / 1e-3) ** (2 * MEMORY)  # smoothing looks back


@pytest.mark.parametrize("factor", [1e-3, 0.3, 40.0])
def test_units_of_rates_and_losses_do_not_matter(factor):
    plain = suggested(fed(valley(50, 30)).rows)
    assert suggested(fed(valley(50, 30), 1e-3 * factor, 10.0 * factor).rows) == pytest.approx(factor * plain)
    assert suggested(fed([factor * loss for loss in valley(50, 30)]).rows) == plain


def test_it_stops_where_the_smoothed_loss_is_lost():
    test = fed([1.0] * 10 + [1e3] * 10)
    assert test.diverged
    assert len(test.rows) == 11
    assert test.rows[-1].smoothed > DIVERGED
    assert not fed([1.0] * 10 + [2.0] * 10).diverged


@pytest.mark.parametrize(
    ("losses", "complete", "told"),
    [
        ([], False, "the loss diverges in the first step, at the lowest rate"),
        (
            [2.3, 2.4, 90.0],
            False,
            "the loss diverges at rate 10 and does not fall by 3% before, at rates from 0.001 to",
        ),
        ([2.3] * 9, True, "the loss is flat at rates from 0.001 to 10: it falls by less than 3% of 2.3"),
        ([3.0, 2.0, 1.0], True, "the loss still falls at the highest of the rates from 0.001 to 10"),
    ],
)
def test_no_rate_is_said_in_one_line(losses, complete, told):
    with pytest.raises(RunFailed, match=told):
        suggested(fed(losses, steps=len(losses) or 3).rows, complete)


def test_what_is_refused():
    for lowest, highest in ((0.0, 1.0), (1.0, 0.1), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(UsageError, match=r"^the rates \(=.*\) must be above 0 and rising"):
            RangeTest(lowest, highest, steps=10)
    with pytest.raises(UsageError, match=r"^steps \(=1\) must be at least 2"):
        RangeTest(0.1, 1.0, steps=1)
