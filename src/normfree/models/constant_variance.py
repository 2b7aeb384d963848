"""The residual block that keeps the signal's variance constant (NF-ResNets, appendix G.2)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import UsageError
from ..functional import expected_variances
from .block import NFBlock

Residual = Literal["growing-variance", "constant-variance"]


class ConstantVarianceBlock(NFBlock):
    """``(shortcut + a * f(gamma * act(x) / beta)) / sqrt(1 + a ** 2)`` with ``a = alpha * skip_gain``.

    ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``. Where the branch is orthogonal
    to the shortcut, an input of variance 1 leaves the block with variance 1, so that ``beta`` is 1 everywhere
    (NF-ResNets, appendix G.2). With a skip gain of 0 the block passes its input on. Stochastic depth drops ``f`` alone.

    Example:
        >>> model = normfree.create_model("nf_resnet26_small", residual="constant-variance", alpha=0.75, skip_gain=1.0)
        >>> [round(share, 4) for share in model.stages[0][0].shares()]  # 1 and 0.75 ** 2, over 1 + 0.75 ** 2
        [0.64, 0.36]
    """

    shrink = 1.0  # the factor of the shortcut once the block is folded

    def _scale(self) -> Tensor | None:
        scale = super()._scale()
        return None if scale is None else scale * torch.rsqrt(1 + scale * scale)

    def _merged(self, shortcut: Tensor, out: Tensor, keep: Tensor | None) -> Tensor:
        if self.skip_init is not None:
            shortcut = shortcut * self._shrinkage()
        elif self.shrink != 1.0:
            shortcut = shortcut * self.shrink
        return super()._merged(shortcut, out, keep)

    def _shrinkage(self) -> Tensor:
        """The factor of the shortcut, ``1 / sqrt(1 + a ** 2)``; not folded."""
        scale = super()._scale()
        assert scale is not None
        return torch.rsqrt(1 + scale * scale)

    def shares(self) -> tuple[float, float]:
        _, branch = super().shares()
        return 1.0 - branch, branch

    @torch.no_grad()
    def fold_(self) -> None:
        """Fold the block's constants, as :meth:`NFBlock.fold_`; the shortcut's into its convolution, if it has one."""
        if self.skip_init is None:
            return
        shrink = self._shrinkage()
        super().fold_()
        if self.conv_shortcut is None:
            self.shrink = shrink.item()
            return
        for parameter in self.conv_shortcut.parameters():
            parameter.mul_(shrink)


def block_of(residual: Residual) -> type[NFBlock]:
    """The block of an option ``residual``; UsageError if it is unknown."""
    if residual not in get_args(Residual):
        raise UsageError(f"residual (={residual!r}) must be one of {', '.join(get_args(Residual))}")
    return ConstantVarianceBlock if residual == "constant-variance" else NFBlock


def block_variances(depths: Sequence[int], alpha: float, residual: Residual) -> list[list[float]]:
    """Predicted variance of each block's input, per stage, at initialization; ``beta`` is its square root.

    Example:
        >>> block_variances([1, 2], 0.5, "growing-variance"), block_variances([1, 2], 0.5, "constant-variance")
        ([[1.0], [1.25, 1.25]], [[1.0], [1.0, 1.0]])
    """
    return expected_variances(depths, 0.0 if residual == "constant-variance" else alpha)
