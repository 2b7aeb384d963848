"""Layer-wise adaptive rate scaling, a rival of gradient clipping (NFNets, section 4)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .foreach import foreach_add, foreach_add_, foreach_mul, foreach_mul_, foreach_sub_
from .sharded import local
from .state import GroupOptimizer, gradients, state, tensor_norms


class LARS(GroupOptimizer):
    """SGD with momentum whose step has a fixed ratio to the norm of each tensor (You et al. 2017, arXiv:1708.03888).

    The gradient ``g`` of a tensor ``w``, decay included, is scaled by ``trust_coefficient * |w| / (|g| + eps)``. So the
    length of the gradient does not matter, where clipping only bounds it (NFNets, section 4). A tensor or a gradient of
    norm 0 is not scaled. The learning rate is inside of the momentum, as in optax, whose numbers these are.

    Args:
        params: parameters, or groups, such as those of :func:`param_groups`. A group with ``trust_coefficient=None`` is
            not scaled: it takes steps of SGD.
        lr: learning rate; the length of a step without momentum is ``lr * trust_coefficient`` of the tensor's.
        momentum, nesterov, weight_decay: as in :class:`torch.optim.SGD`.
        trust_coefficient: ratio of the norms of the step and the tensor at a learning rate of 1.
        eps: added to the norm of the gradient.

    Raises:
        UsageError: a number is out of range; in ``step``, a sparse gradient.

    Example:
        >>> weight = nn.Parameter(torch.ones(4))
        >>> optimizer = LARS([weight], lr=1.0, momentum=0.0, trust_coefficient=0.1)
        >>> weight.grad = torch.full((4,), 1000.0)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([0.9000, 0.9000, 0.9000, 0.9000])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        trust_coefficient: float | None = 0.001,
        eps: float = 0.0,
    ):
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum (={momentum}) must be at least 0 and below 1")
        if nesterov and momentum == 0:
            raise UsageError("nesterov (=True) needs momentum above 0")
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
            if not value >= 0:
                raise UsageError(f"{name} (={value}) must be at least 0")
        if trust_coefficient is not None and not trust_coefficient > 0:
            raise UsageError(f"trust_coefficient (={trust_coefficient}) must be above 0, or None for steps of SGD")
        options = dict(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        super().__init__(params, options | dict(trust_coefficient=trust_coefficient, eps=eps))

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        weights = [local(p) for p in params]
        grads = gradients(params)
        updates = foreach_add(grads, weights, alpha=group["weight_decay"])
        foreach_mul_(updates, _rates(params, updates, group))
        if group["momentum"] != 0:
            buffers = state(self, params, "momentum_buffer", torch.zeros_like)
            foreach_mul_(buffers, group["momentum"])
            foreach_add_(buffers, updates)
            if group["nesterov"]:
                foreach_add_(updates, foreach_mul(buffers, group["momentum"]))
            else:
                updates = buffers
        foreach_sub_(weights, updates)


def _rates(params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> list[Tensor] | float:
    """The learning rate of each tensor."""
    if group["trust_coefficient"] is None:
        return group["lr"]
    sizes, lengths = tensor_norms([local(p) for p in params], params), tensor_norms(updates, params)
    ratios = group["trust_coefficient"] * sizes / (lengths + group["eps"])
    rates = group["lr"] * torch.where((sizes == 0) | (lengths == 0), torch.ones_like(ratios), ratios)
    return [rate.to(update.dtype) for rate, update in zip(rates.unbind(), updates, strict=True)]
