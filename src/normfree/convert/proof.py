"""What a conversion did, as a table; what it costs; and the signal before and after."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UsageError
from ..models.complexity import macs_of
from ..nn import SkipInit
from ..spp import SPP, record
from ..words import counted
from .conversion import Conversion

_MAX_SOURCES = 6


@dataclass(frozen=True)
class Proof:
    """A network before and after its conversion.

    Attributes:
        params, macs: before and after; multiply-adds of one input.
        signals: before and after; None where a network has no residual blocks, with the reason in ``unrecorded``.
    """

    params: tuple[int, int]
    macs: tuple[int, int]
    signals: tuple[SPP | None, SPP | None]
    unrecorded: tuple[str, str] = ("", "")


def prove(conversion: Conversion) -> Proof:
    """Count parameters and multiply-adds, and record the signal, before and after; with skip gains of 1.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> prove(normfree.convert.convert(net, (8, 3, 8, 8))).params
        (240, 232)
    """
    both = conversion.original, conversion.model
    params = [sum(p.numel() for p in model.parameters()) for model in both]
    macs = [macs_of(model, conversion.inputs) for model in both]
    (before, no_before), (after, no_after) = (_recorded(model, conversion.inputs) for model in both)
    return Proof((params[0], params[1]), (macs[0], macs[1]), (before, after), (no_before, no_after))


def _recorded(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[SPP | None, str]:
    gains = [module.skip_gain for module in model.modules() if isinstance(module, SkipInit)]
    values = [gain.detach().clone() for gain in gains]
    try:
        with torch.no_grad():
            for gain in gains:
                gain.fill_(1.0)
        return record(model, inputs), ""
    except UsageError as error:
        return None, str(error).partition(";")[0]
    finally:
        with torch.no_grad():
            for gain, value in zip(gains, values, strict=True):
                gain.copy_(value)


def summary(conversion: Conversion) -> list[str]:
    """Lines: how many of what became what, and how many constants are theory's.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> print(*summary(normfree.convert.convert(net, (8, 3, 8, 8))), sep="\\n")
        1 Conv2d -> WSConv2d: standardized, with gain and bias; 1 by theory, 0 measured
        1 BatchNorm2d -> removed: its place is taken by the layer in front of it
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for change in conversion.changes:
        why = change.why
        if change.now == "removed":
            why = "its place is taken by the layer in front of it"
        groups.setdefault((change.was, change.now, why), []).append(change.source)
    lines = []
    for (was, now, why), sources in groups.items():
        counts = Counter(sources)
        origin = f"; {counts['theory']} by theory, {counts['measured']} measured" if any(sources) else ""
        lines.append(f"{len(sources)} {was} -> {now}: {why}{origin}")
    return lines


def described(conversion: Conversion, proof: Proof) -> list[str]:
    """Lines with costs and signals before and after, and what ``diagnose`` finds."""
    lines = [
        f"parameters {proof.params[0]:,} -> {proof.params[1]:,}, multiply-adds {proof.macs[0]:,} -> {proof.macs[1]:,}"
    ]
    if conversion.difference is not None:
        lines.append(f"outputs in evaluation differ by {conversion.difference:.1e} of their norm")
    for when, spp, reason in zip(("before", "after"), proof.signals, proof.unrecorded, strict=True):
        lines += _signal(when, spp, reason, trained=conversion.mode == "keep")
    return lines


def _signal(when: str, spp: SPP | None, reason: str, *, trained: bool) -> list[str]:
    if spp is None:
        return [f"{when}: no signal propagation plot: {reason}"]
    branches = sorted(row.res_avg_var for row in spp.rows if row.res_avg_var is not None)
    lines = [f"{when}: {counted(len(spp.rows), 'residual block')}"]
    if branches:
        lines[0] += (
            f", branch variances {branches[0]:.3g} to {branches[-1]:.3g}, median {branches[len(branches) // 2]:.3g}"
        )
    findings = spp.diagnose(trained=trained)
    return lines + ([f"  ! {finding}" for finding in findings] or ["  no fault found"])
