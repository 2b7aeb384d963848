"""The variance that theory expects in inverted bottlenecks without normalization, place by place on the map.

Three things are peculiar to a convolution that sees one channel. Zeros around the map take a share of its taps, and its
kernel is large beside the last maps, so that their middle has more variance than their edge, and is seen more often.
Its input, an activation, has a mean, which standardized weights cancel, but not where the zeros cut them. And a sum of
9 or 25 numbers is not normal: an activation leaves 4 or 2 % more of its variance.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import pad_same
from ..gain import activation_gain, he_gain, normal_mean, variance_behind
from ..models import NFInvertedBlock
from ..nn import SameConv2d
from .rows import BlockTheory

_STEP = 0.1  # of logarithms of the variance: interpolation is off by less than 1e-3
_TINY = 1e-30
_Function = str | Callable[[Tensor], Tensor]


def has_theory(block: NFInvertedBlock) -> bool:
    """Whether the weights of the block's 1x1 convolutions have no mean, and it is not folded."""
    return isinstance(block.conv2, SameConv2d) and block.conv2.centred


class InvertedTheory:
    """What theory expects of the blocks of a network, in their order.

    Args:
        network: all of them; the first one's input is activated.
    """

    def __init__(self, network: Sequence[NFInvertedBlock]):
        self.places = {block: place for place, block in enumerate(network)}
        self.profile: Tensor | None = None  # of the variance over the map, with mean 1, and which block takes it in
        self.follows: int | None = None

    def of(self, block: NFInvertedBlock, variance: float, shape: Sequence[int]) -> BlockTheory:
        """The expected variances of a block, for the variance of its actual input and the shape of its output.

        The profile of the input over the map is that of the block before, or even where that was not asked for.
        """
        place, act = self.places[block], block.act.activation
        profile = self.profile
        if profile is None or self.follows != place:
            profile = torch.ones([side * block.conv1.stride for side in shape[-2:]], dtype=torch.float64)
        x = profile * variance / block.beta**2
        if block.conv0 is not None:
            x = _behind(act, x)
        activated = block.conv0 is not None or place == 0
        x = _behind(act, _depthwise(block.conv1, x, _mean_share(act) if activated else 0.0))
        if activated:
            x = x * tail_factor(act, block.conv1.kernel_size**2)
        end = x.mean().item()
        if block.skip_init is not None:
            x = profile * variance + block.skip_init.scale().item() ** 2 * x
        self.profile, self.follows = x / x.mean(), place + 1
        return BlockTheory(
            beta=block.beta,
            res_var=end,
            shortcut_var=None,
            activations=activations(block),
            gamma=activation_gain(act),
        )


def activations(block: NFInvertedBlock) -> int:
    """Number of activations in the block."""
    return 1 + (block.conv0 is not None)


def inverted_variances(network: Sequence[NFInvertedBlock]) -> list[tuple[float, float]]:
    """Variances of each block's output and of its branch's end, from alpha, beta and skip gains alone.

    As :func:`.normfree_variances`; a block without a skip hands on its branch. The first one's input has the variance
    that its beta expects. With alpha alone this is :func:`.expected_skip_variances`.
    """
    variance, expected = network[0].beta ** 2, []
    for block in network:
        branch = variance / block.beta**2
        for _ in range(activations(block)):
            branch = _behind(block.act.activation, torch.tensor(branch, dtype=torch.float64)).item()
        scale = None if block.skip_init is None else block.skip_init.scale().item()
        variance = branch if scale is None else variance + scale**2 * branch
        expected.append((variance, branch))
    return expected


def _depthwise(conv: SameConv2d, variance: Tensor, mean_share: float) -> Tensor:
    """The variance map (H, W) behind a depthwise convolution; the channels' squared mean is a share of their variance.

    Of N standardized weights each has variance 1 / N and two have covariance -1 / (N (N - 1)), since their sum is 0.
    """
    taps = conv.kernel_size**2
    kernel = torch.ones(1, 1, conv.kernel_size, conv.kernel_size, dtype=torch.float64)

    def summed(x: Tensor) -> Tensor:
        x, padding = pad_same(x[None, None], conv.kernel_size, conv.stride, conv.dilation, conv.atrous)
        return F.conv2d(x, kernel, None, conv.stride, padding, conv.dilation)[0, 0]

    out = summed(variance) / taps
    if conv.centred:
        squared_mean = mean_share * variance
        out = out + (summed(squared_mean) - summed(squared_mean.sqrt()) ** 2 / taps) / (taps - 1)
    return out


def _behind(activation: _Function, variance: Tensor) -> Tensor:
    """The variance behind ``gamma * g`` of a signal of that variance; linear between a few logarithms."""
    place = variance.clamp(min=_TINY).log() / _STEP
    low = place.floor()
    known = range(int(low.min()), int(low.max()) + 2)
    logs = torch.tensor([_log_behind(activation, step) for step in known], dtype=torch.float64)
    index = (low - known.start).long()
    return torch.lerp(logs[index], logs[index + 1], place - low).exp()


@functools.lru_cache(maxsize=4096)
def _log_behind(activation: _Function, step: int) -> float:
    return math.log(variance_behind(activation, math.exp(step * _STEP)))


@functools.lru_cache(maxsize=64)
def _mean_share(activation: _Function) -> float:
    """The squared mean of an activation of N(0, 1) over its variance."""
    return (activation_gain(activation) / he_gain(activation)) ** 2 - 1


@functools.lru_cache(maxsize=64)
def tail_factor(activation: _Function, taps: int) -> float:
    """Variance behind an activation of a depthwise sum of activated values, over that behind a normal one.

    The first terms of the Edgeworth series in the sum's third and fourth cumulant: those of an activated value times
    sums of powers of the weights, which are evenly distributed over directions of sum 0.

    Example:
        >>> round(tail_factor("silu", 9), 3), round(tail_factor("silu", 25), 3), round(tail_factor("identity", 9), 3)
        (1.036, 1.016, 1.0)
    """
    gamma, n = activation_gain(activation), taps
    mean = gamma * normal_mean(activation, lambda y, x: y)
    third, fourth = (normal_mean(activation, lambda y, x, k=k: (gamma * y - mean) ** k) for k in (3, 4))

    def term(power: int, hermite: Callable[[Tensor], Tensor]) -> float:
        return normal_mean(activation, lambda y, x: (gamma * y) ** power * hermite(x))

    def he3(x: Tensor) -> Tensor:
        return x**3 - 3 * x

    def he4(x: Tensor) -> Tensor:
        return x**4 - 6 * x**2 + 3

    def he6(x: Tensor) -> Tensor:
        return x**6 - 15 * x**4 + 45 * x**2 - 15

    fourths = 3 * (n - 1) / (n * (n + 1))  # expectation of the sum of the weights' fourth powers
    r = -1 / (n - 1)  # correlation of two weights
    thirds = ((n - 1) / n) ** 3 * n * (15 + (n - 1) * (9 * r + 6 * r**3)) / ((n - 1) * (n + 1) * (n + 3))
    of_fourth = (term(2, he4) - 2 * mean * term(1, he4)) / 24
    of_third = (term(2, he6) - 2 * mean * term(1, he6)) / 72 - (term(1, he3) / 6) ** 2
    return 1 + (fourth - 3) * fourths * of_fourth + third**2 * thirds * of_third
