"""The faults of a trained network's signal.

Training changes variances: in healthy runs by a factor of 10 and more, with branches a hundred times as large as
theory's. The rules here hold at any time: values are finite, the output depends on the input, branches vary. The rest
is compared with the first recording of the same run.
"""

import statistics
from collections.abc import Sequence

from ..errors import UsageError
from ..words import counted
from .finding import Finding, examples_alike, no_signal, not_finite
from .frame import Frame
from .rows import Recording, Row
from .spectra import Spectrum

# measured at every recording of five healthy runs, four on digits (97 to 99 %) and one on scenes, and two at chance
FLAT = 1e8  # the same for the network's output, which may be numbers such as years, that vary by 1e-4 of their size
CONSTANT = 100.0  # squared mean over variance: up to 2, and 28 in a run without clipping; 600 to 30,000 at chance
STILL = 1e-6  # variance of a branch over its input's: from 0.14 on; 0 behind units that are all off
DRIFT = 1000.0  # variance against the first record: up to 100-fold; 6,000- and 50,000-fold at chance
WORSE = 20.0  # condition numbers against the first record, median: up to 4-fold


def trained_findings(spp: Recording, first: Frame | None = None, spectra: Sequence[Spectrum] = ()) -> list[Finding]:
    """Faults of a trained network's signal, the gravest first; none for a healthy one.

    Args:
        first: of the same run, before or early in training, on the same inputs.
        spectra: of the weights now; checked for values that are not finite, and compared with those of ``first``.

    Raises:
        UsageError: ``first`` is of other blocks.
    """
    if first is not None and spp.blocks != first.spp.blocks:
        raise UsageError(f"the record of step {first.step} is of other blocks than {spp.name}; it cannot be compared")
    broken = not_finite(spp) or no_signal(spp)
    if broken:
        return broken
    findings = (_constant(spp) or examples_alike(spp) or _flat(spp)) + _still(spp)
    if first is not None:
        findings += _drift(spp, first)
    return findings + _spectra(spectra, () if first is None else first.spectra)


def _constant(spp: Recording) -> list[Finding]:
    """The last block's output is nearly the same for every input; a normalization would remove that mean."""
    last = spp.rows[-1]
    if last.normalized or last.values == 1 or last.avg_sq_mean <= CONSTANT * last.avg_var:
        return []
    constant = [row for row in spp.rows if row.avg_sq_mean > CONSTANT * row.avg_var]
    row = constant[0]
    text = (
        f"the network says nearly the same of every input: from {row.block} on, the squared channel mean is "
        f"{row.avg_sq_mean / row.avg_var:.2g} times the variance ({row.avg_sq_mean:.3g} to {row.avg_var:.3g}); "
        "go back to an earlier checkpoint, with a smaller learning rate or clipping"
    )
    return [Finding("constant output", tuple(row.block for row in constant), text)]


def _flat(spp: Recording) -> list[Finding]:
    """The network's output is the same for every input, although that of its last block varies."""
    output = spp.output
    if output is None or output.values == 1 or 0 < output.avg_var >= output.avg_sq_mean / FLAT:
        return []
    text = (
        f"the network's output is nearly the same for every input: its squared channel mean is "
        f"{output.avg_sq_mean:.3g}, its variance {output.avg_var:.3g}, and {spp.rows[-1].block}, the last block, has "
        f"{spp.rows[-1].avg_var:.3g}; look at the weight and bias of the layers behind it"
    )
    return [Finding("constant output", ("output",), text)]


def _still(spp: Recording) -> list[Finding]:
    """Branches that do not vary although their input does."""
    still: list[Row] = []
    before = spp.stem
    for row in spp.rows:
        input_var = before.avg_var if before is not None else row.avg_var
        if row.res_avg_var is not None and row.values != 1 and row.res_avg_var <= STILL * input_var:
            still.append(row)
        before = row
    if not still:
        return []
    names = ", ".join(row.block for row in still[:3]) + (f" and {len(still) - 3} more" if len(still) > 3 else "")
    branches = sum(row.res_avg_var is not None for row in spp.rows)
    one = len(still) == 1
    text = (
        f"{len(still)} of {counted(branches, 'branch', 'branches')} {'does' if one else 'do'} not vary with the input "
        f"({names}): "
        f"{'its' if one else 'their'} units are off for every input, or {'its' if one else 'their'} last weights are 0"
    )
    return [Finding("dead branch", tuple(row.block for row in still), text)]


def _drift(spp: Recording, first: Frame) -> list[Finding]:
    """A block's variance is far from its first one."""
    pairs = [(row, old) for row, old in zip(spp.rows, first.spp.rows, strict=True) if row.avg_var > 0 < old.avg_var]
    factors = {row.block: max(row.avg_var / old.avg_var, old.avg_var / row.avg_var) for row, old in pairs}
    far = sorted((block for block in factors if factors[block] > DRIFT), key=lambda block: -factors[block])
    if not far:
        return []
    row, old = next(pair for pair in pairs if pair[0].block == far[0])
    what = "grew" if row.avg_var > old.avg_var else "fell"
    more = f"; {len(far)} of {len(spp.rows)} blocks are further than {DRIFT:.0f}-fold away" if len(far) > 1 else ""
    text = (
        f"the variance at {row.block} {what} {factors[far[0]]:.2g}-fold since step {first.step}, from "
        f"{old.avg_var:.3g} to {row.avg_var:.3g}{more}"
    )
    return [Finding("drift", tuple(far), text)]


def _spectra(now: Sequence[Spectrum], first: Sequence[Spectrum]) -> list[Finding]:
    """Weights that are not finite, or whose singular values spread everywhere (NF-ResNets, appendix A.1)."""
    lost = [one.layer for one in now if one.condition != one.condition]
    if lost:
        text = f"the weight of {lost[0]} has values that are not finite"
        return [Finding("spectrum", tuple(lost), text)]
    conditions = {one.layer: one.condition for one in first}
    grown = {one.layer: one.condition / conditions[one.layer] for one in now if one.layer in conditions}
    grown = {layer: factor for layer, factor in grown.items() if factor == factor}  # inf of before and now
    if not grown or statistics.median(grown.values()) <= WORSE:
        return []
    worst = max(grown, key=lambda layer: grown[layer])
    text = (
        f"the condition numbers of the weights grew {statistics.median(grown.values()):.2g}-fold in the median of "
        f"{counted(len(grown), 'layer')}, most in {worst} ({conditions[worst]:.3g} to "
        f"{next(one.condition for one in now if one.layer == worst):.3g}); such networks collapse"
    )
    return [Finding("spectrum", tuple(sorted(grown, key=lambda layer: -grown[layer])), text)]
