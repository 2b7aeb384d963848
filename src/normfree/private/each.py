"""Gradients of single examples by torch.func, a few at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..errors import UsageError, check_count
from ..functional import clip_gradient
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
    roles: Mapping[str, Role | str] | None = None,
    unclipped: Sequence[str] = (),
    chunk: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> float:
    """Add the mean of the examples' gradients to ``grad``, each clipped by itself: AGC per example (NFNets, eq. 3).

    AGC clips the mean gradient of a batch, in which a single large gradient may be hidden. Here no example moves a
    unit by more than ``clipping * max(|W_i|, eps)``. Not in the papers.

    Args:
        loss, inputs, targets, chunk, max_bytes: as of :func:`per_example_gradients`.
        clipping, eps: as of :func:`normfree.optim.agc_`.
        roles, unclipped: as of :func:`normfree.optim.param_groups`, which says what is clipped, and what is one unit.

    Returns:
        The fraction of units of examples that were clipped.

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
    groups = param_groups(model, clipping=clipping, roles=roles, unclipped=unclipped)
    thresholds = {id(p): (group["clipping"], "one_unit" in group) for group in groups for p in group["params"]}
    clipped = units = 0
    for gradients in per_example_gradients(model, loss, inputs, targets, chunk=chunk, max_bytes=max_bytes):
        for name, p in trained_parameters(model).items():
            threshold, one_unit = thresholds[id(p)]
            shape = (-1,) if one_unit or p.ndim < 2 else p.shape
            kept, shorter = _clipped(
                p.detach().reshape(shape), gradients[name].reshape(len(gradients[name]), *shape), threshold, eps
            )
            clipped, units = clipped + int(shorter.sum()), units + shorter.numel()
            mean = kept.sum(0).view_as(p) / len(inputs)
            p.grad = mean if p.grad is None else p.grad + mean
    return clipped / max(1, units)


def _clipped(weight: Tensor, gradients: Tensor, clipping: float | None, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients (n, *shape), each clipped by itself, and whether each unit of each was; (n, 0) without clipping."""
    if clipping is None:
        return gradients, gradients.new_zeros(len(gradients), 0)
    kept = vmap(lambda gradient: clip_gradient(weight, gradient, clipping, eps))(gradients)
    units = len(weight) if weight.ndim > 1 else 1
    return kept, (kept != gradients).reshape(len(gradients), units, -1).any(2)
