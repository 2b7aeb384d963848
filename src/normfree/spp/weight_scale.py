"""Weights that a layer computes from its parameters: is a weight standardization scaled as it should be?

Scaled Weight Standardization gives each unit the variance ``(gain * gamma)^2 / fan_in``, whatever that of its
parameters (NFNets, eq. 1). Two numbers tell whether a layer of unknown code does: the variance times fan-in,
without the gain, and how the units' variances depend on those of their parameters, as an exponent. The exponent is 0
for a standardized weight, 1 where the variance is not divided by, or where a constant epsilon is much larger than it,
and 2 where it is multiplied with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn import SameConv

_CENTRED = 1e-3  # mean of a unit over its standard deviation; float32 leaves 1e-6
_ALIKE = 1e-4  # spread of the logarithms of variances, which must differ for an exponent


@dataclass
class ComputedWeight:
    """The standardized weight of a layer that is not of this library.

    Attributes:
        layer: name; fan_in: of a unit.
        scale: median over units of variance times fan-in, over the squared gain.
        exponent: of the variance in that of the parameters; None if that is the same for all units.
        normalized: a normalization of activations makes the scale irrelevant.
    """

    layer: str
    fan_in: int
    scale: float
    exponent: float | None
    normalized: bool = False


@torch.no_grad()
def computed_weight(layer: str, module: nn.Module, weight: Tensor, bias: Tensor | None) -> ComputedWeight | None:
    """What is known of a weight (out, in, ...) that ``module`` uses; None if it is no standardized one.

    That is a weight whose units have no mean, and are those of a parameter of the same shape up to mean and scale.
    """
    if isinstance(module, SameConv) or weight.ndim < 2 or weight[0].numel() < 3 or weight.is_complex():
        return None
    units = weight.detach().double().flatten(1)
    variance, mean = torch.var_mean(units, 1, correction=0)
    if not bool(variance.any()) or bool((mean.abs() > _CENTRED * variance.sqrt()).any()):
        return None
    own = [p for p in module.parameters() if p is not bias]
    raw = next((p for p in own if p.shape == weight.shape and _same_units(p, units)), None)
    if raw is None or raw.data_ptr() == weight.data_ptr():
        return None
    for gain in module.parameters(recurse=False):
        if gain is not bias and gain is not raw and gain.numel() == len(units) and bool(gain.all()):
            variance = variance / gain.detach().double().flatten().square()
    of_raw = raw.detach().double().flatten(1).var(1, correction=0)
    alive = variance > 0
    fan_in = units.shape[1]
    scale = (variance[alive] * fan_in).median().item()
    return ComputedWeight(layer, fan_in, scale, _exponent(of_raw[alive], variance[alive]))


def _same_units(parameter: Tensor, units: Tensor) -> bool:
    """Whether units are those of a parameter, up to mean and scale; units of zeros may be any."""
    raw = parameter.detach().double().flatten(1)
    raw = raw - raw.mean(1, keepdim=True)
    cosine = torch.cosine_similarity(raw, units - units.mean(1, keepdim=True), dim=1)
    return bool(((cosine.abs() > 0.999) | ~units.any(1)).all())


def _exponent(raw: Tensor, variance: Tensor) -> float | None:
    """The slope of log variance over log variance of the parameters."""
    x, y = raw.clamp(min=1e-300).log(), variance.log()
    x, y = x - x.mean(), y - y.mean()
    return None if len(x) < 2 or x.std() < _ALIKE else (x.dot(y) / x.dot(x)).item()
