"""The learning rate as a function of the step."""

import math

from ..errors import UsageError


def warmup_cosine(
    step: float, *, peak: float, total_steps: float, warmup_steps: float = 0.0, start: float = 0.0, end: float = 0.0
) -> float:
    """Learning rate at ``step`` (0-based): linear from ``start`` to ``peak``, then half a cosine to ``end``.

    Both papers' schedule (NFNets, section 6.1). A pure function: a resumed run needs nothing but its step. For a torch
    scheduler: ``LambdaLR(optimizer, lambda step: warmup_cosine(step, peak=1.0, ...))``.

    Raises:
        UsageError: ``warmup_steps`` not within 0 and ``total_steps``.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise UsageError(f"warmup_steps (={warmup_steps}) must lie between 0 and total_steps (={total_steps})")
    if step < 0:
        raise UsageError(f"step (={step}) must be at least 0")
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1e-12), 1.0)
    return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2
