"""How large activations are at each place, and how alike those of different examples are.

Two more statistics of a signal propagation plot: the pixel norm, ``np.mean(np.linalg.norm(h, axis=-1))`` of NHWC
activations (NF-ResNets, appendix G.2), and the mean cosine between the activations of two examples, which is their
inner product (NFNets, section 2) whatever their size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Sums of squares in float32 overflow at signals of 1e18 and vanish at 1e-19; unnormalized deep networks reach both.
_SMALL = 1e-30
_PART = 2**16  # values that are summed in float32; their sums are in float64


@dataclass(frozen=True)
class Likeness:
    """Statistics of a batch of activations.

    Attributes:
        pixel_norm: the norm over channels, averaged over images and places. It grows with the root of their number.
        cosine: mean over pairs of different examples of the cosine between them, over all channels and places. None
            where fewer than two examples are not 0.
    """

    pixel_norm: float
    cosine: float | None


def likeness(x: Tensor, dim: int) -> Likeness:
    """Of activations ``x`` (N, ...), whose channels are dimension ``dim``; two passes over memory.

    The sum over pairs is ``|sum_i u_i|^2 - N`` for unit vectors ``u_i``, without computing each pair.

    Example:
        >>> likeness(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), 1)
        Likeness(pixel_norm=5.0, cosine=0.96...)
    """
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    squares = _squares(x, dim)
    size = float(squares.max())
    if x.dtype == torch.float32 and not _SMALL < size < torch.inf:
        x = x.double()
        squares = _squares(x, dim)
    norms = squares.flatten(1).sum(1).sqrt()
    count = int((norms != 0).sum())  # nan counts: the cosine is nan, too
    pixel_norm = squares.sqrt().mean().item()
    if count < 2:
        return Likeness(pixel_norm, None)
    weights = torch.where(norms == 0, 0.0, 1 / norms)
    parts = torch.mv(_flat(x).mT, weights.to(x.dtype)).split(_PART)
    total = torch.stack([part.dot(part) for part in parts]).double().sum().item()
    return Likeness(pixel_norm, min((total - count) / (count * (count - 1)), 1.0))  # rounding may exceed it


def _squares(x: Tensor, dim: int) -> Tensor:
    """Squares summed over channels, (N, places) float64; image by image, with one buffer of an image's size."""
    within = dim % x.ndim - 1  # of an image
    buffer = torch.empty_like(x[0])
    return torch.stack([torch.mul(image, image, out=buffer).sum(within).flatten() for image in x]).double()


def _flat(x: Tensor) -> Tensor:
    """(N, values) in the order of memory, where that is NCHW or NHWC: the order does not matter here."""
    last = x.movedim(1, -1)
    return last.flatten(1) if last.is_contiguous() else x.flatten(1)
