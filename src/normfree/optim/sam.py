"""Sharpness-Aware Minimization (Foret et al. 2021), as NFNets use it: the ascent on a part of the batch."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .foreach import foreach_add_, foreach_copy_, foreach_mul_, foreach_norm

Ascent = Literal["same", "next"]


class SAM:
    """The gradient at weights moved by ``rho`` along the gradient of another loss (NFNets, appendix A.4).

    >>> model = nn.Linear(4, 2)
    >>> x, sam = torch.randn(10, 4), SAM(model.parameters(), rho=0.05)
    >>> part = sam.part(len(x))  # the examples of the ascent: a fifth of the batch costs a fifth of a step
    >>> with sam.moved(model(x[part]).square().mean()):
    ...     model(x).square().mean().backward()  # gradients at the moved weights
    >>> model.weight.grad.shape  # the weights are as they were, to the bit
    torch.Size([2, 4])

    The ascent gradient goes through ``torch.autograd.grad``: ``.grad`` is untouched, and under DistributedDataParallel
    nothing is exchanged, so that each replica moves by its own gradient, as in the paper.

    Args:
        params: all parameters that are trained.
        rho: length of the move.
        fraction: of the batch that the ascent sees; 0.2 in the paper.
        ascent: what a step of training takes for the ascent of a micro-batch: a part of it ("same"), or of the "next"
            one, which the paper says to destroy all benefit.

    Raises:
        UsageError: not parameters; rho or fraction out of range.
    """

    def __init__(self, params: Iterable[Tensor], rho: float = 0.05, fraction: float = 0.2, ascent: Ascent = "same"):
        if not rho > 0:
            raise UsageError(f"SAM's rho (={rho}) must be above 0")
        if not 0 < fraction <= 1:
            raise UsageError(f"SAM's fraction (={fraction}) must be above 0 and at most 1")
        tensors = None if isinstance(params, nn.Module | torch.optim.Optimizer) else list(params)
        if tensors is None or not all(isinstance(p, Tensor) for p in tensors):
            raise UsageError("SAM takes parameters, SAM(model.parameters()), not a network, an optimizer or groups")
        self.params = [p for p in tensors if p.requires_grad]
        self.rho, self.fraction, self.ascent = rho, fraction, ascent

    def part(self, count: int) -> slice:
        """The first examples of a batch of ``count``, as many as the ascent sees; at least one."""
        return slice(0, max(1, round(self.fraction * count)))

    @contextlib.contextmanager
    def moved(self, loss: Tensor, params: Iterable[Tensor] | None = None) -> Iterator[Tensor]:
        """Weights moved to ``w + rho * g / |g|`` with the gradient ``g`` of ``loss``, |g| over all parameters.

        Args:
            params: the current parameters if they are other tensors: the gathered ones of a sharded network.

        Yields |g|, a tensor without dimensions. Afterwards the weights are restored bit for bit.
        """
        params = self.params if params is None else [p for p in params if p.requires_grad]
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        pairs = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
        params, steps = [p for p, _ in pairs], [g for _, g in pairs]
        with torch.no_grad():
            half = any(step.dtype in (torch.float16, torch.bfloat16) for step in steps)  # their norms would overflow
            norms = foreach_norm(steps, 2, torch.float32 if half else None)
            norm = torch.linalg.vector_norm(torch.stack(norms))
            foreach_mul_(steps, self.rho / norm.clamp(min=1e-12))
            originals = [p.clone() for p in params]
            foreach_add_(params, steps)
        del grads, steps, pairs
        try:
            yield norm
        finally:
            with torch.no_grad():
                foreach_copy_(params, originals)
