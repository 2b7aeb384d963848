"""How the weight that a layer uses depends on parameters, and what its gradient for each example means for these.

Scaled Weight Standardization divides a centred weight by its norm; the gradient of the raw weight is that of the used
one, projected and scaled unit by unit (NFNets, eq. 1). With the used weight ``w = r * u``, where ``u`` is standardized
and ``r`` the product of gain and constants, and with G the gradient of ``w``: the gain has the gradient
``c * <G, u>``, and the raw weight ``r * f * (G - mean(G) - k * <G, u> * u)``, where ``f`` is the factor that
standardizes, and ``k`` is 1, or 0 where ``eps`` bounds the norm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn import SameConv, WSConv


@dataclass(frozen=True)
class Raw:
    """``w = factor * parameter``; ``factor`` is a number, and ``scale`` another one that is a tensor of one element."""

    parameter: Tensor
    factor: float = 1.0
    scale: Tensor | None = None

    @property
    def total(self) -> Tensor | float:
        return self.factor if self.scale is None else self.scale.detach() * self.factor


@dataclass(frozen=True)
class Standardized:
    """A weight by Scaled Weight Standardization, times ``factor``, ``scale`` and a gain for each unit."""

    parameter: Tensor
    gain: Tensor | None
    factor: float
    scale: Tensor | None
    eps: float
    add_eps: bool

    @torch.no_grad()
    def parts(self) -> "Parts":
        weight = self.parameter.detach()
        weight = weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight
        flat = weight.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        square, size = torch.linalg.vector_norm(centred, dim=1, keepdim=True).square(), flat.shape[1]
        f = torch.rsqrt(square + self.eps * size if self.add_eps else square.clamp(min=self.eps))
        kept = torch.ones_like(f) if self.add_eps else (square >= self.eps).to(f.dtype)
        constant = torch.full_like(f[:, 0], self.factor)
        if self.scale is not None:
            constant = constant * self.scale.detach().to(f.dtype)
        gain = torch.ones_like(constant) if self.gain is None else self.gain.detach().to(f.dtype)
        return Parts((centred * f).view_as(weight), gain, constant, f[:, 0], kept[:, 0])


@dataclass(frozen=True)
class Parts:
    """Of a standardized weight ``gain * constant * unit``.

    Attributes:
        unit: the standardized weight, (out, ...).
        gain, constant: factors of each unit, (out,).
        f: the factor that standardizes, (out,).
        kept: 1 where the norm is that of the weight, 0 where ``eps`` bounds it, (out,).
    """

    unit: Tensor
    gain: Tensor
    constant: Tensor
    f: Tensor
    kept: Tensor

    @property
    def rate(self) -> Tensor:
        """Length of the raw weight's gradient over that of the projected one, (out,)."""
        return self.gain * self.constant * self.f

    def removed(self) -> Tensor:
        """What the projection takes from the squared norm, over ``<G, unit> ** 2``: (out,)."""
        return self.kept * (2 - self.unit.flatten(1).square().sum(1))


@dataclass(frozen=True)
class Derived:
    """Any other function of parameters: the gradient goes back through it, one example after the other."""

    weight: Tensor


Source = Raw | Standardized | Derived


def source_of(weight: Tensor, module: nn.Module | None, scale: Tensor | None, known: bool) -> Source:
    """How a used weight depends on parameters.

    Args:
        module: the convolution that is running, called with ``scale``; None: another layer.
        known: whether ``weight`` is itself a parameter.
    """
    if known:
        return Raw(weight)
    if isinstance(module, SameConv) and weight.shape == module.weight.shape:
        if isinstance(module, WSConv):
            if _is(module, WSConv, "effective_weight", "standardized_weight", "reparameterized", "_factor"):
                gain, eps = module.gain, module.eps
                return Standardized(module.weight, gain, module.input_scale, scale, eps, module.add_eps)
        elif _is(module, SameConv, "effective_weight", "_factor", "_apply_weight"):
            return Raw(module.weight, module.input_scale, scale)
    return Derived(weight)


def _is(module: nn.Module, kind: type, *methods: str) -> bool:
    """Whether a module computes its weight as ``kind`` does."""
    return all(name not in vars(module) and getattr(type(module), name) is getattr(kind, name) for name in methods)
