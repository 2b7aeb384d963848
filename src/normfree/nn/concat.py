"""Concatenation that keeps the signal's mean square."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import concat_weights


class ScaledConcat(nn.Module):
    """Maps side by side, each times a constant, so that the result has mean square 1 and each its share of it.

    ``(N, n_1, *places), (N, n_2, *places), ... -> (N, n_1 + n_2 + ..., *places)``. No parameters. The constants are
    those of :func:`normfree.functional.concat_weights` (Karras et al. 2024, arXiv:2312.02696, eq. 103).

    Args:
        channels: of each map.
        variances: that theory expects of each map; None: 1.
        shares: of the sum of squares; None: equal ones.

    Raises:
        UsageError: as :func:`normfree.functional.concat_weights`; in ``forward``, another number of maps, or maps of
            other channels.

    Example:
        >>> cat = ScaledConcat([8, 8], variances=[1.0, 4.0])
        >>> cat(torch.ones(1, 8, 4), torch.ones(1, 8, 4)).mean((0, 2)).unique()
        tensor([0.5000, 1.0000])
    """

    def __init__(
        self, channels: Sequence[int], variances: Sequence[float] | None = None, shares: Sequence[float] | None = None
    ):
        super().__init__()
        self.channels = tuple(channels)
        self.scales = tuple(concat_weights(channels, variances, shares))

    def forward(self, *maps: Tensor) -> Tensor:
        found = tuple(x.shape[1] for x in maps)
        if found != self.channels:
            raise UsageError(f"maps of {found} channels are concatenated where {self.channels} were declared")
        return torch.cat([x if s == 1.0 else x * s for x, s in zip(maps, self.scales, strict=True)], 1)

    def extra_repr(self) -> str:
        return f"{self.channels}, scales={tuple(round(scale, 4) for scale in self.scales)}"
