"""Variances that theory expects of the signal, and the sums and concatenations that keep them.

"NF-ResNets" is arXiv:2101.08692.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError, check_count


def expected_variances(depths: Sequence[int], alpha: float = 0.2) -> list[list[float]]:
    """Predicted variance of each block's input, per stage, at initialization (NF-ResNets, section 4).

    The signal enters with variance 1; every block adds ``alpha ** 2``; after a stage's first block (the transition,
    whose shortcut takes the downscaled activation) the variance is ``1 + alpha ** 2`` again. The ``beta`` of a block is
    the square root of its entry.

    Example:
        >>> [[round(variance, 2) for variance in stage] for stage in expected_variances([1, 3])]
        [[1.0], [1.04, 1.04, 1.08]]
    """
    variance, stages = 1.0, []
    for depth in depths:
        stage = []
        for block in range(depth):
            stage.append(variance)
            variance = (1.0 if block == 0 else variance) + alpha**2
        stages.append(stage)
    return stages


def expected_skip_variances(skips: Sequence[bool], alpha: float = 0.2, first: float = 1.0) -> list[float]:
    """Predicted variance of each block's input, and of the last one's output, where some blocks have no skip.

    A block with a skip adds ``alpha ** 2``, as in :func:`expected_variances`. One without is all branch: it divides by
    the standard deviation of its input, and the variance is 1 again. So it is in NF-EfficientNets (NF-ResNets, section
    5.2, which does not state the reset). The first block's input has variance ``first``.

    Example:
        >>> [round(variance, 2) for variance in expected_skip_variances([False, True, True, False])]
        [1.0, 1.0, 1.04, 1.08, 1.0]
    """
    variances = [first]
    for skip in skips:
        variances.append(variances[-1] + alpha**2 if skip else 1.0)
    return variances


def concatenated_variance(channels: Sequence[int], variances: Sequence[float]) -> float:
    """Variance of concatenated maps, the mean over all channels: ``sum(n_i * v_i) / sum(n_i)``.

    So it is at initialization, where maps have no mean; else the same holds for mean squares.

    Example:
        >>> concatenated_variance([64, 64], [1.0, 1.5])
        1.25
    """
    _check_maps(channels, variances)
    return sum(n * v for n, v in zip(channels, variances, strict=True)) / sum(channels)


def concat_weights(
    channels: Sequence[int], variances: Sequence[float] | None = None, shares: Sequence[float] | None = None
) -> list[float]:
    """Factors of maps that are concatenated, so that the result has mean square 1 and each map its share of it.

    ``w_i = sqrt(share_i * sum(n) / (n_i * v_i))``: the magnitude-preserving concatenation of Karras et al. 2024
    (arXiv:2312.02696, eq. 103), which has two maps of variance 1. There the share of the second one, balanced by t, is
    ``t**2 / ((1 - t)**2 + t**2)``.

    Args:
        channels: n_i of each map.
        variances: v_i, or mean squares, of each map; None: 1.
        shares: of the sum of squares over all channels, which a convolution sees; they need not sum to 1. None: equal
            shares, whatever the numbers of channels.

    Raises:
        UsageError: lists of different lengths, or empty ones; a number of channels below 1; a variance or share that is
            not above 0.

    Example:
        >>> [round(weight, 3) for weight in concat_weights([64, 64], [1.0, 1.44])]
        [1.0, 0.833]
        >>> [round(weight, 3) for weight in concat_weights([32, 96])]  # the smaller map counts as much
        [1.414, 0.816]
    """
    variances = [1.0] * len(channels) if variances is None else variances
    shares = [1.0] * len(channels) if shares is None else shares
    _check_maps(channels, variances, shares)
    total, whole = sum(channels), sum(shares)
    return [math.sqrt(s / whole * total / (n * v)) for n, v, s in zip(channels, variances, shares, strict=True)]


def _check_maps(channels: Sequence[int], variances: Sequence[float], shares: Sequence[float] | None = None) -> None:
    """Refuse descriptions of concatenated maps that do not fit together; raises UsageError."""
    for name, values in dict(variances=variances, shares=variances if shares is None else shares).items():
        if len(values) != len(channels) or not len(channels):
            raise UsageError(f"{name} (={list(values)}) must be one for each of {len(channels)} maps, at least one")
        for value in values:
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} (={list(values)}) must be above 0")
    for number in channels:
        check_count("channels", number)


def residual_merge(shortcut: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """``shortcut + gate * branch`` in one pass over memory; ``gate`` is (N, C, 1, ...), (N, 1, 1, ...) or (1,).

    Example:
        >>> shortcut, branch = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
        >>> residual_merge(shortcut, branch, torch.tensor([0.5])).unique()
        tensor([1.5000])
    """
    return torch.addcmul(shortcut, branch, gate.to(branch.dtype))


def survival_mask(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth's mask: 0 or 1 per example, shape (N, 1, ..., 1).

    It is not divided by the survival rate, which would change the signal's variance (NF-ResNets, appendix B.2).

    Example:
        >>> survival_mask(torch.randn(4, 3, 8, 8), rate=0.5).shape
        torch.Size([4, 1, 1, 1])
    """
    keep = torch.rand(x.shape[0], device=x.device) >= rate
    return keep.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
