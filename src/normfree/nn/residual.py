"""The end of a residual branch: SkipInit and stochastic depth."""

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError, check_finite
from ..functional import survival_mask
from .roles import Role

StochdepthScaling = Literal["none", "branch", "skip"]

torch.fx.wrap("survival_mask")  # one node of a symbolic trace, since it depends on the number of images


class SkipInit(nn.Module):
    """Learnable scalar at the end of a residual branch, 0 at first: ``forward(x) = alpha * skip_gain * x``.

    ``skip_gain`` has shape (1,). The models do not call this: they fold ``scale()`` into the last convolution or into
    the gate of Squeeze-Excite (De & Smith 2020; NFNets, section 3). ``init=None``: no learnable scalar, only
    ``alpha``.

    Example:
        >>> SkipInit(alpha=0.2)(torch.ones(2)).detach()
        tensor([0., 0.])
    """

    def __init__(self, alpha: float = 0.2, init: float | None = 0.0):
        super().__init__()
        check_finite("alpha", alpha)
        if init is not None:
            check_finite("init", init)
        self.alpha = alpha
        if init is None:
            self.register_buffer("skip_gain", torch.ones(1), persistent=False)
        else:
            self.skip_gain = nn.Parameter(torch.full((1,), float(init)))
            self.parameter_roles = {"skip_gain": Role.SKIP_GAIN}

    @torch.no_grad()
    def reset_constants(self) -> None:
        """Write the constant that stands for the scalar where there is none, into memory that holds anything."""
        if "skip_gain" in self._buffers:
            self.skip_gain.fill_(1.0)

    def scale(self) -> Tensor:
        """``alpha * skip_gain``, shape (1,), to be folded into another layer.

        Raises:
            UsageError: a backward hook is registered, as by Opacus' GradSampleModule; it would never be called.
        """
        if not torch.compiler.is_compiling() and self._backward_hooks:
            raise UsageError(
                "a backward hook of SkipInit is not called where a network folds skip_gain into its convolutions, so "
                "that hooks per layer (GradSampleModule of Opacus) miss its gradient; for the gradient of each example "
                "use torch.func, see docs/building.md"
            )
        return self._scale()

    def _scale(self) -> Tensor:
        return self.alpha * self.skip_gain

    def forward(self, x: Tensor) -> Tensor:
        return x * self._scale()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class StochasticDepth(nn.Module):
    """Drops whole examples of a residual branch in training, without rescaling the rest (NF-ResNets, appendix B.2).

    ``(N, ...) -> (N, ...)``; in evaluation, or with rate 0, the input itself. Two other variants are of the same
    appendix: ``scaling="branch"`` divides the branches that are left by the survival rate, as usual elsewhere;
    ``"skip"`` multiplies the skip of a dropped branch with ``1 + alpha``, which the block does (:meth:`skip`).

    Raises:
        UsageError: a rate out of [0, 1), an unknown scaling, an alpha that is not finite.

    Example:
        >>> StochasticDepth(0.1).eval()(torch.ones(2))
        tensor([1., 1.])
    """

    def __init__(self, rate: float, scaling: StochdepthScaling = "none", alpha: float = 0.2):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise UsageError(f"stochastic depth rate (={rate}) must be at least 0 and below 1")
        if scaling not in ("none", "branch", "skip"):
            raise UsageError(f'stochdepth_scaling (={scaling!r}) must be "none", "branch" or "skip"')
        check_finite("alpha", alpha)
        self.rate, self.scaling, self.alpha = rate, scaling, alpha

    def mask(self, x: Tensor) -> Tensor | None:
        """(N, 1, ..., 1), the branch's factor: 0 where it is dropped; None where nothing is dropped."""
        if not (self.training and self.rate > 0.0):
            return None
        mask = survival_mask(x, self.rate)
        return mask / (1.0 - self.rate) if self.scaling == "branch" else mask

    def skip(self, x: Tensor, mask: Tensor) -> Tensor:
        """The skip beside a branch with this mask: ``1 + alpha`` times ``x`` where the branch is dropped, or ``x``."""
        return x * (1.0 + self.alpha * (1.0 - mask)) if self.scaling == "skip" else x

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        return x if mask is None else x * mask

    def extra_repr(self) -> str:
        return f"{self.rate:.4g}" + ("" if self.scaling == "none" else f", scaling={self.scaling!r}")
