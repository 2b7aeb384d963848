"""The learning rate range test: the loss while the learning rate rises from step to step.

Source: Smith, "Cyclical learning rates for training neural networks" (WACV 2017, arXiv:1506.01186, section 3.3). There
the rate rises linearly and accuracies are looked at; here it rises geometrically, since rates are compared by ratios,
and the training loss is looked at, since it is there at each step. Smith reads two rates from the curve by eye; here
one rate is found by a fixed rule, see :func:`suggested`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RunFailed, UsageError

SPAN = 1e-3, 100.0  # of the rates, in units of the recipe's own
MEMORY = 0.05  # part of the test over which the smoothed loss forgets all but 1/e
DIVERGED = 4.0  # times the lowest smoothed loss
BELOW, BELOW_UNCLIPPED = 1.0, 4.0  # the suggestion is so many times below the rate of the lowest smoothed loss
LEAST_FALL = 0.03  # part of the first loss; less is called flat


@dataclass(frozen=True)
class RangeStep:
    """A step of the test.

    Attributes:
        lr: learning rate of the step.
        loss: of its batch, before the step.
        smoothed: the losses up to here, averaged.
        clipped: fraction of the units that were clipped; None: nothing is.
    """

    step: int
    lr: float
    loss: float
    smoothed: float
    clipped: float | None


class RangeTest:
    """The rates of a range test, and what was measured at each.

    The smoothed loss is an exponential average with the correction of Adam for its start, so that the first one is the
    first loss.

    Args:
        lowest, highest: learning rates of the first and the last step.
        steps: at least 2.

    Raises:
        UsageError: the rates are not above 0 and rising, or there are too few steps.

    Example:
        >>> test = RangeTest(0.01, 1.0, steps=3)
        >>> [round(test.lr(step), 6) for step in range(3)]
        [0.01, 0.1, 1.0]
        >>> test.add(2.0, None), test.add(1.0, None), test.add(50.0, None), test.diverged
        (None, None, None, True)
    """

    def __init__(self, lowest: float, highest: float, steps: int):
        if not 0 < lowest < highest < math.inf:
            raise UsageError(f"the rates (={lowest:g}..{highest:g}) must be above 0 and rising, such as 0.001..10")
        if steps < 2:
            raise UsageError(f"steps (={steps}) must be at least 2")
        self.lowest, self.highest, self.steps = lowest, highest, steps
        self.rows: list[RangeStep] = []
        self._forget = math.exp(-1 / max(1.0, MEMORY * steps))
        self._sum = 0.0

    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lowest * (self.highest / self.lowest) ** (step / (self.steps - 1))

    def add(self, loss: float, clipped: float | None) -> None:
        """Note the loss of the next step, and the fraction of units that it clipped."""
        step = len(self.rows)
        self._sum = self._forget * self._sum + (1 - self._forget) * loss
        smoothed = self._sum / (1 - self._forget ** (step + 1))
        self.rows.append(RangeStep(step + 1, self.lr(step), loss, smoothed, clipped))

    @property
    def diverged(self) -> bool:
        """Whether the smoothed loss is so many times (``DIVERGED``) as large as its lowest value."""
        return bool(self.rows) and self.rows[-1].smoothed > DIVERGED * min(row.smoothed for row in self.rows)

    @property
    def done(self) -> bool:
        return len(self.rows) == self.steps or self.diverged


def suggested(rows: Sequence[RangeStep], complete: bool = True) -> float:
    """The rate of the lowest smoothed loss; where nothing is clipped, a fixed factor (``BELOW_UNCLIPPED``) below it.

    With clipping, a step at a rate that is too high does little harm, and a lower peak only trains more slowly. Without
    it, a peak near that rate may diverge.

    Args:
        rows: of :class:`RangeTest`.
        complete: whether the test came to its last rate, without the loss being lost.

    Raises:
        RunFailed: no rate is found: the loss rises at once, hardly falls, or still falls at the last rate.

    Example:
        >>> test = RangeTest(0.01, 1.0, steps=9)
        >>> for loss in (2.3, 2.2, 2.0, 1.5, 1.0, 0.9, 1.2, 9.0):
        ...     test.add(loss, None)
        >>> suggested(test.rows, complete=False) == test.lr(5) / BELOW_UNCLIPPED
        True
    """
    if not rows:
        raise RunFailed("the loss diverges in the first step, at the lowest rate")
    first, last, lowest = rows[0], rows[-1], min(rows, key=lambda row: row.smoothed)
    tried = f"rates from {first.lr:.3g} to {last.lr:.3g}"
    if lowest.smoothed > (1 - LEAST_FALL) * first.smoothed:
        if complete:
            raise RunFailed(f"the loss is flat at {tried}: it falls by less than {LEAST_FALL:.0%} of {first.loss:.3g}")
        raise RunFailed(
            f"the loss diverges at rate {last.lr:.3g} and does not fall by {LEAST_FALL:.0%} before, at {tried}"
        )
    if complete and lowest is last:
        raise RunFailed(f"the loss still falls at the highest of the {tried}")
    return lowest.lr / below(rows)


def below(rows: Sequence[RangeStep]) -> float:
    """How far the suggestion lies below the rate of the lowest smoothed loss, as a factor.

    Args:
        rows: of :class:`RangeTest`.

    Example:
        >>> below([RangeStep(step=1, lr=0.1, loss=2.3, smoothed=2.3, clipped=None)])
        4.0
    """
    return BELOW_UNCLIPPED if all(row.clipped is None for row in rows) else BELOW
