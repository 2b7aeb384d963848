"""Concatenations of a network: the variances of the maps that they join, and maps that drown beside others.

A layer of independent weights with one variance sees each map by its share of the sum of squares,
``n_i * v_i / sum(n * v)`` of n_i channels of variance v_i. A map whose channels have a hundredth of the variance of
others is a tenth of their size, and what the layer makes of it is noise beside them (Karras et al. 2024,
arXiv:2312.02696, eq. 103, scale them). A normalization of each channel behind the concatenation makes all alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .moments import channel_moments
from .origin import Origins, tensors_in


@dataclass
class Concatenation:
    """Maps that a module joins along their channels.

    Attributes:
        module: name of the innermost module.
        channels, variances: of each map that comes from the network's input; average channel variances.
        normalized: each channel is normalized (BatchNorm, InstanceNorm) before the next layer.
    """

    module: str
    channels: tuple[int, ...]
    variances: tuple[float, ...]
    normalized: bool = False

    @property
    def shares(self) -> tuple[float, ...]:
        """What each map makes up of the sum of squares that a layer behind sees."""
        parts = [n * v for n, v in zip(self.channels, self.variances, strict=True)]
        total = sum(parts)
        return tuple(part / total if total else 0.0 for part in parts)


def concatenation_of(module: str, args: Sequence[Any], origins: Origins) -> Concatenation | None:
    """What ``torch.cat`` joins, if it joins at least two maps along their channels; before it runs."""
    joined, *rest = args
    maps = [x for x in tensors_in(joined) if origins[x] is not None and x.is_floating_point() and x.numel()]
    if len(maps) < 2 or maps[0].ndim < 2:
        return None
    deepest = max(maps, key=lambda x: origins.known(x).depth)
    dim, axis = origins.channel_dim(deepest), rest[0] if rest else 0
    if axis % deepest.ndim != dim % deepest.ndim:
        return None
    return Concatenation(module or "(model)", tuple(x.shape[dim] for x in maps), _variances(maps, dim))


def _variances(maps: Sequence[Tensor], dim: int) -> tuple[float, ...]:
    return tuple(channel_moments(x, dim).avg_var for x in maps)
