"""The learning rate as a function of the step."""

import math
from collections.abc import Sequence

from ..errors import UsageError


def warmup_cosine(
    step: float, *, peak: float, total_steps: float, warmup_steps: float = 0.0, start: float = 0.0, end: float = 0.0
) -> float:
    """Learning rate at ``step`` (0-based): linear from ``start`` to ``peak``, then half a cosine to ``end``.

    Both papers' schedule (NFNets, section 6.1). A pure function: a resumed run needs nothing but its step. For a torch
    scheduler: ``LambdaLR(optimizer, lambda step: warmup_cosine(step, peak=1.0, ...))``.

    Raises:
        UsageError: ``warmup_steps`` not within 0 and ``total_steps``.

    Example:
        >>> [round(warmup_cosine(step, peak=0.1, total_steps=100, warmup_steps=10), 4) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.05, 0.1, 0.05, 0.0]
    """
    _check(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1e-12), 1.0)
    return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2


def warmup_drops(
    step: float,
    *,
    peak: float,
    total_steps: float,
    drops: Sequence[float],
    warmup_steps: float = 0.0,
    start: float = 0.0,
    factor: float = 0.1,
) -> float:
    """Learning rate at ``step`` (0-based): linear from ``start`` to ``peak``, then times ``factor`` at each drop.

    A drop is a fraction of ``total_steps``: with 0.7 and 0.9 of 30,000 steps, steps 21,000 and 27,000 are the first
    ones with a smaller learning rate (NF-ResNets, appendix H.1).

    Raises:
        UsageError: ``warmup_steps`` not within 0 and ``total_steps``.

    Example:
        >>> [round(warmup_drops(step, peak=0.1, total_steps=100, drops=(0.7, 0.9)), 4) for step in (0, 70, 90)]
        [0.1, 0.01, 0.001]
    """
    _check(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    return peak * factor ** sum(step >= round(fraction * total_steps) for fraction in drops)


def warmup_exp_decay(
    step: float, *, peak: float, decay_steps: float, factor: float, warmup_steps: float = 0.0, start: float = 0.0
) -> float:
    """Learning rate at ``step`` (0-based): linear from ``start`` to ``peak``, then times ``factor`` every so often.

    The released schedule ``WarmupExpDecay``, the step decay of RMSProp (NFNets, section 6.1). It falls in steps, first
    ``decay_steps`` after the warm-up; the published EfficientNets count from the start of the run instead.

    Raises:
        UsageError: ``decay_steps`` is not above 0.

    Example:
        >>> options = dict(peak=1.0, decay_steps=24, factor=0.5, warmup_steps=10)
        >>> [warmup_exp_decay(step, **options) for step in (0, 5, 10, 33, 34, 58)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.25]
    """
    if not decay_steps > 0:
        raise UsageError(f"decay_steps (={decay_steps}) must be above 0")
    _check(step, math.inf, warmup_steps)
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    return peak * factor ** math.floor((step - warmup_steps) / decay_steps)


def _check(step: float, total_steps: float, warmup_steps: float) -> None:
    if not 0 <= warmup_steps <= total_steps:
        raise UsageError(f"warmup_steps (={warmup_steps}) must lie between 0 and total_steps (={total_steps})")
    if step < 0:
        raise UsageError(f"step (={step}) must be at least 0")
