"""Gradients of single examples by torch.func, a few at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..errors import UsageError, check_count
from ..functional import clip_coefficient, norm_coefficient, unitwise_norm
from ..nn import Role
from ..optim import param_groups
from .checks import trained_parameters

MAX_BYTES = 2**28  # of the gradients that lie side by side
Loss = Callable[[Tensor, Any], Tensor]


def per_example_gradients(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    chunk: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[dict[str, Tensor]]:
    """The gradient of each example, for ``chunk`` examples after ``chunk`` examples.

    By ``torch.func``, which knows every operation. :class:`ExamplePasses` gives norms and weighted sums in less time
    and memory. Dropout and stochastic depth draw for each example.

    Args:
        model: the network; buffers are not changed.
        loss: of the output (1, ...) and the target (1, ...) of one example.
        inputs, targets: (N, ...).
        chunk: examples at a time; None: as many as ``max_bytes`` holds gradients of.
        max_bytes: bound of the gradients of a chunk, or those of one example if they are more; activations of the
            chunk come on top.

    Yields:
        Gradients by name of the parameter, (chunk, *shape) each; the last chunk may be smaller.

    Raises:
        UsageError: BatchNorm; no parameter is trained; different numbers of inputs and targets; chunk below 1.

    Example:
        >>> model, x = nn.Linear(3, 1), torch.randn(5, 3)
        >>> loss = lambda output, target: (output - target).square().mean()
        >>> chunks = per_example_gradients(model, loss, x, torch.zeros(5, 1), chunk=2)
        >>> [gradients["weight"].shape[0] for gradients in chunks]
        [2, 2, 1]
    """
    trained = {name: p.detach() for name, p in trained_parameters(model).items()}
    others = {name: p.detach() for name, p in model.named_parameters() if name not in trained}
    others |= {name: buffer.detach() for name, buffer in model.named_buffers()}
    if len(inputs) != len(targets):
        raise UsageError(f"{len(inputs)} inputs have {len(targets)} targets; each needs one")
    if chunk is None:
        chunk = max(1, max_bytes // sum(p.nbytes for p in trained.values()))
    check_count("chunk", chunk)

    def loss_of_one(parameters: Mapping[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return loss(functional_call(model, {**parameters, **others}, (x[None],)), target[None])

    gradients = vmap(grad(loss_of_one), in_dims=(None, 0, 0), randomness="different")
    for x, target in zip(inputs.split(chunk), targets.split(chunk), strict=True):
        yield gradients(trained, x, target)


def agc_each_(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    clipping: float,
    eps: float = 1e-3,
    *,
    kind: str = "unit",
    roles: Mapping[str, Role | str] | None = None,
    unclipped: Sequence[str] = (),
    chunk: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> float:
    """Add the mean of the examples' gradients to ``grad``, each clipped by itself: AGC per example (NFNets, eq. 3).

    AGC clips the mean gradient of a batch, in which a single large gradient may be hidden. Here no example moves a
    unit by more than ``clipping * max(|W_i|, eps)``; with ``kind="layer"`` a tensor, and with ``kind="norm"`` all that
    is clipped together by more than ``clipping`` (eq. 2). Not in the papers.

    Args:
        loss, inputs, targets, chunk, max_bytes: as of :func:`per_example_gradients`.
        clipping, eps, kind: as of :func:`normfree.optim.agc_`.
        roles, unclipped: as of :func:`normfree.optim.param_groups`, which says what is clipped, and what is one unit.

    Returns:
        The fraction of units of examples that were clipped; with another kind than ``unit``, each tensor is one.

    Raises:
        UsageError: as these functions raise; no examples.

    Example:
        >>> model, x = nn.Linear(3, 1), torch.randn(5, 3)
        >>> loss = lambda output, target: (output - target).square().mean()
        >>> agc_each_(model, loss, x, torch.zeros(5, 1), clipping=1e-6, roles={"weight": "weight"})
        1.0
    """
    if not len(inputs):
        raise UsageError("there are no examples")
    groups = param_groups(model, clipping=clipping, clipping_kind=kind, roles=roles, unclipped=unclipped)
    bounds = {id(p): _Bound.of(group, eps) for group in groups for p in group["params"]}
    clipped = units = 0
    for gradients in per_example_gradients(model, loss, inputs, targets, chunk=chunk, max_bytes=max_bytes):
        together = _norms([gradients[name] for name, p in trained_parameters(model).items() if bounds[id(p)].together])
        for name, p in trained_parameters(model).items():
            kept, shorter = bounds[id(p)].clipped(p.detach(), gradients[name], together)
            clipped, units = clipped + int(shorter.sum()), units + shorter.numel()
            mean = kept.sum(0) / len(inputs)
            p.grad = mean if p.grad is None else p.grad + mean
    return clipped / max(1, units)


@dataclass(frozen=True)
class _Bound:
    """How the gradients of a group's parameters are clipped."""

    clipping: float | None
    eps: float
    one_unit: bool
    together: bool  # the norm of all such gradients is bounded

    @classmethod
    def of(cls, group: Mapping[str, Any], eps: float) -> "_Bound":
        clipping, kind = group["clipping"], group.get("clipping_kind", "unit")
        one_unit = kind != "unit" or "one_unit" in group
        return cls(clipping, eps, one_unit, kind == "norm" and clipping is not None)

    def clipped(self, weight: Tensor, gradients: Tensor, together: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients (n, *shape), each clipped by itself, and whether each unit of each was; (n, 0) without clipping.

        Args:
            together: the norms of the gradients that are bounded together: (n,).
        """
        if self.clipping is None:
            return gradients, gradients.new_zeros(len(gradients), 0)
        if self.together:
            assert together is not None
            factors = norm_coefficient(together, self.clipping)
        else:
            shape = (-1,) if self.one_unit or weight.ndim < 2 else weight.shape
            size = unitwise_norm(weight.reshape(shape))
            sizes = vmap(unitwise_norm)(gradients.reshape(len(gradients), *shape))
            factors = clip_coefficient(size, sizes, self.clipping, self.eps)
        factors = factors.reshape(len(gradients), -1, 1).to(gradients.dtype)
        rows = gradients.reshape(len(gradients), factors.shape[1], -1)
        return (rows * factors).view_as(gradients), factors.squeeze(2) < 1


def _norms(gradients: Sequence[Tensor]) -> Tensor | None:
    """The norm of each example's gradients over some parameters, (n,) float64; None without any."""
    if not gradients:
        return None
    return torch.stack([each.reshape(len(each), -1).double().square().sum(1) for each in gradients]).sum(0).sqrt()
