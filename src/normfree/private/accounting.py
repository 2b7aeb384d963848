"""What a run of private training has told about its images, by the accountants of Opacus."""

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import UsageError
from .config import PrivateConfig

Spent = list[list[float]]  # noise multiplier, sampling rate and number of steps, one after the other
TOLERANCE = 0.01  # of the epsilon that a noise multiplier is searched for


@contextmanager
def _opacus() -> Iterator[Any]:
    """Its accountants; their warnings are about precision, which errs on the safe side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module("opacus.accountants")
            importlib.import_module("opacus.accountants.utils")
        except ImportError as error:
            raise UsageError(
                'private.epsilon needs Opacus for its accounting: pip install "normfree[private]"'
            ) from error
        yield module


def epsilon_of(spent: Sequence[Sequence[float]], delta: float, accountant: str = "prv") -> float:
    """The epsilon of steps of DP-SGD at ``delta``, an upper bound.

    Neighbouring data sets differ in one image that is there or not. Each step draws every image with its sampling rate,
    and adds normal noise of ``noise * max_norm`` to the sum of gradients that are at most ``max_norm`` long.

    Args:
        spent: noise multiplier, sampling rate and number of steps, one after the other.
        accountant: "prv" (Gopi et al. 2021, arXiv:2106.02848) or "rdp" (Mironov et al. 2019, arXiv:1908.10530).

    Raises:
        UsageError: Opacus is not installed.

    Example:
        >>> round(epsilon_of([[1.0, 0.01, 1000]], delta=1e-5, accountant="rdp"), 2)
        2.1
        >>> epsilon_of([], delta=1e-5)
        0.0
    """
    history = [(noise, rate, int(steps)) for noise, rate, steps in spent if steps]
    if not history:
        return 0.0
    with _opacus() as opacus:
        counted = opacus.create_accountant(mechanism=accountant)
        counted.history = history
        return float(counted.get_epsilon(delta=delta))


def noise_for(epsilon: float, delta: float, *, rate: float, steps: int, accountant: str = "prv") -> float:
    """The least noise multiplier whose epsilon is at most that of the budget, and less by 0.01 at most.

    Args:
        rate: with which each image is drawn; steps: of the run; the others as of :func:`epsilon_of`.

    Raises:
        UsageError: Opacus is not installed; no noise keeps the budget.

    Example:
        >>> noise = noise_for(2.0, 1e-5, rate=0.01, steps=1000, accountant="rdp")
        >>> 1.99 <= epsilon_of([[noise, 0.01, 1000]], 1e-5, "rdp") <= 2.0
        True
    """
    with _opacus() as opacus:
        try:
            return float(
                opacus.utils.get_noise_multiplier(
                    target_epsilon=epsilon,
                    target_delta=delta,
                    sample_rate=rate,
                    steps=steps,
                    accountant=accountant,
                    epsilon_tolerance=min(TOLERANCE, epsilon / 10),
                )
            )
        except ValueError as error:
            raise UsageError(
                f"private.epsilon (={epsilon}) is kept by no noise over {steps} steps, says the {accountant} accountant"
            ) from error


class Ledger:
    """The budget of a run and what of it is spent; it goes into each checkpoint.

    Args:
        config: with a ``noise_multiplier``.
        rate: with which each image is drawn in a step.

    Attributes:
        spent: the steps so far; see :func:`epsilon_of`.

    Example:
        >>> ledger = Ledger(PrivateConfig(epsilon=2.0, noise_multiplier=1.0, accountant="rdp"), rate=0.01)
        >>> ledger.record()
        >>> ledger.spent
        [[1.0, 0.01, 1]]
        >>> ledger.check(800)
        >>> ledger.check(1000)
        Traceback (most recent call last):
            ...
        normfree.errors.UsageError: 1,001 steps would spend epsilon 2.1..., more than private.epsilon (=2.0) allows...
    """

    def __init__(self, config: PrivateConfig, rate: float):
        if config.epsilon is None or config.noise_multiplier is None:
            raise UsageError("private.noise_multiplier must be set: noise_for() computes it from the budget")
        self.config, self.budget, self.noise, self.rate = config, config.epsilon, config.noise_multiplier, rate
        self.spent: Spent = []

    def record(self) -> None:
        """Count one more step."""
        if self.spent and self.spent[-1][:2] == [self.noise, self.rate]:
            self.spent[-1][2] += 1
        else:
            self.spent.append([self.noise, self.rate, 1])

    def resume(self, spent: Spent, steps: int, source: object) -> None:
        """Go on from what was spent.

        Raises:
            UsageError: it does not account for all steps of the run.
        """
        self.spent = spent
        if self.steps != steps:
            raise UsageError(f"{source} has done {steps} steps, and says the noise of {self.steps} of them")

    @property
    def steps(self) -> int:
        return int(sum(steps for _, _, steps in self.spent))

    def epsilon(self, more: int = 0) -> float:
        """What is spent, and would be after some more steps."""
        planned = [*self.spent, [self.noise, self.rate, more]]
        return epsilon_of(_joined(planned), self.config.delta, self.config.accountant)

    def check(self, more: int) -> None:
        """Refuse steps that the budget does not allow.

        Raises:
            UsageError: it would be exceeded.
        """
        epsilon = self.epsilon(more)
        if epsilon > self.budget:
            raise UsageError(
                f"{self.steps + more:,} steps would spend epsilon {epsilon:.4g}, more than private.epsilon "
                f"(={self.budget}) allows; {self.steps + self.steps_left(more):,} steps would not"
            )

    def steps_left(self, most: int) -> int:
        """How many of so many further steps the budget allows."""
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon(middle) <= self.budget else (low, middle)
        return low


def _joined(spent: Sequence[Sequence[float]]) -> Spent:
    """Steps of the same noise and rate together."""
    joined: Spent = []
    for noise, rate, steps in spent:
        if joined and joined[-1][:2] == [noise, rate]:
            joined[-1][2] += steps
        else:
            joined.append([noise, rate, steps])
    return joined
