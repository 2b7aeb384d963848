"""Squeeze-Excite with the factor 2 that keeps the signal's variance."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import UsageError, check_count, check_finite
from ..gain import activation_function
from .roles import Role


@torch.no_grad()
def lecun_normal_(weight: Tensor) -> Tensor:
    """Normal with standard deviation fan_in ** -0.5, truncated at two of them: Haiku's default for linear layers.

    In place, for a weight (out, in, ...); returns it.

    Example:
        >>> lecun_normal_(torch.empty(8, 4)).abs().max() <= 1
        tensor(True)
    """
    std, cut = weight[0].numel() ** -0.5, math.erf(2**0.5)
    # through the inverse of the distribution, in place: nn.init.trunc_normal_ leaves temporaries of the weight's size
    return weight.uniform_(-cut, cut).erfinv_().mul_(std * 2**0.5).clamp_(-2 * std, 2 * std)


class SqueezeExcite(nn.Module):
    """Channel-wise gate ``factor * sigmoid(fc1(relu(fc0(mean(x)))))`` (NFNets, appendix C).

    ``(N, C, *places) -> (N, C, *places)``, of any number of dimensions. The activation inside is by default a bare
    ReLU, as released (the paper says GELU).

    Args:
        channels: C.
        ratio: width of the hidden layer over C; the width is rounded down and at least 1.
        hidden: the width itself, instead of ``ratio``.
        gated: channels of the map that the gate is for, if it is not the one it is computed from: where Squeeze-Excite
            straddles a convolution, :meth:`gate` takes its input and is for its output (NFNets, appendix E).
        factor: 2 keeps the variance at initialization, where the sigmoid is about 1/2.
        activation: inside, a name or an elementwise callable.

    Raises:
        UsageError: channels, hidden, gated or ratio not above 0, a number that is not finite.

    Example:
        >>> SqueezeExcite(16).gate(torch.randn(2, 16, 4, 4)).shape
        torch.Size([2, 16, 1, 1])
    """

    parameter_roles = {"fc0.weight": Role.WEIGHT, "fc1.weight": Role.WEIGHT}

    def __init__(
        self,
        channels: int,
        ratio: float = 0.5,
        *,
        hidden: int | None = None,
        gated: int | None = None,
        factor: float = 2.0,
        activation: str | Callable[[Tensor], Tensor] = "relu",
    ):
        super().__init__()
        for name, value in dict(ratio=ratio, factor=factor).items():
            check_finite(f"Squeeze-Excite {name}", value)
        if ratio <= 0:
            raise UsageError(f"Squeeze-Excite ratio (={ratio}) must be above 0")
        check_count("Squeeze-Excite channels", channels)
        hidden = max(1, int(channels * ratio)) if hidden is None else hidden
        check_count("Squeeze-Excite hidden", hidden)
        gated = channels if gated is None else gated
        check_count("Squeeze-Excite gated", gated)
        self.factor = factor
        self.function = activation_function(activation)
        self.fc0 = nn.Linear(channels, hidden)
        self.fc1 = nn.Linear(self.fc0.out_features, gated)
        for layer in (self.fc0, self.fc1):
            lecun_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def gate(self, x: Tensor) -> Tensor:
        """The gate alone, shape (N, C, 1, ...), ``factor`` included."""
        return self.gate_of(mean_over_places(x), x.ndim - 2)

    def gate_of(self, mean: Tensor, dims: int = 2) -> Tensor:
        """The gate of (N, C) means over places, for maps of ``dims`` dimensions."""
        h = self.fc1(self.function(self.fc0(mean)))
        return (self.factor * torch.sigmoid(h))[(..., *(None,) * dims)]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def extra_repr(self) -> str:
        return f"factor={self.factor:g}"


class EfficientChannelAttention(nn.Module):
    """Gate of a convolution over neighbouring channels, ``factor * sigmoid(conv1d(mean(x)))`` (ECA, Wang et al. 2020).

    ``(N, C, *places) -> (N, C, *places)``. Not in the papers; timm's variants have it. The kernel grows with log2(C).

    Example:
        >>> EfficientChannelAttention(16).gate(torch.randn(2, 16, 4, 4)).shape
        torch.Size([2, 16, 1, 1])
    """

    parameter_roles = {"conv.weight": Role.WEIGHT}

    def __init__(self, channels: int, *, factor: float = 2.0):
        super().__init__()
        check_count("channels", channels)
        check_finite("factor", factor)
        self.factor = factor
        size = int(abs(math.log2(channels) + 1) / 2)
        size = max(size if size % 2 else size + 1, 3)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        """The gate alone, shape (N, C, 1, ...), ``factor`` included."""
        return self.gate_of(mean_over_places(x), x.ndim - 2)

    def gate_of(self, mean: Tensor, dims: int = 2) -> Tensor:
        """The gate of (N, C) means over places, for maps of ``dims`` dimensions."""
        h = self.conv(mean[:, None])
        return (self.factor * torch.sigmoid(h)).transpose(1, 2)[(..., *(None,) * (dims - 1))]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def extra_repr(self) -> str:
        return f"factor={self.factor:g}"


def mean_over_places(x: Tensor) -> Tensor:
    """(N, C, *places) -> (N, C).

    Example:
        >>> mean_over_places(torch.ones(2, 3, 4, 5, 6)).shape
        torch.Size([2, 3])
    """
    return x.mean(tuple(range(2, x.ndim)))
