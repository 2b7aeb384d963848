"""Normal noise: from a seed and a step, or from the system's random numbers."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SUMMED = 4  # normal numbers in each one of secure_normal
_AT_ONCE = 2**20  # numbers, to bound memory


def secure_normal(count: int) -> Tensor:
    """Normal numbers from the system's random numbers (``os.urandom``): (count,) float64.

    Each is half the sum of four by Box and Muller's method, so that the float that comes out does not tell which
    uniform numbers it was made of (Holohan & Braghin 2021, arXiv:2107.10138).

    Example:
        >>> secure_normal(3).shape, secure_normal(3).dtype
        (torch.Size([3]), torch.float64)
    """
    parts = [_box_muller(min(_AT_ONCE, count - begin)) for begin in range(0, count, _AT_ONCE)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def _box_muller(count: int) -> Tensor:
    pairs = count * _SUMMED // 2
    bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64) >> np.uint64(11)
    uniform = torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-53).view(2, pairs)  # never 0 or 1
    radius, angle = torch.sqrt(-2 * torch.log(uniform[0])), 2 * torch.pi * uniform[1]
    normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
    return normal.view(_SUMMED, count).sum(0) / _SUMMED**0.5


@torch.no_grad()
def add_noise_(tensors: Iterable[Tensor], std: float, seed: int | None) -> None:
    """Add normal noise of standard deviation ``std`` to tensors, in place.

    Args:
        seed: of this call; None: from the system's random numbers.

    Example:
        >>> x = torch.zeros(3)
        >>> add_noise_([x], std=0.1, seed=1)
        >>> bool(x.abs().max() < 1)
        True
    """
    generators: dict[torch.device, torch.Generator] = {}
    for tensor in tensors:
        if seed is None:
            noise = secure_normal(tensor.numel()).view(tensor.shape).to(tensor.device)
            tensor.copy_(tensor.double() + std * noise)
            continue
        if tensor.device not in generators:
            generators[tensor.device] = torch.Generator(tensor.device).manual_seed(seed)
        how = dict[str, Any](generator=generators[tensor.device], device=tensor.device, dtype=tensor.dtype)
        tensor.add_(torch.randn(tensor.shape, **how), alpha=std)
