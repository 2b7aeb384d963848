"""Concatenations and computed weights that a network meets while it runs."""

from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .concatenation import Concatenation, concatenation_of
from .origin import CONVOLUTIONS, LINEARS, Origins, operations
from .weight_scale import ComputedWeight, computed_weight

aten = torch.ops.aten
BATCH_NORMS = operations(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    *("miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update"),
)
NORMALIZATIONS = BATCH_NORMS | operations("native_layer_norm", "native_group_norm", "_fused_rms_norm", "rms_norm")


class Observed:
    """What was met, in its order; a mark is the place of one in this order."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.own = {p.data_ptr() for p in model.parameters() if not is_lazy(p)}  # weights that are not computed
        self.found: list[Concatenation | ComputedWeight] = []

    @property
    def concatenations(self) -> tuple[Concatenation, ...]:
        return tuple(one for one in self.found if isinstance(one, Concatenation))

    @property
    def weights(self) -> tuple[ComputedWeight, ...]:
        return tuple(one for one in self.found if isinstance(one, ComputedWeight))

    def operation(self, kind: Any, args: Sequence[Any], module: str, origins: Origins) -> int | None:
        """The mark of what an operation of a module, which is about to run, joins or computes with."""
        one = None
        if kind is aten.cat:
            one = concatenation_of(module, args, origins)
        elif kind in CONVOLUTIONS and not args[6]:  # not transposed
            one = self._weight(module, args[1], args[2], origins)
        elif kind in LINEARS:
            found = [a for a in args[:3] if isinstance(a, Tensor) and a.ndim == 2 and origins[a] is None]
            bias = args[0] if kind is aten.addmm else None
            if found and kind in (aten.linear, aten.addmm, aten.mm):
                one = self._weight(module, found[0] if kind is aten.linear else found[0].t(), bias, origins)
        if one is None:
            return None
        self.found.append(one)
        return len(self.found) - 1

    def normalized(self, marks: Set[int], kind: Any, args: Sequence[Any]) -> None:
        """A normalization follows; that of each channel makes those of a concatenation alike."""
        each = kind in BATCH_NORMS or (kind is aten.native_group_norm and args[6] == args[4])
        for mark in marks:
            one = self.found[mark]
            one.normalized = one.normalized or each or isinstance(one, ComputedWeight)

    def _weight(self, module: str, weight: Tensor, bias: Tensor | None, origins: Origins) -> ComputedWeight | None:
        if origins[weight] is not None or weight.data_ptr() in self.own:
            return None
        return computed_weight(module or "(model)", self.modules[module], weight, bias)
