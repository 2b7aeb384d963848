"""Channel statistics of activations (NF-ResNets, section 3 and appendix F), in one pass over memory."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .examples import Likeness, likeness

# Squares of float32 overflow at signals of 1e19 and vanish at 1e-19; unnormalized deep networks reach both.
_TINY = 1e-30


@dataclass(frozen=True)
class Moments:
    """Mean and (biased) variance of each channel over the other dimensions, ``values`` each: (C,) float64.

    ``likeness``: of the examples, where it was asked for.
    """

    mean: Tensor
    var: Tensor
    values: int = 0
    likeness: Likeness | None = None

    @property
    def avg_mean(self) -> float:
        """Mean of all values."""
        return self.mean.mean().item()

    @property
    def avg_sq_mean(self) -> float:
        """Average Channel Squared Mean."""
        return self.mean.square().mean().item()

    @property
    def avg_var(self) -> float:
        """Average Channel Variance."""
        return self.var.mean().item()

    def times(self, factor: Tensor) -> "Moments":
        """The moments of the activations times ``factor``, one number or one per channel."""
        return Moments(self.mean * factor, self.var * factor.square(), self.values)


@dataclass(frozen=True)
class ImageMoments:
    """Mean and variance of each channel of each image: (N, C) float64 each."""

    mean: Tensor
    var: Tensor

    def times(self, gate: Tensor) -> "ImageMoments":
        """The moments of the activations times a gate: per channel and image, per image, per channel, or one number."""
        gate = gate.double().reshape(gate.shape[:2]) if gate.ndim > 1 else gate.double()
        return ImageMoments(self.mean * gate, self.var * gate.square())

    def pooled(self) -> Moments:
        """Over all images, by the law of total variance."""
        return Moments(self.mean.mean(0), self.var.mean(0) + self.mean.var(0, correction=0))


def channel_moments(x: Tensor, dim: int) -> Moments:
    """Mean and variance per channel of ``x``, whose channels are dimension ``dim``; any number of dimensions."""
    values = x.numel() // x.shape[dim]
    if dim % x.ndim == 1 and x.ndim > 2 and x.is_contiguous():
        return replace(image_moments(x).pooled(), values=values)
    return Moments(*_mean_var(x.movedim(dim, -1).reshape(-1, x.shape[dim])), values)


def row_moments(x: Tensor, dim: int, examples: int) -> Moments:
    """Those of a row: with the likeness of its examples, the first dimension if it has as many."""
    alike = likeness(x, dim)
    return replace(channel_moments(x, dim), likeness=alike if len(x) == examples else replace(alike, cosine=None))


def projected_moments(x: Tensor, weight: Tensor, bias: Tensor | None) -> Moments:
    """Moments of the 1x1 convolution of ``x`` (N, C, *places) with ``weight`` (out, C, 1, ...), without computing it.

    Its variances are ``diag(W Cov(x) W^T)``: with the papers' bottlenecks, a quarter of the convolution's cost.
    """
    mean = channel_moments(x, 1).mean
    centred = (x - mean.to(x.dtype).view(-1, *(1,) * (x.ndim - 2))).flatten(2)
    covariance = torch.bmm(centred, centred.mT).double().sum(0) / (x.numel() // x.shape[1])
    matrix = weight.double().flatten(1)
    shift = 0.0 if bias is None else bias.double()
    return Moments(matrix @ mean + shift, ((matrix @ covariance) * matrix).sum(1), x.numel() // x.shape[1])


def image_moments(x: Tensor) -> ImageMoments:
    """Mean and variance per image and channel of ``x`` (N, C, ...): contiguous runs, the fast reduction."""
    n, c = x.shape[:2]
    mean, var = _mean_var(x.reshape(1, n * c, -1))
    return ImageMoments(mean.view(n, c), var.view(n, c))


class Products:
    """Moments of ``x``, and of ``x`` times factors that broadcast to it, such as gates and layer scales.

    Channels of ``x`` are dimension ``dim``.
    """

    def __init__(self, x: Tensor, dim: int):
        self.x, self.dim = x, dim

    @cached_property
    def one(self) -> Moments:
        return channel_moments(self.x, self.dim)

    @cached_property
    def each(self) -> ImageMoments:
        return image_moments(self.x)

    def __call__(self, factor: Tensor | None) -> Moments:
        if factor is None or factor.numel() == 1:
            return self.one if factor is None else self.one.times(factor.double().reshape(1))
        shape = (1,) * (self.x.ndim - factor.ndim) + tuple(factor.shape)
        if self.dim == 1 and math.prod(shape[2:]) == 1:
            return self.each.times(factor.reshape(shape[:2])).pooled()
        return channel_moments(self.x * factor, self.dim)


def _mean_var(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all but dimension 1, in float64; computed in float32 if that suffices."""
    mean, var = _batch_norm_statistics(x if x.dtype in (torch.float32, torch.float64) else x.float())
    fine = bool(torch.isfinite(var).all()) and float(var.max()) > _TINY
    if not fine and x.dtype != torch.float64 and bool(x.any()):  # a branch behind a zero has only zeros
        mean, var = _batch_norm_statistics(x.double())
    return mean.double(), var.double()


def _batch_norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """By BatchNorm's operator, which is 3 times faster than var_mean."""
    try:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    except NotImplementedError:  # a device without that operator
        var, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
    return mean, var
