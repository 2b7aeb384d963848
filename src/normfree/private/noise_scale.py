"""The gradient noise scale: beyond which batch size larger batches bring little (McCandlish et al., 2018)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from .checks import trained_parameters
from .passes import ExamplePasses, Loss


@dataclass(frozen=True)
class Spread:
    """Of the gradients of examples: the trace of their covariance, and the squared norm of their mean.

    Both are unbiased estimates; that of the squared norm may be negative.
    """

    trace: float
    square: float

    @property
    def scale(self) -> float:
        """``trace / square``, in examples; infinite where no mean gradient is seen in the noise."""
        return self.trace / self.square if self.square > 0 else math.inf


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale ``B_simple = tr(Sigma) / |G|^2`` (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.9).

    With batches far below it, doubling the batch halves the number of steps; far above it, hardly anything is gained.

    Attributes:
        examples: whose gradients were taken.
        whole: over all parameters; parameters: of each, by name.

    Example:
        >>> NoiseScale(100, Spread(trace=8.0, square=2.0), {}).scale
        4.0
    """

    examples: int
    whole: Spread
    parameters: dict[str, Spread]

    @property
    def scale(self) -> float:
        """The noise scale over all parameters, in examples."""
        return self.whole.scale

    @property
    def certain(self) -> bool:
        """Whether there were more examples than the noise scale; else the mean gradient drowns in the noise."""
        return self.scale < self.examples


def noise_scale(model: nn.Module, batches: Iterable[tuple[tuple[Any, ...], Loss]]) -> NoiseScale:
    """Estimate the gradient noise scale of a network from the gradients of examples.

    With g the mean of n gradients and m the mean of their squared norms, ``(m - |g|^2) * n / (n - 1)`` estimates
    tr(Sigma), and ``(n |g|^2 - m) / (n - 1)`` estimates |G|^2, both without bias (arXiv:1812.06162, appendix A.1, with
    batches of 1 and n). All gradients are at the same weights, which are not changed.

    Args:
        model: in training mode if dropout and stochastic depth are to count as noise.
        batches: the network's arguments, and the loss of its output as a mean over the batch. Batches of any sizes: the
            examples count, not the batches.

    Raises:
        UsageError: BatchNorm; fewer than two examples.

    Example:
        >>> model, x, y = nn.Linear(1, 1, bias=False), torch.ones(200, 1), torch.randn(200, 1) + 5
        >>> model.weight.data.zero_()
        tensor([[0.]])
        >>> found = noise_scale(model, [((x,), lambda out: (out - y).square().mean() / 2)])
        >>> 0.02 < found.scale < 0.06  # gradients are -y: variance 1, mean 5
        True
    """
    parameters = trained_parameters(model)
    kept = {name: p.grad for name, p in parameters.items()}
    squares = dict.fromkeys(parameters, 0.0)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    count = 0
    try:
        for inputs, loss in batches:
            passes = ExamplePasses(model, inputs)
            passes.seed(loss)
            for name, square in passes.squared_norms().items():
                squares[name] += float(square.sum())
            for p in parameters.values():
                p.grad = None
            passes.accumulate(torch.ones(passes.rows, dtype=torch.float64, device=passes.output.device))
            for name, p in parameters.items():
                if p.grad is not None:
                    sums[name] += p.grad
            count += passes.rows
    finally:
        for name, p in parameters.items():
            p.grad = kept[name]
    if count < 2:
        raise UsageError(f"a noise scale needs at least two examples, and there {'is one' if count else 'are none'}")
    found = {name: _spread(squares[name] / count, float((sums[name] / count).square().sum()), count) for name in sums}
    whole = Spread(sum(one.trace for one in found.values()), sum(one.square for one in found.values()))
    return NoiseScale(count, whole, found)


def _spread(mean_square: float, square_mean: float, count: int) -> Spread:
    """From the mean of the squared norms, and the squared norm of the mean."""
    rest = count - 1
    return Spread((mean_square - square_mean) * count / rest, (count * square_mean - mean_square) / rest)
