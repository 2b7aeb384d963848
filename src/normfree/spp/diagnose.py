"""What is wrong with a signal, in plain sentences (the failures that NF-ResNets names in sections 3, 4, appendix F).

Every rule compares a block with what should have come out of *its* input, so that a fault is found where it is and not
in all that follows. Thresholds lie between the paper's healthy networks and its broken ones; the margins are measured
in the tests.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .result import SPP, Row

WEAK, STRONG = 0.6, 1.7  # branch variance over theory's: 0.95 to 1.3 if healthy, 0.33 with sqrt(2) for gamma
WEAK_BLOCK, STRONG_BLOCK = 0.4, 2.5  # for one block alone
BARE_GATE = 0.7  # mean of a gate; about 1/2 where the factor 2 is missing
OUTLIER = 4.0  # a branch against the median of its stage, in variance
GROWTH, RISE = 1.3, 10.0  # explosion: variance per block, and in all


@dataclass(frozen=True)
class Finding:
    """One fault: ``str`` of it is a sentence.

    Attributes:
        kind: "not finite", "explosion", "attenuation", "mean shift", "branch variance", "dead branch" or
            "missing reset".
        blocks: names of the blocks that show it, the first or worst one first.
        message: the sentence, with names and numbers.
    """

    kind: str
    blocks: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def diagnose(spp: SPP) -> list[Finding]:
    """Faults of a recorded network at initialization, the gravest first; none for a healthy one.

    A trained network may rightly break these rules: they say what lets training begin.
    """
    rows = [row for row in spp.rows if row.res_avg_var is not None]
    broken = _not_finite(spp)
    if broken or not rows:
        return broken
    findings = _explosion(rows)
    if not findings:
        findings = _missing_reset(spp, rows) + _attenuation(spp, rows)
    return findings + _mean_shift(rows) + _dead(rows) + _outliers(spp, rows, findings)


def _not_finite(spp: SPP) -> list[Finding]:
    for row in spp.rows:
        if not math.isfinite(row.avg_var) or not math.isfinite(row.res_avg_var or 0.0):
            return [
                Finding("not finite", (row.block,), f"{row.block} is the first block with a value that is not finite")
            ]
    return []


def _explosion(rows: list[Row]) -> list[Finding]:
    """The branch grows with the signal, so that the variance is multiplied from block to block instead of added to."""
    first, last = rows[0], max(rows, key=lambda row: row.avg_var)
    steps = rows.index(last)
    branches = [row.res_avg_var for row in rows]
    if steps < 2 or first.avg_var <= 0 or branches[0] <= 0:
        return []
    rise, branch_rise = last.avg_var / first.avg_var, branches[steps] / branches[0]
    if rise < RISE or branch_rise < RISE or rise ** (1 / steps) < GROWTH:
        return []
    return [
        Finding(
            "explosion",
            (last.block, first.block),
            f"the variance grows {rise ** (1 / steps):.2g}-fold per block, from {first.avg_var:.3g} at {first.block} "
            f"to {last.avg_var:.3g} at {last.block}, because the branches grow with it ({branches[0]:.3g} to "
            f"{branches[steps]:.3g}); scale each branch's input by 1/beta, or normalize it",
        )
    ]


def _missing_reset(spp: SPP, rows: list[Row]) -> list[Finding]:
    """A transition whose shortcut hands the grown variance on instead of starting at 1."""
    findings, start = [], rows[0]
    for before, row in itertools.pairwise(rows):
        if row.transition and row.shortcut_var is not None and row.expected_var is not None:
            if row.theory is not None:  # between what beta would leave and what came
                due = row.theory.shortcut_var
                missing = row.theory.beta**2 > 1.3 and row.shortcut_var > due * row.theory.beta
            else:
                due = start.avg_var
                missing = before.avg_var > 2.5 * due and row.shortcut_var > 0.7 * before.avg_var
            if missing:
                text = (
                    f"the shortcut of {row.block} has variance {row.shortcut_var:.3g} where {due:.3g} was due, having "
                    f"taken {before.avg_var:.3g} from {before.block}; let it take the activation behind 1/beta"
                )
                findings.append(Finding("missing reset", (row.block,), text))
        if row.transition:
            start = row
    return findings


def _attenuation(spp: SPP, rows: list[Row]) -> list[Finding]:
    """Branches that lose (or add) variance in every block: a wrong gain, or a gate without its factor."""
    bare = [row for row in rows if row.gate is not None and row.gate < BARE_GATE and not row.normalized]
    if len(bare) > len(rows) / 2:
        row = bare[0]
        text = (
            f"Squeeze-Excite's gate averages {row.gate:.2f} in {row.block} and {len(bare) - 1} more blocks, which "
            f"leaves {row.gate**2:.2f} of the branch's variance ({row.res_avg_var:.3g} there); multiply it by "
            f"{1 / row.gate:.2g}"
        )
        return [Finding("attenuation", tuple(r.block for r in bare), text)]
    gains = _branch_gains(spp, rows)
    if not gains:
        return []
    middle = statistics.median(gain for _, gain in gains)
    worst, gain = min(gains, key=lambda pair: pair[1]) if middle < 1 else max(gains, key=lambda pair: pair[1])
    if WEAK <= middle <= STRONG:
        return _lost_signal(spp, rows)
    what = "lose" if middle < 1 else "gain"
    text = (
        f"branches {what} variance in every block: {middle:.2f} of what should leave them, {gain:.2f} at {worst.block} "
        f"({worst.res_avg_var:.3g} there){_gamma_hint(worst, middle)}"
    )
    return [Finding("attenuation" if middle < 1 else "branch variance", tuple(row.block for row, _ in gains), text)]


def _branch_gains(spp: SPP, rows: list[Row]) -> list[tuple[Row, float]]:
    """Branch variance over theory's; for unnormalized networks of others, over the input's where that is about 1.

    A first block behind max pooling is left out: its input is not centred.
    """
    gains = []
    for before, row in zip([spp.stem, *rows], rows, strict=False):
        if before is None or before.avg_sq_mean > before.avg_var > 0 or row.normalized or row.res_avg_var == 0:
            continue
        if row.theory is not None and row.theory.res_var > 0:
            gains.append((row, row.res_avg_var / row.theory.res_var))
        elif row.theory is None and 0.5 <= before.avg_var <= 1.5 and not row.transition:
            gains.append((row, row.res_avg_var / before.avg_var))
    return gains


def _gamma_hint(row: Row, gain: float) -> str:
    if row.theory is None:
        return (
            "; the gain of its activation may be too small" if gain < 1 else "; the gain of its activation is too large"
        )
    as_if = row.theory.gamma * gain ** (1 / (2 * row.theory.activations))
    return (
        f"; it is as if gamma were {as_if:.3f} instead of {row.theory.gamma:.3f} ({row.theory.activations} activations)"
    )


def _lost_signal(spp: SPP, rows: list[Row]) -> list[Finding]:
    """Nothing arrives at the end, in a network of which no theory is known."""
    first, last = spp.stem or rows[0], rows[-1]
    if any(row.theory for row in rows) or first.avg_var <= 0 or last.avg_var > 1e-4 * first.avg_var:
        return []
    text = f"the variance falls from {first.avg_var:.3g} at {first.block} to {last.avg_var:.3g} at {last.block}"
    return [Finding("attenuation", (last.block,), text)]


def _mean_shift(rows: list[Row]) -> list[Finding]:
    """Channel means that outgrow what varies: inputs become indistinguishable (section 4.1)."""
    shifted = [
        row
        for row in rows
        if not row.normalized and (row.added_var or 0.0) > 0.0 and (row.res_avg_sq_mean or 0.0) > row.res_avg_var
    ]
    overtaken = [row for row in shifted if row.avg_sq_mean > row.avg_var]
    if not overtaken and len(shifted) <= len(rows) / 2:
        return []
    worst = max(overtaken or shifted, key=lambda row: row.avg_sq_mean / row.avg_var)
    text = (
        f"the squared channel mean is {worst.avg_sq_mean / worst.avg_var:.2g} times the variance at {worst.block} "
        f"({worst.avg_sq_mean:.3g} to {worst.avg_var:.3g}); {len(shifted)} of {len(rows)} branches end with means that "
        "exceed their variance; standardize the weights, or center the activation"
    )
    return [Finding("mean shift", tuple(row.block for row in [worst, *(r for r in shifted if r is not worst)]), text)]


def _dead(rows: list[Row]) -> list[Finding]:
    """A branch that gives nothing while others do; if none does, the initialization means it so (FixUp, SkipInit)."""
    findings = []
    for what, values in (
        ("varies by {:.1e}", [row.res_avg_var for row in rows]),
        ("adds a variance of {:.1e}", [row.added_var for row in rows]),
    ):
        alive = [value for value in values if value]
        limit = 1e-6 * statistics.median(alive) if alive else 0.0
        for row, value in zip(rows, values, strict=True):
            if alive and value <= limit and not any(row.block in finding.blocks for finding in findings):
                others = f"the median of the others is {statistics.median(alive):.2g}"
                findings.append(
                    Finding("dead branch", (row.block,), f"the branch of {row.block} {what.format(value)}; {others}")
                )
    return findings


def _outliers(spp: SPP, rows: list[Row], found: list[Finding]) -> list[Finding]:
    """One branch far from theory, or from those of its stage."""
    if found:
        return []  # a fault of all blocks is not one of each
    findings = []
    for row, value, due in _comparable(spp, rows):
        low, high = (WEAK_BLOCK, STRONG_BLOCK) if row.theory is not None else (1 / OUTLIER, OUTLIER)
        if value > 0 and not low <= value / due <= high and value > 1e-6 * due:
            text = f"the branch of {row.block} ends with variance {value:.3g} where {due:.3g} was expected"
            findings.append(Finding("branch variance", (row.block,), text))
    return findings


def _comparable(spp: SPP, rows: list[Row]) -> list[tuple[Row, float, float]]:
    """Rows with their branch variance and what it should be like."""
    if any(row.theory is not None for row in rows):
        return [(row, row.res_avg_var, row.theory.res_var) for row, _ in _branch_gains(spp, rows) if row.theory]
    groups: dict[tuple[int, str], list[Row]] = {}
    key: Callable[[Row], tuple[int, str]] = lambda row: (row.stage, row.block.removeprefix(row.module))  # noqa: E731
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    middle = {k: statistics.median(row.res_avg_var for row in group) for k, group in groups.items() if len(group) > 2}
    growing = not all(row.normalized for row in rows)
    return [] if growing else [(row, row.res_avg_var, middle[key(row)]) for row in rows if middle.get(key(row))]
