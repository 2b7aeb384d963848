"""Muon: momentum whose step is orthogonalized, for weights of any shape (Jordan et al. 2024)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .foreach import foreach_add, foreach_add_, foreach_mul_
from .sharded import joined, local, part_like
from .state import GroupOptimizer, gradients, state, tensor_norms

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic polynomial, Jordan's


def orthogonalize(matrix: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Nearly the closest matrix with orthonormal rows or columns: ``U p(S) V^T`` of ``U S V^T``, with ``p(S)`` near 1.

    Each Newton-Schulz step is the polynomial ``a x + b x^3 + c x^5`` of the singular values, which start at those of
    the matrix over its Frobenius norm. With Jordan's coefficients five steps bring those above 0.0015 into 0.68 .. 1.2,
    where they stay, rather than converge to 1; smaller ones are still on their way.

    On a GPU the products are of bfloat16, as published. On a CPU, where these may be slow and differ between
    processors, they are of float32, and of float64 matrices of float64 everywhere.

    Args:
        matrix: of shape (m, n).
        steps: of the iteration.
        eps: lower bound of the norm that the matrix is divided by; a zero matrix stays zero.

    Example:
        >>> orthogonalize(torch.diag(torch.tensor([3.0, 1.0]))).diagonal()
        tensor([0.7530, 1.1337])
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(_product_dtype(matrix))
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def _product_dtype(matrix: Tensor) -> torch.dtype:
    if matrix.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if matrix.is_cuda else torch.float32


class Muon(GroupOptimizer):
    """Momentum with an orthogonalized step (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    A weight is seen as a matrix (outputs, fan-in), that of a grouped convolution as one; a vector has one column. With
    a gradient ``g`` the momentum is ``b = momentum * b + (1 - momentum) * g``, and ``O`` is what :func:`orthogonalize`
    makes of ``(1 - momentum) * g + momentum * b`` (Nesterov's form) or of ``b``. The step is ``O`` times

    - ``lr * |w| / |O|``, by Frobenius norms, if ``relative``: the learning rate is the length of a step as a part of
      the length of the weight, whatever that is. This is right for standardized weights, whose norm has no meaning.
      A weight of norm 0 takes the other step.
    - ``lr * sqrt(max(1, outputs / fan-in))`` otherwise, as :class:`torch.optim.Muon` ("original").

    Decay is decoupled: the weight is first multiplied by ``1 - lr * weight_decay``. A group with
    ``orthogonalized=False`` takes the steps of :class:`torch.optim.SGD`, its coupled decay included.

    Of parameters that are split over processes (FSDP2), each process gathers one whole matrix after the other.

    Args:
        params: parameters, or groups, such as those of :func:`param_groups`, whose ``transposed`` marks weights with
            outputs in the second dimension.
        lr: learning rate.
        momentum: 0 keeps no momentum.
        nesterov: Nesterov's form of momentum.
        weight_decay: of the weights.
        orthogonalized: whether steps are orthogonalized.
        relative: see above.
        steps: of the Newton-Schulz iteration.

    Raises:
        UsageError: a number is out of range; in ``step``, a sparse gradient.

    Example:
        >>> weight = nn.Parameter(torch.eye(3))
        >>> optimizer = Muon([weight], lr=0.1)
        >>> weight.grad = torch.randn(3, 3)
        >>> optimizer.step()
        >>> length = (weight.detach() - torch.eye(3)).norm()  # 0.1 of the weight's, the root of 3
        >>> round(float(length / 3**0.5), 4)
        0.1
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        orthogonalized: bool = True,
        relative: bool = True,
        steps: int = 5,
    ):
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum (={momentum}) must be at least 0 and below 1")
        if nesterov and momentum == 0:
            raise UsageError("nesterov (=True) needs momentum above 0")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise UsageError(f"{name} (={value}) must be at least 0")
        if steps < 1:
            raise UsageError(f"steps (={steps}) must be at least 1")
        options = dict(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        super().__init__(params, options | dict(orthogonalized=orthogonalized, relative=relative, steps=steps))

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if group["orthogonalized"]:
            self._orthogonalized(params, group)
        else:
            self._plain(params, group)

    def _orthogonalized(self, params: list[Tensor], group: dict[str, Any]) -> None:
        weights, updates = [local(p) for p in params], gradients(params)
        momentum, lr = group["momentum"], group["lr"]
        if momentum != 0:
            buffers = state(self, params, "momentum_buffer", torch.zeros_like)
            for buffer, grad in zip(buffers, updates, strict=True):
                buffer.lerp_(grad, 1 - momentum)
            pairs = zip(updates, buffers, strict=True)
            updates = [grad.lerp(b, momentum) for grad, b in pairs] if group["nesterov"] else buffers
        sizes = tensor_norms(weights, params) if group["relative"] else torch.zeros(len(params))
        for p, weight, update, size in zip(params, weights, updates, sizes, strict=True):
            matrix, shape = _as_matrix(joined(update, p), group.get("transposed", 0))
            step = orthogonalize(matrix, group["steps"])
            factor = max(1.0, len(step) / step.shape[1]) ** 0.5
            if group["relative"]:  # a gradient of 0 has no direction, and its step stays 0
                length = step.norm()
                step = step / length.clamp(min=torch.finfo(step.dtype).tiny)
                step = step * torch.where(size == 0, factor * length, size.to(length.dtype))
            else:
                step = step * factor
            step = part_like(_from_matrix(step, shape, group.get("transposed", 0)), p)
            if group["weight_decay"] != 0:
                weight.mul_(1 - lr * group["weight_decay"])
            weight.sub_(step, alpha=lr)

    def _plain(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """A step of SGD."""
        weights, updates = [local(p) for p in params], gradients(params)
        if group["weight_decay"] != 0:
            updates = foreach_add(updates, weights, alpha=group["weight_decay"])
        if group["momentum"] != 0:
            buffers = state(self, params, "momentum_buffer", torch.zeros_like)
            foreach_mul_(buffers, group["momentum"])
            foreach_add_(buffers, updates)
            updates = foreach_add(updates, buffers, alpha=group["momentum"]) if group["nesterov"] else buffers
        foreach_add_(weights, updates, alpha=-group["lr"])


def _as_matrix(tensor: Tensor, transposed: int) -> tuple[Tensor, torch.Size]:
    """A weight as (outputs, fan-in), and the shape from which :func:`_from_matrix` makes the weight again.

    Args:
        transposed: groups of a transposed convolution, whose weight is (in, out / groups, ...); 0 for others.
    """
    if transposed:
        tensor = tensor.unflatten(0, (transposed, -1)).transpose(1, 2).flatten(0, 1)
    return tensor.reshape(len(tensor) if tensor.ndim else 1, -1), tensor.shape


def _from_matrix(matrix: Tensor, shape: torch.Size, transposed: int) -> Tensor:
    tensor = matrix.reshape(shape)
    return tensor.unflatten(0, (transposed, -1)).transpose(1, 2).flatten(0, 1) if transposed else tensor
