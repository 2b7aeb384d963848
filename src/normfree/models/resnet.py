"""Depths, widths and stems of all ResNets."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from ..errors import UsageError
from ..nn import MaxPoolSame, SameConv2d

DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}
STRIDES = (1, 2, 2, 2)

Stem = Literal["7x7", "7x7-nopool", "3x3"]
_STEMS = {"7x7": (7, 2, True), "7x7-nopool": (7, 2, False), "3x3": (3, 1, False)}  # kernel, stride, pooling


def resnet_variants(name: str, **options: Any) -> dict[str, dict[str, Any]]:
    """A variant for each depth; ``name`` has a placeholder for the number of layers."""
    return {
        name.format(layers): dict(
            widths=(256, 512, 1024, 2048), depths=depths, train_size=224, test_size=224, **options
        )
        for layers, depths in DEPTHS.items()
    }


def resnet_stem(
    kind: Stem, conv: Callable[..., SameConv2d], in_chans: int, channels: int, **between: nn.Module
) -> nn.Sequential:
    """A convolution, the layers ``between`` by their names and, for "7x7", 3x3 max pooling of stride 2."""
    if kind not in _STEMS:
        raise UsageError(f"stem (={kind!r}) must be one of {', '.join(_STEMS)}")
    kernel_size, stride, pooled = _STEMS[kind]
    layers = nn.Sequential()
    layers.add_module("conv", conv(in_chans, channels, kernel_size, stride))
    for name, layer in between.items():
        layers.add_module(name, layer)
    if pooled:
        layers.add_module("pool", MaxPoolSame())
    return layers
