"""The signal that theory expects, beside the measured one (NF-ResNets, section 4)."""

import functools
import math
from collections.abc import Callable

from torch import Tensor, nn

from ..functional import per_axis, same_padding
from ..gain import activation_gain, he_gain, moment_behind, variance_behind
from ..models import NFBlock, NFInvertedBlock
from ..nn import SameConv
from .inverted import InvertedTheory, has_theory, inverted_variances
from .rows import BlockTheory, Row

_HOMOGENEOUS = ("relu", "leaky_relu", "identity")  # g(s * x) = s * g(x): their loss does not depend on the signal


def predict(model: nn.Module, rows: list[Row], stem: Row | None) -> None:
    """Fill in ``expected_var`` and, of Normalizer-Free blocks, ``expected_res_var`` and ``theory``."""
    modules = [model.get_submodule(row.module) if row.res_avg_var is not None else None for row in rows]
    before = stem.avg_var if stem is not None else None
    inverted = [module for module in modules if isinstance(module, NFInvertedBlock) and has_theory(module)]
    if modules and len(inverted) == len(modules):
        _predict_inverted(model, rows, inverted, before)
        return
    blocks = [module for module in modules if isinstance(module, NFBlock) and module.skip_init is not None]
    if modules and len(blocks) == len(modules):
        network = [
            module for module in model.modules() if isinstance(module, NFBlock)
        ]  # the rows may be a part of them
        expected = dict(zip(network, normfree_variances(network), strict=True))
        for row, block in zip(rows, blocks, strict=True):
            row.expected_var, row.expected_res_var = expected[block]
            entering = 1.0 if block.restarts else before
            if entering is not None and math.isfinite(entering):
                row.theory = block_theory(block, entering, row.shape)
            before = row.avg_var
        return
    for row in rows:
        shortcut = before if row.shortcut_var is None else row.shortcut_var
        if row.added_var is not None and shortcut is not None and not row.activated:
            row.expected_var = shortcut + row.added_var
        before = row.avg_var


def _predict_inverted(model: nn.Module, rows: list[Row], blocks: list[NFInvertedBlock], before: float | None) -> None:
    network = [module for module in model.modules() if isinstance(module, NFInvertedBlock)]
    expected, theory = dict(zip(network, inverted_variances(network), strict=True)), InvertedTheory(network)
    for row, block in zip(rows, blocks, strict=True):
        row.expected_var, row.expected_res_var = expected[block]
        entering = row.shortcut_var or before  # of a part of a network, the row before may not be the block before
        if entering is not None and math.isfinite(entering):
            row.theory = theory.of(block, entering, row.shape)
        before = row.avg_var


def normfree_variances(blocks: list[NFBlock]) -> list[tuple[float, float]]:
    """Variances of each block's output and of its branch's end, from alpha, beta and skip gains alone.

    A signal of variance v has ``v / beta^2`` behind ``1 / beta`` and the activation, and so has the branch. The block
    adds ``(alpha * skip_gain)^2`` times this to v, or in a transition to ``v / beta^2``, of which 2x2 average pooling
    leaves a quarter (of noise; NF-ResNets, appendix B.4). With skip gains of 1 and without pooling this is the paper's
    ``Var + alpha^2``, reset to ``1 + alpha^2``. With the initial skip gains of 0 the variance stays constant, which
    beta does not take into account. Of weights with a mean (raw or normalized ones) these are second moments: squared
    mean plus variance. A :class:`.ConstantVarianceBlock` divides the sum by ``1 + (alpha * skip_gain)^2``.
    """
    variance, expected = 1.0, []
    for block in blocks:
        variance = 1.0 if block.restarts else variance
        branch = _behind(block, variance / block.beta**2)
        shortcut = variance if block.conv_shortcut is None else branch / (4 if block.pool is not None else 1)
        for _ in range(_activations(block) - 1):
            branch = _behind(block, branch)
        kept, added = block.shares()
        variance = kept * shortcut + added * branch
        expected.append((variance, branch))
    return expected


def block_theory(block: NFBlock, variance: float, shape: tuple[int, ...]) -> BlockTheory:
    """The expected variances of a block for the variance of its actual input."""
    kept, _ = block.shares()
    first = _behind(block, variance / block.beta**2)
    branch = first
    for _ in range(_activations(block) - 1):
        branch = _behind(block, branch)
    for conv in (block.conv1, block.conv1b):
        if conv is not None:
            branch *= _inside(conv, shape[-conv.dims :])
    return BlockTheory(
        beta=block.beta,
        res_var=branch,
        shortcut_var=None if block.conv_shortcut is None else kept * first / (4 if block.pool is not None else 1),
        activations=_activations(block),
        gamma=(activation_gain if block.conv0.centred else he_gain)(block.act.activation),
    )


def _activations(block: NFBlock) -> int:
    return 3 + (block.conv1b is not None)


def _inside(conv: SameConv, size: tuple[int, ...]) -> float:
    """Share of a convolution's taps on the map instead of the zeros around it; ``size`` is that of its output."""
    share = 1.0
    geometry = per_axis(conv.kernel_size, conv.dims), per_axis(conv.stride, conv.dims)
    for out, kernel, stride in zip(size, *geometry, strict=True):
        before, _ = same_padding(out * stride, kernel, stride)
        taps = [i * stride - before + k for i in range(out) for k in range(kernel)]
        share *= sum(0 <= tap < out * stride for tap in taps) / len(taps)
    return share


def _behind(block: NFBlock, variance: float) -> float:
    """The variance (or second moment) behind a convolution of the block's activation."""
    if block.act.name in _HOMOGENEOUS:
        return variance
    return _cached_behind(block.act.activation, float(f"{variance:.3g}"), block.conv0.centred)


@functools.lru_cache(maxsize=4096)
def _cached_behind(activation: str | Callable[[Tensor], Tensor], variance: float, centred: bool) -> float:
    return (variance_behind if centred else moment_behind)(activation, variance)
