"""What this package's optimizers share: step, gradients and state of a group; of sharded tensors the local rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .foreach import foreach_norm
from .sharded import add_parts, is_sharded, local


def parameters(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> list[Tensor]:
    """The parameters of a group that have gradients.

    Raises:
        UsageError: a gradient is sparse, or is split over processes in another way than its weights.
    """
    params = [p for p in group["params"] if p.grad is not None]
    name, of = type(optimizer).__name__, group.get("name", "params")
    if any(p.grad is not None and p.grad.is_sparse for p in params):
        raise UsageError(f"group {of!r} has sparse gradients; {name} needs dense ones")
    if any(is_sharded(p) and p.placements != getattr(p.grad, "placements", None) for p in params):
        raise UsageError(f"group {of!r} has gradients that are split over processes in another way than their weights")
    return params


def gradients(params: Sequence[Tensor]) -> list[Tensor]:
    """The local rows of the gradients."""
    return [local(p.grad) for p in params if p.grad is not None]


def state(
    optimizer: torch.optim.Optimizer, params: Sequence[Tensor], key: str, initial: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The local rows of a tensor that the optimizer keeps for each parameter; ``initial`` makes it the first time.

    It is kept as it is made: split over processes like the parameter.
    """
    for p in params:
        if key not in optimizer.state[p]:
            optimizer.state[p][key] = initial(p.detach())
    return [local(optimizer.state[p][key]) for p in params]


def tensor_norms(tensors: Sequence[Tensor], of: Sequence[Tensor]) -> Tensor:
    """The norm of each whole tensor, from its local rows; of half types in float32, since theirs could overflow.

    Args:
        of: the parameters, which say how the tensors are split over processes.
    """
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)
    norms = foreach_norm(tensors, 2, torch.float32 if half else None)
    return torch.stack(add_parts(norms, of, whole=True))


class GroupOptimizer(torch.optim.Optimizer):
    """An optimizer that updates the parameters of a group together."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: computes loss and gradients first; its loss is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if params := parameters(self, group):
                self._step(params, group)
        return loss

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that have gradients."""
        raise NotImplementedError
