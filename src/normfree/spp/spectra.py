"""Singular values of the weights, whose collapse variances do not show (NF-ResNets, appendix A.1)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn import SameConv

_ROUNDING = 1e-15  # of the Gram matrix's eigenvalues, against the largest


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one layer's weight as a matrix of outputs by fan-in; of groups, over all of them.

    Attributes:
        largest, smallest: singular values. A weight whose mean is 0 maps the constant input to 0, so that one singular
            value is 0 if it has as many outputs as inputs; this one is left out.
        condition: ``largest / smallest``; all three are nan if a weight is not finite.
        shape: outputs per group and fan-in.
    """

    layer: str
    largest: float
    smallest: float
    condition: float
    shape: tuple[int, int]


@torch.no_grad()
def spectra(model: nn.Module) -> list[Spectrum]:
    """Spectrum of every convolution and linear layer, in the order of definition.

    Of a convolution of this library it is that of the (standardized) weight that the layer convolves with, gains
    included, constants in front of it (gamma / beta) left out. Eigenvalues of the Gram matrix in float64: conditions
    above 3e7 are beyond its rounding and given as infinite.

    >>> (one,) = spectra(nn.Linear(2, 2))
    >>> one.shape, one.largest >= one.smallest
    ((2, 2), True)
    """
    model = getattr(model, "_orig_mod", model)
    results = []
    for name, layer in model.named_modules():
        weight = _weight(layer)
        if weight is not None:
            results.append(_spectrum(name, weight, getattr(layer, "groups", 1), getattr(layer, "centred", False)))
    return results


def _weight(layer: nn.Module) -> Tensor | None:
    if isinstance(layer, SameConv):
        return layer.effective_weight() / layer.input_scale
    if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer.weight
    return None


def _spectrum(name: str, weight: Tensor, groups: int, centred: bool) -> Spectrum:
    outputs, fan_in = weight.shape[0] // groups, weight[0].numel()
    if not bool(torch.isfinite(weight).all()):
        return Spectrum(name, math.nan, math.nan, math.nan, (outputs, fan_in))
    matrices = weight.double().flatten(1).unflatten(0, (groups, -1))
    gram = matrices @ matrices.mT if outputs <= fan_in else matrices.mT @ matrices  # 5 times faster than svdvals
    values = torch.linalg.eigvalsh(gram).flip(-1)
    rank = max(min(outputs, fan_in - centred), 1)
    largest, smallest = values[:, 0].max().item(), values[:, rank - 1].min().item()
    condition = (largest / smallest) ** 0.5 if smallest > _ROUNDING * largest else float("inf")
    return Spectrum(name, largest**0.5, max(smallest, 0.0) ** 0.5, condition, (outputs, fan_in))
