"""RMSProp as TensorFlow computes it, and with it the published EfficientNets."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .foreach import foreach_add, foreach_addcdiv_, foreach_addcmul_, foreach_mul_, foreach_sqrt_, foreach_sub_
from .sharded import local
from .state import GroupOptimizer, gradients, state


class RMSProp(GroupOptimizer):
    """RMSProp (Tieleman and Hinton 2012) with TensorFlow's details, which EfficientNets need (NFNets, section 6.1).

    ``square = decay * square + (1 - decay) * g^2``, from 1 on;
    ``moving = momentum * moving + lr * g / sqrt(square + eps)``; ``w = w - moving``.

    :class:`torch.optim.RMSprop` differs in three places: its squares start at 0, so that the first steps are larger;
    its ``eps`` is added to the root; its learning rate is outside of the momentum, so that a change acts on earlier
    gradients, too.

    Args:
        params: parameters, or groups, such as those of :func:`param_groups`.
        lr: learning rate.
        decay: of the moving average of squares.
        momentum: 0 keeps no momentum.
        eps: added to the squares, 0.001 for the published EfficientNets.
        weight_decay: times the weight, added to the gradient.

    Raises:
        UsageError: a number is out of range; in ``step``, a sparse gradient.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = RMSProp([weight], lr=0.1, momentum=0.0, eps=0.0)
        >>> weight.grad = torch.tensor([0.0, 1.0])
        >>> optimizer.step()  # 0.9 * 1 + 0.1 * 1 is 1
        >>> weight.detach()
        tensor([1.0000, 0.9000])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.01,
        *,
        decay: float = 0.9,
        momentum: float = 0.9,
        eps: float = 0.001,
        weight_decay: float = 0.0,
    ):
        for name, value in (("decay", decay), ("momentum", momentum)):
            if not 0 <= value < 1:
                raise UsageError(f"{name} (={value}) must be at least 0 and below 1")
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise UsageError(f"{name} (={value}) must be at least 0")
        super().__init__(params, dict(lr=lr, decay=decay, momentum=momentum, eps=eps, weight_decay=weight_decay))

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        weights, grads = [local(p) for p in params], gradients(params)
        if group["weight_decay"] != 0:
            grads = foreach_add(grads, weights, alpha=group["weight_decay"])
        squares = state(self, params, "square_avg", torch.ones_like)
        foreach_mul_(squares, group["decay"])
        foreach_addcmul_(squares, grads, grads, 1 - group["decay"])
        roots = foreach_add(squares, group["eps"])
        foreach_sqrt_(roots)
        if group["momentum"] == 0:
            foreach_addcdiv_(weights, grads, roots, -group["lr"])
            return
        buffers = state(self, params, "momentum_buffer", torch.zeros_like)
        foreach_mul_(buffers, group["momentum"])
        foreach_addcdiv_(buffers, grads, roots, group["lr"])
        foreach_sub_(weights, buffers)
