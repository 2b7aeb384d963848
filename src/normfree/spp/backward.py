"""The backward signal: gradients of every block's output, from a random cotangent at the network's output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..errors import UsageError
from .origin import tensors_in
from .rows import Row


def edge_of(x: Tensor) -> GradientEdge | None:
    """Where the gradient of ``x`` as it is now will arrive; None outside of a recording of gradients."""
    return get_gradient_edge(x) if x.requires_grad else None


def fill_gradients(
    pairs: Sequence[tuple[Row, GradientEdge | None]], output: Any, examples: int, seed: int, name: str
) -> None:
    """Run the backward pass, and fill in ``grad_var`` and ``grad_norm`` of each row with an edge.

    The cotangent is drawn from N(0, 1) for every real number of the output. Gradients of parameters are not computed.

    Args:
        output: of the network, with its graph.
        examples: the batch size.
        name: of the network, for errors.

    Raises:
        UsageError: nothing in the output can be differentiated, or the backward pass fails.
    """
    outputs = [y for y in tensors_in(output) if y.requires_grad and y.is_floating_point()]
    if not outputs:
        raise UsageError(f"backward=True: no output of {name} has a gradient; it may be detached, or integers")
    generator = torch.Generator().manual_seed(~seed)  # other numbers than those of the inputs
    cotangents = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
    known = [(row, edge) for row, edge in pairs if edge is not None]
    try:
        gradients = torch.autograd.grad(outputs, [edge for _, edge in known], cotangents, allow_unused=True)
    except RuntimeError as error:  # of a network that cannot be trained, for example by a change in place
        reason = " ".join(str(error).split())
        raise UsageError(f"backward=True: the backward pass of {name} fails: {reason}") from error
    for (row, _), gradient in zip(known, gradients, strict=True):
        if gradient is None:  # the output does not depend on it
            row.grad_var = row.grad_norm = 0.0
            continue
        squares = torch.linalg.vector_norm(gradient, dtype=torch.float64).item() ** 2
        row.grad_var, row.grad_norm = squares / gradient.numel(), (squares / max(examples, 1)) ** 0.5
