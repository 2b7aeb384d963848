"""Relatives of Adam: LAMB, with steps in proportion to the weights, and LaProp, which normalizes gradients first."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .foreach import (
    foreach_add_,
    foreach_addcmul_,
    foreach_div,
    foreach_div_,
    foreach_lerp_,
    foreach_mul,
    foreach_mul_,
    foreach_sqrt_,
    foreach_sub_,
)
from .sharded import local
from .state import GroupOptimizer, gradients, state, tensor_norms


class LAMB(GroupOptimizer):
    """Adam whose step has the length of its weight times the learning rate (You et al. 2020, arXiv:1904.00962).

    With Adam's direction ``r = m / (sqrt(v) + eps) + weight_decay * w``, both moments corrected for their start at 0,
    the step of a tensor is ``lr * |w| / |r| * r``. A tensor or a direction of norm 0 is not scaled, and neither is a
    group with ``scaled=False``. Gradients are not clipped here, as they are by default in other implementations.

    Args:
        params: parameters, or groups, such as those of :func:`param_groups`.
        lr: learning rate: of a scaled tensor, the relative length of a step.
        betas: decay of the moving averages of gradients and of their squares.
        eps: added to the root of the squares.
        weight_decay: see above.
        scaled: whether steps have the length of their tensor.

    Raises:
        UsageError: a number is out of range; in ``step``, a sparse gradient.

    Example:
        >>> weight = nn.Parameter(torch.ones(4))
        >>> optimizer = LAMB([weight], lr=0.1)
        >>> weight.grad = torch.full((4,), 1000.0)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([0.9000, 0.9000, 0.9000, 0.9000])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        scaled: bool = True,
    ):
        _check(lr, betas, eps, weight_decay)
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, scaled=scaled))

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        weights, grads, beta1 = [local(p) for p in params], gradients(params), group["betas"][0]
        counts = _counted(self, params)
        roots = _roots(self, params, grads, counts, group)
        moments = state(self, params, "exp_avg", torch.zeros_like)
        foreach_lerp_(moments, grads, 1 - beta1)
        updates = foreach_div(moments, [1 - beta1**count for count in counts])
        foreach_div_(updates, roots)
        if group["weight_decay"] != 0:
            foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["scaled"]:
            sizes, lengths = tensor_norms(weights, params), tensor_norms(updates, params)
            ratios = torch.where((sizes == 0) | (lengths == 0), torch.ones_like(sizes), sizes / lengths)
            foreach_mul_(updates, [ratio.to(u.dtype) for ratio, u in zip(ratios.unbind(), updates, strict=True)])
        foreach_add_(weights, updates, alpha=-group["lr"])


class LaProp(GroupOptimizer):
    """Adam in another order: gradients are normalized first, then averaged (Ziyin et al. 2020, arXiv:2002.04839).

    ``v = beta2 * v + (1 - beta2) * g^2``; ``m = beta1 * m + (1 - beta1) * lr * g / (sqrt(v / c2) + eps)``;
    ``w = w - m / c1``, with ``c = 1 - beta^steps``. So any two betas go together, and a large gradient is divided by
    its own size. Decay is decoupled, as AdamW's: ``w`` is first multiplied by ``1 - lr * weight_decay``.

    Args:
        params: parameters, or groups, such as those of :func:`param_groups`.
        lr: learning rate.
        betas: decay of the moving averages of normalized gradients, and of the squares of gradients.
        eps: added to the root of the squares.
        weight_decay: see above.

    Raises:
        UsageError: a number is out of range; in ``step``, a sparse gradient.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = LaProp([weight], lr=0.1)
        >>> weight.grad = torch.tensor([1000.0, -0.001])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        _check(lr, betas, eps, weight_decay)
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        weights, grads, beta1 = [local(p) for p in params], gradients(params), group["betas"][0]
        counts = _counted(self, params)
        normalized = foreach_div(grads, _roots(self, params, grads, counts, group))
        moments = state(self, params, "exp_avg", torch.zeros_like)
        foreach_mul_(moments, beta1)
        foreach_add_(moments, normalized, alpha=group["lr"] * (1 - beta1))
        if group["weight_decay"] != 0:
            foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        foreach_sub_(weights, foreach_mul(moments, [1 / (1 - beta1**count) for count in counts]))


def _counted(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> list[float]:
    """The number of steps of each parameter, this one included; kept as ``step``, as torch's optimizers do."""
    for p in params:
        kept = optimizer.state[p]
        kept["step"] = kept["step"] + 1 if "step" in kept else torch.tensor(1.0)
    return [optimizer.state[p]["step"].item() for p in params]


def _roots(
    optimizer: torch.optim.Optimizer,
    params: list[Tensor],
    grads: list[Tensor],
    counts: list[float],
    group: dict[str, Any],
) -> list[Tensor]:
    """The root of the average of squares, which takes in this step's gradients, plus ``eps``."""
    beta = group["betas"][1]
    squares = state(optimizer, params, "exp_avg_sq", torch.zeros_like)
    foreach_mul_(squares, beta)
    foreach_addcmul_(squares, grads, grads, 1 - beta)
    roots = foreach_div(squares, [1 - beta**count for count in counts])
    foreach_sqrt_(roots)
    foreach_add_(roots, group["eps"])
    return roots


def _check(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    for beta in betas:
        if not 0 <= beta < 1:
            raise UsageError(f"betas (={beta}) must be at least 0 and below 1")
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise UsageError(f"{name} (={value}) must be at least 0")
