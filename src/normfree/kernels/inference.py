"""What is left between convolutions at inference: means over places, small linear layers, the merge and an activation.

Without gradients; the same values as torch's operations within rounding, in fewer passes over memory.
"""

import torch
from torch import Tensor

from . import merge
from .activation import FUNCTIONS, computed
from .library import TYPES, available, dense, eager, library, plain, threads
from .merge import geometry

_TYPES = (torch.float32, torch.bfloat16)
_THEN = {None: 0, "relu": 1, "sigmoid": 2}  # as in gate.h
_FEW = 4  # images, beyond which a matrix product is faster than a product for each


def _usable(x: Tensor) -> bool:
    """Whether the kernels may read a tensor: on the CPU, nothing tracing, no gradient wanted."""
    watched = torch.is_grad_enabled() and x.requires_grad
    return eager() and available() and plain(x) and x.dtype in _TYPES and not watched


def supported(x: Tensor) -> bool:
    """Whether the compiled kernels support maps ``x``: (N, C, H, W), float32 or bfloat16, dense, on the CPU."""
    return _usable(x) and x.ndim == 4 and x.numel() > 0 and dense(x)


def means(x: Tensor) -> Tensor:
    """``x.mean((2, 3))`` in float32: (N, C, H, W) -> (N, C).

    Example:
        >>> means(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3])
    """
    if not supported(x):
        return x.float().mean((2, 3))
    sums = torch.empty(x.shape[:2])
    library().nf_sum_places(*geometry(x), x.data_ptr(), None, sums.data_ptr(), threads(x.numel()))
    return sums.div_(x.shape[2] * x.shape[3])


def activated(x: Tensor, activation: str) -> Tensor:
    """``activation(x)``, without gamma, of maps that :func:`supported` accepts; names as in :func:`merged`.

    Example:
        >>> x = torch.ones(1, 2, 3, 3)
        >>> torch.allclose(activated(x, "silu"), x.sigmoid()) if supported(x) else True
        True
    """
    return computed(FUNCTIONS[activation], x)


def few(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether :func:`linear` is for these: a few rows (N, C), a weight (K, C), a bias (K,) of its type or None."""
    if not (x.ndim == 2 and 0 < x.shape[0] <= _FEW and x.shape[1] == weight.shape[1] > 0 and _usable(x)):
        return False
    if bias is not None and not (bias.dtype is weight.dtype and bias.is_contiguous()):
        return False
    return weight.dtype in _TYPES and weight.is_contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, then: str | None = None, factor: float = 1.0) -> Tensor:
    """``x @ weight.T + bias`` in float32, of rows that :func:`few` accepts: (N, C), (K, C), (K,) -> (N, K).

    Args:
        then: None, "relu", or "sigmoid" times ``factor``.

    Raises:
        RuntimeError: operands that it does not accept, which it would read beyond their ends.

    Example:
        >>> x, weight = torch.ones(1, 3), torch.eye(3)
        >>> linear(x, weight, None, "sigmoid", 2.0) if few(x, weight) else 2 * torch.sigmoid(x)
        tensor([[1.4621, 1.4621, 1.4621]])
    """
    if not few(x, weight, bias):
        raise RuntimeError("a linear layer's input, weight and bias do not fit together, or are not for this kernel")
    x = x.float().contiguous()
    out = torch.empty(x.shape[0], weight.shape[0])
    at_bias = None if bias is None else bias.data_ptr()
    library().nf_linear(
        TYPES[weight.dtype],
        *(x.shape[0], x.shape[1], weight.shape[0]),
        *(_THEN[then], factor),
        *(x.data_ptr(), weight.data_ptr(), at_bias, out.data_ptr()),
        threads(weight.numel()),
    )
    return out


def mergeable(shortcut: Tensor, branch: Tensor, gate: Tensor | None = None) -> bool:
    """Whether :func:`merged` is for these maps and this gate."""
    if not (supported(branch) and supported(shortcut) and merge.supported(shortcut, branch)):
        return False
    whole = gate is not None and gate.dtype is torch.float32 and gate.shape == (*branch.shape[:2], 1, 1)
    return gate is None or (whole and _usable(gate))


def merged(shortcut: Tensor, branch: Tensor, gate: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    """``out = shortcut + gate * branch`` and ``activation(out)`` of maps that :func:`mergeable` accepts, in one pass.

    Args:
        gate: (N, C, 1, 1), float32; None: 1.
        activation: "gelu" (its tanh form), "gelu_erf", "silu" or "relu", without gamma.

    Example:
        >>> shortcut, branch = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
        >>> if mergeable(shortcut, branch):
        ...     out, activated = merged(shortcut, branch, torch.full((1, 2, 1, 1), 0.5), "relu")
        ...     assert out.unique().item() == activated.unique().item() == 1.5
    """
    out, activated = torch.empty_like(branch), torch.empty_like(branch)
    if gate is not None:
        gate = gate.contiguous()
    memory = (None if x is None else x.data_ptr() for x in (shortcut, branch, gate, out, activated))
    library().nf_merged(FUNCTIONS[activation], *geometry(branch), *memory, threads(branch.numel()))
    return out, activated
