"""Statistics of Adaptive Gradient Clipping in a step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Count = TypeVar("Count", int, Tensor)


class TensorClipping(NamedTuple):
    """Of one parameter: its units, how many were clipped, and the largest ratio of gradient to weight norm."""

    units: int
    clipped: int
    largest_ratio: float


class ClippedGroup(NamedTuple):
    """Units of a group, flat: ``counts`` of each parameter, and per unit the ratio and whether it was clipped."""

    name: str
    params: Sequence[Tensor]
    counts: Sequence[int]
    ratios: Tensor
    clipped: Tensor

    def __repr__(self) -> str:
        return f"ClippedGroup({self.name!r}, {int(self.clipped.sum())} of {len(self.clipped)} units clipped)"


@dataclass(repr=False)
class ClipStatistics:
    """Statistics of one clipping. Nothing waits for the device until a number is read or printed.

    With parameters that are split over processes, all numbers are over the units that this process counts; it may have
    none of a group.

    Attributes:
        gradient_norm: over all parameters before clipping, a tensor without dimensions; of sharded ones only the
            local part. None: there were no gradients.
    """

    gradient_norm: Tensor | None = None
    groups: list[ClippedGroup] = field(default_factory=list)

    @property
    def units(self) -> dict[str, int]:
        """Units per clipped group."""
        return self._per_group([sum(group.counts) for group in self.groups])

    @property
    def clipped_units(self) -> dict[str, Tensor]:
        """Clipped units per group, tensors without dimensions."""
        return self._per_group([group.clipped.sum() for group in self.groups])

    @property
    def fraction(self) -> dict[str, float]:
        """Fraction of units clipped, per group; 0.0 if this process counts none of its units."""
        counts = torch.stack(list(self.clipped_units.values())).tolist() if self.groups else []
        return {name: count / (units or 1) for (name, units), count in zip(self.units.items(), counts, strict=True)}

    @property
    def total_fraction(self) -> float:
        """Fraction of all units clipped; 0.0 where there are none."""
        flags = [group.clipped for group in self.groups]
        return torch.cat(flags).sum().item() / (sum(self.units.values()) or 1) if flags else 0.0

    def by_tensor(self) -> list[tuple[Tensor, TensorClipping]]:
        """Each parameter of the clipped groups and its statistics; waits for the device once per group."""
        results = []
        for group in self.groups:
            present = [(p, count) for p, count in zip(group.params, group.counts, strict=True) if count]
            pieces = zip(*(flat.split([n for _, n in present]) for flat in (group.clipped, group.ratios)), strict=True)
            rows = [torch.stack((flags.sum().to(ratios.dtype), ratios.max())) for flags, ratios in pieces]
            values = torch.stack(rows).tolist() if rows else []
            results += [(p, TensorClipping(n, int(c), r)) for (p, n), (c, r) in zip(present, values, strict=True)]
        return results

    def __repr__(self) -> str:
        counts = zip(self.units.items(), self.clipped_units.values(), strict=True)
        parts = [f"{name}: {int(clipped)} of {units} units clipped" for (name, units), clipped in counts]
        if self.gradient_norm is not None:
            parts.append(f"gradient norm {self.gradient_norm.item():.4g}")
        return f"ClipStatistics({', '.join(parts)})"

    def _per_group(self, values: Sequence[Count]) -> dict[str, Count]:
        """By name; groups of one name are added up."""
        totals: dict[str, Count] = {}
        for group, value in zip(self.groups, values, strict=True):
            totals[group.name] = totals[group.name] + value if group.name in totals else value
        return totals
