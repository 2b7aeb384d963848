"""Clipping what an optimizer does to the weights, in the place of what it is given."""

from typing import Any

import torch
from torch import Tensor

from .clip import agc_
from .clip_statistics import ClipStatistics
from .sharded import local

PLACES = ("gradient", "update")


class UpdateClip:
    """Bounds the change of the weights in a step, per unit, to ``lr * clipping * max(|W_i|, eps)``.

    For SGD without momentum and without decay of weights this is Adaptive Gradient Clipping, since the update is ``lr``
    times the gradient. The updates of Adam and its relatives do not follow the length of the gradient, so that only
    this bounds the relative length of their steps. Momentum and decay of weights are parts of the update; what the
    optimizer keeps does not change.

    It is made before the step, and keeps a copy of the clipped weights until its end.

    Args:
        groups: of the optimizer.
        clipping: of the groups without one; groups of None are not clipped.

    Example:
        >>> weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = torch.optim.Adam([weight], lr=0.1)
        >>> weight.grad = torch.ones(1, 2)
        >>> update = UpdateClip(optimizer.param_groups, clipping=0.1)
        >>> optimizer.step()  # by 0.1 in each entry
        >>> update.clip(0.1, eps=1e-3, kind="unit").fraction
        {'params': 1.0}
        >>> round((weight - torch.tensor([[3.0, 4.0]])).norm().item(), 4)  # 0.1 * 0.1 * 5
        0.05
    """

    def __init__(self, groups: list[dict[str, Any]], clipping: float | None):
        self.groups = [group for group in groups if group.get("clipping", clipping) is not None]
        self.before = [[p.detach().clone() for p in group["params"]] for group in self.groups]

    @torch.no_grad()
    def clip(self, clipping: float | None, eps: float, kind: str) -> ClipStatistics:
        """Shorten the updates of the parameters that have a gradient; the ratios are of updates over ``lr``."""
        moved = list[tuple[Tensor, Tensor, float]]()
        clipped = list[dict[str, Any]]()
        for group, before in zip(self.groups, self.before, strict=True):
            lr = float(group["lr"]) or 1.0  # at a rate of 0 nothing has moved
            pairs = [(p, old) for p, old in zip(group["params"], before, strict=True) if p.grad is not None]
            for p, old in pairs:
                old.grad = _update(p, old, lr)  # where agc_ scales it
            moved += [(p, old, lr) for p, old in pairs]
            clipped.append(group | dict(params=[old for _, old in pairs]))
        statistics = agc_(clipped, clipping, eps, kind=kind)
        for p, old, lr in moved:
            update, shortened = local(_update(p, old, lr)), local(old.grad if old.grad is not None else old)
            # what is not clipped keeps the optimizer's rounding
            local(p).copy_(torch.where(shortened == update, local(p), local(old).add(shortened, alpha=lr)))
        own = {old: p for p, old, _ in moved}
        groups = [group._replace(params=[own[old] for old in group.params]) for group in statistics.groups]
        return ClipStatistics(statistics.gradient_norm, groups)


def _update(p: Tensor, before: Tensor, lr: float) -> Tensor:
    return (p.detach() - before).div_(lr)
