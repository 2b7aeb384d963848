"""The faults of a signal, in plain sentences: failures that signal propagation plots show (NF-ResNets, sections 3, 4
and appendix F).

Every rule compares a block's output with the expected one for *its* input, so that a fault is found in its block and
not in all later ones. Thresholds lie between the paper's healthy and broken networks; the tests measure the margins.
"""

import itertools
import math
import statistics
from collections.abc import Sequence

from ..errors import UsageError
from ..words import counted
from .finding import Finding, examples_alike, finite, no_signal, not_finite
from .frame import Frame
from .gradients import gradient_findings
from .layer_findings import drowned_findings, weight_findings
from .rows import Recording, Row
from .spectra import Spectrum
from .trained import trained_findings

WEAK, STRONG = 0.55, 1.9  # branch variance over theory's, median: 0.88 to 1.46 if healthy, 0.33 with sqrt(2) for gamma
WEAK_BLOCK, STRONG_BLOCK = 0.34, 3.3  # for one block alone: 0.46 to 2.8 in hundreds of narrow ones on 2x2 maps
WEAK_UNKNOWN, STRONG_UNKNOWN = 0.4, 2.5  # without theory, behind a transition, where beta is 1 (or sqrt(2))
UNCENTRED = 3.0  # a first block behind max pooling adds more: 2.8 instead of 1
BARE_GATE = 0.7  # mean of a gate; about 1/2 where the factor 2 is missing
RESET = 2.0  # beta^2 above which a missing reset is no chance
SMOOTH = 1.7  # 2x2 pooling of a signal behind max pooling leaves more than of noise: up to 1.5 times as much
HANDED_ON = 2.5  # variance of a shortcut over its branch's, without theory: up to 2 if healthy
OUTLIER, AGREEING = 5.0, 2.0  # without theory: one branch over the median of the others, and each of these over it
TINY = 1e-300  # variance of no signal
GROWTH, RISE = 1.3, 10.0  # explosion: factor of the variance per block, and over all blocks


def diagnose(
    spp: Recording, *, trained: bool = False, first: Frame | None = None, spectra: Sequence[Spectrum] = ()
) -> list[Finding]:
    """Faults of a recorded network, the gravest first; none for a healthy one.

    A network does not show whether it was trained. The rules for untrained networks are about the signal at
    initialization, which training needs to start; a healthy trained network may break them.

    >>> spp = normfree.spp.record(normfree.create_model("nf_resnet50", num_classes=10, skip_gain=1.0), (4, 3, 64, 64))
    >>> diagnose(spp)
    []

    Args:
        trained: apply the rules for trained networks instead.
        first: for a trained network, the first frame of its run's film (:func:`read_film`), on the same inputs, to
            compare with.
        spectra: for a trained network, those of its weights now.

    Raises:
        UsageError: ``first`` is of other blocks; ``first`` or ``spectra`` for an untrained network.
    """
    if trained:
        return trained_findings(spp, first, spectra)
    if first is not None or spectra:
        raise UsageError("first and spectra are for trained networks; pass trained=True")
    layers = drowned_findings(spp.concatenations) + weight_findings(spp.weights)
    return _untrained(spp) + layers + gradient_findings(spp)


def _untrained(spp: Recording) -> list[Finding]:
    rows = [row for row in spp.rows if row.res_avg_var is not None and row.values != 1]  # one value does not vary
    broken = not_finite(spp) or no_signal(spp)
    if broken or not rows:
        return broken + _explosion([row for row in rows if finite(row)])
    findings = _explosion(rows)
    if not findings:
        findings = _missing_reset(rows) + _attenuation(spp, rows)
    dead = _dead(spp, rows)
    gone = {block for finding in dead for block in finding.blocks}
    outliers = [] if findings else _outliers(spp, rows)  # a fault of all blocks is not one of each
    findings = examples_alike(spp) + findings
    return findings + _mean_shift(rows) + dead + [finding for finding in outliers if finding.blocks[0] not in gone]


def _explosion(rows: list[Row]) -> list[Finding]:
    """Branches grow with the signal, so that each block multiplies the variance instead of adding to it."""
    if 2 * sum(row.normalized for row in rows) >= len(rows):
        return []  # normalized branches do not grow with the signal; also without any rows
    first, last = rows[0], max(rows, key=lambda row: row.avg_var)
    steps = rows.index(last)
    branches = [row.branch_var for row in rows]
    if steps < 2 or first.avg_var <= 0 or branches[0] <= 0:
        return []
    jump = max(itertools.pairwise(rows[: steps + 1]), key=lambda pair: pair[1].avg_var / max(pair[0].avg_var, TINY))
    leap = jump[1].avg_var / max(jump[0].avg_var, TINY)
    if leap > RISE and last.avg_var / first.avg_var / leap < RISE:  # one block did it, not all of them
        text = (
            f"the variance leaps {leap:.3g}-fold at {jump[1].block}, from {jump[0].avg_var:.3g} to "
            f"{jump[1].avg_var:.3g}; the other blocks do not multiply it"
        )
        return [Finding("explosion", (jump[1].block,), text)]
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


def _missing_reset(rows: list[Row]) -> list[Finding]:
    """A transition whose shortcut passes the grown variance on instead of resetting it to 1."""
    findings, start = [], rows[0]
    usual = statistics.median([row.branch_var for row in rows if row.branch_var] or [0.0])
    for before, row in itertools.pairwise(rows):
        if row.transition and row.shortcut_var is not None and math.prod(row.shape) != math.prod(before.shape):
            if row.theory is not None:  # the limit is between the expected variance and the one that arrived
                due, beta = row.theory.shortcut_var or math.inf, row.theory.beta
                odd = any(size % 2 for size in before.shape[-2:])  # 2x2 pooling keeps up to twice as much of odd maps
                missing = beta**2 >= RESET and row.shortcut_var > due * max(beta, SMOOTH) * (2 if odd else 1)
            else:  # shortcut and branch have the same input, normalized or scaled; pooling may leave a quarter
                due = max(row.branch_var, usual if row.normalized else 0.0) / (row.gate or 1.0) ** 2
                grown = row.normalized or before.avg_var > HANDED_ON * start.avg_var
                missing = grown and 0 < HANDED_ON * due < min(row.shortcut_var, before.avg_var)
                missing = missing and row.shortcut_var > (0.5 if row.normalized else 0.2) * before.avg_var
            if missing:
                text = (
                    f"the shortcut of {row.block} has variance {row.shortcut_var:.3g} where {due:.3g} was due, having "
                    f"taken {before.avg_var:.3g} from {before.block}; let it take the activation behind 1/beta, or "
                    "normalize it"
                )
                findings.append(Finding("missing reset", (row.block,), text))
        if row.transition:
            start = row
    return findings


def _attenuation(spp: Recording, rows: list[Row]) -> list[Finding]:
    """Branches that lose (or gain) variance in every block: a wrong gain, or a gate without its factor."""
    bare = [(row, row.gate) for row in rows if row.gate is not None and row.gate < BARE_GATE and not row.normalized]
    if bare:
        row, gate = bare[0]
        more = f" and {counted(len(bare) - 1, 'more block')}" if len(bare) > 1 else ""
        text = (
            f"Squeeze-Excite's gate averages {gate:.2f} in {row.block}{more}, which leaves "
            f"{gate**2:.2f} of the branch's variance ({row.branch_var:.3g} there); multiply it by "
            f"{1 / gate:.2g}"
        )
        return [Finding("attenuation", tuple(row.block for row, _ in bare), text)]
    gains = _branch_gains(spp, rows)
    if not gains:
        return []
    middle = statistics.median(gain for _, gain in gains)
    worst, gain = min(gains, key=lambda pair: pair[1]) if middle < 1 else max(gains, key=lambda pair: pair[1])
    low, high = (WEAK, STRONG) if any(row.theory for row in rows) else (WEAK_UNKNOWN, STRONG_UNKNOWN)
    if low <= middle <= high:
        return _lost_signal(spp, rows)
    what = "lose" if middle < 1 else "gain"
    text = (
        f"branches {what} variance in every block: {middle:.2f} of what should leave them, {gain:.2f} at {worst.block} "
        f"({worst.branch_var:.3g} there){_gamma_hint(worst, middle)}"
    )
    return [Finding("attenuation" if middle < 1 else "branch variance", tuple(row.block for row, _ in gains), text)]


def _branch_gains(spp: Recording, rows: list[Row]) -> list[tuple[Row, float]]:
    """Branch variance over theory's.

    For a network without theory and without normalization, it is the branch variance over the input's, if that is about
    1, in the first block behind a transition, where beta is about 1, too. Branches that start small on purpose (layer
    scale) are left out, and so is a first block behind max pooling, whose input is not centred.
    """
    gains, free = [], not any(row.normalized for row in rows)
    for index, row in enumerate(rows):
        before = rows[index - 1] if index else spp.stem
        if before is None or before.avg_sq_mean > before.avg_var > 0 or row.normalized or row.branch_var == 0:
            continue
        if row.theory is not None:
            if row.theory.res_var > 0:
                gains.append((row, row.branch_var / row.theory.res_var))
        elif free and not row.transition and (not index or before.transition) and 0.5 <= before.avg_var <= 1.5:
            gains += [(row, row.branch_var / before.avg_var)] if (row.added_var or 0.0) > 1e-3 * before.avg_var else []
    return gains


def _gamma_hint(row: Row, gain: float) -> str:
    if row.theory is None:
        return (
            "; the gain of its activation may be too small" if gain < 1 else "; the gain of its activation is too large"
        )
    as_if = row.theory.gamma * gain ** (1 / (2 * row.theory.activations))
    activations = counted(row.theory.activations, "activation")
    return f"; it is as if gamma were {as_if:.3f} instead of {row.theory.gamma:.3f} ({activations})"


def _lost_signal(spp: Recording, rows: list[Row]) -> list[Finding]:
    """No signal at the end of a network without theory."""
    first, last = spp.stem or rows[0], rows[-1]
    if any(row.theory for row in rows) or first.avg_var <= 0 or last.avg_var > 1e-4 * first.avg_var:
        return []
    text = f"the variance falls from {first.avg_var:.3g} at {first.block} to {last.avg_var:.3g} at {last.block}"
    return [Finding("attenuation", (last.block,), text)]


def _mean_shift(rows: list[Row]) -> list[Finding]:
    """Channel means that outgrow the variance: inputs become indistinguishable (section 4.1)."""
    shifted = [
        row
        for row in rows
        if not row.normalized and (row.added_var or 0.0) > 0.0 and (row.res_avg_sq_mean or 0.0) > row.branch_var
    ]
    overtaken = [row for row in shifted if row.avg_sq_mean > row.avg_var]
    if not overtaken:
        return []
    worst = max(overtaken, key=lambda row: row.avg_sq_mean / row.avg_var)
    share = f"{len(shifted)} of {counted(len(rows), 'branch', 'branches')} {'ends' if len(shifted) == 1 else 'end'}"
    text = (
        f"the squared channel mean is {worst.avg_sq_mean / worst.avg_var:.2g} times the variance at {worst.block} "
        f"({worst.avg_sq_mean:.3g} to {worst.avg_var:.3g}); {share} with means that exceed the variance"
        f"{_how_alike(rows)}; standardize the weights, or center the activation"
    )
    return [Finding("mean shift", tuple(row.block for row in [worst, *(r for r in shifted if r is not worst)]), text)]


def _how_alike(rows: list[Row]) -> str:
    """What a shift of means does to examples (NFNets, section 2); older recordings do not say."""
    known = [row for row in rows if row.cosine is not None]
    if not known:
        return ""
    most = max(known, key=lambda row: row.cosine or 0.0)
    return f"; different examples have a mean cosine of {most.cosine:.2f} at {most.block}"


def _dead(spp: Recording, rows: list[Row]) -> list[Finding]:
    """A branch without signal among others with one; if most have none, this is intended (FixUp, SkipInit).

    Branches are compared as shares of their input's variance.
    """
    inputs = [max(before.avg_var, TINY) if before else 1.0 for before in [spp.stem, *rows[:-1]]]
    findings: dict[str, Finding] = {}
    for kind in _kinds(rows):
        for field, limit, what in (
            ("res_avg_var", 1e-6, "varies by {:.1e}"),
            ("added_var", 1e-20, "adds a variance of {:.1e}"),  # a layer scale may be 1e-6
        ):
            shares = {i: (getattr(rows[i], field) or 0.0) / inputs[i] for i in kind}
            usual = statistics.median([share for share in shares.values() if share] or [0.0])
            dead = [rows[i] for i in kind if usual and shares[i] <= limit * usual]
            others = f"the median of the others is {usual:.2g} of their input"
            for row in dead if 2 * len(dead) < len(kind) else []:
                text = f"the branch of {row.block} {what.format(getattr(row, field) or 0.0)}; {others}"
                findings.setdefault(row.block, Finding("dead branch", (row.block,), text))
    return list(findings.values())


def _kinds(rows: list[Row]) -> list[list[int]]:
    """Indices of rows, grouped by the part of the block: attention apart from MLP, blocks without a skip apart."""
    kinds: dict[tuple[str, bool], list[int]] = {}
    for index, row in enumerate(rows):
        kinds.setdefault((row.block.removeprefix(row.module), row.shortcut_var == 0.0), []).append(index)
    return list(kinds.values())


def _outliers(spp: Recording, rows: list[Row]) -> list[Finding]:
    """One branch far from theory, or from others of its kind; many such branches make one finding."""
    if any(row.theory is not None for row in rows):
        pairs = _apart_from_theory(spp, rows)
    else:
        pairs = _apart(rows) + _far_apart(rows)
    if len(pairs) > 2:
        row, due = max(pairs, key=lambda pair: abs(math.log(pair[0].branch_var / pair[1])))
        gain = statistics.median(row.branch_var / due for row, due in pairs)
        more = counted(len(pairs) - 1, "more block")
        text = f"the branches of {row.block} and {more} end with {gain:.2g} of the variance that was"
        text += f" expected ({row.branch_var:.3g} instead of {due:.3g} there){_gamma_hint(row, gain)}"
        return [Finding("branch variance", (row.block, *(r.block for r, _ in pairs if r is not row)), text)]
    text = "the branch of {} ends with variance {:.3g} where {:.3g} was expected"
    return [Finding("branch variance", (row.block,), text.format(row.block, row.branch_var, due)) for row, due in pairs]


def _apart_from_theory(spp: Recording, rows: list[Row]) -> list[tuple[Row, float]]:
    """Rows whose branch is far from theory, with the expected variance."""
    known, pairs = {row.block for row, _ in _branch_gains(spp, rows)}, []
    for row in rows:
        if row.theory is not None and row.branch_var > 0 < row.theory.res_var:
            high = STRONG_BLOCK if row.block in known else UNCENTRED * STRONG_BLOCK
            if not WEAK_BLOCK <= row.branch_var / row.theory.res_var <= high:
                pairs.append((row, row.theory.res_var))
    return pairs


def _far_apart(rows: list[Row]) -> list[tuple[Row, float]]:
    """Normalized branches of the first block and of transitions, which have another input, if they are far off."""
    pairs = []
    for kind in _kinds(rows):
        alive = [rows[i] for i in kind if rows[i].branch_var > 0]
        if len(alive) > 3 and all(row.normalized for row in alive):
            due = statistics.median(row.branch_var for row in alive)
            special = [row for row in alive if (row.transition or row is rows[0]) and not _of_equals(row)]
            pairs += [(row, due) for row in special if row.branch_var > OUTLIER**2 * due]
    return pairs


def _apart(rows: list[Row]) -> list[tuple[Row, float]]:
    """Rows whose branch differs from all others in its stage, if these agree; with the median of the others.

    A normalized branch is compared with those of all stages if its own stage has fewer than two others. The first
    block, which may not have a signal yet (transformers), and transitions, which have another input, are left out.
    """
    pairs = []
    for kind in _kinds(rows):
        alive = [rows[i] for i in kind if i and rows[i].branch_var > 0 and not rows[i].transition]
        for row in alive:
            if _of_equals(row):
                continue
            others = [other for other in alive if other is not row and other.stage == row.stage]
            if len(others) < 2 and all(other.normalized for other in alive):
                others = [other for other in alive if other is not row]
            if len(others) > 1:
                due = statistics.median(other.branch_var for other in others)
                agreeing = all(1 / AGREEING < other.branch_var / due < AGREEING for other in others)
                if agreeing and not 1 / OUTLIER < row.branch_var / due < OUTLIER and row.branch_var > 1e-6 * due:
                    pairs.append((row, due))
    return pairs


def _of_equals(row: Row) -> bool:
    """Whether the sum is one of two normalized parallel branches of similar size, without the signal itself.

    MobileOne and RepVGG train such branches and fuse them later; none of them can be too large.
    """
    if not row.normalized or row.transition or not row.shortcut_var:
        return False
    return 1 / AGREEING < row.branch_var / row.shortcut_var < AGREEING
